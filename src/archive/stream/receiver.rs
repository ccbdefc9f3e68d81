//! Receiving one stretch of WAL: what comes in, what is stored of it, what is reported.
//!
//! Bytes come into [`Incoming`]; jobs make them durable beside that. There are three kinds:
//!
//! - *parts*: what has come since the last one. Where commits wait for the stream, a part is made
//!   whenever fewer than [`AT_ONCE`], with less than [`BYTES_AT_ONCE`], are on their way, so that a commit
//!   waits for one of them and for no timer; else when its first byte is `max-lag` old. A segment that is
//!   complete by then has no parts.
//! - *segments*: a complete one is stored under its own name, and its parts go.
//! - *merges*: many small parts become one, and many of those ([`super::levels`]), so that a slow segment
//!   with a commit now and then doesn't end up as a hundred thousand objects.
//!
//! Nothing of a segment becomes a part before all of the one before it is durable. So whoever reads
//! the archive finds an unfinished segment only at its end, and may read it as far as it goes.

use std::{
    collections::{BTreeMap, btree_map::Entry},
    sync::Arc,
    time::Duration,
};

use bytes::Bytes;
use tokio::{
    runtime::Handle,
    sync::watch,
    task::{JoinError, JoinSet},
    time::{Instant, sleep_until, timeout},
};

use super::{
    durable::Durable,
    gather::Gather,
    incoming::{Chunk, Incoming},
    keep::{Keeper, Kept, check_parts},
    levels::{Levels, Row},
    progress::Progress,
    stretch::{Begin, End, Pace},
};
use crate::{
    error::{Error, Kind, Result},
    postgres::{
        Lsn,
        streaming::{StreamEvent, WalStream},
    },
    repo::{opening::PATIENCE, wal_parts::Part},
    steps::reached,
};

/// How many parts are on their way at a time.
const AT_ONCE: usize = 4;

/// How many bytes of WAL several parts that are on their way have together, at most: each is in memory until it
/// is sent.
const BYTES_AT_ONCE: u64 = 4 << 20;

/// How often the server hears from here when there is nothing to say: it gives up a client that it
/// doesn't hear for `wal_sender_timeout`, a minute by default.
const REPORT: Duration = Duration::from_secs(10);

/// How long the end of the command waits for what is on its way.
pub const LAST_WAIT: Duration = Duration::from_secs(30);

/// A job that is done.
enum Done {
    Part { from: Lsn, to: Lsn, part: Kept<Part>, chunk_start: Lsn },
    Chunk { part: Option<Part>, everywhere: bool },
    Merged { part: Part, chunk_start: Lsn, level: usize },
    Cleaned,
    Looked { is_back: bool },
}

/// A chunk that is complete, on its way to its last form.
struct Closing {
    chunk: Arc<Chunk>,
    from: Lsn,
    to: Lsn,
    /// Whether there are or may be parts of it.
    has_parts: bool,
    /// Set when it is stored: as which part, if the segment isn't complete with it.
    stored: Option<Option<Part>>,
    cleaning: bool,
}

/// Receives one stretch.
pub struct Receiver {
    keeper: Keeper,
    /// What the jobs run on.
    threads: Handle,
    pace: Pace,
    gather: Gather,
    incoming: Incoming,
    /// The parts that were there before and weren't compared yet with what comes, in the order of the
    /// repositories. Until they are, nothing is reported and nothing is put beside them.
    before: Vec<Vec<Part>>,
    /// Whether the chunk that comes in had any of them.
    had_before: bool,
    /// Whether it was said that the server's WAL doesn't come as far as them.
    said_behind: bool,
    /// Everything before this is durable or in a job.
    dispatched: Lsn,
    /// What every repository has that isn't behind.
    stored: Durable,
    /// What every repository has. `None` when one was behind from the start: then nobody knows.
    durable: Option<Durable>,
    /// When repositories that are behind were last looked for.
    looked: Instant,
    looking: bool,
    is_back: bool,
    reported: Option<(Lsn, Instant)>,
    jobs: JoinSet<Result<Done>>,
    parts_at_once: usize,
    /// How many bytes of WAL they have.
    bytes_at_once: u64,
    /// How many parts and merges are on their way, by where their chunk begins.
    busy: BTreeMap<Lsn, usize>,
    /// The parts of the chunk that is coming in.
    levels: Levels,
    merging: bool,
    closing: Option<Closing>,
    /// The parts that the chunks of a large segment have become.
    chunks: Vec<Part>,
    /// Bytes that came and have no room until the chunk before is stored.
    carry: Bytes,
    /// When the first byte came that isn't in a job yet.
    pending_since: Option<Instant>,
    /// Everything that came is to be stored now.
    ending: bool,
}

