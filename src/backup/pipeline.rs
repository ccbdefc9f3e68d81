//! One stream in, many threads behind it, and a lane for each repository.
//!
//! ```text
//!                      ┌─▶ lane: hashes ─▶ tree: changed? ─▶ frames ─▶ seals ─▶ packs
//! source ─▶ cutter ─▶ batches
//!                      └─▶ lane: …
//! ```
//!
//! The cluster is read once. Each repository has keys, and perhaps a base, of its own, so what is
//! made of a batch is too: the lanes share only the batches and the threads, which hash, check,
//! compress and seal ([`super::work`]). A lane that fails ends; the others go on.
//!
//! All queues are short, so that reading, working and storing overlap and memory doesn't depend on
//! the size of the database: at most so many batches of some 256 KiB are on their way in a lane. A
//! pack that is complete becomes durable beside the next one being written.

use std::sync::{Arc, Mutex, mpsc as std_mpsc};

use tokio::{
    runtime::Handle,
    sync::{mpsc, oneshot},
    task::JoinHandle,
};

use super::{
    base::Base,
    cut::{Batch, Cutter},
    source::{Fed, Source, SourceEnd},
    store::{Store, StoredPacks},
    tree::{Tree, TreeBuilder},
    work::{Job, Looked, work},
};
use crate::{
    error::{Error, Kind, Result},
    postgres::Lsn,
    progress::Progress,
    repo::{
        BackupId, Repository,
        layout::ClusterLayout,
        tree::{BackupTable, BlockHasher},
    },
};

/// What all lanes have in common.
#[derive(Debug, Clone)]
pub struct Setup {
    /// The cluster's names.
    pub layout: ClusterLayout,
    /// The backup.
    pub id: BackupId,
    /// How many threads work.
    pub threads: usize,
    /// Where replay of the backup begins.
    pub start_lsn: Lsn,
    /// How many blocks a relation's file has at most, when pages carry checksums.
    pub segment_blocks: Option<u32>,
}

/// Where the backup goes, and over what.
pub struct Lane {
    /// The repository.
    pub repository: Repository,
    /// The tree of the base backup; a full one has none.
    pub base: Option<Base>,
    /// What backup numbers mean in the base; the new one is number 0.
    pub table: BackupTable,
    /// Held by every thread that may still write an object; see [`super::commit::undo`].
    pub writing: mpsc::Sender<()>,
}

/// What has been stored in one repository.
#[derive(Debug)]
pub struct Stored {
    /// The tree of it.
    pub tree: Tree,
    /// Its packs.
    pub packs: StoredPacks,
}

/// What was read.
#[derive(Debug)]
pub struct Read {
    /// How the source ended.
    pub end: SourceEnd,
    /// How many bytes it sent.
    pub sent: u64,
    /// What it warned of, the first of it.
    pub warnings: Vec<String>,
    /// What became of each lane, in their order.
    pub lanes: Vec<Result<Stored>>,
}

/// How many warnings are kept and shown.
const WARNINGS: usize = 100;

/// Reads the source to its end, and stores all of it durably in each lane. An error is the source's,
/// or of every lane.
pub async fn run(
    source: &mut dyn Source,
    setup: &Setup,
    lanes: Vec<Lane>,
    progress: &Arc<dyn Progress>,
) -> Result<Read> {
    let (jobs, workers) = start_workers(setup)?;
    let mut running = Vec::with_capacity(lanes.len());
    for lane in lanes {
        running.push(start_lane(lane, setup, &jobs));
    }
    let queues = running.iter_mut().map(|lane| lane.queue.take()).collect();
    let hashers = running.iter().map(|lane| lane.hasher.clone()).collect();
    let mut dispatch = Dispatch { jobs, queues, hashers, sent: 0, warnings: Vec::new() };
    let read = dispatch.read(source, setup, progress.as_ref()).await;
    let Dispatch { jobs, sent, warnings, .. } = dispatch;
    drop(jobs);
    let mut ended = Vec::with_capacity(running.len());
    for lane in running {
        let stored = lane.storing.await;
        ended.push(stored.unwrap_or_else(|e| {
            Err(Error::new(Kind::Internal, format!("the thread that was to store died: {e}")))
        }));
    }
    for worker in workers {
        let _ = worker.join();
    }
    match read {
        Ok(end) => Ok(Read { end, sent, warnings, lanes: ended }),
        Err(ReadError::Failed(e)) => Err(e),
        // The stream breaks off when storing fails everywhere, so that is the cause.
        Err(ReadError::NoLane) => {
            let first = ended.into_iter().find_map(Result::err);
            Err(first.unwrap_or_else(|| {
                Error::new(Kind::Internal, "storing ended before the stream did")
            }))
        }
    }
}

type Workers = Vec<std::thread::JoinHandle<()>>;

