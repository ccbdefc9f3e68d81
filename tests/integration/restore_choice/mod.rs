//! Random histories of timelines: whichever target is asked for, the backup and the timeline that are chosen lead
//! recovery there, and where nothing is chosen nothing could be.
//!
//! Each world has WAL as PostgreSQL writes it, archived by the program's own code, in which segments may be lost. What
//! recovery would do is found out by going through the records one by one, which the planning never does.

mod world;

use std::{collections::BTreeSet, fs, path::Path, sync::Arc};

use chrono::{DateTime, TimeDelta, Utc};
use pgkeep::{
    archive,
    config::{
        ClusterSettings, GivenStorage, KeySource, Location, RepositorySettings, RetentionSettings,
    },
    error::{Kind, Result},
    postgres::{Lsn, SegmentName, Timeline},
    repo::{
        BackupId, Repository, catalog, keys::KeyMaterial, layout::ClusterLayout,
        record::BackupRecord, replay::StopRule,
    },
    restore::{
        RestoreRequest, Target, TargetTimeline,
        choose::{Choice, choose},
    },
};

use crate::support::{
    Scratch,
    memory::Memory,
    random::Random,
    wal::{SYSTEM, data_directory, segment_size},
};
use world::{Record, Stopped, What, World};

/// How many worlds, unless `PGKEEP_TEST_WORLDS` says another number.
const WORLDS: u64 = 40;

/// How much is asked of each.
const QUESTIONS: usize = 60;

fn layout() -> ClusterLayout {
    ClusterLayout::new("main").expect("a name")
}

#[tokio::test]
async fn what_is_chosen_leads_to_the_target_and_nothing_else_is_refused() {
    let worlds = std::env::var("PGKEEP_TEST_WORLDS");
    let worlds = worlds.map_or(WORLDS, |number| number.parse().expect("a number"));
    let first = Random::of_this_run().below(1 << 40);
    let mut tally = Tally::default();
    for seed in first..first + worlds {
        let asked = Asked::of(World::new(seed), seed).await;
        asked.everything(&mut tally).await;
    }
    println!("{worlds} worlds: {tally:?}");
    let Tally { timelines, chosen, refused, ambiguous } = tally;
    if worlds >= WORLDS {
        assert!(timelines > worlds && chosen > worlds && refused > worlds && ambiguous > 0);
    }
}

/// What there was.
#[derive(Debug, Default)]
struct Tally {
    timelines: u64,
    chosen: u64,
    refused: u64,
    ambiguous: u64,
}

/// A world, and the repository that has of it what is archived.
struct Asked {
    world: World,
    seed: u64,
    repository: Repository,
    segments: BTreeSet<SegmentName>,
}

/// What can be asked.
#[derive(Debug, Clone)]
struct Question {
    target: Target,
    exclusive: bool,
    timeline: TargetTimeline,
}

/// What has to come of it.
#[derive(Debug, PartialEq)]
enum Answer {
    /// Recovery stops there, from this backup; without a stop it goes to the end of the WAL.
    Chosen(BackupId, Option<Stopped>),
    /// Timelines that don't come from one another have it.
    Ambiguous,
    /// It can't be reached.
    Refused,
}

