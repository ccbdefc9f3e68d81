//! What is said of a stream while it runs: in the log, and to systemd.

use std::{
    sync::{
        Mutex,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use super::notify::Notify;
use crate::postgres::Lsn;

/// How often systemd hears how far the stream is.
const STATUS: Duration = Duration::from_secs(5);

/// How often the log does.
const LOG: Duration = Duration::from_secs(300);

/// Tells how far the stream is.
#[derive(Debug)]
pub struct Progress {
    notify: Notify,
    state: Mutex<State>,
    receiving: AtomicBool,
}

#[derive(Debug, Default)]
struct State {
    /// From where, in words.
    from: String,
    server_end: Lsn,
    stored: Lsn,
    told: Option<Instant>,
    logged: Option<Instant>,
    /// Whether it was said that there is no connection.
    interrupted: bool,
}

impl Progress {
    /// Tells it by these means.
    pub fn new(notify: Notify) -> Self {
        Progress { notify, state: Mutex::default(), receiving: AtomicBool::new(false) }
    }

    /// The command has begun.
    pub fn ready(&self) {
        self.notify.ready();
    }

    /// WAL comes from this server: `from` says which, and on which timeline.
    pub fn begins(&self, from: String) {
        self.notify.status(&format!("streaming from {from}"));
        self.with(|state| {
            // Whoever was warned hears the end of it.
            match state.interrupted {
                true => tracing::warn!("streaming again from {from}"),
                false => tracing::info!("streaming from {from}"),
            }
            *state = State { from, ..State::default() };
        });
    }

    /// Whether something is being received, which ends by itself when the command is to end.
    pub fn receiving(&self, is: bool) {
        self.receiving.store(is, Ordering::Relaxed);
    }

    /// What was last said of that.
    pub fn is_receiving(&self) -> bool {
        self.receiving.load(Ordering::Relaxed)
    }

    /// There is no connection, for this reason.
    pub fn interrupted(&self, why: &str) {
        self.notify.status(&format!("not streaming: {why}"));
        self.with(|state| state.interrupted = true);
    }

    /// The command ends.
    pub fn stopping(&self) {
        self.notify.stopping();
    }

    /// How far the server's WAL goes.
    pub fn server_at(&self, position: Lsn) {
        self.with(|state| state.server_end = state.server_end.max(position));
    }

    /// How far it is durable in all repositories.
    pub fn stored(&self, position: Lsn) {
        self.with(|state| {
            state.stored = state.stored.max(position);
            let is_due = |last: &mut Option<Instant>, every: Duration| {
                let due = last.is_none_or(|last| last.elapsed() >= every);
                if due {
                    *last = Some(Instant::now());
                }
                due
            };
            let line = || {
                if !state.stored.is_valid() {
                    return format!(
                        "streaming {}; a repository is away, and nothing is reported as stored until it is back",
                        state.from
                    );
                }
                let behind = state.server_end.0.saturating_sub(state.stored.0);
                format!(
                    "{} stored, {} kB behind {}",
                    state.stored,
                    behind.div_ceil(1024),
                    state.from
                )
            };
            if is_due(&mut state.told, STATUS) {
                self.notify.status(&line());
            }
            if is_due(&mut state.logged, LOG) {
                tracing::info!("{}", line());
            }
        });
    }

    fn with(&self, change: impl FnOnce(&mut State)) {
        // A panic elsewhere leaves nothing half done in here.
        let mut state = self.state.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        change(&mut state);
    }
}
