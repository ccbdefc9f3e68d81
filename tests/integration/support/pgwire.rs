//! The way to a server, with a fault on it: what the server says passes here message by message.
//!
//! A proxy that knows the messages of the protocol (documentation, "Message Formats"): each is a type, a
//! length and a body. It notes which came in answer to what, so that the same one is known in another
//! run, and does to one of them what it is told to. What the client says is passed on as it is; what it
//! reports of a stream as stored is handed to who wants to know.

use std::{
    collections::BTreeMap,
    io::{self, Read, Write},
    net::{Shutdown, TcpListener, TcpStream},
    os::unix::net::UnixStream,
    path::PathBuf,
    sync::{
        Arc, Mutex, MutexGuard,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::Duration,
};

use super::cluster::Cluster;

/// What can be done to a message of the server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// The connection ends before it, in the midst of it, behind it.
    CutBefore,
    CutInside,
    CutAfter,
    /// The connection is reset in the midst of it.
    ResetInside,
    /// Its length is another one: so much more, or this.
    LengthOff(i32),
    Length(u32),
    /// Its type is another one.
    Type(u8),
    LeftOut,
    Twice,
    /// The next message comes first, if one comes soon.
    Swapped,
    /// An error takes its place: of this severity and SQLSTATE. After FATAL the connection ends.
    Error(&'static str, &'static str),
    /// It comes, then an error, and the server is ready again; the rest of the answer doesn't come.
    ErrorAfter(&'static str),
    /// All of its body but the first byte is nonsense.
    Scrambled,
    /// It comes behind so many notices.
    Notices(usize),
    /// It comes behind data of a kind that there isn't.
    Stranger,
    /// The copy ends before it.
    DoneBefore,
    /// Nothing comes any more, on any connection.
    Silence,
    /// Nothing comes any more on this connection.
    SilenceHere,
    /// From here on each byte comes alone: the first ones slowly.
    Drip,
    /// A value of a row is another one.
    Field(usize, &'static str),
    /// A value of a row is NULL.
    Null(usize),
    /// WAL begins so much later or earlier than it does.
    WalOff(i64),
    /// The first bytes of WAL are left out, and its position says so.
    WalHole(usize),
    /// WAL comes a second time from its middle on, together with what follows.
    WalOverlap,
    /// The server says that its WAL goes as far as this.
    ServerEnd(u64),
}

/// What a connection is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Link {
    Sql,
    Replication,
}

/// A message of the server, known again in another run.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Place {
    pub link: Link,
    /// What was asked last, without what differs between runs; empty before the first question.
    pub asked: String,
    /// The type; of CopyData the kind as well.
    pub what: String,
    /// How many of the same there were before.
    pub before: usize,
}

/// A message that came.
#[derive(Debug, Clone)]
pub struct Seen {
    pub place: Place,
    /// What was done to it.
    pub fault: Option<Fault>,
}

/// Hears each position that a client of a stream reports as stored, before the server does.
type OnReport = Box<dyn FnMut(u64) + Send>;

#[derive(Default)]
struct State {
    seen: Vec<Seen>,
    counts: BTreeMap<(Link, String, String), usize>,
    plan: Option<(Place, Fault)>,
    /// Nothing comes any more.
    silent: bool,
    /// Goes up when the wire is healed: connections from before end.
    era: usize,
    on_report: Option<OnReport>,
}

/// A proxy before a cluster's server.
pub struct PgWire {
    port: u16,
    state: Arc<Mutex<State>>,
    closed: Arc<AtomicBool>,
}

fn lock(state: &Mutex<State>) -> MutexGuard<'_, State> {
    state.lock().unwrap_or_else(|failed| failed.into_inner())
}

impl PgWire {
    pub fn to(cluster: &Cluster) -> Self {
        let listener = TcpListener::bind(("127.0.0.1", 0)).expect("bind a port");
        let port = listener.local_addr().expect("an address").port();
        let socket = cluster.socket_dir().join(format!(".s.PGSQL.{}", cluster.port()));
        let (state, closed) = (Arc::<Mutex<State>>::default(), Arc::<AtomicBool>::default());
        let (shared, is_closed) = (state.clone(), closed.clone());
        thread::spawn(move || {
            for client in listener.incoming().flatten() {
                if is_closed.load(Ordering::Relaxed) {
                    return;
                }
                connection(client, socket.clone(), shared.clone());
            }
        });
        PgWire { port, state, closed }
    }

    /// How to connect through it.
    pub fn conninfo(&self) -> String {
        let port = self.port;
        format!("host=127.0.0.1 port={port} user=postgres sslmode=disable connect_timeout=5")
    }

