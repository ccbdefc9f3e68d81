//! A repository and its server, and what is known to have been acknowledged.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::Path,
    sync::Arc,
    time::Duration,
};

use pgkeep::{
    archive::{self, GetOptions, Got},
    config::{
        ClusterSettings, GivenStorage, KeySource, Location, RepositorySettings, RetentionSettings,
    },
    error::Result,
    postgres::{Lsn, SegmentName, Timeline, WalFile},
    repo::{
        BackupId, Repository, catalog,
        layout::ClusterLayout,
        open::open,
        wal::{WalObject, WalStore},
        wal_parts::{PartRange, covered},
    },
    storage::{ErrorKind, Storage},
};

use super::{
    server::{FIRST, Server},
    tally::{Kind, Tally},
};
use crate::{
    restore_write::store::{Files, pages},
    retention::FAULTS,
    support::{
        Scratch,
        faulty::{Fault, Faulty, Operation},
        memory::Memory,
        random::Random,
        wal::{SYSTEM, data_directory, segment_size},
    },
};

/// What can go wrong beside that with a single operation: where more is done than deleting.
const MORE_FAULTS: [(Operation, Fault); 3] = [
    (Operation::Write, Fault::Fails(ErrorKind::Full)),
    (Operation::Replace, Fault::AnswerLost),
    (Operation::Sync, Fault::Fails(ErrorKind::Unavailable)),
];

/// How often it fails before somebody kills what fails now and then and goes on by itself.
const PATIENCE: u64 = 3;

/// What goes wrong in a step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Trouble {
    /// Nothing.
    None,
    /// Nothing answers from the n-th change on, which is done or not: the process dies there.
    Death { change: u64, done: bool },
    /// One operation of a kind.
    Once(Operation, u64, Fault),
    /// One operation of so many.
    NowAndThen { of: u64 },
}

/// What a backup may be, as far as anybody was told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Told {
    /// It was acknowledged, or was there when somebody looked.
    Kept,
    /// It was to go, and nobody knows how far that came.
    Going,
    /// It was acknowledged that it is gone, or it never was one.
    Gone,
}

/// The life of one repository.
pub struct World<'a> {
    pub random: Random,
    pub tally: &'a Tally,
    pub storage: Memory,
    pub server: Server,
    /// The cluster, as the server's own host has it configured.
    pub cluster: ClusterSettings,
    pub scratch: Scratch,
    is_encrypted: bool,
    pub told: BTreeMap<BackupId, Told>,
    /// What each backup has to restore to.
    pub files: BTreeMap<BackupId, Files>,
    /// The number of the first segment that no expiry was allowed to take.
    pub floor: u64,
    /// What happened.
    pub steps: Vec<String>,
}

pub fn layout() -> ClusterLayout {
    ClusterLayout::new("main").expect("a name")
}

pub fn segment_name(number: u64) -> SegmentName {
    segment_size().name(Timeline(1), number)
}

/// The files of the cluster at first.
fn first_files(random: &mut Random) -> Files {
    let mut files = Files::default();
    files.put("PG_VERSION", "15\n");
    for folder in ["global", "base", "base/1", "pg_wal", "pg_tblspc"] {
        files.directories.insert(folder.to_owned(), 0o700);
    }
    for table in 0..6 {
        let some = 1 + random.below(24);
        files.put(&format!("base/1/{}", 1000 + table), pages(random.below(1 << 30), some as usize));
    }
    files
}

