//! Opening sockets, and making sure that a dead one is noticed.

use std::{
    fmt, io,
    net::{IpAddr, SocketAddr},
    os::unix::net::UnixStream as StdUnixStream,
    path::PathBuf,
};

use tokio::net::{TcpStream, UnixStream, lookup_host};

use super::{
    connection::Stream,
    conninfo::{Host, KeepAlive, Place},
    error::PgError,
};

/// One address of a host.
#[derive(Debug, Clone)]
pub(super) enum Address {
    Path(PathBuf),
    /// A name in Linux's abstract namespace, without the leading NUL.
    Abstract(String),
    Tcp(SocketAddr),
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Address::Path(path) => write!(f, "socket {}", path.display()),
            Address::Abstract(name) => write!(f, "socket @{name}"),
            Address::Tcp(address) => address.fmt(f),
        }
    }
}

/// The addresses of a host, in the system's order.
pub(super) async fn addresses(host: &Host) -> Result<Vec<Address>, PgError> {
    let port = host.port;
    Ok(match &host.place {
        Place::Directory(directory) => {
            vec![Address::Path(directory.join(format!(".s.PGSQL.{port}")))]
        }
        Place::Abstract(name) => {
            let name = name.strip_prefix('@').unwrap_or(name);
            vec![Address::Abstract(format!("{name}/.s.PGSQL.{port}"))]
        }
        Place::Address(address) => vec![Address::Tcp(SocketAddr::new(*address, port))],
        Place::Name(name) => {
            let unknown = |reason: String| PgError::Connect {
                target: host.to_string(),
                reason,
                hint: Some("check the name in the connection string".to_owned()),
            };
            let found = lookup_host((name.as_str(), port))
                .await
                .map_err(|e| unknown(format!("the host name can't be looked up: {e}")))?;
            let found: Vec<_> = found.map(Address::Tcp).collect();
            if found.is_empty() {
                return Err(unknown("the host name has no address".to_owned()));
            }
            found
        }
    })
}

/// Opens a socket to an address.
pub(super) async fn open(
    address: &Address,
    host: &Host,
    keep_alive: &KeepAlive,
) -> Result<Stream, PgError> {
    let opened = match address {
        Address::Path(path) => UnixStream::connect(path).await.map(Stream::Unix),
        Address::Abstract(name) => open_abstract(name).map(Stream::Unix),
        Address::Tcp(address) => open_tcp(*address, keep_alive).await.map(Stream::Tcp),
    };
    opened.map_err(|e| PgError::Connect {
        target: target(host, address),
        reason: e.to_string(),
        hint: Some(match e.kind() {
            io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused if host.is_socket() => {
                "is the server running, and is its socket in this directory \
                 (unix_socket_directories, port)?"
                    .to_owned()
            }
            io::ErrorKind::ConnectionRefused => {
                "is the server running, and does it listen on this address and port \
                 (listen_addresses, port)?"
                    .to_owned()
            }
            _ => "check host and port in the connection string".to_owned(),
        }),
    })
}

/// The host as given, and the address that was tried if it says more.
pub(super) fn target(host: &Host, address: &Address) -> String {
    match (&host.place, address) {
        (Place::Name(name), Address::Tcp(address)) => {
            format!("{name} ({}):{}", address.ip(), address.port())
        }
        _ => host.to_string(),
    }
}

fn open_abstract(name: &str) -> io::Result<UnixStream> {
    use std::os::linux::net::SocketAddrExt;
    let address = std::os::unix::net::SocketAddr::from_abstract_name(name)?;
    let socket = StdUnixStream::connect_addr(&address)?;
    socket.set_nonblocking(true)?;
    UnixStream::from_std(socket)
}

async fn open_tcp(address: SocketAddr, keep_alive: &KeepAlive) -> io::Result<TcpStream> {
    let socket = TcpStream::connect(address).await?;
    socket.set_nodelay(true)?;
    use rustix::net::sockopt;
    if keep_alive.enabled {
        sockopt::set_socket_keepalive(&socket, true)?;
        if let Some(idle) = keep_alive.idle {
            sockopt::set_tcp_keepidle(&socket, idle)?;
        }
        if let Some(interval) = keep_alive.interval {
            sockopt::set_tcp_keepintvl(&socket, interval)?;
        }
        if let Some(count) = keep_alive.count {
            sockopt::set_tcp_keepcnt(&socket, count)?;
        }
    }
    if let Some(milliseconds) = keep_alive.user_timeout {
        sockopt::set_tcp_user_timeout(&socket, milliseconds)?;
    }
    Ok(socket)
}

/// The address of a host that isn't a socket, for TLS to a server without a name.
pub(super) fn ip(address: &Address) -> Option<IpAddr> {
    match address {
        Address::Tcp(address) => Some(address.ip()),
        _ => None,
    }
}
