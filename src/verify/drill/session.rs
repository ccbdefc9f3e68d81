//! Sessions on a drill's server, and what is asked in them.

use super::{conf, home::Home};
use crate::{
    config::DrillQuery,
    error::{Context, Error, Kind, Result},
    postgres::client::{Client, ConnInfo, Environment, Mode, PgError, Row},
};

/// How to reach the server.
pub struct Access {
    sockets: String,
    user: String,
}

/// Why there is no session.
pub enum NoSession {
    /// The role isn't there or isn't let in, which the configuration has to name right.
    Role(PgError),
    /// There is no such database.
    NoDatabase(PgError),
    /// Anything else.
    Other(PgError),
}

impl NoSession {
    /// What the server said.
    pub fn into_inner(self) -> PgError {
        match self {
            NoSession::Role(e) | NoSession::NoDatabase(e) | NoSession::Other(e) => e,
        }
    }
}

impl Access {
    /// As this user, over the home's socket.
    pub fn new(home: &Home, user: &str) -> Self {
        Access { sockets: home.sockets().display().to_string(), user: user.to_owned() }
    }

    /// The user.
    pub fn user(&self) -> &str {
        &self.user
    }

    /// The directory with the socket.
    pub fn sockets(&self) -> &str {
        &self.sockets
    }

    /// Opens a session.
    pub async fn connect(&self, database: &str) -> Result<Client, NoSession> {
        let words = [
            ("host", self.sockets.as_str()),
            ("port", conf::PORT),
            ("user", &self.user),
            ("dbname", database),
            ("application_name", "pgkeep drill"),
        ];
        let info: Vec<String> =
            words.iter().map(|(key, value)| format!("{key}={}", quoted(value))).collect();
        let nothing_else = Environment::new(&[], None, None);
        let info = ConnInfo::parse_in(&info.join(" "), &nothing_else)
            .map_err(|e| NoSession::Other(PgError::ConnInfo(e)))?
            // The queries are the user's, and so is the time that they may take.
            .with_stall_timeout(None);
        Client::connect(&info, Mode::Sql).await.map_err(|e| match e.code() {
            // Invalid authorization; also a role that doesn't exist or may not log in.
            Some(code) if code.starts_with("28") => NoSession::Role(e),
            Some("3D000") => NoSession::NoDatabase(e),
            _ => NoSession::Other(e),
        })
    }

    /// The error for a role that can't be used.
    pub fn wrong_role(&self, e: PgError) -> Error {
        Error::of_server(format!("connect to the restored server as {}", self.user), e)
            .hint("name a role that the cluster has: user in [drill], or in the cluster's conninfo")
    }
}

/// A value of a connection string.
fn quoted(value: &str) -> String {
    format!("'{}'", value.replace('\\', "\\\\").replace('\'', "\\'"))
}

/// What one query came to.
pub enum Answer {
    /// What was expected.
    AsExpected,
    /// This instead.
    Other(String),
    /// The server refused, or there is no such database.
    Error(PgError),
}

/// Asks one of the user's queries.
///
/// # Errors
///
/// When the role can't be used: that isn't the backup's fault.
pub async fn ask(access: &Access, query: &DrillQuery) -> Result<Answer> {
    let mut client = match access.connect(&query.database).await {
        Ok(client) => client,
        Err(NoSession::Role(e)) => return Err(access.wrong_role(e)),
        Err(e) => return Ok(Answer::Error(e.into_inner())),
    };
    let asked = async {
        // As whoever wrote it finds it: names are looked up as the role and the database have it.
        client.execute("RESET search_path").await?;
        client.query(&query.sql).await
    };
    let answer = match asked.await {
        Ok(rows) => {
            let came = printed(&rows);
            match came == query.expect.trim_end_matches('\n') {
                true => Answer::AsExpected,
                false => Answer::Other(came),
            }
        }
        Err(e) => Answer::Error(e),
    };
    client.close().await;
    Ok(answer)
}

/// Rows as `psql -At` prints them.
fn printed(rows: &[Row]) -> String {
    let line = |row: &Row| {
        let values = (0..row.len()).map(|i| {
            row.bytes(i).map(|b| String::from_utf8_lossy(b).into_owned()).unwrap_or_default()
        });
        values.collect::<Vec<_>>().join("|")
    };
    rows.iter().map(line).collect::<Vec<_>>().join("\n")
}

/// The first value of the first row.
pub async fn value(client: &mut Client, sql: &str) -> Result<Option<String>> {
    let rows = client.query(sql).await.context(Kind::Postgres, || "ask the restored server")?;
    Ok(rows.first().and_then(|row| row.get(0)).map(str::to_owned))
}
