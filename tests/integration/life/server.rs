//! A PostgreSQL server of one task: it writes WAL, and answers what `backup` and `stream` ask.
//!
//! What the model knows of the cluster is what this server has written: all WAL since its first segment, the
//! files of each base backup as it sent them, and how far a stream has told it that WAL is stored. It
//! keeps all WAL, and never lies.

use std::{
    collections::BTreeMap,
    path::Path,
    sync::{Arc, Mutex, MutexGuard},
};

use bytes::{Buf, Bytes};
use chrono::Utc;
use pgkeep::postgres::{Lsn, Timeline};
use tokio::{
    net::{UnixListener, UnixStream},
    sync::watch,
    task::JoinHandle,
};

use super::wire::{Gone, Result, Wire};
use crate::{
    restore_write::store::Files,
    support::{
        random::Random,
        wal::{HEAP, LONG_HEADER, SEGMENT, SYSTEM, Writer, control_file, main_data, segment_size},
    },
};

/// The number of the first segment.
pub const FIRST: u64 = 1;

const VERSION: &str = "15.10";

/// The most WAL that one message has (`walsender.c`, `MAX_SEND_SIZE`).
const MOST: usize = 128 << 10;

/// Whether all WAL from one position to another is stored.
type Look = Box<dyn Fn(Lsn, Lsn) -> bool + Send>;

/// What the server is.
pub struct State {
    wal: Writer,
    random: Random,
    xid: u32,
    /// The data directory, but for what comes with a backup only.
    pub files: Files,
    /// What the last base backup sent.
    pub sent: Option<Files>,
    /// The number of the last segment that was archived.
    pub archived: u64,
    /// Whether commits wait for the stream.
    pub is_synchronous: bool,
    /// Where the slot's WAL begins, once there is one.
    slot: Option<Lsn>,
    /// Where it began at first: from there on the stream stores WAL.
    pub streams_from: Option<Lsn>,
    /// Before it WAL may have expired.
    pub floor: Lsn,
    /// Everything before it was reported as stored.
    pub reported: Lsn,
    /// How often that went forth.
    pub reports: u64,
    /// What was reported and wasn't there.
    pub lies: Vec<Lsn>,
    look: Look,
}

impl State {
    /// Where its WAL ends.
    pub fn position(&self) -> Lsn {
        self.wal.position()
    }

    /// The number behind that of the last segment that is complete.
    pub fn complete(&self) -> u64 {
        self.position().0 / SEGMENT as u64
    }

    /// A record of about so many bytes, and the commit of its transaction.
    pub fn write(&mut self, bytes: u64) {
        let mut random = self.random.clone();
        let data: Vec<u8> =
            (0..bytes / 8).flat_map(|_| random.below(u64::MAX).to_le_bytes()).collect();
        self.random = random;
        self.xid += 1;
        self.wal.record(HEAP, 0, self.xid, &main_data(&data));
        self.wal.commit(self.xid, Utc::now());
    }

    /// Closes the segment, unless nothing is in it.
    pub fn switch(&mut self) {
        if !(self.position().0).is_multiple_of(SEGMENT as u64) {
            self.wal.switch();
        }
    }

    /// The bytes of its WAL from one position to another, the second not beyond its end.
    pub fn bytes(&self, from: Lsn, to: Lsn) -> &[u8] {
        let at = |lsn: Lsn| (lsn.0 - FIRST * SEGMENT as u64) as usize;
        &self.wal.bytes[at(from)..at(to)]
    }

    /// A segment that is complete.
    pub fn segment(&self, number: u64) -> &[u8] {
        let start = |number| segment_size().start_of(number);
        self.bytes(start(number), start(number + 1))
    }

    /// Checkpoint and switch at the beginning of a backup: where it starts.
    fn begin_backup(&mut self) -> Lsn {
        self.write(100);
        self.switch();
        let start = Lsn(self.position().0 + LONG_HEADER);
        self.write(200);
        start
    }

