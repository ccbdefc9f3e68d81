//! What users, servers, cron and crashes do, each by the code that does it.

use std::{fs, path::Path, sync::Arc, time::Duration};

use pgkeep::{
    archive,
    backup::{BackupOptions, backup},
    config::{ClusterSettings, RepositorySettings, RetentionSettings},
    error::{Kind as Failure, Result},
    progress::Silent,
    repo::{
        BackupId, BackupType, Repository, catalog,
        layout::ClusterLayout,
        open::{init, open},
    },
    restore::{
        settings::{RecoverySettings, Signal},
        write::{WriteRequest, write},
    },
    retention::{clean_up, delete, expire},
    verify::{
        BLOCKS_AT_ONCE, Level, Report, VerifyRequest,
        report::{Problem, ProblemKind},
        verify,
    },
};
use tokio::{runtime::Handle, sync::watch, time::timeout};

use super::{
    server::{FIRST, Server},
    tally::{Kind, Outcome},
    world::{Told, Trouble, World, bury, layout, segment_name, unless_killed},
};
use crate::{
    restore_write::store::{Files, pages},
    support::{
        Scratch,
        faulty::{Fault, Faulty},
        wal::{SYSTEM, Writer, segment_size},
    },
};

/// How long a stream over storage in which at most one thing fails may take for what is written.
const STREAMED: Duration = Duration::from_secs(30);

/// How often something is run again that has to be done before anything else.
const ATTEMPTS: usize = 4;

