//! The program under test, with a repository, a key and a configuration of its own.

use std::{
    fmt, fs,
    os::unix::process::ExitStatusExt,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::atomic::{AtomicBool, Ordering},
    time::{Duration, Instant},
};

use super::{
    cluster::Cluster,
    install::{command, pgkeep_binary},
    places::Places,
    s3::Server,
    scratch::{Scratch, write},
};

/// pgkeep with its configuration, for one cluster (`main`) and one repository (`main`) unless a
/// test adds more. It runs as the server's user.
#[derive(Debug)]
pub struct Pgkeep {
    config: PathBuf,
    scratch: Scratch,
    places: Places,
}

/// What a run printed, and how it ended.
#[derive(Debug, Clone)]
pub struct Output {
    /// The exit code, or minus the signal that ended it.
    pub code: i32,
    pub stdout: String,
    pub stderr: String,
}

impl fmt::Display for Output {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "exit code {}\n{}\n{}", self.code, self.stdout, self.stderr)
    }
}

/// The line that has it leave its state in `scratch`.
fn state_dir(scratch: &Scratch) -> String {
    format!("state-dir = \"{}\"\n", scratch.path().join("state").display())
}

impl Pgkeep {
    /// A configuration for this cluster, and a repository directory that `init` hasn't seen yet.
    pub fn new(cluster: &Cluster) -> Self {
        let pgkeep = Pgkeep::without_cluster();
        pgkeep.add_cluster("main", cluster);
        pgkeep
    }

    /// As an empty host has it: a repository and nothing else.
    pub fn without_cluster() -> Self {
        let scratch = Scratch::new("keep");
        let places = Places::new(&scratch.path().join("repository"));
        Pgkeep::made(scratch, places)
    }

    /// As [`Pgkeep::without_cluster`], with the repository on this server.
    pub fn without_cluster_on(server: Server) -> Self {
        Pgkeep::made(Scratch::new("keep"), Places::on(server))
    }

    /// A configuration for this cluster, with repositories on this server.
    pub fn on_server(cluster: &Cluster, server: Server) -> Self {
        let pgkeep = Pgkeep::made(Scratch::new("keep"), Places::on(server));
        pgkeep.add_cluster("main", cluster);
        pgkeep
    }

    fn made(scratch: Scratch, places: Places) -> Self {
        let config = scratch.file("pgkeep.toml", state_dir(&scratch));
        let pgkeep = Pgkeep { config, scratch, places };
        pgkeep.add_repository("main");
        pgkeep
    }

    /// A configuration for this cluster and a repository `main` with these lines: url and the table.
    pub fn with_repository(cluster: &Cluster, url: &str, table: &str) -> Self {
        let scratch = Scratch::new("keep");
        let config = scratch.file("pgkeep.toml", state_dir(&scratch));
        let places = Places::new(&scratch.path().join("repository"));
        let pgkeep = Pgkeep { config, scratch, places };
        let key = pgkeep.key_file("main");
        pgkeep.add(&format!("[repository.main]\n{url}\nkey-file = \"{}\"\n{table}", key.display()));
        pgkeep.add_cluster("main", cluster);
        pgkeep
    }

    /// The S3 server that the repositories lie on, where they do.
    pub fn server(&self) -> Option<&Server> {
        self.places.server()
    }

    /// Initialised, and with the cluster's archiving switched on.
    pub fn archiving(cluster: &Cluster) -> Self {
        let pgkeep = Pgkeep::new(cluster);
        pgkeep.init();
        pgkeep.archive(cluster);
        pgkeep
    }

    /// Adds a repository of this name to the configuration.
    pub fn add_repository(&self, name: &str) {
        if self.places.server().is_none() {
            self.scratch.folder(&format!("repository/{name}"));
        }
        self.add(&self.places.configuration(name, &self.key_file(name)));
    }

    /// Adds a cluster under this name to the configuration.
    pub fn add_cluster(&self, name: &str, cluster: &Cluster) {
        self.add(&format!(
            "[cluster.{name}]\nconninfo = \"{}\"\npgdata = \"{}\"",
            cluster.conninfo(),
            cluster.pgdata().display(),
        ));
    }

    /// Adds lines to the end of the configuration: a new section.
    pub fn add(&self, lines: &str) {
        self.edit(|text| format!("{text}\n{lines}\n"));
    }

