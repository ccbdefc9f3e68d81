//! WAL written by the tests is read again: whole, in pieces, damaged, and at random.

mod contents;
mod random;
mod writer;

use std::io::Cursor;

use super::*;
use crate::postgres::{Lsn, SegmentName, SegmentSize, Timeline};
use writer::{BLOCK, Writer, Written, main_data};

fn mib(n: u64) -> SegmentSize {
    SegmentSize::new(n << 20).unwrap()
}

fn written(event: &Event) -> Option<Written> {
    match *event {
        Event::Record { start, end, resource_manager, xid, length } => {
            Some(Written { start, end, resource_manager, xid, length })
        }
        _ => None,
    }
}

/// All segments in order through one scanner.
fn scan(
    segments: &[(SegmentName, Vec<u8>)],
    size: SegmentSize,
) -> (Vec<Written>, Vec<SegmentSummary>) {
    let (mut records, mut summaries) = (Vec::new(), Vec::new());
    let mut scanner = SegmentScanner::new(segments[0].0, size, None).report_records();
    for (i, (name, bytes)) in segments.iter().enumerate() {
        if i > 0 {
            summaries.push(scanner.next_segment(*name));
        }
        scanner.feed(bytes, &mut |event| records.extend(written(event)));
    }
    summaries.push(scanner.finish());
    (records, summaries)
}

/// One segment, with the head from the one before.
fn scan_alone(segments: &[(SegmentName, Vec<u8>)], i: usize, size: SegmentSize) -> SegmentSummary {
    let head = match i.checked_sub(1) {
        Some(before) => trailing_head(&mut Cursor::new(&segments[before].1), size).unwrap(),
        None => Trailing::Nothing,
    };
    let mut scanner = SegmentScanner::new(segments[i].0, size, head.into_head());
    scanner.feed(&segments[i].1, &mut |_| {});
    scanner.finish()
}

fn commit(xid: u8) -> Vec<u8> {
    main_data(&(i64::from(xid) * 1_000_000).to_le_bytes())
}

#[test]
fn a_segment_tells_where_its_wal_ends() {
    let mut wal = Writer::new(mib(1), 3);
    wal.record(10, 0, 700, &[7; 100]);
    let last = wal.record(1, 0, 700, &commit(1));
    let segments = wal.segments();
    let (records, summaries) = scan(&segments, mib(1));
    assert_eq!(records, wal.records);
    let summary = &summaries[0];
    assert_eq!((summary.start, summary.end), (Lsn(3 << 20), last.end));
    assert!(summary.parsed && summary.head_known && !summary.whole);
    assert_eq!((summary.timeline, summary.magic), (Timeline(0x1F), 0xD110));
    let transactions = summary.transactions.as_ref().unwrap();
    assert_eq!((transactions.count, transactions.last_commit), (1, last.end));
}

#[test]
fn a_switch_makes_a_segment_whole() {
    let mut wal = Writer::new(mib(1), 3);
    wal.record(10, 0, 700, &[7; 100]);
    let switch = wal.switch();
    let after = wal.record(10, 0, 701, &[7; 100]);
    assert_eq!(after.start, Lsn((4 << 20) + 40));
    let segments = wal.segments();
    let (records, summaries) = scan(&segments, mib(1));
    assert_eq!(records, wal.records);
    assert!(summaries[0].whole && !summaries[1].whole);
    assert_eq!(summaries[0].end, switch.end);
    assert_eq!(switch.end, Lsn(4 << 20));
    let trailing = trailing_head(&mut Cursor::new(&segments[0].1), mib(1)).unwrap();
    assert!(matches!(trailing, Trailing::Nothing));
}

#[test]
fn a_record_belongs_to_the_segment_it_ends_in() {
    let mut wal = Writer::new(mib(1), 3);
    wal.record(10, 0, 700, &vec![7; 1 << 20]);
    wal.record(1, 0, 700, &commit(1));
    let segments = wal.segments();
    let (_, summaries) = scan(&segments, mib(1));
    assert!(summaries[0].whole);
    assert_eq!(summaries[0].end, summaries[0].start);
    assert_eq!(scan_alone(&segments, 1, mib(1)), summaries[1]);

    let mut alone = SegmentScanner::new(segments[1].0, mib(1), None);
    alone.feed(&segments[1].1, &mut |_| {});
    let alone = alone.finish();
    assert!(!alone.head_known);
    assert_eq!(alone, SegmentSummary { head_known: false, ..summaries[1].clone() });
}