impl Asked {
    async fn of(world: World, seed: u64) -> Self {
        let memory = Memory::default();
        Repository::init(&memory, &KeyMaterial::None).await.expect("make it");
        let storage = Arc::new(memory);
        let repository = Repository::open("main", storage.clone(), &KeyMaterial::None, 1).await;
        let repository = repository.expect("open it");
        catalog::register_system(&repository, &layout(), SYSTEM).await.expect("register");
        for record in &world.backups {
            let begin = layout().of_backup(&record.id, "begin");
            repository.storage().put(&begin, "{}".into()).await.expect("begin");
            catalog::commit(&repository, &layout(), record).await.expect("commit");
        }
        let settings = RepositorySettings {
            name: "main".to_owned(),
            location: Location::Given(GivenStorage(storage)),
            key: KeySource::Unencrypted,
            compression_level: 1,
            retention: RetentionSettings::NONE,
        };
        let cluster = ClusterSettings { pgdata: None, ..ClusterSettings::named("main") };
        let scratch = Scratch::new("choice");
        let folder = data_directory(&scratch.path().join("data")).join("pg_wal");
        let segments = world.segments();
        let histories = world.lines.iter().filter_map(|line| {
            Some((format!("{:08X}.history", line.timeline.0), world.history(line)?.into_bytes()))
        });
        let files = segments.iter().map(|(name, bytes)| (name.to_string(), bytes.clone()));
        for (name, bytes) in histories.chain(files) {
            let path = folder.join(name);
            fs::write(&path, bytes).expect("write");
            let state = Path::new("/dev/null/state");
            archive::push(&[&settings], &cluster, state, &path).await.expect("push");
            fs::remove_file(&path).expect("remove");
        }
        let segments = segments.into_keys().collect();
        Asked { world, seed, repository, segments }
    }

    async fn everything(mut self, tally: &mut Tally) {
        tally.timelines += self.world.lines.len() as u64;
        for _ in 0..QUESTIONS {
            let question = self.question();
            let answer = self.answer(&question);
            let restore_command = "pgkeep archive-get %f %p".to_owned();
            let mut request =
                RestoreRequest::new("/nowhere".into(), question.target.clone(), restore_command);
            (request.exclusive, request.timeline) = (question.exclusive, question.timeline);
            let chosen = choose(&self.repository, &layout(), &request).await;
            self.check(&question, &answer, chosen);
            match answer {
                Answer::Chosen(..) => tally.chosen += 1,
                Answer::Ambiguous => tally.ambiguous += 1,
                Answer::Refused => tally.refused += 1,
            }
        }
    }

    fn question(&mut self) -> Question {
        let world = &mut self.world;
        let records: Vec<Record> =
            world.lines.iter().flat_map(|line| line.records.iter().cloned()).collect();
        let mut below = |bound: usize| world.random.below(bound as u64) as usize;
        let record = &records[below(records.len())];
        let near = |at: u64, by: usize| (at + by as u64).saturating_sub(8);
        let target = match (&record.what, below(3)) {
            (What::Commit { time, .. }, 0) => {
                Target::Time(*time + TimeDelta::milliseconds(500 * (below(5) as i64 - 2)))
            }
            (What::Commit { xid, .. }, 1) => Target::Xid(*xid),
            (What::Point { name }, 0 | 1) => Target::Name(name.clone()),
            (What::Other, 0) => Target::Latest,
            _ => Target::Lsn(Lsn(near(record.start.0, below(3) * 8))),
        };
        let exclusive = below(2) == 0 && !matches!(target, Target::Latest | Target::Name(_));
        let some = Timeline(1 + below(world.lines.len()) as u32);
        let timeline = match below(8) {
            // To the end of what, is another matter.
            _ if target == Target::Latest => TargetTimeline::Id(some),
            0..5 => TargetTimeline::Unspecified,
            5 => TargetTimeline::Current,
            _ => TargetTimeline::Id(some),
        };
        Question { target, exclusive, timeline }
    }

    fn answer(&self, question: &Question) -> Answer {
        let world = &self.world;
        let timelines = match question.timeline {
            TargetTimeline::Id(timeline) => vec![timeline],
            TargetTimeline::Current => vec![world.backups.last().expect("a backup").timeline],
            _ => world.lines.iter().map(|line| line.timeline).collect(),
        };
        let Some(rule) = rule(question) else { return self.to_the_end(timelines[0]) };
        let mut found: Vec<(&BackupRecord, Stopped)> = Vec::new();
        for timeline in timelines {
            for backup in world.backups_on(timeline) {
                let is_before = match &question.target {
                    Target::Time(time) => backup.stopped_at <= *time,
                    Target::Lsn(lsn) => backup.stop_lsn <= *lsn,
                    _ => true,
                };
                let stopped = world.replay(backup, timeline, &rule, &self.segments);
                let Some(stopped) = stopped.filter(|_| is_before) else { continue };
                if stopped.position < backup.stop_lsn {
                    continue;
                }
                match found.iter_mut().find(|(_, other)| other.record == stopped.record) {
                    Some((other, _)) if other.stop_lsn >= backup.stop_lsn => {}
                    Some((other, _)) => *other = backup,
                    None => found.push((backup, stopped)),
                }
            }
        }
        if let (Target::Time(time), 2..) = (&question.target, found.len()) {
            let (alive, later): (Vec<_>, Vec<_>) =
                found.into_iter().partition(|(_, stopped)| self.had_begun(stopped.record.0, *time));
            found = if alive.is_empty() { later } else { alive };
        }
        match found.len() {
            0 => Answer::Refused,
            1 => {
                let (backup, stopped) = found.remove(0);
                Answer::Chosen(backup.id.clone(), Some(stopped))
            }
            _ => Answer::Ambiguous,
        }
    }

