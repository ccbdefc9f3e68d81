//! Following a recovery by what the server writes into its log.
//!
//! With `hot_standby` off, as a drill has it, nobody is let in before the recovery is over; but the
//! server says which files it has got from the archive, every few seconds how far replay is, and when
//! it is done (`xlogrecovery.c`, `startup.c`). As long as it says anything, it gets on.

use std::{
    fs::File,
    io::{self, Read, Seek, SeekFrom},
    path::PathBuf,
    process::ExitStatus,
    time::{Duration, Instant},
};

use crate::{
    postgres::{
        Lsn,
        server::{Server, ServerState},
    },
    progress::Progress,
};

/// How often is looked.
const PAUSE: Duration = Duration::from_millis(50);

/// How often it is told how far replay is.
const TOLD_EVERY: Duration = Duration::from_secs(10);

/// What a log has said of a recovery.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Recovery {
    /// Whether the server has read its configuration and looked at the data directory.
    pub started: bool,
    /// How far replay is known to be.
    pub at: Option<Lsn>,
    /// When replay was done, in seconds since 1970.
    pub done: Option<f64>,
    /// How many files came from the archive.
    pub fetched: u64,
}

impl Recovery {
    /// Takes a line, as `log_line_prefix = '%n '` begins it.
    fn take(&mut self, line: &str) {
        let Some((time, rest)) = line.split_once(' ') else { return };
        let Ok(time) = time.parse::<f64>() else { return };
        let Some((_, message)) = rest.split_once(":  ") else { return };
        self.started |= message.starts_with("database system was");
        let behind = |words: &str| {
            let (_, after) = message.split_once(words)?;
            after.split([' ', ',']).next()?.parse::<Lsn>().ok()
        };
        if message.starts_with("restored log file") {
            self.fetched += 1;
        } else if message.starts_with("redo in progress") {
            self.at = behind("current LSN: ").or(self.at);
        } else if message.starts_with("redo done at ") {
            self.at = behind("redo done at ").or(self.at);
            self.done = Some(time);
        } else if message.starts_with("redo starts at ") {
            self.at = behind("redo starts at ");
        }
    }
}

/// Why a server didn't open.
#[derive(Debug)]
pub enum Down {
    /// It ended.
    Ended(ExitStatus),
    /// It said nothing for so long.
    Silent(Duration),
    /// The system couldn't say how it is.
    Io(io::Error),
}

/// A log that is being written.
struct Log {
    path: PathBuf,
    read: u64,
    /// The beginning of a line whose end isn't there yet.
    line: Vec<u8>,
}

impl Log {
    /// Reads what has come since, and says whether anything has.
    fn look(&mut self, recovery: &mut Recovery) -> io::Result<bool> {
        let mut file = File::open(&self.path)?;
        file.seek(SeekFrom::Start(self.read))?;
        let mut bytes = Vec::new();
        file.take(1 << 20).read_to_end(&mut bytes)?;
        self.read += bytes.len() as u64;
        for part in bytes.split_inclusive(|b| *b == b'\n') {
            self.line.extend_from_slice(part);
            if self.line.ends_with(b"\n") {
                recovery.take(String::from_utf8_lossy(&self.line).trim_end());
                self.line.clear();
            }
        }
        Ok(!bytes.is_empty())
    }
}

/// Waits until the server lets everybody in. It may take as long as it likes, if only it says something
/// within each `silence`.
pub async fn until_open(
    server: &mut Server,
    log: PathBuf,
    silence: Duration,
    progress: &dyn Progress,
) -> (Recovery, Result<(), Down>) {
    let mut log = Log { path: log, read: 0, line: Vec::new() };
    let mut recovery = Recovery::default();
    let (mut heard, mut told) = (Instant::now(), Instant::now());
    loop {
        // First how it is and then what it said, so that its last words are heard.
        let ended = server.ended();
        let open = server.state() == Some(ServerState::Ready);
        let news = match log.look(&mut recovery) {
            Ok(news) => news,
            Err(e) => return (recovery, Err(Down::Io(e))),
        };
        if news {
            heard = Instant::now();
            continue;
        }
        match ended {
            Ok(None) => {}
            Ok(Some(status)) => return (recovery, Err(Down::Ended(status))),
            Err(e) => return (recovery, Err(Down::Io(e))),
        }
        if open {
            return (recovery, Ok(()));
        }
        if heard.elapsed() > silence {
            return (recovery, Err(Down::Silent(silence)));
        }
        if told.elapsed() > TOLD_EVERY
            && let Some(at) = recovery.at
        {
            let fetched = recovery.fetched;
            progress.step(&format!("replaying WAL: at {at}, {fetched} files from the archive"));
            told = Instant::now();
        }
        tokio::time::sleep(PAUSE).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_log_tells_how_far_replay_is() {
        let mut recovery = Recovery::default();
        for line in [
            "1795917129.101 LOG:  starting PostgreSQL 17.10 on x86_64",
            "pgkeep: warning: something of an archive-get",
            "1795917129.201 LOG:  database system was interrupted; last known up at 2026-11-29",
            "1795917129.301 LOG:  restored log file \"000000010000000000000002\" from archive",
            "1795917129.301 LOG:  redo starts at 0/2000028",
            "1795917131.301 LOG:  redo in progress, elapsed time: 2.00 s, current LSN: 0/3000060",
            "1795917131.400 LOG:  restored log file \"000000010000000000000003\" from archive",
        ] {
            recovery.take(line);
        }
        let so_far = Recovery { started: true, at: Some(Lsn(0x300_0060)), done: None, fetched: 2 };
        assert_eq!(recovery, so_far);
        recovery.take(
            "1795917132.500 LOG:  redo done at 0/40000A0 system usage: CPU: user: 0.00 s, system: …",
        );
        assert_eq!((recovery.at, recovery.done), (Some(Lsn(0x400_00A0)), Some(1_795_917_132.5)));
    }

    #[test]
    fn lines_are_read_when_they_are_whole() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("log");
        let mut log = Log { path: path.clone(), read: 0, line: Vec::new() };
        let mut recovery = Recovery::default();
        std::fs::write(&path, "1.0 LOG:  redo done").unwrap();
        assert!(log.look(&mut recovery).unwrap());
        assert_eq!(recovery.done, None);
        std::fs::write(&path, "1.0 LOG:  redo done at 0/1 x\n").unwrap();
        assert!(log.look(&mut recovery).unwrap());
        assert_eq!(recovery.done, Some(1.0));
        assert!(!log.look(&mut recovery).unwrap());
    }
}
