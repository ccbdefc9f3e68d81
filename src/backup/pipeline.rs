//! One stream in, many threads behind it.
//!
//! ```text
//! source ─▶ cutter ─▶ batches ─┬─▶ workers: hash, check, compress, seal ─┐
//!                              └─▶ the order they came in ───────────────┴─▶ store: packs, tree
//! ```
//!
//! The order is a short queue, so that reading, working and storing overlap and memory doesn't
//! depend on the size of the database: at most so many batches of some 256 KiB are on their way. A
//! pack that is complete becomes durable beside the next one being written.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::{Arc, Mutex, mpsc as std_mpsc},
};

use tokio::{
    runtime::Handle,
    sync::{mpsc, oneshot},
    task::JoinHandle,
};

use super::{
    cut::{Batch, Cutter},
    source::{Fed, Source, SourceEnd},
    tree::{Tree, TreeBuilder},
    work::{Job, Worked, Worker},
};
use crate::{
    error::{Error, Kind, Result},
    postgres::Lsn,
    progress::Progress,
    repo::{
        BackupId, Repository,
        layout::ClusterLayout,
        pack::{FIRST_LEAF_PACK, FrameFiller, FullFrame},
        sealed::{SealedWriter, Sealer},
        tree::BlockHasher,
    },
};

/// How many complete packs may be on their way to the disk beside the one being written.
const FINISHING: usize = 2;

/// What the pipeline has to know.
#[derive(Debug, Clone)]
pub struct Setup {
    /// Where packs go.
    pub repository: Repository,
    /// The cluster's names.
    pub layout: ClusterLayout,
    /// The backup.
    pub id: BackupId,
    /// How many workers.
    pub threads: usize,
    /// Where replay of the backup begins.
    pub start_lsn: Lsn,
    /// How many blocks a relation's file has at most, when pages carry checksums.
    pub segment_blocks: Option<u32>,
    /// Held by every thread that may still write an object; see [`super::commit::undo`].
    pub writing: mpsc::Sender<()>,
}

/// What has been stored.
#[derive(Debug)]
pub struct Stored {
    /// The tree of it.
    pub tree: Tree,
    /// Raw bytes by pack.
    pub packs: BTreeMap<u32, u64>,
    /// What the packs take in the repository, in bytes.
    pub stored: u64,
    /// What the source said, the first of it.
    pub warnings: Vec<String>,
}

/// How many warnings are kept and shown.
const WARNINGS: usize = 100;

/// Reads the source to its end, and stores all of it durably.
pub async fn run(
    source: &mut dyn Source,
    setup: Setup,
    progress: &Arc<dyn Progress>,
) -> Result<(Stored, SourceEnd)> {
    let hasher = BlockHasher::new(setup.repository.keyring());
    let threads = setup.threads.max(1);
    let (jobs, workers) = start_workers(threads, Worker::new(hasher.clone(), setup.start_lsn))?;
    let (queue, queued) = mpsc::channel(2 * threads + 2);
    let store = Store {
        repository: setup.repository.clone(),
        layout: setup.layout.clone(),
        id: setup.id.clone(),
        pack: None,
        leaf_pack: None,
        finishing: VecDeque::new(),
        packs: BTreeMap::new(),
        stored: 0,
        writing: setup.writing.clone(),
    };
    let tree = TreeBuilder::new(hasher, &setup.id);
    let runtime = Handle::current();
    let storing = tokio::task::spawn_blocking(move || runtime.block_on(store.run(tree, queued)));
    let mut dispatch = Dispatch { setup: &setup, jobs, queue, sealer: None, warnings: Vec::new() };
    let read = dispatch.read(source, progress.as_ref()).await;
    let warnings = dispatch.warnings;
    // Dropped here: what sends jobs and fills the queue, so that the threads end.
    drop((dispatch.jobs, dispatch.queue));
    let stored = storing.await.unwrap_or_else(|e| Err(died("store", &e)));
    for worker in workers {
        let _ = worker.join();
    }
    match (read, stored) {
        (Ok(end), Ok((tree, packs, stored))) => Ok((Stored { tree, packs, stored, warnings }, end)),
        // The stream breaks off when storing fails, so that is the cause.
        (Err(ReadError::QueueClosed) | Ok(_), Err(e)) => Err(e),
        (Err(ReadError::Failed(e)), _) => Err(e),
        (Err(ReadError::QueueClosed), Ok(_)) => {
            Err(Error::new(Kind::Internal, "storing ended before the stream did"))
        }
    }
}

