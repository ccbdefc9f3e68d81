//! What a stored backup holds, read through the repository's own code.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    os::unix::{ffi::OsStrExt, fs::PermissionsExt},
    path::Path,
    sync::Arc,
};

use pgkeep::{
    config::{KeySource, Location, RepositorySettings, RetentionSettings},
    repo::{
        self, Repository, catalog,
        layout::ClusterLayout,
        manifest::Manifest,
        pack::{FIRST_LEAF_PACK, PackReader},
        record::BackupRecord,
        tree::{
            BLOCK, BackupTable, Block, BlockHasher, Extent, FileEntry, FileKind, FileMap, leaf_len,
        },
        tree_reader::TreeReader,
    },
};

use crate::support::{Pgkeep, objects::objects};

/// A path in a backup, and what is there: its mode, and a file's bytes.
pub type Tree = BTreeMap<Vec<u8>, (u32, Option<Vec<u8>>)>;

/// A copy of a repository, opened: the original belongs to the server's user.
pub struct Opened {
    pub repository: Repository,
    pub layout: ClusterLayout,
    pub runtime: tokio::runtime::Runtime,
    _copy: tempfile::TempDir,
}

impl Opened {
    /// Opens a copy of the repository as it is now.
    pub fn new(pgkeep: &Pgkeep) -> Self {
        let copy = tempfile::tempdir().expect("make a directory");
        let folder = copy.path().join("repository");
        for object in objects(&pgkeep.repository()) {
            let to = folder.join(&object.name);
            fs::create_dir_all(to.parent().expect("a folder")).expect("make a folder");
            fs::copy(&object.path, &to).expect("copy an object");
        }
        let key = copy.path().join("key");
        fs::copy(pgkeep.key_file("main"), &key).expect("copy the key");
        fs::set_permissions(&key, fs::Permissions::from_mode(0o600)).expect("chmod");
        let settings = RepositorySettings {
            name: "main".into(),
            location: Location::Directory(folder),
            key: KeySource::File(key),
            compression_level: 1,
            retention: RetentionSettings::NONE,
        };
        let runtime = tokio::runtime::Runtime::new().expect("start a runtime");
        let repository = runtime.block_on(repo::open::open(&settings)).expect("open the copy");
        let layout = ClusterLayout::new("main").expect("a name");
        Opened { repository, layout, runtime, _copy: copy }
    }

    /// The committed backups, oldest first.
    pub fn backups(&self) -> Vec<BackupRecord> {
        let backups = catalog::backups(&self.repository, &self.layout);
        self.runtime.block_on(backups).expect("list the backups")
    }

    /// Everything in a backup. Hashes, digests and the reference list are checked on the way.
    pub fn tree(&self, record: &BackupRecord) -> Tree {
        self.runtime.block_on(self.read(record))
    }

    async fn read(&self, record: &BackupRecord) -> Tree {
        let manifest = Manifest::read(&self.repository, &self.layout, &record.id)
            .await
            .expect("read the manifest");
        let packs = Arc::new(PackReader::new(&self.repository, &self.layout));
        let mut reader = Reader {
            hasher: BlockHasher::new(self.repository.keyring()),
            leaves: TreeReader::new(packs.clone()),
            packs: &packs,
            frame: (None, Vec::new()),
            table: manifest.table.clone(),
            live: BTreeMap::new(),
        };
        let mut tree = Tree::new();
        for extent in &manifest.leaves {
            let leaf = reader.leaves.file_leaf(&mut reader.table, *extent).await;
            let leaf = leaf.expect("a file leaf");
            reader.count(*extent, leaf.over.map(|(whole, _)| whole));
            for entry in leaf.items {
                let (path, mode) = (entry.path.clone(), entry.mode);
                let content = reader.content(entry).await;
                assert!(tree.insert(path, (mode, content)).is_none());
            }
        }
        let said: BTreeMap<_, _> =
            manifest.references.iter().map(|r| ((r.backup.clone(), r.pack), r.live)).collect();
        let (table, live) = (&reader.table, reader.live);
        let id = |number| table.get(number).expect("a backup of the table").clone();
        let live = live.into_iter().map(|((backup, pack), live)| ((id(backup), pack), live));
        assert_eq!(said, live.collect(), "the reference list");
        assert_eq!(manifest.facts.entries, tree.len() as u64);
        assert_eq!(manifest.facts.tablespaces, record.tablespaces);
        let files = tree.values().filter_map(|(_, content)| content.as_ref());
        assert_eq!(record.sizes.files, files.clone().count() as u64);
        assert_eq!(record.sizes.cluster, files.map(|f| f.len() as u64).sum::<u64>());
        tree
    }
}

