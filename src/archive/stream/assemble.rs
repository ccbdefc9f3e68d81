//! Making a segment of parts that have all of it, without having received it: as a receiver leaves
//! them that was killed before the segment was stored.

use std::io::{self, Write};

use sha2::{Digest, Sha256};

use super::keep::{Content, store_whole};
use crate::{
    error::{Error, Kind, Result},
    postgres::{SegmentName, SegmentSize, wal::SegmentScanner},
    repo::wal::{StoredSummary, WalStore},
    steps::reached,
};

/// Stores the segment, and removes its parts.
pub async fn assemble(store: &WalStore, segment: SegmentName, size: SegmentSize) -> Result<()> {
    let scanner = SegmentScanner::new(segment, size, None);
    let mut sink = Summed { scanner, digest: Sha256::new() };
    // What comes later isn't compared with the others, and stays.
    let parts = store.parts(segment).await?;
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
    store_whole(store, segment, &mut Content::of_parts(parts.clone()), &summary).await?;
    reached("stream: segment assembled");
    store.remove_parts(&parts).await;
    tracing::info!("made the segment {segment} of its parts");
    Ok(())
}

struct Summed {
    scanner: SegmentScanner,
    digest: Sha256,
}

impl Write for Summed {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.digest.update(bytes);
        self.scanner.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use bytes::Bytes;

    use super::*;
    use crate::{
        postgres::WalFile,
        repo::{Repository, keys::KeyMaterial, layout::ClusterLayout},
        storage::local::Local,
    };

    #[tokio::test]
    async fn a_segment_is_made_of_all_its_bytes_or_not_at_all() {
        let folder = tempfile::tempdir().unwrap();
        let storage = Arc::new(Local::open_or_make(&folder.path().join("repo")).unwrap());
        Repository::init(storage.as_ref(), &KeyMaterial::None).await.unwrap();
        let opened = Repository::open("main", storage, &KeyMaterial::None, 1).await.unwrap();
        let layout = ClusterLayout::new("main").unwrap();
        let store = WalStore::new(&opened, &layout, "17-1".parse().unwrap());
        let size = SegmentSize::new(1 << 20).unwrap();
        let segment = "000000010000000000000003".parse().unwrap();
        let bytes: Vec<u8> = (0..1u32 << 20).map(|n| (n % 251) as u8).collect();
        let piece = |from: usize, to: usize| [Bytes::copy_from_slice(&bytes[from..to])];
        let put = |from: usize, to: usize| {
            let (store, piece) = (store.clone(), piece(from, to));
            async move { store.put_part(segment, from as u32, &piece).await.unwrap() }
        };
        let first = put(0, 400_000).await;
        let last = put(600_000, 1 << 20).await;
        // As if one had gone between two looks.
        let summary = StoredSummary {
            size: 1 << 20,
            sha256: hex::encode(Sha256::digest(&bytes)),
            segment: None,
        };
        let mut torn = Content::of_parts(vec![first, last]);
        let e = store_whole(&store, segment, &mut torn, &summary).await.unwrap_err();
        assert_eq!(e.kind(), Kind::Repository, "{e}");
        assert!(assemble(&store, segment, size).await.is_err());
        assert!(!store.has(WalFile::Segment(segment)).await.unwrap());
        assert_eq!(store.parts(segment).await.unwrap().len(), 2, "they stay");

        // It overlaps both.
        put(300_000, 700_000).await;
        assemble(&store, segment, size).await.unwrap();
        let mut whole = Vec::new();
        let name = store.plain(WalFile::Segment(segment));
        store.copy_to(&name, &mut whole).await.unwrap().unwrap();
        assert!(whole == bytes);
        assert_eq!(store.parts(segment).await.unwrap(), []);
    }
}
