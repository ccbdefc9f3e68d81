//! Clocks that jump: the program's, the server's, and one of several hosts'.
//!
//! What is promised of them: nothing that a backup refers to goes because of a clock; which backup is the
//! newest the WAL says ([`crate::recovery::choice`]); `days` and pins go by the clock of the host that
//! expires. Only processes that are given a [`Clock`] go by it: all others are other hosts', whose clocks
//! are right.

mod expiries;
mod leases;
mod order;
mod servers;

use std::process::Command;

use crate::support::{
    Cluster, Pgkeep,
    clock::Clock,
    objects::{ObjectKind, objects_of},
    pgkeep::{Output, run_to_end},
};

const HOUR: i64 = 3_600;
const DAY: i64 = 24 * HOUR;
const YEAR: i64 = 366 * DAY;

/// A cluster with a table `t` of which each backup has one row more, and a clock for a host.
struct Site {
    cluster: Cluster,
    pgkeep: Pgkeep,
    clock: Clock,
}

impl Site {
    /// The server goes by the right time.
    fn new(version: u32) -> Self {
        Site::of(Cluster::builder(version).wal_segsize(1).start(), Clock::new())
    }

    /// The server and what it runs go by the clock.
    fn with_server(version: u32) -> Self {
        let clock = Clock::new();
        let mut cluster = Cluster::builder(version).wal_segsize(1).make();
        cluster.environment(clock.variables());
        cluster.start();
        Site::of(cluster, clock)
    }

    fn of(cluster: Cluster, clock: Clock) -> Self {
        let pgkeep = Pgkeep::archiving(&cluster);
        pgkeep.ok(["check"]);
        cluster.sql("CREATE TABLE t (n serial, at timestamptz DEFAULT clock_timestamp())");
        Site { cluster, pgkeep, clock }
    }

    /// A command on the host whose clock this is.
    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = self.pgkeep.command(arguments);
        command.envs(self.clock.variables());
        command
    }

    fn run(&self, arguments: &[&str]) -> Output {
        run_to_end(&mut self.command(arguments))
    }

    fn ok(&self, arguments: &[&str]) -> Output {
        let output = self.run(arguments);
        assert_eq!(output.code, 0, "{arguments:?}: {output}");
        output
    }

    /// One row more, and a backup by the clock. Its id, and that of its base.
    fn backup(&self, kind: &str) -> (String, Option<String>) {
        self.cluster.sql("INSERT INTO t DEFAULT VALUES");
        let done = self.ok(&["--output", "json", "backup", "--type", kind]);
        let done: serde_json::Value = serde_json::from_str(&done.stdout).expect("JSON");
        let record = &done["backups"][0]["backup"];
        let text = |key: &str| record[key].as_str().map(str::to_owned);
        (text("id").expect("an id"), text("base"))
    }

    /// The ids of the backups there are, the newest last.
    fn backups(&self) -> Vec<String> {
        let info = self.pgkeep.json(["info"]);
        let systems = info["repositories"][0]["systems"].as_array().expect("systems");
        let all = systems.iter().flat_map(|system| system["backups"].as_array().expect("backups"));
        all.map(|backup| backup["id"].as_str().expect("an id").to_owned()).collect()
    }

    /// How many rows come back, restored with these options into a folder of this name.
    fn rows(&self, name: &str, options: &[&str]) -> u64 {
        let promote = ["--target-action", "promote"];
        let more: &[&str] =
            if options.iter().any(|o| o.starts_with("--target")) { &promote } else { &[] };
        let options = [options, more].concat();
        let restored = self.pgkeep.restored(self.cluster.version(), name, &options);
        restored.sql("SELECT count(*) FROM t").parse().expect("a number")
    }

    /// How many rows a backup has.
    fn rows_of(&self, backup: &str) -> u64 {
        self.rows(&format!("of-{backup}"), &["--backup", backup, "--target-immediate"])
    }

    fn count(&self, kind: ObjectKind) -> usize {
        objects_of(&self.pgkeep.repository(), kind).len()
    }
}
