//! From texts to typed settings, with their defaults.

use std::{net::IpAddr, path::Path, time::Duration};

use super::{
    ConnInfo, ConnInfoError, DEFAULT_DIRECTORIES, Environment, Host, Place, Secret, Values,
};

/// How much TLS is asked for (documentation, "SSL Mode Descriptions"). Unix sockets ignore it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(in crate::postgres::client) enum SslMode {
    Disable,
    Allow,
    Prefer,
    Require,
    VerifyCa,
    VerifyFull,
}

/// Whose signatures are trusted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::postgres::client) enum RootCert {
    /// The certificates of this file. If it is only the default one, it needn't exist.
    File { path: std::path::PathBuf, required: bool },
    /// The operating system's.
    System,
    /// There is no home directory to look in.
    None,
}

/// How TLS begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::postgres::client) enum Negotiation {
    /// Asked for in clear first.
    Postgres,
    /// At once (17 and later).
    Direct,
}

/// Whether a client certificate is sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::postgres::client) enum CertMode {
    Disable,
    Allow,
}

/// Everything about TLS.
#[derive(Debug, Clone)]
pub(in crate::postgres::client) struct TlsOptions {
    pub(in crate::postgres::client) mode: SslMode,
    pub(in crate::postgres::client) negotiation: Negotiation,
    pub(in crate::postgres::client) root_cert: RootCert,
    pub(in crate::postgres::client) cert_mode: CertMode,
    /// The file, and whether it was asked for (the default one needn't exist).
    pub(in crate::postgres::client) cert: Option<(std::path::PathBuf, bool)>,
    pub(in crate::postgres::client) key: Option<std::path::PathBuf>,
    pub(in crate::postgres::client) server_name_indication: bool,
    pub(in crate::postgres::client) tls12: bool,
    pub(in crate::postgres::client) tls13: bool,
}

/// Whether SCRAM is bound to the TLS channel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::postgres::client) enum ChannelBindingMode {
    Disable,
    Prefer,
    Require,
}

/// How a server may ask who we are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::postgres::client) enum AuthMethod {
    Password,
    Md5,
    Scram,
    /// The server asks for nothing.
    None,
    /// Methods that we don't have; they can be named all the same, to be excluded.
    Other,
}

/// `require_auth`: the methods that are allowed, or that aren't.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::postgres::client) struct RequiredAuth {
    methods: Vec<AuthMethod>,
    negated: bool,
    pub(in crate::postgres::client) text: String,
}

impl RequiredAuth {
    pub(in crate::postgres::client) fn allows(&self, method: AuthMethod) -> bool {
        self.methods.contains(&method) != self.negated
    }
}

/// TCP's own checks whether the other side is still there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::postgres::client) struct KeepAlive {
    pub(in crate::postgres::client) enabled: bool,
    /// Silence before the first probe.
    pub(in crate::postgres::client) idle: Option<Duration>,
    /// Between probes.
    pub(in crate::postgres::client) interval: Option<Duration>,
    /// Unanswered probes that end the connection.
    pub(in crate::postgres::client) count: Option<u32>,
    /// How long sent data may stay unacknowledged, in milliseconds; `None` leaves it to the system.
    pub(in crate::postgres::client) user_timeout: Option<u32>,
}

/// What the server has to be like.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::postgres::client) enum SessionAttrs {
    Any,
    ReadWrite,
    ReadOnly,
    Primary,
    Standby,
    PreferStandby,
}

/// What `application_name` is unless somebody says otherwise.
pub(super) const FALLBACK_APPLICATION_NAME: &str = "pgkeep";

const DEFAULT_PORT: u16 = 5432;
const DEFAULT_DATABASE: &str = "postgres";
const DEFAULT_CONNECT_TIMEOUT: Duration = Duration::from_secs(30);

/// After how long without a word a server is given up that was asked something.
pub const DEFAULT_STALL_TIMEOUT: Duration = Duration::from_secs(120);

const DEFAULT_KEEPALIVE: KeepAlive = KeepAlive {
    enabled: true,
    idle: Some(Duration::from_secs(60)),
    interval: Some(Duration::from_secs(10)),
    count: Some(6),
    // As long as the probes take. With it, data that was sent ends the wait as silence does.
    user_timeout: Some(120_000),
};

