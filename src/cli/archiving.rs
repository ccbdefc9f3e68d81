//! How archiving is doing, for people: the last part of what `info` prints.

use super::{human, table};
use crate::info::{ArchiverInfo, Archiving, Behind, Gap, StreamInfo, WaitingInfo};

/// What can't be seen without more rights.
const NOT_ALLOWED: &str = "not allowed to see (a member of pg_monitor is)";

/// What the server says.
pub fn archiving(archiving: &Archiving) -> String {
    let mut out = format!("archiving of cluster {}\n", archiving.cluster);
    let mut rows = Vec::new();
    if let Some(server) = &archiving.server {
        let role = if server.standby { "a standby" } else { "a primary" };
        let text = format!(
            "PostgreSQL {}, {role}, timeline {}, WAL to {}, archive_mode {}",
            server.version, server.timeline, server.flushed_lsn, server.archive_mode
        );
        rows.push(("server", text));
    }
    if let Some(why) = &archiving.unknown {
        rows.push(("unknown", format!("the server wasn't asked or didn't answer: {why}")));
    }
    let is_hidden = |what| archiving.not_allowed.contains(&what);
    match &archiving.waiting {
        Some(found) => rows.push(("waiting", waiting(found))),
        None if is_hidden("waiting") => rows.push(("waiting", NOT_ALLOWED.to_owned())),
        None => {}
    }
    if let Some(found) = &archiving.archiver {
        rows.push(("archived", archived(found)));
        rows.push(("failed", failed(found)));
    }
    if let Some(found) = &archiving.stream {
        rows.push(("stream", stream(found, is_hidden("stream"))));
    }
    out += &table::pairs(2, &rows);
    out
}

fn files(number: u64) -> String {
    match number {
        1 => "1 file".to_owned(),
        n => format!("{} files", human::count(n)),
    }
}

fn waiting(waiting: &WaitingInfo) -> String {
    let (Some(oldest), Some(age)) = (&waiting.oldest, waiting.age) else {
        return "nothing".to_owned();
    };
    format!("{}, {oldest} for {}", files(waiting.files), human::seconds(age))
}

fn archived(archiver: &ArchiverInfo) -> String {
    let mut text = match (&archiver.last_archived, archiver.last_archived_at) {
        (Some(file), Some(at)) => {
            format!("{}, {file} last, at {}", files(archiver.archived), human::time(at))
        }
        _ => "nothing".to_owned(),
    };
    if let (Some(rate), Some(since)) = (archiver.rate, archiver.since) {
        text += &format!("; {rate:.1} a minute since {}", human::time(since));
    }
    text
}

fn failed(archiver: &ArchiverInfo) -> String {
    let (Some(file), Some(at)) = (&archiver.last_failed, archiver.last_failed_at) else {
        return "never".to_owned();
    };
    let now = if archiver.failing { ", and FAILS still" } else { ", and works again" };
    let times = match archiver.failed {
        1 => "once".to_owned(),
        n => format!("{} times", human::count(n)),
    };
    format!("{times}, {file} last, at {}{now}", human::time(at))
}

fn stream(stream: &StreamInfo, hidden: bool) -> String {
    let name = &stream.slot;
    if !stream.exists {
        return format!("none: this server has no slot {name}");
    }
    let held = stream.held.map(|held| format!("; it holds {} of WAL", human::bytes(held)));
    let held = held.unwrap_or_default();
    if stream.wal_status.as_deref() == Some("lost") {
        let why = stream.invalidation_reason.as_ref().map(|why| format!(" ({why})"));
        return format!(
            "slot {name} is LOST{}: `pgkeep stream` makes it anew",
            why.unwrap_or_default()
        );
    }
    if !stream.active {
        return format!("slot {name} is there, and NOBODY streams over it{held}");
    }
    if hidden {
        return format!("slot {name} is in use; how far behind: {NOT_ALLOWED}{held}");
    }
    let state = stream.state.as_deref().unwrap_or("connected");
    let sync = stream.sync_state.as_ref().map(|sync| format!(" ({sync})")).unwrap_or_default();
    let behind = stream.behind.map(|bytes| format!(", {} behind", human::bytes(bytes)));
    format!("slot {name}, {state}{sync}{}{held}", behind.unwrap_or_default())
}

