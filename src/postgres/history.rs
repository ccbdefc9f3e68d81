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
            if let Some(before) = ancestors.last()
                && (before.timeline >= ancestor.timeline || before.end > ancestor.end)
            {
                return Err(NotAHistory::Order { timeline, line });
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

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Three promotions, one timeline skipped, ids past 9.
    const FILE: &str = "1\t0/3000028\tno recovery target specified\n\n\
                        2\t0/5000000\tbefore 2026-11-20 20:12:27.425498+00\n\n\
                        # a comment\n\
                        17\t1/A0000F8\tat restore point \"x\ty\"\n";

    fn history() -> TimelineHistory {
        TimelineHistory::parse(Timeline(0x1A), FILE.as_bytes()).unwrap()
    }

    #[test]
    fn a_file_is_read_as_the_server_writes_it() {
        let history = history();
        let lines: Vec<_> = history.ancestors.iter().map(|a| (a.timeline.0, a.end.0)).collect();
        assert_eq!(lines, [(1, 0x300_0028), (2, 0x500_0000), (17, 0x1_0A00_00F8)]);
        assert_eq!(history.ancestors[2].reason, "at restore point \"x\ty\"");
        assert_eq!(history.parent(), Some(Timeline(17)));
        assert_eq!(TimelineHistory::first().parent(), None);
    }

    #[test]
    fn what_the_server_accepts_is_accepted() {
        let parse = |text: &[u8]| TimelineHistory::parse(Timeline(9), text);
        for text in
            ["1\t0/3000028\tx", "1 0/3000028 x\r\n", "  1\t  0/03000028\n", "#\n1\t0/3000028"]
        {
            let history = parse(text.as_bytes()).unwrap();
            assert_eq!(history.end_of(Timeline(1)), Some(Some(Lsn(0x300_0028))), "{text:?}");
        }
        assert_eq!(parse(b"").unwrap().ancestors, []);
        assert_eq!(parse(b"1\t0/1\t\xff\xfe\n").unwrap().ancestors[0].reason, "\u{fffd}\u{fffd}");
    }

    #[test]
    fn what_makes_no_sense_is_refused_by_line() {
        let error = |text: &str| {
            TimelineHistory::parse(Timeline(9), text.as_bytes()).unwrap_err().to_string()
        };
        for bad in
            ["x", "1", "1\t", "1\t0", "1\t0/", "0\t0/1", "-1\t0/1", "0x1\t0/1", "99999999999\t0/1"]
        {
            let text = error(&format!("\n{bad}\n"));
            assert!(text.starts_with("line 2 of the history of timeline 9 is not"), "{text}");
        }
        assert_eq!(
            error("2\t0/5\tx\n1\t0/6\tx"),
            "line 2 of the history of timeline 9 goes back behind the line before"
        );
        assert!(error("1\t0/5\n1\t0/6").contains("goes back"));
        assert!(error("1\t0/6\n2\t0/5").contains("goes back"));
        for older in [9, 10] {
            assert_eq!(
                error(&format!("{older}\t0/5\tx")),
                format!("the history of timeline 9 names timeline {older}, which is not older")
            );
        }
    }

    #[test]
    fn a_switch_point_belongs_to_the_next_timeline() {
        let history = history();
        for (lsn, timeline) in [
            (0, 1),
            (0x300_0027, 1),
            (0x300_0028, 2),
            (0x4FF_FFFF, 2),
            (0x500_0000, 17),
            (0x1_0A00_00F7, 17),
            (0x1_0A00_00F8, 26),
            (u64::MAX, 26),
        ] {
            assert_eq!(history.timeline_at(Lsn(lsn)), Timeline(timeline), "{lsn:X}");
        }
        assert!(history.includes(Timeline(1), Lsn(0x300_0028)));
        assert!(!history.includes(Timeline(1), Lsn(0x300_0029)));
        assert!(history.includes(Timeline(26), Lsn(u64::MAX)));
        assert!(!history.includes(Timeline(3), Lsn(1)));
        assert_eq!(history.begin_of(Timeline(1)), Some(Lsn(0)));
        assert_eq!(history.begin_of(Timeline(26)), Some(Lsn(0x1_0A00_00F8)));
        assert_eq!(history.begin_of(Timeline(3)), None);
        assert_eq!(history.end_of(Timeline(26)), Some(None));
        assert_eq!(history.end_of(Timeline(3)), None);
    }

    #[test]
    fn the_segment_of_a_switch_is_read_from_the_child() {
        let history = history();
        let size = SegmentSize::DEFAULT;
        for (number, timeline) in
            [(0, 1), (2, 1), (3, 2), (4, 2), (5, 17), (0x109, 17), (0x10A, 26), (0x10B, 26)]
        {
            let found = history.timeline_of_segment(number, size);
            assert_eq!(found, Timeline(timeline), "segment {number:X}");
        }
        // Twice in one segment: the newest has it all.
        let twice = TimelineHistory::parse(Timeline(3), b"1\t0/3000028\n2\t0/3000100\n").unwrap();
        assert_eq!(twice.timeline_of_segment(3, size), Timeline(3));
        assert_eq!(TimelineHistory::first().timeline_of_segment(0, size), Timeline(1));
    }

    proptest! {
        #[test]
        fn any_bytes_are_taken(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = TimelineHistory::parse(Timeline(7), &bytes);
        }

        #[test]
        fn near_lines_are_taken(text in "[0-9]{0,11}[ \t\r\n#/A-Fx]{0,3}[0-9A-F]{0,9}/?[0-9A-F]{0,9}[\t\n]?.{0,9}") {
            let _ = TimelineHistory::parse(Timeline(7), text.as_bytes());
        }

        #[test]
        fn questions_about_a_path_agree(
            steps in prop::collection::vec((1..5_u32, 0..(40_u64 << 20)), 0..6),
            lsn in 0..(300_u64 << 20),
            mib in prop::sample::select(vec![1_u64, 16, 64]),
        ) {
            let (mut text, mut id, mut end) = (String::new(), 0x0E, 0);
            for (up, length) in &steps {
                id += up;
                end += length;
                text += &format!("{id}\t{}\tsome reason\n\n", Lsn(end));
            }
            let history = TimelineHistory::parse(Timeline(id + 1), text.as_bytes()).unwrap();
            prop_assert_eq!(history.ancestors.len(), steps.len());
            let path: Vec<_> = history.path().collect();
            prop_assert_eq!(path.len(), steps.len() + 1);
            for pair in path.windows(2) {
                prop_assert_eq!(pair[0].2, Some(pair[1].1));
            }
            let lsn = Lsn(lsn);
            let at = history.timeline_at(lsn);
            prop_assert!(history.contains(at) && history.includes(at, lsn));
            prop_assert!(history.begin_of(at).unwrap() <= lsn);
            prop_assert!(history.end_of(at).unwrap().is_none_or(|end| lsn < end));
            // Its segment's file is of the same timeline or of one that begins later in it.
            let size = SegmentSize::new(mib << 20).unwrap();
            let number = size.number_at(lsn);
            let of_file = history.timeline_of_segment(number, size);
            prop_assert!(of_file >= at);
            let last = Lsn(size.start_of(number + 1).0 - 1);
            prop_assert_eq!(of_file, history.timeline_at(last));
        }
    }
}