pub(super) fn build(values: &Values, environment: &Environment) -> Result<ConnInfo, ConnInfoError> {
    only_what_happens_anyway(values)?;
    let user = values.get("user").or(environment.user()).ok_or_else(|| {
        ConnInfoError::new("the name of the user that this process runs as can't be found")
            .hint("say user= in the connection string")
    })?;
    let passfile = values
        .get("passfile")
        .map(std::path::PathBuf::from)
        .or_else(|| environment.in_home(".pgpass"));
    let application_name = values
        .get("application_name")
        .or(values.get("fallback_application_name"))
        .unwrap_or(FALLBACK_APPLICATION_NAME);
    Ok(ConnInfo {
        hosts: hosts(values)?,
        user: user.to_owned(),
        dbname: values.get("dbname").unwrap_or(DEFAULT_DATABASE).to_owned(),
        password: values.get("password").map(|p| Secret::new(p.to_owned())),
        passfile,
        tls: tls(values, environment)?,
        channel_binding: choice(
            values,
            "channel_binding",
            ChannelBindingMode::Prefer,
            &[
                ("disable", ChannelBindingMode::Disable),
                ("prefer", ChannelBindingMode::Prefer),
                ("require", ChannelBindingMode::Require),
            ],
        )?,
        require_auth: values.get("require_auth").map(required_auth).transpose()?,
        connect_timeout: match number(values, "connect_timeout")? {
            None => Some(DEFAULT_CONNECT_TIMEOUT),
            Some(seconds) => {
                u64::try_from(seconds).ok().filter(|&seconds| seconds > 0).map(Duration::from_secs)
            }
        },
        stall_timeout: Some(DEFAULT_STALL_TIMEOUT),
        keep_alive: keep_alive(values)?,
        session_attrs: choice(
            values,
            "target_session_attrs",
            SessionAttrs::Any,
            &[
                ("any", SessionAttrs::Any),
                ("read-write", SessionAttrs::ReadWrite),
                ("read-only", SessionAttrs::ReadOnly),
                ("primary", SessionAttrs::Primary),
                ("standby", SessionAttrs::Standby),
                ("prefer-standby", SessionAttrs::PreferStandby),
            ],
        )?,
        random_host: choice(
            values,
            "load_balance_hosts",
            false,
            &[("disable", false), ("random", true)],
        )?,
        options: values.get("options").map(str::to_owned),
        application_name: application_name.to_owned(),
    })
}

/// Keys that are accepted only if they ask for what happens anyway.
fn only_what_happens_anyway(values: &Values) -> Result<(), ConnInfoError> {
    let accepted: [(&str, &[&str], &str); 6] = [
        (
            "client_encoding",
            &["utf8", "utf-8", "unicode", "auto"],
            "this program speaks UTF8 to the server",
        ),
        ("gssencmode", &["disable", "prefer"], "GSSAPI encryption isn't supported"),
        ("gssdelegation", &["0"], "GSSAPI authentication isn't supported"),
        ("sslcompression", &["0"], "TLS compression is unsafe and isn't supported"),
        (
            "min_protocol_version",
            &["3.0"],
            "only version 3.0 of the protocol is spoken; sslmode is about TLS",
        ),
        (
            "replication",
            &["0", "false", "off", "no"],
            "this program asks for replication itself where it needs it",
        ),
    ];
    for (key, allowed, why) in accepted {
        if let Some(value) = values.get(key)
            && !allowed.contains(&value.to_ascii_lowercase().as_str())
        {
            return Err(ConnInfoError::new(format!(
                "the connection parameter {key}={value} isn't supported: {why}"
            )));
        }
    }
    // Each server speaks 3.0, so any maximum will do.
    choice(values, "max_protocol_version", (), &[("3.0", ()), ("3.2", ()), ("latest", ())])
}

