//! The file that is being pushed: what it must be, and reading it.

use std::{
    collections::VecDeque,
    fs::File,
    io::{Read, Seek, SeekFrom},
    path::{Path, PathBuf},
    pin::pin,
    sync::Arc,
};

use sha2::{Digest, Sha256};
use tokio::task::{JoinHandle, spawn_blocking, yield_now};

use super::data_directory::DataDirectory;
use crate::{
    error::{Context, Error, Kind, Result},
    postgres::{
        SegmentName, SegmentSize, Timeline, WalFile,
        history::TimelineHistory,
        wal::{RecordHead, SegmentHeader, SegmentScanner, trailing_head},
    },
    repo::{
        sealed::{CompressedFrame, FrameContent},
        wal::{SMALL_FILE, StoredSummary, WAL_FRAME, WalStore},
    },
};

/// How many frames of one file are compressed at a time: one thread reads and hashes in the time in
/// which two compress.
const THREADS: usize = 2;

/// From how many bytes on no further frame is compressed that can't be stored yet. An object's first request to
/// S3 holds as much.
const HELD: usize = 8 << 20;

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
    /// What [`Source::compress_during`] has read, and its frames.
    begun: Option<(Reading, VecDeque<FrameContent>)>,
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
        let path = path.to_owned();
        Ok(Source { path, file, wal, size, segment_size, first_page, threads, begun: None })
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
        if let Some((reading, ready)) = self.begun.take() {
            return Ok(Pass { source: self, reading, ready });
        }
        let scanner = match self.wal {
            WalFile::Segment(name) | WalFile::Partial(name) => {
                Some(SegmentScanner::new(name, self.segment_size, self.head_of(name)))
            }
            _ => None,
        };
        self.file
            .seek(SeekFrom::Start(0))
            .context(Kind::Local, || format!("read {}", self.path.display()))?;
        let reading =
            Reading { digest: Sha256::new(), read: 0, zeros: 0, scanner, given: VecDeque::new() };
        Ok(Pass { source: self, reading, ready: VecDeque::new() })
    }

    /// Reads it once, for what is to be said of it.
    pub fn summary(&mut self) -> Result<StoredSummary> {
        let mut pass = self.pass()?;
        while pass.next()?.is_some() {}
        pass.finish()
    }

    /// Runs `until`, which waits for others, and compresses meanwhile with zstd's `level` what the next
    /// [`Source::pass`] will give, from the file's start on: a few MiB, as long as it `is_wanted`.
    pub async fn compress_during<T>(
        &mut self,
        level: i32,
        is_wanted: impl Fn() -> bool,
        until: impl Future<Output = T>,
    ) -> T {
        let mut until = pin!(until);
        let threads = self.threads;
        // What is wrong with the file is said when it is to be stored.
        let Ok(mut pass) = self.pass() else { return until.await };
        let mut compressing: VecDeque<JoinHandle<Result<CompressedFrame>>> = VecDeque::new();
        let (mut ready, mut held, mut may_go_on) = (VecDeque::new(), 0, true);
        let ended = loop {
            let begins = may_go_on && compressing.len() < threads && held < HELD && is_wanted();
            tokio::select! {
                biased;
                ended = &mut until => break ended,
                () = yield_now(), if begins => match pass.next() {
                    Ok(Some(FrameContent::Raw(raw))) => compressing
                        .push_back(spawn_blocking(move || CompressedFrame::of(&raw, level))),
                    Ok(_) => may_go_on = false,
                    Err(_) => return until.await,
                },
                frame = first_of(&mut compressing), if !begins && !compressing.is_empty() => {
                    let Some(frame) = frame else { return until.await };
                    held += frame.size();
                    ready.push_back(FrameContent::Compressed(Arc::new(frame)));
                }
                else => break until.await,
            }
        };
        while !compressing.is_empty() {
            let Some(frame) = first_of(&mut compressing).await else { return ended };
            ready.push_back(FrameContent::Compressed(Arc::new(frame)));
        }
        let reading = pass.reading;
        self.begun = Some((reading, ready));
        ended
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

/// The first one of the frames that are being compressed; `None` where that failed.
async fn first_of(
    compressing: &mut VecDeque<JoinHandle<Result<CompressedFrame>>>,
) -> Option<CompressedFrame> {
    let frame = compressing.front_mut()?.await;
    compressing.pop_front();
    frame.ok()?.ok()
}

/// One reading of a [`Source`], frame by frame.
pub struct Pass<'a> {
    source: &'a mut Source,
    reading: Reading,
    /// Frames that were read and compressed before.
    ready: VecDeque<FrameContent>,
}

/// How far a file was read.
#[derive(Debug)]
struct Reading {
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
    pub fn next(&mut self) -> Result<Option<FrameContent>> {
        if let Some(ready) = self.ready.pop_front() {
            return Ok(Some(ready));
        }
        let Reading { digest, read, zeros, scanner, given } = &mut self.reading;
        let left = self.source.size - *read;
        if left == 0 {
            return Ok(None);
        }
        let len = WAL_FRAME.min(usize::try_from(left).unwrap_or(WAL_FRAME));
        let returned = given.iter().position(|frame| Arc::strong_count(frame) == 1);
        let mut frame = returned.and_then(|n| given.remove(n)).unwrap_or_default();
        let chunk = Arc::make_mut(&mut frame);
        chunk.resize(len, 0);
        self.source
            .file
            .read_exact(chunk)
            .context(Kind::Local, || format!("read {}", self.source.path.display()))?;
        *read += len as u64;
        digest.update(&*chunk);
        *zeros = match chunk.iter().rposition(|byte| *byte != 0) {
            Some(last) => (len - last - 1) as u64,
            None => *zeros + len as u64,
        };
        if let Some(scanner) = scanner {
            scanner.feed(chunk, &mut |_| {});
        }
        given.push_back(Arc::clone(&frame));
        Ok(Some(FrameContent::Raw(frame)))
    }

