//! Backups: from a source of files to a committed backup.
//!
//! [`backup`] tells the story: look at the server ([`server`]), reserve an id, start, prove that
//! archiving works ([`prove`]), read everything ([`pipeline`]), prove that the WAL is there, commit
//! ([`commit`]). The files come from a [`source`]; [`base_backup`] is the one there is. [`cut`] makes
//! blocks and frames of them, [`work`] hashes and seals those, [`tree`] puts the tree together.

mod base_backup;
mod commit;
mod cut;
mod pipeline;
mod prove;
mod run;
mod server;
mod source;
#[cfg(test)]
mod tests;
mod tree;
mod work;

use std::{
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use tokio::signal::unix::{SignalKind, signal};

use crate::{
    config::ClusterSettings,
    error::{Context, Error, Kind, Result},
    progress::Progress,
    repo::{BackupType, Repository, record::BackupRecord},
};

/// How a backup is to be taken.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BackupOptions {
    /// What to store. This version takes full backups only.
    pub kind: BackupType,
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
        BackupOptions {
            kind: BackupType::Full,
            fast_checkpoint: true,
            max_rate: None,
            threads: 2,
            label: None,
        }
    }
}

/// How long removing what a failed backup has stored may take.
const UNDO: Duration = Duration::from_secs(60);

/// Takes a backup of `cluster` into `repository`.
///
/// It is a backup, and is returned, when everything it needs is durably in the repository, its WAL
/// included. Otherwise what it has stored is removed again, as far as that can be done; SIGINT and
/// SIGTERM count as failures ([`Kind::Interrupted`]).
pub async fn backup(
    repository: &Repository,
    cluster: &ClusterSettings,
    options: &BackupOptions,
    progress: Arc<dyn Progress>,
) -> Result<BackupRecord> {
    if options.kind != BackupType::Full {
        let message = format!("this pgkeep takes full backups only, not {}", options.kind);
        return Err(Error::new(Kind::Usage, message).hint("use --type full"));
    }
    if options.label.as_ref().is_some_and(|label| label.contains(char::is_control)) {
        let message =
            "a backup's label can't have control characters: it is a line of backup_label";
        return Err(Error::new(Kind::Usage, message));
    }
    let mut run = run::Run::new(repository, cluster, options, progress)?;
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
    if tokio::time::timeout(UNDO, run.end(result.is_ok())).await.is_err() {
        tracing::warn!("removing what the backup has stored took too long; a part of it stays");
    }
    result
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
