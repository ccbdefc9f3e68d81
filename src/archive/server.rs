//! What `check` asks the server.

use std::collections::BTreeMap;

use crate::{
    config::ClusterSettings,
    error::{Error, Kind, Result},
    postgres::{
        SegmentName,
        archiving::{Archiver, Slot},
        client::{Client, ConnInfo, Mode, Row, quote_literal},
    },
    repo::SystemId,
};

/// SQLSTATE insufficient_privilege.
const NOT_PERMITTED: &str = "42501";

/// The settings that decide about archiving and backups.
const SETTINGS: [&str; 8] = [
    "archive_command",
    "archive_library",
    "archive_mode",
    "archive_timeout",
    "data_directory",
    "max_wal_senders",
    "synchronous_standby_names",
    "wal_level",
];

/// A connection, and what was asked first.
pub struct Server {
    client: Client,
    /// How it is reached.
    pub info: ConnInfo,
    /// Its system.
    pub system: SystemId,
    /// Whether it is a standby.
    pub in_recovery: bool,
    settings: BTreeMap<String, String>,
}

impl Server {
    /// Connects and asks who is there.
    pub async fn connect(cluster: &ClusterSettings) -> Result<Self> {
        let info = ConnInfo::parse(&cluster.conninfo)
            .map_err(|e| {
                let hint = e.hint_text().map(str::to_owned);
                let what = format!("read conninfo of [cluster.{}]", cluster.name);
                with_hint(Error::new(Kind::Usage, what).because(e), hint)
            })?
            .with_application_name("pgkeep check")
            .with_stall_timeout(Some(cluster.stall_timeout));
        let mut client =
            Client::connect(&info, Mode::Sql).await.map_err(|e| Error::of_server("connect", e))?;
        let version = client.server_version().clone();
        version.check_supported().map_err(|e| Error::of_server("connect", e))?;
        let names = SETTINGS.map(|name| format!("'{name}'")).join(", ");
        let sql =
            format!("SELECT name, setting FROM pg_catalog.pg_settings WHERE name IN ({names})");
        let rows =
            client.query(&sql).await.map_err(|e| Error::of_server("read its settings", e))?;
        let setting = |row: &Row| Some((row.get(0)?.to_owned(), row.get(1)?.to_owned()));
        let settings = rows.iter().filter_map(setting).collect();
        let sql = "SELECT system_identifier, pg_catalog.pg_is_in_recovery() \
                   FROM pg_catalog.pg_control_system()";
        let rows = client.query(sql).await.map_err(|e| {
            let denied = e.code() == Some(NOT_PERMITTED);
            let error = Error::of_server("read its system identifier", e);
            match denied {
                true => error.hint(grant("pg_control_system()", info.user())),
                false => error,
            }
        })?;
        let answer = rows.first().and_then(|row| {
            // The identifier is shown as a signed number.
            Some((row.get(0)?.parse::<i64>().ok()?.cast_unsigned(), row.get(1)? == "t"))
        });
        let (identifier, in_recovery) = answer.ok_or_else(|| {
            Error::new(Kind::Postgres, "the server doesn't say its system identifier")
        })?;
        let system = SystemId { major: version.major(), identifier };
        Ok(Server { client, info, system, in_recovery, settings })
    }

    /// One of [`SETTINGS`]; empty where this role may not see it.
    pub fn setting(&self, name: &str) -> &str {
        self.settings.get(name).map_or("", String::as_str)
    }

    /// Whether it is reached over a Unix socket.
    pub fn is_local(&self) -> bool {
        self.client.is_local()
    }

    /// What it is.
    pub fn describe(&self) -> String {
        format!(
            "PostgreSQL {}, system {}, {}",
            self.client.server_version(),
            self.system.identifier,
            if self.in_recovery { "a standby" } else { "a primary" }
        )
    }

    /// Writes `mark` into the WAL and closes the segment that it is in, which is returned.
    ///
    /// The mark is written several times over: a page's header may stand in the middle of one.
    pub async fn close_segment(&mut self, mark: &str) -> Result<SegmentName> {
        let message = quote_literal(&[mark; 3].join(" "));
        let write = format!(
            "SELECT pg_catalog.pg_walfile_name(\
             pg_catalog.pg_logical_emit_message(false, 'pgkeep', {message}))"
        );
        let rows =
            self.client.query(&write).await.map_err(|e| Error::of_server("write to the WAL", e))?;
        let switch = "SELECT pg_catalog.pg_switch_wal()";
        self.client.execute(switch).await.map_err(|e| {
            let denied = e.code() == Some(NOT_PERMITTED);
            let error = Error::of_server("close a WAL segment", e);
            match denied {
                true => error.hint(grant("pg_switch_wal()", self.info.user())),
                false => error,
            }
        })?;
        let name = rows.first().and_then(|row| row.get(0)).unwrap_or_default();
        name.parse().map_err(|e| Error::new(Kind::Postgres, "close a WAL segment").because(e))
    }

    /// A replication slot; `None` where there is none of this name.
    pub async fn slot(&mut self, name: &str) -> Result<Option<Slot>> {
        Slot::ask(&mut self.client, name)
            .await
            .map_err(|e| Error::of_server("read pg_replication_slots", e))
    }

    /// What the archiver has done so far.
    pub async fn archiver(&mut self) -> Result<Archiver> {
        Archiver::ask(&mut self.client)
            .await
            .map_err(|e| Error::of_server("read pg_stat_archiver", e))
    }
}

fn with_hint(error: Error, hint: Option<String>) -> Error {
    match hint {
        Some(hint) => error.hint(hint),
        None => error,
    }
}

fn grant(function: &str, user: &str) -> String {
    let user = crate::postgres::client::quote_ident(user);
    format!("as a superuser: GRANT EXECUTE ON FUNCTION pg_catalog.{function} TO {user}")
}
