//! What the records of the resource manager XLOG say (`catalog/pg_control.h`,
//! `access/xlog_internal.h`), as far as it matters for planning a recovery.

use chrono::{DateTime, Utc};

use super::{
    header::{i64_at, u32_at, u64_at},
    time::{from_timestamp, from_unix},
};
use crate::postgres::{Lsn, Timeline};

const CHECKPOINT_SHUTDOWN: u8 = 0x00;
const CHECKPOINT_ONLINE: u8 = 0x10;
const SWITCH: u8 = 0x40;
const BACKUP_END: u8 = 0x50;
const RESTORE_POINT: u8 = 0x70;
const END_OF_RECOVERY: u8 = 0x90;

/// How much of a record's content is looked at. The longest that matters is a checkpoint.
pub(super) const LOOKED_AT: usize = 256;

/// What a record says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Xlog {
    RestorePoint { time: DateTime<Utc>, name: String },
    BackupEnd { backup_start: Lsn },
    TimelineChange { time: DateTime<Utc>, timeline: Timeline, previous: Timeline },
}

/// Whether the record fills the rest of its segment.
pub(super) fn is_switch(info: u8) -> bool {
    info & 0xF0 == SWITCH
}

/// Whether the record's content is wanted by [`decode`].
pub(super) fn matters(info: u8) -> bool {
    matches!(
        info & 0xF0,
        CHECKPOINT_SHUTDOWN | CHECKPOINT_ONLINE | BACKUP_END | RESTORE_POINT | END_OF_RECOVERY
    )
}

/// Reads the beginning of a record's content, [`LOOKED_AT`] bytes of it if there are so many.
/// `None` when it says nothing that matters.
pub(super) fn decode(info: u8, content: &[u8]) -> Option<Xlog> {
    let data = main_data(content)?;
    match info & 0xF0 {
        BACKUP_END => Some(Xlog::BackupEnd { backup_start: Lsn(u64_at(data, 0)?) }),
        RESTORE_POINT => {
            // The name is in the encoding of whichever database it was made from.
            let name = data.get(8..72)?;
            let length = name.iter().position(|&b| b == 0).unwrap_or(name.len());
            Some(Xlog::RestorePoint {
                time: from_timestamp(i64_at(data, 0)?),
                name: String::from_utf8_lossy(&name[..length]).into_owned(),
            })
        }
        END_OF_RECOVERY => Some(Xlog::TimelineChange {
            time: from_timestamp(i64_at(data, 0)?),
            timeline: Timeline(u32_at(data, 8)?),
            previous: Timeline(u32_at(data, 12)?),
        }),
        // A recovery may also end in a checkpoint instead: it names two timelines then.
        CHECKPOINT_SHUTDOWN | CHECKPOINT_ONLINE => {
            let (timeline, previous) = (Timeline(u32_at(data, 8)?), Timeline(u32_at(data, 12)?));
            let time = from_unix(i64_at(data, 64)?);
            (timeline != previous).then_some(Xlog::TimelineChange { time, timeline, previous })
        }
        _ => None,
    }
}

/// The main data of a record without block references: what comes after its fragment headers.
pub(super) fn main_data(content: &[u8]) -> Option<&[u8]> {
    use super::record::fragment;
    let mut rest = content;
    loop {
        let (id, after) = rest.split_first()?;
        rest = match *id {
            fragment::SHORT_DATA => return after.get(1..),
            fragment::LONG_DATA => return after.get(4..),
            fragment::ORIGIN => after.get(2..)?,
            fragment::TOP_LEVEL_XID => after.get(4..)?,
            _ => return None,
        };
    }
}
