//! Making a segment of parts that have all of it, without having received it: as a receiver leaves
//! them that was killed before the segment was stored.

use std::io::Write;

use sha2::{Digest, Sha256};

use super::keep::{Content, store_whole};
use crate::{
    error::{Error, Kind, Result},
    postgres::{SegmentName, SegmentSize, wal::SegmentScanner},
    repo::wal::{StoredSummary, WalStore},
};

/// Stores the segment, and removes its parts.
pub async fn assemble(store: &WalStore, segment: SegmentName, size: SegmentSize) -> Result<()> {
    let mut sink =
        Summed { scanner: SegmentScanner::new(segment, size, None), digest: Sha256::new() };
    let bytes = store.copy_parts(segment, &mut sink).await?;
    if bytes != size.bytes() {
        let what = format!("the parts of {segment} changed while they were read");
        return Err(Error::new(Kind::Repository, what));
    }
    let summary = StoredSummary {
        size: bytes,
        sha256: hex::encode(sink.digest.finalize()),
        segment: Some(sink.scanner.finish()),
    };
    let parts = store.parts(segment).await?;
    store_whole(store, segment, &Content::of_parts(parts.clone()), &summary).await?;
    store.remove_parts(&parts).await;
    tracing::info!("made the segment {segment} of its parts");
    Ok(())
}

struct Summed {
    scanner: SegmentScanner,
    digest: Sha256,
}

impl Write for Summed {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.scanner.feed(bytes, &mut |_| {});
        self.digest.update(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}