/// How far a server is ahead of a repository, in a line without its end.
pub fn behind(behind: &Behind) -> String {
    let ends = [("archived", behind.archived_lsn), ("streamed", behind.streamed_lsn)];
    let ends: Vec<_> =
        ends.iter().filter_map(|(how, lsn)| Some(format!("{how} to {}", (*lsn)?))).collect();
    let missing = match (behind.bytes, behind.age) {
        (None, _) => "nothing of the server's timeline is stored".to_owned(),
        (Some(0), _) => "nothing: all that the server has flushed is stored".to_owned(),
        (Some(bytes), None) => human::bytes(bytes),
        (Some(bytes), Some(age)) => {
            format!("{}, written in the last {}", human::bytes(bytes), human::seconds(age))
        }
    };
    [vec![missing], ends].concat().join("; ")
}

/// A gap, in a line without its end.
pub fn gap(gap: &Gap) -> String {
    let what = match (gap.segments, gap.bytes) {
        (_, Some((from, to))) => {
            format!("bytes {from} to {to} of {} are missing", gap.first)
        }
        (1, None) => format!("{} is missing", gap.first),
        (n, None) => {
            let n = human::count(n);
            format!("{} to {} are missing, {n} segments", gap.first, gap.last)
        }
    };
    match gap.after_newest_backup {
        true => format!("GAP on timeline {}: {what}, behind the newest backup", gap.timeline),
        false => format!("GAP on timeline {}: {what}", gap.timeline),
    }
}

#[cfg(test)]
mod tests {
    use chrono::{DateTime, Utc};

    use super::*;
    use crate::{
        info::ServerInfo,
        postgres::{Lsn, Timeline},
        repo::SystemId,
    };

    fn at(second: i64) -> DateTime<Utc> {
        DateTime::from_timestamp(1_763_668_692 + second, 0).unwrap()
    }

    fn lsn(text: &str) -> Option<Lsn> {
        text.parse().ok()
    }

    fn sound() -> Archiving {
        Archiving {
            cluster: "main".into(),
            unknown: None,
            server: Some(ServerInfo {
                version: "15.18".into(),
                system: SystemId { major: 15, identifier: 1 },
                standby: false,
                timeline: Timeline(1),
                flushed_lsn: Lsn(0x700_0148),
                archive_mode: "on".into(),
                time: at(60),
            }),
            waiting: Some(WaitingInfo { files: 0, segments: 0, oldest: None, age: None }),
            archiver: Some(ArchiverInfo {
                archived: 6,
                last_archived: Some("000000010000000000000006".into()),
                last_archived_at: Some(at(50)),
                failed: 0,
                last_failed: None,
                last_failed_at: None,
                failing: false,
                since: Some(at(-300)),
                rate: Some(1.0),
            }),
            stream: Some(StreamInfo {
                slot: "pgkeep".into(),
                exists: true,
                active: true,
                wal_status: Some("reserved".into()),
                invalidation_reason: None,
                restart_lsn: lsn("0/7000000"),
                held: Some(0x148),
                safe: None,
                state: Some("streaming".into()),
                sync_state: Some("async".into()),
                flushed_lsn: lsn("0/7000148"),
                behind: Some(0),
            }),
            not_allowed: Vec::new(),
        }
    }