    /// Sets a key in a section that is there: `set("cluster.main", "outage-wait = \"1s\"")`.
    pub fn set(&self, section: &str, line: &str) {
        let header = format!("[{section}]\n");
        self.edit(|text| {
            assert!(text.contains(&header), "the configuration has no section {section}");
            text.replacen(&header, &format!("{header}{line}\n"), 1)
        });
    }

    /// Has the configuration's cluster `main` be this one and no longer `before`, of which it goes on.
    pub fn replace_cluster(&self, before: &Cluster, cluster: &Cluster) {
        let place = |cluster: &Cluster| cluster.pgdata().display().to_string();
        self.edit(|text| {
            text.replace(&before.conninfo(), &cluster.conninfo())
                .replace(&place(before), &place(cluster))
        });
    }

    /// Changes the configuration's text.
    pub fn edit(&self, change: impl FnOnce(String) -> String) {
        let text = fs::read_to_string(&self.config).expect("read the configuration");
        write(&self.config, change(text));
    }

    /// Has it do nothing ahead: there is no place for its state.
    pub fn without_state(&self) {
        self.edit(|text| text.replace("state-dir = \"", "state-dir = \"/dev/null"));
    }

    /// The configuration file.
    pub fn config(&self) -> &Path {
        &self.config
    }

    /// The directory with the objects of the repository `main`.
    pub fn repository(&self) -> PathBuf {
        self.repository_of("main")
    }

    /// The directory with the objects of the repository of this name.
    pub fn repository_of(&self, name: &str) -> PathBuf {
        self.places.objects(name)
    }

    /// The key file of the repository of this name.
    pub fn key_file(&self, name: &str) -> PathBuf {
        self.scratch.path().join(format!("{name}.key"))
    }

    /// A directory for what a test restores or writes, removed with this.
    pub fn scratch(&self) -> &Scratch {
        &self.scratch
    }

    /// Makes the repositories and their keys.
    pub fn init(&self) {
        self.ok(["init"]);
    }

    /// Switches on the cluster's archiving through this pgkeep, and waits until that is in force.
    pub fn archive(&self, cluster: &Cluster) {
        cluster.conf(&format!("archive_command = '{}'", self.archive_command()));
        cluster.reload();
    }

    /// For `archive_command`.
    pub fn archive_command(&self) -> String {
        format!("{} archive-push %p", self.call())
    }

    /// Restores with these options, archiving off, into a directory of this name, and starts the
    /// server until its recovery is over.
    pub fn restored(&self, version: u32, name: &str, options: &[&str]) -> Cluster {
        let pgdata = self.scratch.path().join(name);
        let path = pgdata.to_string_lossy().into_owned();
        let restore = ["restore", "--archive-mode", "off", "--pgdata", &path];
        self.ok([&restore, options].concat());
        let mut restored = Cluster::at(&pgdata, version);
        restored.start();
        restored.wait_for_primary(60);
        restored
    }

    /// For `restore_command`.
    pub fn restore_command(&self) -> String {
        format!("{} archive-get %f %p", self.call())
    }

    fn call(&self) -> String {
        format!("{} --config {}", pgkeep_binary().display(), self.config.display())
    }

    /// The command, ready to run in `/`, for more to be set on it.
    pub fn command<A: AsRef<std::ffi::OsStr>>(
        &self,
        arguments: impl IntoIterator<Item = A>,
    ) -> Command {
        let mut command = command(pgkeep_binary());
        command.arg("--config").arg(&self.config).args(arguments);
        command
    }

    /// Runs a command to its end.
    pub fn run<A: AsRef<std::ffi::OsStr>>(&self, arguments: impl IntoIterator<Item = A>) -> Output {
        run_to_end(&mut self.command(arguments))
    }

    /// Runs a command in a directory, as PostgreSQL runs archive commands in its data directory.
    pub fn run_in<A: AsRef<std::ffi::OsStr>>(
        &self,
        directory: &Path,
        arguments: impl IntoIterator<Item = A>,
    ) -> Output {
        run_to_end(self.command(arguments).current_dir(directory))
    }

    /// Runs a command that has to succeed.
    pub fn ok<A: AsRef<std::ffi::OsStr>>(&self, arguments: impl IntoIterator<Item = A>) -> Output {
        let mut command = self.command(arguments);
        let output = run_to_end(&mut command);
        assert_eq!(output.code, 0, "{command:?}: {output}");
        output
    }

