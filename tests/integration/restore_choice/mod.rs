//! Random histories of timelines: whichever target is asked for, the backup and the timeline that are chosen lead
//! recovery there, and where nothing is chosen nothing could be.
//!
//! Each world has WAL as PostgreSQL writes it, archived by the program's own code, in which segments may be lost. What
//! recovery would do is found out by going through the records one by one, which the planning never does.

mod stories;
mod world;

use std::{fs, path::Path, sync::Arc};

use bytes::Bytes;
use chrono::{DateTime, TimeDelta, Utc};
use pgkeep::{
    archive,
    config::ClusterSettings,
    error::{Kind, Result},
    postgres::{Lsn, Timeline},
    repo::{
        BackupId, Repository, catalog, keys::KeyMaterial, layout::ClusterLayout,
        record::BackupRecord, replay::StopRule, wal::WalStore,
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
    wal::{SEGMENT, SYSTEM, data_directory, segment_size},
};
use world::{Record, Stopped, What, World};

/// How many worlds, unless `PGKEEP_TEST_WORLDS` says another number; `PGKEEP_TEST_WORLD` is one that has failed.
const WORLDS: u64 = 40;

/// How much is asked of each.
const QUESTIONS: usize = 60;

fn layout() -> ClusterLayout {
    ClusterLayout::new("main").expect("a name")
}

#[tokio::test]
async fn what_is_chosen_leads_to_the_target_and_nothing_else_is_refused() {
    let number = |variable: &str| -> Option<u64> {
        Some(std::env::var(variable).ok()?.parse().expect("a number"))
    };
    let again = number("PGKEEP_TEST_WORLD");
    let worlds = again.map_or(number("PGKEEP_TEST_WORLDS").unwrap_or(WORLDS), |_| 1);
    let first = again.unwrap_or_else(|| Random::of_this_run().below(1 << 40));
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

/// Of a timeline that nobody asks for, nothing has to be readable.
#[tokio::test]
async fn a_damaged_history_is_in_the_way_of_its_own_timeline_only() {
    let mut worlds = (0..).map(|seed| (seed, World::new(seed)));
    let of_two = |(_, world): &(u64, World)| {
        world.lines.len() == 2 && world.whole.keys().any(|name| name.timeline == Timeline(2))
    };
    let (seed, world) = worlds.find(of_two).expect("a world");
    let asked = Asked::of(world, seed).await;
    let first = TargetTimeline::Id(Timeline(1));
    let before = asked.chosen(&Target::Latest, first).await.expect("chosen");
    for (name, object) in asked.memory.objects().iter_mut() {
        if name.ends_with("00000002.history") {
            damage(object, 4);
        }
    }
    let after = asked.chosen(&Target::Latest, first).await.expect("chosen");
    assert_eq!((before.record.id, before.timeline), (after.record.id, after.timeline));
    let refused = asked.chosen(&Target::Latest, TargetTimeline::Unspecified).await;
    let refused = refused.expect_err("nobody knows where timeline 2 belongs").to_string();
    assert!(refused.contains("00000002.history"), "{refused}");
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
    memory: Memory,
    repository: Repository,
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
    /// From this backup recovery stops there.
    Chosen(BackupId, Stopped),
    /// From this backup recovery goes to the end of this timeline, or of the backup.
    ToTheEnd(BackupId, Timeline),
    /// Timelines that don't come from one another have it.
    Ambiguous,
    /// It can't be reached.
    Refused,
}

impl Asked {
    async fn of(world: World, seed: u64) -> Self {
        let memory = Memory::default();
        Repository::init(&memory, &KeyMaterial::None).await.expect("make it");
        let storage = Arc::new(memory.clone());
        let repository = Repository::open("main", storage, &KeyMaterial::None, 1).await;
        let repository = repository.expect("open it");
        catalog::register_system(&repository, &layout(), SYSTEM).await.expect("register");
        for record in &world.backups {
            commit(&repository, record).await;
        }
        let settings = memory.configured("main");
        let cluster = ClusterSettings { pgdata: None, ..ClusterSettings::named("main") };
        let scratch = Scratch::new("choice");
        let folder = data_directory(&scratch.path().join("data")).join("pg_wal");
        let histories = world.lines.iter().filter_map(|line| {
            Some((format!("{:08X}.history", line.timeline.0), world.history(line)?.into_bytes()))
        });
        let files = world.whole.iter().map(|(name, bytes)| (name.to_string(), bytes.clone()));
        let (streamed, partial): (Vec<_>, Vec<_>) =
            world.open.iter().partition(|(_, open)| open.is_streamed);
        let partial = partial.into_iter().map(|(name, open)| {
            let mut bytes = open.bytes.clone();
            bytes.resize(SEGMENT, 0);
            (format!("{name}.partial"), bytes)
        });
        let mut pushed: Vec<_> = histories.chain(files).chain(partial).collect();
        // What is damaged is pushed once more, and stored beside it.
        let again = world
            .healed
            .iter()
            .filter_map(|(healed, _)| pushed.iter().find(|(name, _)| name == healed).cloned());
        let again: Vec<_> = again.collect();
        pushed.extend(again);
        let mut damages = world.healed.iter().map(|(_, eighths)| *eighths);
        for (name, bytes) in pushed {
            // A partial one has its checksum behind its name.
            let is_it = |object: &str| {
                let rest = object.rsplit('/').next().and_then(|file| file.strip_prefix(&name));
                rest.is_some_and(|rest| rest.is_empty() || name.ends_with(".partial"))
            };
            if let Some((_, object)) = memory.objects().iter_mut().find(|(object, _)| is_it(object))
            {
                damage(object, damages.next().expect("what is stored once more was damaged"));
            }
            let path = folder.join(name);
            fs::write(&path, bytes).expect("write");
            let state = Path::new("/dev/null/state");
            archive::push(&[&settings], &cluster, state, &path).await.expect("push");
            fs::remove_file(&path).expect("remove");
        }
        let store = WalStore::new(&repository, &layout(), SYSTEM);
        for (name, open) in streamed {
            let bytes = [open.bytes.clone().into()];
            store.put_part(*name, 0, &bytes).await.expect("put a part");
        }
        Asked { world, seed, memory, repository }
    }

    async fn everything(mut self, tally: &mut Tally) {
        tally.timelines += self.world.lines.len() as u64;
        for _ in 0..QUESTIONS {
            let question = self.question();
            let answer = self.answer(&question);
            let mut request = request(&question.target, question.timeline);
            request.exclusive = question.exclusive;
            let chosen = choose(&self.repository, &layout(), &request).await;
            self.check(&question, &answer, chosen);
            match answer {
                Answer::Chosen(..) | Answer::ToTheEnd(..) => tally.chosen += 1,
                Answer::Ambiguous => tally.ambiguous += 1,
                Answer::Refused => tally.refused += 1,
            }
        }
    }

    async fn chosen(&self, target: &Target, timeline: TargetTimeline) -> Result<Choice> {
        choose(&self.repository, &layout(), &request(target, timeline)).await
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
            (What::Other, 0) if below(4) == 0 => Target::Immediate,
            (What::Other, 0) => Target::Latest,
            _ => Target::Lsn(Lsn(near(record.start.0, below(3) * 8))),
        };
        let exclusive = below(2) == 0;
        let some = Timeline(1 + below(world.lines.len()) as u32);
        let timeline = match below(8) {
            0..4 => TargetTimeline::Unspecified,
            4 => TargetTimeline::Current,
            5 => TargetTimeline::Latest,
            _ => TargetTimeline::Id(some),
        };
        Question { target, exclusive, timeline }
    }

    /// The timelines along which the target is looked for.
    fn timelines(&self, question: &Question) -> Vec<Timeline> {
        let world = &self.world;
        let newest = world.backups.last().expect("a backup").timeline;
        let usable = |timeline: &Timeline| !world.backups_on(*timeline).is_empty();
        let mut leaves = self.leaves();
        leaves.retain(usable);
        match (question.timeline, &question.target) {
            (TargetTimeline::Id(timeline), _) => vec![timeline],
            (TargetTimeline::Current, _) | (TargetTimeline::Unspecified, Target::Immediate) => {
                vec![newest]
            }
            // Where no backup leads to the one it is about, the others are no answer.
            (TargetTimeline::Latest, _) => leaves.into_iter().max().into_iter().collect(),
            (TargetTimeline::Unspecified, Target::Latest) => leaves,
            (TargetTimeline::Unspecified, _) => {
                world.lines.iter().map(|line| line.timeline).filter(usable).collect()
            }
        }
    }

    /// The timelines of which something is there, and of none that comes from them.
    fn leaves(&self) -> Vec<Timeline> {
        let world = &self.world;
        let is_there = |timeline: &Timeline| {
            world.whole.keys().chain(world.open.keys()).any(|name| name.timeline == *timeline)
                || world.backups.iter().any(|backup| backup.timeline == *timeline)
        };
        let there: Vec<Timeline> =
            world.lines.iter().map(|line| line.timeline).filter(is_there).collect();
        let comes_from = |child: &Timeline, timeline: &Timeline| {
            child != timeline
                && world.path(*child).iter().any(|(line, _)| line.timeline == *timeline)
        };
        let is_leaf = |timeline: &&Timeline| !there.iter().any(|child| comes_from(child, timeline));
        there.iter().filter(is_leaf).copied().collect()
    }

    fn answer(&self, question: &Question) -> Answer {
        let world = &self.world;
        let timelines = self.timelines(question);
        let Some(rule) = rule(question) else { return self.to_the_end(question, &timelines) };
        let mut found: Vec<(&BackupRecord, Stopped)> = Vec::new();
        for timeline in timelines {
            for backup in world.backups_on(timeline) {
                let is_before = match &question.target {
                    Target::Time(time) => backup.stopped_at <= *time,
                    Target::Lsn(lsn) => backup.stop_lsn <= *lsn,
                    _ => true,
                };
                let stopped = world.replay(backup, timeline, &rule);
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
        if let Target::Time(time) = &question.target {
            let all: Vec<Stopped> = found.iter().map(|(_, stopped)| stopped.clone()).collect();
            found.retain(|(_, stopped)| self.is_a_state_at(stopped, &all, *time));
        }
        match found.len() {
            0 => Answer::Refused,
            1 => {
                let (backup, stopped) = found.remove(0);
                Answer::Chosen(backup.id.clone(), stopped)
            }
            _ => Answer::Ambiguous,
        }
    }

    /// Whether what recovery brings that stops there is the state in which a timeline was at that time, as far as all
    /// the answers together know it.
    fn is_a_state_at(&self, stopped: &Stopped, all: &[Stopped], time: DateTime<Utc>) -> bool {
        // Of what the answer has, the state of all other timelines is one of the past: of when they were left.
        let path = self.world.path(stopped.record.0);
        let mut there = path.iter().map(|(line, _)| line.timeline).rev();
        let newest = there.find(|timeline| self.had_begun(*timeline, time)).expect("the first");
        // How many of its records an answer comes by, with the one that stops it.
        let come_by = |stopped: &Stopped| {
            let (last, start) = stopped.record;
            let records = self.world.records(last).into_iter();
            records.filter(|record| record.timeline == newest && record.start <= start).count()
        };
        newest == stopped.record.0 || all.iter().all(|other| come_by(other) <= come_by(stopped))
    }

    /// Whether a timeline may have been there at that time, by what is archived of it: its promotion is looked for in
    /// its first segment only.
    fn had_begun(&self, timeline: Timeline, time: DateTime<Utc>) -> bool {
        let line = self.world.line(timeline);
        let number = segment_size().number_at(line.begin);
        let first = segment_size().name(timeline, number);
        let is_there =
            self.world.whole.contains_key(&first) || self.world.open.contains_key(&first);
        let is_inside = segment_size().number_before(line.records[0].end) == number;
        line.ancestors.is_empty() || !is_there || !is_inside || line.begun <= time
    }

    fn to_the_end(&self, question: &Question, timelines: &[Timeline]) -> Answer {
        let is_reached = |backup: &BackupRecord, timeline: Timeline| {
            let world = &self.world;
            let (end, missing) = world.reach(backup, timeline);
            let until = segment_size().start_of(missing + 1);
            match question.target {
                // The server looks for the end of the backup before it replays another record.
                Target::Immediate => end > backup.stop_lsn,
                _ => {
                    end >= backup.stop_lsn
                        && !world.goes_on(timeline, missing)
                        && !world.leaves_path(backup, timeline, until)
                }
            }
        };
        let mut found = Vec::new();
        for &timeline in timelines {
            if let Some(backup) = self.world.backups_on(timeline).pop()
                && is_reached(backup, timeline)
            {
                found.push(Answer::ToTheEnd(backup.id.clone(), timeline));
            }
        }
        match found.len() {
            0 => Answer::Refused,
            1 => found.remove(0),
            _ => Answer::Ambiguous,
        }
    }

    fn check(&self, question: &Question, answer: &Answer, chosen: Result<Choice>) {
        let what = || format!("world {}: {question:?}: {answer:?}", self.seed);
        match (answer, chosen) {
            (Answer::Chosen(id, stop), Ok(choice)) => {
                assert_eq!(choice.record.id, *id, "{}", what());
                assert_eq!(choice.stop, Some(stop.position), "{}", what());
                // What recovery does that is told this.
                let rule = rule(question).expect("it stops");
                let along = choice.timeline;
                let replayed = self.world.replay(&choice.record, along, &rule);
                assert_eq!(replayed.as_ref(), Some(stop), "{}, along {along}", what());
                let leaves = self.world.leaves_path(&choice.record, along, stop.position);
                assert!(!leaves, "{}, along {along}", what());
            }
            (Answer::ToTheEnd(id, timeline), Ok(choice)) => {
                let found = (&choice.record.id, choice.timeline, choice.stop);
                assert_eq!(found, (id, *timeline, None), "{}", what());
            }
            (Answer::Chosen(..) | Answer::ToTheEnd(..), Err(e)) => panic!("{}: {e}", what()),
            (_, Ok(choice)) => panic!("{}: {choice:?}", what()),
            (Answer::Ambiguous, Err(e)) => assert_eq!(e.kind(), Kind::Usage, "{}: {e}", what()),
            (Answer::Refused, Err(e)) => {
                assert!(matches!(e.kind(), Kind::Target | Kind::Wal), "{}: {e}", what());
            }
        }
    }
}

/// A backup that is there.
async fn commit(repository: &Repository, record: &BackupRecord) {
    let begin = layout().of_backup(&record.id, "begin");
    repository.storage().put(&begin, "{}".into()).await.expect("begin");
    catalog::commit(repository, &layout(), record).await.expect("commit");
}

fn damage(object: &mut Bytes, eighths: usize) {
    let mut bytes = object.to_vec();
    let at = bytes.len() * eighths / 8;
    bytes[at] ^= 1;
    *object = bytes.into();
}

fn request(target: &Target, timeline: TargetTimeline) -> RestoreRequest {
    let restore_command = "pgkeep archive-get %f %p".to_owned();
    let request = RestoreRequest::new("/nowhere".into(), target.clone(), restore_command);
    RestoreRequest { timeline, ..request }
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
