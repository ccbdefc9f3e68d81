//! Finding a server that will do, and the start of a session with it.
//!
//! As in libpq, the next host or address is tried when one can't be reached or isn't ready, but not
//! when it refuses us: a wrong password stays wrong.

use std::time::Duration;

use bytes::BytesMut;
use postgres_protocol::message::frontend;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    time::timeout,
};

use super::{
    Client, Mode,
    auth::{self, Channel},
    certificate,
    connection::{Connection, Stream},
    conninfo::{ConnInfo, Host, Negotiation, SessionAttrs, SslMode},
    error::PgError,
    message::Message,
    socket::{self, Address},
    tls,
};

/// Whether one attempt uses TLS.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Tls {
    No,
    IfOffered,
    Required,
}

/// Connects to the first server that will do.
pub(super) async fn connect(info: &ConnInfo, mode: Mode) -> Result<Client, PgError> {
    let mut hosts: Vec<&Host> = info.hosts.iter().collect();
    if info.random_host {
        shuffle(&mut hosts);
    }
    // With prefer-standby, a second round takes anybody.
    let rounds: &[SessionAttrs] = match info.session_attrs {
        SessionAttrs::PreferStandby => &[SessionAttrs::Standby, SessionAttrs::Any],
        ref wanted => std::slice::from_ref(wanted),
    };
    let mut failures = Vec::new();
    for &wanted in rounds {
        failures.clear();
        for &host in &hosts {
            let found = match within(info.connect_timeout, host, socket::addresses(host)).await {
                Ok(found) => found,
                Err(e) => {
                    failures.push(e);
                    continue;
                }
            };
            let mut found: Vec<&Address> = found.iter().collect();
            if info.random_host {
                shuffle(&mut found);
            }
            for address in found {
                match attempt(info, mode, host, address).await {
                    Ok(client) => match check_attributes(&client, host, wanted) {
                        Ok(()) => return Ok(client),
                        Err(e) => {
                            client.close().await;
                            failures.push(e);
                        }
                    },
                    Err(e) if e.is_unreachable() => failures.push(e),
                    Err(e) => return Err(e),
                }
            }
        }
    }
    match failures.len() {
        1 => Err(failures.remove(0)),
        _ => Err(PgError::NoServer(failures)),
    }
}

/// One address, with and without TLS as sslmode has it.
async fn attempt(
    info: &ConnInfo,
    mode: Mode,
    host: &Host,
    address: &Address,
) -> Result<Client, PgError> {
    let (first, second) = match info.tls.mode {
        _ if host.is_socket() => (Tls::No, None),
        SslMode::Disable => (Tls::No, None),
        SslMode::Allow => (Tls::No, Some(Tls::Required)),
        SslMode::Prefer => (Tls::IfOffered, Some(Tls::No)),
        SslMode::Require | SslMode::VerifyCa | SslMode::VerifyFull => (Tls::Required, None),
    };
    let once = |tls| within(info.connect_timeout, host, establish(info, mode, host, address, tls));
    let failure = match once(first).await {
        Ok(client) => return Ok(client),
        Err(e) => e,
    };
    // The other way only helps if this one was refused: by TLS itself, or by pg_hba.conf.
    let helps = matches!(&failure, PgError::Tls { .. })
        || failure.code().is_some_and(|code| code.starts_with("28"));
    match second.filter(|_| helps) {
        // If both are refused, the first one's reason says more.
        Some(second) => once(second).await.map_err(|_| failure),
        None => Err(failure),
    }
}

/// Bounds what a connection attempt may take.
async fn within<T>(
    limit: Option<Duration>,
    host: &Host,
    work: impl Future<Output = Result<T, PgError>>,
) -> Result<T, PgError> {
    let Some(limit) = limit else { return work.await };
    timeout(limit, work).await.unwrap_or_else(|_| {
        Err(PgError::Connect {
            target: host.to_string(),
            reason: format!("no answer within {} seconds", limit.as_secs()),
            hint: Some(
                "is there a firewall in between? connect_timeout in the connection string says \
                 how long to wait"
                    .to_owned(),
            ),
        })
    })
}

async fn establish(
    info: &ConnInfo,
    mode: Mode,
    host: &Host,
    address: &Address,
    tls: Tls,
) -> Result<Client, PgError> {
    let stream = socket::open(address, host, &info.keep_alive).await?;
    let stream = match tls {
        Tls::No => stream,
        _ => start_tls(stream, info, host, address, tls).await?,
    };
    let end_point = match &stream {
        Stream::Tls(stream) => stream
            .get_ref()
            .1
            .peer_certificates()
            .and_then(<[_]>::first)
            .and_then(|certificate| certificate::end_point_hash(certificate)),
        _ => None,
    };
    let encrypted = matches!(stream, Stream::Tls(_));
    let mut connection = Connection::new(stream);
    let session = session(
        &mut connection,
        info,
        mode,
        Channel {
            info,
            host,
            target: socket::target(host, address),
            // What libpq's own programs name a replication connection's database, for .pgpass.
            database: match mode {
                Mode::Sql => &info.dbname,
                Mode::Replication => "replication",
            },
            tls: encrypted,
            end_point,
        },
    );
    let parameters = match session.await {
        Ok(parameters) => parameters,
        // With TLS 1.3, the server tells what it thinks of our certificate only now.
        Err(PgError::Io(e)) => return Err(tls::error(e, host, address)),
        Err(e) => return Err(e),
    };
    let mut client = Client::new(connection, parameters, info.stall_timeout)?;
    if mode == Mode::Sql {
        client.prepare_session().await?;
    }
    Ok(client)
}

