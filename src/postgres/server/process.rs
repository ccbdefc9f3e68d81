//! A postmaster that this process has started.

use std::{
    fs::{self, File},
    io::{self, Read, Seek, SeekFrom},
    os::unix::process::CommandExt,
    path::{Path, PathBuf},
    process::{Child, ExitStatus, Stdio},
    thread,
    time::{Duration, Instant},
};

use rustix::process::{Pid, Signal, kill_process};

use super::Binaries;

/// How often is looked.
const PAUSE: Duration = Duration::from_millis(20);

/// How long an immediate shutdown may take: after five seconds the postmaster kills what is left of
/// its processes itself (`SIGKILL_CHILDREN_AFTER_SECS`).
const AT_ONCE: Duration = Duration::from_secs(10);

/// How long the commands that a server ran may outlive it, before they are killed.
const COMMANDS_END_WITHIN: Duration = Duration::from_secs(2);

/// How to stop a server (documentation, "Shutting Down the Server").
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stop {
    /// Sessions are ended, a checkpoint is written.
    Fast,
    /// At once, and without a checkpoint.
    Immediate,
}

/// What a postmaster says of itself in its pid file (`utils/pidfile.h`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ServerState {
    /// It starts, or recovers and lets nobody in.
    Starting,
    /// It recovers and lets sessions read.
    Standby,
    /// It lets everybody in.
    Ready,
    /// It stops.
    Stopping,
}

/// A server that didn't stop in good order.
#[derive(Debug, thiserror::Error)]
pub enum StopError {
    /// It took too long and was stopped at once.
    #[error("it didn't stop within {} s, and was stopped at once", .0.as_secs())]
    TooLong(Duration),
    /// It ended with this status.
    #[error("it ended with {0}")]
    Status(ExitStatus),
    /// The system couldn't say.
    #[error("wait for it: {0}")]
    Io(io::Error),
}

/// A running postmaster. It is stopped at once when this is dropped.
#[derive(Debug)]
pub struct Server {
    child: Child,
    data: PathBuf,
    log: PathBuf,
}

impl Server {
    /// Starts a server on a data directory, with settings for its command line, and waits for
    /// nothing. What it says goes to the end of the file `log`.
    ///
    /// It is in a process group of its own, so that an interrupt on the terminal is ours to pass on.
    pub fn start(
        binaries: &Binaries,
        data: &Path,
        settings: &[(&str, &str)],
        log: &Path,
    ) -> io::Result<Self> {
        let file = File::options().append(true).create(true).open(log)?;
        let mut command = binaries.command("postgres");
        command.arg("-D").arg(data);
        for (name, value) in settings {
            command.arg("-c").arg(format!("{name}={value}"));
        }
        let errors = file.try_clone()?;
        let child = command
            .stdout(Stdio::from(file))
            .stderr(Stdio::from(errors))
            .process_group(0)
            .spawn()?;
        Ok(Server { child, data: data.to_owned(), log: log.to_owned() })
    }

    /// What it says of itself; `None` before it says anything.
    pub fn state(&self) -> Option<ServerState> {
        let text = fs::read_to_string(self.data.join("postmaster.pid")).ok()?;
        let mut lines = text.lines();
        // The file of a server that ran here before is no word of this one.
        let pid: u32 = lines.next()?.trim().parse().ok()?;
        if pid != self.child.id() {
            return None;
        }
        match lines.nth(6)?.trim() {
            "starting" => Some(ServerState::Starting),
            "standby" => Some(ServerState::Standby),
            "ready" => Some(ServerState::Ready),
            "stopping" => Some(ServerState::Stopping),
            _ => None,
        }
    }

    /// How it ended, if it has.
    pub fn ended(&mut self) -> io::Result<Option<ExitStatus>> {
        self.child.try_wait()
    }

