//! The archive of one system: what a segment's object says of itself, and how objects are found.
//!
//! A file lies under its plain name, or, in a repository whose names hold the content's checksum,
//! under `<file>.<checksum>` ([`super::wal_names`]). Beside it there may be
//! - `<segment>.partial.<checksum>`: the unfinished end of a timeline; several, because two
//!   standbys promoted in one segment differ;
//! - `<segment>.part.<from>-<to>.<checksum>`: bytes of a segment that isn't whole yet, from the
//!   stream ([`super::wal_parts`]);
//! - `<file>.repair.<checksum>`: pushed again because the stored one doesn't authenticate.
//!
//! The checksum in a name is the first 16 hexadecimal digits of the content's SHA-256.

use std::io::Write;

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::{
    Repository, SystemId,
    catalog::PAGE,
    layout::ClusterLayout,
    record::BackupRecord,
    sealed::{FrameStream, ObjectReader},
    wal_parts::PartRange,
};
use crate::{
    error::{Context, Error, Kind, Result},
    postgres::{SegmentName, SegmentSize, Timeline, WalFile, wal::SegmentSummary},
    storage::ObjectName,
};

/// How many raw bytes of a WAL file a frame has.
pub const WAL_FRAME: usize = 1 << 20;

/// The largest history or backup history file that is believed, in bytes. Real ones have a line a
/// promotion, or ten lines.
pub const SMALL_FILE: u64 = 1 << 20;

/// How many bytes a file of the archive has at most, whatever its object says: PostgreSQL's largest segments
/// have 1 GiB.
pub fn longest(file: WalFile) -> u64 {
    match file {
        WalFile::Segment(_) | WalFile::Partial(_) => 1 << 30,
        WalFile::History(_) | WalFile::BackupHistory(..) => SMALL_FILE,
    }
}

/// What `archive-get` says when it refuses a segment that makes a tablespace; whoever asked it to finds
/// this in the server's log.
pub const REFUSES_TABLESPACE: &str = "which replay would make in a directory that isn't its own";

/// What the object of a WAL file says at its end.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct StoredSummary {
    /// The file's length in bytes.
    pub size: u64,
    /// The SHA-256 of its content, in hexadecimal.
    pub sha256: String,
    /// What a segment or a partial one holds; none for other files.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub segment: Option<SegmentSummary>,
}

impl StoredSummary {
    /// The part of the checksum that names carry.
    pub fn short_checksum(&self) -> &str {
        self.sha256.get(..16).unwrap_or(&self.sha256)
    }

    /// The bytes to close the object with.
    pub fn to_bytes(&self) -> Result<Vec<u8>> {
        serde_json::to_vec(self).context(Kind::Internal, || "write a WAL summary")
    }
}

/// An object in the archive, by what its name says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum WalObject {
    /// A file under its plain name.
    Plain(WalFile),
    /// A file under its name and its checksum, where names hold that.
    Content(WalFile, String),
    /// A partial segment, with its checksum.
    Partial(SegmentName, String),
    /// A repaired copy, with its checksum.
    Repair(WalFile, String),
    /// A part of a segment that isn't whole yet: which bytes of it, and their checksum.
    Part(SegmentName, PartRange, String),
}

impl WalObject {
    /// What the last part of an object's name stands for.
    pub fn parse(file_name: &str) -> Option<Self> {
        if let Some((file, checksum)) = file_name.split_once(".repair.") {
            return Some(WalObject::Repair(file.parse().ok()?, checksum.to_owned()));
        }
        if let Some((segment, checksum)) = file_name.split_once(".partial.") {
            return Some(WalObject::Partial(segment.parse().ok()?, checksum.to_owned()));
        }
        if let Some((segment, rest)) = file_name.split_once(".part.") {
            let (range, checksum) = rest.split_once('.')?;
            let (segment, range) = (segment.parse().ok()?, PartRange::parse(range)?);
            return Some(WalObject::Part(segment, range, checksum.to_owned()));
        }
        if let Ok(file) = file_name.parse() {
            return Some(WalObject::Plain(file));
        }
        let (file, checksum) = file_name.rsplit_once('.')?;
        let is_checksum = checksum.len() == 16 && checksum.bytes().all(|b| b.is_ascii_hexdigit());
        is_checksum.then(|| Some(WalObject::Content(file.parse().ok()?, checksum.to_owned())))?
    }

