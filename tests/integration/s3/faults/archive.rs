//! `archive-push` and `archive-get`: what PostgreSQL hears, and what is stored.

use std::{fs, path::PathBuf};

use super::*;
use crate::{
    s3::memory::cluster_with_noise,
    support::{
        Cluster,
        objects::{Object, objects},
        scratch,
    },
};

/// A cluster with a segment that isn't archived yet, and a repository that has an older one.
struct Archive {
    cluster: Cluster,
    pgkeep: Pgkeep,
    segment: String,
    content: Vec<u8>,
}

impl Archive {
    /// The segment has a MiB, or 16 that don't compress and go up in parts.
    fn new(large: bool) -> Self {
        let cluster = match large {
            false => Cluster::builder(15).wal_segsize(1).start(),
            true => cluster_with_noise(40 << 20),
        };
        // What is archived stays where it is.
        cluster.conf("wal_keep_size = 1GB");
        cluster.reload();
        let last = cluster.switch_wal();
        let number = u64::from_str_radix(&last[16..], 16).expect("a number");
        let segment = format!("{}{:08X}", &last[..16], number - u64::from(large));
        let pgkeep = Pgkeep::on_server(&cluster, Server::start());
        // Each push and get is alone.
        pgkeep.without_state();
        if large {
            without_encryption(&pgkeep);
        }
        pgkeep.init();
        quick_to_try_again(&pgkeep);
        pgkeep.set("cluster.main", "outage-timeout = \"0s\"");
        pgkeep.archive(&cluster);
        pgkeep.ok(["check"]);
        cluster.conf("archive_command = ''");
        cluster.reload();
        let content = fs::read(cluster.pgdata().join("pg_wal").join(&segment)).expect("read");
        let archive = Archive { cluster, pgkeep, segment, content };
        // The server has archived it before the one of the check.
        archive.remove(archive.pgkeep.server().expect("a server"));
        archive
    }

    /// Runs with the large segment have much to do, the others mostly wait for timeouts.
    fn sites(&self) -> Vec<Site> {
        let count = if self.content.len() > 1 << 20 { 5 } else { 16 };
        (0..count).map(|number| Site::of(&self.pgkeep, number)).collect()
    }

    fn stored(&self, server: &Server) -> Vec<Object> {
        let all = objects(&server.objects("main"));
        all.into_iter().filter(|object| object.name.contains(&self.segment)).collect()
    }

    fn remove(&self, server: &Server) {
        for object in self.stored(server) {
            fs::remove_file(object.path).expect("remove an object");
        }
    }

    fn push(&self, mut command: Command) -> Output {
        run_to_end(command.current_dir(self.cluster.pgdata()))
    }

    fn path(&self) -> String {
        format!("pg_wal/{}", self.segment)
    }

    /// Where the gets of a site write.
    fn destination(&self, site: &Site) -> PathBuf {
        site.folder.join("RECOVERYXLOG")
    }

    fn get(&self, site: &Site, segment: &str, through: fn(&Site, &[&str]) -> Command) -> Output {
        let destination = self.destination(site);
        let _ = fs::remove_file(&destination);
        let path = destination.display().to_string();
        run_to_end(
            through(site, &["archive-get", segment, &path]).current_dir(self.cluster.pgdata()),
        )
    }

    /// The segment comes back to the bit.
    fn comes_back(&self, site: &Site, case: &Case) {
        let got = self.get(site, &self.segment, Site::direct);
        assert_eq!(got.code, 0, "{case}: what was stored can't be read: {got}");
        let came = fs::read(self.destination(site)).expect("read");
        assert!(came == self.content, "{case}: other bytes came back");
    }
}

struct Push<'a>(&'a Archive);

impl Work for Push<'_> {
    fn name(&self) -> &str {
        "archive-push"
    }

    fn reset(&self, site: &Site) {
        self.0.remove(&site.server);
        site.server.front().forget_uploads();
    }

    fn run(&self, site: &Site) -> Output {
        self.0.push(site.command(&["archive-push", &self.0.path()]))
    }

    fn check(&self, site: &Site, case: &Case, seen: &[Seen], output: &Output) {
        // Above 125 the archiver would end.
        assert!((0..=125).contains(&output.code), "{case}: {output}");
        let stored = self.0.stored(&site.server);
        if output.code == 0 {
            assert_eq!(stored.len(), 1, "{case}: {stored:?}: {output}");
        } else {
            // An answer that was lost for ever leaves a whole object, and else there is none.
            let done = seen.iter().any(|seen| {
                ["PutObject", "CompleteMultipartUpload"].contains(&seen.request.operation)
                    && seen.answer.is_some_and(|(status, _)| status == 200)
            });
            assert_eq!(stored.len(), usize::from(done), "{case}: {stored:?}: {output}");
        }
        self.nothing_is_left_on_the_way(site, case);
        // PostgreSQL offers it again. What is there already is read and compared, and what is damaged
        // gets another copy beside it.
        let again = self.0.push(site.direct(&["archive-push", &self.0.path()]));
        assert_eq!(again.code, 0, "{case}: the second run: {again}");
        assert_eq!(self.0.stored(&site.server).len(), 1, "{case}");
        self.0.comes_back(site, case);
    }
}

