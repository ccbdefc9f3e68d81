//! What records say, in each version's layout.

use chrono::{DateTime, Utc};

use super::{main_data, mib, writer::Writer};
use crate::postgres::{Lsn, Timeline, wal::*};

/// The events of one record, fed in pieces of `piece` bytes.
fn events(magic: u16, resource_manager: u8, info: u8, content: &[u8], piece: usize) -> Vec<Event> {
    let mut wal = Writer::new(mib(1), 3);
    wal.magic = magic;
    wal.record(resource_manager, info, 77, content);
    let (name, bytes) = wal.segments().remove(0);
    let mut scanner = SegmentScanner::new(name, mib(1), None);
    let mut events = Vec::new();
    for piece in bytes[..bytes.len().min(200_000)].chunks(piece) {
        scanner.feed(piece, &mut |event| events.push(event.clone()));
    }
    events
}

fn time(micros: i64) -> DateTime<Utc> {
    "2000-01-01T00:00:00Z".parse::<DateTime<Utc>>().unwrap()
        + chrono::TimeDelta::microseconds(micros)
}

/// A commit or abort of a prepared transaction with every list there is.
fn prepared(major: u32, lists: u32) -> Vec<u8> {
    let mut data = 123_456_789_i64.to_le_bytes().to_vec();
    let statistics = if major >= 15 { 1 << 8 } else { 0 };
    let flags: u32 = 0x3F | 1 << 7 | statistics;
    data.extend(flags.to_le_bytes());
    data.extend([0xEE; 8]);
    let mut list = |width: usize| {
        data.extend(lists.to_le_bytes());
        data.extend(vec![0xEE; width * lists as usize]);
    };
    list(4);
    list(12);
    if major >= 15 {
        list(if major >= 18 { 16 } else { 12 });
    }
    list(16);
    data.extend(0xCAFE_u32.to_le_bytes());
    data.extend(b"gid\0");
    data.extend([0xEE; 16]);
    main_data(&data)
}

const MAGICS: [(u32, u16); 6] =
    [(13, 0xD106), (14, 0xD10D), (15, 0xD110), (16, 0xD113), (17, 0xD116), (18, 0xD118)];

#[test]
fn a_prepared_transactions_id_comes_after_the_lists() {
    for (major, magic) in MAGICS {
        for (info, committed) in [(0x30, true), (0x40, false)] {
            for lists in [0, 1, 3, 2000] {
                let content = prepared(major, lists);
                let pieces: &[usize] = if lists < 10 { &[1, 3, 1 << 20] } else { &[5000, 1 << 20] };
                for &piece in pieces {
                    let events = events(magic, 1, 0x80 | info, &content, piece);
                    assert!(
                        matches!(events[..], [Event::Transaction { xid: 0xCAFE, prepared: true,
                            committed: c, time: t, .. }] if c == committed && t == time(123_456_789)),
                        "{major}: {events:?}"
                    );
                }
            }
        }
    }
}

#[test]
fn commits_and_aborts_have_their_id_in_the_header() {
    let bare = main_data(&5_i64.to_le_bytes());
    for (info, committed, content) in
        [(0x00, true, &bare), (0x20, false, &bare), (0x80, true, &prepared(15, 1))]
    {
        let events = events(0xD110, 1, info, content, 7);
        assert!(
            matches!(events[..], [Event::Transaction { xid: 77, prepared: false, committed: c, .. }]
                if c == committed),
            "{events:?}"
        );
    }
}

#[test]
fn an_origin_or_a_top_level_id_before_the_data_changes_nothing() {
    let before = [&[253, 1, 2, 252, 1, 2, 3, 4][..], &main_data(&5_i64.to_le_bytes())].concat();
    let events = events(0xD118, 1, 0, &before, 1);
    assert!(matches!(events[..], [Event::Transaction { time: t, .. }] if t == time(5)));
}

#[test]
fn what_doesnt_end_a_transaction_is_no_event() {
    for info in [0x10, 0x50, 0x60, 0x70] {
        assert_eq!(events(0xD110, 1, info, &main_data(&[1; 40]), 9), []);
    }
    // A commit without content, and lists longer than the record: the checksum is right, and yet.
    assert_eq!(events(0xD110, 1, 0, &[], 9), []);
    let mut cut = prepared(15, 3);
    cut.truncate(40);
    assert_eq!(events(0xD110, 1, 0xB0, &cut, 9), []);
}

#[test]
fn restore_points_backup_ends_and_timelines_are_told() {
    let mut point = 5_i64.to_le_bytes().to_vec();
    point.extend([b'n'; 64]);
    let told = events(0xD110, 0, 0x70, &main_data(&point), 11);
    let name = "n".repeat(64);
    assert!(matches!(&told[..], [Event::RestorePoint { name: n, time: t, .. }]
        if *n == name && *t == time(5)));

    let told = events(0xD110, 0, 0x50, &main_data(&0x1_0000_0028_u64.to_le_bytes()), 11);
    assert!(matches!(told[..], [Event::BackupEnd { backup_start: Lsn(0x1_0000_0028), .. }]));

    for tail in [0, 4] {
        let mut end = 5_i64.to_le_bytes().to_vec();
        end.extend([0x1F, 0, 0, 0, 0x1E, 0, 0, 0]);
        end.extend(vec![2; tail]);
        let told = events(0xD116, 0, 0x90, &main_data(&end), 11);
        assert!(matches!(told[..], [Event::EndOfRecovery { timeline: Timeline(0x1F),
            previous: Timeline(0x1E), time: t, .. }] if t == time(5)));
    }
}

#[test]
fn only_a_checkpoint_that_changes_the_timeline_is_told() {
    let checkpoint = |timeline: u8, previous: u8| {
        let mut data = vec![0; 88];
        data[8] = timeline;
        data[12] = previous;
        data[64..72].copy_from_slice(&946_684_801_i64.to_le_bytes());
        main_data(&data)
    };
    assert_eq!(events(0xD110, 0, 0x10, &checkpoint(2, 2), 11), []);
    let told = events(0xD110, 0, 0x00, &checkpoint(3, 2), 11);
    assert!(matches!(told[..], [Event::EndOfRecovery { timeline: Timeline(3),
        previous: Timeline(2), time: t, .. }] if t == time(1_000_000)));
}

#[test]
fn lists_of_a_summary_are_bounded() {
    let mut wal = Writer::new(mib(1), 3);
    for _ in 0..5000 {
        wal.record(0, 0x70, 0, &main_data(&[b'p'; 72]));
    }
    let (name, bytes) = wal.segments().remove(0);
    let mut scanner = SegmentScanner::new(name, mib(1), None);
    scanner.feed(&bytes, &mut |_| {});
    let summary = scanner.finish();
    assert!(summary.lists_cut);
    assert_eq!(summary.restore_points.len(), 4096);
}
