//! Receiving WAL as it is written (documentation, "Streaming Replication Protocol"), and the slot that
//! makes the server keep what wasn't received yet.
//!
//! The server sends what it has flushed, from any position on, in messages of up to 128 kB, and waits
//! for the client to say how far it has stored it. At the end of a timeline it says which one follows.

use std::time::Duration;

use bytes::{Buf, Bytes};
use chrono::Utc;
use tokio::time::{Instant, timeout_at};

use super::{
    Lsn, Timeline,
    client::{Client, Message, PgError, log, quote_ident, unexpected},
};

/// Microseconds from the Unix epoch to that of PostgreSQL, 2000-01-01.
const POSTGRES_EPOCH: i64 = 946_684_800_000_000;

/// The smallest page of WAL that a server can be built with, in bytes.
const SMALLEST_PAGE: u64 = 1024;

/// Longer than any stream.
const NEVER: Duration = Duration::from_secs(1 << 30);

/// Reads the result of `READ_REPLICATION_SLOT` (PostgreSQL 15 and newer): where a physical slot's WAL
/// begins, and on which timeline. `None` when there is no such slot; the position is
/// [`Lsn::INVALID`] while the slot holds nothing.
pub async fn read_slot(
    client: &mut Client,
    slot: &str,
) -> Result<Option<(Lsn, Timeline)>, PgError> {
    let rows = client.query(&format!("READ_REPLICATION_SLOT {}", quote_ident(slot))).await?;
    let row = rows.first();
    let field = |name: &str| row.and_then(|row| row.named(name));
    if field("slot_type").is_none() {
        return Ok(None);
    }
    let odd = |what: &str| PgError::protocol(format!("READ_REPLICATION_SLOT gave no {what}"));
    let position = match field("restart_lsn") {
        None => return Ok(Some((Lsn::INVALID, Timeline(0)))),
        Some(text) => text.parse().map_err(|_| odd("position"))?,
    };
    let timeline = field("restart_tli").and_then(|text| text.parse().ok());
    Ok(Some((position, Timeline(timeline.ok_or_else(|| odd("timeline"))?))))
}

/// Makes a permanent physical slot that holds WAL at once, from the redo position of the last
/// checkpoint on: without `RESERVE_WAL` it would hold none until the first report
/// (`slotfuncs.c`, `slot.c`).
pub async fn create_slot(client: &mut Client, slot: &str) -> Result<(), PgError> {
    let slot = quote_ident(slot);
    client.execute(&format!("CREATE_REPLICATION_SLOT {slot} PHYSICAL (RESERVE_WAL)")).await
}

/// Removes a slot.
pub async fn drop_slot(client: &mut Client, slot: &str) -> Result<(), PgError> {
    client.execute(&format!("DROP_REPLICATION_SLOT {}", quote_ident(slot))).await
}

/// What comes over a stream of WAL.
#[derive(Debug)]
pub enum StreamEvent {
    /// WAL. It shares a buffer with its neighbours: what is kept for long should be copied.
    Data {
        /// The position of its first byte.
        start: Lsn,
        /// How far the server's WAL went when it sent this.
        server_end: Lsn,
        /// The bytes, which may cross the end of a segment.
        bytes: Bytes,
    },
    /// The server is still there.
    Keepalive {
        /// How far its WAL goes.
        server_end: Lsn,
        /// Whether it wants a report at once, else it takes the client for dead.
        wants_report: bool,
    },
    /// All of the timeline was sent: [`WalStream::finish`] says what follows.
    TimelineEnd,
    /// The server shuts down, and was told that all it had sent is stored.
    ServerEnd,
}

/// The timeline that follows one that has ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NextTimeline {
    /// Its id.
    pub timeline: Timeline,
    /// Where it begins. What was received behind this on the old timeline isn't part of it.
    pub start: Lsn,
}

/// What `START_REPLICATION` came to.
#[derive(Debug)]
pub enum Started<'a> {
    /// WAL comes.
    Stream(WalStream<'a>),
    /// The timeline ends where it was asked from.
    Ended(NextTimeline),
}

/// A stream of WAL. If it is dropped before its end, the client can only be closed.
#[derive(Debug)]
pub struct WalStream<'a> {
    client: &'a mut Client,
    /// When something came, or when what comes began to be listened to again.
    heard: Instant,
    /// Whether the server was asked for a sign of life since.
    asked: bool,
    /// After how long without a word the server is given up.
    limit: Option<Duration>,
}

