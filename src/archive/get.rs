//! `archive-get`: one file from the repositories to where PostgreSQL asked for it.
//!
//! For PostgreSQL "not there" means that recovery ends here: it promotes, and what came after is
//! lost. So that answer is given only when every configured repository has proven, in this process,
//! that it is there and itself and has no such file. Everything else that isn't the file is an
//! error. What passes by itself, a disk that isn't mounted yet, is tried again for a while.

use std::{
    fs::File,
    io::{Read, Seek, SeekFrom},
    path::Path,
    time::Duration,
};

use tokio::time::Instant;

use super::{
    data_directory::DataDirectory,
    destination::Destination,
    fetch_ahead::FetchAhead,
    partial,
    source::check_header,
    spool::{Spool, Taken},
    tablespaces::{self, Tablespaces},
};
use crate::{
    config::{ClusterSettings, RepositorySettings},
    error::{Context, Error, Kind, Result},
    postgres::{
        Lsn, SegmentName, SegmentSize, WalFile,
        wal::{SegmentHeader, scan_file},
    },
    repo::{
        Repository,
        catalog::exists,
        layout::ClusterLayout,
        opening::Openings,
        wal::{WalStore, longest},
        wal_floor::Floors,
    },
    steps::reached,
    storage::ObjectName,
};

const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(5);

/// How long a segment that another process fetches is waited for before it is fetched here, too.
const FETCHED_BY_ANOTHER: Duration = Duration::from_secs(5);

/// What a get came to, when it could tell.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Got {
    /// The file is where it was asked for.
    Served {
        /// The repository it came from.
        repository: String,
        /// The object it came from; `<segment>.part.*` for the stream's parts.
        object: String,
    },
    /// It is certainly in none of the repositories.
    Absent,
}

/// How a get is done.
#[derive(Debug, Clone, Default)]
pub struct GetOptions {
    /// For a copy that is to leave everything alone that isn't its own: a segment in which a
    /// tablespace is made is an error ([`Kind::Conflict`]).
    pub refuse_tablespaces: bool,
    /// How to fetch what recovery asks for next, if that is to be done.
    pub ahead: Option<FetchAhead>,
}

/// Writes `file` to `destination`, the path that PostgreSQL gives for `%p`.
///
/// A repository that can't be reached (an error of [`Kind::Repository`]) is tried again until
/// [`ClusterSettings::outage_wait`] has passed. One that refuses ([`Kind::Denied`]), or has no WAL of
/// the system at all ([`Kind::Wal`]), is set up wrongly: that is no outage. A damaged file is looked for in the other
/// repositories and is then [`Kind::Damaged`], never [`Got::Absent`].
pub async fn get(
    repositories: &[&RepositorySettings],
    cluster: &ClusterSettings,
    file: WalFile,
    destination: &Path,
    options: &GetOptions,
) -> Result<Got> {
    if repositories.is_empty() {
        return Err(Error::new(Kind::Usage, "no repository is configured"));
    }
    let directory = DataDirectory::of_wal_path(destination, cluster)?;
    let layout = ClusterLayout::new(&cluster.name)?;
    let tablespaces = match options.refuse_tablespaces {
        true => Tablespaces::New,
        false => Tablespaces::OfAnother,
    };
    let request = Request { file, destination, directory: &directory, tablespaces, sync: true };
    let ahead = options.ahead.as_ref();
    let spool =
        ahead.and_then(|ahead| Some((ahead, ahead.spool(&request, cluster, repositories)?)));
    if let (WalFile::Segment(segment), Some((ahead, spool))) = (file, &spool)
        && let Some(taken) = request.take(spool, segment).await?
    {
        ahead.go_on(spool, segment);
        return Ok(served(taken.repository, taken.object));
    }
    let mut opened: Vec<Option<Repository>> = vec![None; repositories.len()];
    let deadline = Instant::now() + cluster.outage_wait;
    let mut pause = FIRST_PAUSE;
    loop {
        let failure = match request.attempt(repositories, &layout, &mut opened).await? {
            Ok(got) => {
                if let (WalFile::Segment(segment), Some((ahead, spool)), Got::Served { .. }) =
                    (file, &spool, &got)
                {
                    ahead.go_on(spool, segment);
                }
                return Ok(got);
            }
            Err(failure) => failure,
        };
        if !failure.may_pass || Instant::now() >= deadline {
            return Err(failure.error);
        }
        tracing::warn!("{}; trying again", failure.error);
        tokio::time::sleep_until(deadline.min(Instant::now() + pause)).await;
        pause = (pause * 2).min(LONGEST_PAUSE);
    }
}

