//! What is asked of the server beside the backup itself, over an ordinary connection.

use std::{collections::BTreeMap, path::Path, time::Duration};

use chrono::{DateTime, Utc};

use crate::{
    error::{Error, Kind, Result},
    postgres::{
        Lsn, SegmentName, SegmentSize, Timeline,
        backup_manifest::WalRange,
        client::{Client, ConnInfo, Mode, PgError, Row},
        history::TimelineHistory,
        incremental::{self, CutOff, NativeRefusal},
    },
    repo::{record::Source, tree::BLOCK},
};

/// How often the server is asked whether it is still there, and what it was.
const WATCH: Duration = Duration::from_secs(5);

/// A connection for questions, and what was asked first.
pub struct Server {
    conninfo: ConnInfo,
    client: Client,
    /// A question is under way.
    asking: bool,
    /// What it is.
    pub facts: Facts,
}

/// What to do where two connections came to two servers.
pub const ONE_SERVER: &str =
    "conninfo leads to several servers: name one of them, or say which with target_session_attrs";

/// What a backup has to know of the server.
#[derive(Debug, Clone)]
pub struct Facts {
    /// The major version.
    pub major: u32,
    /// `server_version` as it says it.
    pub version: String,
    /// Primary or standby.
    pub source: Source,
    /// The WAL segment size.
    pub segment_size: SegmentSize,
    /// Blocks in one file of a relation.
    pub segment_blocks: u32,
    /// Whether pages carry checksums.
    pub data_checksums: bool,
    /// The data directory's permission bits.
    pub directory_mode: u32,
    /// Tablespaces but the default ones: object id and name.
    pub tablespaces: BTreeMap<u32, String>,
    /// Configuration files outside the data directory, as far as this role may see them.
    pub outside: Vec<String>,
}

/// Where the server's archiver has come to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Archiver {
    /// How many files it has archived.
    pub archived: u64,
    /// The last one of them, if it is or belongs to a segment.
    pub last: Option<SegmentName>,
}

impl Archiver {
    /// Whether it has got on since `before`, and hasn't come to `segment` yet: then that may still
    /// arrive.
    pub fn is_on_the_way_to(&self, segment: SegmentName, before: Option<Archiver>) -> bool {
        before.is_some_and(|before| self.archived > before.archived)
            && self.last.is_none_or(|last| last < segment)
    }
}

impl Server {
    /// Connects, looks, and refuses what can't be backed up.
    pub async fn connect(conninfo: &ConnInfo) -> Result<Self> {
        let client = connect(conninfo, Mode::Sql).await?;
        let supported = client.server_version().check_supported();
        supported.map_err(|e| Error::of_server("connect to PostgreSQL", e))?;
        let major = client.server_version().major();
        let version = client.server_version().text.clone();
        let mut server =
            Server { conninfo: conninfo.clone(), client, asking: false, facts: Facts::none() };
        // A backup takes longer than any limit that is meant for queries.
        for limit in ["statement_timeout", "lock_timeout", "idle_session_timeout"] {
            server.execute(&format!("SET {limit} = 0")).await?;
        }
        server.facts = server.ask(major, version).await?;
        Ok(server)
    }

    async fn ask(&mut self, major: u32, version: String) -> Result<Facts> {
        let settings = self.settings().await?;
        let setting = |name: &str| settings.get(name).map(String::as_str);
        let number = |name: &str| setting(name).and_then(|text| text.parse::<u64>().ok());
        let unknown = |name: &str| {
            Error::new(Kind::Postgres, format!("the server doesn't say what {name} is"))
        };
        let block_size = number("block_size").ok_or_else(|| unknown("block_size"))?;
        if block_size != BLOCK as u64 {
            let message = format!(
                "the cluster has pages of {block_size} bytes; pgkeep backs up clusters with {BLOCK}"
            );
            return Err(Error::new(Kind::Postgres, message));
        }
        let segment_size = number("wal_segment_size")
            .and_then(SegmentSize::new)
            .ok_or_else(|| unknown("wal_segment_size"))?;
        let segment_blocks = number("segment_size")
            .and_then(|blocks| u32::try_from(blocks).ok())
            .ok_or_else(|| unknown("segment_size"))?;
        let directory_mode = setting("data_directory_mode")
            .and_then(|mode| u32::from_str_radix(mode, 8).ok())
            .ok_or_else(|| unknown("data_directory_mode"))?;
        let source = self.source().await.map_err(|e| Error::of_server("ask the server", e))?;
        Ok(Facts {
            major,
            version,
            source,
            segment_size,
            segment_blocks,
            data_checksums: setting("data_checksums") == Some("on"),
            directory_mode,
            tablespaces: self.tablespaces().await?,
            outside: outside(&settings),
        })
    }