    /// Has this happen once, from now on.
    pub fn plan(&self, place: &Place, fault: Fault) {
        self.heal();
        lock(&self.state).plan = Some((place.clone(), fault));
    }

    /// Has this happen to a message that is still to come, on the connections that there are.
    pub fn now(&self, place: &Place, fault: Fault) {
        lock(&self.state).plan = Some((place.clone(), fault));
    }

    /// Ends a silence, for connections that are still to come.
    pub fn end_silence(&self) {
        lock(&self.state).silent = false;
    }

    /// From now on all is well. Connections from before end.
    pub fn heal(&self) {
        let mut state = lock(&self.state);
        let era = state.era + 1;
        *state = State { era, ..State::default() };
    }

    /// What came since it was told last what is to happen.
    pub fn seen(&self) -> Vec<Seen> {
        lock(&self.state).seen.clone()
    }

    /// Has somebody hear what is reported as stored, until the next plan.
    pub fn on_report(&self, hear: impl FnMut(u64) + Send + 'static) {
        lock(&self.state).on_report = Some(Box::new(hear));
    }
}

impl Drop for PgWire {
    fn drop(&mut self) {
        self.heal();
        self.closed.store(true, Ordering::Relaxed);
        // Wakes who waits for somebody.
        let _ = TcpStream::connect(("127.0.0.1", self.port));
    }
}

/// What both directions of a connection know.
struct Connection {
    client: TcpStream,
    server: UnixStream,
    state: Arc<Mutex<State>>,
    era: usize,
    asked: Mutex<(Link, String)>,
    over: AtomicBool,
}

fn connection(client: TcpStream, socket: PathBuf, state: Arc<Mutex<State>>) {
    let Ok(server) = UnixStream::connect(socket) else { return };
    let _ = client.set_nodelay(true);
    // Reading looks now and then whether the connection is over.
    let pause = Some(Duration::from_millis(20));
    client.set_read_timeout(pause).expect("set a timeout");
    server.set_read_timeout(pause).expect("set a timeout");
    let era = lock(&state).era;
    let (asked, over) = (Mutex::new((Link::Sql, String::new())), AtomicBool::new(false));
    let shared = Arc::new(Connection { client, server, state, era, asked, over });
    let other = shared.clone();
    thread::spawn(move || {
        let _ = other.pass_on_client();
        other.end(Shutdown::Write);
    });
    thread::spawn(move || {
        let _ = shared.pass_on_server();
        shared.end(Shutdown::Both);
    });
}

impl Connection {
    fn end(&self, how: Shutdown) {
        let _ = self.server.shutdown(how);
        if how == Shutdown::Both && !self.over.swap(true, Ordering::Relaxed) {
            let _ = self.client.shutdown(how);
        }
    }

    /// Whether nobody listens any more, or all is to be as if nothing had been.
    fn is_over(&self) -> bool {
        self.over.load(Ordering::Relaxed) || lock(&self.state).era != self.era
    }

