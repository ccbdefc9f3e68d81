//! The end of a standby's WAL, received from the standby itself.
//!
//! A standby can't close the segment in which its backup stops: that is the primary's to do, and an
//! idle primary doesn't for a long time. What the standby has of it is enough for the backup, and is
//! stored as the stream would store it, in parts ([`crate::repo::wal_parts`]).

use bytes::Bytes;

use super::server::connect;
use crate::{
    error::{Error, Kind, Result},
    postgres::{
        Lsn, SegmentSize, Timeline,
        client::{ConnInfo, Mode},
        streaming::{Started, StreamEvent, WalStream},
    },
    repo::{
        wal::WalStore,
        wal_parts::{LONGEST_PART, covered},
    },
};

/// Whether the stream's parts have the segment in which `stop` lies up to there, can be read, and are
/// durable.
pub async fn is_received(
    store: &WalStore,
    timeline: Timeline,
    size: SegmentSize,
    stop: Lsn,
) -> Result<bool> {
    let number = size.number_before(stop);
    let parts = store.parts(size.name(timeline, number)).await?;
    let bytes = covered(parts.iter().map(|part| &part.range));
    if size.start_of(number).0 + bytes < stop.0 {
        return Ok(false);
    }
    for part in parts {
        store.prove_part(&part.name).await?;
    }
    Ok(true)
}

/// Receives the segment in which `stop` lies up to there, and stores it.
pub async fn receive(
    store: &WalStore,
    conninfo: &ConnInfo,
    timeline: Timeline,
    size: SegmentSize,
    stop: Lsn,
) -> Result<()> {
    let number = size.number_before(stop);
    let segment = size.name(timeline, number);
    let begin = size.start_of(number);
    let mut client = connect(conninfo, Mode::Replication).await?;
    let lost = |e| Error::of_server(format!("receive the end of {segment}"), e);
    let started = WalStream::start(&mut client, None, begin, timeline).await.map_err(lost)?;
    let Started::Stream(mut stream) = started else {
        let what = format!("the server has left timeline {timeline} before {stop}");
        return Err(Error::new(Kind::Postgres, what));
    };
    let mut at = begin;
    let (mut pieces, mut held): (Vec<Bytes>, u64) = (Vec::new(), 0);
    while at < stop {
        let (start, mut bytes) = match stream.next().await.map_err(lost)? {
            StreamEvent::Data { start, bytes, .. } => (start, bytes),
            StreamEvent::Keepalive { wants_report, .. } => {
                if wants_report {
                    stream.report(Lsn::INVALID).await.map_err(lost)?;
                }
                continue;
            }
            StreamEvent::TimelineEnd | StreamEvent::ServerEnd => {
                let what = format!("the server ended before it had sent its WAL up to {stop}");
                return Err(Error::new(Kind::Postgres, what));
            }
        };
        if start != at {
            let what = format!("the server sent WAL from {start} and not from {at}");
            return Err(Error::new(Kind::Postgres, what));
        }
        bytes.truncate(usize::try_from(stop.0 - at.0).unwrap_or(usize::MAX));
        at = Lsn(at.0 + bytes.len() as u64);
        // Of what is kept nothing of the messages' buffer is left.
        held += bytes.len() as u64;
        pieces.push(Bytes::copy_from_slice(&bytes));
        // A message has no more than 128 kB.
        let is_full = held + (256 << 10) > LONGEST_PART;
        if is_full || at >= stop {
            let from = u32::try_from(at.0 - held - begin.0).map_err(|_| {
                Error::new(Kind::Internal, format!("{at} isn't in the segment {segment}"))
            })?;
            store.put_part(segment, from, &pieces).await?;
            (pieces, held) = (Vec::new(), 0);
        }
    }
    client.close().await;
    Ok(())
}
