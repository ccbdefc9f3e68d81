//! Connections to PostgreSQL, ordinary and for replication (documentation, "Frontend/Backend
//! Protocol").
//!
//! Only the simple query protocol is spoken, because that is all that replication connections know;
//! SQL values are quoted with [`quote_literal`]. [`ConnInfo`] says where to connect, read as libpq
//! reads it. The messages are `postgres-protocol`'s on the way out and read by our own code on the
//! way in, so that data of a base backup is handed out as it lies in the read buffer, and no message
//! type of a newer server is in the way.
//!
//! Nothing is read from a socket unless somebody awaits it: a caller that doesn't ask for the next
//! part of a backup makes the server wait.

mod auth;
pub mod certificate;
mod connect;
mod connection;
mod conninfo;
mod error;
mod message;
mod quote;
mod row;
mod socket;
mod tls;
mod verify;

use std::{collections::HashMap, fmt, sync::Arc, time::Duration};

use bytes::{Bytes, BytesMut};
use postgres_protocol::message::frontend;
use tokio::time::timeout;

pub(in crate::postgres) use auth::unexpected;
pub use conninfo::{ConnInfo, ConnInfoError, DEFAULT_STALL_TIMEOUT, Environment};
pub use error::{PgError, ServerError};
pub(in crate::postgres) use message::{Message, bytes_to_nul};
pub(in crate::postgres) use quote::quote_replication;
pub use quote::{quote_ident, quote_literal};
pub use row::Row;

use super::SUPPORTED;
use connection::Connection;

/// The most that the rows of a result may take, in bytes, their own bookkeeping counted roughly: millions of
/// rows, where the longest results that are asked for have some thousands.
const MAX_RESULT: usize = 256 << 20;

/// What a value takes beside its bytes, roughly.
const VALUE: usize = 32;

/// What a connection is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// SQL on the database of the connection string.
    Sql,
    /// Replication commands; no database (`replication=true` in the startup message). The role
    /// needs the attribute REPLICATION, and `pg_hba.conf` a line for `replication`.
    Replication,
}

/// A server's version.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServerVersion {
    /// As `server_version_num`: 150018 is 15.18.
    pub num: u32,
    /// As the server writes it: `15.18 (Debian 15.18-0+deb12u1)`.
    pub text: String,
}

impl ServerVersion {
    /// Reads `server_version`. Only the numbers at the beginning count, so `19beta1` is 190000.
    pub(in crate::postgres) fn parse(text: &str) -> Option<Self> {
        let digits = |s: &str| -> Option<u32> {
            let end = s.find(|c: char| !c.is_ascii_digit()).unwrap_or(s.len());
            s.get(..end)?.parse().ok()
        };
        let major = digits(text).filter(|&major| major < 1000)?;
        let minor = text.split_once('.').filter(|(m, _)| digits(m) == Some(major));
        let minor = minor
            .filter(|(m, _)| m.bytes().all(|b| b.is_ascii_digit()))
            .and_then(|(_, rest)| digits(rest))
            .filter(|&minor| minor < 10_000);
        Some(ServerVersion { num: major * 10_000 + minor.unwrap_or(0), text: text.to_owned() })
    }

    /// The major version: 15 for 15.18.
    pub fn major(&self) -> u32 {
        self.num / 10_000
    }

    /// Refuses a version that isn't one of [`SUPPORTED`].
    pub fn check_supported(&self) -> Result<(), PgError> {
        let (first, last) = (SUPPORTED.start(), SUPPORTED.end());
        if SUPPORTED.contains(&self.major()) {
            return Ok(());
        }
        let message = format!("PostgreSQL {self} isn't supported: {first} to {last} are");
        Err(PgError::Unsuitable(message))
    }
}

impl fmt::Display for ServerVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

/// A session with a server.
///
/// Dropping it closes the socket, which ends what the server was doing for it as soon as the server
/// notices. [`Client::close`] says goodbye first.
pub struct Client {
    connection: Connection,
    parameters: HashMap<String, String>,
    version: ServerVersion,
    /// How long the server may say nothing when it was asked.
    stall_timeout: Option<Duration>,
    /// A command was sent and its end not yet seen.
    busy: bool,
}

impl Client {
    /// Connects to the first server of `info` that will do.
    ///
    /// An SQL session is made fit for long work: no timeouts of statements, locks, transactions or
    /// idling, an empty `search_path`, ISO dates.
    pub async fn connect(info: &ConnInfo, mode: Mode) -> Result<Self, PgError> {
        connect::connect(info, mode).await
    }

