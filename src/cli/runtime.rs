//! The asynchronous runtime, made when a command needs it, and what ends a command early.

use std::{future::Future, time::Duration};

use tokio::{
    runtime::{Builder, Runtime},
    signal::unix::{SignalKind, signal},
};

use crate::error::{Context, Error, Kind, Result};

/// How long work that was given up may go on, before the process ends under it.
const GIVE_UP: Duration = Duration::from_secs(5);

/// Runs on this thread alone. PostgreSQL waits for each push and get, so they start no threads.
pub(super) fn alone<T>(work: impl Future<Output = Result<T>>) -> Result<T> {
    run(Builder::new_current_thread(), work)
}

/// Runs on so many threads and at least two, so that storing and reading overlap.
pub(super) fn together<T>(threads: usize, work: impl Future<Output = Result<T>>) -> Result<T> {
    let mut builder = Builder::new_multi_thread();
    builder.worker_threads(threads.max(2));
    run(builder, work)
}

fn run<T>(mut builder: Builder, work: impl Future<Output = Result<T>>) -> Result<T> {
    let runtime: Runtime =
        builder.enable_all().build().context(Kind::Local, || "start the runtime")?;
    let result = runtime.block_on(work);
    runtime.shutdown_timeout(GIVE_UP);
    result
}

/// Gives `work` up at SIGINT or SIGTERM: it is dropped, which removes what it has begun.
pub(super) async fn until_signal<T>(work: impl Future<Output = Result<T>>) -> Result<T> {
    let watch = |kind| signal(kind).context(Kind::Local, || "watch for signals");
    let mut interrupt = watch(SignalKind::interrupt())?;
    let mut terminate = watch(SignalKind::terminate())?;
    tokio::select! {
        biased;
        result = work => result,
        _ = interrupt.recv() => Err(interrupted("SIGINT")),
        _ = terminate.recv() => Err(interrupted("SIGTERM")),
    }
}

fn interrupted(signal: &str) -> Error {
    Error::new(Kind::Interrupted, format!("stopped by {signal}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Cleaner<'a>(&'a std::cell::Cell<bool>);

    impl Drop for Cleaner<'_> {
        fn drop(&mut self) {
            self.0.set(true);
        }
    }

    #[test]
    fn a_signal_ends_the_work_and_what_it_has_begun_is_cleaned_up() {
        let cleaned = std::cell::Cell::new(false);
        let work = async {
            let _temporary = Cleaner(&cleaned);
            let me = rustix::process::getpid();
            rustix::process::kill_process(me, rustix::process::Signal::TERM).unwrap();
            tokio::time::sleep(Duration::from_secs(60)).await;
            Ok(())
        };
        let error = alone(until_signal(work)).unwrap_err();
        assert_eq!(error.kind(), Kind::Interrupted);
        assert_eq!(error.to_string(), "stopped by SIGTERM");
        assert!(cleaned.get());
    }

    #[test]
    fn results_come_through() {
        assert_eq!(alone(until_signal(async { Ok(1) })).unwrap(), 1);
        assert_eq!(together(1, until_signal(async { Ok(2) })).unwrap(), 2);
    }
}
