//! A whole repository, some of whose objects aren't what they were: verified, listed, planned, chosen from.
//!
//! It is the unencrypted fixture. The first byte is: 1 it is verified fully, 2 it is kept by rules, 4 and 8 what is
//! chosen is a position, a time, the end. Then come changes: a byte for which object, a byte for how, and what that
//! takes. Modulo 8, how is: 0 it is gone; 1 its content has other bytes, from an offset of two bytes on, and is
//! sealed again; 2 its summary has; 3 it lies under another object's name, as it is; 4 its content is another one; 5 it
//! has other bytes as it is, with nothing repaired; 6 it is copied to a name that comes with the change, and sealed for it; 7 it ends at an
//! offset. Whatever that is, nothing fails for a reason within the program, and what is damaged is found.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    sync::{Arc, OnceLock},
};

use chrono::{DateTime, Utc};
use pgkeep::{
    config::{ClusterSettings, RetentionSettings},
    error::{Error, Kind},
    info::info,
    progress::Silent,
    repo::{catalog, keys::KeyMaterial, lease::leases, sealed::open_whole},
    restore::{RestoreRequest, Target, choose::choose},
    retention::{
        facts::Facts,
        plan::{harmless_cuts, plan},
    },
    storage::ObjectName,
    verify::{BLOCKS_AT_ONCE, Level, VerifyRequest, verify},
};

use super::{
    input::Input,
    place::{Place, layout, seal, wait},
};

/// An object of the fixture: as it is, and its content and summary, if it is sealed.
struct Object {
    name: ObjectName,
    bytes: Vec<u8>,
    sealed: Option<(Vec<Vec<u8>>, Vec<u8>)>,
}

fn files(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(folder).expect("the fixture is there") {
        let path = entry.expect("an entry").path();
        match path.is_dir() {
            true => files(&path, found),
            false => found.push(path),
        }
    }
}

fn fixture() -> &'static [Object] {
    static OBJECTS: OnceLock<Vec<Object>> = OnceLock::new();
    OBJECTS.get_or_init(|| {
        let crate_root = Path::new(env!("CARGO_MANIFEST_DIR"));
        let root = crate_root.ancestors().map(|above| above.join("fixtures/repository-v1-plain"));
        let root = root.into_iter().find(|folder| folder.is_dir()).expect("the fixture");
        let mut found = Vec::new();
        files(&root, &mut found);
        found.sort();
        let (place, repository) = super::place::plain();
        let mut objects: Vec<Object> = Vec::new();
        for path in found {
            let name = path.strip_prefix(&root).expect("below").to_str().expect("UTF-8");
            let name = ObjectName::new(name).expect("a name");
            let bytes = std::fs::read(&path).expect("a file");
            place.put(&name, bytes.clone());
            let whole = open_whole(&repository, &name, &bytes).ok();
            let sealed = whole.map(|whole| (whole.frames, whole.summary));
            objects.push(Object { name, bytes, sealed });
        }
        objects
    })
}

/// Writes `piece` over what begins at `at`, and behind the end.
fn patch(bytes: &mut Vec<u8>, at: usize, piece: &[u8]) {
    let at = at.min(bytes.len());
    let end = (at + piece.len()).min(bytes.len());
    bytes.splice(at..end, piece.iter().copied());
}

/// What became of the fixture's objects.
struct Changed {
    objects: BTreeMap<String, Vec<u8>>,
    /// What doesn't fit its checksums any more.
    broken: Vec<String>,
}

