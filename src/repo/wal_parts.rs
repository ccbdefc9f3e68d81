//! The parts of a segment that isn't whole yet: what the stream has received of it so far.
//!
//! A part lies under `<segment>.part.<from>-<to>.<checksum>`: the bytes `from` to `to` of the segment,
//! offsets in eight hexadecimal digits, and the beginning of their SHA-256. Parts are created and never
//! changed. They may overlap: many small ones are merged into a larger one before they go, two
//! receivers may run at once, and one that begins again goes on from what all repositories have.
//! Where parts overlap they have to agree byte for byte: two servers that went separate ways under one
//! timeline id differ there, and which of them is right can't be told.
//!
//! Parts go when the segment is whole. So one that vanishes under a reader means that another object
//! has its bytes by now, and the reader looks again.

use std::{collections::BTreeSet, fmt, io::Write};

use bytes::Bytes;
use sha2::{Digest, Sha256};

use super::{
    catalog::PAGE,
    sealed::SealedWriter,
    wal::{StoredSummary, WAL_FRAME, WalObject, WalStore},
};
use crate::{
    error::{Context, Error, Kind, Result},
    postgres::{
        SegmentName, SegmentSize, WalFile,
        wal::{SegmentHeader, SegmentScanner, SegmentSummary},
    },
    storage::ObjectName,
};

/// The most bytes that a part may have: a segment of the usual size. Readers hold one part, and as
/// much of what came before it.
pub const LONGEST_PART: u64 = 16 << 20;

/// How often a reader looks again when there are other parts than before.
const LOOKS: usize = 20;

/// Which bytes of a segment a part has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct PartRange {
    /// The offset of its first byte in the segment.
    pub from: u32,
    /// The offset behind its last byte.
    pub to: u32,
}

impl PartRange {
    /// Reads what names carry. Empty parts there are none.
    pub fn parse(text: &str) -> Option<Self> {
        let offset = |hex: &str| {
            let is_hex = hex.len() == 8 && hex.bytes().all(|b| b.is_ascii_hexdigit());
            is_hex.then(|| u32::from_str_radix(hex, 16).ok()).flatten()
        };
        let (from, to) = text.split_once('-')?;
        let range = PartRange { from: offset(from)?, to: offset(to)? };
        (range.from < range.to).then_some(range)
    }

    /// How many bytes there are.
    pub fn bytes(self) -> u64 {
        u64::from(self.to - self.from)
    }
}

impl fmt::Display for PartRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:08x}-{:08x}", self.from, self.to)
    }
}

/// A part of a segment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Part {
    /// Which bytes it has.
    pub range: PartRange,
    /// Where they lie.
    pub name: ObjectName,
}

/// How far sorted ranges reach from the segment's start without a gap, in bytes.
pub fn covered<'r>(ranges: impl IntoIterator<Item = &'r PartRange>) -> u64 {
    let mut at = 0;
    for range in ranges {
        if u64::from(range.from) > at {
            break;
        }
        at = at.max(u64::from(range.to));
    }
    at
}

impl WalStore {
    /// The parts of a segment, sorted by their ranges.
    pub async fn parts(&self, segment: SegmentName) -> Result<Vec<Part>> {
        let prefix = format!("{}.part.", self.plain(WalFile::Segment(segment)));
        let mut parts = Vec::new();
        let mut after: Option<ObjectName> = None;
        loop {
            let last = after.as_ref().map(ObjectName::as_str);
            let page = self.repository().storage().list(&prefix, last, PAGE).await?;
            let is_last = page.len() < PAGE;
            after = page.last().map(|object| object.name.clone());
            parts.extend(page.into_iter().filter_map(|object| {
                match WalObject::parse(object.name.file_name())? {
                    WalObject::Part(_, range, _) => Some(Part { range, name: object.name }),
                    _ => None,
                }
            }));
            if is_last {
                break;
            }
        }
        parts.sort_by_key(|part| part.range);
        Ok(parts)
    }

