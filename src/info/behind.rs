//! How far a server is ahead of what a repository has of its WAL.

use chrono::{DateTime, Utc};
use serde::Serialize;

use super::{Window, server::ServerInfo};
use crate::{
    postgres::{Lsn, history::TimelineHistory},
    repo::{timelines::WalInventory, wal_parts::covered},
};

/// What a server has flushed and a repository hasn't. Gaps before the end of what is stored aren't
/// counted; they are told on their own.
#[derive(Debug, PartialEq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct Behind {
    /// Where the last whole segment on the server's timeline ends.
    pub archived_lsn: Option<Lsn>,
    /// Where the stream's parts of the unfinished segment end, without a gap from its start; null where
    /// there are none.
    pub streamed_lsn: Option<Lsn>,
    /// How many bytes the server has flushed behind the one of them that is further; null where nothing of
    /// its timeline is stored.
    pub bytes: Option<u64>,
    /// How many seconds old that is at most, by the server's clock: the time since the last transaction
    /// that is stored, or since the newest backup was complete. 0 where nothing is missing; null where
    /// there is no backup.
    pub age: Option<f64>,
}

impl Behind {
    /// Compares a server with an inventory. `windows` are those of the inventory.
    pub fn of(server: &ServerInfo, inventory: &WalInventory, windows: &[Window]) -> Self {
        // A server that was promoted a moment ago: its history may not have arrived.
        let alone = TimelineHistory { timeline: server.timeline, ancestors: Vec::new() };
        let path = inventory.path(server.timeline).unwrap_or(&alone);
        let size = inventory.segment_size;
        let archived_lsn = inventory.last_there(path).map(|last| size.start_of(last + 1));
        let streamed_lsn = inventory.last_streamed(path).and_then(|number| {
            let timeline = path.timeline_of_segment(number, size);
            let (_, wal) = inventory.timelines().find(|(t, _)| *t == timeline)?;
            Some(Lsn(size.start_of(number).0 + covered(wal.parts.get(&number)?)))
        });
        let stored = archived_lsn.max(streamed_lsn);
        let bytes = stored.map(|stored| server.flushed_lsn.0.saturating_sub(stored.0));
        let of_timeline = windows.iter().filter(|window| window.timeline == server.timeline);
        let known = of_timeline.map(|window| window.until.unwrap_or(window.from)).max();
        let age = match bytes {
            Some(0) => Some(0.0),
            Some(_) => known.map(|known| seconds_between(known, server.time)),
            None => None,
        };
        Behind { archived_lsn, streamed_lsn, bytes, age }
    }
}

fn seconds_between(from: DateTime<Utc>, to: DateTime<Utc>) -> f64 {
    ((to - from).num_milliseconds() as f64 / 1000.0).max(0.0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        postgres::{SegmentSize, Timeline},
        repo::{SystemId, wal_parts::PartRange},
    };

    const SIZE: SegmentSize = SegmentSize::DEFAULT;

    fn server(timeline: u32, lsn: &str) -> ServerInfo {
        ServerInfo {
            version: "15.18".into(),
            system: SystemId { major: 15, identifier: 1 },
            standby: false,
            timeline: Timeline(timeline),
            flushed_lsn: lsn.parse().unwrap(),
            archive_mode: "on".into(),
            time: DateTime::from_timestamp(1_000, 0).unwrap(),
        }
    }

    fn window(timeline: u32, from: i64, until: Option<i64>) -> Window {
        let at = |second| DateTime::from_timestamp(second, 0).unwrap();
        Window {
            timeline: Timeline(timeline),
            backup: "20261120T120000Z-full".parse().unwrap(),
            from: at(from),
            until: until.map(at),
            end_lsn: Lsn(0),
            missing: None,
        }
    }

    #[test]
    fn what_is_stored_last_counts_whoever_has_stored_it() {
        let mut there = WalInventory::of(SIZE, &[(1, &[2, 3])], &[]);
        let windows = [window(1, 900, Some(990))];
        let archived = Behind::of(&server(1, "0/4000200"), &there, &windows);
        let lsn = |text: &str| text.parse::<Lsn>().ok();
        assert_eq!((archived.archived_lsn, archived.streamed_lsn), (lsn("0/4000000"), None));
        assert_eq!((archived.bytes, archived.age), (Some(0x200), Some(10.0)));
        // Bytes from 0x100 to 0x180 are on their way.
        let parts = [(0, 0x100), (0x180, 0x200)].map(|(from, to)| PartRange { from, to });
        there.stream(Timeline(1), 4, &parts);
        let streamed = Behind::of(&server(1, "0/4000200"), &there, &[window(1, 950, None)]);
        assert_eq!(streamed.streamed_lsn, lsn("0/4000100"));
        assert_eq!((streamed.bytes, streamed.age), (Some(0x100), Some(50.0)), "since the backup");
        let all = Behind::of(&server(1, "0/4000100"), &there, &[]);
        assert_eq!((all.bytes, all.age), (Some(0), Some(0.0)), "nothing is missing");
        assert_eq!(Behind::of(&server(1, "0/4000180"), &there, &[]).age, None, "nobody can tell");
    }

    #[test]
    fn behind_the_last_segment_of_all_is_the_last_position() {
        let there = WalInventory::of(SIZE, &[(1, &[(1 << 40) - 1])], &[]);
        let behind = Behind::of(&server(1, "0/4000200"), &there, &[]);
        assert_eq!((behind.archived_lsn, behind.bytes), (Some(Lsn(u64::MAX)), Some(0)));
    }

    #[test]
    fn a_new_timeline_goes_on_from_what_it_comes_from() {
        let histories: &[(u32, &str)] = &[(2, "1\t0/4800000\tpromoted\n")];
        let there = WalInventory::of(SIZE, &[(1, &[2, 3]), (2, &[])], histories);
        assert_eq!(Behind::of(&server(2, "0/4800100"), &there, &[]).bytes, Some(0x80_0100));
        let unknown = Behind::of(&server(3, "0/4800100"), &there, &[]);
        assert_eq!((unknown.bytes, unknown.age), (None, None), "its history isn't there");
    }
}
