//! How far an operation is, on standard error: a bar on a terminal, a line now and then elsewhere.

use std::{
    io::{IsTerminal, Write},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use indicatif::{ProgressBar, ProgressStyle};

use super::human;
use crate::progress::{Progress, Silent};

/// The progress of this process: nothing when `quiet`.
pub(super) fn show(quiet: bool) -> Arc<dyn Progress> {
    if quiet {
        Arc::new(Silent)
    } else if std::io::stderr().is_terminal() {
        Arc::new(Bar::new())
    } else {
        Arc::new(Lines::new())
    }
}

/// The bar that is shown, so that a line can be written above it.
static SHOWN: Mutex<Option<ProgressBar>> = Mutex::new(None);

fn shown() -> MutexGuard<'static, Option<ProgressBar>> {
    SHOWN.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Writes a line to standard error, above the bar if one is shown.
pub(super) fn line(text: &str) {
    let write = || {
        // A closed standard error is no reason to fail.
        let _ = writeln!(std::io::stderr().lock(), "{text}");
    };
    match shown().as_ref() {
        Some(bar) => bar.suspend(write),
        None => write(),
    }
}

fn warning(message: &str) {
    line(&format!("pgkeep: warning: {message}"));
}

/// A bar with rate and time left, or a spinner while nobody knows how much there is.
struct Bar {
    bar: ProgressBar,
}

impl Bar {
    fn new() -> Self {
        let bar = ProgressBar::new_spinner();
        bar.enable_steady_tick(Duration::from_millis(200));
        *shown() = Some(bar.clone());
        Bar { bar }
    }
}

fn style(template: &str) -> ProgressStyle {
    ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar())
}

impl Progress for Bar {
    fn step(&self, message: &str) {
        self.bar.set_style(style("{spinner} {wide_msg}"));
        self.bar.set_message(message.to_owned());
    }

    fn total(&self, bytes: Option<u64>) {
        self.bar.reset();
        self.bar.set_style(match bytes {
            Some(_) => style(
                "{msg} {wide_bar} {binary_bytes}/{binary_total_bytes} {binary_bytes_per_sec} {eta} left",
            ),
            None => style("{spinner} {msg} {binary_bytes} {binary_bytes_per_sec}"),
        });
        match bytes {
            Some(bytes) => self.bar.set_length(bytes),
            None => self.bar.unset_length(),
        }
    }

    fn advance(&self, bytes: u64) {
        self.bar.inc(bytes);
    }

    fn warn(&self, message: &str) {
        warning(message);
    }
}

impl Drop for Bar {
    fn drop(&mut self) {
        *shown() = None;
        self.bar.finish_and_clear();
    }
}

/// One line for each step, and one when a tenth more is done or ten seconds have passed.
struct Lines {
    done: AtomicU64,
    pace: Mutex<Pace>,
}

impl Lines {
    fn new() -> Self {
        Lines { done: AtomicU64::new(0), pace: Mutex::new(Pace::new(None, Instant::now())) }
    }
}

impl Progress for Lines {
    fn step(&self, message: &str) {
        line(&format!("pgkeep: {message}"));
    }

    fn total(&self, bytes: Option<u64>) {
        self.done.store(0, Ordering::Relaxed);
        *self.pace.lock().unwrap_or_else(PoisonError::into_inner) =
            Pace::new(bytes, Instant::now());
    }

    fn advance(&self, bytes: u64) {
        let done = self.done.fetch_add(bytes, Ordering::Relaxed) + bytes;
        // Another thread that is just here will do; nobody waits for a line.
        let Ok(mut pace) = self.pace.try_lock() else { return };
        if let Some(text) = pace.line_at(done, Instant::now()) {
            line(&format!("pgkeep: {text}"));
        }
    }

    fn warn(&self, message: &str) {
        warning(message);
    }
}

/// When the next line is due.
struct Pace {
    total: Option<u64>,
    begun: Instant,
    last_time: Instant,
    /// Tenths of the total that were told.
    last_tenth: u64,
}

/// A line after so long.
const LONG: Duration = Duration::from_secs(10);

/// But no two lines within so long.
const SHORT: Duration = Duration::from_secs(1);

impl Pace {
    fn new(total: Option<u64>, now: Instant) -> Self {
        Pace { total: total.filter(|t| *t > 0), begun: now, last_time: now, last_tenth: 0 }
    }

    /// The line for this moment, if one is due.
    fn line_at(&mut self, done: u64, now: Instant) -> Option<String> {
        let since = now.saturating_duration_since(self.last_time);
        let tenth = self.total.map_or(0, |total| (done.saturating_mul(10) / total).min(10));
        if since < SHORT || (tenth <= self.last_tenth && since < LONG) {
            return None;
        }
        (self.last_time, self.last_tenth) = (now, tenth);
        let seconds = now.saturating_duration_since(self.begun).as_secs_f64();
        let rate = done as f64 / seconds.max(0.001);
        let done_text = human::bytes(done);
        let rate_text = format!("{}/s", human::bytes(rate as u64));
        let Some(total) = self.total else {
            return Some(format!("{done_text}, {rate_text}"));
        };
        let percent = done.saturating_mul(100) / total;
        let total_text = human::bytes(total);
        if done >= total {
            return Some(format!("{done_text} of {total_text} (100 %), {rate_text}"));
        }
        let left = Duration::from_secs(((total - done) as f64 / rate.max(1.0)).ceil() as u64);
        let left = human::duration(left);
        Some(format!("{done_text} of {total_text} ({percent} %), {rate_text}, {left} left"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    #[test]
    fn a_line_each_tenth_and_each_ten_seconds() {
        let begun = Instant::now();
        let at = |seconds| begun + Duration::from_secs(seconds);
        let mut pace = Pace::new(Some(1000 * MIB), begun);
        assert_eq!(pace.line_at(500 * MIB, begun), None, "not in the first second");
        assert_eq!(pace.line_at(90 * MIB, at(2)), None, "less than a tenth");
        assert_eq!(
            pace.line_at(200 * MIB, at(4)).as_deref(),
            Some("200.0 MiB of 1000.0 MiB (20 %), 50.0 MiB/s, 16.0 s left")
        );
        assert_eq!(pace.line_at(210 * MIB, at(6)), None);
        assert_eq!(
            pace.line_at(210 * MIB, at(14)).as_deref(),
            Some("210.0 MiB of 1000.0 MiB (21 %), 15.0 MiB/s, 53.0 s left")
        );
        assert!(pace.line_at(2000 * MIB, at(20)).unwrap().contains("(100 %)"), "more than told");
    }

    #[test]
    fn without_a_total_there_is_a_line_each_ten_seconds() {
        let begun = Instant::now();
        let mut pace = Pace::new(None, begun);
        assert_eq!(pace.line_at(MIB, begun + Duration::from_secs(9)), None);
        let line = pace.line_at(100 * MIB, begun + Duration::from_secs(10));
        assert_eq!(line.as_deref(), Some("100.0 MiB, 10.0 MiB/s"));
        assert!(Pace::new(Some(0), begun).line_at(0, begun).is_none(), "no division by zero");
    }
}