    /// Where the backup that began there stops. Its last segment is closed.
    fn end_backup(&mut self, start: Lsn) -> Lsn {
        self.wal.backup_end(start);
        let stop = self.position();
        self.write(50);
        self.switch();
        stop
    }
}

/// The server, until it is dropped.
pub struct Server {
    state: Arc<Mutex<State>>,
    /// Changes with whatever happens at the server.
    happened: Arc<watch::Sender<()>>,
    accepting: JoinHandle<()>,
}

impl Drop for Server {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

/// What a connection works with.
#[derive(Clone)]
struct Shared {
    state: Arc<Mutex<State>>,
    happened: Arc<watch::Sender<()>>,
}

impl Server {
    /// Starts one with a socket in `folder`. `look` says whether WAL is stored that it is told to be.
    pub fn start(
        folder: &Path,
        files: Files,
        random: Random,
        look: impl Fn(Lsn, Lsn) -> bool + Send + 'static,
    ) -> Self {
        let state = Arc::new(Mutex::new(State {
            wal: Writer::new(FIRST),
            random,
            xid: 700,
            files,
            sent: None,
            archived: FIRST - 1,
            is_synchronous: false,
            slot: None,
            streams_from: None,
            floor: Lsn::INVALID,
            reported: Lsn::INVALID,
            reports: 0,
            lies: Vec::new(),
            look: Box::new(look),
        }));
        let happened = Arc::new(watch::channel(()).0);
        let socket = UnixListener::bind(folder.join(".s.PGSQL.5432")).expect("a socket");
        let shared = Shared { state: state.clone(), happened: happened.clone() };
        let accepting = tokio::spawn(async move {
            let mut sessions = tokio::task::JoinSet::new();
            while let Ok((client, _)) = socket.accept().await {
                sessions.spawn(session(client, shared.clone()));
            }
        });
        Server { state, happened, accepting }
    }

    /// What it is.
    pub fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("the server")
    }

    /// Changes it, and lets those know who wait.
    pub fn change(&self, change: impl FnOnce(&mut State)) {
        change(&mut self.state());
        self.happened.send_replace(());
    }

    /// Waits until something is so.
    pub async fn until(&self, mut is_so: impl FnMut(&State) -> bool) {
        let mut happened = self.happened.subscribe();
        while !is_so(&self.state()) {
            happened.changed().await.expect("the server is there");
        }
    }
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("the server")
    }
}

async fn session(client: UnixStream, shared: Shared) {
    // That a client is gone is its own matter.
    let _ = serve(client, shared).await;
}

async fn serve(client: UnixStream, shared: Shared) -> Result<()> {
    let mut wire = Wire::welcome(client, VERSION).await?;
    loop {
        let (kind, mut body) = wire.next().await?;
        assert_eq!(kind, b'Q', "only simple queries are known here");
        body.truncate(body.len() - 1);
        let asked = String::from_utf8(body.to_vec()).expect("UTF-8");
        if let Some(rest) = asked.strip_prefix("START_REPLICATION ") {
            stream(&mut wire, &shared, rest).await?;
        } else if asked.starts_with("BASE_BACKUP") {
            base_backup(&mut wire, &shared, &asked).await?;
        } else {
            answer(&mut wire, &shared, &asked);
        }
        wire.ready().await?;
    }
}