    fn new(
        connection: Connection,
        parameters: Vec<(String, String)>,
        stall_timeout: Option<Duration>,
    ) -> Result<Self, PgError> {
        let parameters: HashMap<String, String> = parameters.into_iter().collect();
        let version = parameters
            .get("server_version")
            .and_then(|text| ServerVersion::parse(text))
            .ok_or_else(|| PgError::protocol("the server doesn't say its version"))?;
        Ok(Client { connection, parameters, version, stall_timeout, busy: false })
    }

    /// The version of the server.
    pub fn server_version(&self) -> &ServerVersion {
        &self.version
    }

    /// Whether the server is reached over a Unix socket, and so is on this host, if perhaps with
    /// another view of its files.
    pub fn is_local(&self) -> bool {
        self.connection.is_unix()
    }

    /// How long the server may say nothing when it was asked; `None` waits for ever.
    pub(in crate::postgres) fn stall_timeout(&self) -> Option<Duration> {
        self.stall_timeout
    }

    /// A parameter that the server reports by itself (documentation, "Asynchronous Operations"), as
    /// `in_hot_standby`: its value now, as far as messages were read.
    pub fn parameter(&self, name: &str) -> Option<&str> {
        self.parameters.get(name).map(String::as_str)
    }

    /// Runs `sql` and returns the rows of its last result set. Notices are logged.
    ///
    /// After an error the session can be used again, unless the server ended it.
    pub async fn query(&mut self, sql: &str) -> Result<Vec<Row>, PgError> {
        self.query_within(sql, self.stall_timeout).await
    }

    /// As [`Client::query`], of a question whose answer takes the server long: it is waited for ten times
    /// as long.
    pub async fn query_long(&mut self, sql: &str) -> Result<Vec<Row>, PgError> {
        self.query_within(sql, self.stall_timeout.map(|limit| limit * 10)).await
    }

    async fn query_within(
        &mut self,
        sql: &str,
        limit: Option<Duration>,
    ) -> Result<Vec<Row>, PgError> {
        self.send_query(sql).await?;
        let mut columns: Arc<[String]> = Arc::from(Vec::new());
        let (mut rows, mut taken) = (Vec::new(), 0usize);
        loop {
            match self.receive_within(limit).await? {
                Message::RowDescription(names) => {
                    columns = Arc::from(names);
                    rows.clear();
                    taken = 0;
                }
                Message::DataRow(values) => {
                    let sizes = values.iter().map(|v| VALUE + v.as_ref().map_or(0, Bytes::len));
                    taken += VALUE + sizes.sum::<usize>();
                    if taken > MAX_RESULT {
                        return Err(PgError::protocol(format!(
                            "a result is longer than {} MiB",
                            MAX_RESULT >> 20
                        )));
                    }
                    rows.push(Row::new(Arc::clone(&columns), values));
                }
                Message::CommandComplete(_) | Message::EmptyQuery => {}
                Message::Notice(notice) => log(&notice),
                Message::ReadyForQuery => return Ok(rows),
                Message::Error(error) => return Err(self.recover(error).await),
                other => return Err(unexpected(&other)),
            }
        }
    }

    /// Runs `sql` for its effect.
    pub async fn execute(&mut self, sql: &str) -> Result<(), PgError> {
        self.query(sql).await.map(drop)
    }

    /// Ends the session.
    pub async fn close(self) {
        self.connection.close().await;
    }

    /// Sends a command by the simple query protocol; [`Client::receive`] has what comes back.
    pub(in crate::postgres) async fn send_query(&mut self, sql: &str) -> Result<(), PgError> {
        if self.busy {
            return Err(PgError::protocol(
                "the connection is in the middle of another command, or was left there",
            ));
        }
        let mut message = BytesMut::with_capacity(sql.len() + 6);
        frontend::query(sql, &mut message)
            .map_err(|e| PgError::protocol(format!("a command can't be written: {e}")))?;
        self.busy = true;
        self.send(&message).await
    }

    /// Sends whole messages, to a server that takes them.
    async fn send(&mut self, messages: &[u8]) -> Result<(), PgError> {
        match self.stall_timeout {
            None => self.connection.send(messages).await,
            Some(limit) => timeout(limit, self.connection.send(messages))
                .await
                .unwrap_or(Err(PgError::Silent(limit))),
        }
    }