    #[test]
    fn what_is_as_it_should_be_is_told_in_five_lines() {
        insta::assert_snapshot!(archiving(&sound()), @r"
        archiving of cluster main
          server    PostgreSQL 15.18, a primary, timeline 1, WAL to 0/7000148, archive_mode on
          waiting   nothing
          archived  6 files, 000000010000000000000006 last, at 2025-11-20 19:59:02Z; 1.0 a minute since 2025-11-20 19:53:12Z
          failed    never
          stream    slot pgkeep, streaming (async), 0 B behind; it holds 328 B of WAL
        ");
    }

    #[test]
    fn what_is_wrong_stands_out() {
        let mut found = sound();
        let oldest = Some("000000010000000000000007".into());
        found.waiting = Some(WaitingInfo { files: 1, segments: 1, oldest, age: Some(245.0) });
        if let Some(archiver) = &mut found.archiver {
            archiver.failed = 3;
            archiver.last_failed = Some("000000010000000000000007".into());
            archiver.last_failed_at = Some(at(55));
            archiver.failing = true;
        }
        if let Some(stream) = &mut found.stream {
            stream.active = false;
        }
        insta::assert_snapshot!(archiving(&found), @r"
        archiving of cluster main
          server    PostgreSQL 15.18, a primary, timeline 1, WAL to 0/7000148, archive_mode on
          waiting   1 file, 000000010000000000000007 for 4 min 5 s
          archived  6 files, 000000010000000000000006 last, at 2025-11-20 19:59:02Z; 1.0 a minute since 2025-11-20 19:53:12Z
          failed    3 times, 000000010000000000000007 last, at 2025-11-20 19:59:07Z, and FAILS still
          stream    slot pgkeep is there, and NOBODY streams over it; it holds 328 B of WAL
        ");
        let mut lost = sound().stream.unwrap();
        lost.wal_status = Some("lost".into());
        lost.invalidation_reason = Some("idle_timeout".into());
        let text = "slot pgkeep is LOST (idle_timeout): `pgkeep stream` makes it anew";
        assert_eq!(stream(&lost, false), text);
    }

    #[test]
    fn what_cannot_be_told_is_said() {
        let mut hidden = sound();
        hidden.waiting = None;
        hidden.not_allowed = vec!["waiting", "stream"];
        let text = archiving(&hidden);
        assert_eq!(text.matches(NOT_ALLOWED).count(), 2, "{text}");
        let unknown = Archiving {
            unknown: Some("connect: nobody is there".into()),
            server: None,
            waiting: None,
            archiver: None,
            stream: None,
            ..sound()
        };
        insta::assert_snapshot!(archiving(&unknown), @r"
        archiving of cluster main
          unknown  the server wasn't asked or didn't answer: connect: nobody is there
        ");
    }

    #[test]
    fn distances_have_units_and_gaps_their_ends() {
        let ends = |bytes, age| Behind {
            archived_lsn: lsn("0/7000000"),
            streamed_lsn: lsn("0/7000148"),
            bytes,
            age,
        };
        let both = "archived to 0/7000000; streamed to 0/7000148";
        for (bytes, age, text) in [
            (Some(0), Some(0.0), "nothing: all that the server has flushed is stored"),
            (Some(2 << 20), Some(12.3), "2.0 MiB, written in the last 12.3 s"),
            (Some(200), None, "200 B"),
        ] {
            assert_eq!(behind(&ends(bytes, age)), format!("{text}; {both}"));
        }
        let nothing = Behind { archived_lsn: None, streamed_lsn: None, bytes: None, age: None };
        assert_eq!(behind(&nothing), "nothing of the server's timeline is stored");

        let name = |n: u64| format!("0000000100000000000000{n:02X}");
        let of = |last, bytes, newest| {
            gap(&Gap {
                timeline: Timeline(1),
                first: name(4),
                last: name(last),
                segments: last - 3,
                bytes,
                after_newest_backup: newest,
            })
        };
        insta::assert_snapshot!([of(4, None, false), of(7, None, true), of(4, Some((100, 300)), true)].join("\n"), @r"
        GAP on timeline 1: 000000010000000000000004 is missing
        GAP on timeline 1: 000000010000000000000004 to 000000010000000000000007 are missing, 4 segments, behind the newest backup
        GAP on timeline 1: bytes 100 to 300 of 000000010000000000000004 are missing, behind the newest backup
        ");
    }
}