/// What is asked in one message and answered in one.
fn answer(wire: &mut Wire, shared: &Shared, asked: &str) {
    let mut state = shared.state();
    let one = |text: &str| vec![vec![Some(text.to_owned())]];
    if asked.starts_with("SET ") {
        wire.complete();
    } else if asked == "IDENTIFY_SYSTEM" {
        let columns = ["systemid", "timeline", "xlogpos", "dbname"];
        let (system, position) = (SYSTEM.identifier.to_string(), state.position().to_string());
        wire.rows(&columns, &[vec![Some(system), Some("1".into()), Some(position), None]]);
    } else if asked == "SHOW wal_segment_size" {
        wire.rows(&["wal_segment_size"], &one("1MB"));
    } else if asked == "SHOW synchronous_standby_names" {
        let names = if state.is_synchronous { "pgkeep" } else { "" };
        wire.rows(&["synchronous_standby_names"], &one(names));
    } else if asked.starts_with("READ_REPLICATION_SLOT ") {
        let row = match state.slot {
            Some(slot) => {
                vec![Some("physical".into()), Some(slot.to_string()), Some("1".into())]
            }
            None => vec![None; 3],
        };
        wire.rows(&["slot_type", "restart_lsn", "restart_tli"], &[row]);
    } else if asked.starts_with("CREATE_REPLICATION_SLOT ") {
        // The last checkpoint was when the segment began.
        let from = segment_size().start_of(segment_size().number_at(state.position()));
        (state.slot, state.streams_from) = (Some(from), Some(from));
        wire.complete();
    } else if asked.contains("pg_settings") {
        let settings = [
            ("block_size", "8192"),
            ("wal_segment_size", "1048576"),
            ("segment_size", "131072"),
            ("data_checksums", "off"),
            ("data_directory_mode", "0700"),
            ("wal_level", "replica"),
            ("archive_mode", "on"),
            ("archive_command", "pgkeep archive-push %p"),
            ("archive_library", ""),
        ];
        let rows = settings.map(|(name, value)| vec![Some(name.into()), Some(value.into())]);
        wire.rows(&["name", "setting"], &rows);
    } else if asked.contains("pg_tablespace") {
        wire.rows(&["oid", "spcname"], &[]);
    } else if asked.contains("clock_timestamp") {
        wire.rows(&["int8"], &one(&Utc::now().timestamp_micros().to_string()));
    } else if asked.contains("pg_is_in_recovery") {
        wire.rows(&["pg_is_in_recovery"], &one("f"));
    } else if asked.contains("pg_logical_emit_message") {
        state.write(16);
        wire.rows(&["pg_logical_emit_message"], &one(&state.position().to_string()));
    } else if asked.contains("last_failed_wal") {
        wire.rows(&["last_failed_wal", "failed_count", "last_archived_wal", "fails"], &[]);
    } else if asked.contains("pg_stat_archiver") {
        let last = segment_size().name(Timeline(1), state.archived.max(FIRST)).to_string();
        let row = vec![Some(state.archived.to_string()), Some(last)];
        wire.rows(&["archived_count", "last_archived_wal"], &[row]);
    } else {
        panic!("nobody has taught the server to answer {asked:?}");
    }
}

/// Sends WAL as it is written, and hears how far it is stored.
async fn stream(wire: &mut Wire, shared: &Shared, asked: &str) -> Result<()> {
    let words: Vec<&str> = asked.split_whitespace().collect();
    let has_slot = words[0] == "SLOT";
    let mut at: Lsn = words[if has_slot { 3 } else { 1 }].parse().expect("a position");
    let mut happened = shared.happened.subscribe();
    wire.put(b'W', &[0, 0, 0]);
    loop {
        let message = {
            let state = shared.state();
            let end = state.position();
            // Up to the end, or to the end of a page before.
            let left = (end.0 - at.0) as usize;
            let to = if left > MOST { Lsn((at.0 + MOST as u64) / 8192 * 8192) } else { end };
            (at < to).then(|| {
                let mut message = vec![b'w'];
                for number in [at.0, end.0, 0] {
                    message.extend(number.to_be_bytes());
                }
                message.extend(state.bytes(at, to));
                at = to;
                message
            })
        };
        if let Some(message) = &message {
            wire.put(b'd', message);
        }
        wire.send().await?;
        tokio::select! {
            biased;
            heard = wire.next() => match heard? {
                (b'd', report) => hear(shared, has_slot, report),
                (b'c', _) => break,
                (kind, _) => panic!("a stream isn't ended by {:?}", char::from(kind)),
            },
            // There may be more to be sent.
            () = std::future::ready(()), if message.is_some() => {}
            _ = happened.changed() => {}
        }
    }
    wire.put(b'c', &[]);
    wire.complete();
    Ok(())
}