    /// How it is reached.
    pub fn conninfo(&self) -> &ConnInfo {
        &self.conninfo
    }

    /// That the server writes and archives what a backup needs to be restored.
    pub async fn check_archiving(&mut self) -> Result<()> {
        let settings = self.settings().await?;
        check_wal_settings(self.facts.source, &settings)
    }

    /// The settings that matter here, in their base units. Those that this role may not see are
    /// missing.
    async fn settings(&mut self) -> Result<BTreeMap<String, String>> {
        let rows = self
            .query(
                "SELECT name, setting FROM pg_catalog.pg_settings WHERE name IN ('block_size', \
                 'wal_segment_size', 'segment_size', 'data_checksums', 'data_directory_mode', \
                 'wal_level', 'archive_mode', 'archive_command', 'archive_library', \
                 'data_directory', 'config_file', 'hba_file', 'ident_file')",
            )
            .await?;
        Ok(rows.into_iter().filter_map(|row| pair(&row)).collect())
    }

    /// Tablespaces but the default ones: object id and name.
    pub async fn tablespaces(&mut self) -> Result<BTreeMap<u32, String>> {
        let sql = "SELECT oid, spcname FROM pg_catalog.pg_tablespace \
                   WHERE spcname NOT IN ('pg_default', 'pg_global')";
        let rows = self.query(sql).await?;
        let named = rows.into_iter().filter_map(|row| pair(&row));
        Ok(named.filter_map(|(oid, name)| Some((oid.parse().ok()?, name))).collect())
    }

    /// The time by the server's clock, to the microsecond.
    pub async fn now(&mut self) -> Result<DateTime<Utc>> {
        let sql = "SELECT (extract(epoch FROM pg_catalog.clock_timestamp()) * 1000000)::bigint";
        let text = self.value(sql).await?;
        text.parse()
            .ok()
            .and_then(DateTime::from_timestamp_micros)
            .ok_or_else(|| Error::new(Kind::Postgres, format!("the server's clock says {text}")))
    }

    async fn source(&mut self) -> Result<Source, PgError> {
        let rows = self.try_query("SELECT pg_catalog.pg_is_in_recovery()").await?;
        let in_recovery = rows.first().and_then(|row| row.get(0)) == Some("t");
        Ok(if in_recovery { Source::Standby } else { Source::Primary })
    }

    /// Makes sure that the WAL switch at the start of a backup closes a segment: right behind a
    /// switch it would do nothing, and nothing new would be archived. Best effort.
    pub async fn write_a_record(&mut self) {
        let sql = "SELECT pg_catalog.pg_logical_emit_message(false, 'pgkeep', '')";
        if let Err(e) = self.query(sql).await {
            tracing::debug!("{e}");
        }
    }

    /// Returns once the server is gone or a standby has been promoted, with the error to fail
    /// with; never otherwise. A server that answers something else, that it is out of connections
    /// for example, is there.
    pub async fn watch(&mut self) -> Error {
        let mut gone = false;
        loop {
            tokio::time::sleep(WATCH).await;
            match self.source().await {
                Ok(Source::Primary) if self.facts.source == Source::Standby => return promoted(),
                Ok(_) => gone = false,
                Err(e) if e.is_unreachable() && gone => {
                    return Error::of_server("the server went away during the backup", e);
                }
                Err(e) => {
                    gone = e.is_unreachable();
                    tracing::warn!("ask the server whether it is still there: {e}");
                }
            }
        }
    }

    /// Why the server can't send what changed since a backup that needs `ranges`, as far as is known.
    /// `history` is that of the server's timeline.
    pub async fn can_send_changes(
        &mut self,
        history: &TimelineHistory,
        ranges: &[WalRange],
    ) -> Result<Option<NativeRefusal>> {
        let asked = incremental::check(&mut self.client, history, ranges).await;
        asked.map_err(|e| Error::of_server("ask the server for its WAL summaries", e))
    }

    /// Up to where the server has summarized its WAL.
    pub async fn summarized(&mut self) -> Result<Lsn> {
        let reached = incremental::reached(&mut self.client).await;
        Ok(reached.map_err(|e| Error::of_server("ask the server for its WAL summaries", e))?.1)
    }