fn hosts(values: &Values) -> Result<Vec<Host>, ConnInfoError> {
    let list = |key| values.get(key).map(|text| text.split(',').collect::<Vec<_>>());
    let (names, addresses) = (list("host"), list("hostaddr"));
    let count = match (&names, &addresses) {
        (Some(names), Some(addresses)) if names.len() != addresses.len() => {
            return Err(ConnInfoError::new(format!(
                "host names {} servers and hostaddr {}: they have to be as many",
                names.len(),
                addresses.len()
            )));
        }
        (Some(list), _) | (None, Some(list)) => list.len(),
        (None, None) => 1,
    };
    let ports = list("port").unwrap_or_default();
    if ports.len() > 1 && ports.len() != count {
        return Err(ConnInfoError::new(format!(
            "port has {} numbers for {count} servers: give one for all, or as many",
            ports.len()
        )));
    }
    let nth = |list: &Option<Vec<&str>>, i: usize| -> Option<String> {
        let entry = list.as_ref()?.get(i)?.trim();
        (!entry.is_empty()).then(|| entry.to_owned())
    };
    (0..count)
        .map(|i| {
            let text = ports.get(i).or(ports.first().filter(|_| ports.len() == 1));
            let port = match text.map(|t| t.trim()) {
                None | Some("") => DEFAULT_PORT,
                Some(text) => text.parse().ok().filter(|&p| p > 0).ok_or_else(|| {
                    ConnInfoError::new(format!("port {text:?} isn't a number from 1 to 65535"))
                })?,
            };
            let name = nth(&names, i);
            let place = match (nth(&addresses, i), &name) {
                (Some(address), _) => Place::Address(address.parse().map_err(|_| {
                    ConnInfoError::new(format!("hostaddr {address:?} isn't an IP address"))
                })?),
                (None, Some(name)) if name.starts_with('/') => Place::Directory(name.into()),
                (None, Some(name)) if name.starts_with('@') => Place::Abstract(name.clone()),
                (None, Some(name)) => match name.parse::<IpAddr>() {
                    Ok(address) => Place::Address(address),
                    Err(_) => Place::Name(name.clone()),
                },
                (None, None) => Place::Directory(default_directory(port).into()),
            };
            Ok(Host { name, place, port })
        })
        .collect()
}

/// The first of the usual directories with a server's socket in it, else the first.
fn default_directory(port: u16) -> &'static str {
    let has_socket = |d: &&&str| Path::new(d).join(format!(".s.PGSQL.{port}")).exists();
    DEFAULT_DIRECTORIES.iter().find(has_socket).unwrap_or(&DEFAULT_DIRECTORIES[0])
}

fn tls(values: &Values, environment: &Environment) -> Result<TlsOptions, ConnInfoError> {
    let in_home = |name: &str| environment.in_home(&format!(".postgresql/{name}"));
    let root_cert = match values.get("sslrootcert") {
        Some("system") => RootCert::System,
        Some(path) => RootCert::File { path: path.into(), required: true },
        None => match in_home("root.crt") {
            Some(path) => RootCert::File { path, required: false },
            None => RootCert::None,
        },
    };
    let default = match root_cert {
        RootCert::System => SslMode::VerifyFull,
        _ => SslMode::Prefer,
    };
    let mode = choice(
        values,
        "sslmode",
        default,
        &[
            ("disable", SslMode::Disable),
            ("allow", SslMode::Allow),
            ("prefer", SslMode::Prefer),
            ("require", SslMode::Require),
            ("verify-ca", SslMode::VerifyCa),
            ("verify-full", SslMode::VerifyFull),
        ],
    )?;
    if root_cert == RootCert::System && mode != SslMode::VerifyFull {
        return Err(ConnInfoError::new(
            "sslrootcert=system needs sslmode=verify-full: with public authorities, only the host \
             name tells servers apart",
        ));
    }
    let negotiation = choice(
        values,
        "sslnegotiation",
        Negotiation::Postgres,
        &[("postgres", Negotiation::Postgres), ("direct", Negotiation::Direct)],
    )?;
    if negotiation == Negotiation::Direct && mode < SslMode::Require {
        return Err(ConnInfoError::new(
            "sslnegotiation=direct needs sslmode=require or a stronger one",
        ));
    }
    let (tls12, tls13) = versions(values)?;
    let cert = match values.get("sslcert") {
        Some(path) => Some((path.into(), true)),
        None => in_home("postgresql.crt").map(|path| (path, false)),
    };
    let key = values.get("sslkey").map(std::path::PathBuf::from);
    Ok(TlsOptions {
        mode,
        negotiation,
        root_cert,
        cert_mode: choice(
            values,
            "sslcertmode",
            CertMode::Allow,
            &[("disable", CertMode::Disable), ("allow", CertMode::Allow)],
        )?,
        cert,
        key: key.or_else(|| in_home("postgresql.key")),
        server_name_indication: choice(values, "sslsni", true, &[("0", false), ("1", true)])?,
        tls12,
        tls13,
    })
}