struct Reader<'a> {
    hasher: BlockHasher,
    leaves: TreeReader,
    packs: &'a PackReader,
    frame: (Option<(u32, u32, u32)>, Vec<u8>),
    table: BackupTable,
    /// Raw bytes that were read of each backup's packs.
    live: BTreeMap<(u32, u32), u64>,
}

impl Reader<'_> {
    /// Counts a leaf, and the one that it is a patch over.
    fn count(&mut self, extent: Extent, over: Option<Extent>) {
        for Extent { place, len } in over.into_iter().chain([extent]) {
            assert!(place.pack >= FIRST_LEAF_PACK);
            *self.live.entry((place.backup, place.pack)).or_default() += u64::from(len);
        }
    }

    async fn content(&mut self, entry: FileEntry) -> Option<Vec<u8>> {
        let FileKind::File { size, digest, map } = entry.kind else { return None };
        let mut blocks = Vec::new();
        match map {
            FileMap::Inline(inline) => blocks = inline,
            FileMap::Leaves(map) => {
                for (number, extent) in map.extents.into_iter().enumerate() {
                    let count = leaf_len(size, number);
                    let leaf = self.leaves.map_leaf(&mut self.table, extent, count).await;
                    let leaf = leaf.expect("a map leaf");
                    self.count(extent, leaf.over.map(|(whole, _)| whole));
                    blocks.extend(leaf.items);
                }
            }
        }
        let mut content = Vec::with_capacity(size as usize);
        let mut builder = self.hasher.digest(size);
        for block in blocks {
            let len = BLOCK.min(size as usize - content.len());
            match block {
                Block::Zero => {
                    builder.add(self.hasher.zero_block());
                    content.resize(content.len() + len, 0);
                }
                Block::Stored { place, hash } => {
                    let key = Some((place.backup, place.pack, place.frame));
                    if self.frame.0 != key {
                        let frame = self.packs.frame(&self.table, place).await;
                        self.frame = (key, frame.expect("read a frame"));
                    }
                    *self.live.entry((place.backup, place.pack)).or_default() += len as u64;
                    let bytes = &self.frame.1[place.offset as usize..][..len];
                    assert_eq!(self.hasher.block(bytes), hash);
                    builder.add(hash);
                    content.extend_from_slice(bytes);
                }
            }
        }
        assert_eq!(content.len() as u64, size);
        assert_eq!(builder.finish(), digest);
        Some(content)
    }
}

/// The data directory as it lies there, links to tablespaces followed.
pub fn on_disk(pgdata: &Path) -> Tree {
    fn collect(folder: &Path, prefix: &[u8], tree: &mut Tree) {
        for entry in fs::read_dir(folder).expect("read a directory").flatten() {
            let path = [prefix, entry.file_name().as_bytes()].concat();
            let meta = fs::metadata(entry.path()).expect("look at a file");
            let mode = meta.permissions().mode() & 0o7777;
            if meta.is_dir() {
                collect(&entry.path(), &[&path, &b"/"[..]].concat(), tree);
                if !entry.path().is_symlink() {
                    tree.insert(path, (mode, None));
                }
            } else if meta.is_file() {
                let content = fs::read(entry.path()).expect("read a file");
                tree.insert(path, (mode, Some(content)));
            }
        }
    }
    let mut tree = Tree::new();
    collect(pgdata, b"", &mut tree);
    tree
}

/// The paths that only one side has, or that differ.
pub fn differences(a: &Tree, b: &Tree) -> BTreeSet<String> {
    let paths: BTreeSet<_> = a.keys().chain(b.keys()).collect();
    let differ = paths.into_iter().filter(|path| a.get(*path) != b.get(*path));
    differ.map(|path| String::from_utf8_lossy(path).into_owned()).collect()
}