    /// What was read. Refuses a segment that isn't finished: one that valid WAL ends in without
    /// having closed it, and zeros follow. That is what recovery was served of a timeline's unfinished
    /// end, and with `archive_mode = always` a standby offers it as if it were the segment.
    pub fn finish(self) -> Result<StoredSummary> {
        let Reading { digest, read, zeros, scanner, .. } = self.reading;
        let segment = scanner.map(SegmentScanner::finish);
        let unfinished = segment.as_ref().filter(|s| {
            let behind = (s.start.0 + read).saturating_sub(s.end.0);
            // The last record's end may lie in a page whose rest is zeros.
            s.parsed && !s.whole && behind > 0 && zeros + ALIGNMENT >= behind
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
        Ok(StoredSummary { size: read, sha256: hex::encode(digest.finalize()), segment })
    }
}

#[cfg(test)]
mod tests {
    use std::{future::poll_fn, io::Write, task::Poll};

    use super::*;

    /// A file of so many frames and a few bytes that don't compress.
    fn source(frames: usize) -> Source {
        let mut content = vec![0; frames * WAL_FRAME + 17];
        blake3::Hasher::new().finalize_xof().fill(&mut content);
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(&content).unwrap();
        Source {
            path: "a file".into(),
            file,
            wal: "000000010000000000000001".parse().unwrap(),
            size: content.len() as u64,
            segment_size: SegmentSize::default(),
            first_page: None,
            threads: THREADS,
            begun: None,
        }
    }

    fn read(source: &mut Source) -> (Vec<FrameContent>, StoredSummary) {
        let mut pass = source.pass().unwrap();
        let mut frames = Vec::new();
        while let Some(frame) = pass.next().unwrap() {
            frames.push(frame);
        }
        (frames, pass.finish().unwrap())
    }

    fn compressed(frame: &FrameContent) -> Arc<CompressedFrame> {
        match frame {
            FrameContent::Raw(raw) => Arc::new(CompressedFrame::of(raw, 1).unwrap()),
            FrameContent::Compressed(frame) => Arc::clone(frame),
        }
    }

    fn is_compressed(frame: &FrameContent) -> bool {
        matches!(frame, FrameContent::Compressed(_))
    }

    /// So often that all is done meanwhile: it takes a second.
    const MANY: usize = 10_000;

    /// Ends when it was asked so often whether it has.
    async fn asked(times: usize) {
        let mut left = times;
        poll_fn(|context| {
            context.waker().wake_by_ref();
            if left == 0 {
                return Poll::Ready(());
            }
            left -= 1;
            std::thread::sleep(std::time::Duration::from_micros(50));
            Poll::Pending
        })
        .await;
    }

    #[tokio::test]
    async fn what_is_compressed_meanwhile_is_the_file_as_far_as_that_comes() {
        let (plain, summary) = read(&mut source(5));
        let expected: Vec<_> = plain.iter().map(compressed).collect();
        let mut seen = [false; 2];
        for times in [0, 1, 2, 3, 5, 8, 13, MANY] {
            let mut source = source(5);
            source.compress_during(1, || true, asked(times)).await;
            let (frames, same) = read(&mut source);
            assert_eq!(same, summary, "{times}");
            assert_eq!(frames.iter().map(compressed).collect::<Vec<_>>(), expected, "{times}");
            let early = frames.iter().take_while(|frame| is_compressed(frame)).count();
            assert!(!frames.iter().skip(early).any(is_compressed), "{times}: in order");
            assert_eq!(early > 0, times > 1, "{times}");
            seen[usize::from(early == frames.len())] = true;
            // Another pass begins anew.
            assert_eq!(read(&mut source), (plain.clone(), summary.clone()), "{times}");
        }
        assert_eq!(seen, [true; 2], "some of it, and all of it");
    }

    #[tokio::test]
    async fn no_more_is_compressed_than_may_be_held_or_is_wanted() {
        let mut large = source(15);
        large.compress_during(1, || true, asked(MANY)).await;
        let early = read(&mut large).0.iter().filter(|frame| is_compressed(frame)).count();
        let most = HELD / WAL_FRAME + THREADS;
        assert!((HELD / WAL_FRAME..=most).contains(&early), "{early}");

        let mut unwanted = source(5);
        unwanted.compress_during(1, || false, asked(1000)).await;
        assert!(!read(&mut unwanted).0.iter().any(is_compressed));
    }

    #[tokio::test]
    async fn a_file_that_gets_shorter_fails_when_it_is_stored() {
        let mut source = source(5);
        source.file.set_len(3 << 20).unwrap();
        source.compress_during(1, || true, asked(MANY)).await;
        let mut pass = source.pass().unwrap();
        let failure = loop {
            match pass.next() {
                Ok(Some(_)) => {}
                Ok(None) => panic!("it isn't whole"),
                Err(e) => break e,
            }
        };
        assert_eq!(failure.kind(), Kind::Local);
    }
}
