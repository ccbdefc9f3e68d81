//! Random records, pieces, damage and bytes.

use std::io::Cursor;

use proptest::prelude::*;

use super::{
    commit, mib, scan, scan_alone,
    writer::{Writer, Written},
    written,
};
use crate::postgres::{Lsn, SegmentName, Timeline, wal::*};

/// How a record is to be: none is a switch.
fn records() -> impl Strategy<Value = Vec<Option<(u8, usize)>>> {
    let length = prop_oneof![
        6 => 0..300_usize,
        3 => 8000..8400_usize,
        2 => 0..70_000_usize,
        1 => 900_000..1_100_000_usize,
        1 => Just(2_200_000_usize),
    ];
    let record = prop_oneof![
        20 => (prop_oneof![Just(0x30_u8), Just(10), Just(1), Just(255)], length).prop_map(Some),
        1 => Just(None),
    ];
    prop::collection::vec(record, 1..40)
}

fn write(records: &[Option<(u8, usize)>]) -> Writer {
    let mut wal = Writer::new(mib(1), 0xFFE);
    for (i, record) in records.iter().enumerate() {
        match record {
            Some((1, _)) => wal.record(1, 0, i as u32, &commit(i as u8)),
            Some((manager, length)) => {
                wal.record(*manager, 0x30, i as u32, &vec![i as u8; *length])
            }
            None => wal.switch(),
        };
    }
    wal
}