    /// Which relations were made shorter since then, as far as the server's WAL is summarized. An error
    /// of the server's own is a refusal.
    pub async fn cut_off_since(
        &mut self,
        timeline: Timeline,
        from: Lsn,
    ) -> Result<CutOff, PgError> {
        CutOff::since(&mut self.client, timeline, from).await
    }

    /// Where the archiver has come to; `None` when it can't be asked.
    pub async fn archiver(&mut self) -> Option<Archiver> {
        let sql = "SELECT archived_count, last_archived_wal FROM pg_catalog.pg_stat_archiver";
        let rows = self.query(sql).await.ok()?;
        let row = rows.first()?;
        let last = row.get(1).and_then(|name| name.get(..24)).and_then(|name| name.parse().ok());
        Some(Archiver { archived: row.get(0)?.parse().ok()?, last })
    }

    /// What is known about why WAL doesn't arrive: one sentence each.
    pub async fn archiver_says(&mut self) -> Vec<String> {
        let mut hints = Vec::new();
        let sql = "SELECT last_failed_wal, failed_count, last_archived_wal, \
                   last_failed_time > coalesce(last_archived_time, '-infinity') \
                   FROM pg_catalog.pg_stat_archiver";
        let Ok(rows) = self.query(sql).await else { return hints };
        if let Some(row) = rows.first() {
            if row.get(3) == Some("t") {
                hints.push(format!(
                    "the archiver failed last with {} ({} failures so far); the reason is in \
                     PostgreSQL's log",
                    row.get(0).unwrap_or("a file"),
                    row.get(1).unwrap_or("?")
                ));
            } else if let Some(last) = row.get(2) {
                hints.push(format!(
                    "the archiver reports no failure, the last file it archived is {last}: does it \
                     archive into this repository?"
                ));
            } else {
                hints.push("the archiver hasn't archived anything yet".into());
            }
        }
        if let Ok(settings) = self.settings().await {
            let set = |name: &str| settings.get(name).filter(|value| !value.is_empty());
            match (set("archive_library"), set("archive_command")) {
                (Some(library), _) => hints.push(format!("archive_library is {library:?}")),
                (None, Some(command)) => hints.push(format!("archive_command is {command:?}")),
                (None, None) => hints.push("archive_command is empty".into()),
            }
        }
        hints
    }

    async fn value(&mut self, sql: &str) -> Result<String> {
        let rows = self.query(sql).await?;
        let value = rows.first().and_then(|row| row.get(0)).map(str::to_owned);
        value.ok_or_else(|| Error::new(Kind::Postgres, format!("{sql}: no answer")))
    }

    async fn execute(&mut self, sql: &str) -> Result<()> {
        let doing = || format!("prepare the session with the server: {sql}");
        self.client.execute(sql).await.map_err(|e| Error::of_server(doing(), e))
    }

    /// Asks, on a new connection when the old one is gone: it is idle for as long as a backup
    /// takes.
    async fn try_query(&mut self, sql: &str) -> Result<Vec<Row>, PgError> {
        // A question that was given up half-way has its answer still on the connection.
        let usable = !std::mem::replace(&mut self.asking, true);
        let mut answer = Err(PgError::Closed);
        if usable {
            answer = self.client.query(sql).await;
        }
        if answer.as_ref().is_err_and(PgError::is_unreachable) {
            self.client = Client::connect(&self.conninfo, Mode::Sql).await?;
            answer = self.client.query(sql).await;
        }
        self.asking = false;
        answer
    }

    async fn query(&mut self, sql: &str) -> Result<Vec<Row>> {
        self.try_query(sql).await.map_err(|e| Error::of_server("ask the server", e))
    }

    /// Ends the connection.
    pub async fn close(self) {
        self.client.close().await;
    }
}

impl Facts {
    /// Nothing known yet.
    fn none() -> Self {
        Facts {
            major: 0,
            version: String::new(),
            source: Source::Primary,
            segment_size: SegmentSize::DEFAULT,
            segment_blocks: 0,
            data_checksums: false,
            directory_mode: 0o700,
            tablespaces: BTreeMap::new(),
            outside: Vec::new(),
        }
    }
}

/// Opens a connection of the cluster's.
pub async fn connect(conninfo: &ConnInfo, mode: Mode) -> Result<Client> {
    Client::connect(conninfo, mode).await.map_err(|e| Error::of_server("connect to PostgreSQL", e))
}