/// What is asked for, and for whom.
#[derive(Clone, Copy)]
pub(super) struct Request<'a> {
    pub file: WalFile,
    pub destination: &'a Path,
    pub directory: &'a DataDirectory,
    /// Which segments in which a tablespace is made are refused.
    pub tablespaces: Tablespaces,
    /// Whether the file is durable when it is there.
    pub sync: bool,
}

/// An object that was written to the destination.
pub struct Fetched {
    /// Which one.
    pub object: ObjectName,
    /// Whether it is a segment of which it is certain that no tablespace is made in it.
    pub makes_no_tablespace: bool,
}

/// What the stream's parts have of a segment, which isn't where it was asked for yet.
pub(super) struct Received {
    destination: Destination,
    /// How many bytes of the segment there are.
    bytes: u64,
    /// Where their valid WAL ends.
    pub end: Lsn,
    makes_no_tablespace: bool,
}

/// Not all repositories could tell.
struct Failure {
    error: Error,
    /// Whether one of them may be able to later.
    may_pass: bool,
}

impl Request<'_> {
    /// Takes the segment out of the spool. One that is being fetched is waited for.
    async fn take(&self, spool: &Spool, segment: SegmentName) -> Result<Option<Taken>> {
        let deadline = Instant::now() + FETCHED_BY_ANOTHER;
        while spool.is_fetched_now(segment) && Instant::now() < deadline {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        spool.take(segment, self.destination, |file, makes_no_tablespace| {
            let name = spool.path(segment);
            let bytes = file.metadata().context(Kind::Local, || name.display().to_string())?.len();
            self.check_segment(file, segment, &name.to_string_lossy(), bytes, false)?;
            self.check_tablespaces(file, segment, makes_no_tablespace)
        })
    }

    /// Asks each repository once. The outer error is about the destination.
    async fn attempt(
        &self,
        repositories: &[&RepositorySettings],
        layout: &ClusterLayout,
        opened: &mut [Option<Repository>],
    ) -> Result<Result<Got, Failure>> {
        let mut without = Vec::new();
        let mut errors = Vec::new();
        let mut openings = Openings::of(repositories, opened);
        while let Some((settings, repository)) = openings.next().await {
            let asked = async { self.ask(repository?, layout).await };
            let answer = asked.await.map_err(|e: Error| {
                e.while_doing(format!("get {} from repository {}", self.file, settings.name))
            });
            match answer {
                Ok(Answer::Served(object)) => {
                    for e in &errors {
                        tracing::warn!("{e}");
                    }
                    return Ok(Ok(served(settings.name.clone(), object.to_string())));
                }
                Ok(Answer::Absent(store)) => without.push(store),
                Err(e) if e.kind() == Kind::Local => return Err(e),
                Err(e) => errors.push(e),
            }
        }
        let mut expired = Ok(None);
        if errors.is_empty()
            && let WalFile::Segment(segment) = self.file
        {
            match partial::serve_as_segment(self, &without, segment).await {
                Ok(Some((store, object))) => {
                    return Ok(Ok(served(store.repository().name().to_owned(), object)));
                }
                Err(e) if e.kind() == Kind::Local => return Err(e),
                unserved => errors.extend(unserved.err()),
            }
            let whole;
            (whole, expired) =
                tokio::join!(self.now_whole(&without), self.expired(segment, &without));
            match whole {
                Ok(None) => {}
                Ok(Some((store, object))) => {
                    let repository = store.repository().name().to_owned();
                    return Ok(Ok(served(repository, object.to_string())));
                }
                Err(e) if e.kind() == Kind::Local => return Err(e),
                Err(e) => errors.push(e),
            }
        }
        let may_pass = errors.iter().any(|e| e.kind() == Kind::Repository);
        // A damaged copy counts more than a repository that can't be reached: it is never taken
        // for an outage that a standby may sit out.
        let rank = |e: &Error| match e.kind() {
            Kind::Damaged => 0,
            Kind::Repository => 2,
            _ => 1,
        };
        Ok(match errors.into_iter().min_by_key(rank) {
            Some(error) => Err(Failure { error, may_pass }),
            None => match expired {
                Ok(None) => Ok(Got::Absent),
                Ok(Some(error)) => Err(Failure { error, may_pass: false }),
                Err(error) => {
                    let may_pass = error.kind() == Kind::Repository;
                    Err(Failure { error, may_pass })
                }
            },
        })
    }

    /// Serves the segment from a repository that has it by now: it may have become whole behind the
    /// first look at it, and its parts have gone before the look at them.
    async fn now_whole<'s>(
        &self,
        stores: &'s [WalStore],
    ) -> Result<Option<(&'s WalStore, ObjectName)>> {
        for store in stores {
            if store.has(self.file).await?
                && let Some(fetched) = self.serve(store).await?
            {
                return Ok(Some((store, fetched.object)));
            }
        }
        Ok(None)
    }

    /// The error for a segment that has expired, which isn't one that never was: to a recovery that
    /// has come so far it would be the end of the WAL, and it would promote in the midst of it. A
    /// standby, which doesn't promote, may do with the answer what it does in an outage.
    async fn expired(&self, segment: SegmentName, stores: &[WalStore]) -> Result<Option<Error>> {
        let size = self.directory.control.segment_size;
        let Some(number) = segment.number(size) else { return Ok(None) };
        for store in stores {
            let (floors, damage) =
                Floors::read_sound(store.repository(), store.layout(), store.system()).await?;
            if let Some(damage) = damage {
                // Whether this has expired can't be told, but that there is nothing behind it can.
                if has_any_behind(store, number, size).await? {
                    return Ok(Some(
                        damage
                            .hint("it says which WAL has expired; `pgkeep verify` says more of it"),
                    ));
                }
                tracing::warn!("{damage}");
            }
            let floor = floors.of(segment.timeline);
            if size.start_of(number + 1) > floor {
                continue;
            }
            // Of a backup that is kept as a point only its own WAL is left, and a recovery to its end
            // reads ahead of what it replays (`xlogprefetcher.c`). One that goes beyond the end asks
            // again when it has come there.
            let before = WalFile::Segment(size.name(segment.timeline, number.saturating_sub(1)));
            if !self.directory.is_in_backup()? || !store.has(before).await? {
                let message = format!(
                    "get {segment}: it isn't in {} any more: WAL of timeline {} before {floor} has \
                     expired",
                    store.repository().storage().address(),
                    segment.timeline
                );
                let error = Error::new(Kind::Repository, message)
                    .hint("restore a newer backup; `pgkeep info` lists them");
                return Ok(Some(error));
            }
        }
        Ok(None)
    }

    async fn ask(&self, repository: Repository, layout: &ClusterLayout) -> Result<Answer> {
        let store = WalStore::new(&repository, layout, self.directory.system);
        if let Some(fetched) = self.serve(&store).await? {
            return Ok(Answer::Served(fetched.object));
        }
        prove_absence(&store).await?;
        Ok(Answer::Absent(store))
    }

    /// Serves the file from one repository: the object of its name, or a repaired copy. `None` when
    /// there is neither.
    pub(super) async fn serve(&self, store: &WalStore) -> Result<Option<Fetched>> {
        if let WalFile::Partial(segment) = self.file {
            return partial::serve_partial(self, store, segment).await;
        }
        let mut damage = None;
        if let Some(stored) = store.find(self.file).await? {
            match self.fetch(store, &stored).await {
                Ok(Some(fetched)) => return Ok(Some(fetched)),
                Ok(None) => {}
                Err(e) if e.kind() == Kind::Damaged => damage = Some(e),
                Err(e) => return Err(e),
            }
        }
        for repair in store.repairs(self.file).await? {
            match self.fetch(store, &repair).await {
                Ok(Some(fetched)) => return Ok(Some(fetched)),
                Err(e) if e.kind() != Kind::Damaged => return Err(e),
                Ok(None) => {}
                Err(e) => {
                    tracing::warn!("{e}");
                    if damage.is_none() {
                        return Err(e);
                    }
                }
            }
        }
        match damage {
            Some(e) => Err(
                e.hint("another push of the same file, from a server that still has it, heals it")
            ),
            None => Ok(None),
        }
    }

    /// An error while an object is copied: one of this host is about the destination.
    fn while_writing(&self, e: Error) -> Error {
        match e.kind() {
            Kind::Local => e.while_doing(format!("write {}", self.destination.display())),
            _ => e,
        }
    }

    /// Writes one object to the destination, if it exists and is what was asked for.
    pub(super) async fn fetch(
        &self,
        store: &WalStore,
        name: &ObjectName,
    ) -> Result<Option<Fetched>> {
        let mut destination = match Destination::create(self.destination) {
            Ok(destination) => destination,
            // That nothing can be written matters only if there is something to write.
            Err(e) if exists(store.repository(), name).await? => return Err(e),
            Err(_) => return Ok(None),
        };
        let copied = store.copy_at_most(name, longest(self.file), destination.file()).await;
        let Some(summary) = copied.map_err(|e| self.while_writing(e))? else {
            return Ok(None);
        };
        let makes_no_tablespace = summary.segment.is_some_and(|s| s.makes_no_tablespace());
        if let WalFile::Segment(segment) = self.file {
            let is_partial = name.file_name().contains(".partial.");
            self.check_segment(
                destination.file(),
                segment,
                name.as_str(),
                summary.size,
                is_partial,
            )?;
            self.check_tablespaces(destination.file(), segment, makes_no_tablespace)?;
        }
        reached("get: fetched");
        match self.sync {
            true => destination.finish()?,
            false => destination.finish_unsynced()?,
        }
        Ok(Some(Fetched { object: name.clone(), makes_no_tablespace }))
    }

    /// Fetches what the stream's parts have of a segment. `None` when that isn't even the header of its
    /// first page.
    pub(super) async fn fetch_parts(
        &self,
        store: &WalStore,
        segment: SegmentName,
    ) -> Result<Option<Received>> {
        let mut destination = Destination::create(self.destination)?;
        let copied = store.copy_parts(segment, destination.file()).await;
        let bytes = copied.map_err(|e| self.while_writing(e))?;
        if bytes < SegmentHeader::LEN as u64 {
            return Ok(None);
        }
        let size = self.directory.control.segment_size;
        let summary = scan_file(destination.file(), segment, size)
            .context(Kind::Local, || format!("read {}", self.destination.display()))?;
        let makes_no_tablespace = summary.makes_no_tablespace();
        Ok(Some(Received { destination, bytes, end: summary.end, makes_no_tablespace }))
    }

    /// Hands over what was fetched, with zeros behind it.
    pub(super) async fn hand_over(
        &self,
        store: &WalStore,
        segment: SegmentName,
        received: Received,
    ) -> Result<()> {
        let Received { mut destination, bytes, makes_no_tablespace, .. } = received;
        let name = store.plain(self.file);
        self.check_segment(destination.file(), segment, &format!("{name}.part.*"), bytes, true)?;
        self.check_tablespaces(destination.file(), segment, makes_no_tablespace)?;
        if store.has(self.file).await? {
            return Err(Error::new(Kind::Repository, format!("{segment} became whole just now")));
        }
        destination.finish()
    }

    /// Refuses a segment in which a tablespace is made that mustn't be.
    fn check_tablespaces(
        &self,
        file: &mut File,
        segment: SegmentName,
        makes_none: bool,
    ) -> Result<()> {
        match makes_none {
            true => Ok(()),
            false => tablespaces::check(file, segment, self.directory, self.tablespaces),
        }
    }

    /// Checks that what was fetched is this segment of this system, and fills up a partial one that
    /// came short, as `pg_receivewal` may leave it.
    fn check_segment(
        &self,
        file: &mut File,
        segment: SegmentName,
        name: &str,
        bytes: u64,
        is_partial: bool,
    ) -> Result<()> {
        let wrong = |why: String| Error::new(Kind::Damaged, format!("{name} {why}"));
        let size = self.directory.control.segment_size.bytes();
        if bytes > size || (bytes < size && !is_partial) {
            return Err(wrong(format!("has {bytes} bytes, a segment has {size}")));
        }
        let what = || format!("write {}", self.destination.display());
        let mut page = Vec::new();
        file.seek(SeekFrom::Start(0)).context(Kind::Local, what)?;
        file.take(SegmentHeader::LEN as u64).read_to_end(&mut page).context(Kind::Local, what)?;
        let header =
            SegmentHeader::parse(&page).map_err(|e| wrong("isn't a segment".into()).because(e))?;
        check_header(&header, segment, self.directory).map_err(|e| e.of(name))?;
        match bytes == size {
            true => Ok(()),
            false => file.set_len(size).context(Kind::Local, what),
        }
    }
}

/// Whether any timeline has a segment behind this one, whole or not.
async fn has_any_behind(store: &WalStore, number: u64, size: SegmentSize) -> Result<bool> {
    for timeline in store.timelines().await? {
        if partial::has_later(store, size.name(timeline, number)).await? {
            return Ok(true);
        }
    }
    Ok(false)
}

enum Answer {
    Served(ObjectName),
    Absent(WalStore),
}

fn served(repository: String, object: String) -> Got {
    Got::Served { repository, object }
}

/// After a miss: that the repository is still there and itself, and has WAL of this system. An
/// unmounted disk leaves an empty directory that has nothing, either.
async fn prove_absence(store: &WalStore) -> Result<()> {
    let (present, timelines) = tokio::join!(store.repository().prove_present(), store.timelines());
    present?;
    if timelines?.is_empty() {
        // It may have gone while it was asked.
        store.repository().prove_present().await?;
        return Err(Error::new(
            Kind::Wal,
            format!(
                "{} has no WAL of the system {} for cluster {}",
                store.repository().storage().address(),
                store.system(),
                store.layout().cluster()
            ),
        )
        .hint(
            "is the url right, and the cluster's name? `pgkeep check` archives a first segment",
        ));
    }
    Ok(())
}