impl Receiver {
    /// Begins a stretch.
    pub fn new(keeper: Keeper, threads: Handle, pace: Pace, begin: Begin) -> Self {
        let incoming = Incoming::new(begin.timeline, begin.number, begin.size);
        let from = begin.durable.max(incoming.start());
        Receiver {
            pace,
            gather: Gather::default(),
            dispatched: from,
            stored: Durable::new(from),
            durable: (!keeper.is_any_behind()).then(|| Durable::new(from)),
            keeper,
            threads,
            looked: Instant::now(),
            looking: false,
            is_back: false,
            had_before: false,
            said_behind: false,
            incoming,
            before: begin.parts,
            reported: None,
            jobs: JoinSet::new(),
            parts_at_once: 0,
            bytes_at_once: 0,
            busy: BTreeMap::new(),
            levels: Levels::default(),
            merging: false,
            closing: None,
            chunks: Vec::new(),
            carry: Bytes::new(),
            pending_since: None,
            ending: false,
        }
    }

    /// Receives until `until`, where there is an end, or until something ends it. What has come is
    /// stored then in any case, and was reported if the server can still be told.
    pub async fn run(
        &mut self,
        stream: &mut WalStream<'_>,
        until: Option<Lsn>,
        stop: &mut watch::Receiver<bool>,
        progress: &Progress,
    ) -> Result<End> {
        let received = self.receive(stream, until, stop, progress).await;
        if matches!(&received, Err(e) if e.kind() != Kind::Postgres) {
            return received;
        }
        // A repository that was left behind, and is back, doesn't wait for another one that is away now. What isn't stored
        // wasn't reported either, and comes again: as the server is there, and its slot holds what it sends live. Whatever else
        // has ended it, this may be all that there is.
        let may_be_cut_off = matches!(received, Ok(End::Back)) && until.is_none();
        let draining = self.drain(stop);
        let stored = match may_be_cut_off {
            true => timeout(PATIENCE, draining).await.unwrap_or(Ok(())),
            false => draining.await,
        };
        if received.is_ok() {
            // If the server is gone it doesn't matter.
            let _ = stream.report(self.position()).await;
            progress.stored(self.position());
        }
        stored.and(received)
    }

    async fn receive(
        &mut self,
        stream: &mut WalStream<'_>,
        until: Option<Lsn>,
        stop: &mut watch::Receiver<bool>,
        progress: &Progress,
    ) -> Result<End> {
        let lost = |e| Error::of_server("receive WAL", e);
        loop {
            stream.was_listened_to(self.carry.is_empty());
            self.advance()?;
            let is_to_ask = stream.is_to_ask();
            if let Some(position) = self.to_report().or(is_to_ask.then(|| self.position())) {
                reached("stream: to be reported");
                stream.report(position).await.map_err(lost)?;
                reached("stream: reported");
                self.reported = Some((position, Instant::now()));
                progress.stored(position);
            }
            let received = Lsn(self.incoming.end().0 + self.carry.len() as u64);
            let is_all_there = until.is_some_and(|until| received >= until);
            if is_all_there && self.is_idle() {
                return Ok(End::Reached);
            }
            if self.is_back || self.keeper.is_any_stale() {
                return Ok(End::Back);
            }
            self.look_for_those_behind();
            let may_read = self.carry.is_empty() && !is_all_there;
            let may_rest = may_read && self.pace.is_leisurely() && self.gather.may_rest();
            let due = self.due().min(stream.ask_at());
            tokio::select! {
                biased;
                _ = stop.wait_for(|stop| *stop) => return Ok(End::Stopped),
                Some(done) = self.jobs.join_next(), if !self.jobs.is_empty() => self.done(done)?,
                event = stream.next(), if may_read => {
                    match event.map_err(lost)? {
                        StreamEvent::Data { start, server_end, mut bytes } => {
                            if start != received {
                                return Err(Error::new(
                                    Kind::Postgres,
                                    format!("the server sent WAL from {start} and not from {received}"),
                                ));
                            }
                            progress.server_at(server_end);
                            self.gather.came(bytes.len());
                            if let Some(until) = until {
                                let wanted = until.0.saturating_sub(start.0);
                                bytes.truncate(usize::try_from(wanted).unwrap_or(usize::MAX));
                            }
                            self.carry = bytes;
                        }
                        StreamEvent::Keepalive { server_end, wants_report } => {
                            progress.server_at(server_end);
                            self.say_behind(server_end);
                            if wants_report {
                                self.reported = None;
                            }
                        }
                        StreamEvent::TimelineEnd => return Ok(End::Timeline),
                        StreamEvent::ServerEnd => return Ok(End::Server),
                    }
                }
                () = sleep_until(due) => {}
                // Nothing is there just now.
                () = std::future::ready(()), if may_rest => self.gather.rest(),
            }
        }
    }