/// The error that a promotion during a backup ends in.
pub fn promoted() -> Error {
    Error::new(Kind::Postgres, "the standby was promoted during the backup")
        .hint("run the backup again: it is one of the new primary then")
}

fn pair(row: &Row) -> Option<(String, String)> {
    Some((row.get(0)?.to_owned(), row.get(1)?.to_owned()))
}

fn check_wal_settings(source: Source, settings: &BTreeMap<String, String>) -> Result<()> {
    let is = |name: &str, value: &str| settings.get(name).is_some_and(|v| v == value);
    if is("wal_level", "minimal") {
        let message = "wal_level is minimal: the server doesn't write the WAL that a backup needs";
        return Err(Error::new(Kind::Postgres, message)
            .hint("set wal_level = replica in postgresql.conf and restart the server"));
    }
    if source == Source::Standby {
        // Its WAL is archived by the primary.
        return Ok(());
    }
    const SET: &str = "set archive_mode = on and archive_command = 'pgkeep archive-push %p' in \
                       postgresql.conf and restart the server; then run `pgkeep check`";
    if is("archive_mode", "off") {
        let message = "archive_mode is off: the WAL that the backup needs wouldn't be archived";
        return Err(Error::new(Kind::Wal, message).hint(SET));
    }
    let empty = |name| settings.get(name).is_none_or(String::is_empty);
    if is("archive_command", "") && empty("archive_library") {
        let message = "archive_command is empty: the WAL that the backup needs isn't archived";
        return Err(Error::new(Kind::Wal, message).hint(
            "set archive_command = 'pgkeep archive-push %p' and reload the server; then run \
             `pgkeep check`",
        ));
    }
    Ok(())
}

fn outside(settings: &BTreeMap<String, String>) -> Vec<String> {
    let Some(data_directory) = settings.get("data_directory") else { return Vec::new() };
    ["config_file", "hba_file", "ident_file"]
        .iter()
        .filter_map(|name| settings.get(*name))
        .filter(|file| !file.is_empty() && !Path::new(file).starts_with(data_directory))
        .cloned()
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
        pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
    }

    #[test]
    fn a_primary_that_does_not_archive_is_refused() {
        let check = |source, pairs: &[(&str, &str)]| check_wal_settings(source, &settings(pairs));
        let on = ("archive_mode", "on");
        assert!(check(Source::Primary, &[("wal_level", "minimal"), on]).is_err());
        assert!(check(Source::Primary, &[("archive_mode", "off")]).is_err());
        assert!(check(Source::Primary, &[on, ("archive_command", "")]).is_err());
        let library = ("archive_library", "basic_archive");
        assert!(check(Source::Primary, &[on, ("archive_command", ""), library]).is_ok());
        assert!(check(Source::Primary, &[on, ("archive_command", "x")]).is_ok());
        assert!(check(Source::Standby, &[("archive_mode", "off")]).is_ok());
    }

    #[test]
    fn an_archiver_that_is_behind_is_waited_for_while_it_gets_on() {
        let name = |n| SegmentSize::DEFAULT.name(Timeline(1), n);
        let at = |archived, last: u64| Archiver { archived, last: Some(name(last)) };
        assert!(at(8, 5).is_on_the_way_to(name(9), Some(at(7, 4))));
        assert!(!at(7, 4).is_on_the_way_to(name(9), Some(at(7, 4))), "it stands still");
        assert!(!at(9, 9).is_on_the_way_to(name(9), Some(at(7, 4))), "it archives elsewhere");
        assert!(!at(8, 5).is_on_the_way_to(name(9), None));
    }

    #[test]
    fn configuration_outside_the_data_directory_is_noticed() {
        let debian = settings(&[
            ("data_directory", "/var/lib/postgresql/15/main"),
            ("config_file", "/etc/postgresql/15/main/postgresql.conf"),
            ("hba_file", "/var/lib/postgresql/15/main/pg_hba.conf"),
            ("ident_file", "/var/lib/postgresql/15/main2/pg_ident.conf"),
        ]);
        assert_eq!(
            outside(&debian),
            [
                "/etc/postgresql/15/main/postgresql.conf",
                "/var/lib/postgresql/15/main2/pg_ident.conf"
            ]
        );
        assert!(outside(&settings(&[("config_file", "/etc/x")])).is_empty());
    }
}
