//! What commands leave below `state-dir` for the next one: notes of what is stored, segments fetched ahead.
//!
//! The first byte chooses: 0 a note in the spool, 1 one about a segment that is stored, 2 which segment is wanted, 3
//! names of files in the spool, by lines. Of a note come a byte, and what else it says. The byte is: 1 its time is
//! right, 2 the file's identity is, 4 the rest is a note as it is. A segment is taken, or believed to be stored, only
//! if the note says exactly what is there; nothing else is touched.

use std::{fs, path::Path};

use pgkeep::{
    archive::{
        data_directory::DataDirectory,
        proven::Proven,
        spool::Spool,
        state::{Identity, Moment},
    },
    config::{ClusterSettings, KeySource, Location, RepositorySettings, RetentionSettings},
    postgres::{SegmentName, WalFile},
};
use serde_json::{Value, json};
use tempfile::TempDir;

use super::{input::Input, place::scratch};

const SEGMENT: &str = "000000010000000000000003";

/// A data directory, as far as the notes need one.
fn data_directory(root: &Path) -> DataDirectory {
    let path = root.join("data");
    fs::create_dir_all(path.join("global")).expect("a directory");
    let control = include_bytes!("../../../../fixtures/fuzz/control/seed-15");
    fs::write(path.join("global/pg_control"), control).expect("a file");
    fs::write(path.join("PG_VERSION"), "15\n").expect("a file");
    DataDirectory::read(&path).expect("the fixture's")
}

fn repository() -> RepositorySettings {
    RepositorySettings {
        name: "main".into(),
        location: Location::Directory("/nowhere".into()),
        key: KeySource::Unencrypted,
        compression_level: 1,
        retention: RetentionSettings::NONE,
    }
}

/// A note about `file`, and whether it says what is so.
fn note(input: &mut Input<'_>, file: &Path, fields: &[(&str, Value)]) -> (Vec<u8>, bool) {
    let how = input.byte();
    if how & 4 == 4 {
        return (input.rest().to_vec(), false);
    }
    let wrong = |piece: &[u8]| serde_json::from_slice(piece).unwrap_or(Value::Null);
    let (at, identity) = (wrong(input.piece()), wrong(input.piece()));
    let mut note = json!({ "at": at, "file": identity });
    if how & 1 == 1 {
        note["at"] = json!(Moment::now().expect("the system tells"));
    }
    if how & 2 == 2 {
        note["file"] = json!(Identity::of(file).expect("it is there"));
    }
    for (name, value) in fields {
        note[*name] = value.clone();
    }
    if let Ok(Value::Object(more)) = serde_json::from_slice(input.rest()) {
        for (name, value) in more {
            note[name] = value;
        }
    }
    // Whoever writes these over says something else.
    (note.to_string().into_bytes(), how & 3 == 3)
}

fn spool(root: &Path) -> Spool {
    let directory = data_directory(root);
    Spool::of(&root.join("state"), &directory, "main", &[&repository()]).expect("a place")
}

fn of_spool(root: &Path, input: &mut Input<'_>) {
    let spool = spool(root);
    let segment: SegmentName = SEGMENT.parse().expect("a segment");
    let path = spool.path(segment);
    let folder = path.parent().expect("a folder").to_owned();
    fs::write(&path, "content").expect("a file");
    let fields = [("repository", json!("main")), ("object", json!("object"))];
    let (note, _) = note(input, &path, &fields);
    fs::write(folder.join(format!("{SEGMENT}.json")), &note).expect("a file");
    let says = serde_json::from_slice::<Value>(&note).unwrap_or_default();
    let identity = json!(Identity::of(&path).expect("it is there"));
    let boot = json!(Moment::now().expect("the system tells"))["boot"].clone();
    let destination = root.join("destination");
    let taken = spool.take(segment, &destination, |_, _| Ok(())).expect("there is room");
    match taken {
        Some(taken) => {
            assert_eq!((&says["file"], &says["at"]["boot"]), (&identity, &boot));
            assert_eq!(says["object"].as_str(), Some(taken.object.as_str()));
            assert_eq!(fs::read(&destination).expect("it is there"), b"content");
            assert!(!path.exists() && !spool.has(segment));
        }
        None => assert!(path.exists() && !destination.exists()),
    }
}

