//! Making what was received durable: in every repository, for as long as it takes.
//!
//! A repository that can't be reached is tried again; nothing is reported to the server meanwhile, so
//! its slot holds the WAL. Where there are others, it is left *behind* after a while, so that they get
//! theirs, and the server still hears of nothing: when it is back, a new session begins with what it
//! lacks ([`Setbacks`]). What keeps failing may have been mended for whoever comes anew, with credentials or a
//! certificate that were replaced; so it is tried with the repository opened once more, and where that
//! helps a new session begins. What can't become right by waiting, other content under the same name
//! above all, ends the stream.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use bytes::Bytes;
use sha2::{Digest, Sha256};
use tokio::{
    task::JoinSet,
    time::{Instant, sleep},
};

use super::{super::push::open_store, incoming::Chunk, setbacks::Setbacks};
use crate::{
    config::RepositorySettings,
    error::{Error, Kind, Result},
    postgres::{SegmentName, WalFile},
    repo::{
        SystemId,
        layout::ClusterLayout,
        opening::{PATIENCE, within_patience},
        repository::Names,
        sealed::SealedWriter,
        wal::{StoredSummary, WalObject, WalStore},
        wal_parts::{LONGEST_PART, Part, seal_pieces},
        wal_taken::{Contents, settle, vanished},
    },
    steps::reached,
    storage::ObjectName,
};

const FIRST_PAUSE: Duration = Duration::from_millis(200);
const LONGEST_PAUSE: Duration = Duration::from_secs(10);

/// What a whole segment is made of.
#[derive(Debug, Clone)]
pub enum Content {
    /// What is in memory.
    Chunk(Arc<Chunk>),
    /// Parts that are stored and together have all of it: of each of them, from this byte on.
    Parts(Arc<Vec<(Part, usize)>>),
}

impl Content {
    /// What parts, sorted by their ranges, have together.
    pub fn of_parts(parts: Vec<Part>) -> Self {
        let mut at = 0;
        let mut taken = Vec::new();
        for part in parts {
            if part.range.to <= at || part.range.from > at {
                continue;
            }
            let skip = (at - part.range.from) as usize;
            at = part.range.to;
            taken.push((part, skip));
        }
        Content::Parts(Arc::new(taken))
    }
}

/// What a job came to.
#[derive(Debug)]
pub struct Kept<T> {
    /// The same from each repository.
    pub what: T,
    /// Whether every repository has it, and none was left behind.
    pub everywhere: bool,
}

/// The archives that all have to have it.
#[derive(Debug, Clone)]
pub struct Keeper {
    stores: Arc<Vec<Store>>,
    /// Repositories that couldn't be opened.
    closed: Arc<Vec<Closed>>,
    /// All of them.
    settings: Arc<Vec<RepositorySettings>>,
    setbacks: Setbacks,
}

#[derive(Debug)]
struct Store {
    archive: WalStore,
    /// It holds up the others no longer.
    is_behind: AtomicBool,
    /// Opened anew it does what this one can't.
    is_stale: AtomicBool,
}

/// A repository that couldn't be opened, and what is to be opened in it.
#[derive(Debug)]
pub struct Closed {
    /// The repository.
    pub settings: RepositorySettings,
    /// The cluster's layout.
    pub layout: ClusterLayout,
    /// The system.
    pub system: SystemId,
}

impl Keeper {
    /// Keeps in each of `stores`, of which there is one at least; `repositories` are theirs, and those of `closed`.
    pub fn new(
        stores: Vec<WalStore>,
        closed: Vec<Closed>,
        repositories: &[&RepositorySettings],
        setbacks: Setbacks,
    ) -> Self {
        let store = |archive| Store { archive, is_behind: false.into(), is_stale: false.into() };
        let stores = stores.into_iter().map(store).collect();
        let settings = repositories.iter().copied().cloned().collect();
        let (stores, closed, settings) = (Arc::new(stores), Arc::new(closed), Arc::new(settings));
        Keeper { stores, closed, settings, setbacks }
    }

    /// The archives.
    pub fn archives(&self) -> impl Iterator<Item = &WalStore> {
        self.stores.iter().map(|store| &store.archive)
    }

    /// Whether a repository has been behind from the start.
    pub fn is_any_closed(&self) -> bool {
        !self.closed.is_empty()
    }

    /// Whether a repository is behind.
    pub fn is_any_behind(&self) -> bool {
        self.is_any_closed() || self.stores.iter().any(|store| store.is_behind())
    }

    /// Whether a repository has to be opened anew.
    pub fn is_any_stale(&self) -> bool {
        self.stores.iter().any(Store::is_stale)
    }

