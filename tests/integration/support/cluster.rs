//! A PostgreSQL cluster: a data directory, and mostly a server on it.
//!
//! Sockets, port and log are given on the server's command line and not in `postgresql.conf`, so
//! that a restored copy doesn't fight with its original over them.

use std::{
    fs,
    net::TcpListener,
    path::{Path, PathBuf},
    process::Command,
};

use super::{
    install::{command, program, run},
    scratch::{Scratch, write},
    server::{Server, Stop, Variable},
    session::Session,
    template, wait_until,
};

/// What every cluster of the tests is set to; a test's own settings come after, and win. Durability
/// against a power cut isn't what is tested on the source's side. Shared memory lies in the data
/// directory, since a server that is killed leaves it behind.
const SETTINGS: &str = "
fsync = off
shared_buffers = 16MB
max_connections = 40
wal_level = replica
max_wal_senders = 10
max_replication_slots = 10
archive_mode = on
archive_command = ''
hot_standby = on
max_wal_size = 256MB
log_line_prefix = '%m [%p] '
log_checkpoints = on
allow_in_place_tablespaces = on
dynamic_shared_memory_type = mmap
";

/// A cluster of one of the versions. Its server is stopped and its directory removed when this is
/// dropped.
#[derive(Debug)]
pub struct Cluster {
    version: u32,
    pgdata: PathBuf,
    port: u16,
    tcp: bool,
    options: Vec<String>,
    environment: Vec<Variable>,
    server: Option<Server>,
    // Dropped after the server, as fields are in order.
    scratch: Scratch,
}

/// What a new cluster shall be like.
#[derive(Debug, Clone)]
#[must_use]
pub struct Builder {
    version: u32,
    initdb: Vec<String>,
    settings: String,
    tcp: bool,
}

impl Builder {
    /// The major version.
    pub fn version(&self) -> u32 {
        self.version
    }

    /// The size of its WAL segments in MiB: a power of two from 1 to 1024; 16 if not said.
    pub fn wal_segsize(mut self, mebibytes: u32) -> Self {
        self.initdb.push(format!("--wal-segsize={mebibytes}"));
        self
    }

    /// Whether it has data checksums. If not said, what `initdb` of the version does.
    pub fn checksums(mut self, on: bool) -> Self {
        if on {
            self.initdb.push("--data-checksums".into());
        } else if self.version >= 18 {
            self.initdb.push("--no-data-checksums".into());
        }
        self
    }

    /// A line for `postgresql.conf`: `name = value`.
    pub fn conf(mut self, line: &str) -> Self {
        self.settings.push_str(line);
        self.settings.push('\n');
        self
    }

    /// Listen on the loopback address too, at [`Cluster::port`].
    pub fn tcp(mut self) -> Self {
        self.tcp = true;
        self
    }

    /// Makes the cluster, and doesn't start it.
    pub fn make(self) -> Cluster {
        let scratch = Scratch::new(&format!("pg{}", self.version));
        let pgdata = scratch.path().join("data");
        template::new_data_directory(self.version, &self.initdb, &pgdata);
        let cluster = Cluster::new(self.version, pgdata, self.tcp, scratch);
        cluster.conf(SETTINGS);
        cluster.conf(&self.settings);
        cluster
    }

    /// Makes and starts it.
    pub fn start(self) -> Cluster {
        let mut cluster = self.make();
        cluster.start();
        cluster
    }
}

impl Cluster {
    /// A new cluster of this version.
    pub fn builder(version: u32) -> Builder {
        Builder { version, initdb: Vec::new(), settings: String::new(), tcp: false }
    }

    /// A data directory that is there already, such as a restored one, which stays where it is.
    /// Its server isn't started, and mustn't run.
    pub fn at(pgdata: &Path, version: u32) -> Self {
        Cluster::new(version, pgdata.to_owned(), false, Scratch::new(&format!("at{version}")))
    }

