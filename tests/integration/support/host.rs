//! A host with a repository: with what archiving needs of a server and no server that would do anything by
//! itself, or with a small cluster.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use super::{
    Cluster, Pgkeep, Stop,
    install::{command, run},
    wait_until,
};

/// A data directory with closed segments beside a repository that knows its system.
pub struct Host {
    pub pgkeep: Pgkeep,
    pub data: PathBuf,
    pub segments: Vec<String>,
}

impl Host {
    /// With so many segments in its `pg_wal`, all of them offered to the archive.
    pub fn with(segments: usize) -> Self {
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

    pub fn root(&self) -> &Path {
        self.pgkeep.scratch().path()
    }

    pub fn command(&self, arguments: &[&str]) -> Command {
        let mut command = self.pgkeep.command(arguments);
        command.current_dir(&self.data);
        command
    }

    pub fn push(&self, segment: &str) -> Command {
        self.command(&["archive-push", &format!("pg_wal/{segment}")])
    }

    /// Gets a segment as recovery does, looks at every byte, and waits until nothing works in the data directory any
    /// more: what fetches ahead ends by itself where no server runs, and writes to the state directory until then.
    pub fn assert_got(&self, segment: &str) {
        let target = self.data.join("pg_wal/RECOVERYXLOG");
        let got = self.pgkeep.run_in(&self.data, ["archive-get", segment, "pg_wal/RECOVERYXLOG"]);
        assert_eq!(got.code, 0, "{segment}: {got}");
        let original = fs::read(self.data.join("pg_wal").join(segment)).unwrap();
        assert!(fs::read(&target).unwrap() == original, "{segment} came back as something else");
        wait_until("nothing is fetched ahead", 60, || {
            let mut processes = fs::read_dir("/proc").expect("read /proc").flatten();
            let works_here = |folder| fs::read_link(folder).is_ok_and(|cwd| cwd == self.data);
            !processes.any(|process| works_here(process.path().join("cwd")))
        });
    }
}

/// A small cluster that archives: one database, and no WAL is removed.
pub struct Small {
    pub cluster: Cluster,
    pub pgkeep: Pgkeep,
}

impl Small {
    pub fn new() -> Self {
        let cluster = Cluster::builder(15).wal_segsize(1).conf("wal_keep_size = 512MB").start();
        // A third of the files.
        cluster.sql("UPDATE pg_database SET datistemplate = false");
        cluster.sql("DROP DATABASE template0");
        cluster.sql("DROP DATABASE template1");
        let pgkeep = Pgkeep::archiving(&cluster);
        pgkeep.ok(["check"]);
        cluster.make_table("t", 300);
        Small { cluster, pgkeep }
    }

    pub fn root(&self) -> &Path {
        self.pgkeep.scratch().path()
    }

    /// Waits until the server has archived all that it has written by now.
    pub fn wait_until_archived(&self) {
        let last = self.cluster.switch_wal();
        let archived = "SELECT last_archived_wal FROM pg_stat_archiver";
        wait_until("all is archived", 60, || self.cluster.sql(archived) >= last);
    }

    /// The same, and until the push of it is over.
    pub fn wait_for_quiet(&self) {
        self.wait_until_archived();
        let pushes = || self.pgkeep.scratch().path().join("repository/main/.tmp").read_dir();
        wait_until("nothing is written", 60, || {
            pushes().is_ok_and(|mut left| left.next().is_none())
        });
    }

    /// The backups that `info` lists.
    pub fn listed(&self) -> Vec<String> {
        let info = self.pgkeep.json(["info"]);
        let systems = info["repositories"][0]["systems"].as_array().expect("systems");
        let backups =
            systems.iter().flat_map(|system| system["backups"].as_array().expect("backups"));
        backups.map(|backup| backup["id"].as_str().expect("an id").to_owned()).collect()
    }
}
