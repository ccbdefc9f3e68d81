//! What is logged goes to standard error, one short line an event: it may end up in PostgreSQL's
//! log. Warnings by default, `-v` says what is done, `-vv` how, `-q` leaves only errors.

use std::{fmt, io};

use tracing::{Event, Level, Subscriber};
use tracing_subscriber::{
    filter::{LevelFilter, Targets},
    fmt::{FmtContext, FormatEvent, FormatFields, MakeWriter, format::Writer},
    layer::SubscriberExt,
    registry::LookupSpan,
    util::SubscriberInitExt,
};

use super::progress;

/// Begins to log. `verbose` counts `-v`.
pub(super) fn start(verbose: u8, quiet: bool) {
    let level = match (quiet, verbose) {
        (true, _) => LevelFilter::ERROR,
        (false, 0) => LevelFilter::WARN,
        (false, 1) => LevelFilter::INFO,
        (false, _) => LevelFilter::DEBUG,
    };
    // Other crates speak of their own matters, TLS for instance with keys' names.
    let others = level.min(LevelFilter::WARN);
    // The AWS SDK warns of each place where it looked for something in vain.
    let targets = Targets::new()
        .with_default(others)
        .with_target("aws", level.min(LevelFilter::ERROR))
        .with_target("pgkeep", level);
    let lines = tracing_subscriber::fmt::layer()
        .event_format(Line)
        .with_writer(Stderr)
        .with_ansi(false)
        .log_internal_errors(false);
    // It fails only when there is a logger already, as in tests.
    let _ = tracing_subscriber::registry().with(lines).with(targets).try_init();
}

/// `pgkeep: warning: message`; what is below a warning has no word of its own.
struct Line;

impl<S, N> FormatEvent<S, N> for Line
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(
        &self,
        context: &FmtContext<'_, S, N>,
        mut writer: Writer<'_>,
        event: &Event<'_>,
    ) -> fmt::Result {
        writer.write_str("pgkeep: ")?;
        match *event.metadata().level() {
            Level::ERROR => writer.write_str("error: ")?,
            Level::WARN => writer.write_str("warning: ")?,
            _ => {}
        }
        context.field_format().format_fields(writer.by_ref(), event)?;
        writeln!(writer)
    }
}

/// Standard error, above the progress bar if there is one. Each write is one event.
struct Stderr;

impl io::Write for Stderr {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        progress::line(String::from_utf8_lossy(bytes).trim_end());
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl<'a> MakeWriter<'a> for Stderr {
    type Writer = Stderr;

    fn make_writer(&'a self) -> Stderr {
        Stderr
    }
}
