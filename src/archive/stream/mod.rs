//! `stream`: WAL as it is written, durable in every repository before it is reported as stored.
//!
//! With `archive_command` alone, what isn't in a full segment yet is lost with the server's disk. The
//! stream receives it over a replication slot and keeps it as parts of the segment
//! ([`crate::repo::wal_parts`]) until that is whole. The position that is reported is one that a fresh
//! process could read back, so a server that counts the stream among its synchronous standbys
//! acknowledges a commit when it is in the repository.
//!
//! A session ([`session()`]) begins with what the repositories don't have ([`gaps`]): older segments that
//! the server still has, then its present end. [`receiver`] receives a stretch of it, [`keep`] makes it
//! durable. When a connection ends, for whatever reason, the next one begins with the same questions: no
//! state is kept but in the repositories and the slot.

mod assemble;
mod compare;
mod durable;
mod gaps;
mod gather;
mod incoming;
mod keep;
mod levels;
mod notify;
mod progress;
mod receiver;
mod session;
mod setbacks;
mod stretch;
pub(super) mod synchronous;

use std::time::Duration;

use tokio::{
    runtime::Handle,
    sync::watch,
    time::{Instant, sleep},
};

use crate::{
    config::{ClusterSettings, RepositorySettings},
    error::{Error, Kind, Result},
    postgres::client::ConnInfo,
};
use notify::Notify;
use progress::Progress;
use session::{Context, SessionEnd, session};

const FIRST_PAUSE: Duration = Duration::from_millis(200);
const LONGEST_PAUSE: Duration = Duration::from_secs(10);

/// A connection that held so long was no failure.
const HELD: Duration = Duration::from_secs(30);

/// Streams a cluster's WAL until `stop` says so. What comes is read by the thread that this runs on, which may sleep for
/// some milliseconds, and stored by `threads`. The slot is made, with WAL reserved, unless it is
/// there. A server or a repository that can't be reached is tried again for
/// ever; what waiting doesn't mend ends it.
///
/// Fails with [`Kind::Conflict`] when the server's WAL differs from what is stored, and with
/// [`Kind::Repository`] when at the end the last bytes couldn't be stored.
pub async fn stream(
    repositories: &[&RepositorySettings],
    cluster: &ClusterSettings,
    threads: &Handle,
    mut stop: watch::Receiver<bool>,
) -> Result<()> {
    let info = conninfo(cluster)?;
    let progress = Progress::new(Notify::from_environment());
    let mut context = Context {
        repositories,
        cluster,
        threads,
        info: &info,
        progress: &progress,
        removed: None,
        incomparable: None,
        has_streamed: false,
        setbacks: setbacks::Setbacks::default(),
    };
    // Whoever waits for the service to be up doesn't wait for the server too.
    progress.ready();
    let mut pause = FIRST_PAUSE;
    loop {
        let begin = Instant::now();
        let mut session_stop = stop.clone();
        let ended = tokio::select! {
            biased;
            ended = session(&mut context, &mut session_stop) => ended,
            () = stopped_before_receiving(&mut stop, &progress) => Ok(SessionEnd::Stopped),
        };
        match ended {
            Ok(SessionEnd::Stopped) => {
                progress.stopping();
                return Ok(());
            }
            // Not at once: a server may say for a while that its timeline has ended.
            Ok(SessionEnd::Again) => pause = FIRST_PAUSE,
            Ok(SessionEnd::ServerEnd) => progress.interrupted("the server shut down"),
            // What came last couldn't be stored.
            Err(e) if *stop.borrow() && e.kind() == Kind::Repository => return Err(e),
            Err(e) if may_pass(&e) => {
                tracing::warn!("{e}; trying again");
                e.hints().iter().for_each(|hint| tracing::warn!("hint: {hint}"));
                progress.interrupted(&e.to_string());
            }
            Err(e) => return Err(e),
        }
        if *stop.borrow() {
            progress.stopping();
            return Ok(());
        }
        if begin.elapsed() >= HELD {
            pause = FIRST_PAUSE;
        }
        tokio::select! {
            () = sleep(pause) => {}
            _ = stop.wait_for(|stop| *stop) => {
                progress.stopping();
                return Ok(());
            }
        }
        pause = (pause * 2).min(LONGEST_PAUSE);
    }
}

/// How a cluster's stream connects, and by which name the server knows it.
pub(super) fn conninfo(cluster: &ClusterSettings) -> Result<ConnInfo> {
    let own = cluster.stream.conninfo.as_ref();
    let info = ConnInfo::parse(own.unwrap_or(&cluster.conninfo)).map_err(|e| {
        let hint = e.hint_text().map(str::to_owned);
        let table = if own.is_some() { ".stream" } else { "" };
        let what = format!("read conninfo of [cluster.{}{table}]", cluster.name);
        let error = Error::new(Kind::Usage, what).because(e);
        hint.into_iter().fold(error, Error::hint)
    })?;
    Ok(info
        .with_application_name(&cluster.stream.slot)
        .with_stall_timeout(Some(cluster.stall_timeout)))
}

/// Ends when `stop` says so and nothing is being received, or doesn't cease to be: a session that
/// receives ends by itself, with what it has; one that still asks questions may wait for ever.
async fn stopped_before_receiving(stop: &mut watch::Receiver<bool>, progress: &Progress) {
    let _ = stop.wait_for(|stop| *stop).await;
    let latest = Instant::now() + receiver::LAST_WAIT + Duration::from_secs(5);
    while progress.is_receiving() && Instant::now() < latest {
        sleep(Duration::from_millis(50)).await;
    }
}

/// Whether waiting may help.
fn may_pass(e: &Error) -> bool {
    matches!(e.kind(), Kind::Postgres | Kind::Repository | Kind::Denied)
}
