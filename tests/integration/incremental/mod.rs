//! Incremental and differential backups: what comes back of them is what comes back of a full one.

mod chain;
mod compare;
mod cost;
mod cut_off;
mod fallbacks;
mod large;
mod oracle;
mod planted;
mod stored;
mod timelines;
mod workloads;

use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::support::{Cluster, Pgkeep, cluster::Builder};

/// A quiet cluster that archives into a repository of its own.
struct Site {
    cluster: Cluster,
    pgkeep: Pgkeep,
}

impl Site {
    /// Of the version's own defaults, but that it summarizes its WAL if it can.
    fn new(builder: Builder) -> Self {
        let builder = match builder.version() {
            ..17 => builder,
            _ => builder.conf("summarize_wal = on"),
        };
        let cluster = builder.conf("autovacuum = off").start();
        let pgkeep = Pgkeep::archiving(&cluster);
        Site { cluster, pgkeep }
    }

    /// Where a restore of this name goes.
    fn place(&self, name: &str) -> PathBuf {
        self.pgkeep.scratch().path().join(name)
    }

    /// Takes a backup of this type and returns its record.
    fn take(&self, kind: &str) -> Value {
        let mut taken = self.pgkeep.json(["backup", "--type", kind]);
        taken["backups"][0]["backup"].take()
    }

    /// Where the original's tablespace lies, for those that make one.
    fn tablespace(&self) -> PathBuf {
        self.pgkeep.scratch().folder("space")
    }

    /// Restores the backup of this record under this name, its tablespace beside it, up to its end.
    fn restore(&self, record: &Value, name: &str) -> PathBuf {
        let place = self.place(name);
        let to = place.to_str().expect("a path");
        let mut arguments = vec!["restore", "--archive-mode", "off", "--target-immediate"];
        arguments.extend(["--target-action", "promote", "--backup", id(record), "--pgdata", to]);
        let map = format!("{}={to}-space", self.tablespace().display());
        if record["tablespaces"].as_array().is_some_and(|there| !there.is_empty()) {
            arguments.extend(["--tablespace-map", &map]);
        }
        self.pgkeep.ok(arguments);
        place
    }
}

/// The id in a backup's record.
fn id(record: &Value) -> &str {
    record["id"].as_str().expect("an id")
}

/// That a backup over another is of the type that was asked for, and found what changed in the way
/// that is the version's.
fn assert_over(record: &Value, base: &Value, version: u32) {
    assert_eq!(record["base"], base["id"], "{record}");
    assert_eq!(record["kind"], record["asked"], "{record}");
    let way = if version < 17 { "comparison" } else { "summaries" };
    assert_eq!(record["way"], way, "{record}");
}

/// Starts a restored cluster and waits until recovery is over.
fn start(pgdata: &Path, version: u32) -> Cluster {
    let mut restored = Cluster::at(pgdata, version);
    restored.start();
    restored.wait_for_primary(120);
    restored
}