/// Asks for TLS, and shakes hands.
async fn start_tls(
    stream: Stream,
    info: &ConnInfo,
    host: &Host,
    address: &Address,
    tls: Tls,
) -> Result<Stream, PgError> {
    let Stream::Tcp(mut socket) = stream else { return Ok(stream) };
    let refused = |reason: &str, hint: Option<&str>| PgError::Tls {
        target: socket::target(host, address),
        reason: reason.to_owned(),
        hint: hint.map(str::to_owned),
    };
    let direct = info.tls.negotiation == Negotiation::Direct;
    if !direct {
        let mut request = BytesMut::new();
        frontend::ssl_request(&mut request);
        socket.write_all(&request).await?;
        // Exactly one byte: whatever follows belongs to the handshake, and nothing that came in
        // clear is taken for what came encrypted (CVE-2021-23222).
        let answer = socket.read_u8().await.map_err(|e| match e.kind() {
            std::io::ErrorKind::UnexpectedEof => PgError::Closed,
            _ => PgError::Io(e),
        })?;
        match (answer, tls) {
            (b'S', _) => {}
            (b'N', Tls::Required) => {
                return Err(refused(
                    "the server doesn't offer TLS",
                    Some("set ssl = on in postgresql.conf, or choose another sslmode"),
                ));
            }
            (b'N', _) => return Ok(Stream::Tcp(socket)),
            (b'E', _) => {
                return Err(refused("the server answered the request for TLS by an error", None));
            }
            _ => return Err(refused("what answers there isn't a PostgreSQL server", None)),
        }
    }
    let stream = tls::handshake(socket, &info.tls, host, address).await?;
    if direct && stream.get_ref().1.alpn_protocol() != Some(tls::PROTOCOL) {
        return Err(refused(
            "sslnegotiation=direct, but the server doesn't agree on the protocol",
            Some("it needs PostgreSQL 17 or newer"),
        ));
    }
    Ok(Stream::Tls(Box::new(stream)))
}

/// The startup message, authentication, and what the server tells until it is ready: its
/// parameters.
async fn session(
    connection: &mut Connection,
    info: &ConnInfo,
    mode: Mode,
    channel: Channel<'_>,
) -> Result<Vec<(String, String)>, PgError> {
    let mut parameters = vec![
        ("user", info.user.as_str()),
        ("database", channel.database),
        ("application_name", &info.application_name),
        ("client_encoding", "UTF8"),
    ];
    if let Some(options) = &info.options {
        parameters.push(("options", options));
    }
    if mode == Mode::Replication {
        parameters.push(("replication", "true"));
        // SET isn't among the replication commands, and a server's idle limit would end the
        // connection between two of them. (SQL sessions are prepared later, poolers permitting.)
        parameters.push(("idle_session_timeout", "0"));
    }
    let mut startup = BytesMut::new();
    frontend::startup_message(parameters, &mut startup)
        .map_err(|e| PgError::protocol(format!("the startup message can't be written: {e}")))?;
    connection.send(&startup).await?;
    auth::authenticate(connection, &channel).await?;
    connection.authenticated(info.stall_timeout);
    let mut told = Vec::new();
    loop {
        // The whole attempt has a limit.
        match connection.receive(None).await? {
            Message::ParameterStatus(name, value) => told.push((name, value)),
            Message::BackendKeyData | Message::Notification | Message::Other(b'v') => {}
            Message::Notice(notice) => tracing::debug!(%notice, "while connecting"),
            Message::Error(error) => return Err(error.into()),
            Message::ReadyForQuery => return Ok(told),
            other => return Err(auth::unexpected(&other)),
        }
    }
}

/// Whether the server is what `target_session_attrs` asks for. Servers from 14 on say so by
/// themselves.
fn check_attributes(client: &Client, host: &Host, wanted: SessionAttrs) -> Result<(), PgError> {
    if matches!(wanted, SessionAttrs::Any | SessionAttrs::PreferStandby) {
        return Ok(());
    }
    let on = |name| client.parameter(name).map(|value| value == "on");
    let (Some(standby), Some(read_only)) =
        (on("in_hot_standby"), on("default_transaction_read_only"))
    else {
        return Err(PgError::Unsuitable(format!(
            "target_session_attrs needs PostgreSQL 14 or newer, and the server at {host} is {}",
            client.server_version().text
        )));
    };
    let (fits, wanted) = match wanted {
        SessionAttrs::ReadWrite => (!standby && !read_only, "read-write"),
        SessionAttrs::ReadOnly => (standby || read_only, "read-only"),
        SessionAttrs::Primary => (!standby, "primary"),
        SessionAttrs::Standby => (standby, "standby"),
        SessionAttrs::Any | SessionAttrs::PreferStandby => (true, "any"),
    };
    match fits {
        true => Ok(()),
        false => Err(PgError::Unsuitable(format!(
            "the server at {host} isn't what target_session_attrs={wanted} asks for"
        ))),
    }
}

/// A random order, for load_balance_hosts. Without randomness the order stays.
fn shuffle<T>(items: &mut [T]) {
    for last in (1..items.len()).rev() {
        let Ok(random) = getrandom::u64() else { return };
        items.swap(last, (random % (last as u64 + 1)) as usize);
    }
}
