//! What the cluster's server says of its archiving, where it can be asked. That it can't is told and
//! is no error: what the repositories hold is to be seen on a host that has nothing else.

use std::time::Duration;

use chrono::{DateTime, Utc};
use serde::Serialize;

use crate::{
    config::ClusterSettings,
    error::{Error, Kind, Result},
    postgres::{
        Lsn, Timeline,
        archiving::{Archiver, Position, Slot, Waiting},
        client::{Client, ConnInfo, Mode},
        control::ControlFile,
    },
    repo::SystemId,
};

/// How long the server may take for all that it is asked.
const PATIENCE: Duration = Duration::from_secs(5);

/// Variables that lead to a server where no connection string does.
const LEADING: [&str; 4] = ["PGHOST", "PGHOSTADDR", "PGPORT", "PGSERVICE"];

/// How the archiving of a cluster is doing, as its server says.
#[derive(Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct Archiving {
    /// The cluster's name.
    pub cluster: String,
    /// Why the server says nothing; null where it was asked.
    pub unknown: Option<String>,
    /// The server that was asked.
    pub server: Option<ServerInfo>,
    /// What waits to be archived. Where the server doesn't answer, this is what its data directory says.
    pub waiting: Option<WaitingInfo>,
    /// What the archiver has done.
    pub archiver: Option<ArchiverInfo>,
    /// The stream's slot.
    pub stream: Option<StreamInfo>,
    /// What the role isn't allowed to see: `waiting`, `stream`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub not_allowed: Vec<&'static str>,
}

/// Where the server is.
#[derive(Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct ServerInfo {
    /// `server_version` as it says it.
    pub version: String,
    /// Major version and system identifier.
    pub system: SystemId,
    /// Whether it is a standby.
    pub standby: bool,
    /// Its timeline.
    pub timeline: Timeline,
    /// How far its WAL is flushed; on a standby, how far it has received or replayed.
    pub flushed_lsn: Lsn,
    /// `archive_mode`.
    pub archive_mode: String,
    /// The time by its clock.
    pub time: DateTime<Utc>,
}

/// Files that wait to be archived.
#[derive(Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct WaitingInfo {
    /// How many, history files and the like included.
    pub files: u64,
    /// How many whole segments.
    pub segments: u64,
    /// The one that has waited longest.
    pub oldest: Option<String>,
    /// For how long, in seconds.
    pub age: Option<f64>,
}

/// `pg_stat_archiver`, and what follows from it.
#[derive(Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct ArchiverInfo {
    /// How many files were archived since `since`.
    pub archived: u64,
    /// The last one.
    pub last_archived: Option<String>,
    /// When that was.
    pub last_archived_at: Option<DateTime<Utc>>,
    /// How many attempts failed since `since`.
    pub failed: u64,
    /// The file of the last failed attempt.
    pub last_failed: Option<String>,
    /// When that was.
    pub last_failed_at: Option<DateTime<Utc>>,
    /// Whether it failed later than anything was archived.
    pub failing: bool,
    /// Since when is counted.
    pub since: Option<DateTime<Utc>>,
    /// Files a minute since then, on the average.
    pub rate: Option<f64>,
}

/// The slot of `pgkeep stream`.
#[derive(Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct StreamInfo {
    /// Its name.
    pub slot: String,
    /// Whether this server has it.
    pub exists: bool,
    /// Whether somebody streams over it.
    pub active: bool,
    /// `reserved`, `extended`, `unreserved` or `lost`.
    pub wal_status: Option<String>,
    /// Why it was given up.
    pub invalidation_reason: Option<String>,
    /// From where on it holds WAL.
    pub restart_lsn: Option<Lsn>,
    /// How many bytes of WAL it holds.
    pub held: Option<u64>,
    /// How many bytes can still be written before WAL that it holds may go; null where nothing limits it.
    pub safe: Option<i64>,
    /// `catchup`, `streaming` and what else `pg_stat_replication` knows.
    pub state: Option<String>,
    /// `async`, `sync` and what else `pg_stat_replication` knows.
    pub sync_state: Option<String>,
    /// What the stream has said is stored in all repositories.
    pub flushed_lsn: Option<Lsn>,
    /// How many bytes the server has flushed and the stream hasn't stored.
    pub behind: Option<u64>,
}

impl Archiving {
    /// Asks the cluster's server, for five seconds at most.
    pub async fn ask(cluster: &ClusterSettings) -> Self {
        let mut archiving = Archiving {
            cluster: cluster.name.clone(),
            unknown: None,
            server: None,
            waiting: None,
            archiver: None,
            stream: None,
            not_allowed: Vec::new(),
        };
        let is_set = |name: &&str| std::env::var_os(name).is_some_and(|value| !value.is_empty());
        let leads_nowhere = cluster.conninfo.is_empty() && cluster.pgdata.is_none();
        if leads_nowhere && !LEADING.iter().any(is_set) {
            let section = format!("[cluster.{}]", cluster.name);
            archiving.unknown = Some(format!("neither conninfo nor pgdata is set in {section}"));
            return archiving;
        }
        let asked = tokio::time::timeout(PATIENCE, archiving.ask_server(cluster)).await;
        let asked = asked.unwrap_or_else(|_| {
            let text = format!("the server didn't answer within {} s", PATIENCE.as_secs());
            Err(Error::new(Kind::Postgres, text))
        });
        if let Err(e) = asked {
            archiving.unknown = Some(e.to_string());
            if archiving.waiting.is_none() {
                archiving.waiting = archiving.waiting_in(cluster).map(Into::into);
            }
        }
        archiving
    }