    /// A repository's archive, opened anew.
    async fn opened(&self, archive: &WalStore) -> Option<WalStore> {
        let name = archive.repository().name();
        let settings = self.settings.iter().find(|settings| settings.name == name)?;
        open_store(settings, archive.layout(), archive.system()).await.ok()
    }

    /// Whether a repository that is behind, and isn't to be left alone, answers again: as soon as a session waits for.
    pub async fn one_is_back(&self) -> bool {
        let mut back = None;
        let is_due = |name: &str| self.setbacks.pause(name).is_zero();
        for store in self.stores.iter().filter(|store| store.is_behind()) {
            let name = store.archive.repository().name();
            let opening = self.opened(&store.archive);
            if is_due(name) && matches!(within_patience(opening).await, Some(Some(_))) {
                back = Some(name);
            }
        }
        for closed in self.closed.iter().filter(|closed| is_due(&closed.settings.name)) {
            let opening = open_store(&closed.settings, &closed.layout, closed.system);
            if matches!(within_patience(opening).await, Some(Ok(_))) {
                back = Some(&closed.settings.name);
            }
        }
        if let Some(name) = back {
            tracing::info!("the repository {name} is back: it gets what it lacks");
        }
        back.is_some()
    }

    /// Stores a part.
    pub async fn part(&self, chunk: Arc<Chunk>) -> Result<Kept<Part>> {
        let what = format!("store a part of {}", chunk.segment);
        let setbacks = self.setbacks.clone();
        let store = move |store: WalStore| {
            let (chunk, setbacks) = (chunk.clone(), setbacks.clone());
            async move {
                let part = store.put_part(chunk.segment, chunk.range.from, chunk.pieces()).await?;
                reached("stream: part stored");
                setbacks.is_over(store.repository().name());
                Ok(part)
            }
        };
        self.in_all(&what, store).await
    }

    /// Stores a whole segment, or makes sure that it is there with this content.
    pub async fn whole(
        &self,
        segment: SegmentName,
        content: Content,
        summary: StoredSummary,
    ) -> Result<Kept<()>> {
        let (summary, setbacks) = (Arc::new(summary), self.setbacks.clone());
        let store = move |store: WalStore| {
            let (mut content, summary) = (content.clone(), summary.clone());
            let setbacks = setbacks.clone();
            async move {
                store_whole(&store, segment, &mut content, &summary).await?;
                setbacks.is_over(store.repository().name());
                Ok(())
            }
        };
        self.in_all(&format!("store {segment}"), store).await
    }