fn of_proven(root: &Path, input: &mut Input<'_>) {
    let (directory, repository) = (data_directory(root), repository());
    let cluster = ClusterSettings::named("main");
    let proven = Proven::of(&root.join("state"), &directory, &cluster);
    let path = root.join(SEGMENT);
    fs::write(&path, "content").expect("a file");
    let file: WalFile = SEGMENT.parse().expect("a segment");
    // Where the notes lie is seen by one.
    proven.note(file, Identity::of(&path).expect("it is there"), &[&repository]);
    assert!(proven.has(&path, file, &[&repository]));
    let of_system = fs::read_dir(root.join("state/proven")).expect("a folder").next();
    let folder = of_system.expect("one").expect("an entry").path();
    let written = fs::read(folder.join(SEGMENT)).expect("a note");
    let written: Value = serde_json::from_slice(&written).expect("what was written");
    let places = written["places"].clone();
    assert_eq!(places.as_array().map(Vec::len), Some(1));
    let (note, _) = note(input, &path, &[("places", places.clone())]);
    fs::write(folder.join(SEGMENT), &note).expect("a file");
    let says = serde_json::from_slice::<Value>(&note).unwrap_or_default();
    if proven.has(&path, file, &[&repository]) {
        let identity = json!(Identity::of(&path).expect("it is there"));
        assert_eq!(says["file"], identity);
        assert!(says["places"].as_array().is_some_and(|all| all.contains(&places[0])));
    }
    proven.sweep();
}

fn wanted(root: &Path, content: &[u8]) {
    let spool = spool(root);
    let segment: SegmentName = SEGMENT.parse().expect("a segment");
    let folder = spool.path(segment).parent().expect("a folder").to_owned();
    fs::write(folder.join("wanted"), content).expect("a file");
    if let Some(wanted) = spool.wanted() {
        assert_eq!(wanted.to_string().as_bytes(), content);
        spool.want(wanted).expect("there is room");
        assert_eq!(spool.wanted(), Some(wanted));
        assert!(spool.path(wanted).starts_with(&folder));
    }
}

fn names(root: &Path, content: &[u8]) {
    use std::os::unix::ffi::OsStrExt;
    let spool = spool(root);
    let segment: SegmentName = SEGMENT.parse().expect("a segment");
    let folder = spool.path(segment).parent().expect("a folder").to_owned();
    for name in content.split(|b| *b == b'\n') {
        let is_one =
            !name.is_empty() && name.len() < 200 && !name.contains(&0) && !name.contains(&b'/');
        if is_one && name != b"." && name != b".." {
            let path = folder.join(std::ffi::OsStr::from_bytes(name));
            fs::write(path, "x").expect("a file");
        }
    }
    let stays = root.join(SEGMENT);
    fs::write(&stays, "stays").expect("a file");
    spool.drop_all_but(&[segment]);
    for entry in fs::read_dir(&folder).expect("a folder") {
        let name = entry.expect("an entry").file_name();
        let name = name.to_string_lossy();
        let known = ["lock", "wanted", SEGMENT].iter().any(|known| name.starts_with(known));
        assert!(known || name.contains('\u{fffd}'), "{name} stays");
    }
    assert!(stays.exists());
}

pub fn run(bytes: &[u8]) {
    let mut input = Input::new(bytes);
    let root: TempDir = scratch();
    // No other user may write there.
    let root = root.path();
    match input.byte() % 4 {
        0 => of_spool(root, &mut input),
        1 => of_proven(root, &mut input),
        2 => wanted(root, input.rest()),
        _ => names(root, input.rest()),
    }
}