#[test]
fn a_new_tablespace_is_told_also_where_its_record_straddles_two_segments() {
    let mut content = 16_401u32.to_le_bytes().to_vec();
    content.extend(b"/mnt/new\0");
    for before in [8, 24, 32] {
        let mut wal = Writer::new(mib(1), 3);
        let pages = (1 << 20) / BLOCK as usize;
        let room = (1 << 20) - (pages - 1) * 24 - 40 - before;
        wal.record(10, 0, 700, &vec![7; room - 24]);
        let written = wal.record(5, 0, 700, &main_data(&content));
        let segments = wal.segments();
        let trailing = trailing_head(&mut Cursor::new(&segments[0].1), mib(1)).unwrap();
        let mut scanner = SegmentScanner::new(segments[1].0, mib(1), trailing.into_head());
        let mut told = Vec::new();
        scanner.feed(&segments[1].1, &mut |event| told.push(event.clone()));
        let path = "/mnt/new".to_owned();
        let Written { start, end, .. } = written;
        assert_eq!(told, [Event::NewTablespace { start, end, oid: 16_401, path }]);
        assert!(!scanner.finish().makes_no_tablespace());
        let (_, summaries) = scan(&segments, mib(1));
        let makes_none = summaries.iter().map(SegmentSummary::makes_no_tablespace);
        assert_eq!(makes_none.collect::<Vec<_>>(), [true, false]);
        // Without its head nobody can tell what the record is.
        assert!(!scan_alone(&segments, 1, mib(1)).makes_no_tablespace());
    }
}

#[test]
fn a_commit_that_straddles_is_found_with_its_head_only() {
    // The record's header ends with the segment, or lies across its end.
    for before in [24, 16, 8, 32] {
        let mut wal = Writer::new(mib(1), 3);
        let pages = (1 << 20) / BLOCK as usize;
        let room = (1 << 20) - (pages - 1) * 24 - 40 - before;
        wal.record(10, 0, 700, &vec![7; room - 24]);
        let commit = wal.record(1, 0, 0xABCD, &commit(1));
        assert_eq!(commit.start, Lsn((4 << 20) - before as u64));
        let segments = wal.segments();
        let (_, summaries) = scan(&segments, mib(1));
        assert!(summaries[0].transactions.is_none());
        assert_eq!(summaries[1].transactions.as_ref().unwrap().last_xid, 0xABCD);
        assert_eq!(scan_alone(&segments, 1, mib(1)), summaries[1]);
        let trailing = trailing_head(&mut Cursor::new(&segments[0].1), mib(1)).unwrap();
        let head = trailing.into_head().unwrap();
        assert_eq!((head.start(), head.continues_at()), (commit.start, Lsn(4 << 20)));
    }
}

#[test]
fn within_a_record_larger_than_a_segment_the_head_isnt_known() {
    let mut wal = Writer::new(mib(1), 3);
    let big = wal.record(10, 0, 700, &vec![7; 5 << 19]);
    let commit = wal.record(1, 0, 700, &commit(1));
    let segments = wal.segments();
    assert_eq!(segments.len(), 3);
    let (records, summaries) = scan(&segments, mib(1));
    assert_eq!(records, wal.records);
    assert!(summaries.iter().all(|s| s.head_known));
    assert!(summaries[0].whole && summaries[1].whole);
    let middle = trailing_head(&mut Cursor::new(&segments[1].1), mib(1)).unwrap();
    assert!(matches!(middle, Trailing::Unknown));
    let first = trailing_head(&mut Cursor::new(&segments[0].1), mib(1)).unwrap();
    assert_eq!(first.into_head().unwrap().start(), big.start);
    let last = scan_alone(&segments, 2, mib(1));
    assert!(!last.head_known);
    assert_eq!(last.end, commit.end);
}

