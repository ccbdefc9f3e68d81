//! Making what was received durable: in every repository, for as long as it takes.
//!
//! A repository that can't be reached is tried again for ever; nothing is reported to the server
//! meanwhile, so its slot holds the WAL. What can't become right by waiting, other content under the
//! same name above all, ends the stream.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use tokio::{task::JoinSet, time::sleep};

use super::{
    super::store::{confirm, vanished},
    incoming::Chunk,
};
use crate::{
    error::{Error, Kind, Result},
    postgres::{SegmentName, WalFile},
    repo::{
        catalog::exists,
        repository::Names,
        sealed::SealedWriter,
        wal::{StoredSummary, WalObject, WalStore},
        wal_parts::{Part, seal_pieces},
    },
    storage::ObjectName,
};

const FIRST_PAUSE: Duration = Duration::from_millis(200);
const LONGEST_PAUSE: Duration = Duration::from_secs(10);

/// What a whole segment is made of.
#[derive(Debug, Clone)]
pub enum Content {
    /// What is in memory.
    Chunk(Arc<Chunk>),
    /// Parts that are stored and follow each other without a gap.
    Parts(Arc<Vec<Part>>),
}

/// The archives that all have to have it.
#[derive(Debug, Clone)]
pub struct Keeper {
    stores: Arc<Vec<WalStore>>,
}

impl Keeper {
    /// Keeps in each of these.
    pub fn new(stores: Vec<WalStore>) -> Self {
        Keeper { stores: Arc::new(stores) }
    }

    /// The archives.
    pub fn stores(&self) -> &[WalStore] {
        &self.stores
    }

    /// Stores a part.
    pub async fn part(&self, chunk: Arc<Chunk>) -> Result<Part> {
        let what = format!("store a part of {}", chunk.segment);
        let parts = self
            .in_all(&what, move |store| {
                let chunk = chunk.clone();
                async move { store.put_part(chunk.segment, chunk.range.from, chunk.pieces()).await }
            })
            .await?;
        parts.into_iter().next().ok_or_else(|| Error::new(Kind::Internal, "nothing to store in"))
    }

    /// Stores a whole segment, or makes sure that it is there with this content.
    pub async fn whole(
        &self,
        segment: SegmentName,
        content: Content,
        summary: StoredSummary,
    ) -> Result<()> {
        let summary = Arc::new(summary);
        let store = move |store: WalStore| {
            let (content, summary) = (content.clone(), summary.clone());
            async move { store_whole(&store, segment, &content, &summary).await }
        };
        self.in_all(&format!("store {segment}"), store).await.map(drop)
    }

    /// Removes the parts of a chunk that is stored otherwise by now, all but `kept`. A part with other
    /// bytes than the chunk has is somebody else's: an error, and it stays.
    pub async fn clean(&self, chunk: Arc<Chunk>, kept: Option<Part>) -> Result<()> {
        let what = format!("remove the parts of {}", chunk.segment);
        let clean = move |store: WalStore| {
            let (chunk, kept) = (chunk.clone(), kept.clone());
            async move {
                let mut parts = store.parts(chunk.segment).await?;
                parts.retain(|part| {
                    let is_inside =
                        chunk.range.from <= part.range.from && part.range.to <= chunk.range.to;
                    is_inside && kept.as_ref().is_none_or(|kept| kept.name != part.name)
                });
                check_parts(&store, &chunk, &parts)?;
                drop(chunk);
                remove(&store, parts).await
            }
        };
        self.in_all(&what, clean).await.map(drop)
    }

    /// Removes parts that a larger one or the whole segment has taken the place of.
    pub async fn remove(&self, segment: SegmentName, parts: Vec<Part>) -> Result<()> {
        let parts = Arc::new(parts);
        let remove = move |store: WalStore| {
            let parts = parts.clone();
            async move { remove(&store, parts.to_vec()).await }
        };
        self.in_all(&format!("remove parts of {segment}"), remove).await.map(drop)
    }

    /// Does the same in all repositories at once, in each until it succeeds.
    async fn in_all<T, F>(
        &self,
        what: &str,
        attempt: impl Fn(WalStore) -> F + Clone + Send + 'static,
    ) -> Result<Vec<T>>
    where
        T: Send + 'static,
        F: Future<Output = Result<T>> + Send,
    {
        let mut tasks = JoinSet::new();
        for store in self.stores.iter().cloned() {
            let (attempt, what) = (attempt.clone(), what.to_owned());
            tasks.spawn(async move { until_done(store, &what, attempt).await });
        }
        let mut results = Vec::with_capacity(self.stores.len());
        while let Some(done) = tasks.join_next().await {
            let died = |e| Error::new(Kind::Internal, format!("a task that stores WAL died: {e}"));
            results.push(done.map_err(died)??);
        }
        Ok(results)
    }
}

