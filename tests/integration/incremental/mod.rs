//! Incremental and differential backups: what comes back of them is what comes back of a full one.

mod compare;
mod planted;

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

    /// Takes a backup of this type and returns its id.
    fn backup(&self, kind: &str) -> String {
        let record = self.pgkeep.json(["backup", "--type", kind]);
        record["id"].as_str().expect("an id").to_owned()
    }

    /// Restores a backup under this name.
    fn restore(&self, backup: &str, name: &str) -> PathBuf {
        let place = self.place(name);
        let to = place.to_str().expect("a path");
        self.pgkeep.ok(["restore", "--archive-mode", "off", "--backup", backup, "--pgdata", to]);
        place
    }
}