    /// Stores all that has come.
    async fn drain(&mut self, stop: &mut watch::Receiver<bool>) -> Result<()> {
        self.ending = true;
        let work = async {
            loop {
                self.advance()?;
                match self.jobs.join_next().await {
                    Some(done) => self.done(done)?,
                    None => return Ok(()),
                }
            }
        };
        tokio::select! {
            done = work => done,
            () = async {
                let _ = stop.wait_for(|stop| *stop).await;
                tokio::time::sleep(LAST_WAIT).await;
            } => Err(Error::new(
                Kind::Repository,
                format!("what was received last couldn't be stored within {} s", LAST_WAIT.as_secs()),
            )
            .hint("nothing of it was reported as stored: the server keeps it for the slot")),
        }
    }

    /// The number of the segment that comes in.
    pub fn next_segment(&self) -> u64 {
        self.incoming.number()
    }

    /// Everything before it is received, and durable in every repository.
    fn position(&self) -> Lsn {
        let end = self.incoming.end();
        match &self.durable {
            // That nothing is known is what the server takes it for.
            None => Lsn::INVALID,
            Some(_) if self.is_to_compare() => self.incoming.start().min(end),
            Some(durable) => durable.up_to().min(end),
        }
    }

    /// Whether parts that were there before weren't compared yet with what comes.
    fn is_to_compare(&self) -> bool {
        self.before.iter().any(|parts| !parts.is_empty())
    }

    fn look_for_those_behind(&mut self) {
        if self.looking || !self.keeper.is_any_behind() || self.looked.elapsed() < REPORT {
            return;
        }
        self.looking = true;
        let keeper = self.keeper.clone();
        let job = async move { Ok(Done::Looked { is_back: keeper.one_is_back().await }) };
        self.jobs.spawn_on(job, &self.threads);
    }

    /// What to report now.
    fn to_report(&self) -> Option<Lsn> {
        let position = self.position();
        let is_due = self
            .reported
            .is_none_or(|(reported, when)| position > reported || when.elapsed() >= REPORT);
        is_due.then_some(position)
    }

    fn is_idle(&self) -> bool {
        self.jobs.is_empty() && self.carry.is_empty() && self.closing.is_none()
    }

    /// When to look again without anything having happened.
    fn due(&self) -> Instant {
        let report = self.reported.map_or_else(Instant::now, |(_, when)| when + REPORT);
        match self.pending_since {
            // With all parts on their way, one of them comes back first.
            Some(since) if self.has_room() && self.may_dispatch() && !self.is_to_compare() => {
                report.min(since + self.pace.max_lag)
            }
            _ => report,
        }
    }

    /// Takes what came, and begins the jobs that can begin.
    fn advance(&mut self) -> Result<()> {
        loop {
            self.clean();
            if self.incoming.room() == 0 {
                self.dispatch()?;
                if !self.close_chunk()? {
                    return Ok(());
                }
                continue;
            }
            if self.carry.is_empty() {
                return self.dispatch();
            }
            let some = self.carry.split_to(self.incoming.room().min(self.carry.len()));
            self.incoming.push(&some);
            self.compare_before()?;
            if self.incoming.end() > self.dispatched {
                self.pending_since.get_or_insert_with(Instant::now);
            }
        }
    }