    fn read(&self, mut from: impl Read, into: &mut [u8]) -> io::Result<()> {
        let mut at = 0;
        while at < into.len() {
            match from.read(&mut into[at..]) {
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(count) => at += count,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) if e.kind() == io::ErrorKind::WouldBlock && !self.is_over() => {}
                Err(e) => return Err(e),
            }
        }
        Ok(())
    }

    /// A message: its type, and its body.
    fn message(&self, from: impl Read + Copy) -> io::Result<(u8, Vec<u8>)> {
        let mut head = [0; 5];
        self.read(from, &mut head)?;
        let [tag, length @ ..] = head;
        let length = u32::from_be_bytes(length) as usize;
        let length = length.checked_sub(4).ok_or(io::ErrorKind::InvalidData)?;
        let mut body = vec![0; length];
        self.read(from, &mut body)?;
        Ok((tag, body))
    }

    fn pass_on_client(&self) -> io::Result<()> {
        let mut to = &self.server;
        let mut length = [0; 4];
        self.read(&self.client, &mut length)?;
        let mut startup = vec![0; u32::from_be_bytes(length) as usize - 4];
        self.read(&self.client, &mut startup)?;
        if startup.windows(12).any(|part| part == b"replication\0") {
            self.asked.lock().expect("the other half").0 = Link::Replication;
        }
        to.write_all(&[&length[..], &startup].concat())?;
        loop {
            let (tag, body) = self.message(&self.client)?;
            match (tag, body.first()) {
                (b'Q', _) => {
                    let text = String::from_utf8_lossy(body.strip_suffix(b"\0").unwrap_or(&body));
                    self.asked.lock().expect("the other half").1 = without_what_differs(&text);
                }
                (b'd', Some(b'r')) => {
                    // Written, flushed, applied.
                    let flushed = body[9..17].try_into().map(u64::from_be_bytes).expect("8 bytes");
                    if let Some(hear) = &mut lock(&self.state).on_report {
                        hear(flushed);
                    }
                }
                _ => {}
            }
            to.write_all(&whole(tag, &body))?;
        }
    }

    fn pass_on_server(&self) -> io::Result<()> {
        loop {
            let (tag, body) = self.message(&self.server)?;
            let fault = self.note(tag, &body);
            if lock(&self.state).silent {
                return self.fall_silent();
            }
            match fault {
                None => self.say(&whole(tag, &body))?,
                Some(fault) => self.strike(fault, tag, body)?,
            }
        }
    }

    /// Notes a message, and says what is to be done to it.
    fn note(&self, tag: u8, body: &[u8]) -> Option<Fault> {
        let (link, asked) = self.asked.lock().expect("the other half").clone();
        let what = match (tag, body.first()) {
            (b'd', Some(kind)) => format!("d{}", kind.escape_ascii()),
            // Parameters come in no particular order.
            (b'S', _) => format!("S {}", String::from_utf8_lossy(cut(body))),
            (tag, _) => char::from(tag).to_string(),
        };
        let mut state = lock(&self.state);
        if state.era != self.era {
            return None;
        }
        let key = (link, asked.clone(), what.clone());
        let count = state.counts.entry(key).or_default();
        let place = Place { link, asked, what, before: *count };
        *count += 1;
        let fault = state.plan.as_ref().filter(|(at, _)| *at == place).map(|(_, fault)| *fault);
        state.silent |= fault == Some(Fault::Silence);
        state.seen.push(Seen { place, fault });
        fault
    }

    fn say(&self, bytes: &[u8]) -> io::Result<()> {
        (&self.client).write_all(bytes)
    }

    /// Says nothing until the client is gone. What the server has said by then isn't whole messages.
    fn fall_silent(&self) -> io::Result<()> {
        while !self.is_over() {
            // What the server says has to go somewhere, else the client would see it stop as well.
            let _ = (&self.server).read(&mut [0; 4096]);
            match self.client.peek(&mut [0; 1]) {
                Ok(0) => break,
                Err(e) if e.kind() != io::ErrorKind::WouldBlock => break,
                _ => thread::sleep(Duration::from_millis(20)),
            }
        }
        Err(io::ErrorKind::ConnectionAborted.into())
    }

    fn strike(&self, fault: Fault, tag: u8, mut body: Vec<u8>) -> io::Result<()> {
        let ended = || io::Error::from(io::ErrorKind::ConnectionAborted);
        let mut bytes = whole(tag, &body);
        let half = bytes.len() / 2;
        match fault {
            Fault::CutBefore => return Err(ended()),
            Fault::CutInside => {
                self.say(&bytes[..half])?;
                return Err(ended());
            }
            Fault::CutAfter => {
                self.say(&bytes)?;
                return Err(ended());
            }
            Fault::ResetInside => {
                self.say(&bytes[..half])?;
                // When the last one lets go of the socket, the client gets an RST.
                let at_once = Some(Duration::ZERO);
                rustix::net::sockopt::set_socket_linger(&self.client, at_once)?;
                self.over.store(true, Ordering::Relaxed);
                return Err(ended());
            }
            Fault::LengthOff(off) => {
                let length = (body.len() as u32 + 4).wrapping_add_signed(off);
                bytes[1..5].copy_from_slice(&length.to_be_bytes());
            }
            Fault::Length(length) => bytes[1..5].copy_from_slice(&length.to_be_bytes()),
            Fault::Type(other) => bytes[0] = other,
            Fault::LeftOut => return Ok(()),
            Fault::Scrambled => bytes.iter_mut().skip(6).for_each(|byte| *byte ^= 0x55),
            Fault::Twice => bytes.extend(bytes.clone()),
            Fault::Swapped => {
                let (tag, body) = self.message(&self.server)?;
                self.note(tag, &body);
                bytes = [whole(tag, &body), bytes].concat();
            }
            Fault::Error(severity, code) => {
                self.say(&error(b'E', severity, code))?;
                return if severity == "FATAL" { Err(ended()) } else { Ok(()) };
            }
            Fault::ErrorAfter(code) => {
                bytes.extend(error(b'E', "ERROR", code));
                self.say(&bytes)?;
                if tag == b'Z' {
                    return Ok(());
                }
                loop {
                    let (tag, body) = self.message(&self.server)?;
                    if tag == b'Z' {
                        return self.say(&whole(tag, &body));
                    }
                }
            }
            Fault::Notices(count) => {
                let notice = error(b'N', "NOTICE", "00000");
                for _ in 0..count {
                    self.say(&notice)?;
                }
            }
            Fault::Stranger => bytes = [whole(b'd', b"?what is this"), bytes].concat(),
            Fault::DoneBefore => bytes = [whole(b'c', b""), bytes].concat(),
            Fault::Silence | Fault::SilenceHere => return self.fall_silent(),
            Fault::Drip => return self.drip(&bytes),
            Fault::Field(index, value) => bytes = whole(tag, &row(&body, index, Some(value))),
            Fault::Null(index) => bytes = whole(tag, &row(&body, index, None)),
            Fault::WalOff(off) => {
                let start = u64::from_be_bytes(body[1..9].try_into().expect("8 bytes"));
                body[1..9].copy_from_slice(&start.wrapping_add_signed(off).to_be_bytes());
                bytes = whole(tag, &body);
            }
            Fault::WalHole(gone) => {
                let start = u64::from_be_bytes(body[1..9].try_into().expect("8 bytes"));
                body[1..9].copy_from_slice(&(start + gone as u64).to_be_bytes());
                body.drain(25..(25 + gone).min(body.len()));
                bytes = whole(tag, &body);
            }
            Fault::WalOverlap => {
                let middle = (body.len() - 25) / 2;
                let start = u64::from_be_bytes(body[1..9].try_into().expect("8 bytes"));
                let mut again = body[..25].to_vec();
                again[1..9].copy_from_slice(&(start + middle as u64).to_be_bytes());
                again.extend_from_slice(&body[25 + middle..]);
                bytes.extend(whole(tag, &again));
            }
            Fault::ServerEnd(end) => {
                let at = if body[0] == b'w' { 9 } else { 1 };
                body[at..at + 8].copy_from_slice(&end.to_be_bytes());
                bytes = whole(tag, &body);
            }
        }
        self.say(&bytes)
    }

    /// This message and what follows, byte by byte.
    fn drip(&self, first: &[u8]) -> io::Result<()> {
        let one = |byte: &u8| self.say(std::slice::from_ref(byte));
        for byte in &first[..first.len().min(200)] {
            one(byte)?;
            thread::sleep(Duration::from_millis(2));
        }
        first.iter().skip(200).try_for_each(one)?;
        let mut left = 32 << 10;
        while left > 0 {
            let mut byte = [0];
            self.read(&self.server, &mut byte)?;
            one(&byte[0])?;
            left -= 1;
        }
        // Messages aren't known any more, and pass as they come.
        let mut bytes = [0; 16 << 10];
        loop {
            match (&self.server).read(&mut bytes) {
                Ok(0) => return Ok(()),
                Ok(count) => self.say(&bytes[..count])?,
                Err(e) if e.kind() == io::ErrorKind::WouldBlock && !self.is_over() => {}
                Err(e) => return Err(e),
            }
        }
    }
}