fn changed(input: &mut Input<'_>) -> Changed {
    let fixture = fixture();
    let (_, repository) = super::place::plain();
    let mut objects: BTreeMap<String, Vec<u8>> =
        fixture.iter().map(|o| (o.name.to_string(), o.bytes.clone())).collect();
    let mut broken = Vec::new();
    let mut changes = 0;
    while !input.is_empty() && changes < 8 {
        changes += 1;
        let object = &fixture[usize::from(input.byte()) % fixture.len()];
        let name = object.name.to_string();
        let again = |name: &ObjectName, frames: &[Vec<u8>], summary: &[u8]| {
            let frames: Vec<&[u8]> = frames.iter().map(Vec::as_slice).collect();
            seal(&repository, name, &frames, summary)
        };
        match (input.byte() % 8, &object.sealed) {
            (0, _) => drop(objects.remove(&name)),
            (1, Some((frames, summary))) => {
                let (which, at, piece) = (input.byte(), input.short(), input.piece());
                let mut frames = frames.clone();
                let count = frames.len().max(1);
                match frames.get_mut(usize::from(which) % count) {
                    Some(frame) => patch(frame, at.into(), piece),
                    None => frames.push(piece.to_vec()),
                }
                objects.insert(name, again(&object.name, &frames, summary));
            }
            (2, Some((frames, summary))) => {
                let mut summary = summary.clone();
                patch(&mut summary, input.short().into(), input.piece());
                objects.insert(name, again(&object.name, frames, &summary));
            }
            (3, _) => {
                let other = &fixture[usize::from(input.byte()) % fixture.len()];
                if other.name != object.name && object.sealed.is_some() {
                    broken.push(other.name.to_string());
                }
                objects.insert(other.name.to_string(), object.bytes.clone());
            }
            (4, Some((_, summary))) => {
                objects.insert(name, again(&object.name, &[input.piece().to_vec()], summary));
            }
            (1 | 2 | 4 | 5, _) => {
                let mut bytes = object.bytes.clone();
                patch(&mut bytes, input.short().into(), input.piece());
                if bytes != object.bytes && object.sealed.is_some() {
                    broken.push(name.clone());
                }
                objects.insert(name, bytes);
            }
            (6, _) => {
                let text = String::from_utf8_lossy(input.piece()).into_owned();
                if let Ok(name) = ObjectName::new(text) {
                    let bytes = match &object.sealed {
                        Some((frames, summary)) => again(&name, frames, summary),
                        None => object.bytes.clone(),
                    };
                    objects.insert(name.to_string(), bytes);
                }
            }
            (_, _) => {
                let end = usize::from(input.short()).min(object.bytes.len());
                if end < object.bytes.len() && object.sealed.is_some() {
                    broken.push(name.clone());
                }
                objects.insert(name, object.bytes[..end].to_vec());
            }
        }
    }
    // A later change may have mended what an earlier one broke.
    if changes > 1 {
        broken.clear();
    }
    Changed { objects, broken }
}

fn request(target: Target) -> RestoreRequest {
    RestoreRequest::new("/nowhere".into(), target, "x".into())
}

/// No failure is one of the program.
fn outside<T>(result: Result<T, Error>) -> Option<T> {
    match result {
        Ok(value) => Some(value),
        Err(e) => {
            assert_ne!(e.kind(), Kind::Internal, "{e}");
            let _ = (e.to_string(), e.hints().len());
            None
        }
    }
}

pub fn run(bytes: &[u8]) {
    let mut input = Input::new(bytes);
    let how = input.byte();
    let Changed { objects, broken } = changed(&mut input);
    let place = Place::default();
    for (name, bytes) in objects {
        place.put(&ObjectName::new(name.as_str()).expect("a name"), bytes);
    }
    let Some(repository) = outside(place.open(&KeyMaterial::None)) else { return };
    let layout = layout();
    let now: DateTime<Utc> = "2025-01-22T00:00:00Z".parse().expect("a time");

    let level = if how & 1 == 1 { Level::Full } else { Level::Quick };
    let asked = VerifyRequest { backup: None, level, threads: 1, blocks_at_once: BLOCKS_AT_ONCE };
    let report = wait(verify(&repository, &layout, &asked, Arc::new(Silent)));
    let report = outside(report).map(|report| report.expect("no backup was asked for"));
    if let Some(report) = report {
        serde_json::to_vec(&report).expect("it is written");
        let told = |name: &String| {
            report.problems.iter().any(|p| p.object == *name)
                || report.notices.iter().any(|notice| notice.object == *name)
        };
        // Nobody reads what is being removed, nor what a crashed backup has left.
        let counts = |name: &&String| !name.contains("diff/") && !name.contains("225812Z");
        if level == Level::Full {
            for name in broken.iter().filter(counts) {
                assert!(told(name), "{name} is damaged, and nobody says so");
            }
        }
    }

    let cluster = ClusterSettings::named("main");
    if let Some(info) = outside(wait(info(&repository, &cluster, None))) {
        serde_json::to_vec(&info).expect("it is written");
    }
    let held = outside(wait(leases(&repository, &layout))).unwrap_or_default();
    if let Some(facts) = outside(wait(Facts::read(&repository, &layout, &held, now))) {
        let rules = match how & 2 {
            0 => RetentionSettings::NONE,
            _ => RetentionSettings {
                full: Some(1),
                days: Some(1),
                daily: Some(1),
                yearly: Some(1),
                ..RetentionSettings::NONE
            },
        };
        let planned = plan(&rules, &facts);
        harmless_cuts(&rules, &facts);
        if how & 2 == 0 {
            let goes = planned.backups.iter().find(|verdict| !verdict.stays());
            assert!(goes.is_none(), "a backup expires without a rule");
        }
    }
    let target = match how & 12 {
        0 => Target::Latest,
        4 => Target::Time(now),
        8 => Target::Lsn(pgkeep::postgres::Lsn(0x400_0100)),
        _ => Target::Name("one".into()),
    };
    if let Some(choice) = outside(wait(choose(&repository, &layout, &request(target)))) {
        let known = outside(wait(catalog::backups(&repository, &layout))).expect("as before");
        assert!(known.iter().any(|record| record.id == choice.record.id));
    }
}