/// Which of TLS 1.2 and 1.3 may be spoken; older ones never are.
fn versions(values: &Values) -> Result<(bool, bool), ConnInfoError> {
    let names = [("TLSv1", 10), ("TLSv1.1", 11), ("TLSv1.2", 12), ("TLSv1.3", 13)];
    let lowest = choice(values, "ssl_min_protocol_version", 12, &names)?;
    let highest = choice(values, "ssl_max_protocol_version", 13, &names)?;
    if highest < 12 {
        return Err(ConnInfoError::new(
            "ssl_max_protocol_version asks for a version of TLS that isn't safe: 1.2 and 1.3 are \
             spoken",
        ));
    }
    if lowest > highest {
        return Err(ConnInfoError::new(
            "ssl_min_protocol_version is above ssl_max_protocol_version",
        ));
    }
    Ok((lowest <= 12, highest >= 13))
}

fn keep_alive(values: &Values) -> Result<KeepAlive, ConnInfoError> {
    let default = DEFAULT_KEEPALIVE;
    let seconds = |key: &str, default: Option<Duration>| {
        Ok(match number(values, key)? {
            None => default,
            // Zero or less: the system's own.
            Some(n) => u64::try_from(n).ok().filter(|&n| n > 0).map(Duration::from_secs),
        })
    };
    let positive = |key: &str, default: Option<u32>| {
        Ok(match number(values, key)? {
            None => default,
            Some(n) => u32::try_from(n).ok().filter(|&n| n > 0),
        })
    };
    Ok(KeepAlive {
        enabled: number(values, "keepalives")? != Some(0),
        idle: seconds("keepalives_idle", default.idle)?,
        interval: seconds("keepalives_interval", default.interval)?,
        count: positive("keepalives_count", default.count)?,
        user_timeout: positive("tcp_user_timeout", default.user_timeout)?,
    })
}

fn required_auth(text: &str) -> Result<RequiredAuth, ConnInfoError> {
    let entries: Vec<&str> = text.split(',').map(str::trim).collect();
    let negated = entries.iter().filter(|e| e.starts_with('!')).count();
    if negated != 0 && negated != entries.len() {
        return Err(ConnInfoError::new(
            "require_auth mixes methods that are required with methods that are excluded",
        ));
    }
    let methods = entries
        .iter()
        .map(|entry| match entry.strip_prefix('!').unwrap_or(entry) {
            "password" => Ok(AuthMethod::Password),
            "md5" => Ok(AuthMethod::Md5),
            "scram-sha-256" => Ok(AuthMethod::Scram),
            "none" => Ok(AuthMethod::None),
            "gss" | "sspi" | "oauth" => Ok(AuthMethod::Other),
            other => {
                Err(ConnInfoError::new(format!("require_auth has no method called {other:?}")))
            }
        })
        .collect::<Result<Vec<_>, _>>()?;
    Ok(RequiredAuth { methods, negated: negated > 0, text: text.to_owned() })
}

/// One of a few words.
fn choice<T: Copy>(
    values: &Values,
    key: &str,
    default: T,
    words: &[(&str, T)],
) -> Result<T, ConnInfoError> {
    let Some(value) = values.get(key) else { return Ok(default) };
    let found = words.iter().find(|(word, _)| word.eq_ignore_ascii_case(value));
    found.map(|(_, meaning)| *meaning).ok_or_else(|| {
        let words: Vec<&str> = words.iter().map(|(word, _)| *word).collect();
        ConnInfoError::new(format!("{key} can't be {value:?}"))
            .hint(format!("it is one of: {}", words.join(", ")))
    })
}

/// A whole number.
fn number(values: &Values, key: &str) -> Result<Option<i32>, ConnInfoError> {
    values
        .get(key)
        .map(|text| {
            text.trim()
                .parse()
                .map_err(|_| ConnInfoError::new(format!("{key} isn't a whole number: {text:?}")))
        })
        .transpose()
}
