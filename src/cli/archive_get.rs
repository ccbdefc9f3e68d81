//! `pgkeep archive-get`, PostgreSQL's `restore_command`. The exit codes are the point of it: see
//! [`super::exit`].

use std::{
    ffi::OsString,
    path::{Path, PathBuf},
};

use clap::Args;
use serde::Serialize;

use super::{Global, runtime::Guarded, wal_path};
use crate::{
    archive::{self, FetchAhead, GetOptions, Got},
    config::{ClusterSettings, StandbyOutage},
    error::{Context, Error, Kind, Result},
    postgres::WalFile,
};

/// Fetch a file from the archive: PostgreSQL's restore_command
///
/// Exit codes:
///
///   0    the file is there
///   1    it is certainly in no repository: each of them was read and said so
///   126  everything else, wrong usage included: PostgreSQL stops
///
/// PostgreSQL takes 1 for the end of the archive: it ends recovery and promotes. So an outage must
/// never look like it. On a standby (standby.signal is in the data directory) stopping would end a
/// server that may still stream: there an outage is 1, after retrying for outage-timeout, unless
/// the cluster has standby-outage = "stop". A damaged file, a refused permission and a wrong
/// configuration are 126 everywhere.
///
/// With --repo only that repository is asked, and it alone decides.
#[derive(Debug, Args)]
#[command(
    after_long_help = "\
Example, in postgresql.conf (pgkeep restore writes it):
  restore_command = 'pgkeep archive-get %f %p'",
    verbatim_doc_comment
)]
pub(super) struct ArchiveGet {
    /// The file's name, as PostgreSQL gives it for %f
    name: String,
    /// Where to write it, as PostgreSQL gives it for %p
    path: PathBuf,
    /// Stop before WAL that makes a tablespace, since replay would write to the original's; for a copy
    /// beside the original, as drill makes one
    #[arg(long)]
    refuse_new_tablespaces: bool,
    /// Fetch what recovery will ask for after NAME; archive-get starts this itself
    #[arg(long, hide = true)]
    ahead: bool,
}

#[derive(Serialize)]
struct Answer<'a> {
    file: &'a str,
    /// Null when it is certainly not there.
    repository: Option<&'a str>,
    object: Option<&'a str>,
}

impl ArchiveGet {
    pub fn run(&self, global: &Global, guarded: Guarded) -> Result<u8> {
        if self.ahead {
            return guarded.run(self.fetch_ahead(global)).map(|()| 0);
        }
        let got = guarded.run(self.get(global))?;
        let answer = match &got {
            Got::Served { repository, object } => {
                Answer { file: &self.name, repository: Some(repository), object: Some(object) }
            }
            Got::Absent => Answer { file: &self.name, repository: None, object: None },
        };
        let (what, code) = match got {
            Got::Served { .. } => ("is there", 0),
            Got::Absent => ("is in no repository", 1),
        };
        global.output.done(format!("{} {what}", self.name), &answer, String::new);
        Ok(code)
    }

    async fn fetch_ahead(&self, global: &Global) -> Result<()> {
        let settings = global.settings()?;
        let repositories = settings.selected_repositories(global.repo.as_deref())?;
        let cluster = wal_path::cluster(global, &settings, &self.path)?;
        archive::fetch_ahead(&repositories, cluster, &settings.state_dir, &self.path).await
    }

    async fn get(&self, global: &Global) -> Result<Got> {
        let file: WalFile =
            self.name.parse().context(Kind::Usage, || format!("get {}", self.name))?;
        let settings = global.settings()?;
        let repositories = settings.selected_repositories(global.repo.as_deref())?;
        let cluster = wal_path::cluster(global, &settings, &self.path)?;
        let options = GetOptions {
            refuse_tablespaces: self.refuse_new_tablespaces,
            ahead: ahead_command()
                .map(|command| FetchAhead { state_dir: settings.state_dir.clone(), command }),
        };
        match archive::get(&repositories, cluster, file, &self.path, &options).await {
            Err(e) if outage_is_absence(&e, cluster, &self.path) => {
                tracing::warn!(
                    "{e}; this is a standby and standby-outage is continue, so {} is said to be \
                     absent",
                    self.name
                );
                Ok(Got::Absent)
            }
            Ok(Got::Absent) => {
                tracing::info!("{} is in no repository", self.name);
                Ok(Got::Absent)
            }
            Ok(Got::Served { repository, object }) => {
                tracing::info!("{} served from repository {repository}", self.name);
                Ok(Got::Served { repository, object })
            }
            Err(e) => Err(e),
        }
    }
}

/// This program, as it was called, to fetch ahead; `None` where the system doesn't say which that is.
fn ahead_command() -> Option<Vec<OsString>> {
    let program = std::env::current_exe().ok()?;
    let arguments = std::env::args_os().skip(1);
    let ahead = std::iter::once(OsString::from("--ahead"));
    Some(std::iter::once(program.into_os_string()).chain(arguments).chain(ahead).collect())
}

/// Whether this failure is an outage that a standby may sit out: it goes on streaming, and asks
/// again. What is damaged, refused, or wrongly set up, is none: it won't pass by itself, and a standby
/// that sat it out would fall behind with nobody noticing.
fn outage_is_absence(error: &Error, cluster: &ClusterSettings, path: &Path) -> bool {
    error.kind() == Kind::Repository
        && cluster.standby_outage == StandbyOutage::Continue
        && wal_path::data_directory(path).join("standby.signal").exists()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_an_outage_and_only_on_a_standby_may_look_like_absence() {
        let data = tempfile::tempdir().unwrap();
        std::fs::write(data.path().join("PG_VERSION"), "17\n").unwrap();
        let path = data.path().join("pg_wal/RECOVERYXLOG");
        let mut cluster = ClusterSettings::named("main");
        let outage = |cluster: &ClusterSettings, kind| {
            outage_is_absence(&Error::new(kind, "x"), cluster, &path)
        };
        assert!(!outage(&cluster, Kind::Repository), "recovery, not a standby");
        std::fs::write(data.path().join("standby.signal"), "").unwrap();
        assert!(outage(&cluster, Kind::Repository));
        for kind in [
            Kind::Denied,
            Kind::Wal,
            Kind::Conflict,
            Kind::Damaged,
            Kind::Usage,
            Kind::Key,
            Kind::Internal,
            Kind::Interrupted,
        ] {
            assert!(!outage(&cluster, kind), "{kind:?}");
        }
        cluster.standby_outage = StandbyOutage::Stop;
        assert!(!outage(&cluster, Kind::Repository));
    }
}