fn died(what: &str, e: &tokio::task::JoinError) -> Error {
    Error::new(Kind::Internal, format!("the thread that was to {what} died: {e}"))
}

type Workers = Vec<std::thread::JoinHandle<()>>;

fn start_workers(threads: usize, worker: Worker) -> Result<(std_mpsc::Sender<Job>, Workers)> {
    let (jobs, receiver) = std_mpsc::channel();
    let receiver = Arc::new(Mutex::new(receiver));
    let workers = (0..threads)
        .map(|number| {
            let (worker, receiver) = (worker.clone(), receiver.clone());
            let name = format!("backup-{number}");
            std::thread::Builder::new().name(name).spawn(move || worker.run(&receiver))
        })
        .collect::<std::io::Result<_>>()
        .map_err(|e| Error::new(Kind::Local, "start a thread").because(e))?;
    Ok((jobs, workers))
}

/// A batch in the order it came in.
struct InOrder {
    /// The pack that begins with its frame.
    begins: Option<SealedWriter>,
    /// The frame's pack, its raw length, and whether it is the pack's last.
    frame: Option<(u32, u64, bool)>,
    worked: oneshot::Receiver<Result<Worked>>,
}

enum Message {
    Batch(Box<InOrder>),
    /// All of the stream has been passed on; without it the backup has failed elsewhere.
    End,
}

enum ReadError {
    Failed(Error),
    QueueClosed,
}

impl From<Error> for ReadError {
    fn from(e: Error) -> Self {
        ReadError::Failed(e)
    }
}

/// The reading end.
struct Dispatch<'a> {
    setup: &'a Setup,
    jobs: std_mpsc::Sender<Job>,
    queue: mpsc::Sender<Message>,
    /// Seals frames of the pack being filled.
    sealer: Option<Arc<Sealer>>,
    warnings: Vec<String>,
}

impl Dispatch<'_> {
    async fn read(
        &mut self,
        source: &mut dyn Source,
        progress: &dyn Progress,
    ) -> Result<SourceEnd, ReadError> {
        let mut cutter = Cutter::new(FrameFiller::new(0, 0), self.setup.segment_blocks);
        let end = loop {
            let fed = source.feed(&mut cutter).await?;
            for warning in cutter.take_warnings() {
                self.warn(warning, progress);
            }
            for batch in cutter.take_ready() {
                self.pass_on(batch).await?;
            }
            match fed {
                Fed::More(bytes) => progress.advance(bytes),
                Fed::End(end) => break end,
            }
        };
        for batch in cutter.finish()? {
            self.pass_on(batch).await?;
        }
        self.send(Message::End).await?;
        Ok(end)
    }

    fn warn(&mut self, warning: String, progress: &dyn Progress) {
        match self.warnings.len() {
            0..WARNINGS => {
                progress.warn(&warning);
                self.warnings.push(warning);
            }
            WARNINGS => {
                let message = "the server has more warnings; see its log";
                progress.warn(message);
                self.warnings.push(message.into());
            }
            _ => tracing::debug!("{warning}"),
        }
    }

    async fn pass_on(&mut self, batch: Batch) -> Result<(), ReadError> {
        let mut begins = None;
        if let Some(frame) = &batch.frame
            && frame.frame == 0
        {
            let name = self.setup.layout.pack(&self.setup.id, frame.pack);
            let writer = SealedWriter::create(&self.setup.repository, &name).await?;
            self.sealer = Some(Arc::new(writer.sealer().clone()));
            begins = Some(writer);
        }
        let frame = batch.frame.as_ref();
        let frame = frame.map(|f| (f.pack, f.raw.len() as u64, f.ends_pack));
        let sealer = frame.and(self.sealer.clone());
        let (done, worked) = oneshot::channel();
        self.send(Message::Batch(Box::new(InOrder { begins, frame, worked }))).await?;
        // Workers live as long as this end does; if all of them panicked, `worked` says so.
        let _ = self.jobs.send(Job { batch, sealer, done });
        Ok(())
    }

    async fn send(&self, message: Message) -> Result<(), ReadError> {
        self.queue.send(message).await.map_err(|_| ReadError::QueueClosed)
    }
}