    fn new(version: u32, pgdata: PathBuf, tcp: bool, scratch: Scratch) -> Self {
        let port = if tcp { free_port() } else { 5432 };
        Cluster {
            version,
            pgdata,
            port,
            tcp,
            options: Vec::new(),
            environment: Vec::new(),
            server: None,
            scratch,
        }
    }

    /// A standby that streams from `primary`, started. It keeps a slot there, so that the primary
    /// keeps the WAL it needs; tablespaces are remapped into its own directory.
    pub fn standby_of(primary: &Cluster) -> Self {
        Cluster::standby_with(primary, "")
    }

    /// As [`Cluster::standby_of`], with more lines for its `postgresql.conf`.
    pub fn standby_with(primary: &Cluster, settings: &str) -> Self {
        let mut standby = primary.copy_online();
        let slot = format!("standby_{}", rustix::process::getpid().as_raw_nonzero());
        let slot = format!("{slot}_{}", primary.sql("SELECT count(*) FROM pg_replication_slots"));
        primary.sql(&format!("SELECT pg_create_physical_replication_slot('{slot}', true)"));
        standby.conf(&format!(
            "primary_conninfo = '{} application_name={slot}'\nprimary_slot_name = '{slot}'\n\
             recovery_target_timeline = latest\n{settings}\n",
            primary.conninfo(),
        ));
        write(&standby.pgdata.join("standby.signal"), "");
        standby.start();
        standby
    }

    /// A copy of the running server's files in a new cluster that isn't started: a base backup by
    /// hand. It has a `backup_label`, and WAL from the moment the copy began is still needed.
    pub fn copy_online(&self) -> Self {
        let scratch = Scratch::new(&format!("pg{}", self.version));
        let pgdata = scratch.path().join("data");
        let mut session = self.session();
        session.sql("SELECT pg_backup_start('copy', true)");
        // Files come and go while they are copied, which replaying the WAL makes up for.
        let _ = Command::new("cp").arg("-a").arg(&self.pgdata).arg(&pgdata).output();
        for file in ["postmaster.pid", "postmaster.opts"] {
            let _ = fs::remove_file(pgdata.join(file));
        }
        for folder in ["pg_wal", "pg_wal/archive_status", "pg_replslot"] {
            for entry in fs::read_dir(pgdata.join(folder)).into_iter().flatten().flatten() {
                if entry.path().is_dir() && folder == "pg_replslot" {
                    let _ = fs::remove_dir_all(entry.path());
                }
                let _ = fs::remove_file(entry.path());
            }
        }
        for link in fs::read_dir(pgdata.join("pg_tblspc")).expect("read pg_tblspc").flatten() {
            if let Ok(target) = fs::read_link(link.path()) {
                let own = scratch.folder("tablespaces").join(link.file_name());
                template::copy(&target, &own);
                fs::remove_file(link.path()).expect("remove a link");
                run(command("ln").arg("-s").arg(own).arg(link.path()));
            }
        }
        let label = session.sql("SELECT labelfile FROM pg_backup_stop(false)");
        write(&pgdata.join("backup_label"), format!("{label}\n"));
        Cluster::new(self.version, pgdata, self.tcp, scratch)
    }

    /// A copy of a stopped cluster's files, in a new one that isn't started: same system
    /// identifier, same history.
    pub fn copy_offline(&self) -> Self {
        assert!(self.server.is_none(), "stop a cluster before copying it");
        let scratch = Scratch::new(&format!("pg{}", self.version));
        let pgdata = scratch.path().join("data");
        template::copy(&self.pgdata, &pgdata);
        let _ = fs::remove_file(pgdata.join("postmaster.pid"));
        Cluster::new(self.version, pgdata, self.tcp, scratch)
    }

    /// The major version.
    pub fn version(&self) -> u32 {
        self.version
    }

    /// The data directory.
    pub fn pgdata(&self) -> &Path {
        &self.pgdata
    }

    /// The directory of its Unix socket.
    pub fn socket_dir(&self) -> &Path {
        self.scratch.path()
    }

