//! What can be done to an object.

use std::{fs, path::PathBuf};

use super::Sound;
use crate::support::objects::{Object, ObjectKind, cut, delete, flip_bit, objects, swap};

/// A part of an object.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Region {
    /// Magic, version, key id, salt.
    Header,
    /// A frame's lengths.
    FramePrefix,
    /// A frame's content.
    Frame,
    /// The closing frame, which has the index and the summary.
    Index,
    /// The copy of the header, the closing frame's place, the magic.
    Trailer,
    /// Somewhere in an object that isn't sealed.
    Text,
}

/// What is done to an object.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Deed {
    Delete,
    /// Its last byte is cut off.
    CutByte,
    /// Half of it is cut off.
    CutHalf,
    /// All of its bytes are.
    CutAll,
    /// A bit is flipped: of the byte at an offset, from the end if it is negative.
    Flip(Region, i64),
    /// It and another of its kind get each other's names.
    Swap,
    /// It is there under another name too, as one of its kind has.
    Duplicate,
    /// Beside it lies something of no known name.
    Stranger,
}

impl Deed {
    /// The column of the table that it belongs to.
    pub fn column(self) -> &'static str {
        match self {
            Deed::Delete => "delete",
            Deed::CutByte | Deed::CutHalf | Deed::CutAll => "cut",
            Deed::Flip(Region::Header, _) => "flip header",
            Deed::Flip(Region::FramePrefix | Region::Frame | Region::Text, _) => "flip frame",
            Deed::Flip(Region::Index, _) => "flip index",
            Deed::Flip(Region::Trailer, _) => "flip trailer",
            Deed::Swap => "swap",
            Deed::Duplicate => "duplicate",
            Deed::Stranger => "stranger",
        }
    }

    /// Whether it is one that a quick look has to see: what is missing or cut.
    pub fn shows_quickly(self) -> bool {
        matches!(self, Deed::Delete | Deed::CutByte | Deed::CutHalf | Deed::CutAll)
    }
}

/// The columns of the table, in order.
pub const COLUMNS: [&str; 9] = [
    "delete",
    "cut",
    "flip header",
    "flip frame",
    "flip index",
    "flip trailer",
    "swap",
    "duplicate",
    "stranger",
];

/// Something to be done to one object of a copy.
#[derive(Debug, Clone)]
pub struct Mutation {
    pub kind: ObjectKind,
    /// The object, relative to the repository.
    pub object: String,
    /// Another object: what it is swapped with, or the new name.
    pub other: Option<String>,
    pub deed: Deed,
}

/// Whether objects of this kind are in the container that authenticates them.
fn is_sealed(kind: ObjectKind) -> bool {
    !matches!(kind, ObjectKind::RepositoryFile | ObjectKind::Keys | ObjectKind::Lease)
}

/// All that is done, to every object of the copy.
pub fn all(sound: &Sound) -> Vec<Mutation> {
    let objects = objects(&sound.root());
    let begun = objects.iter().filter(|object| object.kind == ObjectKind::Begin);
    let ids: Vec<String> =
        begun.map(|object| object.name.split('/').nth(3).unwrap().to_owned()).collect();
    let mut all = Vec::new();
    for object in &objects {
        let mut add = |deed, other: Option<String>| {
            let (kind, object) = (object.kind, object.name.clone());
            all.push(Mutation { kind, object, other, deed });
        };
        for deed in [Deed::Delete, Deed::CutByte, Deed::CutHalf, Deed::CutAll] {
            add(deed, None);
        }
        flips(object).into_iter().for_each(|deed| add(deed, None));
        let others = objects.iter().filter(|o| o.kind == object.kind && o.name > object.name);
        for other in others {
            add(Deed::Swap, Some(other.name.clone()));
        }
        for name in duplicate_names(object, &ids) {
            if !sound.root().join(&name).exists() {
                add(Deed::Duplicate, Some(name));
            }
        }
        let folder = object.name.rsplit_once('/').map(|(folder, _)| format!("{folder}/"));
        add(Deed::Stranger, Some(format!("{}stranger", folder.unwrap_or_default())));
    }
    all
}

/// A bit in each region of an object.
fn flips(object: &Object) -> Vec<Deed> {
    let bytes = fs::read(&object.path).unwrap();
    let flip = |region, at| Deed::Flip(region, at);
    if !is_sealed(object.kind) {
        let text = String::from_utf8(bytes).unwrap();
        // The key of a slot, or an id.
        let secret = ["\"sealed\": \"", "\"repository\": \"", "\"id\":\""];
        let found = secret.iter().find_map(|key| Some(text.find(key)? + key.len()));
        let at = found.unwrap_or(text.len() / 2) as i64;
        return vec![flip(Region::Text, 0), flip(Region::Text, at), flip(Region::Text, -2)];
    }
    // Where the closing frame begins is in the trailer.
    let end = bytes.len();
    let at = u64::from_le_bytes(bytes[end - 20..end - 12].try_into().unwrap()) as i64;
    let mut flips: Vec<Deed> = [0, 8, 10, 20, 40, 63].map(|at| flip(Region::Header, at)).to_vec();
    if at > 64 {
        flips.extend([64, 68].map(|at| flip(Region::FramePrefix, at)));
        flips.extend([73, (64 + at) / 2, at - 1].map(|at| flip(Region::Frame, at)));
    }
    flips.extend([at, at + 9, end as i64 - 85].map(|at| flip(Region::Index, at)));
    flips.extend([-84, -40, -20, -12, -1].map(|at| flip(Region::Trailer, at)));
    flips
}

