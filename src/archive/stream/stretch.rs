//! A stretch of WAL that is received: where it begins, how, and what ends it.

use std::time::Duration;

use tokio::sync::watch;

use crate::{
    postgres::{Lsn, SegmentSize, Timeline},
    repo::wal_parts::Part,
};

/// When parts are made.
#[derive(Debug, Clone)]
pub struct Pace {
    /// How old the first byte of a part may become.
    pub max_lag: Duration,
    /// Whether commits wait for the stream, as far as is known.
    pub synchronous: watch::Receiver<bool>,
}

impl Pace {
    /// Whether some milliseconds make no difference.
    pub fn is_leisurely(&self) -> bool {
        self.max_lag >= Duration::from_millis(50) && !*self.synchronous.borrow()
    }
}

/// Where receiving begins.
#[derive(Debug, Clone)]
pub struct Begin {
    /// The timeline.
    pub timeline: Timeline,
    /// The number of the segment, which is received from its first byte on.
    pub number: u64,
    /// The size of segments.
    pub size: SegmentSize,
    /// Before this position everything is durable in every repository.
    pub durable: Lsn,
    /// The parts of the segment that there are, in the order of the repositories.
    pub parts: Vec<Vec<Part>>,
}

/// What ended a stretch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// It is complete.
    Reached,
    /// The server says that the timeline has ended.
    Timeline,
    /// The server shuts down.
    Server,
    /// The command is to end.
    Stopped,
    /// A repository that was left behind is back, or has to be opened anew.
    Back,
}
