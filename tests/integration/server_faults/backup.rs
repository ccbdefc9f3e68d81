//! `backup`: it is whole, or none.

use super::*;
use crate::support::{
    files::{Files, files_of},
    objects::{ObjectKind, objects, objects_of},
    pgkeep::run_to_end,
    versions,
};

/// The smallest cluster, of one database. Where the server can, it summarizes its WAL.
pub fn tiny_cluster(version: u32) -> Cluster {
    let builder = Cluster::builder(version).wal_segsize(1).conf("autovacuum = off");
    let builder = if version < 17 { builder } else { builder.conf("summarize_wal = on") };
    let cluster = builder.start();
    cluster.sql("UPDATE pg_database SET datistemplate = false");
    cluster.sql("DROP DATABASE template0");
    cluster.sql("DROP DATABASE template1");
    cluster.sql("CREATE TABLE rows AS SELECT n, md5(n::text) FROM generate_series(1, 5000) AS n");
    cluster.sql("VACUUM FREEZE");
    cluster.sql("CHECKPOINT");
    cluster
}

struct Backup {
    sites: Vec<Site>,
    /// Of the cluster at each site, which is idle.
    files: Vec<Files>,
    /// The backup that is there before each run, if one is.
    bases: Vec<Option<String>>,
    name: &'static str,
    /// What it says of how it found what has changed.
    way: &'static str,
}

impl Backup {
    fn new(name: &'static str, version: u32, way: &'static str) -> Self {
        let mut backup = Backup { sites: vec![], files: vec![], bases: vec![], name, way };
        for _ in 0..2 {
            let cluster = tiny_cluster(version);
            let pgkeep = Pgkeep::new(&cluster);
            pgkeep.init();
            pgkeep.archive(&cluster);
            pgkeep.ok(["check"]);
            let mut base = None;
            if !way.is_empty() {
                pgkeep.ok(["backup"]);
                base = committed(&pgkeep).pop();
                cluster.sql("UPDATE rows SET n = -n WHERE n < 100");
            }
            cluster.sql("CHECKPOINT");
            let mut files = files_of(cluster.pgdata(), "base");
            files.extend(files_of(cluster.pgdata(), "global"));
            backup.files.push(files);
            backup.bases.push(base);
            backup.sites.push(Site::new(cluster, pgkeep));
        }
        backup
    }

    fn index(&self, site: &Site) -> usize {
        let here = |other: &Site| other.config == site.config;
        self.sites.iter().position(here).expect("a site")
    }

    /// The backups that aren't the base.
    fn new_ones(&self, site: &Site) -> Vec<String> {
        let base = &self.bases[self.index(site)];
        committed(&site.pgkeep).into_iter().filter(|id| Some(id) != base.as_ref()).collect()
    }

    /// The backup restores to what the cluster is, and all of the repository is sound.
    fn restores(&self, site: &Site, backup: &str, case: &Case) {
        let target = site.pgkeep.scratch().path().join("restored");
        let path = target.display().to_string();
        let arguments = ["restore", "--archive-mode", "off", "--pgdata", &path];
        let to = ["--backup", backup, "--target-immediate"];
        let restored = site.pgkeep.run([&arguments[..], &to].concat());
        assert_eq!(restored.code, 0, "{case}: {restored}");
        let mut files = files_of(&target, "base");
        files.extend(files_of(&target, "global"));
        let expected = &self.files[self.index(site)];
        assert!(files == *expected, "{case}: other files came back");
        fs::remove_dir_all(&target).expect("remove a folder");
        let verified = site.pgkeep.run(["verify", "--backup", backup]);
        assert_eq!(verified.code, 0, "{case}: {verified}");
    }
}

/// The backups that count: with a commit object and without a tombstone.
pub fn committed(pgkeep: &Pgkeep) -> Vec<String> {
    let id = |name: String| name.split('/').nth(3).expect("a backup's folder").to_owned();
    let of = |kind| {
        objects_of(&pgkeep.repository(), kind).into_iter().map(move |object| id(object.name))
    };
    let deleted: Vec<_> = of(ObjectKind::Deleted).collect();
    of(ObjectKind::Record).filter(|id| !deleted.contains(id)).collect()
}

/// Whether a server that does this to its data can't be told from one whose data are like that: nothing
/// in the stream says what is right, and TCP keeps the order.
fn is_believed(case: &Case) -> bool {
    case.place.what == "dd"
        && matches!(
            case.fault,
            Fault::LeftOut | Fault::Scrambled | Fault::Twice | Fault::Swapped | Fault::LengthOff(_)
        )
}

impl Work for Backup {
    fn name(&self) -> &str {
        self.name
    }

    fn sites(&self) -> &[Site] {
        &self.sites
    }

    fn reset(&self, site: &Site) {
        let base = &self.bases[self.index(site)];
        for object in objects(&site.pgkeep.repository()) {
            let of_a_backup = object.name.starts_with("clusters/main/backups/");
            let of_base = base.as_ref().is_some_and(|base| object.name.contains(base.as_str()));
            if (of_a_backup && !of_base) || object.kind == ObjectKind::Lease {
                fs::remove_file(object.path).expect("remove an object");
            }
        }
    }

    fn run(&self, site: &Site, fault: Option<Fault>) -> Output {
        run_to_end(&mut site.command(fault, &["backup"]))
    }

    /// How often the archiver is asked for depends on when segments arrive. Of the data, which are some
    /// hundred messages of one kind, the first ones count, and of the others some.
    fn is_certain(&self, place: &Place) -> bool {
        match &*place.what {
            "dd" => place.before < 16 || place.before.is_multiple_of(50),
            "dp" => place.before < 2,
            _ => !place.asked.contains("pg_stat_archiver") || place.before == 0,
        }
    }

    fn check(&self, site: &Site, case: &Case, output: &Output) {
        let new = self.new_ones(site);
        if output.code == 0 {
            assert_eq!(new.len(), 1, "{case}: {new:?}: {output}");
            if !is_believed(case) {
                self.restores(site, &new[0], case);
            }
            return;
        }
        assert_eq!(new, Vec::<String>::new(), "{case}: it failed and is listed: {output}");
        // PostgreSQL, WAL that doesn't arrive, another server.
        assert!([6, 7, 9].contains(&output.code), "{case}: {output}");
        let says =
            ["PostgreSQL", "server", "backup"].iter().any(|word| output.stderr.contains(word));
        assert!(says, "{case}: {output}");
        let again = run_to_end(&mut site.command(None, &["backup"]));
        assert_eq!(again.code, 0, "{case}: the second run: {again}");
        assert!(again.stdout.contains(self.way), "{case}: the second run: {again}");
        let new = self.new_ones(site);
        assert_eq!(new.len(), 1, "{case}: {new:?}: {again}");
        self.restores(site, &new[0], case);
    }
}

#[test]
fn a_full_backup() {
    matrix(&Backup::new("a full backup", 15, ""), 20, (500, 2000));
}

#[test]
fn a_full_backup_of_17() {
    if versions().contains(&17) {
        matrix(&Backup::new("a full backup of 17", 17, ""), 10, (500, 2000));
    }
}

#[test]
fn an_incremental_backup_of_17() {
    if versions().contains(&17) {
        let way = "the server sent what changed";
        matrix(&Backup::new("an incremental backup of 17", 17, way), 20, (500, 2000));
    }
}
