//! Reading sealed objects: single frames by range, or all of it in order.

use std::ops::Range;

use bytes::Bytes;

use super::frame::{
    HEADER_LEN, Header, Lengths, MAX_RAW, Opener, PREFIX_LEN, TRAILER_LEN, TRAILER_MAGIC,
    max_sealed,
};
use crate::{
    error::{Error, Kind, Result},
    repo::{Repository, codec::Reader},
    storage::{self, Fetched, ObjectName},
};

/// How much of an object's end is read first: enough for the closing frame of most objects.
const TAIL: u64 = 16 << 10;

/// The most that all frames of an object which is read whole may be, in bytes: the largest is a
/// manifest, of three. Bounds memory whatever an object claims.
const MAX_WHOLE: u64 = 4 * MAX_RAW as u64;

/// Sealed frames that were fetched together.
#[derive(Debug)]
pub struct Frames {
    /// Where they begin in the object.
    begin: u64,
    bytes: Bytes,
}

/// An object whose closing frame has been read, so that single frames can be fetched.
pub struct ObjectReader {
    pub(super) name: ObjectName,
    opener: Opener,
    pub(super) header: Header,
    /// Where each frame begins, and its lengths.
    pub(super) frames: Vec<(u64, Lengths)>,
    summary: Vec<u8>,
    size: u64,
}

pub(super) fn damaged(
    repository: &Repository,
    name: &ObjectName,
    what: impl std::fmt::Display,
) -> Error {
    let address = repository.storage().address();
    Error::new(Kind::Damaged, format!("{name} in {address} is damaged: {what}"))
}

impl ObjectReader {
    /// Reads the object's end: which frames it has, and its summary.
    pub async fn open(repository: &Repository, name: &ObjectName) -> Result<Self> {
        let tail = repository.storage().fetch(name, storage::Range::Last(TAIL)).await?;
        Self::of_tail(repository, name, tail).await
    }

    /// As [`ObjectReader::open`]; `None` when the storage answers that there is no such object.
    pub async fn find(repository: &Repository, name: &ObjectName) -> Result<Option<Self>> {
        match repository.storage().fetch(name, storage::Range::Last(TAIL)).await {
            Err(e) if e.is_not_found() => Ok(None),
            tail => Self::of_tail(repository, name, tail?).await.map(Some),
        }
    }

    async fn of_tail(repository: &Repository, name: &ObjectName, tail: Fetched) -> Result<Self> {
        let Fetched { bytes: mut tail, size } = tail;
        let storage = repository.storage();
        let bad = |what: String| damaged(repository, name, what);
        let (offset, len) = parse_trailer(&tail).map_err(bad)?;
        let end = u64::from(len) + TRAILER_LEN as u64;
        if end > TAIL && end <= size {
            tail = storage.read(name, storage::Range::Last(end)).await?;
        }
        Self::from_tail(repository, name, size, offset, &tail).map_err(bad)
    }

    pub(super) fn from_tail(
        repository: &Repository,
        name: &ObjectName,
        size: u64,
        offset: u64,
        tail: &[u8],
    ) -> Result<Self, String> {
        let (_, len) = parse_trailer(tail)?;
        let trailer_at = tail.len() - TRAILER_LEN;
        let closing_at = trailer_at.checked_sub(len as usize).ok_or("its trailer doesn't fit")?;
        let header = Header::parse(&tail[trailer_at..])?;
        let opener = Opener::new(repository.keyring(), &header, name)?;
        let closing = opener.open_closing(&tail[closing_at..trailer_at])?;
        let mut at = HEADER_LEN as u64;
        let mut frames = Vec::with_capacity(closing.frames.len());
        for lengths in closing.frames {
            frames.push((at, lengths));
            at += PREFIX_LEN as u64 + u64::from(lengths.sealed);
        }
        if at != offset || at + u64::from(len) + TRAILER_LEN as u64 != size {
            return Err(format!("it has {size} bytes, its closing frame says otherwise"));
        }
        Ok(ObjectReader {
            name: name.clone(),
            opener,
            header,
            frames,
            summary: closing.summary,
            size,
        })
    }

