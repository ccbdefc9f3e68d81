//! The table of all that is done to a repository, and of what `verify` says to it.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::Mutex,
    thread,
};

use pgkeep::{
    error::{Kind, Result},
    verify::report::{Level, Report},
};
use tokio::runtime::Builder;

use super::{
    Sound,
    mutations::{COLUMNS, Deed, Mutation, Region, all},
};
use crate::support::objects::{ObjectKind, objects, objects_of};

/// What a verification has said of a mutation.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Verdict {
    /// Nothing is wrong.
    Sound,
    /// Something is, and the object is named.
    Named,
    /// Something is, and it is said of others only.
    Elsewhere(String),
    /// It couldn't tell.
    Error(Kind, String),
}

impl Verdict {
    fn of(result: Result<Report>, mutation: &Mutation) -> Self {
        let report = match result {
            Ok(report) => report,
            Err(e) => return Verdict::Error(e.kind(), e.to_string()),
        };
        assert_eq!(report.sound, report.problems.is_empty());
        if report.sound {
            return Verdict::Sound;
        }
        let named =
            |name: &str| report.problems.iter().any(|p| p.object == name || p.text.contains(name));
        match mutation.names().into_iter().any(named) {
            true => Verdict::Named,
            false => Verdict::Elsewhere(format!("{:#?}", report.problems)),
        }
    }
}

/// Mutations that nobody can or need tell, and why.
fn without_consequence(sound: &Sound, mutation: &Mutation) -> Option<&'static str> {
    use Deed::{CutAll, CutByte, CutHalf, Delete, Duplicate, Flip};
    let object = &mutation.object;
    let root = sound.root();
    let last = objects_of(&root, ObjectKind::Part).pop().expect("a part");
    let beside = |file: &str| root.join(object).with_file_name(file).exists();
    let has_repair = {
        let (folder, file) = object.rsplit_once('/').unwrap_or(("", object));
        let begin = format!("{file}.repair.");
        std::fs::read_dir(root.join(folder))
            .unwrap()
            .flatten()
            .any(|entry| entry.file_name().to_str().is_some_and(|name| name.starts_with(&begin)))
    };
    Some(match (mutation.kind, mutation.deed) {
        (ObjectKind::Lease, Delete) => "a lease tells running from crashed; no safety rests on it",
        (ObjectKind::Pin, Delete) => {
            "whoever takes a pin away unpins; nothing knows of it but itself"
        }
        (ObjectKind::Drill, Delete) => "results expire; nothing rests on one",
        (ObjectKind::BackupHistory, Delete) => {
            "nothing reads it: recovery goes by the backup label"
        }
        (ObjectKind::Partial, Delete) => {
            "behind the last whole segment of a timeline nobody knows of more"
        }
        (ObjectKind::WalFloor, Delete) => {
            "it says what may be gone: without it more is asked of the archive, not less"
        }
        (ObjectKind::Abandoned, Delete) => "it means nothing to what isn't a backup",
        (ObjectKind::Deleted, Delete) => "what is left is a crashed backup's, and none either way",
        (ObjectKind::Begin, Delete) if beside("deleted") || beside("abandoned") => {
            "of a backup that is none, with it or without"
        }
        (ObjectKind::Segment, Delete | CutByte | CutHalf | CutAll | Flip(..)) if has_repair => {
            "it is damaged already: its repaired copy is served"
        }
        (ObjectKind::Part, Delete) if last.name == *object => {
            "behind the last part of the last segment nobody knows of more"
        }
        (ObjectKind::RepositoryFile, CutByte) => "the line break at its end",
        (ObjectKind::Keys, Duplicate) => "a keys object may be written again under a higher number",
        _ => return None,
    })
}

/// What can't be told from something that isn't damage, and is an error for that.
fn cant_be_told(mutation: &Mutation) -> Option<(Kind, &'static str)> {
    match (mutation.kind, mutation.deed) {
        (ObjectKind::Keys, Deed::Flip(Region::Text, at)) if at > 0 => Some((
            Kind::Key,
            "a slot that doesn't open may be damaged, or the key file another one",
        )),
        _ => None,
    }
}

struct Row {
    mutation: Mutation,
    quick: Verdict,
    full: Verdict,
}

/// Tries all mutations on copies, on some threads.
fn tried() -> Vec<Row> {
    let sound = Sound::new();
    let waiting: Mutex<VecDeque<Mutation>> = Mutex::new(all(&sound).into());
    let rows = Mutex::new(Vec::new());
    thread::scope(|scope| {
        for _ in 0..thread::available_parallelism().map_or(2, |n| n.get()).clamp(2, 4) {
            scope.spawn(|| {
                let copy = Sound::new();
                let runtime = Builder::new_current_thread().enable_all().build().unwrap();
                loop {
                    let Some(mutation) = waiting.lock().unwrap().pop_front() else { break };
                    let undo = mutation.apply(&copy);
                    let [quick, full] = [Level::Quick, Level::Full]
                        .map(|level| Verdict::of(runtime.block_on(copy.verify(level)), &mutation));
                    undo.back();
                    rows.lock().unwrap().push(Row { mutation, quick, full });
                }
                let report = runtime.block_on(copy.verify(Level::Full)).unwrap();
                assert!(report.sound, "all was undone: {:#?}", report.problems);
            });
        }
    });
    rows.into_inner().unwrap()
}