impl<'a> WalStream<'a> {
    /// Asks for the WAL of `timeline` from `start` on. With a slot, what is reported as stored moves
    /// the slot.
    ///
    /// Some errors come only with the first event: that the server doesn't have the WAL any more
    /// (58P01), or not yet (XX000).
    pub async fn start(
        client: &'a mut Client,
        slot: Option<&str>,
        start: Lsn,
        timeline: Timeline,
    ) -> Result<Started<'a>, PgError> {
        let slot = slot.map(|slot| format!("SLOT {} ", quote_ident(slot))).unwrap_or_default();
        let command = format!("START_REPLICATION {slot}PHYSICAL {start} TIMELINE {timeline}");
        client.send_query(&command).await?;
        let mut next = None;
        loop {
            match client.receive().await? {
                Message::CopyBoth => {
                    let (heard, limit) = (Instant::now(), client.stall_timeout());
                    let stream = WalStream { client, heard, asked: false, limit };
                    return Ok(Started::Stream(stream));
                }
                Message::Notice(notice) => log(&notice),
                Message::DataRow(values) => next = Some(next_timeline(&values)?),
                Message::RowDescription(_) | Message::CommandComplete(_) => {}
                Message::ReadyForQuery => {
                    let odd = || PgError::protocol("START_REPLICATION gave no WAL and no timeline");
                    return next.map(Started::Ended).ok_or_else(odd);
                }
                Message::Error(error) => return Err(client.recover(error).await),
                other => return Err(unexpected(&other)),
            }
        }
    }

    /// The next event. A server that says nothing for the connection's stall timeout is given up; one that
    /// has nothing to say has to be asked for a sign of life before ([`WalStream::ask_at`]).
    ///
    /// Cancel safe. After an error the connection is of no use any more.
    pub async fn next(&mut self) -> Result<StreamEvent, PgError> {
        loop {
            let receive = self.client.receive_at_last();
            let message = match self.limit {
                None => receive.await?,
                Some(limit) => timeout_at(self.heard + limit, receive)
                    .await
                    .unwrap_or(Err(PgError::Silent(limit)))?,
            };
            (self.heard, self.asked) = (Instant::now(), false);
            match message {
                Message::CopyData(data) => return event(data),
                Message::CopyDone => return Ok(StreamEvent::TimelineEnd),
                Message::CommandComplete(_) => return Ok(StreamEvent::ServerEnd),
                Message::Notice(notice) => log(&notice),
                Message::Error(error) => return Err(error.into()),
                other => return Err(unexpected(&other)),
            }
        }
    }

    /// Says whether anybody has listened since [`WalStream::next`] was called last: if not, that nothing came
    /// is no silence of the server's.
    pub fn was_listened_to(&mut self, was: bool) {
        if !was {
            (self.heard, self.asked) = (Instant::now(), false);
        }
    }

    /// When to ask the server for a sign of life, by [`WalStream::report`], if nothing comes until then. A
    /// server that is reported to keeps quiet by itself (`walsender.c`, `WalSndKeepaliveIfNecessary`).
    pub fn ask_at(&self) -> Instant {
        let limit = self.limit.filter(|_| !self.asked).unwrap_or(NEVER);
        self.heard + limit / 2
    }

    /// Whether that time has come.
    pub fn is_to_ask(&self) -> bool {
        self.ask_at() <= Instant::now()
    }

    /// Reports how far the WAL is stored. This is what a commit waits for where the stream is a
    /// synchronous standby, and what the slot may let go. Nothing is ever applied here; the position is
    /// given for that as well, else a commit with `synchronous_commit = remote_apply` would wait for
    /// ever. Where it is time ([`WalStream::ask_at`]) the server is asked to answer, by a
    /// [`StreamEvent::Keepalive`].
    pub async fn report(&mut self, stored: Lsn) -> Result<(), PgError> {
        let ask = self.is_to_ask();
        self.asked |= ask;
        let mut data = Vec::with_capacity(34);
        data.push(b'r');
        for position in [stored, stored, stored] {
            data.extend_from_slice(&position.0.to_be_bytes());
        }
        let now = Utc::now().timestamp_micros() - POSTGRES_EPOCH;
        data.extend_from_slice(&now.to_be_bytes());
        data.push(u8::from(ask));
        self.client.send_copy_data(&data).await
    }

    /// Ends the stream after [`StreamEvent::TimelineEnd`], so that the client can be used again. Says
    /// which timeline follows.
    pub async fn finish(self) -> Result<NextTimeline, PgError> {
        self.client.send_copy_done().await?;
        let mut next = None;
        loop {
            match self.client.receive().await? {
                Message::DataRow(values) => next = Some(next_timeline(&values)?),
                Message::Notice(notice) => log(&notice),
                Message::RowDescription(_) | Message::CommandComplete(_) => {}
                Message::ReadyForQuery => {
                    let odd = || PgError::protocol("a timeline ended and none follows");
                    return next.ok_or_else(odd);
                }
                Message::Error(error) => return Err(self.client.recover(error).await),
                other => return Err(unexpected(&other)),
            }
        }
    }

    /// Ends the stream where it is. What the server has sent meanwhile is thrown away.
    pub async fn stop(self) -> Result<(), PgError> {
        self.client.send_copy_done().await?;
        loop {
            match self.client.receive().await? {
                Message::ReadyForQuery => return Ok(()),
                Message::Error(error) => return Err(self.client.recover(error).await),
                _ => {}
            }
        }
    }
}