    /// The checksum in its name, without the number that a second repaired copy has behind it.
    pub fn checksum(&self) -> Option<&str> {
        match self {
            WalObject::Plain(_) => None,
            WalObject::Content(_, checksum)
            | WalObject::Partial(_, checksum)
            | WalObject::Part(.., checksum) => Some(checksum),
            WalObject::Repair(_, checksum) => checksum.split('-').next(),
        }
    }

    /// The file it is, or is a copy of. A part is one of a partial segment.
    pub fn file(&self) -> WalFile {
        match self {
            WalObject::Plain(file) | WalObject::Content(file, _) | WalObject::Repair(file, _) => {
                *file
            }
            WalObject::Partial(segment, _) | WalObject::Part(segment, ..) => {
                WalFile::Partial(*segment)
            }
        }
    }
}

/// The archive of one system in one repository.
#[derive(Debug, Clone)]
pub struct WalStore {
    repository: Repository,
    layout: ClusterLayout,
    system: SystemId,
}

impl WalStore {
    /// The archive of `system`, one of the cluster's.
    pub fn new(repository: &Repository, layout: &ClusterLayout, system: SystemId) -> Self {
        WalStore { repository: repository.clone(), layout: layout.clone(), system }
    }

    /// The repository it lies in.
    pub fn repository(&self) -> &Repository {
        &self.repository
    }

    /// The cluster's layout.
    pub fn layout(&self) -> &ClusterLayout {
        &self.layout
    }

    /// The system it is of.
    pub fn system(&self) -> SystemId {
        self.system
    }

    /// The object of a file under its plain name.
    pub fn plain(&self, file: WalFile) -> ObjectName {
        self.layout.wal_file(self.system, file)
    }

    /// The object of a partial segment with this content.
    pub fn partial(&self, segment: SegmentName, summary: &StoredSummary) -> ObjectName {
        let file = WalFile::Partial(segment);
        self.layout.wal_variant(self.system, file, summary.short_checksum())
    }

    /// The object of a repaired copy with this content. A repaired copy may be damaged in its turn:
    /// `attempt` counts from 0, and those after the first have `-<attempt>` behind the checksum.
    pub fn repair(&self, file: WalFile, summary: &StoredSummary, attempt: u32) -> ObjectName {
        let checksum = summary.short_checksum();
        let suffix = match attempt {
            0 => format!("repair.{checksum}"),
            n => format!("repair.{checksum}-{n}"),
        };
        self.layout.wal_variant(self.system, file, &suffix)
    }

    /// The summary of an object, from its last bytes. `None` when there is no such object.
    pub async fn summary(&self, name: &ObjectName) -> Result<Option<StoredSummary>> {
        let Some(reader) = ObjectReader::find(&self.repository, name).await? else {
            return Ok(None);
        };
        self.parse_summary(name, reader.summary()).map(Some)
    }

    /// The summary of a whole segment: of its repaired copy, if there is one that can be read.
    pub async fn segment_summary(&self, segment: SegmentName) -> Result<Option<StoredSummary>> {
        let file = WalFile::Segment(segment);
        let Some(name) = self.find(file).await? else { return Ok(None) };
        let stored = self.summary(&name).await;
        if matches!(&stored, Ok(Some(_))) {
            return stored;
        }
        for name in self.repairs(file).await? {
            if let Ok(Some(summary)) = self.summary(&name).await {
                return Ok(Some(summary));
            }
        }
        stored
    }

    fn parse_summary(&self, name: &ObjectName, bytes: &[u8]) -> Result<StoredSummary> {
        serde_json::from_slice(bytes).map_err(|e| self.damaged(name, &e.to_string()))
    }

    fn damaged(&self, name: &ObjectName, what: &str) -> Error {
        let address = self.repository.storage().address();
        Error::new(Kind::Damaged, format!("{name} in {address} is damaged: {what}"))
    }

    /// Copies an object's content to `sink`, every byte authenticated and the whole compared with
    /// its checksum. On an error `sink` may have got a part. `None` when there is no such object.
    pub async fn copy_to(
        &self,
        name: &ObjectName,
        sink: &mut (dyn Write + Send),
    ) -> Result<Option<StoredSummary>> {
        self.copy_at_most(name, u64::MAX, sink).await
    }

