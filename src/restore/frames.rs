//! Frames into files: fetched, opened, every block checked, written where it belongs.
//!
//! One thread plans ([`super::windows`]), some work. Each worker takes the next frame, and writes
//! what is needed of it with one write for each run of blocks that stay together. When the last
//! frame of a window is done, the checksums of its blocks are put together in the order of the
//! files, and every file that is complete gets its line in the manifest.

use std::{
    collections::BTreeMap,
    fs::File,
    io::Write,
    os::unix::fs::FileExt,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{
        Arc, Condvar, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
        mpsc::{Receiver, sync_channel},
    },
    thread,
};

use chrono::Utc;
use crc_fast::crc32_iscsi;
use tokio::runtime::Handle;

use super::{
    crc,
    settings::AUTO_CONF,
    stretch::Ahead,
    target::Target,
    tree::Tree,
    windows::{Job, Planner, Wanted, Window, written_as},
};
use crate::{
    error::{Context, Error, Kind, Result},
    postgres::{backup_label::TABLESPACE_MAP, backup_manifest::ManifestWriter},
    progress::Progress,
    repo::{
        layout::ClusterLayout,
        pack::PackReader,
        tree::{BLOCK, BlockHasher},
        tree_reader::TreeReader,
    },
};

/// How many windows live at a time.
const WINDOWS: usize = 3;

/// What writing needs.
pub struct Work<'a> {
    /// Where blocks come from.
    pub packs: &'a Arc<PackReader>,
    /// The names of objects.
    pub layout: &'a ClusterLayout,
    /// Where files go.
    pub target: &'a Target,
    /// How many threads fetch and write.
    pub threads: usize,
    /// The runtime that reading from storage needs.
    pub runtime: &'a Handle,
    /// Who is told.
    pub progress: &'a dyn Progress,
    /// Set when nobody waits for the restore any more.
    pub stop: &'a AtomicBool,
}

/// Whether the file's line in the manifest is written later, as the restore changes it.
fn is_rewritten(path: &[u8]) -> bool {
    path == AUTO_CONF || path == TABLESPACE_MAP.as_bytes()
}

/// Writes all files of the tree, and their lines into `manifest`. Returns it.
pub fn write_files<W: Write + Send>(
    work: &Work<'_>,
    tree: &mut Tree,
    manifest: ManifestWriter<W>,
) -> Result<ManifestWriter<W>> {
    let hasher = BlockHasher::new(work.packs.repository().keyring());
    let shared = Shared {
        work,
        hasher: &hasher,
        finishing: Mutex::new(Finishing {
            next: 0,
            done: BTreeMap::new(),
            alive: 0,
            crc: 0,
            manifest,
        }),
        changed: Condvar::new(),
        failure: Mutex::new(None),
        failed: AtomicBool::new(false),
    };
    let ahead = Ahead::new(work.packs, work.runtime);
    let (jobs, queue) = sync_channel::<Job>(work.threads * 2);
    let queue = Mutex::new(queue);
    thread::scope(|scope| {
        let queue = &queue;
        for _ in 0..work.threads {
            scope.spawn(|| shared.run_jobs(queue));
        }
        let mut hand_out = |window: Arc<Window>, made: Vec<Job>| {
            shared.begin()?;
            work.progress.advance(window.zero_bytes);
            if made.is_empty() {
                shared.finish(window)?;
            }
            let mut made = made.into_iter();
            for together in ahead.group(made.as_slice()) {
                let group = made.as_slice().get(..together).unwrap_or_default();
                let stretch = ahead.fetch(group, || shared.check())?;
                for mut job in made.by_ref().take(together) {
                    shared.check()?;
                    job.stretch.clone_from(&stretch);
                    jobs.send(job).context(Kind::Internal, || "the workers are gone")?;
                }
            }
            Ok(())
        };
        let mut reader = TreeReader::new(work.packs.clone());
        let planner = Planner::new(&hasher, work.target);
        let planned = work.runtime.block_on(planner.plan(tree, &mut reader, &mut hand_out));
        if let Err(e) = planned {
            shared.fail(e);
        }
        drop(jobs);
    });
    let failure = shared.failure.into_inner().unwrap_or_else(PoisonError::into_inner);
    match failure {
        Some(e) => Err(e),
        None => {
            let finishing = shared.finishing.into_inner().unwrap_or_else(PoisonError::into_inner);
            if finishing.alive != 0 {
                return Err(Error::new(Kind::Internal, "not every file was written"));
            }
            Ok(finishing.manifest)
        }
    }
}

