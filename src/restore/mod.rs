//! Bringing a cluster back: choose a backup and a timeline, prove that the WAL is there, write the
//! data directory, tell PostgreSQL where to stop.
//!
//! [`choose`] answers *from which backup, along which timeline*, from what the repository holds and
//! before anything is touched. [`plan`] turns the answer into recovery settings and places for
//! tablespaces. [`mod@write`] makes the data directory, in an order in which a restore that was stopped
//! anywhere leaves nothing that could start.

pub mod choose;
mod crc;
mod frames;
pub mod guard;
pub mod marker;
pub mod plan;
pub mod settings;
mod stretch;
mod target;
mod tree;
mod windows;
pub mod write;

use std::{path::PathBuf, sync::Arc};

use chrono::{DateTime, Utc};
use serde::Serialize;

use self::plan::Plan;
use crate::{
    config::ClusterSettings,
    error::{Error, Kind, Result},
    postgres::{Lsn, Timeline},
    progress::Progress,
    repo::{BackupId, Repository, SystemId},
};

/// Where recovery is to stop (documentation, "Recovery Target").
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Target {
    /// At the end of the WAL that there is.
    Latest,
    /// As soon as the backup is consistent.
    Immediate,
    /// Before the first commit or abort later than this; with `exclusive`, not earlier than this.
    Time(DateTime<Utc>),
    /// After the first record that starts here or later; with `exclusive`, before it.
    Lsn(Lsn),
    /// After the commit or abort of this transaction; with `exclusive`, before it.
    Xid(u32),
    /// After the restore point of this name.
    Name(String),
}

impl std::fmt::Display for Target {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Target::Latest => f.write_str("the end of the WAL"),
            Target::Immediate => f.write_str("the end of the backup"),
            Target::Time(time) => write!(f, "time {}", plan::server_time(*time)),
            Target::Lsn(lsn) => write!(f, "LSN {lsn}"),
            Target::Xid(xid) => write!(f, "transaction {xid}"),
            Target::Name(name) => write!(f, "restore point {name:?}"),
        }
    }
}

/// Along which timeline.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TargetTimeline {
    /// Not said: the only one that contains the target.
    Unspecified,
    /// The newest one that comes from the backup's.
    Latest,
    /// The backup's own.
    Current,
    /// This one.
    Id(Timeline),
}

/// What the server does when it has reached the target.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TargetAction {
    /// Waits, so that one can look, for `pg_wal_replay_resume()`.
    Pause,
    /// Ends recovery and becomes a primary on a new timeline.
    Promote,
    /// Shuts down.
    Shutdown,
}

impl TargetAction {
    /// The word of `recovery_target_action`.
    pub fn as_str(self) -> &'static str {
        match self {
            TargetAction::Pause => "pause",
            TargetAction::Promote => "promote",
            TargetAction::Shutdown => "shutdown",
        }
    }
}

/// What to restore, where to, up to which point.
#[derive(Debug, Clone)]
pub struct RestoreRequest {
    /// The data directory to make.
    pub pgdata: PathBuf,
    /// The backup to begin with; chosen when not said.
    pub backup: Option<BackupId>,
    /// Where to stop.
    pub target: Target,
    /// Along which timeline.
    pub timeline: TargetTimeline,
    /// Stop just before the target and not just after it.
    pub exclusive: bool,
    /// What to do there; PostgreSQL's own default is to pause.
    pub action: Option<TargetAction>,
    /// Make a standby, which goes on replaying for ever.
    pub standby: bool,
    /// Leave `archive_mode` as it was in the backup; otherwise it is set to off.
    pub keep_archive_mode: bool,
    /// Tablespaces by object id or original path, and where they go.
    pub tablespace_map: Vec<(String, PathBuf)>,
    /// Where tablespaces go that the map doesn't name: below this directory, each in a folder called
    /// by its object id. Without it, to where they were.
    pub tablespaces_below: Option<PathBuf>,
    /// More settings for `postgresql.auto.conf`.
    pub set: Vec<(String, String)>,
    /// Leave out what `ALTER SYSTEM` has set in the original: `postgresql.auto.conf` has what this
    /// restore sets, and nothing else.
    pub forget_alter_system: bool,
    /// How many frames are read and opened at a time.
    pub threads: usize,
    /// The `restore_command` to write.
    pub restore_command: String,
}

