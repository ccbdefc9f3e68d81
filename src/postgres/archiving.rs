//! What a server says of its archiving and of who streams from it: `pg_stat_archiver`,
//! `pg_replication_slots`, `pg_stat_replication`, `archive_status` (documentation, "The Cumulative
//! Statistics System", "System Views"). The queries are right for 13 and later, on primaries and
//! standbys, and for roles that may see little.

use std::{fs, io, path::Path};

use chrono::{DateTime, Utc};

use super::{
    Lsn, SegmentSize, Timeline, WalFile,
    client::{Client, PgError, Row, quote_literal},
    segment::SegmentName,
};

/// SQLSTATE insufficient_privilege.
const NOT_PERMITTED: &str = "42501";

/// How a time is asked for, so that it reads the same whatever `TimeZone` and `DateStyle` are.
fn utc(column: &str) -> String {
    format!(
        "pg_catalog.to_char({column} AT TIME ZONE 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS.US\"Z\"') \
         AS {column}"
    )
}

fn time(row: &Row, column: &str) -> Option<DateTime<Utc>> {
    DateTime::parse_from_rfc3339(row.named(column)?).ok().map(|time| time.to_utc())
}

fn number<N: std::str::FromStr>(row: &Row, column: &str) -> Option<N> {
    row.named(column)?.parse().ok()
}

/// `pg_stat_archiver`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Archiver {
    /// How many files were archived since `since`.
    pub archived_count: u64,
    /// The last one.
    pub last_archived: Option<String>,
    /// When that was.
    pub last_archived_time: Option<DateTime<Utc>>,
    /// How many attempts failed. Those whose command was killed or exited above 125 aren't counted.
    pub failed_count: u64,
    /// The file of the last failed attempt, and when that was.
    pub last_failed: Option<(String, DateTime<Utc>)>,
    /// Since when is counted (`stats_reset`).
    pub since: Option<DateTime<Utc>>,
}

impl Archiver {
    /// Asks the server.
    pub async fn ask(client: &mut Client) -> Result<Self, PgError> {
        let times = ["last_archived_time", "last_failed_time", "stats_reset"].map(utc).join(", ");
        let sql = format!(
            "SELECT archived_count, last_archived_wal, failed_count, last_failed_wal, {times} \
             FROM pg_catalog.pg_stat_archiver"
        );
        let rows = client.query(&sql).await?;
        let Some(row) = rows.first() else { return Ok(Archiver::default()) };
        let text = |column: &str| row.named(column).map(str::to_owned);
        Ok(Archiver {
            archived_count: number(row, "archived_count").unwrap_or(0),
            last_archived: text("last_archived_wal"),
            last_archived_time: time(row, "last_archived_time"),
            failed_count: number(row, "failed_count").unwrap_or(0),
            last_failed: text("last_failed_wal").zip(time(row, "last_failed_time")),
            since: time(row, "stats_reset"),
        })
    }

    /// Whether the last attempt failed, as far as it was counted.
    pub fn is_failing(&self) -> bool {
        let failed = self.last_failed.as_ref().map(|(_, at)| *at);
        failed.is_some_and(|failed| self.last_archived_time.is_none_or(|last| failed > last))
    }

    /// How many files a minute were archived since `since`, on the average, at the time `now`; `None`
    /// before a second has gone by.
    pub fn rate(&self, now: DateTime<Utc>) -> Option<f64> {
        let seconds = (now - self.since?).num_milliseconds() as f64 / 1000.0;
        (seconds >= 1.0).then(|| self.archived_count as f64 * 60.0 / seconds)
    }
}

/// Where a server is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Position {
    /// Its system identifier.
    pub identifier: u64,
    /// Whether it is a standby.
    pub in_recovery: bool,
    /// Its timeline. A standby may learn of a new one late.
    pub timeline: Timeline,
    /// How far its WAL is flushed; on a standby, how far it has received or replayed.
    pub flushed: Lsn,
    /// The size of its segments.
    pub segment_size: SegmentSize,
    /// `archive_mode`.
    pub archive_mode: String,
    /// The time by its clock.
    pub now: DateTime<Utc>,
}