async fn until_done<T, F>(store: WalStore, what: &str, attempt: impl Fn(WalStore) -> F) -> Result<T>
where
    F: Future<Output = Result<T>>,
{
    let name = store.repository().name();
    let mut pause = FIRST_PAUSE;
    loop {
        match attempt(store.clone()).await {
            Ok(done) => return Ok(done),
            Err(e) if matches!(e.kind(), Kind::Repository | Kind::Denied) => {
                tracing::warn!("{what} in repository {name}: {e}; trying again");
            }
            Err(e) => return Err(e.while_doing(format!("{what} in repository {name}"))),
        }
        sleep(pause).await;
        pause = (pause * 2).min(LONGEST_PAUSE);
    }
}

/// That parts have what was received: their names tell.
pub fn check_parts(store: &WalStore, chunk: &Chunk, parts: &[Part]) -> Result<()> {
    for part in parts {
        let Some(WalObject::Part(_, range, stored)) = WalObject::parse(part.name.file_name())
        else {
            continue;
        };
        let Some(received) = chunk.checksum(range) else { continue };
        if received != stored {
            let address = store.repository().storage().address();
            let what = format!(
                "{} in {address} has other content: SHA-256 {stored}… is stored, {received}… was \
                 received",
                part.name
            );
            return Err(Error::new(Kind::Conflict, what).hint("the stored one was left as it is").hint(
                "two servers stream into the same place, or a server went back in time on the same \
                 timeline: give a copy a cluster name or a repository of its own",
            ));
        }
    }
    Ok(())
}

/// Removes parts, as many at once as the place is worth asking. What stays, as this host may not
/// remove or the place holds it, is of no harm.
async fn remove(store: &WalStore, parts: Vec<Part>) -> Result<()> {
    let at_once = store.repository().storage().capabilities().questions_at_once.max(1);
    let per_task = parts.len().div_ceil(at_once).max(1);
    let mut tasks = JoinSet::new();
    for some in parts.chunks(per_task) {
        let (store, some) = (store.clone(), some.to_vec());
        tasks.spawn(async move { store.remove_parts(&some).await });
    }
    let mut left = 0;
    while let Some(done) = tasks.join_next().await {
        left += done.unwrap_or(0);
    }
    if left > 0 {
        let name = store.repository().name();
        tracing::info!("{left} parts that aren't needed any more stay in repository {name}");
    }
    Ok(())
}

/// Stores a segment under its name; where that is taken by something damaged, beside it, as a push
/// does.
async fn store_whole(
    store: &WalStore,
    segment: SegmentName,
    content: &Content,
    summary: &StoredSummary,
) -> Result<()> {
    let file = WalFile::Segment(segment);
    let name = store.object_of(file, summary);
    // Where the storage overwrites, what is there is looked for before.
    let is_taken = store.repository().names() == Names::Content && store.has(file).await?;
    if !is_taken && create(store, &name, content, summary).await? {
        return store.prove_alone(file, &name).await;
    }
    let there = store.find(file).await?.ok_or_else(|| vanished(store, segment))?;
    let damage = match confirm(store, &there, summary).await {
        Err(e) if e.kind() == Kind::Damaged => e,
        confirmed => return confirmed,
    };
    store.repository().prove_present().await?;
    for attempt in 0..100 {
        let name = store.repair(file, summary, attempt);
        let stored = match exists(store.repository(), &name).await? {
            true => confirm(store, &name, summary).await,
            false => create(store, &name, content, summary).await.map(drop),
        };
        match stored {
            Err(e) if e.kind() == Kind::Damaged => {}
            stored => {
                tracing::warn!("{damage}; stored {segment} once more beside it");
                return stored;
            }
        }
    }
    Err(damage.hint("check the disk under the repository"))
}

/// Creates an object of this content; false when its name is taken.
async fn create(
    store: &WalStore,
    name: &ObjectName,
    content: &Content,
    summary: &StoredSummary,
) -> Result<bool> {
    let write = async {
        let mut writer = SealedWriter::create(store.repository(), name).await?;
        match content {
            Content::Chunk(chunk) => seal_pieces(&mut writer, chunk.pieces()).await?,
            Content::Parts(parts) => {
                for part in parts.iter() {
                    let mut bytes = Vec::new();
                    if store.copy_to(&part.name, &mut bytes).await?.is_none() {
                        return Err(vanished(store, &part.name));
                    }
                    seal_pieces(&mut writer, &[Bytes::from(bytes)]).await?;
                }
            }
        }
        writer.finish(&summary.to_bytes()?).await
    };
    match write.await {
        Ok(_) => Ok(true),
        Err(e) if e.kind() == Kind::Conflict => Ok(false),
        Err(e) => Err(e),
    }
}