    /// The last lines of its log: so many at most, and of its last 64 KiB.
    pub fn last_words(&self, lines: usize) -> Vec<String> {
        let read = || -> io::Result<Vec<u8>> {
            let mut file = File::open(&self.log)?;
            let start = file.metadata()?.len().saturating_sub(64 << 10);
            file.seek(SeekFrom::Start(start))?;
            let mut bytes = Vec::new();
            file.read_to_end(&mut bytes)?;
            Ok(bytes)
        };
        let text = String::from_utf8_lossy(&read().unwrap_or_default()).into_owned();
        let all: Vec<&str> = text.lines().collect();
        all[all.len().saturating_sub(lines)..].iter().map(|line| (*line).to_owned()).collect()
    }

    /// Stops it and waits until it is gone, `patience` at most; then it is stopped at once.
    pub async fn stop(mut self, how: Stop, patience: Duration) -> Result<(), StopError> {
        self.signal(how);
        let deadline = Instant::now() + patience;
        loop {
            match self.child.try_wait().map_err(StopError::Io)? {
                Some(status) if status.success() => return Ok(()),
                Some(status) => return Err(StopError::Status(status)),
                None if Instant::now() > deadline => return Err(StopError::TooLong(patience)),
                None => tokio::time::sleep(PAUSE).await,
            }
        }
    }

    fn signal(&self, how: Stop) {
        let signal = match how {
            Stop::Fast => Signal::INT,
            Stop::Immediate => Signal::QUIT,
        };
        self.kill(signal);
    }

    fn kill(&self, signal: Signal) {
        // A child that wasn't waited for keeps its id.
        if let Some(pid) = i32::try_from(self.child.id()).ok().and_then(Pid::from_raw) {
            let _ = kill_process(pid, signal);
        }
    }
}

impl Server {
    /// Ends commands that the server ran and that outlive it: one that waits for something may not hear
    /// that it is to stop. Of the processes that were below the server it is those that are still in
    /// its directory.
    fn end_commands(&self, below: &[Pid]) {
        let Ok(data) = self.data.canonicalize() else { return };
        let is_left = |pid: &&Pid| {
            let cwd = fs::read_link(format!("/proc/{}/cwd", pid.as_raw_nonzero()));
            cwd.is_ok_and(|cwd| cwd == data)
        };
        let deadline = Instant::now() + COMMANDS_END_WITHIN;
        while below.iter().any(|pid| is_left(&pid)) {
            if Instant::now() > deadline {
                for pid in below.iter().filter(is_left) {
                    let _ = kill_process(*pid, Signal::KILL);
                }
                return;
            }
            thread::sleep(PAUSE);
        }
    }

    fn end_at_once(&mut self) {
        if !matches!(self.child.try_wait(), Ok(None)) {
            return;
        }
        self.signal(Stop::Immediate);
        let deadline = Instant::now() + AT_ONCE;
        while matches!(self.child.try_wait(), Ok(None)) {
            if Instant::now() > deadline {
                // Its processes end when they notice.
                self.kill(Signal::KILL);
                let _ = self.child.wait();
                return;
            }
            thread::sleep(PAUSE);
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let below = descendants(self.child.id());
        self.end_at_once();
        self.end_commands(&below);
    }
}

/// All processes below this one, where the system tells (proc(5)).
fn descendants(pid: u32) -> Vec<Pid> {
    let processes = fs::read_dir("/proc").into_iter().flatten().flatten();
    let all: Vec<(i32, i32)> = processes
        .filter_map(|process| {
            let pid = process.file_name().to_str()?.parse().ok()?;
            // pid (name) state parent …; the name may hold anything, so from its last bracket on.
            let stat = fs::read_to_string(process.path().join("stat")).ok()?;
            let (_, rest) = stat.rsplit_once(')')?;
            Some((pid, rest.split_whitespace().nth(1)?.parse().ok()?))
        })
        .collect();
    let mut found = vec![i32::try_from(pid).unwrap_or_default()];
    let mut next = 0;
    while let Some(parent) = found.get(next).copied() {
        found.extend(all.iter().filter(|(_, of)| *of == parent).map(|(pid, _)| *pid));
        next += 1;
    }
    found.into_iter().skip(1).filter_map(Pid::from_raw).collect()
}