impl Position {
    /// Asks the server. `None` where it answers and the answer can't be read.
    pub async fn ask(client: &mut Client) -> Result<Option<Self>, PgError> {
        // What a standby doesn't receive it may have got from an archive.
        let sql = format!(
            "SELECT s.system_identifier, s.standby, \
             CASE WHEN s.standby THEN GREATEST(pg_catalog.pg_last_wal_receive_lsn(), \
             pg_catalog.pg_last_wal_replay_lsn()) ELSE pg_catalog.pg_current_wal_flush_lsn() END AS lsn, \
             CASE WHEN NOT s.standby THEN \
             pg_catalog.pg_walfile_name(pg_catalog.pg_current_wal_flush_lsn()) END AS file, \
             GREATEST((SELECT received_tli FROM pg_catalog.pg_stat_wal_receiver), c.timeline_id) \
             AS timeline, \
             (SELECT setting FROM pg_catalog.pg_settings WHERE name = 'wal_segment_size') AS size, \
             pg_catalog.current_setting('archive_mode') AS archive_mode, {} \
             FROM (SELECT system_identifier, pg_catalog.pg_is_in_recovery() AS standby, \
             pg_catalog.clock_timestamp() AS clock FROM pg_catalog.pg_control_system()) AS s, \
             pg_catalog.pg_control_checkpoint() AS c",
            utc("clock")
        );
        let rows = client.query(&sql).await?;
        Ok(rows.first().and_then(Position::of))
    }

    fn of(row: &Row) -> Option<Self> {
        let in_recovery = row.named("standby")? == "t";
        // The control file of a server that was promoted knows its timeline only at the next checkpoint.
        let file = row.named("file").and_then(|name| name.parse::<SegmentName>().ok());
        let timeline = file.map(|file| file.timeline).or(number(row, "timeline").map(Timeline))?;
        Some(Position {
            // It is shown as a signed number.
            identifier: number::<i64>(row, "system_identifier")?.cast_unsigned(),
            in_recovery,
            timeline,
            flushed: number(row, "lsn")?,
            segment_size: number(row, "size").and_then(SegmentSize::new)?,
            archive_mode: row.named("archive_mode")?.to_owned(),
            now: time(row, "clock")?,
        })
    }
}

/// What waits to be archived: files in `archive_status` that end in `.ready`.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Waiting {
    /// How many files. Not all are segments: history files and backup history files are archived too.
    pub files: u64,
    /// How many of them are whole segments.
    pub segments: u64,
    /// The one that has waited longest, and since when: seconds before now.
    pub oldest: Option<(String, f64)>,
}

impl Waiting {
    /// Looks into a data directory.
    pub fn read(pgdata: &Path) -> io::Result<Self> {
        let mut waiting = Waiting::default();
        for entry in fs::read_dir(pgdata.join("pg_wal/archive_status"))? {
            let entry = entry?;
            let Ok(name) = entry.file_name().into_string() else { continue };
            // One that is done by now doesn't wait.
            let Ok(meta) = entry.metadata() else { continue };
            let age = meta.modified()?.elapsed().map_or(0.0, |age| age.as_secs_f64());
            waiting.add(&name, age);
        }
        Ok(waiting)
    }

    /// Asks the server; `None` where this role may not (superusers and members of `pg_monitor` may).
    pub async fn ask(client: &mut Client) -> Result<Option<Self>, PgError> {
        let sql = "SELECT name, GREATEST(0, EXTRACT(epoch FROM \
                   pg_catalog.clock_timestamp() - modification)) AS age \
                   FROM pg_catalog.pg_ls_archive_statusdir()";
        let rows = match client.query(sql).await {
            Err(e) if e.code() == Some(NOT_PERMITTED) => return Ok(None),
            rows => rows?,
        };
        let mut waiting = Waiting::default();
        for row in rows {
            if let Some(name) = row.named("name") {
                waiting.add(name, number(&row, "age").unwrap_or(0.0));
            }
        }
        Ok(Some(waiting))
    }

    fn add(&mut self, name: &str, age: f64) {
        let Some(file) = name.strip_suffix(".ready") else { return };
        self.files += 1;
        self.segments += u64::from(matches!(file.parse(), Ok(WalFile::Segment(_))));
        let older = |(oldest, since): &(String, f64)| {
            // Several of the same age: the archiver takes them in the order of their names.
            age > *since || age == *since && file < oldest.as_str()
        };
        if self.oldest.as_ref().is_none_or(older) {
            self.oldest = Some((file.to_owned(), age));
        }
    }
}

