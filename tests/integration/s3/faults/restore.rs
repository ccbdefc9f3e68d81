//! `restore`: everything comes back, or nothing that could be started is there.

use std::{fs, path::PathBuf};

use super::{cluster::small_cluster, *};
use crate::support::{
    Cluster,
    files::{Files, files_of},
    wait_until,
};

struct Restore {
    pgkeep: Pgkeep,
    /// What a restore writes.
    files: Files,
    // Last, since the repository goes before its cluster.
    _cluster: Cluster,
}

impl Restore {
    /// A backup, and WAL after it.
    fn new() -> Self {
        let cluster = small_cluster(15);
        let pgkeep = Pgkeep::on_server(&cluster, Server::start());
        without_encryption(&pgkeep);
        pgkeep.init();
        quick_to_try_again(&pgkeep);
        pgkeep.archive(&cluster);
        pgkeep.ok(["check"]);
        pgkeep.ok(["backup"]);
        cluster.make_table("t", 10);
        let last = cluster.switch_wal();
        wait_until("it is archived", 60, || {
            cluster.sql("SELECT last_archived_wal FROM pg_stat_archiver") >= last
        });
        let target = pgkeep.scratch().path().join("clean");
        let path = target.display().to_string();
        pgkeep.ok(["restore", "--archive-mode", "off", "--pgdata", &path]);
        let files = files_of(&target, "");
        assert!(files.len() > 300, "{} files", files.len());
        Restore { pgkeep, files, _cluster: cluster }
    }

    fn target(&self, site: &Site) -> PathBuf {
        site.folder.join("restored")
    }

    fn restore(&self, site: &Site, through: fn(&Site, &[&str]) -> Command) -> Output {
        let path = self.target(site).display().to_string();
        run_to_end(&mut through(site, &["restore", "--archive-mode", "off", "--pgdata", &path]))
    }

    fn all_is_there(&self, site: &Site, case: &Case) {
        let files = files_of(&self.target(site), "");
        for (name, content) in &self.files {
            assert_eq!(files.get(name), Some(content), "{case}: {name} is another file");
        }
        assert_eq!(files.len(), self.files.len(), "{case}");
    }
}

impl Work for Restore {
    fn name(&self) -> &str {
        "restore"
    }

    fn reset(&self, site: &Site) {
        let _ = fs::remove_dir_all(self.target(site));
    }

    fn run(&self, site: &Site) -> Output {
        self.restore(site, Site::command)
    }

    fn expects(&self, case: &Case) -> Expected {
        match () {
            () if case.passes() => Expected::Success,
            // It can be done without, and is then warned about.
            () if case.lasts == Lasts::Once || case.place.key.contains("/leases/") => {
                Expected::Either
            }
            () => Expected::Failure,
        }
    }

    fn check(&self, site: &Site, case: &Case, _: &[Seen], output: &Output) {
        if output.code != 0 {
            let control = self.target(site).join("global/pg_control");
            assert!(!control.exists(), "{case}: it could be started: {output}");
            let again = self.restore(site, Site::direct);
            assert_eq!(again.code, 0, "{case}: the second run: {again}");
        }
        self.all_is_there(site, case);
    }
}

#[test]
fn a_restore() {
    let restore = Restore::new();
    let sites: Vec<_> = (0..4).map(|number| Site::of(&restore.pgkeep, number)).collect();
    matrix(&restore, &sites, 60, (19, 900));
}