    /// Stores `content`, the bytes of a segment from the offset `from` on: at least one and at most
    /// [`LONGEST_PART`] of them. The part is durable then. That it was there already is a success.
    pub async fn put_part(
        &self,
        segment: SegmentName,
        from: u32,
        content: &[Bytes],
    ) -> Result<Part> {
        let (mut digest, mut size) = (Sha256::new(), 0u64);
        for piece in content {
            digest.update(piece);
            size += piece.len() as u64;
        }
        let to = u32::try_from(u64::from(from) + size).ok().filter(|_| size <= LONGEST_PART);
        let to = to.filter(|to| *to > from).ok_or_else(|| {
            Error::new(Kind::Internal, format!("a part of {segment} has {size} bytes from {from}"))
        })?;
        let range = PartRange { from, to };
        let summary = StoredSummary { size, sha256: hex::encode(digest.finalize()), segment: None };
        let suffix = format!("part.{range}.{}", summary.short_checksum());
        let name = self.layout().wal_variant(self.system(), WalFile::Segment(segment), &suffix);
        let store = async {
            let mut writer = SealedWriter::create(self.repository(), &name).await?;
            seal_pieces(&mut writer, content).await?;
            writer.finish(&summary.to_bytes()?).await
        };
        match store.await {
            Ok(_) => {}
            // The name has the content's checksum. Whoever made it may have died before it was durable.
            Err(e) if e.kind() == Kind::Conflict => match self.prove_part_twice(&name).await {
                // What can't be read is of no use to anybody, and here are the bytes that it had.
                Err(e) if e.kind() == Kind::Damaged => {
                    tracing::warn!("{e}: storing it again");
                    self.repository().storage().delete(&name).await?;
                    return Err(Error::new(Kind::Repository, format!("{name} was damaged")));
                }
                proven => proven?,
            },
            Err(e) => return Err(e),
        }
        Ok(Part { range, name })
    }

    /// Makes sure that a part is there, can be read, and is durable: whoever made it may have died
    /// before it was.
    pub async fn prove_part(&self, name: &ObjectName) -> Result<()> {
        if self.copy_to(name, &mut std::io::sink()).await?.is_none() {
            return Err(Error::new(Kind::Repository, format!("{name} vanished just now")));
        }
        Ok(self.repository().storage().ensure_durable(name).await?)
    }

    /// As [`WalStore::prove_part`], but what seems damaged is read once more: a bit may have flipped on the
    /// way, and somebody may have been told that the part is there.
    async fn prove_part_twice(&self, name: &ObjectName) -> Result<()> {
        match self.prove_part(name).await {
            Err(e) if e.kind() == Kind::Damaged => {
                tracing::warn!("{e}: reading it once more");
                self.prove_part(name).await
            }
            proven => proven,
        }
    }

    /// Copies what the parts of a segment have to `sink`, from its start to the first byte that none
    /// of them has, every byte authenticated. Returns how many bytes these are: none without parts.
    ///
    /// Parts that overlap and differ are an error ([`Kind::Conflict`]), and so is a damaged one
    /// ([`Kind::Damaged`]) if no other has its bytes.
    pub async fn copy_parts(
        &self,
        segment: SegmentName,
        sink: &mut (dyn Write + Send),
    ) -> Result<u64> {
        let mut joined = Joined::default();
        let mut seen = BTreeSet::new();
        let mut damage: Option<(u64, Error)> = None;
        for _ in 0..LOOKS {
            // A listing isn't one moment: parts may have become a larger one behind its back. So what it
            // says is believed only when another one says nothing new.
            let mut changed = false;
            for Part { range, name } in self.parts(segment).await? {
                if seen.contains(&name) {
                    continue;
                }
                if u64::from(range.from) > joined.at {
                    break;
                }
                match self.read_part(&name, range).await {
                    Ok(Some(bytes)) => {
                        joined.add(range, &bytes, sink).map_err(|e| e.while_doing(&name))?;
                    }
                    Ok(None) => {
                        changed = true;
                        continue;
                    }
                    Err(e) if e.kind() == Kind::Damaged => {
                        tracing::warn!("{e}");
                        let to = u64::from(range.to);
                        if damage.as_ref().is_none_or(|(reached, _)| *reached < to) {
                            damage = Some((to, e));
                        }
                    }
                    Err(e) => return Err(e),
                }
                seen.insert(name);
                changed = true;
            }
            if !changed {
                return match damage {
                    Some((to, e)) if to > joined.at => Err(e),
                    _ => Ok(joined.at),
                };
            }
        }
        let address = self.repository().storage().address();
        Err(Error::new(
            Kind::Repository,
            format!("the parts of segment {segment} in {address} change while they are read"),
        ))
    }

