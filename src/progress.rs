//! What an operation tells while it runs. The command line shows it; a test may keep it.

use std::fmt;

/// Receives what an operation has to say. Called from several threads.
pub trait Progress: Send + Sync {
    /// A step begins: one line, no full stop, as in "waiting for the checkpoint".
    fn step(&self, message: &str);

    /// From here on [`Progress::advance`] counts towards `bytes`; `None` when nobody knows.
    fn total(&self, bytes: Option<u64>);

    /// So many more bytes are done.
    fn advance(&self, bytes: u64);

    /// Something that a person has to know of, and that doesn't fail the operation.
    fn warn(&self, message: &str);
}

/// Tells nobody, but logs warnings.
#[derive(Debug, Clone, Copy, Default)]
pub struct Silent;

impl Progress for Silent {
    fn step(&self, _: &str) {}

    fn total(&self, _: Option<u64>) {}

    fn advance(&self, _: u64) {}

    fn warn(&self, message: &str) {
        tracing::warn!("{message}");
    }
}

impl fmt::Debug for dyn Progress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Progress")
    }
}