/// Names that objects of the kind may have, and none has.
fn duplicate_names(object: &Object, ids: &[String]) -> Vec<String> {
    let (folder, file) = object.name.rsplit_once('/').unwrap_or(("", &object.name));
    let beside = |file: String| format!("{folder}/{file}");
    let other_id = "a".repeat(32);
    match object.kind {
        ObjectKind::RepositoryFile | ObjectKind::Other => Vec::new(),
        ObjectKind::Keys => vec![beside(file.replacen("000001", "000002", 1))],
        ObjectKind::System => vec![beside(format!("{file}1"))],
        ObjectKind::Segment => {
            // The next but one, and the same on a timeline that isn't there.
            let number = u64::from_str_radix(&file[16..24], 16).unwrap() + 2;
            let (timelines, _) = folder.rsplit_once('/').unwrap();
            vec![
                beside(format!("{}{number:08X}", &file[..16])),
                format!("{timelines}/00000012/00000012{}", &file[8..]),
            ]
        }
        ObjectKind::Partial | ObjectKind::Part => {
            let (segment, _) = file.rsplit_once('.').unwrap();
            vec![beside(format!("{segment}.0123456789abcdef"))]
        }
        ObjectKind::Repair => vec![beside(format!("{file}-2"))],
        ObjectKind::History => {
            let (timelines, _) = folder.rsplit_once('/').unwrap();
            vec![format!("{timelines}/00000012/00000012.history")]
        }
        ObjectKind::BackupHistory => vec![beside(file.replacen(".00000028.", ".00000030.", 1))],
        ObjectKind::WalFloor => vec![beside(other_id)],
        ObjectKind::Pack => {
            let number: u32 = file.parse().unwrap();
            vec![beside(format!("{:06}", number + 7))]
        }
        ObjectKind::Begin
        | ObjectKind::Manifest
        | ObjectKind::Record
        | ObjectKind::Abandoned
        | ObjectKind::Deleted => {
            // In the folders of other backups, and in one that there isn't.
            let (backups, own) = folder.rsplit_once('/').unwrap();
            let folders =
                ids.iter().filter(|id| *id != own).map(|id| format!("{backups}/{id}/{file}"));
            folders.chain([format!("{backups}/20250120T235812Z-full/{file}")]).collect()
        }
        ObjectKind::Pin => {
            let (backup, _) = file.rsplit_once('-').unwrap();
            vec![beside(format!("{backup}-{other_id}"))]
        }
        ObjectKind::Drill => {
            let (time, _) = file.split_once('-').unwrap();
            vec![beside(format!("{time}-{other_id}"))]
        }
        ObjectKind::Lease => vec![beside(other_id)],
    }
}

/// What a mutation has changed, so that it can be undone.
pub struct Undo(Vec<(PathBuf, Option<Vec<u8>>)>);

impl Mutation {
    /// Does it to a copy.
    pub fn apply(&self, sound: &Sound) -> Undo {
        let path = sound.root().join(&self.object);
        let other = self.other.as_ref().map(|other| sound.root().join(other));
        let paths = [Some(path.clone()), other.clone()].into_iter().flatten();
        let undo = Undo(paths.map(|path| (path.clone(), fs::read(&path).ok())).collect());
        let size = fs::metadata(&path).unwrap().len();
        match (self.deed, other) {
            (Deed::Delete, _) => delete(&path),
            (Deed::CutByte, _) => cut(&path, 1),
            (Deed::CutHalf, _) => cut(&path, size.div_ceil(2)),
            (Deed::CutAll, _) => cut(&path, size),
            (Deed::Flip(_, at), _) => flip_bit(&path, at),
            (Deed::Swap, Some(other)) => swap(&path, &other),
            (Deed::Duplicate | Deed::Stranger, Some(other)) => {
                fs::create_dir_all(other.parent().unwrap()).unwrap();
                fs::copy(&path, &other).unwrap();
            }
            (deed, None) => panic!("{deed:?} needs another object"),
        }
        undo
    }

    /// What has to be named by whoever finds it: one of these.
    pub fn names(&self) -> Vec<&str> {
        match self.deed {
            Deed::Duplicate | Deed::Stranger => self.other.iter().map(String::as_str).collect(),
            _ => {
                // What is wrong with a copy may be told of what it is a copy of, a missing part of its
                // segment; what is wrong with the keys, of all of them.
                let copy = self.object.split_once(".repair.");
                let of = copy.or(self.object.split_once(".part.")).map(|(of, _)| of);
                let keys = (self.kind == ObjectKind::Keys).then_some("keys/");
                let names = [Some(self.object.as_str()), self.other.as_deref(), of, keys];
                names.into_iter().flatten().collect()
            }
        }
    }
}

impl Undo {
    /// Puts everything back.
    pub fn back(self) {
        for (path, bytes) in self.0 {
            match bytes {
                Some(bytes) => fs::write(&path, bytes).unwrap(),
                None => {
                    fs::remove_file(&path).unwrap();
                    // A folder that was made for it.
                    let _ = fs::remove_dir(path.parent().unwrap());
                }
            }
        }
    }
}
