//! Incremental and differential backups: what comes back of them is what comes back of a full one.

mod compare;
mod oracle;
mod planted;
mod workloads;

use std::path::PathBuf;

use crate::support::{Cluster, Pgkeep, cluster::Builder};

/// A quiet cluster that archives into a repository of its own.
struct Site {
    cluster: Cluster,
    pgkeep: Pgkeep,
}

impl Site {
    fn new(builder: Builder) -> Self {
        let cluster = builder.conf("autovacuum = off").start();
        let pgkeep = Pgkeep::archiving(&cluster);
        pgkeep.ok(["check"]);
        Site { cluster, pgkeep }
    }

    /// Where a restore of this name goes.
    fn place(&self, name: &str) -> PathBuf {
        self.pgkeep.scratch().path().join(name)
    }

    /// Takes a backup of this type and returns its record.
    fn take(&self, kind: &str) -> serde_json::Value {
        self.pgkeep.json(["backup", "--type", kind])
    }

    /// Takes a backup of this type and returns its id.
    fn backup(&self, kind: &str) -> String {
        self.take(kind)["id"].as_str().expect("an id").to_owned()
    }

    /// Where the original's tablespace lies, for those that make one.
    fn tablespace(&self) -> PathBuf {
        self.pgkeep.scratch().folder("space")
    }

    /// Restores a backup under this name, its tablespace beside it.
    fn restore(&self, backup: &str, name: &str) -> PathBuf {
        let place = self.place(name);
        let to = place.to_str().expect("a path");
        let mut arguments =
            vec!["restore", "--archive-mode", "off", "--backup", backup, "--pgdata", to];
        let space = self.tablespace().display().to_string();
        let there = format!(
            "SELECT count(*) FROM pg_tablespace WHERE pg_tablespace_location(oid) = '{space}'"
        );
        let map = format!("{space}={to}-space");
        if self.cluster.sql(&there) == "1" {
            arguments.extend(["--tablespace-map", &map]);
        }
        self.pgkeep.ok(arguments);
        place
    }
}
