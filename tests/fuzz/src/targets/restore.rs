//! A backup's tree, written out: whatever the tree says, nothing is touched beside the directories that a
//! restore was given.
//!
//! The input is entries: how, permissions, a path behind its length, a content behind its length. How is: 1 a
//! directory; 2 a hash that is wrong; 4 a size that is wrong, in four bytes of its own; 8 blocks that lie elsewhere, by two
//! numbers of two bytes. The tree is sealed here with right counts and sorted paths, and has what every
//! backup has to have, so that the entries are reached.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::Path,
    sync::Arc,
};

use super::{
    input::Input,
    place::{Place, layout, plain, scratch, seal, wait},
};
use pgkeep::{
    progress::Silent,
    repo::{
        BackupId, Repository,
        manifest::{ClusterFacts, Manifest},
        record::{BackupRecord, Tablespace},
        tree::{
            BLOCK, BackupTable, Block, BlockHasher, Extent, FileEntry, FileKind, FileMap,
            INLINE_BLOCKS, PackedEntry, Place as At, block_count, encode_file_leaf,
        },
    },
    restore::{
        settings::{RecoverySettings, Signal},
        write::{WriteRequest, write},
    },
};

const ID: &str = "20250120T205812Z-incr";

/// What every backup has.
const NEEDED: [(&str, &str); 3] =
    [("PG_VERSION", "15\n"), ("backup_label", "START\n"), ("global/pg_control", "control")];

struct Tree {
    hasher: BlockHasher,
    /// The only frame with blocks.
    frame: Vec<u8>,
    entries: BTreeMap<Vec<u8>, FileEntry>,
}

impl Tree {
    fn directory(&mut self, path: &[u8], mode: u32) {
        let entry = FileEntry { path: path.to_vec(), mode, kind: FileKind::Directory };
        self.entries.insert(path.to_vec(), entry);
    }

    /// Adds a file whose blocks are all in the frame, and right.
    fn file(&mut self, path: &[u8], mode: u32, content: &[u8]) -> &mut FileEntry {
        let size = content.len() as u64;
        let mut digest = self.hasher.digest(size);
        let mut blocks = Vec::new();
        for bytes in content.chunks(BLOCK).take(INLINE_BLOCKS) {
            let hash = self.hasher.block(bytes);
            digest.add(hash);
            let place = At { backup: 0, pack: 0, frame: 0, offset: self.frame.len() as u32 };
            self.frame.extend_from_slice(bytes);
            blocks.push(Block::Stored { place, hash });
        }
        let kind = FileKind::File { size, digest: digest.finish(), map: FileMap::Inline(blocks) };
        let entry = FileEntry { path: path.to_vec(), mode, kind };
        self.entries.insert(path.to_vec(), entry);
        self.entries.get_mut(path).expect("just put there")
    }

    fn entry(&mut self, input: &mut Input<'_>) {
        let (how, mode, path) = (input.byte(), input.short().into(), input.piece());
        // A path of the stored form ends at the first NUL.
        let path = path.split(|b| *b == 0).next().unwrap_or_default();
        if how & 1 == 1 {
            return self.directory(path, mode);
        }
        let content = input.piece();
        let entry = self.file(path, mode, content);
        let FileKind::File { size, map: FileMap::Inline(blocks), .. } = &mut entry.kind else {
            return;
        };
        for block in blocks.iter_mut() {
            let Block::Stored { place, hash } = block else { continue };
            *hash ^= u64::from(how & 2);
            if how & 8 == 8 {
                (place.frame, place.offset) = (input.short().into(), input.short().into());
            }
        }
        if how & 4 == 4 {
            let lied = u64::from(input.word());
            if block_count(lied) <= INLINE_BLOCKS as u64 {
                *size = lied;
                blocks.resize(block_count(lied) as usize, Block::Zero);
            }
        }
    }

