//! What connections fail with. The server's own words come through: message, SQLSTATE, detail, hint.

use std::{fmt, io, time::Duration};

use super::conninfo::ConnInfoError;

/// An error or a notice as the server sent it (documentation, "Error and Notice Message Fields").
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ServerError {
    /// `ERROR`, `FATAL`, `WARNING` and so on, never translated.
    pub severity: String,
    /// The SQLSTATE, five characters.
    pub code: String,
    /// What happened, in the server's language.
    pub message: String,
    /// More about it.
    pub detail: Option<String>,
    /// What the server suggests.
    pub hint: Option<String>,
}

impl ServerError {
    /// Whether the server ends the connection with this.
    pub fn is_fatal(&self) -> bool {
        matches!(self.severity.as_str(), "FATAL" | "PANIC")
    }
}

/// The message with severity, SQLSTATE and detail. The hint is told apart from it.
impl fmt::Display for ServerError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.severity, self.message)?;
        if let Some(detail) = &self.detail {
            write!(f, ": {}", detail.trim_end_matches('.'))?;
        }
        write!(f, " (SQLSTATE {})", self.code)
    }
}

/// Why something with PostgreSQL didn't work.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PgError {
    /// The server said so.
    #[error("PostgreSQL says {0}")]
    Server(Box<ServerError>),
    /// The connection string can't be used.
    #[error(transparent)]
    ConnInfo(#[from] ConnInfoError),
    /// No connection to a server.
    #[error("can't connect to PostgreSQL at {target}: {reason}")]
    Connect {
        /// Host and port, or the socket's path.
        target: String,
        /// What the system said.
        reason: String,
        /// What to do next.
        hint: Option<String>,
    },
    /// None of several servers will do.
    #[error("none of the servers can be used: {}", list(.0))]
    NoServer(Vec<PgError>),
    /// TLS isn't to be had, or the server's certificate isn't trusted.
    #[error("no TLS connection to PostgreSQL at {target}: {reason}")]
    Tls {
        /// Host and port.
        target: String,
        /// What is wrong.
        reason: String,
        /// What to do next.
        hint: Option<String>,
    },
    /// The server asks who we are in a way that can't be answered.
    #[error("can't authenticate to PostgreSQL at {target}: {reason}")]
    Auth {
        /// Host and port, or the socket's path.
        target: String,
        /// What is wrong.
        reason: String,
        /// What to do next.
        hint: Option<String>,
    },
    /// The server doesn't have what is needed: it is too old, or not what `target_session_attrs`
    /// asks for.
    #[error("{0}")]
    Unsuitable(String),
    /// The server closed the connection without a word.
    #[error("PostgreSQL closed the connection unexpectedly")]
    Closed,
    /// The server was asked and says nothing, while the connection stays open.
    #[error("PostgreSQL has said nothing for {} s, and the connection is still open", .0.as_secs())]
    Silent(Duration),
    /// The connection broke.
    #[error("the connection to PostgreSQL broke: {0}")]
    Io(#[from] io::Error),
    /// The server sent what it shouldn't, or the client was used out of turn.
    #[error("PostgreSQL protocol: {0}")]
    Protocol(String),
}

fn list(errors: &[PgError]) -> String {
    errors.iter().map(PgError::to_string).collect::<Vec<_>>().join("; ")
}

impl PgError {
    /// The SQLSTATE, if the server said one.
    pub fn code(&self) -> Option<&str> {
        match self {
            PgError::Server(e) => Some(&e.code),
            _ => None,
        }
    }

    /// The server's error, if it is one.
    pub fn server(&self) -> Option<&ServerError> {
        match self {
            PgError::Server(e) => Some(e),
            _ => None,
        }
    }

    /// What to do next: the server's own hint, else ours.
    pub fn hint(&self) -> Option<&str> {
        match self {
            PgError::Server(e) => e.hint.as_deref().or_else(|| hint_for(&e.code)),
            PgError::ConnInfo(e) => e.hint_text(),
            PgError::Connect { hint, .. }
            | PgError::Tls { hint, .. }
            | PgError::Auth { hint, .. } => hint.as_deref(),
            PgError::NoServer(errors) => errors.iter().find_map(PgError::hint),
            PgError::Closed => Some("the server's log says why"),
            PgError::Io(_) => Some("is the server still there? Its log may say why"),
            PgError::Silent(_) => Some(
                "is the server stopped or overloaded, or does something on the way hold back what it \
                 says? stall-timeout in [cluster.NAME] says how long to wait",
            ),
            PgError::Unsuitable(_) | PgError::Protocol(_) => None,
        }
    }

    /// Whether another server, or the same one later, may answer: nothing was refused.
    pub fn is_unreachable(&self) -> bool {
        match self {
            PgError::Connect { .. } | PgError::Closed | PgError::Io(_) | PgError::Silent(_) => true,
            // cannot_connect_now: starting up, shutting down, or in recovery without hot standby.
            PgError::Server(e) => e.code == "57P03",
            PgError::NoServer(errors) => errors.iter().any(PgError::is_unreachable),
            _ => false,
        }
    }

    pub(in crate::postgres) fn protocol(message: impl Into<String>) -> Self {
        PgError::Protocol(message.into())
    }
}

impl From<ServerError> for PgError {
    fn from(e: ServerError) -> Self {
        PgError::Server(Box::new(e))
    }
}

/// What to do about errors for which the server has no hint itself (`errcodes.txt`).
fn hint_for(code: &str) -> Option<&'static str> {
    Some(match code {
        "28P01" => "check the password: .pgpass, PGPASSWORD or the connection string",
        "28000" => {
            "is there a role of this name that may log in? pg_hba.conf has to let it: a replication \
             connection needs a line whose database is the word replication"
        }
        "42501" => {
            "the role needs more rights: for a backup the attribute REPLICATION, for check and \
             backup membership in pg_monitor, and EXECUTE on the functions it calls"
        }
        "53300" => "raise max_connections or max_wal_senders, or free a connection",
        "55006" => {
            "another process uses it: the server's views pg_replication_slots and \
             pg_stat_activity say which; two streams need two slots"
        }
        "57P03" => "wait until the server has started; its log says how far it is",
        "3D000" => "say dbname= in the connection string",
        _ => return None,
    })
}