    /// As [`WalStore::copy_to`]; an object of more than `most` bytes is damaged ([`Kind::Damaged`]). A few
    /// bytes may unpack to any number of them, so whoever has no room without end says how much there is.
    pub async fn copy_at_most(
        &self,
        name: &ObjectName,
        most: u64,
        sink: &mut (dyn Write + Send),
    ) -> Result<Option<StoredSummary>> {
        let Some(mut frames) = FrameStream::find(&self.repository, name).await? else {
            return Ok(None);
        };
        let summary = self.parse_summary(name, frames.summary())?;
        if summary.size > most {
            let what = format!("it has {} bytes, where {most} are the most", summary.size);
            return Err(self.damaged(name, &what));
        }
        let (mut digest, mut size) = (Sha256::new(), 0);
        while let Some(raw) = frames.next().await? {
            digest.update(raw);
            size += raw.len() as u64;
            if size > summary.size {
                break;
            }
            sink.write_all(raw).context(Kind::Local, || format!("write the content of {name}"))?;
        }
        if size != summary.size || hex::encode(digest.finalize()) != summary.sha256 {
            return Err(self.damaged(name, "its content doesn't fit its checksum"));
        }
        Ok(Some(summary))
    }

    /// Reads an object's content, as [`WalStore::copy_at_most`] does it.
    pub async fn read_at_most(&self, name: &ObjectName, most: u64) -> Result<Option<Vec<u8>>> {
        let mut content = Vec::new();
        Ok(self.copy_at_most(name, most, &mut content).await?.map(|_| content))
    }

    /// The size of the system's segments: that of its newest backup, or else of what is archived.
    pub async fn segment_size_of(&self, newest: Option<&BackupRecord>) -> Result<SegmentSize> {
        match newest {
            Some(record) => Ok(record.segment_size),
            None => Ok(self.segment_size().await?.unwrap_or_default()),
        }
    }

    /// The size of the system's segments, from any one of them; `None` when there is none.
    pub async fn segment_size(&self) -> Result<Option<SegmentSize>> {
        for timeline in self.timelines().await? {
            let mut after = None;
            loop {
                let page = self.page(timeline, after.as_ref()).await?;
                let Some((_, last, _)) = page.last() else { break };
                after = Some(last.clone());
                for (object, name, _) in page {
                    let segment = matches!(
                        object,
                        WalObject::Plain(WalFile::Segment(_))
                            | WalObject::Content(WalFile::Segment(_), _)
                    );
                    if !segment {
                        continue;
                    }
                    match self.summary(&name).await {
                        Ok(Some(summary)) => return Ok(SegmentSize::new(summary.size)),
                        Ok(None) => {}
                        // The next one may tell. What can't be read now isn't damaged.
                        Err(e) if matches!(e.kind(), Kind::Damaged | Kind::Conflict) => {}
                        Err(e) => return Err(e),
                    }
                }
            }
        }
        Ok(None)
    }

    /// The repaired copies of a file.
    pub async fn repairs(&self, file: WalFile) -> Result<Vec<ObjectName>> {
        let prefix = format!("{}.repair.", self.plain(file));
        let listed = self.repository.storage().list(&prefix, None, PAGE).await?;
        Ok(listed.into_iter().map(|object| object.name).collect())
    }

    /// The repaired copies of what an object holds: of a file, or of this one of the partial copies of a segment.
    pub async fn repairs_of(&self, name: &ObjectName) -> Result<Vec<ObjectName>> {
        let Some(object) = WalObject::parse(name.file_name()) else { return Ok(Vec::new()) };
        let mut repairs = self.repairs(object.file()).await?;
        if matches!(object.file(), WalFile::Partial(_)) {
            repairs.retain(|name| {
                let repair = WalObject::parse(name.file_name());
                repair.is_some_and(|repair| repair.checksum() == object.checksum())
            });
        }
        Ok(repairs)
    }