    /// Stores it as a backup.
    fn store(mut self, place: &Place, repository: &Repository) {
        for (path, content) in NEEDED {
            if !matches!(
                self.entries.get(path.as_bytes()),
                Some(FileEntry { kind: FileKind::File { .. }, .. })
            ) {
                self.file(path.as_bytes(), 0o600, content.as_bytes());
            }
        }
        self.entries.entry(b"global".to_vec()).or_insert_with(|| FileEntry {
            path: b"global".to_vec(),
            mode: 0o700,
            kind: FileKind::Directory,
        });
        let id: BackupId = ID.parse().expect("an id");
        let mut table = BackupTable::default();
        table.number(&id);
        let bytes = |entry: &FileEntry| match entry.kind {
            FileKind::File { size, .. } => size,
            FileKind::Directory => 0,
        };
        let bytes = self.entries.values().map(bytes).sum();
        let packed: Vec<_> = self.entries.values().map(PackedEntry::new).collect();
        let leaf = encode_file_leaf(packed.iter(), &table).expect("all of one backup");
        let at = At { backup: 0, pack: 900_000, frame: 0, offset: 0 };
        let extent = Extent { place: at, len: leaf.len() as u32 };
        for (pack, frame) in [(0, self.frame), (900_000, leaf)] {
            let name = layout().pack(&id, pack);
            place.put(&name, seal(repository, &name, &[&frame], &[]));
        }
        let facts = ClusterFacts {
            format: 1,
            backup: id.clone(),
            block_size: BLOCK as u32,
            directory_mode: 0o700,
            tablespaces: vec![
                Tablespace { oid: 16400, location: "/old".into(), in_place: false },
                Tablespace { oid: 16402, location: "pg_tblspc/16402".into(), in_place: true },
            ],
            entries: self.entries.len() as u64,
            bytes,
        };
        let manifest = Manifest { facts, leaves: vec![extent], table, references: Vec::new() };
        wait(manifest.create(repository, &layout())).expect("it is stored");
    }
}

fn record() -> BackupRecord {
    serde_json::from_value(serde_json::json!({
        "format": 1, "id": ID, "cluster": "main", "kind": "incr", "asked": "incr", "label": "",
        "system": "15-7450000000000000001", "server-version": "15.18", "source": "primary",
        "timeline": 1, "start-lsn": "0/28", "stop-lsn": "0/99", "segment-size": 16_777_216,
        "started-at": "2025-01-20T12:00:00Z", "stopped-at": "2025-01-20T12:00:00Z",
        "data-checksums": true, "pgkeep": "0.1.0",
        "sizes": { "files": 0, "cluster": 0, "raw": 0, "stored": 0 }
    }))
    .expect("a record")
}

fn names(folder: &Path) -> BTreeSet<String> {
    let entries = fs::read_dir(folder).expect("it can be read");
    let name = |entry: std::io::Result<fs::DirEntry>| entry.expect("an entry").file_name();
    entries.map(|entry| name(entry).to_string_lossy().into_owned()).collect()
}

pub fn run(bytes: &[u8]) {
    let mut input = Input::new(bytes);
    let (place, repository) = plain();
    let hasher = BlockHasher::new(repository.keyring());
    let mut tree = Tree { hasher, frame: Vec::new(), entries: BTreeMap::new() };
    while !input.is_empty() && tree.entries.len() < 64 {
        tree.entry(&mut input);
    }
    let files: Vec<_> = tree.entries.keys().cloned().collect();
    tree.store(&place, &repository);

    let root = scratch();
    let above = root.path().join("above");
    let (pgdata, space) = (above.join("data"), above.join("space"));
    fs::create_dir(&above).and_then(|()| fs::create_dir(&space)).expect("directories");
    fs::write(root.path().join("stays"), "stays").expect("a file");
    let written = wait(write(
        WriteRequest {
            repository: &repository,
            layout: &layout(),
            record: &record(),
            pgdata: &pgdata,
            tablespaces: &BTreeMap::from([(16400, space)]),
            settings: RecoverySettings {
                signal: Signal::Recovery,
                lines: vec![("restore_command".into(), "x".into())],
                alone: false,
            },
            threads: 1,
        },
        Arc::new(Silent),
    ));
    assert_eq!(names(root.path()), BTreeSet::from(["above".into(), "stays".into()]));
    assert_eq!(fs::read(root.path().join("stays")).expect("it stays"), b"stays");
    assert!(names(&above).is_subset(&BTreeSet::from(["data".into(), "space".into()])));
    if written.is_err() {
        assert!(!pgdata.join("global/pg_control").exists(), "what failed can't be started");
        return;
    }
    for path in files {
        let path = std::str::from_utf8(&path).unwrap_or_default();
        let leads_out = |part: &str| matches!(part, "." | "..") || path.starts_with('/');
        assert!(!path.split('/').any(leads_out), "{path:?} was written");
    }
}