    /// The reader of an object of which all bytes are there.
    pub(super) fn from_whole(
        repository: &Repository,
        name: &ObjectName,
        bytes: &[u8],
    ) -> Result<Self, String> {
        let (offset, _) = parse_trailer(bytes)?;
        Self::from_tail(repository, name, bytes.len() as u64, offset, bytes)
    }

    /// Where the last frame ends.
    pub(super) fn end_of_frames(&self) -> u64 {
        let last = self.frames.last();
        last.map_or(HEADER_LEN as u64, |(at, l)| at + PREFIX_LEN as u64 + u64::from(l.sealed))
    }

    /// The summary that the object was closed with.
    pub fn summary(&self) -> &[u8] {
        &self.summary
    }

    /// The object's size in bytes.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// How many frames it has.
    pub fn frame_count(&self) -> usize {
        self.frames.len()
    }

    /// The raw length of frame `number`, if there is one.
    pub fn raw_len(&self, number: u64) -> Option<u32> {
        self.frames.get(usize::try_from(number).ok()?).map(|(_, lengths)| lengths.raw)
    }

    /// Compares the object's beginning with the copy of it at the end, which is what frames are
    /// opened with.
    pub async fn check_header(&self, repository: &Repository) -> Result<()> {
        let range = storage::Range::At { offset: 0, len: HEADER_LEN as u64 };
        let front = repository.storage().read(&self.name, range).await?;
        if front[..] == self.header.0 {
            Ok(())
        } else {
            Err(damaged(repository, &self.name, "its header and its trailer differ"))
        }
    }

    /// Fetches and opens one frame.
    pub async fn frame(&self, repository: &Repository, number: u64) -> Result<Vec<u8>> {
        let (bytes, lengths) = self.fetch(repository, number).await?;
        self.open_fetched(repository, number, &bytes, lengths)
    }

    /// Fetches a frame without opening it, for a thread that will.
    pub async fn fetch(&self, repository: &Repository, number: u64) -> Result<(Bytes, Lengths)> {
        let frame = usize::try_from(number).ok().and_then(|n| self.frames.get(n));
        let Some(&(offset, lengths)) = frame else {
            return Err(damaged(repository, &self.name, format!("it has no frame {number}")));
        };
        let len = PREFIX_LEN as u64 + u64::from(lengths.sealed);
        let bytes =
            repository.storage().read(&self.name, storage::Range::At { offset, len }).await?;
        Ok((bytes, lengths))
    }

    /// Fetches frames that lie beside each other, without opening them.
    pub async fn fetch_frames(
        &self,
        repository: &Repository,
        numbers: Range<u64>,
    ) -> Result<Frames> {
        let at = |number: u64| usize::try_from(number).ok().and_then(|n| self.frames.get(n));
        let (Some(&(begin, _)), Some(&(last, lengths))) =
            (at(numbers.start), at(numbers.end.saturating_sub(1)))
        else {
            let what = format!("it has no frames {} to {}", numbers.start, numbers.end);
            return Err(damaged(repository, &self.name, what));
        };
        let len = (last + PREFIX_LEN as u64 + u64::from(lengths.sealed)).saturating_sub(begin);
        let range = storage::Range::At { offset: begin, len };
        let bytes = repository.storage().read(&self.name, range).await?;
        Ok(Frames { begin, bytes })
    }

    /// Opens one of the frames that [`ObjectReader::fetch_frames`] brought.
    pub fn open_frame(
        &self,
        repository: &Repository,
        number: u64,
        fetched: &Frames,
    ) -> Result<Vec<u8>> {
        let frame = usize::try_from(number).ok().and_then(|n| self.frames.get(n));
        let sealed = frame.and_then(|(offset, lengths)| {
            let from = usize::try_from(offset.checked_sub(fetched.begin)?).ok()?;
            let bytes = fetched.bytes.get(from..from + PREFIX_LEN + lengths.sealed as usize)?;
            Some((bytes, *lengths))
        });
        match sealed {
            Some((bytes, lengths)) => self.open_fetched(repository, number, bytes, lengths),
            None => Err(damaged(repository, &self.name, format!("frame {number} isn't in it"))),
        }
    }