/// A physical replication slot, and who streams over it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Slot {
    /// Whether somebody is connected to it.
    pub active: bool,
    /// From where on it holds WAL; none before it has held any, or when it is lost.
    pub restart_lsn: Option<Lsn>,
    /// `reserved`, `extended`, `unreserved` or `lost`: whether WAL is still kept for it.
    pub wal_status: Option<String>,
    /// Bytes that can still be written before WAL that it holds may go; none where nothing limits it.
    pub safe_wal_size: Option<i64>,
    /// Why it was given up (from 17 on).
    pub invalidation_reason: Option<String>,
    /// Who streams over it, where it is active; nothing of it where this role may not see it.
    pub sender: Option<Sender>,
}

/// A row of `pg_stat_replication`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sender {
    /// `startup`, `catchup`, `streaming`, `backup` or `stopping`.
    pub state: String,
    /// What the receiver says is durable.
    pub flushed: Option<Lsn>,
    /// `async`, `potential`, `sync` or `quorum`: whether commits wait for it.
    pub sync_state: Option<String>,
}

impl Slot {
    /// Asks the server for a slot; `None` where it isn't there.
    pub async fn ask(client: &mut Client, name: &str) -> Result<Option<Self>, PgError> {
        // Columns differ from version to version.
        let sql = format!(
            "SELECT s.*, r.state AS sender_state, r.flush_lsn AS sender_flush, \
             r.sync_state AS sender_sync FROM pg_catalog.pg_replication_slots AS s \
             LEFT JOIN pg_catalog.pg_stat_replication AS r ON r.pid = s.active_pid \
             WHERE s.slot_name = {}",
            quote_literal(name)
        );
        let rows = client.query(&sql).await?;
        Ok(rows.first().map(Slot::of))
    }

    fn of(row: &Row) -> Self {
        let text = |column: &str| row.named(column).map(str::to_owned);
        let sender = text("sender_state").map(|state| Sender {
            state,
            flushed: number(row, "sender_flush"),
            sync_state: text("sender_sync"),
        });
        Slot {
            active: row.named("active") == Some("t"),
            restart_lsn: number(row, "restart_lsn"),
            wal_status: text("wal_status"),
            safe_wal_size: number(row, "safe_wal_size"),
            invalidation_reason: text("invalidation_reason"),
            sender,
        }
    }

    /// Whether WAL that it should hold is gone.
    pub fn is_lost(&self) -> bool {
        self.wal_status.as_deref() == Some("lost")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(second: i64) -> DateTime<Utc> {
        DateTime::from_timestamp(1_763_668_000 + second, 0).unwrap()
    }

    #[test]
    fn what_has_failed_later_than_anything_was_archived_still_fails() {
        let archiver = |archived: Option<i64>, failed: Option<i64>| Archiver {
            last_archived_time: archived.map(at),
            last_failed: failed.map(|second| ("x".to_owned(), at(second))),
            ..Archiver::default()
        };
        for (archived, failed, fails) in [
            (None, None, false),
            (Some(5), None, false),
            (None, Some(5), true),
            (Some(5), Some(6), true),
            (Some(6), Some(5), false),
        ] {
            assert_eq!(archiver(archived, failed).is_failing(), fails, "{archived:?} {failed:?}");
        }
    }

    #[test]
    fn a_rate_is_files_a_minute_since_counting_began() {
        let archiver = Archiver { archived_count: 30, since: Some(at(0)), ..Archiver::default() };
        assert_eq!(archiver.rate(at(600)), Some(3.0));
        assert_eq!(archiver.rate(at(0)), None, "nobody can say yet");
        assert_eq!(Archiver::default().rate(at(9)), None);
    }

    #[test]
    fn what_waits_is_what_is_ready() {
        let mut waiting = Waiting::default();
        for (name, age) in [
            ("000000010000000000000001.done", 90.0),
            ("000000010000000000000003.ready", 5.5),
            ("000000010000000000000002.ready", 5.5),
            ("00000002.history.ready", 1.0),
            ("000000010000000000000002.00000028.backup.ready", 2.0),
        ] {
            waiting.add(name, age);
        }
        assert_eq!((waiting.files, waiting.segments), (4, 2));
        assert_eq!(waiting.oldest, Some(("000000010000000000000002".to_owned(), 5.5)));
    }
}