impl RestoreRequest {
    /// To `target`, with nothing else said: on one thread, from whichever backup and along the only timeline that lead there.
    pub fn new(pgdata: PathBuf, target: Target, restore_command: String) -> Self {
        RestoreRequest {
            pgdata,
            backup: None,
            target,
            timeline: TargetTimeline::Unspecified,
            exclusive: false,
            action: None,
            standby: false,
            keep_archive_mode: false,
            tablespace_map: Vec::new(),
            tablespaces_below: None,
            set: Vec::new(),
            forget_alter_system: false,
            threads: 1,
            restore_command,
        }
    }
}

/// What a restore has done.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct RestoreReport {
    /// The repository it was restored from.
    pub repository: String,
    /// The backup.
    pub backup: BackupId,
    /// The cluster's system.
    pub system: SystemId,
    /// The timeline that recovery follows; `None` when a standby follows the newest.
    pub timeline: Option<Timeline>,
    /// Where recovery will stop, in words.
    pub target: String,
    /// The WAL position at which it will stop, if that is known.
    pub stop_lsn: Option<Lsn>,
    /// When the last transaction before that point ended.
    pub last_transaction: Option<DateTime<Utc>>,
    /// Whether the server will pause there and wait for a word.
    pub pauses: bool,
    /// The data directory.
    pub pgdata: PathBuf,
    /// Files written.
    pub files: u64,
    /// Bytes written.
    pub bytes: u64,
}

/// Restores a cluster from the first of `repositories` that can do it.
///
/// Nothing is written before the plan stands: the backup and the WAL up to the target are there, or
/// the error says what is possible instead.
pub async fn restore(
    repositories: &[Repository],
    cluster: &ClusterSettings,
    request: &RestoreRequest,
    progress: Arc<dyn Progress>,
) -> Result<RestoreReport> {
    guard::refuse_root("restore")?;
    let mut failures: Vec<Error> = Vec::new();
    let mut chosen: Option<Plan> = None;
    for repository in repositories {
        match (plan::plan(repository, cluster, request).await, &chosen) {
            (Ok(plan), None) => chosen = Some(plan),
            (Ok(plan), Some(before)) => {
                // One that was away while a standby was promoted says of itself that all is there.
                let goes_on = plan.goes_on_from(before).await.unwrap_or_else(|e| {
                    failures.push(e);
                    false
                });
                if goes_on {
                    progress.warn(&format!(
                        "repository {} ends on timeline {}, and {} goes on with timeline {}: going on with that",
                        before.repository(),
                        before.timeline(),
                        plan.repository(),
                        plan.timeline()
                    ));
                    chosen = Some(plan);
                }
            }
            (Err(e), None) if matches!(e.kind(), Kind::Usage | Kind::Local) => return Err(e),
            (Err(e), _) => failures.push(e),
        }
        // A target is in one repository or not; where all WAL ends, each has to say.
        let is_newest =
            matches!(request.timeline, TargetTimeline::Unspecified | TargetTimeline::Latest);
        if chosen.is_some() && !(request.target == Target::Latest && is_newest) {
            break;
        }
    }
    if let Some(plan) = chosen {
        for failure in failures {
            progress.warn(&format!("{failure}; going on with {}", plan.repository()));
        }
        plan.refuse_another_newest(repositories, request).await?;
        return plan.carry_out(request, progress).await.map_err(|e| match e.kind() {
            Kind::Damaged => e.hint(
                "`pgkeep verify` says what is damaged and which backups need it: restore another \
                 one with --backup, or from another repository with --repo",
            ),
            _ => e,
        });
    }
    // Whether the others would have had it isn't known while one couldn't be asked.
    failures.sort_by_key(Error::is_an_answer);
    let mut failures = failures.into_iter();
    let first =
        failures.next().unwrap_or_else(|| Error::new(Kind::Usage, "no repository is configured"));
    Err(failures.fold(first, |first, other| first.hint(format!("also: {other}"))))
}
