//! The file that is being pushed: what it must be, and reading it.

use std::{
    collections::VecDeque,
    fs::File,
    io::{Read, Seek, SeekFrom},
    path::{Path, PathBuf},
    sync::Arc,
};

use sha2::{Digest, Sha256};

use super::data_directory::DataDirectory;
use crate::{
    error::{Context, Error, Kind, Result},
    postgres::{
        SegmentName, SegmentSize, Timeline, WalFile,
        history::TimelineHistory,
        wal::{RecordHead, SegmentHeader, SegmentScanner, trailing_head},
    },
    repo::wal::{SMALL_FILE, StoredSummary, WAL_FRAME, WalStore},
};

/// How many frames of one file are compressed at a time: one thread reads and hashes in the time in
/// which two compress.
const THREADS: usize = 2;

/// Records begin at multiples of so many bytes (`xlogrecord.h`, MAXALIGN).
const ALIGNMENT: u64 = 8;

/// A WAL file of a data directory. It is only ever read.
#[derive(Debug)]
pub struct Source {
    path: PathBuf,
    file: File,
    wal: WalFile,
    size: u64,
    segment_size: SegmentSize,
    /// The timeline that the first page carries.
    first_page: Option<Timeline>,
    threads: usize,
}

impl Source {
    /// Opens the file at `path` and checks that it is what its name says, and of this system.
    pub fn open(path: &Path, wal: WalFile, directory: &DataDirectory) -> Result<Self> {
        let what = || format!("read {}", path.display());
        let mut file =
            File::open(path).context(Kind::Local, what).map_err(|e| e.if_denied(path))?;
        let meta = file.metadata().context(Kind::Local, what)?;
        let refuse = |why: String| Error::new(Kind::Local, format!("{} {why}", path.display()));
        if !meta.is_file() {
            return Err(refuse("isn't a file".into()));
        }
        let size = meta.len();
        let segment_size = directory.control.segment_size;
        let first_page = match wal {
            WalFile::Segment(name) | WalFile::Partial(name) => {
                if size != segment_size.bytes() {
                    return Err(refuse(format!(
                        "has {size} bytes, the segments of this cluster have {}",
                        segment_size.bytes()
                    )));
                }
                let mut page = [0; SegmentHeader::LEN];
                file.read_exact(&mut page).context(Kind::Local, what)?;
                let header = SegmentHeader::parse(&page)
                    .map_err(|e| refuse("isn't a WAL segment".into()).because(e))?;
                check_header(&header, name, directory).map_err(|e| e.of(path))?;
                Some(header.timeline)
            }
            WalFile::History(_) | WalFile::BackupHistory(..) if size > SMALL_FILE => {
                return Err(refuse(format!("has {size} bytes, which is too large for it")));
            }
            WalFile::History(timeline) => {
                let mut bytes = Vec::new();
                file.read_to_end(&mut bytes).context(Kind::Local, what)?;
                TimelineHistory::parse(timeline, &bytes).map_err(|e| {
                    refuse(format!("isn't a history of timeline {timeline}")).because(e)
                })?;
                None
            }
            WalFile::BackupHistory(..) => None,
        };
        let threads = if size > WAL_FRAME as u64 { THREADS } else { 0 };
        Ok(Source { path: path.to_owned(), file, wal, size, segment_size, first_page, threads })
    }

    /// Refuses a segment whose first page is of a timeline that isn't an ancestor of the name's,
    /// as far as the history is known: from beside the file, or else from a repository.
    pub async fn check_ancestry(&self, stores: &[&WalStore]) -> Result<()> {
        let (name, Some(first_page)) = (self.wal.timeline(), self.first_page) else {
            return Ok(());
        };
        if name == first_page {
            return Ok(());
        }
        let beside = self.path.with_file_name(name.history_file());
        let mut history =
            std::fs::read(beside).ok().and_then(|b| TimelineHistory::parse(name, &b).ok());
        for store in stores {
            if history.is_none()
                && let Ok(Some(bytes)) = store.history(name).await
            {
                history = TimelineHistory::parse(name, &bytes).ok();
            }
        }
        match history {
            Some(history) if !history.contains(first_page) => Err(Error::new(
                Kind::Conflict,
                format!(
                    "{} begins with WAL of timeline {first_page}, which isn't an ancestor of \
                     timeline {name}",
                    self.path.display()
                ),
            )),
            _ => Ok(()),
        }
    }

    /// Which file it is.
    pub fn wal(&self) -> WalFile {
        self.wal
    }

    /// Its length in bytes.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// How many of its frames are compressed at a time, beside its reading.
    pub fn threads(&self) -> usize {
        self.threads
    }

    /// Has its frames compressed by the thread that reads it.
    #[must_use]
    pub fn on_one_thread(mut self) -> Self {
        self.threads = 0;
        self
    }

    /// Reads it once from its start.
    pub fn pass(&mut self) -> Result<Pass<'_>> {
        let scanner = match self.wal {
            WalFile::Segment(name) | WalFile::Partial(name) => {
                Some(SegmentScanner::new(name, self.segment_size, self.head_of(name)))
            }
            _ => None,
        };
        self.file
            .seek(SeekFrom::Start(0))
            .context(Kind::Local, || format!("read {}", self.path.display()))?;
        Ok(Pass {
            source: self,
            digest: Sha256::new(),
            read: 0,
            zeros: 0,
            scanner,
            given: VecDeque::new(),
        })
    }

    /// The record that begins in the segment before and ends in this one. `None` when that segment
    /// isn't in `pg_wal` any more; the summary then says that it isn't known.
    fn head_of(&self, name: SegmentName) -> Option<RecordHead> {
        let before = name.number(self.segment_size)?.checked_sub(1)?;
        // The first segment of a timeline goes on where its parent's last whole one ended.
        let timelines = [Some(name.timeline), self.first_page.filter(|t| *t != name.timeline)];
        timelines.into_iter().flatten().find_map(|timeline| {
            let previous = self.segment_size.name(timeline, before);
            self.read_head(&self.path.with_file_name(previous.to_string()), before)
        })
    }

    fn read_head(&self, path: &Path, number: u64) -> Option<RecordHead> {
        let mut file = File::open(path).ok()?;
        let mut page = [0; SegmentHeader::LEN];
        file.read_exact(&mut page).ok()?;
        let header = SegmentHeader::parse(&page).ok()?;
        let is_it = header.address == self.segment_size.start_of(number)
            && file.metadata().ok()?.len() == self.segment_size.bytes();
        if !is_it {
            return None;
        }
        trailing_head(&mut file, self.segment_size).ok()?.into_head()
    }
}