    async fn ask_server(&mut self, cluster: &ClusterSettings) -> Result<()> {
        let info = ConnInfo::parse(&cluster.conninfo).map_err(|e| {
            let what = format!("read conninfo of [cluster.{}]", cluster.name);
            Error::new(Kind::Usage, what).because(e)
        })?;
        let info = info.with_application_name("pgkeep info");
        let to = |doing: &'static str| move |e| Error::of_server(doing, e);
        let mut client = Client::connect(&info, Mode::Sql).await.map_err(to("connect"))?;
        let position = Position::ask(&mut client).await.map_err(to("ask where it is"))?;
        let position = position.ok_or_else(|| {
            Error::new(Kind::Postgres, "the server doesn't say where its WAL has come to")
        })?;
        let version = client.server_version();
        self.server = Some(ServerInfo {
            version: version.to_string(),
            system: SystemId { major: version.major(), identifier: position.identifier },
            standby: position.in_recovery,
            timeline: position.timeline,
            flushed_lsn: position.flushed,
            archive_mode: position.archive_mode.clone(),
            time: position.now,
        });
        let archiver = Archiver::ask(&mut client).await.map_err(to("read pg_stat_archiver"))?;
        self.archiver = Some(ArchiverInfo::of(archiver, position.now));
        // Over the network the data directory of this name may be another server's.
        let local = if client.is_local() { self.waiting_in(cluster) } else { None };
        let waiting = match local {
            Some(waiting) => Some(waiting),
            None => Waiting::ask(&mut client).await.map_err(to("read archive_status"))?,
        };
        match waiting {
            Some(waiting) => self.waiting = Some(waiting.into()),
            None => self.not_allowed.push("waiting"),
        }
        let name = &cluster.stream.slot;
        let slot = Slot::ask(&mut client, name).await.map_err(to("read pg_replication_slots"))?;
        if slot.as_ref().is_some_and(|slot| slot.active && slot.sender.is_none()) {
            self.not_allowed.push("stream");
        }
        self.stream = Some(StreamInfo::of(name, slot, position.flushed));
        client.close().await;
        Ok(())
    }

    /// What the configured data directory says, where it is here and the server's.
    fn waiting_in(&self, cluster: &ClusterSettings) -> Option<Waiting> {
        let pgdata = cluster.pgdata.as_deref()?;
        let identifier = ControlFile::read(pgdata).ok()?.system_identifier;
        let is_ours = self.server.as_ref().is_none_or(|s| s.system.identifier == identifier);
        Waiting::read(pgdata).ok().filter(|_| is_ours)
    }
}

impl From<Waiting> for WaitingInfo {
    fn from(waiting: Waiting) -> Self {
        let (oldest, age) = waiting.oldest.unzip();
        WaitingInfo { files: waiting.files, segments: waiting.segments, oldest, age }
    }
}

impl ArchiverInfo {
    fn of(archiver: Archiver, now: DateTime<Utc>) -> Self {
        let (failing, rate) = (archiver.is_failing(), archiver.rate(now));
        let (last_failed, last_failed_at) = archiver.last_failed.unzip();
        ArchiverInfo {
            archived: archiver.archived_count,
            last_archived: archiver.last_archived,
            last_archived_at: archiver.last_archived_time,
            failed: archiver.failed_count,
            last_failed,
            last_failed_at,
            failing,
            since: archiver.since,
            rate,
        }
    }
}

impl StreamInfo {
    fn of(name: &str, slot: Option<Slot>, server: Lsn) -> Self {
        let exists = slot.is_some();
        let slot = slot.unwrap_or_default();
        let behind = |lsn: Option<Lsn>| lsn.map(|lsn| server.0.saturating_sub(lsn.0));
        let (state, flushed_lsn, sync_state) = match slot.sender {
            Some(sender) => (Some(sender.state), sender.flushed, sender.sync_state),
            None => (None, None, None),
        };
        StreamInfo {
            slot: name.to_owned(),
            exists,
            active: slot.active,
            held: behind(slot.restart_lsn),
            wal_status: slot.wal_status,
            invalidation_reason: slot.invalidation_reason,
            restart_lsn: slot.restart_lsn,
            safe: slot.safe_wal_size,
            state,
            sync_state,
            flushed_lsn,
            behind: behind(flushed_lsn),
        }
    }
}
