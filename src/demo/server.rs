//! The throwaway servers of the demo.

use std::{
    ffi::OsStr,
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use super::home::Home;
use crate::{
    error::{Context, Error, Kind, Result},
    postgres::{
        SUPPORTED,
        client::{Client, ConnInfo, Mode},
    },
};

/// The original's port; it only names the socket, nothing listens on the network.
pub(super) const PORT: u16 = 5432;

/// The restored server's.
const RESTORED_PORT: u16 = 5433;

/// The clusters' superuser.
pub(super) const ROLE: &str = "demo";

/// Where Debian and others put the servers of each major version.
const DEBIAN: &str = "/usr/lib/postgresql";

/// PostgreSQL's programs.
pub(super) struct Binaries {
    folder: PathBuf,
    /// As `postgres --version` says it.
    pub version: String,
}

impl Binaries {
    /// The newest supported server on this host: below `/usr/lib/postgresql`, or in PATH.
    pub fn find() -> Result<Self> {
        let mut majors: Vec<u32> = fs::read_dir(DEBIAN)
            .into_iter()
            .flatten()
            .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
            .filter(|major| SUPPORTED.contains(major))
            .collect();
        majors.sort_unstable_by(|a, b| b.cmp(a));
        let debian = majors.into_iter().map(|major| Path::new(DEBIAN).join(format!("{major}/bin")));
        let path = std::env::var_os("PATH").unwrap_or_default();
        let folders = debian.chain(std::env::split_paths(&path));
        for folder in folders.filter(|f| f.join("initdb").is_file() && f.join("pg_ctl").is_file()) {
            let Ok(output) = Command::new(folder.join("postgres")).arg("--version").output() else {
                continue;
            };
            let text = String::from_utf8_lossy(&output.stdout);
            let version = text.split_whitespace().nth(2).unwrap_or_default().to_owned();
            let major = version.split('.').next().and_then(|major| major.parse().ok());
            if major.is_some_and(|major: u32| SUPPORTED.contains(&major)) {
                return Ok(Binaries { folder, version });
            }
        }
        Err(Error::new(Kind::Local, "no PostgreSQL server of a supported version is installed")
            .hint("on Debian: apt-get install postgresql"))
    }

    fn program(&self, name: &str) -> Command {
        let mut command = Command::new(self.folder.join(name));
        // A server that speaks of other databases, or another language, is not the demo's.
        for (variable, _) in std::env::vars_os() {
            if variable.to_str().is_some_and(|v| v.starts_with("PG")) {
                command.env_remove(variable);
            }
        }
        command.env("LC_ALL", "C");
        command
    }
}

/// A server of the demo. It is stopped at once when this is dropped.
pub(super) struct Server {
    pg_ctl: PathBuf,
    data: PathBuf,
    conninfo: String,
    stopped: bool,
}

impl Server {
    /// Makes a cluster that archives, and starts it.
    pub async fn create(binaries: &Binaries, home: &Home, name: &str) -> Result<Self> {
        let data = home.path().join(name);
        let mut initdb = binaries.program("initdb");
        initdb.args(["--auth=trust", "--no-sync", "--data-checksums", "--username", ROLE, "-D"]);
        run(initdb.arg(&data)).await?;
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
        let options = format!(
            "-c listen_addresses= -c unix_socket_directories={} -c port={port} -c shared_buffers=32MB \
             -c cluster_name=pgkeep-demo-{name}",
            home.path().display()
        );
        let log = home.path().join(format!("{name}.log"));
        let mut start = binaries.program("pg_ctl");
        start.arg("-D").arg(&data).arg("-l").arg(&log).args(["-w", "-o", &options, "start"]);
        let conninfo =
            format!("host={} port={port} user={ROLE} dbname=postgres", home.path().display());
        let pg_ctl = binaries.folder.join("pg_ctl");
        let server = Server { pg_ctl, data, conninfo, stopped: false };
        let log_hint = || format!("its log: {}", tail(&log));
        run(&mut start).await.map_err(|e| e.hint(log_hint()))?;
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
    pub async fn stop(mut self) -> Result<()> {
        self.stopped = true;
        self.stop_now("fast")
    }

    fn stop_now(&self, mode: &str) -> Result<()> {
        let mut command = Command::new(&self.pg_ctl);
        finish(command.arg("-D").arg(&self.data).args(["-w", "-m", mode, "stop"]))
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if !self.stopped {
            // It may not have come up, or be gone already: then there is nothing to stop.
            let _ = self.stop_now("immediate");
        }
    }
}

/// Runs a program on another thread, so that a signal meanwhile is heard.
async fn run(command: &mut Command) -> Result<()> {
    let mut own = Command::new(command.get_program());
    own.args(command.get_args());
    for (name, value) in command.get_envs() {
        match value {
            Some(value) => own.env(name, value),
            None => own.env_remove(name),
        };
    }
    tokio::task::spawn_blocking(move || finish(&mut own))
        .await
        .context(Kind::Internal, || "wait for a program")?
}

/// Runs a program to its end; what it printed is told when it fails.
fn finish(command: &mut Command) -> Result<()> {
    let name = Path::new(command.get_program()).file_name().and_then(OsStr::to_str);
    let name = name.unwrap_or_default().to_owned();
    // A server that pg_ctl starts would keep a pipe open for ever.
    let output = command
        .stdin(std::process::Stdio::null())
        .stdout(std::process::Stdio::null())
        .stderr(std::process::Stdio::null())
        .status()
        .context(Kind::Local, || format!("run {name}"))?;
    if output.success() {
        return Ok(());
    }
    Err(Error::new(Kind::Postgres, format!("{name} of the demo failed: {output}")))
}

/// The last lines of a server's log.
fn tail(log: &Path) -> String {
    let text = fs::read_to_string(log).unwrap_or_default();
    let lines: Vec<_> = text.lines().rev().take(5).collect();
    lines.into_iter().rev().collect::<Vec<_>>().join(" | ")
}