    /// The next message, but for those that may come at any time and need no answer. A server that says
    /// nothing for the connection's stall timeout is given up ([`PgError::Silent`]).
    pub(in crate::postgres) async fn receive(&mut self) -> Result<Message, PgError> {
        self.receive_within(self.stall_timeout).await
    }

    /// As [`Client::receive`], where the server may well have nothing to say for long.
    pub(in crate::postgres) async fn receive_at_last(&mut self) -> Result<Message, PgError> {
        self.receive_within(None).await
    }

    async fn receive_within(&mut self, limit: Option<Duration>) -> Result<Message, PgError> {
        loop {
            match self.connection.receive(limit).await? {
                Message::ParameterStatus(name, value) => {
                    self.parameters.insert(name, value);
                }
                Message::Notification => {}
                message => {
                    self.busy &= !matches!(message, Message::ReadyForQuery);
                    return Ok(message);
                }
            }
        }
    }

    /// Sends a part of the data that the server waits for after [`Message::CopyIn`].
    ///
    /// What the server says meanwhile isn't looked at: [`Client::received`] has it.
    pub(in crate::postgres) async fn send_copy_data(&mut self, data: &[u8]) -> Result<(), PgError> {
        let mut message = BytesMut::with_capacity(data.len() + 5);
        frontend::CopyData::new(data)
            .map_err(|e| PgError::protocol(format!("data can't be sent: {e}")))?
            .write(&mut message);
        self.send(&message).await
    }

    /// Says that the data is complete.
    pub(in crate::postgres) async fn send_copy_done(&mut self) -> Result<(), PgError> {
        let mut message = BytesMut::new();
        frontend::copy_done(&mut message);
        self.send(&message).await
    }

    /// The next message, if it is here already: while data is being sent, nobody waits for one.
    pub(in crate::postgres) async fn received(&mut self) -> Result<Option<Message>, PgError> {
        tokio::select! {
            biased;
            message = self.receive() => message.map(Some),
            () = std::future::ready(()) => Ok(None),
        }
    }

    /// After an error: reads to the end of the command, so that the session can be used again.
    /// Gives the error back.
    pub(in crate::postgres) async fn recover(&mut self, error: ServerError) -> PgError {
        // If the connection ends here, the error is the reason.
        while !error.is_fatal() && self.busy && self.receive().await.is_ok() {}
        error.into()
    }

    /// Settings for SQL sessions, so that a role's or a database's own don't get in the way.
    async fn prepare_session(&mut self) -> Result<(), PgError> {
        let mut settings = vec![
            "SET statement_timeout = 0",
            "SET lock_timeout = 0",
            "SET idle_in_transaction_session_timeout = 0",
            "SET datestyle = 'ISO'",
            "SELECT pg_catalog.set_config('search_path', '', false)",
        ];
        if self.version.major() >= 14 {
            settings.push("SET idle_session_timeout = 0");
        }
        if self.version.major() >= 17 {
            settings.push("SET transaction_timeout = 0");
        }
        self.execute(&settings.join("; ")).await
    }
}

impl fmt::Debug for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Client")
            .field("version", &self.version.text)
            .field("busy", &self.busy)
            .finish_non_exhaustive()
    }
}

/// Logs a notice that nobody else asks for.
pub(in crate::postgres) fn log(notice: &ServerError) {
    match notice.severity.as_str() {
        "WARNING" => tracing::warn!("PostgreSQL: {notice}"),
        _ => tracing::info!("PostgreSQL: {notice}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_read_from_what_servers_say() {
        let num = |text| ServerVersion::parse(text).map(|v| v.num);
        assert_eq!(num("15.18 (Debian 15.18-0+deb12u1)"), Some(150_018));
        assert_eq!(num("18.4"), Some(180_004));
        assert_eq!(num("19beta1"), Some(190_000));
        assert_eq!(num("19devel"), Some(190_000));
        assert_eq!(num("16rc1 (build 3.2)"), Some(160_000));
        assert_eq!(num("99999999999"), None);
        assert_eq!(num("devel"), None);
        let supported = |text| ServerVersion::parse(text).unwrap().check_supported().is_ok();
        assert!(supported("15.0") && supported("18.4"));
        assert!(!supported("14.20") && !supported("19beta1"));
    }
}
