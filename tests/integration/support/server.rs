//! A server process on a data directory: started, watched, stopped and killed.

use std::{
    fs::{self, File},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    thread::sleep,
    time::{Duration, Instant},
};

use rustix::process::{Pid, Signal, kill_process};

use super::install::{command, program};

/// A variable for a process: its name and its value.
pub type Variable = (&'static str, PathBuf);

/// How to stop a server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stop {
    /// Clients are thrown out, a shutdown checkpoint is written, the archiver finishes.
    Fast,
    /// At once and without a checkpoint, but with every process told.
    Immediate,
}

/// How long a server may take to start, in seconds; far more than it needs.
const START_SECONDS: u64 = 120;

/// A running postmaster.
#[derive(Debug)]
pub struct Server {
    child: Child,
    pgdata: PathBuf,
}

impl Server {
    /// Starts a server, with `options` on the command line (`name=value`), and waits until it
    /// accepts connections. `Err` has the end of its log.
    pub fn start(
        version: u32,
        pgdata: &Path,
        options: &[String],
        environment: &[Variable],
        log: &Path,
    ) -> Result<Self, String> {
        let mut server = Server::spawn(version, pgdata, options, environment, log);
        let end = Instant::now() + Duration::from_secs(START_SECONDS);
        while Instant::now() < end {
            if let Some(status) = server.child.try_wait().expect("wait for the server") {
                return Err(format!("the server ended ({status}); its log:\n{}", tail(log)));
            }
            if matches!(server.state().as_deref(), Some("ready" | "standby")) {
                return Ok(server);
            }
            sleep(Duration::from_millis(10));
        }
        Err(format!("the server didn't start in {START_SECONDS} s; its log:\n{}", tail(log)))
    }

    /// Starts a server and doesn't wait for anything.
    pub fn spawn(
        version: u32,
        pgdata: &Path,
        options: &[String],
        environment: &[Variable],
        log: &Path,
    ) -> Self {
        let file = File::options().append(true).create(true).open(log).expect("open the log");
        let mut postgres: Command = command(program(version, "postgres"));
        postgres.envs(environment.iter().cloned());
        postgres.arg("-D").arg(pgdata);
        for option in options {
            postgres.arg("-c").arg(option);
        }
        let errors = file.try_clone().expect("share the log");
        let child = postgres
            .stdout(Stdio::from(file))
            .stderr(Stdio::from(errors))
            .spawn()
            .expect("start postgres");
        Server { child, pgdata: pgdata.to_owned() }
    }

    /// What the postmaster says about itself in the last line of its pid file: `starting`,
    /// `standby`, `ready`, `stopping`.
    fn state(&self) -> Option<String> {
        let text = fs::read_to_string(self.pgdata.join("postmaster.pid")).ok()?;
        let mut lines = text.lines();
        let pid: u32 = lines.next()?.trim().parse().ok()?;
        (pid == self.child.id()).then(|| lines.nth(6).map(|line| line.trim().to_owned()))?
    }

    /// Whether the postmaster still runs.
    pub fn runs(&mut self) -> bool {
        self.child.try_wait().expect("wait for the server").is_none()
    }

    /// Stops the server and waits until it is gone.
    pub fn stop(mut self, how: Stop) {
        let signal = match how {
            Stop::Fast => Signal::INT,
            Stop::Immediate => Signal::QUIT,
        };
        self.signal(signal);
        self.wait(60);
    }

    /// Kills all its processes at once, as a power cut would.
    pub fn kill9(mut self) {
        let children = descendants(self.child.id());
        self.signal(Signal::KILL);
        for pid in children {
            kill(pid, Signal::KILL);
        }
        self.wait(10);
    }

    fn signal(&mut self, signal: Signal) {
        if self.runs() {
            kill(self.child.id(), signal);
        }
    }

    fn wait(&mut self, seconds: u64) {
        let end = Instant::now() + Duration::from_secs(seconds);
        while self.runs() {
            if Instant::now() > end {
                let children = descendants(self.child.id());
                self.signal(Signal::KILL);
                children.into_iter().for_each(|pid| kill(pid, Signal::KILL));
                self.child.wait().expect("wait for the server");
                panic!("the server on {} didn't stop and was killed", self.pgdata.display());
            }
            sleep(Duration::from_millis(5));
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let children = descendants(self.child.id());
        self.signal(Signal::QUIT);
        let end = Instant::now() + Duration::from_secs(5);
        while self.runs() && Instant::now() < end {
            sleep(Duration::from_millis(5));
        }
        self.signal(Signal::KILL);
        let _ = self.child.wait();
        // What the server started outlives it for a moment, an archive command for longer.
        for pid in children {
            if belongs_to(pid, &self.pgdata) {
                kill(pid, Signal::KILL);
            }
        }
    }
}

fn kill(pid: u32, signal: Signal) {
    if let Some(pid) = Pid::from_raw(pid as i32) {
        // It may be gone already.
        let _ = kill_process(pid, signal);
    }
}

/// Whether a process works in this data directory, as a server's do: its id may have been given
/// to another since.
fn belongs_to(pid: u32, pgdata: &Path) -> bool {
    fs::read_link(format!("/proc/{pid}/cwd")).is_ok_and(|cwd| cwd == pgdata)
}

/// All processes below this one.
fn descendants(pid: u32) -> Vec<u32> {
    let mut all: Vec<(u32, u32)> = Vec::new();
    for entry in fs::read_dir("/proc").expect("read /proc").flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else {
            continue;
        };
        // pid (name) state parent …; the name may hold anything, so from its closing bracket on.
        let stat = fs::read_to_string(entry.path().join("stat")).unwrap_or_default();
        let parent = stat.rsplit_once(')').and_then(|(_, rest)| rest.split_whitespace().nth(1));
        if let Some(parent) = parent.and_then(|parent| parent.parse().ok()) {
            all.push((pid, parent));
        }
    }
    let mut found = vec![pid];
    let mut next = 0;
    while next < found.len() {
        let parent = found[next];
        found.extend(all.iter().filter(|(_, of)| *of == parent).map(|(pid, _)| *pid));
        next += 1;
    }
    found.split_off(1)
}

/// The end of a log file.
fn tail(log: &Path) -> String {
    let text = String::from_utf8_lossy(&fs::read(log).unwrap_or_default()).into_owned();
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(40)..].join("\n")
}
