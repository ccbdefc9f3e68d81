//! The throwaway servers of the demo.

use std::{
    fs,
    process::Stdio,
    time::{Duration, Instant},
};

use super::home::Home;
use crate::{
    error::{Context, Error, Kind, Result},
    postgres::{
        client::{Client, ConnInfo, Mode},
        server::{self, Binaries, ServerState, Stop},
    },
};

/// The original's port; it only names the socket, nothing listens on the network.
pub(super) const PORT: u16 = 5432;

/// The restored server's.
const RESTORED_PORT: u16 = 5433;

/// The clusters' superuser.
pub(super) const ROLE: &str = "demo";

/// How long a server may take to start or stop.
const PATIENCE: Duration = Duration::from_secs(60);

/// PostgreSQL's programs: the newest that this host has.
pub(super) fn binaries() -> Result<Binaries> {
    Binaries::newest().map_err(|e| {
        Error::new(Kind::Local, e.to_string()).hint("on Debian: apt-get install postgresql")
    })
}

/// A server of the demo. It is stopped at once when this is dropped.
pub(super) struct Server {
    server: server::Server,
    conninfo: String,
}

impl Server {
    /// Makes a cluster that archives, and starts it.
    pub async fn create(binaries: &Binaries, home: &Home, name: &str) -> Result<Self> {
        let data = home.path().join(name);
        let mut initdb = binaries.command("initdb");
        initdb.args(["--auth=trust", "--no-sync", "--data-checksums", "--username", ROLE, "-D"]);
        initdb.arg(&data).stdout(Stdio::null()).stderr(Stdio::null());
        // On another thread, so that a signal meanwhile is heard.
        let status = tokio::task::spawn_blocking(move || initdb.status())
            .await
            .context(Kind::Internal, || "wait for initdb")?
            .context(Kind::Local, || "run initdb")?;
        if !status.success() {
            return Err(Error::new(Kind::Postgres, format!("initdb of the demo failed: {status}")));
        }
        let settings = format!(
            "\nwal_level = replica\narchive_mode = on\narchive_command = '{}'\n",
            home.archive_command().replace('\'', "''")
        );
        let path = data.join("postgresql.conf");
        let conf = fs::read_to_string(&path).map(|conf| conf + &settings);
        conf.and_then(|conf| fs::write(&path, conf))
            .context(Kind::Local, || format!("write {}", path.display()))?;
        Server::start(binaries, home, name).await
    }

    /// Starts the server on a data directory that is there.
    pub async fn start(binaries: &Binaries, home: &Home, name: &str) -> Result<Self> {
        let data = home.path().join(name);
        let port = if name == "original" { PORT } else { RESTORED_PORT };
        let log = home.path().join(format!("{name}.log"));
        let (folder, port) = (home.path().display().to_string(), port.to_string());
        let settings = [
            ("listen_addresses", ""),
            ("unix_socket_directories", folder.as_str()),
            ("port", port.as_str()),
            ("shared_buffers", "32MB"),
            ("cluster_name", &format!("pgkeep-demo-{name}")),
        ];
        let server = server::Server::start(binaries, &data, &settings, &log)
            .context(Kind::Local, || "start a server of the demo")?;
        let conninfo = format!("host={folder} port={port} user={ROLE} dbname=postgres");
        let mut server = Server { server, conninfo };
        let deadline = Instant::now() + PATIENCE;
        while !matches!(server.server.state(), Some(ServerState::Ready | ServerState::Standby)) {
            let ended = server.server.ended().context(Kind::Local, || "wait for a server")?;
            let message = match ended {
                Some(status) => format!("a server of the demo ended while it started: {status}"),
                None if Instant::now() > deadline => "a server of the demo didn't start".to_owned(),
                None => {
                    tokio::time::sleep(Duration::from_millis(20)).await;
                    continue;
                }
            };
            let log = server.server.last_words(5).join(" | ");
            return Err(Error::new(Kind::Postgres, message).hint(format!("its log: {log}")));
        }
        Ok(server)
    }

    /// A new connection.
    pub async fn connect(&self) -> Result<Client> {
        let info = ConnInfo::parse(&self.conninfo)
            .context(Kind::Internal, || "connect to the demo's server")?;
        Client::connect(&info, Mode::Sql)
            .await
            .context(Kind::Postgres, || "connect to the demo's server")
    }

    /// Stops it in good order.
    pub async fn stop(self) -> Result<()> {
        let stopped = self.server.stop(Stop::Fast, PATIENCE).await;
        stopped.context(Kind::Postgres, || "stop a server of the demo")
    }
}