fn start_workers(setup: &Setup) -> Result<(std_mpsc::Sender<Job>, Workers)> {
    let (jobs, receiver) = std_mpsc::channel();
    let receiver = Arc::new(Mutex::new(receiver));
    let workers = (0..setup.threads.max(1))
        .map(|number| {
            let (start_lsn, receiver) = (setup.start_lsn, receiver.clone());
            let name = format!("backup-{number}");
            std::thread::Builder::new().name(name).spawn(move || work(&receiver, start_lsn))
        })
        .collect::<std::io::Result<_>>()
        .map_err(|e| Error::new(Kind::Local, "start a thread").because(e))?;
    Ok((jobs, workers))
}

/// A batch in the order it came in.
pub enum Message {
    /// The batch, and what is found out about it.
    Batch(Arc<Batch>, oneshot::Receiver<Result<Looked>>),
    /// All of the stream has been passed on; without it the backup has failed elsewhere.
    End,
}

/// A lane at work.
struct Running {
    queue: Option<mpsc::Sender<Message>>,
    hasher: Arc<BlockHasher>,
    storing: JoinHandle<Result<Stored>>,
}

fn start_lane(lane: Lane, setup: &Setup, jobs: &std_mpsc::Sender<Job>) -> Running {
    let Lane { repository, base, table, writing } = lane;
    let hasher = Arc::new(BlockHasher::new(repository.keyring()));
    let on_their_way = 2 * setup.threads.max(1) + 2;
    let (queue, queued) = mpsc::channel(on_their_way);
    let tree = TreeBuilder::new(hasher.clone(), base, table);
    let store = Store::new(repository, setup, jobs.clone(), on_their_way, writing);
    let runtime = Handle::current();
    let storing =
        tokio::task::spawn_blocking(move || runtime.block_on(follow(store, tree, queued)));
    Running { queue: Some(queue), hasher, storing }
}

/// The storing end of a lane.
async fn follow(
    mut store: Store,
    mut tree: TreeBuilder,
    mut queue: mpsc::Receiver<Message>,
) -> Result<Stored> {
    loop {
        match queue.recv().await {
            Some(Message::Batch(batch, looked)) => {
                let looked = looked
                    .await
                    .unwrap_or_else(|_| Err(Error::new(Kind::Internal, "a worker thread died")))?;
                tree.follow(&batch, &looked).await?;
                for frame in tree.take_full() {
                    store.frame(frame).await?;
                }
            }
            Some(Message::End) => break,
            None => return Err(Error::new(Kind::Interrupted, "the backup was broken off")),
        }
    }
    let (tree, frames) = tree.finish().await?;
    for frame in frames {
        store.frame(frame).await?;
    }
    Ok(Stored { tree, packs: store.finish().await? })
}

enum ReadError {
    Failed(Error),
    /// All lanes have ended.
    NoLane,
}

impl From<Error> for ReadError {
    fn from(e: Error) -> Self {
        ReadError::Failed(e)
    }
}

/// The reading end.
struct Dispatch {
    jobs: std_mpsc::Sender<Job>,
    /// Of the lanes; those that have ended have none.
    queues: Vec<Option<mpsc::Sender<Message>>>,
    hashers: Vec<Arc<BlockHasher>>,
    sent: u64,
    warnings: Vec<String>,
}

impl Dispatch {
    /// Reads to the end. The lanes' queues are closed when this returns.
    async fn read(
        &mut self,
        source: &mut dyn Source,
        setup: &Setup,
        progress: &dyn Progress,
    ) -> Result<SourceEnd, ReadError> {
        let read = self.read_all(source, setup, progress).await;
        self.queues.clear();
        read
    }

    async fn read_all(
        &mut self,
        source: &mut dyn Source,
        setup: &Setup,
        progress: &dyn Progress,
    ) -> Result<SourceEnd, ReadError> {
        let mut cutter = Cutter::new(setup.segment_blocks);
        let end = loop {
            let fed = source.feed(&mut cutter).await?;
            for warning in cutter.take_warnings() {
                self.warn(warning, progress);
            }
            for batch in cutter.take_ready() {
                self.pass_on(batch).await?;
            }
            match fed {
                Fed::More(bytes) => {
                    self.sent += bytes;
                    progress.advance(bytes);
                }
                Fed::End(end) => break end,
            }
        };
        for batch in cutter.finish()? {
            self.pass_on(batch).await?;
        }
        for queue in self.queues.iter().flatten() {
            let _ = queue.send(Message::End).await;
        }
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
        let batch = Arc::new(batch);
        for (slot, hasher) in self.queues.iter_mut().zip(&self.hashers) {
            let Some(queue) = slot else { continue };
            let (done, looked) = oneshot::channel();
            if queue.send(Message::Batch(batch.clone(), looked)).await.is_err() {
                *slot = None;
                continue;
            }
            let (batch, hasher) = (batch.clone(), hasher.clone());
            // Workers live as long as this end does; if all of them panicked, `looked` says so.
            let _ = self.jobs.send(Job::Look { batch, hasher, done });
        }
        if self.queues.iter().all(Option::is_none) { Err(ReadError::NoLane) } else { Ok(()) }
    }
}
