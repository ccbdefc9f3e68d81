//! A timeline's history file. The first four bytes are the timeline and a segment's number.

use pgkeep::postgres::{Lsn, SegmentSize, Timeline, history::TimelineHistory};

use super::input::Input;

pub fn run(bytes: &[u8]) {
    let mut input = Input::new(bytes);
    let (timeline, number) = (Timeline(input.short().into()), input.short());
    let Ok(history) = TimelineHistory::parse(timeline, input.rest()) else { return };
    let path: Vec<_> = history.path().collect();
    assert_eq!(path.len(), history.ancestors.len() + 1);
    assert!(path.is_sorted_by(|a, b| a.0 < b.0 && a.1 <= b.1 && a.2 == Some(b.1)));
    for &(on, begin, end) in &path {
        assert!(history.contains(on));
        assert_eq!((history.begin_of(on), history.end_of(on)), (Some(begin), Some(end)));
        let size = SegmentSize::default();
        for lsn in [begin, end.unwrap_or(begin), Lsn(begin.0.saturating_add(1)), Lsn(u64::MAX)] {
            assert!(history.contains(history.timeline_at(lsn)));
            history.includes(on, lsn);
            history.timeline_of_segment(size.number_at(lsn), size);
        }
    }
    history.timeline_of_segment(number.into(), SegmentSize::default());
    // The server's way to write it.
    let line =
        |(on, _, end): &(Timeline, Lsn, Option<Lsn>)| Some(format!("{on}\t{}\t-\n", (*end)?));
    let text: String = path.iter().filter_map(line).collect();
    let again = TimelineHistory::parse(timeline, text.as_bytes()).expect("it is one again");
    assert!(again.path().eq(path));
}