#[test]
fn a_record_given_up_is_no_record_and_no_end() {
    for (room, pages) in [(8, 0), (16, 0), (24, 0), (4000, 0), (8, 1), (4000, 3)] {
        let mut wal = Writer::new(mib(1), 3);
        wal.record(10, 0, 700, &vec![7; BLOCK as usize - 40 - 24 - room]);
        wal.torn(&[8; 30_000], room + pages * (BLOCK as usize - 24));
        wal.record(0, 0xD0, 0, &main_data(&[0; 16]));
        wal.record(1, 0, 701, &commit(1));
        wal.switch();
        let segments = wal.segments();
        let (records, summaries) = scan(&segments, mib(1));
        assert_eq!(records, wal.records, "{room} bytes and {pages} pages");
        assert!(summaries[0].whole);
    }
}

#[test]
fn a_record_given_up_across_segments_needs_no_head() {
    let mut wal = Writer::new(mib(1), 3);
    wal.record(10, 0, 700, &vec![7; (1 << 20) - 20_000]);
    let reaches_the_end = wal.size.bytes() as usize - wal.bytes.len();
    let pages = reaches_the_end / BLOCK as usize;
    wal.torn(&[8; 40_000], reaches_the_end - pages * 24);
    assert_eq!(wal.position(), Lsn(4 << 20));
    wal.record(1, 0, 701, &commit(1));
    let segments = wal.segments();
    let (records, summaries) = scan(&segments, mib(1));
    assert_eq!(records, wal.records);
    assert!(summaries[0].whole && summaries[1].head_known);
    assert_eq!(scan_alone(&segments, 1, mib(1)), summaries[1]);
    let mut alone = SegmentScanner::new(segments[1].0, mib(1), None);
    alone.feed(&segments[1].1, &mut |_| {});
    assert_eq!(alone.finish(), summaries[1]);
}

#[test]
fn a_head_of_another_segment_is_ignored() {
    let mut wal = Writer::new(mib(1), 3);
    wal.record(10, 0, 700, &vec![7; 5 << 18]);
    wal.record(10, 0, 700, &vec![7; 1 << 20]);
    wal.record(1, 0, 700, &commit(1));
    let segments = wal.segments();
    let (_, summaries) = scan(&segments, mib(1));
    let head =
        |i: usize| trailing_head(&mut Cursor::new(&segments[i].1), mib(1)).unwrap().into_head();
    let mut scanner = SegmentScanner::new(segments[2].0, mib(1), head(0));
    scanner.feed(&segments[2].1, &mut |_| {});
    assert!(!scanner.finish().head_known);

    // One at the same place, of a record of another length: from another timeline's file.
    let mut other = Writer::new(mib(1), 4);
    other.record(10, 0, 9, &vec![7; 1 << 20]);
    let file = other.segments().remove(0).1;
    let head = trailing_head(&mut Cursor::new(&file), mib(1)).unwrap().into_head();
    assert!(head.is_some());
    let mut scanner = SegmentScanner::new(segments[2].0, mib(1), head);
    scanner.feed(&segments[2].1, &mut |_| {});
    let summary = scanner.finish();
    assert_eq!(summary, SegmentSummary { head_known: false, ..summaries[2].clone() });
}

#[test]
fn pages_of_an_earlier_use_of_the_file_are_the_end() {
    let mut old = Writer::new(mib(1), 1);
    old.record(10, 0, 1, &vec![7; (1 << 20) - 10_000]);
    let old = old.segments().remove(0).1;
    let mut wal = Writer::new(mib(1), 3);
    let last = wal.record(10, 0, 700, &[7; 20_000]);
    let page = wal.bytes.len().next_multiple_of(BLOCK as usize);
    wal.bytes.resize(page, 0);
    wal.bytes.extend(&old[page..]);
    let segments = wal.segments();
    let (records, summaries) = scan(&segments, mib(1));
    assert_eq!(records, wal.records);
    assert!(!summaries[0].whole);
    assert_eq!(summaries[0].end, last.end);
    let trailing = trailing_head(&mut Cursor::new(&segments[0].1), mib(1)).unwrap();
    assert!(matches!(trailing, Trailing::Unknown));
}