    /// What the parts of a segment hold, as far as they reach without a gap; `None` when that isn't
    /// even the header of its first page.
    pub async fn parts_summary(
        &self,
        segment: SegmentName,
        size: SegmentSize,
    ) -> Result<Option<SegmentSummary>> {
        let mut scanner = SegmentScanner::new(segment, size, None);
        let bytes = self.copy_parts(segment, &mut scanner).await?;
        Ok((bytes >= SegmentHeader::LEN as u64).then(|| scanner.finish()))
    }

    async fn read_part(&self, name: &ObjectName, range: PartRange) -> Result<Option<Vec<u8>>> {
        let damaged = |what: String| {
            let address = self.repository().storage().address();
            Error::new(Kind::Damaged, format!("{name} in {address} is damaged: {what}"))
        };
        if range.bytes() > LONGEST_PART {
            return Err(damaged(format!("no part has {} bytes", range.bytes())));
        }
        match self.read_at_most(name, range.bytes()).await? {
            None => Ok(None),
            Some(bytes) if bytes.len() as u64 == range.bytes() => Ok(Some(bytes)),
            Some(bytes) => Err(damaged(format!("it has {} bytes", bytes.len()))),
        }
    }

    /// Removes parts, as their segment or a larger part has what they have. Returns how many a place
    /// doesn't let go of: an expiry removes them later.
    pub async fn remove_parts(&self, parts: &[Part]) -> u64 {
        let names: Vec<_> = parts.iter().map(|part| part.name.clone()).collect();
        let mut left = 0;
        for failure in
            self.repository().storage().delete_all(&names).await.into_iter().flat_map(Result::err)
        {
            tracing::debug!("{failure}");
            left += 1;
        }
        left
    }
}

/// Seals pieces of any size as frames of the usual one.
pub async fn seal_pieces(writer: &mut SealedWriter, content: &[Bytes]) -> Result<()> {
    let mut frame: Vec<u8> = Vec::new();
    for piece in content {
        let mut rest: &[u8] = piece;
        while !rest.is_empty() {
            let (now, later) = rest.split_at(rest.len().min(WAL_FRAME - frame.len()));
            frame.extend_from_slice(now);
            rest = later;
            if frame.len() == WAL_FRAME {
                writer.seal(&frame).await?;
                frame.clear();
            }
        }
    }
    if !frame.is_empty() {
        writer.seal(&frame).await?;
    }
    Ok(())
}

/// Parts put together.
#[derive(Default)]
struct Joined {
    /// How many bytes there are so far.
    at: u64,
    /// The last of them, to compare with. Parts come sorted by where they begin, so none reaches back
    /// behind `at` by more than its own length.
    window: Vec<u8>,
}

impl Joined {
    /// Adds the part `range`, which begins at `at` at the latest.
    fn add(&mut self, range: PartRange, bytes: &[u8], sink: &mut (dyn Write + Send)) -> Result<()> {
        let overlap = usize::try_from(self.at - u64::from(range.from)).unwrap_or(usize::MAX);
        let (old, new) = bytes.split_at(overlap.min(bytes.len()));
        // What the window has no more isn't compared again.
        let behind = overlap.saturating_sub(self.window.len()).min(old.len());
        let back = self.window.len().saturating_sub(overlap);
        let old = &old[behind..];
        if self.window.get(back..back + old.len()) != Some(old) {
            return Err(Error::new(
                Kind::Conflict,
                "this part of the segment and another one differ where they overlap",
            )
            .hint(
                "two servers went separate ways under one timeline id: give a copy a cluster name or \
                 a repository of its own, and remove its parts by hand",
            ));
        }
        sink.write_all(new).context(Kind::Local, || "write a part of a segment")?;
        self.at += new.len() as u64;
        self.window.extend_from_slice(new);
        let longest = LONGEST_PART as usize;
        if self.window.len() > 2 * longest {
            self.window.drain(..self.window.len() - longest);
        }
        Ok(())
    }
}