    /// Compares the parts that were there before with what came, each as soon as all of it did.
    fn compare_before(&mut self) -> Result<()> {
        if !self.is_to_compare() {
            return Ok(());
        }
        let start = self.chunk_start();
        let end = self.incoming.end();
        let offset = |lsn: Lsn| lsn.0 - self.incoming.start().0;
        let (chunk_from, received) = (offset(start), offset(end));
        let has_come = |part: &Part| u64::from(part.range.to) <= received;
        if end == start || !self.before.iter().flatten().any(has_come) {
            return Ok(());
        }
        self.had_before = true;
        let chunk = self.incoming.part(start, end)?;
        for (index, store) in self.keeper.archives().enumerate() {
            let Some(parts) = self.before.get_mut(index) else { continue };
            let came: Vec<Part> = parts.iter().filter(|part| has_come(part)).cloned().collect();
            parts.retain(|part| !has_come(part));
            check_parts(store, &chunk, &came)?;
            if index == 0 {
                came.into_iter()
                    .filter(|part| u64::from(part.range.from) >= chunk_from)
                    .for_each(|part| self.levels.add(0, part));
            }
        }
        Ok(())
    }

    /// Says it when the server's WAL ends before what is stored of it.
    fn say_behind(&mut self, server_end: Lsn) {
        let last = self.before.iter().flatten().map(|part| part.range.to).max();
        let Some(last) = last.filter(|_| !self.said_behind) else { return };
        let stored = Lsn(self.incoming.start().0 + u64::from(last));
        if server_end < stored {
            self.said_behind = true;
            tracing::warn!(
                "the server's WAL ends at {server_end}, and {stored} is stored: was it set back to an \
                 earlier state? Nothing is reported as stored"
            );
        }
    }

    /// Whether one more part may be on its way, of all that has come.
    fn has_room(&self) -> bool {
        let bytes = self.bytes_at_once + self.incoming.end().0.saturating_sub(self.dispatched.0);
        self.parts_at_once == 0 || (self.parts_at_once < AT_ONCE && bytes <= BYTES_AT_ONCE)
    }

    fn may_dispatch(&self) -> bool {
        self.stored.up_to() >= self.incoming.start()
    }

    /// Makes a part of what came, if it is time.
    fn dispatch(&mut self) -> Result<()> {
        let (from, to) = (self.dispatched, self.incoming.end());
        if to <= from {
            self.pending_since = None;
            return Ok(());
        }
        let is_due = self.ending
            || *self.pace.synchronous.borrow()
            || self.pending_since.is_some_and(|since| since.elapsed() >= self.pace.max_lag);
        if !is_due || !self.has_room() || !self.may_dispatch() || self.is_to_compare() {
            return Ok(());
        }
        let chunk = Arc::new(self.incoming.part(from, to)?);
        let (keeper, chunk_start) = (self.keeper.clone(), self.chunk_start());
        let job = async move {
            let part = keeper.part(chunk).await?;
            Ok(Done::Part { from, to, part, chunk_start })
        };
        self.jobs.spawn_on(job, &self.threads);
        self.parts_at_once += 1;
        self.bytes_at_once += to.0 - from.0;
        *self.busy.entry(chunk_start).or_default() += 1;
        self.dispatched = to;
        self.pending_since = None;
        Ok(())
    }

    /// Gives the chunk, which is complete, to a job; false while the one before isn't done.
    fn close_chunk(&mut self) -> Result<bool> {
        if self.closing.is_some() {
            return Ok(false);
        }
        let from = self.chunk_start();
        let to = self.incoming.end();
        let has_parts = std::mem::take(&mut self.had_before)
            || self.busy.contains_key(&from)
            || !self.levels.is_empty();
        let (chunk, summary) = self.incoming.take_chunk()?;
        let chunk = Arc::new(chunk);
        self.levels = Levels::default();
        self.dispatched = self.dispatched.max(to);
        self.pending_since = None;
        let chunks = match summary {
            Some(_) => std::mem::take(&mut self.chunks),
            None => Vec::new(),
        };
        let (keeper, complete) = (self.keeper.clone(), chunk.clone());
        let job = async move {
            let Kept { what: part, everywhere } = keeper.chunk(complete, summary, chunks).await?;
            Ok(Done::Chunk { part, everywhere })
        };
        self.jobs.spawn_on(job, &self.threads);
        self.closing = Some(Closing { chunk, from, to, has_parts, stored: None, cleaning: false });
        Ok(true)
    }