#[test]
fn timelines_of_pages_rise_up_to_the_names() {
    // A new timeline's first segment begins as its parent's.
    let mut wal = Writer::new(mib(1), 3);
    wal.record(10, 0, 700, &[7; 10_000]);
    wal.timeline = Timeline(0x20);
    wal.record(10, 0, 700, &[7; 10_000]);
    let (records, summaries) = scan(&wal.segments(), mib(1));
    assert_eq!(records, wal.records);
    assert_eq!(summaries[0].timeline, Timeline(0x20));

    wal.timeline = Timeline(0x1F);
    let name = wal.size.name(wal.timeline, 3);
    let (records, _) = scan(&[(name, wal.bytes.clone())], mib(1));
    assert_eq!(records.len(), 1, "a page of a later timeline isn't part of this file");
}

#[test]
fn an_unknown_version_is_no_failure() {
    let mut wal = Writer::new(mib(1), 3);
    wal.magic = 0xD1FF;
    wal.record(10, 0, 700, &[7; 100]);
    let segments = wal.segments();
    let (records, summaries) = scan(&segments, mib(1));
    assert!(records.is_empty());
    assert!(!summaries[0].parsed && !summaries[0].whole);
    assert_eq!(summaries[0].magic, 0xD1FF);
    let header = SegmentHeader::parse(&segments[0].1).unwrap();
    assert_eq!((header.major(), header.system_identifier), (None, writer::SYSTEM));
}

#[test]
fn a_file_under_another_name_or_of_another_size_is_not_that_segment() {
    let mut wal = Writer::new(mib(1), 3);
    wal.record(10, 0, 700, &[7; 100]);
    let bytes = wal.segments().remove(0).1;
    for name in ["0000001F0000000000000004", "0000001F0000000100000003", "0000001F00000000FFFFFFFF"]
    {
        let (records, summaries) = scan(&[(name.parse().unwrap(), bytes.clone())], mib(1));
        assert!(records.is_empty(), "{name}");
        assert!(!summaries[0].whole && !summaries[0].parsed);
    }
    let name = mib(16).name(Timeline(0x1F), 0);
    let (records, _) = scan(&[(name, bytes)], mib(16));
    assert!(records.is_empty());
}

#[test]
fn a_summary_is_small_in_json() {
    let mut wal = Writer::new(mib(1), 3);
    wal.record(1, 0, 700, &commit(1));
    let mut point = 60_000_000_i64.to_le_bytes().to_vec();
    point.extend(b"before the change");
    point.resize(72, 0);
    wal.record(0, 0x70, 0, &main_data(&point));
    wal.switch();
    let (_, mut summaries) = scan(&wal.segments(), mib(1));
    let json = serde_json::to_string(&summaries[0]).unwrap();
    assert_eq!(
        json,
        "{\"start\":\"0/300000\",\"end\":\"0/400000\",\"whole\":true,\"head-known\":true,\
         \"timeline\":31,\"magic\":53520,\"parsed\":true,\"transactions\":{\
         \"min-time\":\"2000-01-01T00:00:01Z\",\"max-time\":\"2000-01-01T00:00:01Z\",\
         \"last-time\":\"2000-01-01T00:00:01Z\",\"last-commit\":\"0/300050\",\"min-xid\":700,\
         \"max-xid\":700,\"last-xid\":700,\"count\":1},\"restore-points\":[\
         {\"name\":\"before the change\",\"time\":\"2000-01-01T00:01:00Z\",\"lsn\":\"0/3000B8\"}],\
         \"makes-tablespace\":false}"
    );
    let again: SegmentSummary = serde_json::from_str(&json).unwrap();
    assert_eq!(again, summaries[0]);
    let summary = summaries.remove(0);
    let time = |text: &str| text.parse().unwrap();
    assert!(summary.passes_time(time("2000-01-01T00:00:00.999999Z"), false));
    assert!(!summary.passes_time(time("2000-01-01T00:00:01Z"), false));
    assert!(summary.passes_time(time("2000-01-01T00:00:01Z"), true));
    assert!(summary.may_hold_xid(700) && !summary.may_hold_xid(699));
    assert!(summary.restore_point("before the change").is_some());
    assert!(summary.restore_point("before").is_none());
}