/// A message as it goes over the wire.
fn whole(tag: u8, body: &[u8]) -> Vec<u8> {
    let length = (body.len() as u32 + 4).to_be_bytes();
    [&[tag][..], &length, body].concat()
}

/// An error or a notice.
fn error(tag: u8, severity: &str, code: &str) -> Vec<u8> {
    let body = format!("S{severity}\0V{severity}\0C{code}\0Ma fault of the test\0\0");
    whole(tag, body.as_bytes())
}

/// The bytes up to a NUL.
fn cut(body: &[u8]) -> &[u8] {
    body.split(|byte| *byte == 0).next().unwrap_or_default()
}

/// A row with another value, if it has as many.
fn row(body: &[u8], index: usize, value: Option<&str>) -> Vec<u8> {
    let count = u16::from_be_bytes([body[0], body[1]]);
    let mut rest = &body[2..];
    let mut changed = count.to_be_bytes().to_vec();
    for column in 0..usize::from(count) {
        let (length, after) = rest.split_at(4);
        let length = i32::from_be_bytes(length.try_into().expect("4 bytes"));
        let (old, after) = after.split_at(length.max(0) as usize);
        rest = after;
        match value {
            _ if column != index => {
                changed.extend(length.to_be_bytes());
                changed.extend(old);
            }
            Some(value) => {
                changed.extend((value.len() as i32).to_be_bytes());
                changed.extend(value.as_bytes());
            }
            None => changed.extend((-1i32).to_be_bytes()),
        }
    }
    changed
}

/// A question without what is made anew in each run: words with digits in them.
fn without_what_differs(text: &str) -> String {
    let mut plain = String::new();
    for word in text.split_inclusive(|c: char| !c.is_ascii_alphanumeric()) {
        let stem = word.trim_end_matches(|c: char| !c.is_ascii_alphanumeric());
        let differs = stem.bytes().any(|byte| byte.is_ascii_digit());
        plain.extend([if differs { "#" } else { stem }, &word[stem.len()..]]);
    }
    plain
}