    /// Opens what [`ObjectReader::fetch`] brought.
    pub fn open_fetched(
        &self,
        repository: &Repository,
        number: u64,
        bytes: &[u8],
        lengths: Lengths,
    ) -> Result<Vec<u8>> {
        let mut raw = Vec::new();
        self.open_fetched_into(repository, number, bytes, lengths, &mut raw)?;
        Ok(raw)
    }

    /// As [`ObjectReader::open_fetched`], into memory that is there.
    pub fn open_fetched_into(
        &self,
        repository: &Repository,
        number: u64,
        bytes: &[u8],
        lengths: Lengths,
        raw: &mut Vec<u8>,
    ) -> Result<()> {
        self.opener
            .open_into(number, bytes, Some(lengths), raw)
            .map_err(|e| damaged(repository, &self.name, e))
    }
}

/// The closing frame's offset and length, from an object's last bytes.
fn parse_trailer(tail: &[u8]) -> Result<(u64, u32), String> {
    let trailer = tail
        .len()
        .checked_sub(TRAILER_LEN)
        .and_then(|at| tail.get(at..))
        .ok_or("it is too short for an object")?;
    let mut reader = Reader::new(&trailer[HEADER_LEN..]);
    let parse = |reader: &mut Reader<'_>| {
        let offset = u64::from_le_bytes(reader.array("trailer")?);
        let len = u32::from_le_bytes(reader.array("trailer")?);
        Ok((offset, len, reader.array::<8>("trailer")?))
    };
    let (offset, len, magic) =
        parse(&mut reader).map_err(|e: crate::repo::codec::Malformed| e.to_string())?;
    if &magic != TRAILER_MAGIC {
        return Err("it doesn't end like a pgkeep object; its end may be missing".into());
    }
    // Before so much is read.
    if len as usize > PREFIX_LEN + max_sealed() {
        return Err(format!("its trailer says that its closing frame has {len} bytes"));
    }
    Ok((offset, len))
}

/// A small object, read and checked from its first byte to its last.
#[derive(Debug)]
pub struct WholeObject {
    /// The raw frames in order.
    pub frames: Vec<Vec<u8>>,
    /// The summary.
    pub summary: Vec<u8>,
}

impl WholeObject {
    /// The frames' bytes in one piece.
    pub fn into_bytes(mut self) -> Vec<u8> {
        if self.frames.len() == 1 { self.frames.remove(0) } else { self.frames.concat() }
    }
}

/// Reads all of an object and checks every byte of it. For objects that fit into memory.
pub async fn read_whole(repository: &Repository, name: &ObjectName) -> Result<WholeObject> {
    let bytes = repository.storage().read(name, storage::Range::All).await?;
    open_whole(repository, name, &bytes)
}

/// As [`read_whole`], for bytes that were read already.
pub fn open_whole(repository: &Repository, name: &ObjectName, bytes: &[u8]) -> Result<WholeObject> {
    let open = || -> Result<WholeObject, String> {
        let reader = ObjectReader::from_whole(repository, name, bytes)?;
        if bytes.get(..HEADER_LEN) != Some(&reader.header.0[..]) {
            return Err("its header and its trailer differ".into());
        }
        let raw: u64 = reader.frames.iter().map(|(_, lengths)| u64::from(lengths.raw)).sum();
        if raw > MAX_WHOLE {
            return Err(format!("it unpacks to {raw} bytes, more than any object of its kind"));
        }
        let mut frames = Vec::with_capacity(reader.frames.len());
        for (number, (at, lengths)) in reader.frames.iter().enumerate() {
            let at = *at as usize;
            let frame = bytes
                .get(at..at + PREFIX_LEN + lengths.sealed as usize)
                .ok_or("it ends too early")?;
            frames.push(reader.opener.open(number as u64, frame, Some(*lengths))?);
        }
        Ok(WholeObject { frames, summary: reader.summary })
    };
    open().map_err(|e| damaged(repository, name, e))
}