    /// Its port, which names the socket and is the TCP port where it listens on TCP.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// How to connect as superuser over the socket.
    pub fn conninfo(&self) -> String {
        format!("host={} port={} user=postgres", self.socket_dir().display(), self.port)
    }

    /// Adds lines to `postgresql.conf`; [`Cluster::reload`] or [`Cluster::restart`] follows.
    pub fn conf(&self, lines: &str) {
        let path = self.pgdata.join("postgresql.conf");
        let text = fs::read_to_string(&path).expect("read postgresql.conf");
        write(&path, format!("{text}\n{lines}\n"));
    }

    /// Replaces `pg_hba.conf`; [`Cluster::reload`] follows.
    pub fn hba(&self, lines: &str) {
        write(&self.pgdata.join("pg_hba.conf"), format!("{lines}\n"));
    }

    /// An option for the server's command line from the next start on: `name=value`. It stands
    /// above every file, and isn't part of a backup.
    pub fn option(&mut self, option: &str) {
        self.options.push(option.to_owned());
    }

    /// Variables for the server, and so for its archive command, from the next start on.
    pub fn environment(&mut self, variables: impl IntoIterator<Item = Variable>) {
        self.environment.extend(variables);
    }

    /// Makes the server read its configuration again.
    pub fn reload(&self) {
        let loaded = "SELECT extract(epoch FROM pg_conf_load_time())";
        let before = self.sql(loaded);
        self.sql("SELECT pg_reload_conf()");
        wait_until("the configuration is loaded", 20, || self.sql(loaded) != before);
    }

    /// Starts the server and waits until it accepts connections.
    pub fn start(&mut self) {
        self.try_start().unwrap_or_else(|log| panic!("{log}"));
    }

    /// As [`Cluster::start`], for a server that may well refuse: `Err` has the end of its log.
    pub fn try_start(&mut self) -> Result<(), String> {
        assert!(self.server.is_none(), "the server runs already");
        let options = self.command_line();
        let server = Server::start(
            self.version,
            &self.pgdata,
            &options,
            &self.environment,
            &self.log_path(),
        )?;
        self.server = Some(server);
        Ok(())
    }

    /// Starts the server and waits for nothing: for one that recovers long, or stops by itself.
    pub fn spawn(&mut self) {
        assert!(self.server.is_none(), "the server runs already");
        let options = self.command_line();
        self.server = Some(Server::spawn(
            self.version,
            &self.pgdata,
            &options,
            &self.environment,
            &self.log_path(),
        ));
    }

    fn command_line(&self) -> Vec<String> {
        let mut options = vec![
            format!("unix_socket_directories={}", self.socket_dir().display()),
            format!("port={}", self.port),
            format!("listen_addresses={}", if self.tcp { "127.0.0.1" } else { "" }),
            "logging_collector=off".to_owned(),
            "log_destination=stderr".to_owned(),
        ];
        options.extend(self.options.iter().cloned());
        options
    }

    /// Whether the server runs, ready or not.
    pub fn runs(&mut self) -> bool {
        self.server.as_mut().is_some_and(Server::runs)
    }

    /// Waits until a server that was started ends by itself.
    pub fn wait_for_end(&mut self, seconds: u64) {
        wait_until("the server ends", seconds, || !self.runs());
        self.server = None;
    }

    /// Stops the server, if it runs, and waits until it is gone.
    pub fn stop(&mut self, how: Stop) {
        if let Some(server) = self.server.take() {
            server.stop(how);
        }
    }

    /// Kills all the server's processes, as a power cut would.
    pub fn kill9(&mut self) {
        if let Some(server) = self.server.take() {
            server.kill9();
        }
    }

    /// Stops (fast) and starts.
    pub fn restart(&mut self) {
        self.stop(Stop::Fast);
        self.start();
    }

