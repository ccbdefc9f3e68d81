//! `pg_control`: raw, and with its checksum put right.

use crc_fast::crc32_iscsi;
use pgkeep::postgres::control::ControlFile;

/// Where the checksum of each version's file stands.
fn checksum_at(bytes: &[u8]) -> Option<usize> {
    match u32::from_le_bytes(bytes.get(8..12)?.try_into().ok()?) {
        1300 | 1700 => Some(288),
        1800 => Some(292),
        1902 => Some(304),
        _ => None,
    }
}

pub fn run(bytes: &[u8]) {
    let _ = ControlFile::parse(bytes);
    let mut repaired = bytes.to_vec();
    if let Some(at) = checksum_at(bytes)
        && repaired.len() >= at + 4
    {
        let checksum = crc32_iscsi(&repaired[..at]).to_le_bytes();
        repaired[at..at + 4].copy_from_slice(&checksum);
    }
    if let Ok(control) = ControlFile::parse(&repaired) {
        control.major();
        assert!(control.block_size > 0 && control.segment_blocks > 0 && control.wal_block_size > 0);
        assert!(control.timeline.0 > 0 && control.min_recovery_timeline.is_none_or(|t| t.0 > 0));
        control.segment_size.number_at(control.checkpoint);
        control.segment_size.number_before(control.redo);
    }
}
