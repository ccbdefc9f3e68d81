//! The asynchronous runtime, made when a command needs it, and what ends a command early.

use std::{
    future::{Future, poll_fn},
    task::Poll,
    time::Duration,
};

use tokio::{
    runtime::{Builder, Handle, Runtime},
    signal::unix::{Signal, SignalKind, signal},
    sync::watch,
};

use crate::error::{Context, Error, Kind, Result};

/// How long work that was given up may go on, before the process ends under it.
const GIVE_UP: Duration = Duration::from_secs(5);

/// How many threads store or fetch ahead, at most.
const AHEAD: usize = 4;

/// What a command that a server runs is run with: no signal that ends the process, and few threads, since
/// the server waits for each push and get.
///
/// The server reads the code that a signal's default action would leave behind (128 and its number),
/// so signals are watched from here on to the process's end: those that arrive before the work begins
/// end it as soon as it waits for something, and those that arrive after it change nothing.
pub(super) struct Guarded {
    runtime: Runtime,
    signals: Signals,
}

impl Guarded {
    /// Begins to watch for signals.
    pub fn new() -> Result<Self> {
        let threads = std::thread::available_parallelism().map_or(1, usize::from).min(AHEAD);
        let mut builder = Builder::new_multi_thread();
        builder.worker_threads(threads).max_blocking_threads(threads);
        let runtime = build(builder)?;
        let inside = runtime.enter();
        let signals = Signals::watch(&ENDING)?;
        drop(inside);
        Ok(Guarded { runtime, signals })
    }

    /// Runs `work`, and gives it up at a signal: it is dropped, which removes what it has begun.
    pub fn run<T>(mut self, work: impl Future<Output = Result<T>>) -> Result<T> {
        let result = self.runtime.block_on(self.signals.end(work));
        self.runtime.shutdown_timeout(GIVE_UP);
        result
    }
}

/// Runs on this thread alone.
pub(super) fn alone<T>(work: impl Future<Output = Result<T>>) -> Result<T> {
    run(Builder::new_current_thread(), work)
}

/// Runs on so many threads and at least two, so that storing and reading overlap.
pub(super) fn together<T>(threads: usize, work: impl Future<Output = Result<T>>) -> Result<T> {
    let mut builder = Builder::new_multi_thread();
    builder.worker_threads(threads.max(2));
    run(builder, work)
}

/// Runs on this thread, which nothing else keeps busy, and gives the work so many others for what it starts.
pub(super) fn beside<T>(threads: usize, work: impl AsyncFnOnce(Handle) -> Result<T>) -> Result<T> {
    let mut builder = Builder::new_multi_thread();
    builder.worker_threads(threads);
    let others = build(builder)?;
    let result = alone(work(others.handle().clone()));
    others.shutdown_timeout(GIVE_UP);
    result
}

fn run<T>(builder: Builder, work: impl Future<Output = Result<T>>) -> Result<T> {
    let runtime = build(builder)?;
    let result = runtime.block_on(work);
    runtime.shutdown_timeout(GIVE_UP);
    result
}

/// A runtime in a process that outlives a file size limit: the write that meets it fails with EFBIG
/// when SIGXFSZ has a handler. (SIGPIPE is ignored from the start, by Rust's own runtime.)
fn build(mut builder: Builder) -> Result<Runtime> {
    let runtime = builder.enable_all().build().context(Kind::Local, || "start the runtime")?;
    let inside = runtime.enter();
    // The handler stays although nobody listens.
    Signals::watch(&[("SIGXFSZ", SignalKind::from_raw(rustix::process::Signal::XFSZ.as_raw()))])?;
    drop(inside);
    Ok(runtime)
}

/// Gives `work` up when it is asked to end, or its terminal goes: it is dropped, which removes what it has begun.
pub(super) async fn until_signal<T>(work: impl Future<Output = Result<T>>) -> Result<T> {
    let mut asked = vec![
        ("SIGINT", SignalKind::interrupt()),
        ("SIGTERM", SignalKind::terminate()),
        ("SIGQUIT", SignalKind::quit()),
    ];
    if !hangup_is_ignored() {
        asked.push(("SIGHUP", SignalKind::hangup()));
    }
    Signals::watch(&asked)?.end(work).await
}