    /// Runs a command that has to fail with an error of its own, not by a signal or a panic.
    pub fn fails<A: AsRef<std::ffi::OsStr>>(
        &self,
        arguments: impl IntoIterator<Item = A>,
    ) -> Output {
        let mut command = self.command(arguments);
        let output = run_to_end(&mut command);
        assert!(output.code > 0, "{command:?} should fail: {output}");
        assert!(!output.stderr.contains("panicked at"), "{command:?}: {output}");
        output
    }

    /// Runs a command with `--output json` and returns what it printed.
    pub fn json<A: AsRef<std::ffi::OsStr>>(
        &self,
        arguments: impl IntoIterator<Item = A>,
    ) -> serde_json::Value {
        let mut command = self.command(["--output", "json"]);
        let output = run_to_end(command.args(arguments));
        assert_eq!(output.code, 0, "{command:?}: {output}");
        serde_json::from_str(&output.stdout)
            .unwrap_or_else(|e| panic!("{command:?}: {e}: {output}"))
    }

    /// Starts a command and leaves it running.
    pub fn spawn<A: AsRef<std::ffi::OsStr>>(
        &self,
        arguments: impl IntoIterator<Item = A>,
    ) -> Running {
        start(self.command(arguments))
    }
}

/// Starts a command of [`Pgkeep::command`] and leaves it running.
pub fn start(mut command: Command) -> Running {
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    Running { child: Some(command.spawn().expect("start pgkeep")) }
}

/// Runs a command to its end.
pub fn run_to_end(command: &mut Command) -> Output {
    output_of(command.output().unwrap_or_else(|e| panic!("run {command:?}: {e}")))
}

fn output_of(output: std::process::Output) -> Output {
    let signal = output.status.signal().unwrap_or_default();
    Output {
        code: output.status.code().unwrap_or(-signal),
        stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
        stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
    }
}

/// A pgkeep that was left running. Dropping it kills it.
#[derive(Debug)]
pub struct Running {
    child: Option<Child>,
}

impl Running {
    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.child.as_ref().expect("it wasn't waited for").id()
    }

    /// Whether it hasn't ended.
    pub fn runs(&mut self) -> bool {
        let child = self.child.as_mut().expect("it wasn't waited for");
        child.try_wait().expect("wait").is_none()
    }

    /// Sends it a signal: 2, 15.
    pub fn signal(&self, signal: rustix::process::Signal) {
        let pid = rustix::process::Pid::from_raw(self.pid() as i32).expect("a process id");
        let _ = rustix::process::kill_process(pid, signal);
    }

    /// Kills it (9) after a while, unless it is done before; waits for its end.
    pub fn kill_after(self, time: Duration) -> Output {
        let end = Instant::now() + time;
        let mut this = self;
        let child = this.child.as_mut().expect("it wasn't waited for");
        while Instant::now() < end && child.try_wait().expect("wait").is_none() {
            std::thread::sleep(Duration::from_millis(1));
        }
        let _ = child.kill();
        this.wait()
    }

    /// Waits for its end, and says how much memory it had at its peak, as seen each millisecond.
    pub fn wait_and_measure(self) -> (Output, Peak) {
        let status = format!("/proc/{}/status", self.pid());
        let ended = AtomicBool::new(false);
        std::thread::scope(|scope| {
            // Beside it, as what the program says has to be read or it waits.
            let measure = scope.spawn(|| {
                let mut peak = Peak::default();
                while !ended.load(Ordering::Relaxed) {
                    let status = fs::read_to_string(&status).unwrap_or_default();
                    let bytes = |name: &str| {
                        let line = status.lines().find_map(|line| line.strip_prefix(name));
                        line.and_then(|line| line.trim().strip_suffix(" kB")?.parse::<u64>().ok())
                            .map_or(0, |kib| kib << 10)
                    };
                    peak.own = peak.own.max(bytes("RssAnon:"));
                    peak.all = peak.all.max(bytes("VmHWM:"));
                    std::thread::sleep(Duration::from_millis(1));
                }
                peak
            });
            let output = self.wait();
            ended.store(true, Ordering::Relaxed);
            (output, measure.join().expect("measured"))
        })
    }

    /// Waits for its end.
    pub fn wait(mut self) -> Output {
        let child = self.child.take().expect("it wasn't waited for");
        output_of(child.wait_with_output().expect("wait for pgkeep"))
    }
}

/// The most memory that a process had, in bytes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Peak {
    /// Its own. Code isn't counted: it is mapped from the file, and of a debug build it is the greater
    /// part.
    pub own: u64,
    /// All that was resident.
    pub all: u64,
}

impl Drop for Running {
    fn drop(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}
