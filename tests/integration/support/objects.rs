//! The objects of a repository directory, and how to damage them.

use std::{
    fs,
    path::{Path, PathBuf},
};

use super::scratch::write;

/// What an object is, by its name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum ObjectKind {
    RepositoryFile,
    Keys,
    System,
    Segment,
    Partial,
    Part,
    Repair,
    History,
    BackupHistory,
    WalFloor,
    Begin,
    Manifest,
    Pack,
    Record,
    Abandoned,
    Deleted,
    Pin,
    Drill,
    Lease,
    Other,
}

/// An object in a repository directory.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Object {
    /// Its name, relative to the repository.
    pub name: String,
    pub kind: ObjectKind,
    pub path: PathBuf,
}

/// All objects in a repository directory, by name.
pub fn objects(repository: &Path) -> Vec<Object> {
    let mut found = Vec::new();
    collect(repository, repository, &mut found);
    found.sort();
    found
}

/// The objects of one kind, by name.
pub fn objects_of(repository: &Path, kind: ObjectKind) -> Vec<Object> {
    objects(repository).into_iter().filter(|object| object.kind == kind).collect()
}

fn collect(root: &Path, folder: &Path, found: &mut Vec<Object>) {
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        let path = entry.path();
        let name = path.strip_prefix(root).expect("below the root").to_str().expect("a name");
        if name.starts_with('.') {
            continue;
        }
        if path.is_dir() {
            collect(root, &path, found);
        } else {
            found.push(Object { name: name.to_owned(), kind: kind(name), path: path.clone() });
        }
    }
}

fn kind(name: &str) -> ObjectKind {
    let parts: Vec<&str> = name.split('/').collect();
    match parts.as_slice() {
        ["repo.json"] => ObjectKind::RepositoryFile,
        ["keys", _] => ObjectKind::Keys,
        ["clusters", _, "systems", _] => ObjectKind::System,
        ["clusters", _, "wal", _, _, file] => match file {
            file if file.ends_with(".history") => ObjectKind::History,
            file if file.ends_with(".backup") => ObjectKind::BackupHistory,
            file if file.contains(".partial") => ObjectKind::Partial,
            file if file.contains(".part.") => ObjectKind::Part,
            file if file.contains(".repair.") => ObjectKind::Repair,
            file if file.len() == 24 => ObjectKind::Segment,
            // Where names hold checksums.
            file if file.len() == 41 && file.as_bytes()[24] == b'.' => ObjectKind::Segment,
            _ => ObjectKind::Other,
        },
        ["clusters", _, "wal-floor", _] => ObjectKind::WalFloor,
        ["clusters", _, "backups", _, "begin"] => ObjectKind::Begin,
        ["clusters", _, "backups", _, "manifest"] => ObjectKind::Manifest,
        ["clusters", _, "backups", _, "packs", _] => ObjectKind::Pack,
        ["clusters", _, "backups", _, "backup.json"] => ObjectKind::Record,
        ["clusters", _, "backups", _, "abandoned"] => ObjectKind::Abandoned,
        ["clusters", _, "backups", _, "deleted"] => ObjectKind::Deleted,
        ["clusters", _, "pins", _] => ObjectKind::Pin,
        ["clusters", _, "drills", _] => ObjectKind::Drill,
        ["clusters", _, "leases", _] => ObjectKind::Lease,
        _ => ObjectKind::Other,
    }
}

/// Flips one bit: of the byte at `offset` from the start, or from the end where it is negative.
pub fn flip_bit(path: &Path, offset: i64) {
    let mut bytes = fs::read(path).expect("read an object");
    let at = if offset < 0 { bytes.len() as i64 + offset } else { offset } as usize;
    bytes[at] ^= 1 << (at % 8);
    write(path, bytes);
}

/// Cuts `len` bytes off the end.
pub fn cut(path: &Path, len: u64) {
    let mut bytes = fs::read(path).expect("read an object");
    bytes.truncate(bytes.len().saturating_sub(len as usize));
    write(path, bytes);
}

/// Deletes an object.
pub fn delete(path: &Path) {
    fs::remove_file(path).expect("delete an object");
}

/// Gives two objects each other's name.
pub fn swap(a: &Path, b: &Path) {
    let aside = a.with_extension("swap");
    fs::rename(a, &aside).expect("rename");
    fs::rename(b, a).expect("rename");
    fs::rename(&aside, b).expect("rename");
}