/// Whether SIGHUP was ignored from the start, as `nohup` has it: a handler would change that.
fn hangup_is_ignored() -> bool {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let ignored = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    let ignored = ignored.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok());
    // The lowest bit is that of signal 1.
    ignored.is_some_and(|mask| mask & 1 == 1)
}

/// Runs `work`, which hears of SIGINT and SIGTERM and ends by itself then.
pub(super) async fn ending_at_signal<T>(
    work: impl AsyncFnOnce(watch::Receiver<bool>) -> Result<T>,
) -> Result<T> {
    let asked = [("SIGINT", SignalKind::interrupt()), ("SIGTERM", SignalKind::terminate())];
    let mut signals = Signals::watch(&asked)?;
    let (stop, stopped) = watch::channel(false);
    let listening = async {
        let name = signals.first().await;
        tracing::info!("{name}: ending");
        let _ = stop.send(true);
        std::future::pending::<()>().await;
    };
    tokio::select! {
        biased;
        result = work(stopped) => result,
        () = listening => Err(Error::new(Kind::Internal, "waiting for signals ended")),
    }
}

/// What ends a process that doesn't care for it, other than its own faults and what the kernel lets
/// nobody catch.
const ENDING: [(&str, SignalKind); 8] = [
    ("SIGINT", SignalKind::interrupt()),
    ("SIGTERM", SignalKind::terminate()),
    ("SIGQUIT", SignalKind::quit()),
    ("SIGHUP", SignalKind::hangup()),
    ("SIGALRM", SignalKind::alarm()),
    ("SIGUSR1", SignalKind::user_defined1()),
    ("SIGUSR2", SignalKind::user_defined2()),
    ("SIGXCPU", SignalKind::from_raw(rustix::process::Signal::XCPU.as_raw())),
];

/// Signals that are watched for, with their names.
struct Signals(Vec<(&'static str, Signal)>);

impl Signals {
    /// Handlers for `kinds`, in the runtime that was entered. They stay when this is dropped.
    fn watch(kinds: &[(&'static str, SignalKind)]) -> Result<Self> {
        let watch = |(name, kind): &(&'static str, SignalKind)| Ok((*name, signal(*kind)?));
        let signals = kinds.iter().map(watch).collect::<std::io::Result<_>>();
        signals.context(Kind::Local, || "watch for signals").map(Signals)
    }

    /// The name of the one that comes first.
    async fn first(&mut self) -> &'static str {
        poll_fn(|context| {
            for (name, signal) in &mut self.0 {
                if signal.poll_recv(context).is_ready() {
                    return Poll::Ready(*name);
                }
            }
            Poll::Pending
        })
        .await
    }

    /// The result of `work`, or that a signal came first.
    async fn end<T>(&mut self, work: impl Future<Output = Result<T>>) -> Result<T> {
        tokio::select! {
            biased;
            result = work => result,
            name = self.first() => Err(Error::new(Kind::Interrupted, format!("stopped by {name}"))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A signal is for all tests of this process: one of those that send one at a time.
    static SENDING: std::sync::Mutex<()> = std::sync::Mutex::new(());

    struct Cleaner<'a>(&'a std::cell::Cell<bool>);

    impl Drop for Cleaner<'_> {
        fn drop(&mut self) {
            self.0.set(true);
        }
    }

    #[test]
    fn a_signal_ends_the_work_and_what_it_has_begun_is_cleaned_up() {
        let _alone = SENDING.lock();
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
    fn a_signal_before_the_work_ends_it_as_well() {
        let _alone = SENDING.lock();
        let guarded = Guarded::new().unwrap();
        let me = rustix::process::getpid();
        rustix::process::kill_process(me, rustix::process::Signal::USR2).unwrap();
        let error = guarded.run(std::future::pending::<Result<()>>()).unwrap_err();
        assert_eq!(error.to_string(), "stopped by SIGUSR2");
    }

    #[test]
    fn results_come_through() {
        assert_eq!(Guarded::new().unwrap().run(async { Ok(0) }).unwrap(), 0);
        assert_eq!(alone(until_signal(async { Ok(1) })).unwrap(), 1);
        assert_eq!(together(1, until_signal(async { Ok(2) })).unwrap(), 2);
    }
}