impl<'a> World<'a> {
    /// A server, and nothing stored yet.
    pub fn new(seed: u64, tally: &'a Tally) -> World<'a> {
        let mut random = Random::of_seed(seed);
        let scratch = Scratch::new("life");
        let storage = Memory::default();
        let files = first_files(&mut random);
        let wal = Random::of_seed(random.below(1 << 48));
        let stored = storage.clone();
        let look = move |from, to| is_stored(&stored, from, to);
        let server = Server::start(scratch.path(), files, wal, look);
        let mut cluster = ClusterSettings::named("main");
        cluster.conninfo =
            format!("host={} port=5432 user=postgres", scratch.path().to_str().expect("UTF-8"));
        cluster.pgdata = Some(data_directory(&scratch.path().join("data")));
        cluster.archive_wait = Duration::from_secs(2);
        cluster.outage_wait = Duration::ZERO;
        cluster.stream.max_lag = Duration::from_millis(10);
        data_directory(&scratch.path().join("standby"));
        data_directory(&scratch.path().join("copy"));
        World {
            // Unoptimised, that takes most of the time.
            is_encrypted: random.below(4) == 0,
            random,
            tally,
            storage,
            server,
            cluster,
            scratch,
            told: BTreeMap::new(),
            files: BTreeMap::new(),
            floor: FIRST,
            steps: Vec::new(),
        }
    }

    /// Chooses one of them.
    pub fn one_of<T: Clone>(&mut self, of: &[T]) -> Option<T> {
        match of.len() as u64 {
            0 => None,
            many => Some(of[self.random.below(many) as usize].clone()),
        }
    }

    /// What goes wrong in a step of this kind, and a storage that does.
    pub fn trouble(&mut self, kind: Kind) -> (Faulty, Trouble) {
        self.trouble_within(kind, kind.extent())
    }

    /// As [`World::trouble`], where so much is changed, and so much asked.
    pub fn trouble_within(
        &mut self,
        kind: Kind,
        (changes, operations): (u64, u64),
    ) -> (Faulty, Trouble) {
        let faulty = Faulty::new(Arc::new(self.storage.clone()));
        let trouble = match self.random.below(6) {
            0 | 1 => Trouble::None,
            2 | 3 if changes > 0 => {
                let (change, done) = (1 + self.random.below(changes), self.random.below(2) == 0);
                faulty.dies(change, done);
                Trouble::Death { change, done }
            }
            2..5 => {
                let faults = [&FAULTS[..], &MORE_FAULTS].concat();
                let (operation, fault) = faults[self.random.below(faults.len() as u64) as usize];
                let most = if operation == Operation::Read { operations / 2 } else { 1 + changes };
                let n = 1 + self.random.below(most);
                faulty.nth(operation, n, fault);
                Trouble::Once(operation, n, fault)
            }
            _ => {
                let (seed, of) = (self.random.below(u64::MAX), 2 + self.random.below(operations));
                faulty.random(seed, of);
                Trouble::NowAndThen { of }
            }
        };
        self.steps.push(format!("{kind:?}, {trouble:?}"));
        (faulty, trouble)
    }

    /// Adds to what the last step was.
    pub fn note(&mut self, what: impl std::fmt::Display) {
        let last = self.steps.last_mut().expect("a step");
        *last = format!("{last}: {what}");
    }

    /// The repository's settings, over a storage.
    pub fn settings(&self, storage: Arc<dyn Storage>) -> RepositorySettings {
        RepositorySettings {
            name: "main".to_owned(),
            location: Location::Given(GivenStorage(storage)),
            key: match self.is_encrypted {
                true => KeySource::File(self.scratch.path().join("main.key")),
                false => KeySource::Unencrypted,
            },
            compression_level: 1,
            retention: RetentionSettings::NONE,
        }
    }

    pub fn over(&self, faulty: &Faulty) -> RepositorySettings {
        self.settings(Arc::new(faulty.clone()))
    }

    /// The repository over a storage in which nothing fails.
    pub async fn sound(&self) -> Repository {
        let opened = open(&self.settings(Arc::new(self.storage.clone()))).await;
        opened.unwrap_or_else(|e| panic!("the repository doesn't open: {e}: {:#?}", self.steps))
    }

    /// The backups that are listed, the newest last.
    pub async fn listed(&self) -> Vec<BackupId> {
        let backups = catalog::backups(&self.sound().await, &layout()).await;
        let backups = backups.unwrap_or_else(|e| panic!("{e}: {:#?}", self.steps));
        backups.into_iter().map(|record| record.id).collect()
    }

    /// How far WAL is acknowledged: up to here the archiver, from here to there the stream.
    fn acknowledged(&self) -> (Lsn, Lsn, Lsn) {
        let state = self.server.state();
        let archived = segment_size().start_of(state.archived + 1);
        match state.streams_from {
            Some(from) if state.reported > from => (archived, from, state.reported),
            _ => (archived, archived, archived),
        }
    }

    /// Whether a whole segment was acknowledged, and may not have expired.
    pub fn is_promised(&self, number: u64) -> bool {
        let (archived, from, to) = self.acknowledged();
        let (start, end) = (segment_size().start_of(number), segment_size().start_of(number + 1));
        number >= self.floor && (end <= archived || (from <= start && end <= to))
    }

    /// The whole segments that have to be there.
    pub fn promised(&self) -> Vec<u64> {
        let complete = self.server.state().complete();
        (self.floor..complete).filter(|number| self.is_promised(*number)).collect()
    }

    /// Gets a segment that has to be there, or as much of it as was acknowledged, as recovery would, and
    /// compares it.
    pub async fn compare(&self, number: u64) {
        let settings = self.settings(Arc::new(self.storage.clone()));
        let destination = self.scratch.path().join("standby/pg_wal/RECOVERYXLOG");
        let name = segment_name(number);
        let (file, options) = (WalFile::Segment(name), GetOptions::default());
        let got = archive::get(&[&settings], &self.cluster, file, &destination, &options).await;
        let Ok(Got::Served { object, .. }) = &got else {
            panic!("{name} was acknowledged: {got:?}: {:#?}", self.steps);
        };
        let bytes = fs::read(&destination).expect("read");
        let start = segment_size().start_of(number);
        let written = {
            let state = self.server.state();
            let end = state.position().min(segment_size().start_of(number + 1));
            state.bytes(start, end).to_vec()
        };
        // Of an open segment as much as the stream has of it, and zeros.
        let same = common(&bytes, &written);
        let rest = bytes.get(same..).unwrap_or_default();
        let is_open = object.contains(".part.");
        let (_, _, reported) = self.acknowledged();
        let promised =
            if self.is_promised(number) { written.len() } else { (reported.0 - start.0) as usize };
        assert!(
            bytes.len() as u64 == segment_size().bytes()
                && same >= promised
                && common(rest, &vec![0; rest.len()]) == rest.len()
                && (is_open || same == written.len()),
            "{object}: {same} of {promised} bytes are right: {:#?}",
            self.steps
        );
        self.tally.segments(is_open);
    }

    /// What a sound look at the repository must find.
    pub async fn check(&mut self) {
        let lies = self.server.state().lies.clone();
        assert!(lies.is_empty(), "reported and not there: {lies:?}: {:#?}", self.steps);
        let now: BTreeSet<BackupId> = self.listed().await.into_iter().collect();
        for (id, told) in &mut self.told {
            let is_there = now.contains(id);
            match told {
                Told::Kept => assert!(is_there, "{id} is lost: {:#?}", self.steps),
                Told::Gone => assert!(!is_there, "{id} came back: {:#?}", self.steps),
                Told::Going if !is_there => *told = Told::Gone,
                Told::Going => {}
            }
        }
        for id in &now {
            assert!(self.told.contains_key(id), "nobody has taken {id}: {:#?}", self.steps);
        }
        let promised = self.promised();
        let store = WalStore::new(&self.sound().await, &layout(), SYSTEM);
        for number in &promised {
            let there = store.has(WalFile::Segment(segment_name(*number))).await;
            let there = there.unwrap_or_else(|e| panic!("{e}: {:#?}", self.steps));
            // A segment may be there as parts that have all of it.
            let there = there
                || is_stored(
                    &self.storage,
                    segment_size().start_of(*number),
                    segment_size().start_of(number + 1),
                );
            assert!(there, "{} was acknowledged: {:#?}", segment_name(*number), self.steps);
        }
        if let Some(one) = self.one_of(&promised) {
            self.compare(one).await;
        }
        self.compare_open().await;
    }

    /// The end of what the stream has.
    async fn compare_open(&self) {
        let (_, from, to) = self.acknowledged();
        let number = segment_size().number_at(to);
        let start = segment_size().start_of(number);
        let is_archived = self.is_promised(number);
        // Less than a page's header isn't served.
        if number >= self.floor && !is_archived && from <= start && to.0 > start.0 + 40 {
            self.compare(number).await;
        }
    }

    /// All that was acknowledged, at the end.
    pub async fn compare_all(&self) {
        for number in self.promised() {
            self.compare(number).await;
        }
        self.compare_open().await;
    }
}

/// How many bytes two texts begin with alike.
fn common(one: &[u8], other: &[u8]) -> usize {
    const BLOCK: usize = 4096;
    let blocks = one.chunks(BLOCK).zip(other.chunks(BLOCK));
    let whole = blocks.take_while(|(one, other)| one == other).map(|(one, _)| one.len()).sum();
    let rest = one[whole..].iter().zip(&other[whole..]);
    whole + rest.take_while(|(one, other)| one == other).count()
}

/// Whether WAL from one position to another is there, by the names of objects.
fn is_stored(storage: &Memory, from: Lsn, to: Lsn) -> bool {
    let size = segment_size();
    let objects = storage.objects();
    (size.number_at(from)..=size.number_before(to)).all(|number| {
        let name = layout().wal_file(SYSTEM, WalFile::Segment(segment_name(number))).to_string();
        if objects.contains_key(&name) {
            return true;
        }
        let mut parts: Vec<PartRange> = objects
            .range(format!("{name}.part.")..)
            .take_while(|(object, _)| object.starts_with(&name))
            .filter_map(|(object, _)| {
                match WalObject::parse(Path::new(object).file_name()?.to_str()?)? {
                    WalObject::Part(_, range, _) => Some(range),
                    _ => None,
                }
            })
            .collect();
        parts.sort();
        let wanted = to.0.min(size.start_of(number + 1).0) - size.start_of(number).0;
        covered(&parts) >= wanted
    })
}

/// Says of all who held a lease that their process is gone, as each ends with its step.
pub fn bury(storage: &Memory) {
    let leases = layout().leases_folder();
    let mut objects = storage.objects();
    for (_, bytes) in objects.iter_mut().filter(|(name, _)| name.starts_with(&leases)) {
        let mut lease: serde_json::Value = serde_json::from_slice(bytes).expect("a lease");
        lease["process"] = i32::MAX.into();
        *bytes = serde_json::to_vec(&lease).expect("JSON").into();
    }
}

/// Waits until a process that works over this storage has to end where it is: when it has died, or when
/// enough has failed for somebody to kill it.
pub async fn end_of_patience(faulty: &Faulty, trouble: Trouble) {
    let most = match trouble {
        Trouble::Death { .. } => 1,
        Trouble::NowAndThen { .. } => PATIENCE,
        Trouble::None | Trouble::Once(..) => u64::MAX,
    };
    while faulty.faults() < most {
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

/// Runs a process to its end, or kills it there: `None`. Nothing of it changes anything afterwards.
pub async fn unless_killed<T>(
    faulty: &Faulty,
    trouble: Trouble,
    process: impl Future<Output = Result<T>>,
) -> Option<Result<T>> {
    let ended = tokio::select! {
        biased;
        ended = process => Some(ended),
        () = end_of_patience(faulty, trouble) => None,
    };
    if ended.is_none() {
        faulty.ends();
    }
    ended
}