/// One CopyData of a stream.
fn event(mut data: Bytes) -> Result<StreamEvent, PgError> {
    let short = |_| PgError::protocol("a message of the WAL stream ends too early");
    match data.try_get_u8().map_err(short)? {
        b'w' => {
            let start = Lsn(data.try_get_u64().map_err(short)?);
            let server_end = Lsn(data.try_get_u64().map_err(short)?);
            data.try_get_i64().map_err(short)?;
            check_end(start, data.len(), server_end)?;
            Ok(StreamEvent::Data { start, server_end, bytes: data })
        }
        b'k' => {
            let server_end = Lsn(data.try_get_u64().map_err(short)?);
            data.try_get_i64().map_err(short)?;
            let wants_report = data.try_get_u8().map_err(short)? != 0;
            Ok(StreamEvent::Keepalive { server_end, wants_report })
        }
        other => Err(PgError::protocol(format!(
            "the WAL stream has a message of the unknown type {:?}",
            char::from(other)
        ))),
    }
}

/// That WAL ends where a server ends a message: at the end of its own WAL, or before that at the end of a
/// page (`walsender.c`, `XLogSendPhysical`). Nothing else says how much a message has but its length, and
/// what is taken for WAL is stored and reported; so a byte too many would never be got rid of.
fn check_end(start: Lsn, length: usize, server_end: Lsn) -> Result<(), PgError> {
    let end = start.0.checked_add(length as u64).map(Lsn);
    match end {
        Some(end) if end == server_end => Ok(()),
        Some(end) if end < server_end && end.0.is_multiple_of(SMALLEST_PAGE) => Ok(()),
        _ => Err(PgError::protocol(format!(
            "{length} bytes of WAL from {start} on end in the midst of a page, and not where the server's \
             WAL does, at {server_end}"
        ))),
    }
}

fn next_timeline(values: &[Option<Bytes>]) -> Result<NextTimeline, PgError> {
    let field = |i: usize| {
        values.get(i).and_then(Option::as_deref).and_then(|bytes| std::str::from_utf8(bytes).ok())
    };
    let timeline = field(0).and_then(|text| text.parse().ok()).map(Timeline);
    let start = field(1).and_then(|text| text.parse().ok());
    match (timeline, start) {
        (Some(timeline), Some(start)) => Ok(NextTimeline { timeline, start }),
        _ => Err(PgError::protocol("the server doesn't say which timeline follows")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_are_read_and_nonsense_is_refused() {
        let mut data = vec![b'w'];
        for number in [0x1_0000_0028_u64, 0x1_0000_002B, 0] {
            data.extend_from_slice(&number.to_be_bytes());
        }
        data.extend_from_slice(b"wal");
        let Ok(StreamEvent::Data { start, server_end, bytes }) = event(data.clone().into()) else {
            panic!("no data")
        };
        assert_eq!((start.to_string(), server_end.to_string()), ("1/28".into(), "1/2B".into()));
        assert_eq!(bytes, "wal");
        let mut keepalive = vec![b'k'];
        keepalive.extend_from_slice(&[0; 16]);
        keepalive.push(1);
        assert!(matches!(
            event(keepalive.clone().into()),
            Ok(StreamEvent::Keepalive { wants_report: true, server_end: Lsn(0) })
        ));
        for cut in 0..data.len() {
            assert!(event(Bytes::copy_from_slice(&data[..cut])).is_err(), "{cut}");
        }
        assert!(event(Bytes::copy_from_slice(&keepalive[..17])).is_err());
        assert!(event(Bytes::from_static(b"x")).is_err());
        let wal = |start: u64, length, end: u64| check_end(Lsn(start), length, Lsn(end)).is_ok();
        assert!(wal(0x28, 0x100, 0x128) && wal(0, 8192, 16384) && wal(1000, 24, 5000));
        assert!(!wal(0x28, 0x101, 0x128), "more than there is");
        assert!(!wal(0, 8193, 16384) && !wal(0, 8191, 16384), "in the midst of a page");
        assert!(!wal(u64::MAX, 1, u64::MAX));
        let row = |values: [&'static str; 2]| values.map(|v| Some(Bytes::from(v)));
        assert_eq!(
            next_timeline(&row(["2", "0/3000100"])).unwrap(),
            NextTimeline { timeline: Timeline(2), start: Lsn(0x300_0100) }
        );
        assert!(next_timeline(&row(["2", "?"])).is_err());
        assert!(next_timeline(&[None, None]).is_err());
    }
}