    /// Stores a chunk in its last form: as the segment, if it is one. Otherwise as a part, which is
    /// returned, and if the segment is complete with it, then the segment from all its `chunks`.
    pub async fn chunk(
        &self,
        chunk: Arc<Chunk>,
        summary: Option<StoredSummary>,
        mut chunks: Vec<Part>,
    ) -> Result<Kept<Option<Part>>> {
        let segment = chunk.segment;
        match summary {
            Some(summary) if chunk.range.from == 0 => {
                let kept = self.whole(segment, Content::Chunk(chunk), summary).await?;
                Ok(Kept { what: None, everywhere: kept.everywhere })
            }
            summary => {
                let Kept { what: part, everywhere } = self.part(chunk).await?;
                let Some(summary) = summary else {
                    return Ok(Kept { what: Some(part), everywhere });
                };
                chunks.push(part);
                let content = Content::of_parts(chunks.clone());
                let kept = self.whole(segment, content, summary).await?;
                self.remove(segment, chunks).await?;
                Ok(Kept { what: None, everywhere: everywhere && kept.everywhere })
            }
        }
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

    /// Does the same in all repositories at once, in each until it succeeds or is left behind.
    async fn in_all<T, F>(
        &self,
        what: &str,
        attempt: impl Fn(WalStore) -> F + Clone + Send + 'static,
    ) -> Result<Kept<T>>
    where
        T: Send + 'static,
        F: Future<Output = Result<T>> + Send,
    {
        let mut tasks = JoinSet::new();
        for index in 0..self.stores.len() {
            let (keeper, attempt, what) = (self.clone(), attempt.clone(), what.to_owned());
            tasks.spawn(async move { keeper.until_done(index, &what, attempt).await });
        }
        let (mut kept, mut everywhere) = (None, !self.is_any_closed());
        while let Some(done) = tasks.join_next().await {
            let died = |e| Error::new(Kind::Internal, format!("a task that stores WAL died: {e}"));
            match done.map_err(died)?? {
                Some(done) => kept = Some(done),
                None => everywhere = false,
            }
        }
        let none = || Error::new(Kind::Repository, "every repository was left behind");
        Ok(Kept { what: kept.ok_or_else(none)?, everywhere })
    }

    /// `None` when the repository is behind.
    async fn until_done<T, F>(
        &self,
        index: usize,
        what: &str,
        attempt: impl Fn(WalStore) -> F,
    ) -> Result<Option<T>>
    where
        F: Future<Output = Result<T>>,
    {
        let Some(store) = self.stores.get(index) else { return Ok(None) };
        let name = store.archive.repository().name();
        let (begin, mut pause) = (Instant::now(), FIRST_PAUSE);
        while !store.is_behind() {
            let e = match attempt(store.archive.clone()).await {
                Ok(done) => return Ok(Some(done)),
                Err(e) if is_outage(&e) => e,
                Err(e) => return Err(e.while_doing(format!("{what} in repository {name}"))),
            };
            let is_last = || {
                let others = self.stores.iter().enumerate().filter(|(other, _)| *other != index);
                others.into_iter().all(|(_, store)| store.is_behind())
            };
            if begin.elapsed() >= PATIENCE && !is_last() {
                store.is_behind.store(true, Ordering::Relaxed);
                self.setbacks.met(name);
                tracing::warn!(
                    "{what} in repository {name}: {e}; the others go on without it, and nothing is \
                     reported as stored until it has caught up"
                );
                break;
            }
            if (store.is_stale() || begin.elapsed() >= PATIENCE)
                && let Some(anew) = self.opened(&store.archive).await
                && let Ok(done) = attempt(anew).await
            {
                tracing::info!("{what} in repository {name}: {e}; opened anew it works");
                store.is_stale.store(true, Ordering::Relaxed);
                return Ok(Some(done));
            }
            tracing::warn!("{what} in repository {name}: {e}; trying again");
            sleep(pause).await;
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
        Ok(None)
    }
}

impl Store {
    fn is_behind(&self) -> bool {
        self.is_behind.load(Ordering::Relaxed)
    }

    fn is_stale(&self) -> bool {
        self.is_stale.load(Ordering::Relaxed)
    }
}

/// Whether a repository may be there later.
pub fn is_outage(e: &Error) -> bool {
    matches!(e.kind(), Kind::Repository | Kind::Denied)
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
    reached("stream: parts are being removed");
    let left = store.remove_parts(&parts).await;
    reached("stream: parts removed");
    if left > 0 {
        let name = store.repository().name();
        tracing::info!("{left} parts that aren't needed any more stay in repository {name}");
    }
    Ok(())
}

/// Stores a segment under its name; where that is taken by something damaged, beside it, as a push
/// does.
pub async fn store_whole(
    store: &WalStore,
    segment: SegmentName,
    content: &mut Content,
    summary: &StoredSummary,
) -> Result<()> {
    let file = WalFile::Segment(segment);
    let name = store.object_of(file, summary);
    // Where the storage overwrites, what is there is looked for before; and where there may be no parts
    // any more, as another receiver has made the segment of them.
    let may_be_there =
        store.repository().names() == Names::Content || matches!(content, Content::Parts(_));
    let is_taken = may_be_there && store.has(file).await?;
    if !is_taken && content.create(store, &name, summary).await? {
        reached("stream: segment stored");
        return store.prove_alone(file, &name).await;
    }
    settle(content, store, file, summary).await.map(drop)
}

#[async_trait]
impl Contents for Content {
    async fn create(
        &mut self,
        store: &WalStore,
        name: &ObjectName,
        summary: &StoredSummary,
    ) -> Result<bool> {
        match self.write(store, name, summary).await {
            Ok(()) => Ok(true),
            Err(e) if e.kind() == Kind::Conflict => Ok(false),
            Err(e) => Err(e),
        }
    }
}

impl Content {
    async fn write(
        &self,
        store: &WalStore,
        name: &ObjectName,
        summary: &StoredSummary,
    ) -> Result<()> {
        let mut writer = SealedWriter::create(store.repository(), name).await?;
        match self {
            Content::Chunk(chunk) => seal_pieces(&mut writer, chunk.pieces()).await?,
            Content::Parts(parts) => {
                let mut digest = Sha256::new();
                for (part, skip) in parts.iter() {
                    let Some(bytes) = store.read_at_most(&part.name, LONGEST_PART).await? else {
                        return Err(vanished(store, &part.name));
                    };
                    let bytes = Bytes::from(bytes);
                    let bytes = bytes.slice((*skip).min(bytes.len())..);
                    digest.update(&bytes);
                    seal_pieces(&mut writer, &[bytes]).await?;
                }
                // What has the segment's name stays: it must be all of it.
                if hex::encode(digest.finalize()) != summary.sha256 {
                    let what = format!("the parts don't have all that {name} is to have");
                    return Err(Error::new(Kind::Repository, what));
                }
            }
        }
        writer.finish(&summary.to_bytes()?).await.map(drop)
    }
}