impl World<'_> {
    /// One step of a life.
    pub async fn step(&mut self) {
        match self.random.below(24) {
            0..4 => self.push().await,
            4 => self.push_other().await,
            5..9 => self.stream().await,
            9..13 => self.back_up().await,
            13..16 => self.restore_one().await,
            16..18 => self.delete_one().await,
            18..20 => self.expire().await,
            20 => self.clean_up().await,
            _ => self.verify().await,
        }
        self.check().await;
    }

    /// Counts a step. Whoever did it is gone by now.
    fn done(&self, kind: Kind, outcome: Outcome, trouble: Trouble, faulty: &Faulty) {
        bury(&self.storage);
        self.tally.step(kind, outcome, trouble, faulty.faults());
    }

    /// What a process came to. One over sound storage has to succeed.
    fn outcome<T>(&self, faulty: &Faulty, ended: &Option<Result<T>>) -> Outcome {
        match ended {
            Some(Ok(_)) => Outcome::Acknowledged,
            Some(Err(e)) => {
                assert!(faulty.faults() > 0, "nothing was wrong: {e}: {:#?}", self.steps);
                Outcome::Failed
            }
            None => Outcome::Killed,
        }
    }

    /// Makes the repository, and registers the cluster's system: again and again until it is said that it is
    /// done.
    pub async fn begin(&mut self) {
        for attempt in 0.. {
            let (faulty, trouble) = self.trouble(Kind::Init);
            if attempt >= ATTEMPTS {
                faulty.heal();
            }
            let settings = self.over(&faulty);
            let ended = unless_killed(&faulty, trouble, init(&settings)).await;
            // It may have been done without having been said.
            let is_made = match &ended {
                Some(Err(e)) if e.kind() == Failure::Conflict => true,
                ended => self.outcome(&faulty, ended) == Outcome::Acknowledged,
            };
            let outcome = match (&ended, is_made) {
                (_, true) => Outcome::Acknowledged,
                (None, _) => Outcome::Killed,
                _ => Outcome::Failed,
            };
            self.done(Kind::Init, outcome, trouble, &faulty);
            if is_made {
                break;
            }
        }
        for attempt in 0.. {
            let (faulty, trouble) = self.trouble(Kind::Register);
            if attempt >= ATTEMPTS {
                faulty.heal();
            }
            let settings = self.over(&faulty);
            let register = async {
                let repository = open(&settings).await?;
                catalog::register_system(&repository, &layout(), SYSTEM).await
            };
            let ended = unless_killed(&faulty, trouble, register).await;
            let outcome = self.outcome(&faulty, &ended);
            self.done(Kind::Register, outcome, trouble, &faulty);
            if outcome == Outcome::Acknowledged {
                break;
            }
        }
        self.check().await;
    }

    /// The server writes something, closes the segment, and has it archived.
    async fn push(&mut self) {
        let (faulty, trouble) = self.trouble(Kind::Push);
        let some = 1 + self.random.below(60_000);
        let settings = self.over(&faulty);
        let number = {
            let mut state = self.server.state();
            if state.archived + 1 == state.complete() {
                state.write(some);
                state.switch();
            }
            state.archived + 1
        };
        self.note(segment_name(number));
        let pushing = push_one(&self.server, &self.cluster, &settings, number);
        let ended = unless_killed(&faulty, trouble, pushing).await;
        let outcome = self.outcome(&faulty, &ended);
        self.done(Kind::Push, outcome, trouble, &faulty);
    }

    /// Another server, a copy of ours, archives other content under a name that is taken.
    async fn push_other(&mut self) {
        let promised = self.promised();
        let Some(number) = self.one_of(&promised) else { return };
        let (faulty, trouble) = self.trouble(Kind::PushOther);
        self.note(segment_name(number));
        let mut wal = Writer::new(number);
        wal.commit(self.random.below(1 << 30) as u32, chrono::Utc::now());
        wal.switch();
        let path = self.scratch.path().join(format!("copy/pg_wal/{}", segment_name(number)));
        fs::write(&path, wal.bytes).expect("write");
        let settings = self.over(&faulty);
        let cluster = ClusterSettings { pgdata: None, ..self.cluster.clone() };
        let repositories = [&settings];
        let pushing = archive::push(&repositories, &cluster, Path::new("/dev/null/state"), &path);
        let ended = unless_killed(&faulty, trouble, pushing).await;
        let outcome = match &ended {
            None => Outcome::Killed,
            Some(Err(e)) if e.kind() == Failure::Conflict => Outcome::Acknowledged,
            Some(Err(e)) => {
                assert!(faulty.faults() > 0, "{e}: {:#?}", self.steps);
                Outcome::Failed
            }
            Some(Ok(pushed)) => panic!("it was taken: {pushed:?}: {:#?}", self.steps),
        };
        fs::remove_file(&path).expect("remove");
        self.done(Kind::PushOther, outcome, trouble, &faulty);
    }

    /// The server's WAL is streamed while it writes.
    async fn stream(&mut self) {
        // Sometimes so many small writes that parts are merged.
        let is_synchronous = self.random.below(2) == 0;
        let is_busy = is_synchronous && self.random.below(4) == 0;
        let extent = if is_busy { (200, 800) } else { Kind::Stream.extent() };
        let (faulty, trouble) = self.trouble_within(Kind::Stream, extent);
        let settings = self.over(&faulty);
        let before = self.server.state().reports;
        self.server.change(|state| state.is_synchronous = is_synchronous);
        let (times, longest) = if is_busy {
            (70 + self.random.below(80), 300)
        } else {
            (1 + self.random.below(6), 90_000)
        };
        let writes: Vec<(u64, bool)> = (0..times)
            .map(|_| (1 + self.random.below(longest), self.random.below(8 + times) == 0))
            .collect();
        self.note(format!("{times} writes, synchronous: {is_synchronous}"));
        let server = &self.server;
        let write = async {
            for (bytes, closes) in writes {
                server.change(|state| {
                    state.write(bytes);
                    if closes {
                        state.switch();
                    }
                });
                let position = server.state().position();
                // Not always: what isn't waited for is on its way when the next one comes.
                if is_busy || bytes % 3 > 0 {
                    server.until(|state| state.reported >= position).await;
                }
            }
            let position = server.state().position();
            server.until(|state| state.reported >= position).await;
        };
        let (stop, stopped) = watch::channel(false);
        let (repositories, cluster) = ([&settings], &self.cluster);
        let threads = Handle::current();
        let streaming = archive::stream(&repositories, cluster, &threads, stopped);
        let ended = {
            let mut streaming = std::pin::pin!(streaming);
            let both = async {
                tokio::select! {
                    biased;
                    ended = &mut streaming => return ended,
                    written = timeout(STREAMED, write) => {
                        assert!(written.is_ok(), "it doesn't come: {:#?}", self.steps);
                    }
                }
                stop.send_replace(true);
                streaming.await
            };
            unless_killed(&faulty, trouble, both).await
        };
        let outcome = self.outcome(&faulty, &ended);
        // Those that were dropped are gone before anybody looks.
        for _ in 0..3 {
            tokio::task::yield_now().await;
        }
        self.tally.reports(self.server.state().reports - before);
        self.done(Kind::Stream, outcome, trouble, &faulty);
    }

    /// Takes a backup, while the server's WAL is archived beside it.
    async fn back_up(&mut self) {
        let (faulty, trouble) = self.trouble(Kind::BackUp);
        self.change_files();
        let kind = [None, Some(BackupType::Full), Some(BackupType::Diff), Some(BackupType::Incr)];
        let kind = self.one_of(&kind).flatten();
        let before = self.listed().await;
        self.server.state().sent = None;
        let settings = self.over(&faulty);
        let options = BackupOptions { kind, threads: 1, ..BackupOptions::default() };
        let taking = async {
            let repositories = [open(&settings).await?];
            let taking = backup(&repositories, &self.cluster, &options, Arc::new(Silent));
            let archiving = archive_all(&self.server, &self.cluster, &settings);
            tokio::select! {
                outcomes = taking => outcomes?.remove(0).result,
                never = archiving => never,
            }
        };
        let ended = unless_killed(&faulty, trouble, taking).await;
        // In one second there are several here. So one may have the id of another, that was acknowledged or died before,
        // and whose deletion died half-way; and is refused in the end.
        let is_taken = matches!(&ended, Some(Err(e)) if e.kind() == Failure::Conflict)
            && self.steps.iter().filter(|step| step.starts_with("BackUp")).count() > 1;
        let outcome = match is_taken {
            true => Outcome::Failed,
            false => self.outcome(&faulty, &ended),
        };
        // What is still under way has nowhere to go.
        faulty.ends();
        tokio::task::yield_now().await;
        let taken = ended.and_then(Result::ok).map(|record| record.id);
        self.note(format!("{kind:?}, {taken:?}"));
        let now = self.listed().await;
        let new: Vec<&BackupId> = now.iter().filter(|id| !before.contains(id)).collect();
        match &taken {
            Some(id) => assert_eq!(new, [id], "{:#?}", self.steps),
            // One that is there without having been acknowledged is as good as any other.
            None => assert!(new.len() < 2, "{new:?}: {:#?}", self.steps),
        }
        if let Some(id) = new.first() {
            let files = self.server.state().sent.clone().expect("it was read");
            self.files.insert((*id).clone(), files);
            self.told.insert((*id).clone(), Told::Kept);
        }
        self.done(Kind::BackUp, outcome, trouble, &faulty);
    }

    /// What users do to the cluster between two backups.
    fn change_files(&mut self) {
        let mut state = self.server.state();
        for _ in 0..1 + self.random.below(4) {
            let path = format!("base/1/{}", 1000 + self.random.below(8));
            let seed = self.random.below(1 << 30);
            match state.files.files.get_mut(&path) {
                Some(file) if self.random.below(4) > 0 => {
                    let at = self.random.below(file.bytes.len() as u64 / 8192) as usize * 8192;
                    file.bytes[at..][..8192].copy_from_slice(&pages(seed, 1));
                }
                Some(_) if self.random.below(3) == 0 => drop(state.files.files.remove(&path)),
                _ => state.files.put(&path, pages(seed, 1 + self.random.below(30) as usize)),
            }
        }
    }

    /// Restores one: the content is right, or it fails.
    async fn restore_one(&mut self) {
        let kept: Vec<BackupId> = self.kept();
        let Some(one) = self.one_of(&kept) else { return };
        let (faulty, trouble) = self.trouble(Kind::Restore);
        self.note(&one);
        let settings = self.over(&faulty);
        let restored = restore(&settings, &one, &self.files[&one]);
        let ended = unless_killed(&faulty, trouble, restored).await;
        let outcome = self.outcome(&faulty, &ended);
        if outcome == Outcome::Acknowledged {
            self.tally.restore();
        }
        self.done(Kind::Restore, outcome, trouble, &faulty);
    }

    fn kept(&self) -> Vec<BackupId> {
        let kept = self.told.iter().filter(|(_, told)| **told == Told::Kept);
        kept.map(|(id, _)| id.clone()).collect()
    }

    async fn delete_one(&mut self) {
        let all: Vec<BackupId> = self.told.keys().cloned().collect();
        let Some(one) = self.one_of(&all) else { return };
        let (faulty, trouble) = self.trouble(Kind::Delete);
        self.note(&one);
        let was = self.told[&one];
        let settings = self.over(&faulty);
        let deleting = async {
            let repository = open(&settings).await?;
            delete(&repository, &layout(), &one, false, &Silent).await
        };
        let ended = unless_killed(&faulty, trouble, deleting).await;
        let outcome = self.outcome(&faulty, &ended);
        match ended {
            Some(Ok(Some(_))) => drop(self.told.insert(one, Told::Gone)),
            Some(Ok(None)) => {
                assert_ne!(was, Told::Kept, "{one} is said not to be there: {:#?}", self.steps);
            }
            Some(Err(_)) | None if was == Told::Kept => drop(self.told.insert(one, Told::Going)),
            Some(Err(_)) | None => {}
        }
        self.done(Kind::Delete, outcome, trouble, &faulty);
    }

    async fn expire(&mut self) {
        let (faulty, trouble) = self.trouble(Kind::Expire);
        let minimum = 1 + self.random.below(3) as u32;
        self.note(format!("all but {minimum}"));
        let rules = RetentionSettings { minimum: Some(minimum), ..RetentionSettings::NONE };
        let before = self.listed().await;
        // The newest ones stay, with all WAL since the first of them. Of the rest nobody was told that it does.
        let (going, staying) = before.split_at(before.len().saturating_sub(minimum as usize));
        if let Some(first) = staying.first() {
            let record = catalog::read_record(&self.sound().await, &layout(), first).await;
            let start = record.expect("it is listed").start_lsn;
            self.floor = self.floor.max(segment_size().number_at(start));
            self.server.state().floor = segment_size().start_of(self.floor);
        }
        let settings = self.over(&faulty);
        let expiring = async {
            let repository = open(&settings).await?;
            expire(&repository, &layout(), &rules, false, &Silent).await
        };
        let ended = unless_killed(&faulty, trouble, expiring).await;
        let outcome = self.outcome(&faulty, &ended);
        for id in going {
            self.told.insert(id.clone(), Told::Going);
        }
        if faulty.faults() == 0 {
            assert_eq!(self.listed().await, staying, "{:#?}", self.steps);
        }
        self.done(Kind::Expire, outcome, trouble, &faulty);
    }

    async fn clean_up(&mut self) {
        let (faulty, trouble) = self.trouble(Kind::CleanUp);
        let settings = self.over(&faulty);
        let cleaning = async {
            let repository = open(&settings).await?;
            clean_up(&repository, &layout(), &Silent).await
        };
        let ended = unless_killed(&faulty, trouble, cleaning).await;
        let outcome = self.outcome(&faulty, &ended);
        self.done(Kind::CleanUp, outcome, trouble, &faulty);
    }

    /// Verifies, whether or not the storage answers: nothing is called wrong that was acknowledged.
    async fn verify(&mut self) {
        let (faulty, trouble) = self.trouble(Kind::Verify);
        let level = self.one_of(&[Level::Quick, Level::Full]).expect("a level");
        self.note(format!("{level:?}"));
        let settings = self.over(&faulty);
        let ended = unless_killed(&faulty, trouble, verified(&settings, level)).await;
        let outcome = self.outcome(&faulty, &ended);
        // What came with another bit is damage to whoever reads it.
        let has_flipped =
            matches!(trouble, Trouble::Once(_, _, Fault::Flips)) && faulty.faults() > 0;
        if let (Some(Ok(report)), false) = (ended, has_flipped) {
            self.judge(&report);
        }
        self.done(Kind::Verify, outcome, trouble, &faulty);
    }

    fn judge(&self, report: &Report) {
        for problem in &report.problems {
            assert!(self.is_right(problem), "{problem:#?}: {:#?}", self.steps);
        }
        for id in self.kept() {
            let found = report.backups.iter().find(|backup| backup.id == id);
            assert!(found.is_some_and(|backup| backup.sound), "{id}: {found:?}: {:#?}", self.steps);
        }
        self.tally.verification();
    }

    /// Whether a problem is one: that of a backup or of WAL of which nobody was told that it is there.
    fn is_right(&self, problem: &Problem) -> bool {
        let kept = self.kept();
        let number = |object: &str| {
            let name = object.rsplit('/').next()?.get(..24)?;
            name.parse::<pgkeep::postgres::SegmentName>().ok()?.number(segment_size())
        };
        match problem.kind {
            ProblemKind::Unfinished => !kept.iter().any(|id| problem.object.contains(id.as_str())),
            ProblemKind::Missing => {
                let first = number(&problem.object);
                let last = problem.to.as_deref().map_or(first, number);
                let Some((first, last)) = first.zip(last) else { return false };
                (first..=last).all(|number| !self.is_promised(number))
                    && !problem.backups.iter().any(|id| kept.contains(id))
            }
            _ => false,
        }
    }

    /// In the end everything that is listed restores, all that was acknowledged comes back, and nothing is
    /// found wrong.
    pub async fn end(&mut self) {
        let settings = self.settings(Arc::new(self.storage.clone()));
        for id in self.listed().await {
            let restored = restore(&settings, &id, &self.files[&id]).await;
            restored
                .unwrap_or_else(|e| panic!("{id} is listed and broken: {e}: {:#?}", self.steps));
            self.tally.restore();
        }
        self.compare_all().await;
        let report = verified(&settings, Level::Full).await;
        self.judge(&report.unwrap_or_else(|e| panic!("{e}: {:#?}", self.steps)));
    }
}

