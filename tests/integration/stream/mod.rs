//! The stream: that what a server was told is stored can be read back, whatever happens.

mod acknowledged;
mod failover;
mod gaps;
mod parts;
mod rounds;
mod segments;
mod serving;
mod several;

use std::path::PathBuf;

use crate::support::{Cluster, Pgkeep, Stop, objects::objects, pgkeep::Running, wait_until};

/// Whether the stream has all that the server has flushed.
const CAUGHT_UP: &str = "SELECT count(*) FROM pg_stat_replication WHERE application_name = 'pgkeep' \
                         AND state = 'streaming' AND flush_lsn >= pg_current_wal_flush_lsn()";

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

    /// The server as it is now, to be started later; it goes on itself.
    fn copied(&mut self) -> Cluster {
        self.cluster.stop(Stop::Fast);
        let copy = self.cluster.copy_offline();
        self.cluster.start();
        copy
    }

    fn stream(&self) -> Running {
        let stream = self.pgkeep.spawn(["stream"]);
        self.wait_for_stream();
        stream
    }

    fn wait_for_stream(&self) {
        wait_until("the stream has caught up", 60, || self.cluster.sql(CAUGHT_UP) == "1");
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
        let name = |path: PathBuf| path.file_name()?.to_str().map(str::to_owned);
        let mut names: Vec<String> = self.files().into_iter().filter_map(name).collect();
        names.sort();
        names
    }

    /// The file of the object of this name.
    fn file(&self, name: &str) -> PathBuf {
        let found = self.files().into_iter().find(|path| path.ends_with(name));
        found.unwrap_or_else(|| panic!("{name} isn't archived"))
    }

    fn files(&self) -> Vec<PathBuf> {
        let objects = objects(&self.pgkeep.repository()).into_iter();
        objects.filter(|object| object.name.contains("/wal/")).map(|object| object.path).collect()
    }

    fn parts(&self) -> Vec<String> {
        self.archived().into_iter().filter(|name| name.contains(".part.")).collect()
    }
}
