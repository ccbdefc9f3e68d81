//! `backup`: it is whole, or none.

use std::{fs, path::PathBuf};

use super::{cluster::small_cluster, *};
use crate::support::{
    Cluster,
    files::{Files, files_of},
    objects::{ObjectKind, objects, objects_of},
    versions,
};

/// A cluster and its repository, which archives there by the way that doesn't go wrong.
struct Origin {
    _cluster: Cluster,
    _pgkeep: Pgkeep,
    site: Site,
    /// Of the cluster, which is idle.
    files: Files,
    /// A full backup that is there before each run, if one is.
    base: Option<String>,
}

impl Origin {
    fn new(number: usize, version: u32, with_base: bool) -> Self {
        let cluster = small_cluster(version);
        let pgkeep = Pgkeep::on_server(&cluster, Server::start());
        without_encryption(&pgkeep);
        pgkeep.init();
        quick_to_try_again(&pgkeep);
        // So long it is asked for a segment when the server doesn't answer, too.
        pgkeep.set("cluster.main", "archive-timeout = \"8s\"");
        let site = Site::of(&pgkeep, number);
        let direct = format!("{} --config {}", pgkeep_binary().display(), site.direct.display());
        cluster.conf(&format!("archive_command = '{direct} archive-push %p'"));
        cluster.reload();
        let direct = |arguments: &[&str]| {
            let output = run_to_end(&mut site.direct(arguments));
            assert_eq!(output.code, 0, "{output}");
        };
        direct(&["check"]);
        if with_base {
            direct(&["backup"]);
            cluster.sql("UPDATE noise SET bytes = bytes || 'x' WHERE ctid < '(100,0)'");
        }
        cluster.sql("CHECKPOINT");
        let mut files = files_of(cluster.pgdata(), "base");
        files.extend(files_of(cluster.pgdata(), "global"));
        let base = with_base.then(|| committed(&site).remove(0));
        Origin { _cluster: cluster, _pgkeep: pgkeep, site, files, base }
    }

    fn target(&self) -> PathBuf {
        self.site.folder.join("restored")
    }

    /// The backup restores to what the cluster is.
    fn restores(&self, backup: &str, case: &Case) {
        let target = self.target();
        let path = target.display().to_string();
        let arguments = ["restore", "--archive-mode", "off", "--pgdata", &path];
        let arguments = [&arguments[..], &["--backup", backup, "--target-immediate"]].concat();
        let restored = run_to_end(&mut self.site.direct(&arguments));
        assert_eq!(restored.code, 0, "{case}: {restored}");
        let mut files = files_of(&target, "base");
        files.extend(files_of(&target, "global"));
        assert!(files == self.files, "{case}: other files came back");
        fs::remove_dir_all(&target).expect("remove a folder");
    }
}

/// The backups that count: with a commit object and without a tombstone.
fn committed(site: &Site) -> Vec<String> {
    let repository = site.server.objects("main");
    let id = |name: String| name.split('/').nth(3).expect("a backup's folder").to_owned();
    let of = |kind| objects_of(&repository, kind).into_iter().map(move |object| id(object.name));
    let deleted: Vec<_> = of(ObjectKind::Deleted).collect();
    of(ObjectKind::Record).filter(|id| !deleted.contains(id)).collect()
}

struct Backup {
    origins: Vec<Origin>,
    name: &'static str,
    /// What it says of how it found what has changed.
    way: &'static str,
}

impl Backup {
    fn new(name: &'static str, version: u32, way: &'static str) -> Self {
        let origins = std::thread::scope(|scope| {
            let new = |number| scope.spawn(move || Origin::new(number, version, !way.is_empty()));
            let making: Vec<_> = (0..3).map(new).collect();
            making.into_iter().map(|origin| origin.join().expect("an origin")).collect()
        });
        Backup { origins, name, way }
    }

    /// Runs as many cases as `most` says, of a backup with at least so many requests and cases.
    fn matrix(&self, most: usize, least: (usize, usize)) {
        let sites: Vec<_> = self.origins.iter().map(|origin| &origin.site).collect();
        matrix(self, &sites, most, least);
    }

    fn origin(&self, site: &Site) -> &Origin {
        let here = |origin: &&Origin| origin.site.config == site.config;
        self.origins.iter().find(here).expect("an origin")
    }

    /// The backups that aren't the base.
    fn new_ones(&self, site: &Site) -> Vec<String> {
        let base = &self.origin(site).base;
        committed(site).into_iter().filter(|id| Some(id) != base.as_ref()).collect()
    }
}

impl Work for Backup {
    fn name(&self) -> &str {
        self.name
    }