fn is_switch(record: &Written) -> bool {
    record.length == 24 && record.end.0.is_multiple_of(1 << 20)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn what_was_written_is_read_whatever_the_pieces(
        how in records(),
        pieces in prop::collection::vec(1..100_000_usize, 1..20),
    ) {
        let mut wal = write(&how);
        let segments = wal.segments();
        let mut scanner = SegmentScanner::new(segments[0].0, mib(1), None).report_records();
        let (mut read, mut summaries) = (Vec::new(), Vec::new());
        let mut pieces = pieces.iter().cycle();
        for (i, (name, bytes)) in segments.iter().enumerate() {
            if i > 0 {
                summaries.push(scanner.next_segment(*name));
            }
            let mut bytes = &bytes[..];
            while !bytes.is_empty() {
                let n = bytes.len().min(*pieces.next().unwrap());
                scanner.feed(&bytes[..n], &mut |event| read.extend(written(event)));
                bytes = &bytes[n..];
            }
        }
        summaries.push(scanner.finish());
        prop_assert_eq!(&read, &wal.records);

        // Each segment alone tells the same, if its head can be found.
        for (i, summary) in summaries.iter().enumerate() {
            prop_assert!(summary.whole || i + 1 == summaries.len());
            let alone = scan_alone(&segments, i, mib(1));
            let ends: Vec<&Written> = wal.records.iter().filter(|r| {
                r.end > summary.start && r.end.0 <= summary.start.0 + (1 << 20)
            }).collect();
            prop_assert_eq!(summary.end, ends.last().map_or(summary.start, |r| r.end));
            if alone.head_known {
                prop_assert_eq!(&alone, summary);
            } else {
                // Only inside a record larger than a segment.
                let start = summary.start.0;
                let larger = |r: &Written| r.start.0 < start - (1 << 20) && r.end.0 > start;
                prop_assert!(wal.records.iter().any(larger));
            }
        }
    }

    #[test]
    fn damage_ends_the_wal_and_never_makes_any(
        how in records(),
        at in any::<prop::sample::Index>(),
        bit in 0..8_u8,
    ) {
        let mut wal = write(&how);
        let mut segments = wal.segments();
        let length = segments.len() << 20;
        let at = at.index(length);
        segments[at >> 20].1[at & 0xF_FFFF] ^= 1 << bit;
        let (read, _) = scan(&segments, mib(1));
        // It ends the segment; the next one begins anew.
        prop_assert!(read.iter().all(|r| wal.records.contains(r)));
        prop_assert!(read.is_sorted_by_key(|r| r.start));
        let hit = Lsn((0xFFE << 20) + at as u64);
        let in_page = hit.0 % 8192;
        let header = if hit.0 % (1 << 20) < 40 { 40 } else { 24 };
        // Headers of pages and padding have bits without a meaning; records don't.
        let is_hit = |r: &Written| {
            let padding = u64::from(r.length.next_multiple_of(8) - r.length);
            let end = if is_switch(r) { Lsn(r.start.0 + 24) } else { Lsn(r.end.0 - padding) };
            in_page >= header && r.start <= hit && hit < end
        };
        prop_assert!(!read.iter().any(is_hit));
    }

    #[test]
    fn what_is_cut_off_is_missing_and_nothing_else(
        how in records(),
        at in any::<prop::sample::Index>(),
    ) {
        let mut wal = write(&how);
        let mut segments = wal.segments();
        let at = at.index(segments.len() << 20);
        segments.truncate((at >> 20) + 1);
        segments[at >> 20].1.truncate(at & 0xF_FFFF);
        let (read, summaries) = scan(&segments, mib(1));
        let end = Lsn((0xFFE << 20) + at as u64);
        // The padding after a record needn't be there, nor the rest after a switch.
        let there = |r: &&Written| {
            r.start.0 + u64::from(r.length) <= end.0 && (r.length == 24 || r.end.0 <= end.0 + 7)
        };
        let whole = wal.records.iter().take_while(there).count();
        prop_assert!(read.len() <= whole && read.len() + 1 >= whole);
        let switched = read.last().is_some_and(|r| r.end.0 >= end.0 && r.length == 24);
        prop_assert_eq!(summaries.last().unwrap().whole, switched);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn any_bytes_are_taken(
        bytes in prop::collection::vec(any::<u8>(), 0..30_000),
        with_header in any::<bool>(),
        name in any::<[u32; 3]>(),
    ) {
        let mut bytes = bytes;
        let mut name: SegmentName =
            format!("{:08X}{:08X}{:08X}", name[0].max(1), name[1], name[2]).parse().unwrap();
        if with_header {
            name = mib(1).name(Timeline(0x1F), 3);
            let header = Writer::new(mib(1), 3).segments_of_one_record();
            let n = bytes.len().min(64);
            bytes[..n].copy_from_slice(&header[..n]);
        }
        let _ = SegmentHeader::parse(&bytes);
        let mut scanner = SegmentScanner::new(name, mib(1), None).report_records();
        for piece in bytes.chunks(997) {
            scanner.feed(piece, &mut |_| {});
        }
        let _ = scanner.trailing();
        let summary = scanner.next_segment(name);
        prop_assert!(!summary.whole);
        let _ = scanner.finish();
        let _ = trailing_head(&mut Cursor::new(&bytes), mib(1)).unwrap();
        // As the last bytes of a segment.
        if with_header {
            let mut file = bytes[..bytes.len().min(64)].to_vec();
            file.resize((1 << 20) - bytes.len(), 0);
            file.extend(&bytes);
            let _ = trailing_head(&mut Cursor::new(&file), mib(1)).unwrap();
        }
    }

    #[test]
    fn a_valid_record_may_have_any_content(
        manager in 0..2_u8,
        info in any::<u8>(),
        content in prop::collection::vec(any::<u8>(), 0..400),
        magic in prop::sample::select(vec![0xD106_u16, 0xD10D, 0xD110, 0xD113, 0xD116, 0xD118]),
    ) {
        let mut wal = Writer::new(mib(1), 3);
        wal.magic = magic;
        let record = wal.record(manager, info, 7, &content);
        let (name, bytes) = wal.segments().remove(0);
        let mut scanner = SegmentScanner::new(name, mib(1), None);
        scanner.feed(&bytes, &mut |_| {});
        let summary = scanner.finish();
        prop_assert!(summary.end >= record.end);
        prop_assert!(serde_json::to_vec(&summary).is_ok());
    }
}

impl Writer {
    fn segments_of_one_record(&mut self) -> Vec<u8> {
        self.record(1, 0, 7, &commit(1));
        self.bytes.clone()
    }
}
