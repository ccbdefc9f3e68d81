//! From a backup and its WAL to a server that has exactly the rows it should.

mod bare_host;
mod choice;
mod damage;
mod refusals;
mod standby;
mod tablespaces;
mod targets;
mod timelines;

use std::path::PathBuf;

use crate::support::{Cluster, Pgkeep, pgkeep::Output};

/// A cluster that archives into a repository of its own.
struct Site {
    cluster: Cluster,
    pgkeep: Pgkeep,
}

impl Site {
    fn new(version: u32) -> Self {
        let cluster = Cluster::builder(version)
            .checksums(true)
            // What the original says of recoveries isn't meant for those made here.
            .conf("recovery_target_inclusive = off")
            .conf("recovery_end_command = 'false'")
            .start();
        let pgkeep = Pgkeep::archiving(&cluster);
        pgkeep.ok(["check"]);
        Site { cluster, pgkeep }
    }

    /// Where a restore of this name goes.
    fn place(&self, name: &str) -> PathBuf {
        self.pgkeep.scratch().path().join(name)
    }

    fn restore_arguments(&self, name: &str, arguments: &[&str]) -> Vec<String> {
        let place = self.place(name).display().to_string();
        let fixed = ["restore", "--archive-mode", "off", "--pgdata", &place];
        fixed.iter().chain(arguments).map(|a| (*a).to_owned()).collect()
    }

    /// Restores, and returns the restored cluster, not yet started.
    fn restore(&self, name: &str, arguments: &[&str]) -> Cluster {
        self.pgkeep.ok(self.restore_arguments(name, arguments));
        Cluster::at(&self.place(name), self.cluster.version())
    }

    /// Restores, starts, and waits until recovery has paused at its target.
    fn restore_and_pause(&self, name: &str, arguments: &[&str]) -> Cluster {
        let mut restored = self.restore(name, arguments);
        restored.start();
        restored.wait_for_pause(60);
        restored
    }

    /// Restores in vain: nothing may be left that could start.
    fn refuse(&self, name: &str, arguments: &[&str]) -> Output {
        let output = self.pgkeep.fails(self.restore_arguments(name, arguments));
        let control = self.place(name).join("global/pg_control");
        assert!(!control.exists(), "{} can start after {output}", self.place(name).display());
        output
    }

    /// Closes the segment in use and waits until all WAL up to it is in the repository.
    fn archive_all(&self) {
        archive_all(&self.cluster);
    }
}

/// Closes the segment in use and waits until all WAL up to it is archived.
fn archive_all(cluster: &Cluster) {
    let closed = cluster.switch_wal();
    crate::support::wait_until(&format!("{closed} is archived"), 60, || {
        cluster.sql("SELECT coalesce(last_archived_wal, '') FROM pg_stat_archiver")[..]
            >= closed[..]
            && !cluster.pgdata().join(format!("pg_wal/archive_status/{closed}.ready")).exists()
    });
}
