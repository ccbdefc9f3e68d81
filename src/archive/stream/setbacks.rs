//! Repositories that are there and can't be used all the same: a full disk, a folder that can't be listed.
//!
//! One that is left behind is looked for, and when it answers, a new session begins with what it lacks. Where it takes nothing
//! even so, it holds up the others once more, for as long as they are patient. So from the second time on it is left alone
//! for a while, ever longer, until it has stored something.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::time::Instant;

use super::keep::is_outage;
use crate::{error::Result, repo::wal::WalStore};

const FIRST_PAUSE: Duration = Duration::from_secs(10);

/// Where commits wait for the stream, they wait for so long after a disk has room again.
const LONGEST_PAUSE: Duration = Duration::from_secs(60);

/// Of each repository that has stored nothing since it held up the others: when it is looked for again.
/// Clones are the same.
#[derive(Debug, Clone, Default)]
pub struct Setbacks(Arc<Mutex<BTreeMap<String, Setback>>>);

#[derive(Debug, Clone, Copy)]
struct Setback {
    pause: Duration,
    until: Instant,
}

impl Setbacks {
    /// A repository, of this name, couldn't be used.
    pub fn met(&self, name: &str) {
        self.met_at(name, Instant::now());
    }

    fn met_at(&self, name: &str, now: Instant) {
        let mut all = self.all();
        let pause = match all.get(name) {
            None => Duration::ZERO,
            Some(before) => (before.pause * 2).clamp(FIRST_PAUSE, LONGEST_PAUSE),
        };
        all.insert(name.to_owned(), Setback { pause, until: now + pause });
    }

    /// A repository has stored something.
    pub fn is_over(&self, name: &str) {
        self.all().remove(name);
    }

    /// What is asked of one repository when a session begins. Where it keeps failing, the next sessions leave it alone.
    pub async fn ask<T>(
        &self,
        store: &WalStore,
        asked: impl Future<Output = Result<T>>,
    ) -> Result<T> {
        asked.await.inspect_err(|e| {
            if is_outage(e) {
                self.met(store.repository().name());
            }
        })
    }

    /// How long a repository is to be left alone; zero when it isn't.
    pub fn pause(&self, name: &str) -> Duration {
        self.pause_at(name, Instant::now())
    }

    fn pause_at(&self, name: &str, now: Instant) -> Duration {
        let until = self.all().get(name).map_or(now, |setback| setback.until);
        until.saturating_duration_since(now)
    }

    fn all(&self) -> MutexGuard<'_, BTreeMap<String, Setback>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_takes_nothing_is_left_alone_ever_longer_until_it_does() {
        let (setbacks, mut now) = (Setbacks::default(), Instant::now());
        let mut pauses = Vec::new();
        for _ in 0..9 {
            setbacks.met_at("a", now);
            let pause = setbacks.pause_at("a", now);
            pauses.push(pause.as_secs());
            now += pause;
            assert_eq!(setbacks.pause_at("a", now), Duration::ZERO);
        }
        assert_eq!(pauses, [0, 10, 20, 40, 60, 60, 60, 60, 60]);
        assert_eq!(setbacks.pause_at("b", now), Duration::ZERO, "another one has no part in it");
        setbacks.clone().is_over("a");
        setbacks.met_at("a", now);
        assert_eq!(setbacks.pause_at("a", now), Duration::ZERO);
    }
}