#[test]
fn each_mutation_of_each_kind_of_object_is_found_and_named() {
    let sound = Sound::new();
    let mut complaints = Vec::new();
    let mut table: BTreeMap<ObjectKind, BTreeMap<&str, Vec<String>>> = BTreeMap::new();
    let mut excused: BTreeMap<(&str, String), usize> = BTreeMap::new();
    let rows = tried();
    assert!(rows.len() > 500, "{} mutations are few", rows.len());
    for Row { mutation, quick, full } in &rows {
        let mut complain = |what: &str| {
            let Mutation { object, other, deed, .. } = mutation;
            complaints.push(format!("{deed:?} {object} {other:?}: {what}: {quick:?}, {full:?}"));
        };
        let what = format!("{} {:?}", mutation.deed.column(), mutation.kind);
        let cell = if let Some(why) = without_consequence(&sound, mutation) {
            if *full != Verdict::Sound {
                complain("this was thought to have no consequence");
            }
            *excused.entry((why, what)).or_default() += 1;
            "-"
        } else if let Some((kind, why)) = cant_be_told(mutation) {
            if !matches!(full, Verdict::Error(k, _) if *k == kind) && *full != Verdict::Named {
                complain("this was thought to be an error");
            }
            *excused.entry((why, what)).or_default() += 1;
            "error"
        } else {
            if *full != Verdict::Named {
                complain("full doesn't name it");
            }
            // The end of what the copy is of looks sound; only who reads all of it needs the copy.
            let is_copy = (mutation.kind, mutation.deed) == (ObjectKind::Repair, Deed::Delete);
            if mutation.deed.shows_quickly() && !is_copy && *quick != Verdict::Named {
                complain("quick doesn't name it");
            }
            if *quick == Verdict::Named { "quick" } else { "full" }
        };
        let cells = table.entry(mutation.kind).or_default();
        cells.entry(mutation.deed.column()).or_default().push(cell.to_owned());
    }
    print(&table);
    println!("\nwithout consequence, or not to be told:");
    for ((why, what), count) in &excused {
        println!("  {what} ({count}): {why}");
    }
    assert!(complaints.is_empty(), "\n{}\n", complaints.join("\n"));
    assert!(table.len() >= 19, "an object of each kind: {:?}", table.keys());
}

/// Which level finds how many of the mutations of a kind.
fn print(table: &BTreeMap<ObjectKind, BTreeMap<&str, Vec<String>>>) {
    println!("found by a quick look, by a full one, and without consequence");
    print!("{:16}", "");
    COLUMNS.iter().for_each(|column| print!("{column:>14}"));
    println!();
    for (kind, cells) in table {
        print!("{:16}", format!("{kind:?}"));
        for column in COLUMNS {
            let cells = cells.get(column).map(Vec::as_slice).unwrap_or_default();
            let count = |what: &str| cells.iter().filter(|cell| *cell == what).count();
            let counts = [count("quick"), count("full"), count("-") + count("error")];
            match cells.is_empty() {
                true => print!("{:>14}", ""),
                false => print!("{:>14}", counts.map(|n| n.to_string()).join("/")),
            }
        }
        println!();
    }
}

#[test]
fn nothing_is_found_where_nothing_was_done() {
    let sound = Sound::new();
    let runtime = Builder::new_current_thread().enable_all().build().unwrap();
    for level in [Level::Quick, Level::Full] {
        let report = runtime.block_on(sound.verify(level)).unwrap();
        assert!(report.sound, "{:#?}", report.problems);
        let count = |kind| objects_of(&sound.root(), kind).len() as u64;
        assert_eq!(report.backups.len() as u64, count(ObjectKind::Record));
        assert!(report.backups.iter().all(|backup| backup.sound));
        assert!(report.timelines.len() > 1 && report.timelines.iter().all(|t| t.sound));
        assert_eq!(report.checked.packs, count(ObjectKind::Pack), "{:?}", report.checked);
        let wal = [ObjectKind::Segment, ObjectKind::Partial, ObjectKind::Repair];
        let segments: u64 = wal.into_iter().map(count).sum();
        assert_eq!(report.checked.segments, segments, "{:?}", report.checked);
        let all = objects(&sound.root()).len() as u64;
        // The file at the root was read to open it.
        assert_eq!(report.checked.objects, all, "{:?}", report.checked);
        if level == Level::Full {
            assert!(report.checked.blocks > 400 && report.checked.records > 10);
        }
        let text: Vec<_> = report.notices.iter().map(|n| n.text.as_str()).collect();
        // Its end is sound.
        let repaired = text.iter().any(|text| text.contains("its repaired copy"));
        assert_eq!(repaired, level == Level::Full, "{text:?}");
        assert!(text.iter().any(|text| text.contains("was never finished")), "{text:?}");
    }
}