/// What is reported as stored, counts from here on: a commit may have waited for it.
fn hear(shared: &Shared, has_slot: bool, mut report: Bytes) {
    assert_eq!(report.get_u8(), b'r');
    let (written, stored) = (Lsn(report.get_u64()), Lsn(report.get_u64()));
    assert!(written >= stored && stored <= shared.state().position());
    let mut state = shared.state();
    if !has_slot || stored <= state.reported {
        return;
    }
    let from = state.streams_from.expect("there is a slot").max(state.floor);
    if from < stored && !(state.look)(from, stored) {
        state.lies.push(stored);
    }
    (state.reported, state.slot) = (stored, Some(stored));
    state.reports += 1;
    drop(state);
    shared.happened.send_replace(());
}

async fn base_backup(wire: &mut Wire, shared: &Shared, asked: &str) -> Result<()> {
    let (start, files) = {
        let mut state = shared.state();
        let start = state.begin_backup();
        let label = asked.split('\'').nth(1).expect("a label");
        let text = format!(
            "START WAL LOCATION: {start} (file {})\nCHECKPOINT LOCATION: {start}\nBACKUP METHOD: \
             streamed\nBACKUP FROM: primary\nSTART TIME: 2026-11-20 00:00:00 UTC\nLABEL: {label}\nSTART \
             TIMELINE: 1\n",
            segment_size().name(Timeline(1), segment_size().number_at(start)),
        );
        let mut files = state.files.clone();
        files.put("backup_label", text);
        files.put("global/pg_control", control_file(start));
        state.sent = Some(files.clone());
        (start, files)
    };
    shared.happened.send_replace(());
    let position = |lsn: Lsn| vec![vec![Some(lsn.to_string()), Some("1".into())]];
    wire.rows(&["recptr", "tli"], &position(start));
    wire.rows(&["spcoid", "spclocation", "size"], &[vec![None, None, Some("1".into())]]);
    wire.put(b'H', &[0, 0, 0]);
    wire.put(b'd', b"nbase.tar\0\0");
    for bytes in tar(&files).chunks(32 << 10) {
        wire.put(b'd', &[b"d", bytes].concat());
        wire.send().await?;
    }
    wire.put(b'c', &[]);
    let stop = shared.state().end_backup(start);
    shared.happened.send_replace(());
    wire.rows(&["recptr", "tli"], &position(stop));
    wire.complete();
    Ok(())
}

/// The data directory as the server sends it: the control file last (`basebackup.c`).
fn tar(files: &Files) -> Vec<u8> {
    let mut tar = Vec::new();
    let mut member = |name: &str, kind: u8, mode: u32, bytes: &[u8]| {
        let mut header = [0; 512];
        let mut put =
            |at: usize, text: &str| header[at..at + text.len()].copy_from_slice(text.as_bytes());
        put(0, name);
        put(100, &format!("{mode:07o}"));
        put(108, "0000000");
        put(116, "0000000");
        put(124, &format!("{:011o}", bytes.len()));
        put(136, "00000000000");
        put(148, "        ");
        put(257, "ustar\x0000");
        header[156] = kind;
        let sum: u32 = header.iter().map(|byte| u32::from(*byte)).sum();
        header[148..155].copy_from_slice(format!("{sum:06o}\0").as_bytes());
        tar.extend(header);
        tar.extend(bytes);
        tar.resize(tar.len().next_multiple_of(512), 0);
    };
    for (path, mode) in &files.directories {
        member(path, b'5', *mode, &[]);
    }
    let (last, others): (BTreeMap<_, _>, BTreeMap<_, _>) =
        files.files.iter().partition(|(path, _)| *path == "global/pg_control");
    for (path, content) in others.iter().chain(&last) {
        member(path, b'0', content.mode, &content.bytes);
    }
    tar.resize(tar.len() + 1024, 0);
    tar
}

impl std::fmt::Debug for Gone {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("the client is gone")
    }
}
