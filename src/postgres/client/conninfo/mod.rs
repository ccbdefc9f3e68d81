//! Where and how to connect, read as libpq reads it (documentation, "Database Connection Control
//! Functions"; `fe-connect.c`).
//!
//! A connection string wins over the service file, which wins over `PG*` variables, which win over
//! the defaults. Where this differs from libpq, it is on the safe side or for a client that runs
//! unattended:
//!
//! - A key that isn't supported is an error by name (`keys.rs`).
//! - `dbname` defaults to `postgres`, not to the user's name: a backup concerns the whole cluster.
//! - `connect_timeout` defaults to 30 seconds, and TCP keepalives to 60 seconds of silence and 6
//!   probes 10 seconds apart, so that a black-holed connection ends in bounded time.
//! - `sslrootcert` that names a file that isn't there is an error for every sslmode.
//! - A cleartext password is sent only over TLS or a Unix socket.
//! - `client_encoding` is always UTF8.

mod environment;
mod keys;
mod options;
pub(super) mod passfile;
mod text;

mod service;

use std::{
    collections::HashMap,
    fmt,
    net::IpAddr,
    path::{Path, PathBuf},
    time::Duration,
};

use zeroize::Zeroizing;

pub use environment::Environment;
pub use options::DEFAULT_STALL_TIMEOUT;
pub(super) use options::{
    AuthMethod, CertMode, ChannelBindingMode, KeepAlive, Negotiation, RequiredAuth, RootCert,
    SessionAttrs, SslMode, TlsOptions,
};

/// A connection string that can't be used. The message never has the password in it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct ConnInfoError {
    message: String,
    hint: Option<String>,
}

impl ConnInfoError {
    fn new(message: impl Into<String>) -> Self {
        ConnInfoError { message: message.into(), hint: None }
    }

    fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    /// What to do next.
    pub fn hint_text(&self) -> Option<&str> {
        self.hint.as_deref()
    }
}

/// A password. It is wiped from memory when dropped, and never shown.
#[derive(Clone)]
pub(super) struct Secret(Zeroizing<String>);

impl Secret {
    fn new(text: String) -> Self {
        Secret(Zeroizing::new(text))
    }

    pub(super) fn reveal(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("(secret)")
    }
}

/// One of the servers to try.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Host {
    /// As given; for a socket the directory, for an address alone `None`.
    pub(super) name: Option<String>,
    pub(super) place: Place,
    pub(super) port: u16,
}

/// How a server is reached.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Place {
    /// A socket in this directory.
    Directory(PathBuf),
    /// A socket in the abstract namespace; this name comes before `/.s.PGSQL.<port>`.
    Abstract(String),
    /// A host name, to be looked up.
    Name(String),
    /// An address, from `hostaddr`.
    Address(IpAddr),
}

impl Host {
    /// What the password file calls this host: `localhost` for the default socket directory.
    pub(super) fn in_password_file(&self) -> String {
        match (&self.place, &self.name) {
            (Place::Directory(directory), _)
                if DEFAULT_DIRECTORIES.iter().any(|d| directory == Path::new(d)) =>
            {
                "localhost".to_owned()
            }
            (Place::Directory(directory), _) => directory.display().to_string(),
            (Place::Abstract(name), _) => name.clone(),
            (_, Some(name)) => name.clone(),
            (Place::Name(name), None) => name.clone(),
            (Place::Address(address), None) => address.to_string(),
        }
    }

    /// Whether it is a Unix socket.
    pub(super) fn is_socket(&self) -> bool {
        matches!(self.place, Place::Directory(_) | Place::Abstract(_))
    }
}

/// For people, in messages.
impl fmt::Display for Host {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let port = self.port;
        match (&self.place, &self.name) {
            (Place::Directory(directory), _) => {
                write!(f, "socket {}/.s.PGSQL.{port}", directory.display())
            }
            (Place::Abstract(name), _) => write!(f, "socket {name}/.s.PGSQL.{port}"),
            (Place::Name(name), _) => write!(f, "{name}:{port}"),
            (Place::Address(address), Some(name)) => write!(f, "{name} ({address}):{port}"),
            (Place::Address(address), None) => write!(f, "{address}:{port}"),
        }
    }
}

/// Debian's and the RPMs' socket directory, then that of an unpackaged build.
const DEFAULT_DIRECTORIES: [&str; 2] = ["/var/run/postgresql", "/tmp"];