    fn reset(&self, site: &Site) {
        let base = &self.origin(site).base;
        for object in objects(&site.server.objects("main")) {
            let of_a_backup = object.name.starts_with("clusters/main/backups/");
            let of_base = base.as_ref().is_some_and(|base| object.name.contains(base.as_str()));
            // The server lists slowly, and WAL of earlier runs isn't needed.
            let goes = [ObjectKind::Lease, ObjectKind::Segment, ObjectKind::BackupHistory];
            if (of_a_backup && !of_base) || goes.contains(&object.kind) {
                fs::remove_file(object.path).expect("remove an object");
            }
        }
        site.server.front().forget_uploads();
        let _ = fs::remove_dir_all(self.origin(site).target());
    }

    fn run(&self, site: &Site) -> Output {
        run_to_end(&mut site.command(&["backup"]))
    }

    /// How often it is asked whether a segment has arrived depends on when it does. At least three
    /// questions there are: for the one before the backup, for those of the backup, and for the last
    /// one's end.
    fn is_certain(&self, place: &Place) -> bool {
        let of_wal = place.key.contains("/wal/");
        !of_wal || place.before < if place.operation == "GetObject" { 3 } else { 1 }
    }

    fn expects(&self, case: &Case) -> Expected {
        // A lease that can't be given back, leftovers that can't be looked for and object lock that
        // can't be asked for are no reason for a backup to fail: it warns. Nor is what isn't asked
        // any more when the segment has come.
        let Place { operation, key, .. } = &case.place;
        let may_do_without = ["DeleteObject", "ListMultipartUploads"].contains(operation)
            || (*operation == "HeadObject" && key.ends_with("/manifest"))
            || (*operation == "ListObjectsV2" && key.contains("/wal/"));
        match () {
            () if case.passes() => Expected::Success,
            () if case.lasts == Lasts::Once => Expected::Either,
            () if may_do_without => Expected::Either,
            () => Expected::Failure,
        }
    }

    fn check(&self, site: &Site, case: &Case, seen: &[Seen], output: &Output) {
        let origin = self.origin(site);
        let new = self.new_ones(site);
        if output.code == 0 {
            // What is believed to be the base's record, and isn't, makes the base a damaged one.
            let damaged = matches!(case.fault, Fault::Page(200) | Fault::Shortened)
                && output.stderr.contains("warning: this is going to be a full backup");
            assert!(output.stdout.contains(self.way) || damaged, "{case}: {output}");
            assert_eq!(new.len(), 1, "{case}: {new:?}: {output}");
            return origin.restores(&new[0], case);
        }
        let done = |operation: &str, name: &str| {
            seen.iter().any(|seen| {
                seen.request.operation == operation
                    && seen.request.key.ends_with(name)
                    && seen.answer.is_some_and(|(status, _)| status == 200)
            })
        };
        // One whose commit object was stored, but whose end nobody heard of, is marked as deleted.
        // If that can't be done either, it is a whole backup that nobody has been promised.
        if done("PutObject", "/backup.json") && !done("PutObject", "/deleted") {
            assert_eq!(case.lasts, Lasts::Everywhere, "{case}: {output}");
            assert_eq!(new.len(), 1, "{case}: {output}");
            return origin.restores(&new[0], case);
        }
        assert_eq!(new, Vec::<String>::new(), "{case}: it failed and is listed: {output}");
        let lost = case.place.operation == "CreateMultipartUpload" && case.fault.is_after();
        if case.lasts != Lasts::Everywhere && !lost {
            let uploads = site.server.front().uploads();
            assert!(uploads.is_empty(), "{case}: {uploads:?}");
        }
        let mut again = run_to_end(&mut site.direct(&["backup"]));
        // A removal that was given up and repeated may be done late by a busy server, and meet the next
        // backup if that begins in the same second and so has the same id. It says so, and is none.
        if again.code == 9 && again.stderr.contains("was deleted while it was taken") {
            again = run_to_end(&mut site.direct(&["backup"]));
        }
        assert_eq!(again.code, 0, "{case}: the second run: {again}");
        assert!(again.stdout.contains(self.way), "{case}: the second run: {again}");
        let new = self.new_ones(site);
        assert_eq!(new.len(), 1, "{case}: {new:?}: {again}");
        origin.restores(&new[0], case);
    }
}

#[test]
fn a_full_backup() {
    Backup::new("a full backup", 15, "").matrix(40, (24, 1000));
}

#[test]
fn an_incremental_backup() {
    let way = "the server sent everything, and it was compared";
    Backup::new("an incremental backup", 15, way).matrix(25, (32, 1300));
}

#[test]
fn a_native_incremental_backup() {
    if !versions().contains(&17) {
        return eprintln!("skipped: PGKEEP_TEST_POSTGRES leaves out 17");
    }
    let way = "the server sent what changed";
    Backup::new("a native incremental backup", 17, way).matrix(25, (32, 1300));
}