    /// The partial copies of a segment.
    pub async fn partials(&self, segment: SegmentName) -> Result<Vec<ObjectName>> {
        let prefix = format!("{}.", self.plain(WalFile::Partial(segment)));
        let listed = self.repository.storage().list(&prefix, None, PAGE).await?;
        let is_partial = |name: &ObjectName| {
            matches!(WalObject::parse(name.file_name()), Some(WalObject::Partial(..)))
        };
        Ok(listed.into_iter().map(|object| object.name).filter(is_partial).collect())
    }

    /// The timelines that have a folder, ascending.
    pub async fn timelines(&self) -> Result<Vec<Timeline>> {
        let folders =
            self.repository.storage().folders(&self.layout.wal_folder(self.system)).await?;
        Ok(folders.iter().filter_map(|folder| Timeline::from_hex(folder)).collect())
    }

    /// The next objects of a timeline in order of their names, after the object name `after`, with
    /// their sizes; an empty page ends the listing. Names that mean nothing here are left out.
    pub async fn page(
        &self,
        timeline: Timeline,
        after: Option<&ObjectName>,
    ) -> Result<Vec<(WalObject, ObjectName, u64)>> {
        let folder = self.layout.timeline_folder(self.system, timeline);
        let mut after = after.cloned();
        loop {
            let last = after.as_ref().map(ObjectName::as_str);
            let listed = self.repository.storage().list(&folder, last, PAGE).await?;
            after = listed.last().map(|object| object.name.clone());
            let known: Vec<_> = listed
                .into_iter()
                .filter_map(|o| Some((WalObject::parse(o.name.file_name())?, o.name, o.size)))
                .filter(|(object, ..)| self.counts(object))
                .collect();
            if !known.is_empty() || after.is_none() {
                return Ok(known);
            }
        }
    }

    /// A timeline's history file, from its plain name or a repaired copy; `None` when there is
    /// none.
    pub async fn history(&self, timeline: Timeline) -> Result<Option<Vec<u8>>> {
        let file = WalFile::History(timeline);
        let Some(name) = self.find(file).await? else { return Ok(None) };
        let stored = match self.read_at_most(&name, SMALL_FILE).await {
            Ok(content) => return Ok(content),
            Err(e) => e,
        };
        for name in self.repairs(file).await? {
            if let Ok(Some(content)) = self.read_at_most(&name, SMALL_FILE).await {
                return Ok(Some(content));
            }
        }
        Err(stored)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_in_the_archive_are_told_apart() {
        let segment: SegmentName = "00000001000000000000001A".parse().unwrap();
        let parse = |s: &str| WalObject::parse(s);
        assert_eq!(
            parse("00000001000000000000001A"),
            Some(WalObject::Plain(WalFile::Segment(segment)))
        );
        assert_eq!(
            parse("00000001000000000000001A.partial.00ff"),
            Some(WalObject::Partial(segment, "00ff".into()))
        );
        assert_eq!(
            parse("00000001000000000000001A.part.00000000-00010000.0123456789abcdef"),
            Some(WalObject::Part(
                segment,
                PartRange { from: 0, to: 0x1_0000 },
                "0123456789abcdef".into()
            ))
        );
        assert_eq!(
            parse("00000001000000000000001A.00000028.backup"),
            Some(WalObject::Plain(WalFile::BackupHistory(segment, 0x28)))
        );
        assert_eq!(
            parse("00000002.history.repair.00ff"),
            Some(WalObject::Repair(WalFile::History(Timeline(2)), "00ff".into()))
        );
        assert_eq!(
            parse("00000001000000000000001A.0123456789abcdef"),
            Some(WalObject::Content(WalFile::Segment(segment), "0123456789abcdef".into()))
        );
        assert_eq!(
            parse("00000001000000000000001A.00000028.backup.0123456789abcdef"),
            Some(WalObject::Content(
                WalFile::BackupHistory(segment, 0x28),
                "0123456789abcdef".into()
            ))
        );
        for unknown in [
            "readme",
            "00000001000000000000001A.0123",
            "00000001000000000000001A.",
            "00000001000000000000001A.part.00000000-00010000",
            "00000001000000000000001A.part.00010000-00010000.0123456789abcdef",
            "00000001000000000000001A.part.0-10000.0123456789abcdef",
        ] {
            assert_eq!(parse(unknown), None, "{unknown}");
        }
    }
}
