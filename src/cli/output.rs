//! Results to standard output, errors to standard error, each as text or as JSON.

use std::{
    ffi::OsString,
    fmt::Display,
    io::{ErrorKind, Write},
};

use clap::ValueEnum;
use serde::Serialize;

use super::exit::Reader;
use crate::error::{Context, Error, Kind, Result};

/// How results and errors are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum)]
pub(super) enum Output {
    /// For people.
    #[default]
    Text,
    /// For programs: one JSON document, as docs/commands.md describes it.
    Json,
}

impl Output {
    /// What a command line that needn't be a right one asks for.
    pub fn of(args: &[OsString]) -> Output {
        let asks = |pair: &[OsString]| pair[0] == "--output" && pair[1] == "json";
        let json = args.iter().any(|arg| arg == "--output=json") || args.windows(2).any(asks);
        if json { Output::Json } else { Output::Text }
    }

    /// Writes a result: `value` as JSON, or the text.
    pub fn result<T: Serialize>(self, value: &T, text: impl FnOnce() -> String) -> Result<()> {
        let text = match self {
            Output::Text => text(),
            Output::Json => {
                let json = serde_json::to_string_pretty(value)
                    .context(Kind::Internal, || "write the result as JSON")?;
                json + "\n"
            }
        };
        print(&text)
    }

    /// Writes the result of what is done and durable. That it can't be printed is only warned about: an
    /// exit code would say that it has to be done again.
    pub fn done<T: Serialize>(self, what: impl Display, value: &T, text: impl FnOnce() -> String) {
        if let Err(e) = self.result(value, text) {
            tracing::warn!("{what}, which couldn't be printed: {e}");
        }
    }

    /// Writes an error. JSON is one line and the last one on standard error; a server's log gets
    /// one line as well.
    pub fn error(self, error: &Error, reader: Reader) {
        let text = match (self, reader) {
            (Output::Json, _) => {
                let body = ErrorDocument {
                    error: ErrorBody {
                        kind: error.kind().name(),
                        message: error.to_string(),
                        hints: error.hints(),
                    },
                };
                let body = serde_json::to_string(&body).unwrap_or_default();
                format!("{body}\n")
            }
            (Output::Text, Reader::Anyone) => {
                let hints: String = error.hints().iter().map(|h| format!("hint: {h}\n")).collect();
                format!("pgkeep: {error}\n{hints}")
            }
            (Output::Text, _) => {
                let hints: String = error.hints().iter().map(|h| format!(" (hint: {h})")).collect();
                format!("pgkeep: {}\n", format!("{error}{hints}").replace('\n', " "))
            }
        };
        // Whoever closed standard error doesn't want to hear it, but still wants the exit code.
        let _ = std::io::stderr().lock().write_all(text.as_bytes());
    }
}

#[derive(Serialize)]
struct ErrorDocument<'a> {
    error: ErrorBody<'a>,
}

#[derive(Serialize)]
struct ErrorBody<'a> {
    kind: &'static str,
    message: String,
    hints: &'a [String],
}

/// Writes to standard output. A reader that has seen enough (`pgkeep info | head`) is no error.
pub(super) fn print(text: &str) -> Result<()> {
    let mut stdout = std::io::stdout().lock();
    match stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush()) {
        Err(e) if e.kind() == ErrorKind::BrokenPipe => Ok(()),
        result => result.context(Kind::Local, || "write to standard output"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn json_is_known_from_a_wrong_command_line() {
        let of = |line: &str| Output::of(&line.split(' ').map(OsString::from).collect::<Vec<_>>());
        assert_eq!(of("pgkeep --output json inf"), Output::Json);
        assert_eq!(of("pgkeep inf --output=json"), Output::Json);
        assert_eq!(of("pgkeep --output text json"), Output::Text);
        assert_eq!(of("pgkeep"), Output::Text);
    }
}
