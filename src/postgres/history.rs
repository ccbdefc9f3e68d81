//! Timeline history files: which timelines a timeline came from, and where it left each.
//!
//! A promotion writes `XXXXXXXX.history` for the new timeline (`access/transam/timeline.c`): a
//! line for each ancestor, oldest first, of its id, the position where it was left, and a reason
//! for people, separated by tabs. Empty lines and lines that begin with `#` are allowed. Timeline 1
//! has no file. Ids may be skipped: the ancestors are what the file says, nothing else.

use super::{Lsn, SegmentSize, Timeline};

/// A timeline and its ancestors: one path through the WAL from the cluster's beginning.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TimelineHistory {
    /// The timeline itself, the newest of the path.
    pub timeline: Timeline,
    /// Its ancestors, oldest first, with ascending ids and positions.
    pub ancestors: Vec<Ancestor>,
}

/// A timeline that another one branched off from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ancestor {
    /// Its id.
    pub timeline: Timeline,
    /// The position where the path leaves it: the first byte that belongs to the next one.
    pub end: Lsn,
    /// Why it was left, in the server's words. Bytes that aren't UTF-8 were replaced.
    pub reason: String,
}

/// The bytes aren't the history of that timeline.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NotAHistory {
    /// A line isn't as expected.
    #[error(
        "line {line} of the history of timeline {timeline} is not a timeline id and a position \
         as in \"1<tab>0/3000028\""
    )]
    Line {
        /// Whose history.
        timeline: Timeline,
        /// Which line, from 1.
        line: usize,
    },
    /// The ids or positions of two lines go back.
    #[error("line {line} of the history of timeline {timeline} goes back behind the line before")]
    Order {
        /// Whose history.
        timeline: Timeline,
        /// Which line, from 1.
        line: usize,
    },
    /// An ancestor isn't older.
    #[error("the history of timeline {timeline} names timeline {ancestor}, which is not older")]
    NotOlder {
        /// Whose history.
        timeline: Timeline,
        /// Which ancestor.
        ancestor: Timeline,
    },
}

impl TimelineHistory {
    /// The history of timeline 1, which has no file.
    pub fn first() -> Self {
        TimelineHistory { timeline: Timeline(1), ancestors: Vec::new() }
    }

    /// Reads the history file of `timeline`.
    ///
    /// Accepts what the server accepts (`readTimeLineHistory`): leading blanks, any blanks between
    /// the fields, line ends of either kind; and refuses what would make nonsense of the path:
    /// ids or positions that go back.
    pub fn parse(timeline: Timeline, bytes: &[u8]) -> Result<Self, NotAHistory> {
        let mut ancestors: Vec<Ancestor> = Vec::new();
        for (index, bytes) in bytes.split(|&b| b == b'\n').enumerate() {
            let bytes = bytes.trim_ascii();
            if bytes.is_empty() || bytes.starts_with(b"#") {
                continue;
            }
            let line = index + 1;
            let text = String::from_utf8_lossy(bytes);
            let ancestor = parse_line(&text).ok_or(NotAHistory::Line { timeline, line })?;
            if ancestor.timeline >= timeline {
                return Err(NotAHistory::NotOlder { timeline, ancestor: ancestor.timeline });
            }
            if let Some(before) = ancestors.last() {
                if before.timeline >= ancestor.timeline || before.end > ancestor.end {
                    return Err(NotAHistory::Order { timeline, line });
                }
            }
            ancestors.push(ancestor);
        }
        Ok(TimelineHistory { timeline, ancestors })
    }

    /// The timeline this one branched off from; none for the first.
    pub fn parent(&self) -> Option<Timeline> {
        self.ancestors.last().map(|a| a.timeline)
    }

    /// The timelines of the path, oldest first, with where each begins and ends on it. The oldest
    /// begins at 0/0, the newest has no end.
    pub fn path(&self) -> impl DoubleEndedIterator<Item = (Timeline, Lsn, Option<Lsn>)> + '_ {
        let begins = std::iter::once(Lsn::INVALID).chain(self.ancestors.iter().map(|a| a.end));
        let begins: Vec<Lsn> = begins.collect();
        let entries = self.ancestors.iter().map(|a| (a.timeline, Some(a.end)));
        let entries: Vec<_> = entries.chain([(self.timeline, None)]).collect();
        begins.into_iter().zip(entries).map(|(begin, (timeline, end))| (timeline, begin, end))
    }

    /// Whether `timeline` is this one or an ancestor.
    pub fn contains(&self, timeline: Timeline) -> bool {
        timeline == self.timeline || self.ancestors.iter().any(|a| a.timeline == timeline)
    }

    /// Where the path leaves `timeline`: `None` if it isn't on the path, `Some(None)` if it is
    /// this timeline itself, which has no end.
    pub fn end_of(&self, timeline: Timeline) -> Option<Option<Lsn>> {
        self.path().find(|(t, ..)| *t == timeline).map(|(_, _, end)| end)
    }

    /// Where the path enters `timeline`: 0/0 for the oldest, `None` if it isn't on the path.
    pub fn begin_of(&self, timeline: Timeline) -> Option<Lsn> {
        self.path().find(|(t, ..)| *t == timeline).map(|(_, begin, _)| begin)
    }

    /// The timeline that the byte at `lsn` belongs to (`tliOfPointInHistory`). Where a timeline was
    /// left, the byte belongs to the next.
    pub fn timeline_at(&self, lsn: Lsn) -> Timeline {
        self.ancestors.iter().find(|a| lsn < a.end).map_or(self.timeline, |a| a.timeline)
    }

    /// Whether WAL of `timeline` up to `lsn` is a beginning of this path: the timeline is on it,
    /// and `lsn` isn't past where it was left. What a backup that stopped there needs.
    pub fn includes(&self, timeline: Timeline, lsn: Lsn) -> bool {
        self.end_of(timeline).is_some_and(|end| end.is_none_or(|end| lsn <= end))
    }

    /// The timeline whose file of segment `number` the server reads on this path, if it is there:
    /// the newest that begins in that segment or before (`XLogFileReadAnyTLI`). A segment in which
    /// a timeline was left exists on both, and the child's file is whole.
    pub fn timeline_of_segment(&self, number: u64, size: SegmentSize) -> Timeline {
        let newest = self.path().rev().find(|(_, begin, _)| size.number_at(*begin) <= number);
        newest.map_or(self.timeline, |(timeline, ..)| timeline)
    }
}

/// The fields of one line that isn't empty.
fn parse_line(line: &str) -> Option<Ancestor> {
    let (id, rest) = line.split_once(char::is_whitespace)?;
    let id = id.bytes().all(|b| b.is_ascii_digit()).then(|| id.parse().ok()).flatten()?;
    let rest = rest.trim_start();
    let (lsn, reason) = rest.split_once(char::is_whitespace).unwrap_or((rest, ""));
    let end = lsn.parse().ok()?;
    let timeline = (id != 0).then_some(Timeline(id))?;
    Some(Ancestor { timeline, end, reason: reason.trim().to_owned() })
}