/// Where and how to connect.
#[derive(Debug, Clone)]
pub struct ConnInfo {
    pub(super) hosts: Vec<Host>,
    pub(super) user: String,
    pub(super) dbname: String,
    pub(super) password: Option<Secret>,
    pub(super) passfile: Option<PathBuf>,
    pub(super) tls: TlsOptions,
    pub(super) channel_binding: ChannelBindingMode,
    pub(super) require_auth: Option<RequiredAuth>,
    /// For each address; `None` waits for ever.
    pub(super) connect_timeout: Option<Duration>,
    /// How long the server may say nothing when it was asked; `None` waits for ever.
    pub(super) stall_timeout: Option<Duration>,
    pub(super) keep_alive: KeepAlive,
    pub(super) session_attrs: SessionAttrs,
    pub(super) random_host: bool,
    pub(super) options: Option<String>,
    pub(super) application_name: String,
}

impl ConnInfo {
    /// Reads a connection string, completed from this process's environment.
    pub fn parse(text: &str) -> Result<Self, ConnInfoError> {
        Self::parse_in(text, &Environment::of_process())
    }

    /// Reads a connection string, completed from `environment`.
    pub fn parse_in(text: &str, environment: &Environment) -> Result<Self, ConnInfoError> {
        let mut values = Values::default();
        values.add(text::parse(text)?, "the connection string")?;
        let service = values.get("service").or(environment.variable("PGSERVICE"));
        if let Some(service) = service.map(str::to_owned) {
            let file = values.get("servicefile").or(environment.variable("PGSERVICEFILE"));
            let pairs = service::load(&service, file, environment)?;
            values.complete(pairs, "the service file")?;
        }
        let from_environment = keys::variables()
            .filter_map(|(variable, key)| {
                Some((key.to_owned(), environment.variable(variable)?.to_owned()))
            })
            .collect();
        values.complete(from_environment, "the environment")?;
        options::build(&values, environment)
    }

    /// The same, with this `application_name` unless the connection string, the service or
    /// `PGAPPNAME` says another (as libpq's `fallback_application_name`, which is `pgkeep` here).
    #[must_use]
    pub fn with_application_name(mut self, name: &str) -> Self {
        if self.application_name == options::FALLBACK_APPLICATION_NAME {
            name.clone_into(&mut self.application_name);
        }
        self
    }

    /// The same, with another time after which a server that says nothing is given up; `None` waits for
    /// ever. [`DEFAULT_STALL_TIMEOUT`] unless it is said. libpq has no such limit, and the kernel's
    /// ([keepalives](self)) don't see a server that is stopped, or something in between that answers for it.
    #[must_use]
    pub fn with_stall_timeout(mut self, limit: Option<Duration>) -> Self {
        self.stall_timeout = limit;
        self
    }

    /// The same, with another database. Replication connections have none.
    #[must_use]
    pub fn with_database(mut self, dbname: &str) -> Self {
        dbname.clone_into(&mut self.dbname);
        self
    }

    /// What the session calls itself: in `pg_stat_replication`, and to `synchronous_standby_names`.
    pub fn application_name(&self) -> &str {
        &self.application_name
    }

    /// The user to connect as.
    pub fn user(&self) -> &str {
        &self.user
    }
}

/// Where it leads, for people: hosts, user and database. Never a password.
impl fmt::Display for ConnInfo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, host) in self.hosts.iter().enumerate() {
            write!(f, "{}{host}", if i == 0 { "" } else { ", " })?;
        }
        write!(f, " as user {} on database {}", self.user, self.dbname)
    }
}

/// The keys' values, gathered from all the places.
#[derive(Default)]
struct Values(HashMap<String, Zeroizing<String>>);

impl Values {
    /// Adds pairs of which later ones win.
    fn add(&mut self, pairs: text::Pairs, place: &str) -> Result<(), ConnInfoError> {
        for (key, value) in pairs {
            keys::check(&key, place)?;
            self.0.insert(key, Zeroizing::new(value));
        }
        Ok(())
    }

    /// Adds what isn't there yet.
    fn complete(&mut self, pairs: text::Pairs, place: &str) -> Result<(), ConnInfoError> {
        for (key, value) in pairs {
            keys::check(&key, place)?;
            self.0.entry(key).or_insert(Zeroizing::new(value));
        }
        Ok(())
    }

    /// The value; an empty one means the default.
    fn get(&self, key: &str) -> Option<&str> {
        self.0.get(key).map(|v| v.as_str()).filter(|v| !v.is_empty())
    }
}

#[cfg(test)]
mod tests;
