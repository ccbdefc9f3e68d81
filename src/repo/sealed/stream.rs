//! Reading an object from its first frame to its last, in as few requests as its size allows.

use bytes::Bytes;

use super::{
    frame::{HEADER_LEN, PREFIX_LEN},
    reader::{ObjectReader, damaged},
};
use crate::{
    error::Result,
    repo::Repository,
    storage::{Fetched, ObjectName, Range},
};

/// An object being read in order. Its header was compared with the copy of it at the end.
pub struct FrameStream<'a> {
    repository: &'a Repository,
    reader: ObjectReader,
    /// Bytes that were read, and where in the object they begin.
    ahead: (u64, Bytes),
    next: usize,
    /// The last frame's raw bytes.
    raw: Vec<u8>,
}

impl<'a> FrameStream<'a> {
    /// Opens an object; `None` when the storage answers that there is none. A small one is read
    /// whole by this, with one request.
    pub async fn find(repository: &'a Repository, name: &ObjectName) -> Result<Option<Self>> {
        let storage = repository.storage();
        let together = storage.capabilities().read_together.max(HEADER_LEN as u64);
        let begin = match storage.fetch(name, Range::At { offset: 0, len: together }).await {
            Err(e) if e.is_not_found() => return Ok(None),
            begin => begin?,
        };
        let Fetched { bytes, size } = begin;
        let bad = |what: String| damaged(repository, name, what);
        let reader = if bytes.len() as u64 == size {
            ObjectReader::from_whole(repository, name, &bytes).map_err(bad)?
        } else {
            ObjectReader::open(repository, name).await?
        };
        if bytes.get(..HEADER_LEN) != Some(&reader.header.0[..]) {
            return Err(bad("its header and its trailer differ".into()));
        }
        Ok(Some(FrameStream { repository, reader, ahead: (0, bytes), next: 0, raw: Vec::new() }))
    }

    /// The summary that the object was closed with.
    pub fn summary(&self) -> &[u8] {
        self.reader.summary()
    }

    /// The next frame's raw bytes; `None` after the last one.
    pub async fn next(&mut self) -> Result<Option<&[u8]>> {
        let Some(&(offset, lengths)) = self.reader.frames.get(self.next) else { return Ok(None) };
        let len = PREFIX_LEN as u64 + u64::from(lengths.sealed);
        let sealed = match self.in_ahead(offset, len) {
            Some(sealed) => sealed,
            None => {
                let storage = self.repository.storage();
                let rest = self.reader.end_of_frames().saturating_sub(offset);
                let together = storage.capabilities().read_together.min(rest).max(len);
                let range = Range::At { offset, len: together };
                // What was read before goes before more comes.
                self.ahead = (0, Bytes::new());
                self.ahead = (offset, storage.read(&self.reader.name, range).await?);
                self.in_ahead(offset, len).unwrap_or_default()
            }
        };
        let number = self.next as u64;
        self.next += 1;
        self.reader.open_fetched_into(self.repository, number, &sealed, lengths, &mut self.raw)?;
        Ok(Some(&self.raw))
    }

    fn in_ahead(&self, offset: u64, len: u64) -> Option<Bytes> {
        let (begin, bytes) = &self.ahead;
        let from = usize::try_from(offset.checked_sub(*begin)?).ok()?;
        let to = from.checked_add(usize::try_from(len).ok()?)?;
        (to <= bytes.len()).then(|| bytes.slice(from..to))
    }
}