/// Why a header isn't that of the segment it should be.
#[derive(Debug)]
pub struct Mismatch {
    kind: Kind,
    why: String,
}

impl Mismatch {
    /// The error, about the file or object `what`.
    pub fn of(self, what: impl AsRef<Path>) -> Error {
        Error::new(self.kind, format!("{} {}", what.as_ref().display(), self.why))
    }
}

/// Compares a segment's first page with its name and the data directory it is of or for.
pub fn check_header(
    header: &SegmentHeader,
    name: SegmentName,
    directory: &DataDirectory,
) -> Result<(), Mismatch> {
    let conflict = |why: String| Err(Mismatch { kind: Kind::Conflict, why });
    let (system, control) = (directory.system, &directory.control);
    if header.system_identifier != system.identifier {
        return conflict(format!(
            "is WAL of the system {}, but the data directory {} is of the system {}",
            header.system_identifier,
            directory.path.display(),
            system.identifier
        ));
    }
    if let Some(major) = header.major().filter(|major| *major != system.major) {
        return conflict(format!(
            "is WAL of PostgreSQL {major}, but the data directory {} is of PostgreSQL {}",
            directory.path.display(),
            system.major
        ));
    }
    if header.segment_size != control.segment_size
        || header.wal_block_size != control.wal_block_size
    {
        return conflict(format!(
            "says that segments have {} and WAL blocks {} bytes, the control file says {} and {}",
            header.segment_size,
            header.wal_block_size,
            control.segment_size,
            control.wal_block_size
        ));
    }
    let number = name.number(control.segment_size);
    if number.map(|n| control.segment_size.start_of(n)) != Some(header.address) {
        return conflict(format!(
            "isn't the segment {name}: its first page has the address {}",
            header.address
        ));
    }
    if header.timeline > name.timeline {
        return conflict(format!(
            "isn't the segment {name}: its first page is of timeline {}",
            header.timeline
        ));
    }
    Ok(())
}

/// One reading of a [`Source`], frame by frame.
pub struct Pass<'a> {
    source: &'a mut Source,
    digest: Sha256,
    read: u64,
    /// How many of the bytes that were read last are zeros.
    zeros: u64,
    scanner: Option<SegmentScanner>,
    /// The frames that were given out, to use their memory again: a fresh one costs the kernel as much as
    /// reading it.
    given: VecDeque<Arc<Vec<u8>>>,
}

impl Pass<'_> {
    /// The next bytes, at most a frame's; `None` at the end.
    pub fn next(&mut self) -> Result<Option<Arc<Vec<u8>>>> {
        let left = self.source.size - self.read;
        if left == 0 {
            return Ok(None);
        }
        let len = WAL_FRAME.min(usize::try_from(left).unwrap_or(WAL_FRAME));
        let returned = self.given.iter().position(|frame| Arc::strong_count(frame) == 1);
        let mut frame = returned.and_then(|n| self.given.remove(n)).unwrap_or_default();
        let chunk = Arc::make_mut(&mut frame);
        chunk.resize(len, 0);
        self.source
            .file
            .read_exact(chunk)
            .context(Kind::Local, || format!("read {}", self.source.path.display()))?;
        self.read += len as u64;
        self.digest.update(&*chunk);
        self.zeros = match chunk.iter().rposition(|byte| *byte != 0) {
            Some(last) => (len - last - 1) as u64,
            None => self.zeros + len as u64,
        };
        if let Some(scanner) = &mut self.scanner {
            scanner.feed(chunk, &mut |_| {});
        }
        self.given.push_back(Arc::clone(&frame));
        Ok(Some(frame))
    }

    /// What was read. Refuses a segment that isn't finished: one that valid WAL ends in without
    /// having closed it, and zeros follow. That is what recovery was served of a timeline's unfinished
    /// end, and with `archive_mode = always` a standby offers it as if it were the segment.
    pub fn finish(self) -> Result<StoredSummary> {
        let segment = self.scanner.map(SegmentScanner::finish);
        let unfinished = segment.as_ref().filter(|s| {
            let behind = (s.start.0 + self.read).saturating_sub(s.end.0);
            // The last record's end may lie in a page whose rest is zeros.
            s.parsed && !s.whole && behind > 0 && self.zeros + ALIGNMENT >= behind
        });
        if let (Some(summary), WalFile::Segment(_)) = (unfinished, self.source.wal) {
            let what = format!(
                "{} isn't a finished segment: its WAL ends at {}, and zeros follow",
                self.source.path.display(),
                summary.end
            );
            return Err(Error::new(Kind::Local, what).hint(
                "a server that has more of it has to archive it; on a standby, archive_mode = on \
                 doesn't offer what was restored",
            ));
        }
        Ok(StoredSummary { size: self.read, sha256: hex::encode(self.digest.finalize()), segment })
    }
}