/// Has a segment be archived, as the server does when its turn has come.
async fn push_one(
    server: &Server,
    cluster: &ClusterSettings,
    settings: &RepositorySettings,
    number: u64,
) -> Result<()> {
    let folder = cluster.pgdata.as_ref().expect("a data directory").join("pg_wal");
    let path = folder.join(segment_name(number).to_string());
    fs::write(&path, server.state().segment(number)).expect("write");
    // The server removes those that are archived sooner or later.
    if let Some(old) = number.checked_sub(4).filter(|old| *old >= FIRST) {
        let _ = fs::remove_file(folder.join(segment_name(old).to_string()));
    }
    archive::push(&[settings], cluster, Path::new("/dev/null/state"), &path).await?;
    server.change(|state| state.archived = state.archived.max(number));
    Ok(())
}

/// The archiver, for as long as it is let: one file after the other, again when it fails.
async fn archive_all<T>(
    server: &Server,
    cluster: &ClusterSettings,
    settings: &RepositorySettings,
) -> T {
    loop {
        server.until(|state| state.archived + 1 < state.complete()).await;
        let next = server.state().archived + 1;
        if let Err(e) = push_one(server, cluster, settings, next).await {
            tracing::debug!("{e}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
}

/// Restores a backup, and compares every file of it.
async fn restore(settings: &RepositorySettings, id: &BackupId, files: &Files) -> Result<()> {
    let repository: Repository = open(settings).await?;
    let layout: ClusterLayout = layout();
    let scratch = Scratch::new("restored");
    let pgdata = scratch.path().join("data");
    let record = catalog::read_record(&repository, &layout, id).await?;
    let request = WriteRequest {
        repository: &repository,
        layout: &layout,
        record: &record,
        pgdata: &pgdata,
        tablespaces: &std::collections::BTreeMap::new(),
        settings: RecoverySettings { signal: Signal::Recovery, lines: Vec::new(), alone: false },
        threads: 1,
    };
    write(request, Arc::new(Silent)).await?;
    let found = Files::read(&pgdata);
    for (path, expected) in &files.files {
        let same = found.files.get(path).is_some_and(|found| found.bytes == expected.bytes);
        assert!(same, "{path} of {id} differs");
    }
    let tables =
        |files: &Files| files.files.keys().filter(|path| path.starts_with("base/")).count();
    assert_eq!(tables(&found), tables(files), "files of {id}");
    Ok(())
}

/// Verifies all of it.
pub async fn verified(settings: &RepositorySettings, level: Level) -> Result<Report> {
    let repository = open(settings).await?;
    let request = VerifyRequest { backup: None, level, threads: 1, blocks_at_once: BLOCKS_AT_ONCE };
    let report = verify(&repository, &layout(), &request, Arc::new(Silent)).await?;
    Ok(report.expect("all backups were asked for"))
}
