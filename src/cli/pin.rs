//! `pgkeep pin` and `pgkeep unpin`.

use chrono::{DateTime, Utc};
use clap::Args;
use serde::Serialize;

use super::{Global, each::each, human, time};
use crate::{
    error::Result,
    repo::{BackupId, layout::ClusterLayout},
    retention::{self, Pinned, Unpinned},
};

/// Keep a backup from being deleted and from expiring, for ever or until a time
///
/// A backup may be pinned several times, and stays as long as one of the pins holds.
///
/// It is pinned in all repositories that have it, or in the one that --repo names.
#[derive(Debug, Args)]
#[command(after_long_help = "\
Examples:
  pgkeep pin 20261120T195812Z-full
  pgkeep pin 20261120T195812Z-full --until '2027-12-31 23:59:59+01'")]
pub(super) struct Pin {
    /// The backup
    id: BackupId,
    /// Until when it holds, with its time zone; for ever unless it is given
    #[arg(long, value_name = "TIME", value_parser = time::parse)]
    until: Option<DateTime<Utc>>,
}

/// Remove all pins of a backup
///
/// It can be deleted then, and the retention policy applies to it again. Its pins are removed from
/// all repositories, or from the one that --repo names.
#[derive(Debug, Args)]
#[command(after_long_help = "\
Example:
  pgkeep unpin 20261120T195812Z-full")]
pub(super) struct Unpin {
    /// The backup
    id: BackupId,
}

#[derive(Serialize)]
struct Repositories<'a, T> {
    repositories: &'a [T],
}

impl Pin {
    pub fn run(&self, global: &Global) -> Result<u8> {
        let settings = global.settings()?;
        let selected = settings.selected_repositories(global.repo.as_deref())?;
        let cluster = settings.cluster(global.cluster.as_deref())?;
        let layout = ClusterLayout::new(&cluster.name)?;
        let done = each(&selected, async |repository| {
            retention::pin(repository, &layout, &self.id, self.until).await
        })?
        .or_missing(&self.id, &cluster.name)?;
        let repositories = Repositories { repositories: &done.results };
        global.output.result(&repositories, || done.results.iter().map(pinned).collect())?;
        done.end()
    }
}

impl Unpin {
    pub fn run(&self, global: &Global) -> Result<u8> {
        let settings = global.settings()?;
        let selected = settings.selected_repositories(global.repo.as_deref())?;
        let cluster = settings.cluster(global.cluster.as_deref())?;
        let layout = ClusterLayout::new(&cluster.name)?;
        let done = each(&selected, async |repository| {
            retention::unpin(repository, &layout, &self.id).await
        })?
        .or_missing(&self.id, &cluster.name)?;
        let repositories = Repositories { repositories: &done.results };
        global.output.result(&repositories, || done.results.iter().map(unpinned).collect())?;
        done.end()
    }
}

fn pinned(pinned: &Pinned) -> String {
    let Pinned { repository, backup, until } = pinned;
    let until = until.map_or("for ever".to_owned(), |time| format!("until {}", human::time(time)));
    format!("pinned backup {backup} in repository {repository} {until}\n")
}

fn unpinned(unpinned: &Unpinned) -> String {
    let Unpinned { repository, backup, removed } = unpinned;
    match removed {
        0 => format!("backup {backup} isn't pinned in repository {repository}\n"),
        1 => format!("removed the pin of backup {backup} in repository {repository}\n"),
        n => format!("removed {n} pins of backup {backup} in repository {repository}\n"),
    }
}