    /// Whether a timeline may have been there at that time, by what is archived of it.
    fn had_begun(&self, timeline: Timeline, time: DateTime<Utc>) -> bool {
        let line = self.world.line(timeline);
        let first = segment_size().name(timeline, segment_size().number_at(line.begin));
        line.ancestors.is_empty() || !self.segments.contains(&first) || line.begun <= time
    }

    fn to_the_end(&self, timeline: Timeline) -> Answer {
        let Some(backup) = self.world.backups_on(timeline).pop() else { return Answer::Refused };
        let first = segment_size().number_at(backup.start_lsn);
        let missing = (first..).find(|number| !self.world.has(timeline, *number, &self.segments));
        let missing = missing.expect("an end");
        let is_consistent = segment_size().start_of(missing) >= backup.stop_lsn;
        let goes_on = self.world.path(timeline).into_iter().any(|(line, end)| {
            let from = segment_size().number_at(line.begin).max(missing + 1);
            let to = segment_size().number_before(end);
            let mut of_it = self.segments.iter().filter(|name| name.timeline == line.timeline);
            of_it.any(|name| {
                name.number(segment_size()).is_some_and(|number| (from..=to).contains(&number))
            })
        });
        match is_consistent && !goes_on {
            true => Answer::Chosen(backup.id.clone(), None),
            false => Answer::Refused,
        }
    }

    fn check(&self, question: &Question, answer: &Answer, chosen: Result<Choice>) {
        let what = || format!("world {}: {question:?}: {answer:?}", self.seed);
        match (answer, chosen) {
            (Answer::Chosen(id, stop), Ok(choice)) => {
                assert_eq!(choice.record.id, *id, "{}", what());
                assert_eq!(choice.stop, stop.as_ref().map(|stop| stop.position), "{}", what());
                let Some(rule) = rule(question) else {
                    assert_eq!(TargetTimeline::Id(choice.timeline), question.timeline);
                    return;
                };
                // What recovery does that is told this.
                let replayed =
                    self.world.replay(&choice.record, choice.timeline, &rule, &self.segments);
                assert_eq!(replayed, *stop, "{}, along {}", what(), choice.timeline);
            }
            (Answer::Chosen(..), Err(e)) => panic!("{}: {e}", what()),
            (_, Ok(choice)) => panic!("{}: {choice:?}", what()),
            (Answer::Ambiguous, Err(e)) => assert_eq!(e.kind(), Kind::Usage, "{}: {e}", what()),
            (Answer::Refused, Err(e)) => {
                assert!(matches!(e.kind(), Kind::Target | Kind::Wal), "{}: {e}", what());
            }
        }
    }
}

/// What stops recovery; nothing, where it goes to the end.
fn rule(question: &Question) -> Option<StopRule> {
    let exclusive = question.exclusive;
    Some(match &question.target {
        Target::Time(time) => StopRule::Time { time: *time, exclusive },
        Target::Lsn(lsn) => StopRule::Lsn { lsn: *lsn, exclusive },
        Target::Xid(xid) => StopRule::Xid { xid: *xid, exclusive },
        Target::Name(name) => StopRule::Name(name.clone()),
        Target::Latest | Target::Immediate => return None,
    })
}
