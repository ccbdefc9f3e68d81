//! `pgkeep stream`.

use clap::Args;

use super::{Global, runtime};
use crate::{
    archive,
    error::{Error, Kind, Result},
};

/// Receive WAL continuously, and keep every byte in the repositories at once
///
/// With archive_command alone, what isn't in a full WAL segment yet is lost with the server's disk. The
/// stream runs beside it: as a service, over a replication slot, which it makes. A server that has it
/// among its synchronous standbys acknowledges a commit only when it is in every repository; else WAL is
/// stored when it is max-lag old. A restore to the latest moment uses all of it.
///
/// It ends at SIGTERM and SIGINT, when what has come is stored. A server or a repository that can't be
/// reached is tried again for ever.
#[derive(Debug, Args)]
#[command(after_long_help = "\
Example, in a service's unit:
  ExecStart=/usr/local/bin/pgkeep stream

For commits that are never lost, in postgresql.conf:
  synchronous_standby_names = 'ANY 1 (pgkeep, standby1)'")]
pub(super) struct Stream {}

impl Stream {
    pub fn run(&self, global: &Global) -> Result<u8> {
        if global.repo.is_some() {
            let message = "stream stores in every repository: --repo can't be used";
            return Err(Error::new(Kind::Usage, message));
        }
        let settings = global.settings()?;
        let repositories = settings.selected_repositories(None)?;
        let cluster = settings.cluster(global.cluster.as_deref())?;
        runtime::beside(2, async |threads| {
            let work = async |stop| archive::stream(&repositories, cluster, &threads, stop).await;
            runtime::ending_at_signal(work).await
        })?;
        Ok(0)
    }
}