/// The storing end.
struct Store {
    repository: Repository,
    layout: ClusterLayout,
    id: BackupId,
    pack: Option<SealedWriter>,
    leaf_pack: Option<SealedWriter>,
    finishing: VecDeque<JoinHandle<Result<u64>>>,
    packs: BTreeMap<u32, u64>,
    stored: u64,
    writing: mpsc::Sender<()>,
}

impl Store {
    async fn run(
        mut self,
        mut tree: TreeBuilder,
        mut queue: mpsc::Receiver<Message>,
    ) -> Result<(Tree, BTreeMap<u32, u64>, u64)> {
        loop {
            match queue.recv().await {
                Some(Message::Batch(batch)) => self.batch(*batch, &mut tree).await?,
                Some(Message::End) => break,
                None => return Err(Error::new(Kind::Interrupted, "the backup was broken off")),
            }
        }
        if let Some(pack) = self.pack.take() {
            self.finish(pack).await?;
        }
        let (tree, frames) = tree.finish()?;
        for frame in frames {
            self.leaf_frame(frame).await?;
        }
        if let Some(pack) = self.leaf_pack.take() {
            self.finish(pack).await?;
        }
        while let Some(pack) = self.finishing.pop_front() {
            self.stored += pack.await.unwrap_or_else(|e| Err(died("finish a pack", &e)))?;
        }
        Ok((tree, self.packs, self.stored))
    }

    async fn batch(&mut self, batch: InOrder, tree: &mut TreeBuilder) -> Result<()> {
        let InOrder { begins, frame, worked } = batch;
        let worked = worked
            .await
            .unwrap_or_else(|_| Err(Error::new(Kind::Internal, "a worker thread died")))?;
        if let Some(begins) = begins
            && let Some(before) = self.pack.replace(begins)
        {
            self.finish(before).await?;
        }
        if let (Some(sealed), Some((number, raw, ends))) = (worked.frame, frame) {
            *self.packs.entry(number).or_default() += raw;
            if let Some(pack) = &mut self.pack {
                pack.write(sealed).await?;
            }
            if let Some(pack) = self.pack.take_if(|_| ends) {
                self.finish(pack).await?;
            }
        }
        tree.follow(worked.items, &worked.looked)?;
        for frame in tree.take_full() {
            self.leaf_frame(frame).await?;
        }
        Ok(())
    }

    /// Seals and stores a frame of leaves. They are a thousandth of the data, so this needs no
    /// other thread.
    async fn leaf_frame(&mut self, frame: FullFrame) -> Result<()> {
        debug_assert!(frame.pack >= FIRST_LEAF_PACK);
        *self.packs.entry(frame.pack).or_default() += frame.raw.len() as u64;
        let mut pack = match self.leaf_pack.take() {
            Some(pack) => pack,
            None => {
                let name = self.layout.pack(&self.id, frame.pack);
                SealedWriter::create(&self.repository, &name).await?
            }
        };
        pack.seal(&frame.raw).await?;
        if frame.ends_pack {
            return self.finish(pack).await;
        }
        self.leaf_pack = Some(pack);
        Ok(())
    }

    /// Makes a pack durable on a thread beside this one.
    async fn finish(&mut self, pack: SealedWriter) -> Result<()> {
        if self.finishing.len() >= FINISHING
            && let Some(oldest) = self.finishing.pop_front()
        {
            self.stored += oldest.await.unwrap_or_else(|e| Err(died("finish a pack", &e)))?;
        }
        let (runtime, writing) = (Handle::current(), self.writing.clone());
        self.finishing.push_back(tokio::task::spawn_blocking(move || {
            let size = runtime.block_on(pack.finish(&[]));
            drop(writing);
            size
        }));
        Ok(())
    }
}
