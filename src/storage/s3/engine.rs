//! What requests share: the client, attempts, and what has been learnt of the bucket.

use std::{
    future::Future,
    sync::{
        Arc, Condvar, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use aws_sdk_s3::Client;
use tokio::sync::{OnceCell, Semaphore};

use super::{
    buffers::Buffers,
    client::connect,
    errors::{About, Again, Failure},
    settings::S3Settings,
    writer::PART,
};
use crate::storage::{ErrorKind, StorageError};

/// How many parts may be on their way at a time, of all objects together. With the one that each
/// writer fills, this bounds memory.
const PARTS_IN_FLIGHT: usize = 4;

/// How many times as long pauses are where the server asked for fewer requests.
const THROTTLED: u32 = 5;

const LONGEST_PAUSE: Duration = Duration::from_secs(10);

/// The working end of a storage. Runs on the storage's own runtime.
#[derive(Debug)]
pub(super) struct Engine {
    pub settings: S3Settings,
    pub address: String,
    client: OnceCell<Client>,
    /// A permit for each part on its way.
    pub parts: Arc<Semaphore>,
    /// What parts are made in.
    pub buffers: Buffers,
    /// An answer named a version, so deleting has to name versions too.
    versioned: AtomicBool,
    /// Whether creations carry a condition.
    conditional: AtomicBool,
    /// Uploads that are being aborted.
    aborting: Mutex<usize>,
    aborted: Condvar,
}

impl Engine {
    pub fn new(settings: S3Settings) -> Self {
        Engine {
            address: settings.to_string(),
            settings,
            client: OnceCell::new(),
            parts: Arc::new(Semaphore::new(PARTS_IN_FLIGHT)),
            buffers: Buffers::new(PART),
            versioned: AtomicBool::new(false),
            conditional: AtomicBool::new(true),
            aborting: Mutex::new(0),
            aborted: Condvar::new(),
        }
    }

    /// What a request is about.
    pub fn about(&self, operation: &'static str, object: impl Into<String>) -> About {
        About { operation, object: object.into(), address: self.address.clone() }
    }

    /// The client, made at the first request.
    pub async fn client(&self, about: &About) -> Result<&Client, StorageError> {
        self.client
            .get_or_try_init(|| connect(&self.settings))
            .await
            .map_err(|why| about.error(ErrorKind::Refused, why))
    }

    /// Does something until it works, can't work, or was tried often enough: where nobody answers at all, that is twice.
    pub async fn attempts<T, F>(&self, mut once: impl FnMut() -> F) -> Result<T, Failure>
    where
        F: Future<Output = Result<T, Failure>>,
    {
        let (mut attempt, mut was_silent) = (1, false);
        loop {
            let mut failure = match once().await {
                Ok(done) => return Ok(done),
                Err(failure) => failure,
            };
            let is_enough = match failure.again {
                Again::Never => true,
                Again::Once => std::mem::replace(&mut was_silent, true),
                Again::Soon | Again::Later => false,
            };
            if is_enough || attempt >= self.settings.attempts {
                if attempt > 1 && failure.again != Again::Never {
                    failure.error.message += &format!(", after {attempt} attempts");
                }
                return Err(failure);
            }
            tracing::debug!("{}; attempt {attempt} failed, trying again", failure.error);
            tokio::time::sleep(pause(self.settings.first_pause, attempt, failure.again)).await;
            attempt += 1;
        }
    }

    /// Notes whether an answer named a version.
    pub fn saw_version(&self, version: Option<&str>) {
        if version.is_some() {
            self.versioned.store(true, Ordering::Relaxed);
        }
    }

    /// Whether objects of this bucket have versions, as far as is known.
    pub fn is_versioned(&self) -> bool {
        self.versioned.load(Ordering::Relaxed)
    }

    /// The condition of a creation: that there be no such object.
    pub fn if_none_match(&self) -> Option<String> {
        self.conditional.load(Ordering::Relaxed).then(|| "*".to_owned())
    }

    /// From now on creations carry no condition: the server doesn't know it.
    pub fn without_conditions(&self) {
        self.conditional.store(false, Ordering::Relaxed);
    }

    /// An upload is about to be aborted.
    pub fn abort_begins(&self) {
        *self.aborting.lock().unwrap_or_else(PoisonError::into_inner) += 1;
    }

    /// It was, or couldn't be.
    pub fn abort_ends(&self) {
        *self.aborting.lock().unwrap_or_else(PoisonError::into_inner) -= 1;
        self.aborted.notify_all();
    }

    /// Waits until no upload is being aborted, but not longer than this.
    pub fn wait_for_aborts(&self, longest: Duration) {
        let aborting = self.aborting.lock().unwrap_or_else(PoisonError::into_inner);
        let waited = self.aborted.wait_timeout_while(aborting, longest, |n| *n > 0);
        drop(waited);
    }
}

/// How long to wait after the attempt of this number: half of it by chance, so that many hosts
/// don't come back in one moment.
fn pause(first: Duration, attempt: u32, again: Again) -> Duration {
    let first = match again {
        Again::Later => first * THROTTLED,
        _ => first,
    };
    let full = first.saturating_mul(1 << (attempt - 1).min(16)).min(LONGEST_PAUSE);
    let mut random = [0u8; 1];
    // Without randomness the pause is only less well spread.
    let _ = getrandom::fill(&mut random);
    full / 2 + full / 2 * u32::from(random[0]) / 255
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::storage::s3::DEFAULT_FIRST_PAUSE;

    #[test]
    fn pauses_grow_and_are_bounded() {
        let first = DEFAULT_FIRST_PAUSE;
        for attempt in 1..40 {
            let soon = pause(first, attempt, Again::Soon);
            assert!(soon >= first / 2 && soon <= LONGEST_PAUSE, "{soon:?}");
            assert!(pause(first, attempt, Again::Later) >= first * THROTTLED / 2);
        }
        assert!(pause(first, 1, Again::Soon) <= first);
        assert!(pause(first, 20, Again::Soon) >= LONGEST_PAUSE / 2);
    }
}