impl Push<'_> {
    /// An upload that wasn't completed was aborted, where that could be asked for and the upload's
    /// id was known.
    fn nothing_is_left_on_the_way(&self, site: &Site, case: &Case) {
        let unknown = case.place.operation == "CreateMultipartUpload" && case.fault.is_after();
        if case.lasts != Lasts::Everywhere && !unknown {
            let uploads = site.server.front().uploads();
            assert!(uploads.is_empty(), "{case}: {uploads:?}");
        }
    }
}

struct Get<'a>(&'a Archive);

impl Work for Get<'_> {
    fn name(&self) -> &str {
        "archive-get"
    }

    fn reset(&self, _: &Site) {}

    fn run(&self, site: &Site) -> Output {
        self.0.get(site, &self.0.segment, Site::command)
    }

    fn check(&self, site: &Site, case: &Case, _: &[Seen], output: &Output) {
        let files = fs::read_dir(&site.folder).expect("read a folder").count();
        if output.code == 0 {
            let came = fs::read(self.0.destination(site)).expect("read");
            assert!(came == self.0.content, "{case}: other bytes came back");
            assert_eq!(files, 1, "{case}");
        } else {
            assert_eq!(output.code, 126, "{case}: {output}");
            assert_eq!(files, 0, "{case}: nothing is there after: {output}");
        }
        self.0.comes_back(site, case);
    }
}

/// Asks for a segment that isn't there.
struct GetAbsent<'a>(&'a Archive);

impl Work for GetAbsent<'_> {
    fn name(&self) -> &str {
        "archive-get of what isn't there"
    }

    fn reset(&self, _: &Site) {}

    fn run(&self, site: &Site) -> Output {
        self.0.get(site, "0000000100000000000000F0", Site::command)
    }

    fn clean(&self) -> i32 {
        1
    }

    fn check(&self, site: &Site, case: &Case, _: &[Seen], output: &Output) {
        assert!([1, 126].contains(&output.code), "{case}: {output}");
        assert!(!self.0.destination(site).exists(), "{case}: {output}");
    }
}

#[test]
fn a_push_of_a_small_segment() {
    let archive = Archive::new(false);
    matrix(&Push(&archive), &archive.sites(), usize::MAX, (6, 276));
}

#[test]
fn a_push_of_a_segment_in_parts() {
    let archive = Archive::new(true);
    matrix(&Push(&archive), &archive.sites(), 80, (7, 312));
}

fn with_the_segment(large: bool) -> Archive {
    let archive = Archive::new(large);
    let pushed = archive.pgkeep.run_in(archive.cluster.pgdata(), ["archive-push", &archive.path()]);
    assert_eq!(pushed.code, 0, "{pushed}");
    archive
}

#[test]
fn a_get_of_a_small_segment_and_of_none() {
    let archive = with_the_segment(false);
    let sites = archive.sites();
    matrix(&Get(&archive), &sites, usize::MAX, (4, 192));
    matrix(&GetAbsent(&archive), &sites, usize::MAX, (9, 432));
}

#[test]
fn a_get_of_a_segment_in_stretches() {
    let archive = with_the_segment(true);
    matrix(&Get(&archive), &archive.sites(), 60, (4, 192));
}

#[test]
fn nobody_answers_and_nobody_knows_the_host() {
    let archive = with_the_segment(false);
    let site = Site::of(&archive.pgkeep, 0);
    site.wire.refuse();
    let text = fs::read_to_string(&site.config).expect("read the configuration");
    let nowhere = text.replace(&site.wire.endpoint(), "http://no-such-host.invalid:9000");
    for text in [&text, &nowhere] {
        scratch::write(&site.config, text);
        for segment in [&archive.segment, "0000000100000000000000F0"] {
            let got = archive.get(&site, segment, Site::command);
            assert_eq!(got.code, 126, "{segment}: {got}");
            assert!(!archive.destination(&site).exists());
        }
        let pushed = archive.push(site.command(&["archive-push", &archive.path()]));
        assert!((3..=125).contains(&pushed.code), "{pushed}");
        assert!(pushed.stderr.contains("after 3 attempts"), "{pushed}");
    }
    // Back again.
    site.wire.accept();
    scratch::write(&site.config, text);
    assert_eq!(archive.get(&site, &archive.segment, Site::command).code, 0);
    assert_eq!(archive.get(&site, "0000000100000000000000F0", Site::command).code, 1);
    assert_eq!(archive.push(site.command(&["archive-push", &archive.path()])).code, 0);
}
