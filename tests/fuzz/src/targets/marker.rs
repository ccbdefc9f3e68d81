//! Directories that a restore is to write to, with what earlier restores and servers left in them.
//!
//! The input is the data directory's marker, its `postmaster.pid` and the marker of a tablespace's directory, each
//! behind its length of two bytes; a length of 65535 stands for no file at all. Then comes a byte: 1 the data directory
//! has other files too, 2 so has the tablespace's, 4 the restore that is begun has no tablespace. In the markers `ABOVE`
//! stands for the directory above all. What is refused is left as it was; what nobody gave to the restore, and no
//! marker of its own says that a restore was filling it, is left as it was in any case.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

use pgkeep::{
    repo::id::RandomId,
    restore::{
        guard::{Claim, Places},
        marker::{MARKER, Marker, Phase},
    },
};
use tempfile::TempDir;

use super::{input::Input, place::scratch};

/// All files below a directory with their content; directories have none.
fn all(folder: &Path) -> BTreeMap<PathBuf, Option<Vec<u8>>> {
    let mut found = BTreeMap::new();
    for entry in fs::read_dir(folder).expect("it can be read") {
        let path = entry.expect("an entry").path();
        if path.is_dir() {
            found.extend(all(&path));
            found.insert(path, None);
        } else {
            let content = fs::read(&path).expect("a file");
            found.insert(path, Some(content));
        }
    }
    found
}

/// A file that may be none.
fn file(input: &mut Input<'_>, path: &Path, above: &Path) {
    let len = input.short();
    let content = input.take(if len == u16::MAX { 0 } else { len.into() });
    if len < u16::MAX {
        let text = String::from_utf8_lossy(content);
        let replaced = text.replace("ABOVE", above.to_str().expect("UTF-8"));
        let bytes = if text.contains("ABOVE") { replaced.into_bytes() } else { content.to_vec() };
        fs::write(path, bytes).expect("a file");
    }
}

/// What is read is the same when it is written and read again.
fn again(marker: &Marker) {
    let folder = scratch();
    marker.write(folder.path()).expect("it is written");
    let read = Marker::read(folder.path()).expect("it is read");
    assert_eq!(read.as_ref(), Some(marker));
}

fn new(folder: &Path) -> Marker {
    Marker {
        product: Marker::PRODUCT.into(),
        restore: RandomId([3; 16]),
        repository: RandomId([4; 16]),
        backup: "20250120T205812Z-incr".parse().expect("an id"),
        started: "2025-01-20T12:00:00Z".parse().expect("a time"),
        phase: Phase::Writing,
        data_directory: folder.to_owned(),
        tablespaces: BTreeMap::new(),
    }
}

pub fn run(bytes: &[u8]) {
    let mut input = Input::new(bytes);
    let root: TempDir = scratch();
    let above = root.path().canonicalize().expect("it is there");
    let [pgdata, space, other, unmarked] =
        ["data", "space", "other", "unmarked"].map(|name| above.join(name));
    for folder in [&pgdata, &space, &other, &unmarked] {
        fs::create_dir(folder).expect("a directory");
    }
    fs::write(other.join("stays"), "stays").expect("a file");
    file(&mut input, &pgdata.join(MARKER), &above);
    file(&mut input, &pgdata.join("postmaster.pid"), &above);
    file(&mut input, &space.join(MARKER), &above);
    let more = input.byte();
    if more & 1 == 1 {
        fs::create_dir(pgdata.join("global")).expect("a directory");
        fs::write(pgdata.join("global/pg_control"), "control").expect("a file");
    }
    if more & 2 == 2 {
        fs::write(space.join("file"), "file").expect("a file");
    }
    let marked = Marker::read(&pgdata).ok().flatten();
    let of_space = Marker::read(&space).ok().flatten();
    marked.iter().chain(&of_space).for_each(again);
    let tablespaces = match more & 4 {
        0 => BTreeMap::from([(16400, space.clone())]),
        _ => BTreeMap::new(),
    };
    let before = all(&above);
    let taken = Places::check(&pgdata, &tablespaces, None)
        .and_then(|places| Claim::take(&places, new(&pgdata)));
    let after = all(&above);
    let Ok(claim) = taken else {
        assert_eq!(after, before, "what is refused was changed");
        return;
    };
    assert!(marked.is_some() || (more & 1 == 0 && !pgdata.join("postmaster.pid").exists()));
    let mine = |path: &Path| {
        // Of a tablespace's directory the old restore has to be known by its marker in it.
        let same = of_space.as_ref().map(|m| m.restore) == marked.as_ref().map(|m| m.restore);
        path.starts_with(&pgdata)
            || (path.starts_with(&space) && (more & 4 == 0 || (of_space.is_some() && same)))
    };
    for (path, content) in &before {
        assert!(mine(path) || after.get(path) == Some(content), "{} was touched", path.display());
    }
    assert!(after.keys().all(|path| mine(path) || before.contains_key(path)));
    // What was given is empty but for the new marker.
    let given = [&pgdata].into_iter().chain(tablespaces.values());
    for folder in given {
        assert_eq!(all(folder).len(), 1, "{} isn't empty", folder.display());
        let read = Marker::read(folder).expect("it is read").expect("it is there");
        assert_eq!((read.restore, read.phase), (RandomId([3; 16]), Phase::Writing));
    }
    claim.finish().expect("it ends");
}