    /// Makes a standby, or a server paused in recovery, a primary; waits until it is one.
    pub fn promote(&self) {
        assert_eq!(self.sql("SELECT pg_promote(true, 60)"), "t", "{}", self.log());
        self.wait_for_primary(60);
    }

    /// Waits until recovery is over and the server takes writes.
    pub fn wait_for_primary(&self, seconds: u64) {
        wait_until("recovery is over", seconds, || {
            self.try_sql("SELECT pg_is_in_recovery()").as_deref() == Ok("f")
        });
    }

    /// Waits until recovery has paused at its target.
    pub fn wait_for_pause(&self, seconds: u64) {
        wait_until("recovery has paused", seconds, || {
            self.try_sql("SELECT pg_get_wal_replay_pause_state()").as_deref() == Ok("paused")
        });
    }

    /// Waits until this standby has replayed all that `primary` has written by now.
    pub fn catch_up_with(&self, primary: &Cluster) {
        let lsn = primary.lsn();
        let caught = format!("SELECT pg_last_wal_replay_lsn() >= '{lsn}'");
        wait_until("the standby has caught up", 60, || self.try_sql(&caught).as_deref() == Ok("t"));
    }

    /// The server's log since the cluster was made.
    pub fn log(&self) -> String {
        String::from_utf8_lossy(&fs::read(self.log_path()).unwrap_or_default()).into_owned()
    }

    fn log_path(&self) -> PathBuf {
        self.scratch.path().join("log")
    }

    /// Runs SQL as superuser in the database `postgres`, each statement on its own, and returns
    /// what it printed: rows one a line, columns joined by `|`.
    pub fn sql(&self, sql: &str) -> String {
        self.try_sql(sql).unwrap_or_else(|e| panic!("{sql}\n{e}{}", self.why_it_ended(&e)))
    }

    /// The end of the log, where the server may have ended.
    fn why_it_ended(&self, error: &str) -> String {
        if !error.contains("connection") {
            return String::new();
        }
        std::thread::sleep(std::time::Duration::from_millis(500));
        let log = self.log();
        let lines: Vec<_> = log.lines().collect();
        let end = lines[lines.len().saturating_sub(12)..].join("\n");
        format!("the server's log ends:\n{end}")
    }

    /// As [`Cluster::sql`], in another database.
    pub fn sql_in(&self, database: &str, sql: &str) -> String {
        let mut psql = self.psql();
        psql.env("PGDATABASE", database);
        output_of(psql, sql).unwrap_or_else(|e| panic!("in {database}: {sql}\n{e}"))
    }

    /// As [`Cluster::sql`], for what may fail: `Err` has what psql said.
    pub fn try_sql(&self, sql: &str) -> Result<String, String> {
        output_of(self.psql(), sql)
    }

    /// psql (of 15, which works with all versions), ready for `-c`, `-f` or another `-d`.
    pub fn psql(&self) -> Command {
        let mut psql = command(program(15, "psql"));
        psql.args(["-X", "-q", "-A", "-t", "-v", "ON_ERROR_STOP=1", "-U", "postgres"])
            .arg("-h")
            .arg(self.socket_dir())
            .args(["-p", &self.port.to_string()])
            .env("PGDATABASE", "postgres");
        psql
    }

    /// A connection that stays open: transactions, locks, prepared statements.
    pub fn session(&self) -> Session {
        Session::open(self.psql())
    }
}

/// What psql printed, or what it said when it failed.
fn output_of(mut psql: Command, sql: &str) -> Result<String, String> {
    let output = psql.args(["-c", sql]).output().expect("run psql");
    if output.status.success() {
        Ok(String::from_utf8_lossy(&output.stdout).trim_end_matches('\n').to_owned())
    } else {
        Err(String::from_utf8_lossy(&output.stderr).into_owned())
    }
}

/// A TCP port that nobody listens on.
fn free_port() -> u16 {
    let listener = TcpListener::bind(("127.0.0.1", 0)).expect("bind a port");
    listener.local_addr().expect("an address").port()
}
