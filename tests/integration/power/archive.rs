//! `archive-push` and `archive-get`: what was acknowledged is there, and what a recovery gets is whole.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use super::{
    Run, after_a_boot, all, assert_sound, is_rest, is_there, killed_and_run_again, whole_or_none,
};
use crate::support::{
    Cluster, Pgkeep, Stop,
    disk::Tree,
    install::{command, run},
};

const REPOSITORY: &str = "repository/main";

/// A data directory with closed segments beside a repository, and no server that would do anything by itself.
struct Host {
    pgkeep: Pgkeep,
    data: PathBuf,
    segments: Vec<String>,
}

impl Host {
    /// With so many segments in its `pg_wal`, all of them offered to the archive.
    fn with(segments: usize) -> Self {
        let mut cluster = Cluster::builder(15).wal_segsize(1).start();
        let pgkeep = Pgkeep::new(&cluster);
        pgkeep.init();
        pgkeep.set("cluster.main", "archive-timeout = \"1s\"");
        // It finds that nothing archives, but registers the system.
        pgkeep.run(["check"]);
        let segments: Vec<_> = (0..segments).map(|_| cluster.switch_wal()).collect();
        cluster.stop(Stop::Fast);
        let data = pgkeep.scratch().folder("data");
        pgkeep.scratch().folder("data/pg_wal/archive_status");
        pgkeep.scratch().folder("data/global");
        let files = segments.iter().map(|segment| format!("pg_wal/{segment}"));
        let marks = segments.iter().map(|segment| format!("pg_wal/archive_status/{segment}.ready"));
        let others = ["PG_VERSION".to_owned(), "global/pg_control".to_owned()];
        for file in files.chain(marks).chain(others) {
            run(command("cp").arg(cluster.pgdata().join(&file)).arg(data.join(&file)));
        }
        let place = |path: &Path| format!("pgdata = \"{}\"", path.display());
        pgkeep.edit(|text| text.replace(&place(cluster.pgdata()), &place(&data)));
        Host { pgkeep, data, segments }
    }

    fn root(&self) -> &Path {
        self.pgkeep.scratch().path()
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = self.pgkeep.command(arguments);
        command.current_dir(&self.data);
        command
    }

    fn push(&self, segment: &str) -> Command {
        self.command(&["archive-push", &format!("pg_wal/{segment}")])
    }

    /// Gets a segment as recovery does, and looks at every byte.
    fn assert_got(&self, segment: &str) {
        let target = self.data.join("pg_wal/RECOVERYXLOG");
        let got = self.pgkeep.run_in(&self.data, ["archive-get", segment, "pg_wal/RECOVERYXLOG"]);
        assert_eq!(got.code, 0, "{segment}: {got}");
        let original = fs::read(self.data.join("pg_wal").join(segment)).unwrap();
        assert!(fs::read(&target).unwrap() == original, "{segment} came back as something else");
    }
}

/// Where a segment's object is.
fn object_of(tree: &Tree, segment: &str) -> PathBuf {
    let mut objects = tree.files(Path::new(REPOSITORY)).map(|(path, _)| path);
    let object = objects.find(|path| path.file_name().is_some_and(|name| name == segment));
    object.unwrap_or_else(|| panic!("{segment} isn't stored")).to_owned()
}

#[test]
fn a_push_acknowledges_what_is_durable_and_leaves_nothing_half() {
    let host = Host::with(3);
    let [first, ahead, _] = &host.segments[..] else { unreachable!() };
    let Some(new) = Run::of("archive-push", host.root(), &host.push(first)) else { return };
    let again = Run::of("archive-push again", host.root(), &host.push(first)).unwrap();
    let known = Run::of("archive-push ahead", host.root(), &host.push(ahead)).unwrap();
    let end = new.end().now();
    let acknowledged = host.segments.iter().map(|segment| object_of(&end, segment));
    let acknowledged: Vec<PathBuf> = acknowledged.collect();
    let holds = |tree: &Tree, ended: bool, objects: &[PathBuf]| {
        whole_or_none(tree, &end, Path::new(REPOSITORY))?;
        objects.iter().filter(|_| ended).try_for_each(|object| is_there(tree, &end, object))
    };
    let mut count = 0;
    // Each push: what it acknowledges, and what a crash after the ones before it may have forgotten.
    for (run, segment, stored) in
        [(&new, first, 0..1), (&again, first, 0..3), (&known, ahead, 0..3)]
    {
        let promise = |tree: &Tree, ended: bool| holds(tree, ended, &acknowledged[stored.clone()]);
        let seen = run.keeps(&promise, is_rest);
        let step = if all() { 1 } else { seen.different.len().div_ceil(40) };
        // The last one is what is there in the end.
        for (tree, ended) in seen.different.into_iter().rev().step_by(step) {
            count += 1;
            let what = format!("after {}", run.what);
            after_a_boot(tree).write(host.root());
            assert_sound(&host.pgkeep, &what);
            if ended {
                host.assert_got(segment);
            }
            let pushed =
                host.pgkeep.run_in(&host.data, ["archive-push", &format!("pg_wal/{segment}")]);
            assert_eq!(pushed.code, 0, "{what}: {pushed}");
            host.assert_got(segment);
            assert_sound(&host.pgkeep, &what);
        }
    }
    eprintln!("{count} trees were looked at with the program");
}

/// The syncs of a push that stores one segment into an archive of which nothing is there yet.
#[test]
fn no_sync_of_a_push_may_be_missing() {
    let host = Host::with(1);
    let segment = &host.segments[0];
    let Some(run) = Run::of("archive-push", host.root(), &host.push(segment)) else { return };
    let end = run.end().now();
    let object = object_of(&end, segment);
    let promise = |tree: &Tree, ended: bool| {
        whole_or_none(tree, &end, Path::new(REPOSITORY))?;
        if ended { is_there(tree, &end, &object) } else { Ok(()) }
    };
    let needed = run.needs_each_sync(&promise, |_| false);
    assert!(needed >= 5, "{needed}");
}

#[test]
fn a_push_that_was_killed_and_is_run_again_is_durable() {
    let host = Host::with(1);
    let segment = &host.segments[0];
    let times = killed_and_run_again(
        "archive-push",
        host.root(),
        || host.push(segment),
        |_| true,
        None,
        |tree, end| is_there(tree, end, &object_of(end, segment)),
    );
    assert!(times >= 10, "{times}");
}
