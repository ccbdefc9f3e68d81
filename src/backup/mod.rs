//! Backups: from a source of files to a committed backup.
//!
//! [`backup`] tells the story ([`run`]): look at the server ([`server`]), choose what to compare with
//! ([`choose`]), reserve an id, start, prove that archiving works ([`prove`]), read everything
//! ([`pipeline`]), prove that the WAL is there, commit ([`commit`]). Each repository has its [`lane`].
//! Where the server can send the changes only, it is asked to ([`native`]).
//!
//! The files come from a [`source`]; [`base_backup`] is the one there is. [`cut`] makes blocks of them,
//! [`work`] hashes and seals, [`tree`] tells what is new beside the [`base`] and puts the tree together,
//! [`store`] fills packs, and [`protect`] has them be held where objects are.

mod base;
mod base_backup;
mod choose;
pub mod commit;
mod cut;
mod lane;
mod native;
mod pipeline;
mod protect;
mod prove;
mod run;
mod server;
mod source;
mod store;
mod tail;
#[cfg(test)]
mod tests;
mod tree;
mod work;

use std::sync::{Arc, atomic::Ordering};

use tokio::signal::unix::{SignalKind, signal};

use crate::{
    config::ClusterSettings,
    error::{Context, Error, Kind, Result},
    progress::Progress,
    repo::{BackupType, Repository, layout::ClusterLayout, leftovers, record::BackupRecord},
};

/// How a backup is to be taken.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BackupOptions {
    /// What to store. None: what changed since the last backup, or all where there is none.
    pub kind: Option<BackupType>,
    /// Checkpoint at once, instead of spread over the checkpoint interval. It costs the server more
    /// I/O for a moment, and the backup begins without minutes of waiting.
    pub fast_checkpoint: bool,
    /// How much the server may send, in kB/s (32 to 1048576); `None` for no limit.
    pub max_rate: Option<u32>,
    /// How many threads hash, compress and seal.
    pub threads: usize,
    /// The label in `backup_label`; made from the id if there is none.
    pub label: Option<String>,
}

impl Default for BackupOptions {
    fn default() -> Self {
        BackupOptions { kind: None, fast_checkpoint: true, max_rate: None, threads: 2, label: None }
    }
}

/// What came of a backup in one repository.
#[derive(Debug)]
pub struct Outcome {
    /// The repository's name.
    pub repository: String,
    /// The backup, or why there is none.
    pub result: Result<BackupRecord>,
}

/// Takes a backup of `cluster` into each of `repositories`, reading the cluster once.
///
/// It is a backup in a repository when everything it needs is durably there, its WAL included. A
/// repository that fails has its error in what is returned, and the others get theirs. When none
/// gets one, that is an error. What has been stored of a backup that isn't one is removed again, as
/// far as that can be done; SIGINT and SIGTERM count as failures ([`Kind::Interrupted`]).
pub async fn backup(
    repositories: &[Repository],
    cluster: &ClusterSettings,
    options: &BackupOptions,
    progress: Arc<dyn Progress>,
) -> Result<Vec<Outcome>> {
    if options.label.as_ref().is_some_and(|label| label.contains(char::is_control)) {
        let message =
            "a backup's label can't have control characters: it is a line of backup_label";
        return Err(Error::new(Kind::Usage, message));
    }
    let layout = ClusterLayout::new(&cluster.name)?;
    for repository in repositories {
        leftovers::remove(repository, &layout).await;
    }
    let mut run = run::Run::new(repositories, cluster, options, progress)?;
    let committing = run.committing();
    let result = {
        let mut taking = std::pin::pin!(run.take());
        tokio::select! {
            result = &mut taking => result,
            // The commit is short, and half-way through nobody could say whether there is a backup.
            signal = interrupted() => match committing.load(Ordering::Relaxed) {
                true => taking.await,
                false => Err(signal),
            },
        }
    };
    let outcomes = run.end().await;
    result.map(|()| outcomes)
}

/// Returns when the process is told to stop.
async fn interrupted() -> Error {
    let wait = async {
        let mut interrupt = signal(SignalKind::interrupt())?;
        let mut terminate = signal(SignalKind::terminate())?;
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
        }
        Ok::<_, std::io::Error>(())
    };
    match wait.await.context(Kind::Local, || "listen for signals") {
        Ok(()) => Error::new(Kind::Interrupted, "the backup was interrupted"),
        Err(e) => e,
    }
}
