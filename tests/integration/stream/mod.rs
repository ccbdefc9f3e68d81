//! The stream: that what a server was told is stored can be read back, whatever happens.

mod acknowledged;
mod segments;

use std::path::PathBuf;

use crate::support::{Cluster, Pgkeep, pgkeep::Running, wait_until};

/// A cluster, a repository that knows its system, and the program that streams.
struct Site {
    cluster: Cluster,
    pgkeep: Pgkeep,
}

impl Site {
    /// With archiving as well, as it usually is.
    fn archiving(cluster: Cluster) -> Self {
        let pgkeep = Pgkeep::archiving(&cluster);
        Site { cluster, pgkeep }
    }

    fn stream(&self) -> Running {
        let stream = self.pgkeep.spawn(["stream"]);
        self.wait_for_stream();
        stream
    }

    fn wait_for_stream(&self) {
        wait_until("the stream has caught up", 60, || {
            let sql = "SELECT count(*) FROM pg_stat_replication WHERE application_name = 'pgkeep' \
                       AND state = 'streaming' AND flush_lsn >= pg_current_wal_flush_lsn()";
            self.cluster.sql(sql) == "1"
        });
    }

    /// Has commits wait for the stream from now on.
    fn synchronous(&self) {
        self.cluster.sql("ALTER SYSTEM SET synchronous_standby_names = 'pgkeep'");
        self.cluster.reload();
        wait_until("the stream is a synchronous standby", 60, || {
            let sql =
                "SELECT sync_state FROM pg_stat_replication WHERE application_name = 'pgkeep'";
            self.cluster.sql(sql) == "sync"
        });
    }

    /// What the archive has of WAL: names within a timeline's folder, sorted.
    fn archived(&self) -> Vec<String> {
        let mut names = Vec::new();
        let mut folders: Vec<PathBuf> = vec![self.pgkeep.repository().join("clusters/main/wal")];
        while let Some(folder) = folders.pop() {
            for entry in std::fs::read_dir(folder).expect("read the archive") {
                let entry = entry.expect("an entry");
                match entry.path().is_dir() {
                    true => folders.push(entry.path()),
                    false => names.push(entry.file_name().into_string().expect("a name")),
                }
            }
        }
        names.sort();
        names
    }

    fn parts(&self) -> Vec<String> {
        self.archived().into_iter().filter(|name| name.contains(".part.")).collect()
    }
}