/// What the threads share.
struct Shared<'a, W> {
    work: &'a Work<'a>,
    hasher: &'a BlockHasher,
    finishing: Mutex<Finishing<W>>,
    /// A window ended, or something failed.
    changed: Condvar,
    /// The first failure.
    failure: Mutex<Option<Error>>,
    failed: AtomicBool,
}

/// Windows become complete in any order and are put together in their own.
struct Finishing<W> {
    /// The window whose turn it is.
    next: u64,
    done: BTreeMap<u64, Arc<Window>>,
    /// How many windows were begun and not put together yet.
    alive: usize,
    /// Of the file that the last window ended in, up to there.
    crc: u32,
    manifest: ManifestWriter<W>,
}

impl<W: Write + Send> Shared<'_, W> {
    fn lock(&self) -> MutexGuard<'_, Finishing<W>> {
        self.finishing.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes a failure: the first is the one that is told, but for one that only says that another
    /// thread has failed, which may be noted before that thread's own.
    fn fail(&self, e: Error) {
        let mut failure = self.failure.lock().unwrap_or_else(PoisonError::into_inner);
        if failure.as_ref().is_none_or(|known| known.kind() == Kind::Interrupted) {
            *failure = Some(e);
        }
        drop(failure);
        self.failed.store(true, Ordering::Release);
        // Taken so that a planner about to wait doesn't miss this.
        drop(self.lock());
        self.changed.notify_all();
    }

    /// Whether to go on. The error matters only when nothing else failed before.
    fn check(&self) -> Result<()> {
        if self.failed.load(Ordering::Acquire) || self.work.stop.load(Ordering::Acquire) {
            return Err(Error::new(Kind::Interrupted, "the restore was stopped"));
        }
        Ok(())
    }

    /// Waits until another window may begin.
    fn begin(&self) -> Result<()> {
        let mut finishing = self.lock();
        loop {
            self.check()?;
            if finishing.alive < WINDOWS {
                finishing.alive += 1;
                return Ok(());
            }
            finishing = self.changed.wait(finishing).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// A worker. After a failure it takes jobs without doing them, so that the planner never waits
    /// for a place in the queue.
    fn run_jobs(&self, queue: &Mutex<Receiver<Job>>) {
        loop {
            let job = queue.lock().unwrap_or_else(PoisonError::into_inner).recv();
            let Ok(job) = job else { return };
            let run = || self.check().and_then(|()| self.run(&job));
            let result = catch_unwind(AssertUnwindSafe(run))
                .unwrap_or_else(|_| Err(Error::new(Kind::Internal, "a thread panicked")));
            if let Err(e) = result {
                self.fail(e);
            }
        }
    }

    fn run(&self, job: &Job) -> Result<()> {
        let window = &job.window;
        let wanted = window.wanted.get(job.wanted.clone()).unwrap_or_default();
        let Some(first) = wanted.first() else { return Ok(()) };
        let path_of = |w: &Wanted| {
            let part = window.parts.get(w.part as usize);
            String::from_utf8_lossy(part.map_or(&[][..], |part| &part.path)).into_owned()
        };
        let name = self.work.layout.pack(&job.backup, first.place.pack);
        let packs = self.work.packs;
        let raw = self
            .work
            .runtime
            .block_on(async {
                if let Some(stretch) = &job.stretch {
                    return stretch.frame(packs, first.place.frame).await;
                }
                let pack = packs.pack(&job.backup, first.place.pack).await?;
                pack.frame(packs.repository(), first.place.frame.into()).await
            })
            .map_err(|e| e.while_doing(format!("restore {}", path_of(first))))?;
        let mut written = 0;
        // Runs of one file mostly come one after the other, with a gap in between.
        let mut open = None;
        for run in wanted.chunk_by(|a, b| follows(*a, *b)) {
            written += self.write_run(window, run, &raw, &mut open).map_err(|what| match what {
                Unwritten::Damaged => {
                    let address = packs.repository().storage().address();
                    Error::new(
                        Kind::Damaged,
                        format!(
                            "{name} in {address} is damaged: frame {} doesn't hold the blocks of {} \
                             that the backup says it does",
                            first.place.frame,
                            run.first().map(path_of).unwrap_or_default()
                        ),
                    )
                }
                Unwritten::Failed(e) => e,
            })?;
        }
        self.work.progress.advance(written);
        if window.open_jobs.fetch_sub(1, Ordering::AcqRel) == 1 {
            self.finish(window.clone())?;
        }
        Ok(())
    }

    /// Checks the blocks of a run and writes them. Returns how many bytes they are. `open` is the
    /// part whose file is open, and the file.
    fn write_run(
        &self,
        window: &Window,
        run: &[Wanted],
        raw: &[u8],
        open: &mut Option<(u32, File)>,
    ) -> Result<u64, Unwritten> {
        let (Some(first), Some(last)) = (run.first(), run.last()) else { return Ok(0) };
        let part = window.parts.get(first.part as usize).ok_or(Unwritten::Damaged)?;
        for wanted in run {
            let (_, len) = part.block(wanted.index as usize);
            let start = wanted.place.offset as usize;
            let block = raw.get(start..start + len).ok_or(Unwritten::Damaged)?;
            if self.hasher.block(block) != wanted.hash {
                return Err(Unwritten::Damaged);
            }
            if let Some(crc) = window.crcs.get(part.blocks.start + wanted.index as usize) {
                crc.store(crc32_iscsi(block), Ordering::Relaxed);
            }
        }
        let (offset, _) = part.block(first.index as usize);
        let (last_offset, last_len) = part.block(last.index as usize);
        let start = first.place.offset as usize;
        let len = (last_offset - offset) as usize + last_len;
        let bytes = raw.get(start..start + len).ok_or(Unwritten::Damaged)?;
        let path = written_as(&part.path);
        let file = match open {
            Some((number, file)) if *number == first.part => file,
            _ => {
                let file = self.work.target.open_file(path).map_err(Unwritten::Failed)?;
                &mut open.insert((first.part, file)).1
            }
        };
        file.write_all_at(bytes, offset)
            .map_err(|e| Unwritten::Failed(self.work.target.error("write", path, e)))?;
        Ok(len as u64)
    }

    /// A window is complete: puts together what can be.
    fn finish(&self, window: Arc<Window>) -> Result<()> {
        let mut finishing = self.lock();
        finishing.done.insert(window.number, window);
        while let Some(window) = {
            let next = finishing.next;
            finishing.done.remove(&next)
        } {
            finishing.next += 1;
            finishing.alive -= 1;
            finishing.put_together(&window)?;
        }
        drop(finishing);
        self.changed.notify_all();
        Ok(())
    }
}

/// Why a run wasn't written.
enum Unwritten {
    /// The frame doesn't hold what it should.
    Damaged,
    /// It couldn't be.
    Failed(Error),
}

/// Whether `b` comes behind `a` both in the frame and in the same file.
fn follows(a: Wanted, b: Wanted) -> bool {
    a.part == b.part
        && a.index + 1 == b.index
        && a.place.offset as usize + BLOCK == b.place.offset as usize
}

impl<W: Write> Finishing<W> {
    /// The checksums of a window's files, from those of their blocks.
    fn put_together(&mut self, window: &Window) -> Result<()> {
        for part in &window.parts {
            let blocks = window.crcs.get(part.blocks.clone()).unwrap_or_default();
            for (index, block) in blocks.iter().enumerate() {
                let (_, len) = part.block(index);
                self.crc = crc::append(self.crc, block.load(Ordering::Relaxed), len);
            }
            if !part.ends_file {
                continue;
            }
            let crc = std::mem::take(&mut self.crc);
            if !is_rewritten(&part.path) {
                self.manifest
                    .file(&part.path, part.size, Utc::now(), crc)
                    .context(Kind::Local, || "write backup_manifest")?;
            }
        }
        Ok(())
    }
}
