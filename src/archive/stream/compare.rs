//! Whether the server is where the archive is: its own copy of the last whole segment tells.
//!
//! A server that was set back, by a snapshot of its disk or as an older copy of itself, writes other WAL under the
//! names of what is stored. Once it is past all that is whole in the archive, what it writes continues nothing there, and a
//! recovery would end before it.

use sha2::{Digest, Sha256};
use tokio::time::sleep_until;

use super::{session::REMOVED, setbacks::Setbacks};
use crate::{
    error::{Error, Kind, Result},
    postgres::{
        Lsn, SegmentName, SegmentSize, WalFile,
        client::Client,
        streaming::{Started, StreamEvent, WalStream},
    },
    repo::{wal::WalStore, wal_taken::other_content},
};

/// Receives a segment once more and compares it with what is stored. False where the server doesn't have it any more:
/// the connection is of no use then.
///
/// Fails with [`Kind::Conflict`] where it differs.
pub async fn compare<'a>(
    client: &mut Client,
    segment: SegmentName,
    size: SegmentSize,
    stores: impl Iterator<Item = &'a WalStore>,
    setbacks: &Setbacks,
) -> Result<bool> {
    let sha256 = match received(client, segment, size).await {
        Ok(sha256) => sha256,
        Err(e) if e.sqlstate() == Some(REMOVED) => {
            tracing::info!("the server doesn't have {segment} any more: it can't be compared");
            return Ok(false);
        }
        Err(e) => return Err(e),
    };
    for store in stores {
        let found = setbacks.ask(store, store.find(WalFile::Segment(segment)));
        let Some(name) = found.await? else { continue };
        match setbacks.ask(store, store.summary(&name)).await {
            Ok(Some(stored)) if stored.sha256 != sha256 => {
                return Err(other_content(store, &name, &stored, &sha256));
            }
            Ok(_) => {}
            // What is damaged is another matter, and compares with nothing.
            Err(e) if e.kind() == Kind::Damaged => tracing::warn!("{e}"),
            Err(e) => return Err(e),
        }
    }
    Ok(true)
}

/// The SHA-256 of a segment as the server has it.
async fn received(client: &mut Client, segment: SegmentName, size: SegmentSize) -> Result<String> {
    let lost = |e| Error::of_server(format!("ask for {segment}, to compare it"), e);
    let odd = || Error::new(Kind::Postgres, format!("the server doesn't send all of {segment}"));
    let start = size.start_of(segment.number(size).ok_or_else(odd)?);
    let started = WalStream::start(client, None, start, segment.timeline).await.map_err(lost)?;
    let Started::Stream(mut stream) = started else { return Err(odd()) };
    let (mut digest, mut left) = (Sha256::new(), size.bytes());
    while left > 0 {
        let ask_at = stream.ask_at();
        let event = tokio::select! {
            event = stream.next() => Some(event.map_err(lost)?),
            () = sleep_until(ask_at) => None,
        };
        match event {
            Some(StreamEvent::Data { start: at, bytes, .. }) => {
                if at.0 != start.0 + (size.bytes() - left) {
                    return Err(odd());
                }
                let some = bytes.len().min(usize::try_from(left).unwrap_or(usize::MAX));
                digest.update(&bytes[..some]);
                left -= some as u64;
            }
            // Of what is compared nothing is said: the slot holds what it did.
            None | Some(StreamEvent::Keepalive { wants_report: true, .. }) => {
                stream.report(Lsn::INVALID).await.map_err(lost)?;
            }
            Some(StreamEvent::Keepalive { .. }) => {}
            Some(StreamEvent::TimelineEnd | StreamEvent::ServerEnd) => return Err(odd()),
        }
    }
    stream.stop().await.map_err(lost)?;
    Ok(hex::encode(digest.finalize()))
}