    /// Removes the parts of the chunk that was stored last, once none of them is on its way any more.
    fn clean(&mut self) {
        let Some(closing) = &mut self.closing else { return };
        let Some(kept) = &closing.stored else { return };
        if closing.cleaning || self.busy.contains_key(&closing.from) {
            return;
        }
        if !closing.has_parts {
            self.closing = None;
            return;
        }
        closing.cleaning = true;
        let (keeper, chunk, kept) = (self.keeper.clone(), closing.chunk.clone(), kept.clone());
        let job = async move {
            keeper.clean(chunk, kept).await?;
            Ok(Done::Cleaned)
        };
        self.jobs.spawn_on(job, &self.threads);
    }

    /// Makes one part of many, if there are.
    fn merge(&mut self) -> Result<()> {
        if self.merging {
            return Ok(());
        }
        let Some(Row { level, parts, range }) = self.levels.take_row() else { return Ok(()) };
        let at = |offset: u32| Lsn(self.incoming.start().0 + u64::from(offset));
        let (from, to) = (at(range.from), at(range.to));
        let chunk = Arc::new(self.incoming.part(from, to)?);
        let (keeper, chunk_start) = (self.keeper.clone(), self.chunk_start());
        self.merging = true;
        *self.busy.entry(chunk_start).or_default() += 1;
        let job = async move {
            let segment = chunk.segment;
            let part = keeper.part(chunk).await?.what;
            let mut gone = parts;
            gone.retain(|small| small.name != part.name);
            keeper.remove(segment, gone).await?;
            Ok(Done::Merged { part, chunk_start, level })
        };
        self.jobs.spawn_on(job, &self.threads);
        Ok(())
    }

    /// The position of the first byte of the chunk that comes in.
    fn chunk_start(&self) -> Lsn {
        Lsn(self.incoming.start().0 + self.incoming.chunk_from())
    }

    /// Takes note of a job that is done.
    fn done(&mut self, done: Result<Result<Done>, JoinError>) -> Result<()> {
        let died = |e| Error::new(Kind::Internal, format!("a task that stores WAL died: {e}"));
        match done.map_err(died)?? {
            Done::Part { from, to, part, chunk_start } => {
                self.parts_at_once -= 1;
                self.bytes_at_once -= to.0 - from.0;
                self.add_stored(from, to, part.everywhere);
                self.not_busy(chunk_start);
                self.add_to_level(0, part.what, chunk_start);
                self.merge()?;
            }
            Done::Merged { part, chunk_start, level } => {
                reached("stream: parts merged");
                self.merging = false;
                self.not_busy(chunk_start);
                self.add_to_level(level + 1, part, chunk_start);
                self.merge()?;
            }
            Done::Chunk { part, everywhere } => {
                self.chunks.extend(part.clone());
                if let Some(closing) = &mut self.closing {
                    let (from, to) = (closing.from, closing.to);
                    closing.stored = Some(part);
                    self.add_stored(from, to, everywhere);
                }
            }
            Done::Cleaned => self.closing = None,
            Done::Looked { is_back } => {
                (self.looking, self.looked) = (false, Instant::now());
                self.is_back |= is_back;
            }
        }
        Ok(())
    }

    fn add_stored(&mut self, from: Lsn, to: Lsn, everywhere: bool) {
        self.stored.add(from, to);
        if let Some(durable) = self.durable.as_mut().filter(|_| everywhere) {
            durable.add(from, to);
        }
    }

    fn not_busy(&mut self, chunk_start: Lsn) {
        if let Entry::Occupied(mut entry) = self.busy.entry(chunk_start) {
            *entry.get_mut() -= 1;
            if *entry.get() == 0 {
                entry.remove();
            }
        }
    }

    /// Parts of a chunk that is complete go with it.
    fn add_to_level(&mut self, level: usize, part: Part, chunk_start: Lsn) {
        if chunk_start == self.chunk_start() {
            self.levels.add(level, part);
        }
    }
}
