//! That frames are read once, by counting what is read.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex},
};

use async_trait::async_trait;
use bytes::Bytes;
use pgkeep::{
    repo::{
        Repository,
        keys::{KeyMaterial, read_key_file},
        sealed::ObjectReader,
        tree::BLOCK,
    },
    storage::{self, Capabilities, Listed, ObjectName, ObjectWriter, Range, Storage, local::Local},
};

use super::{House, made_up, store::pages};

/// Storage that counts how often each pack is read from.
#[derive(Debug)]
struct Counting(Local, Mutex<BTreeMap<String, usize>>);

#[async_trait]
impl Storage for Counting {
    fn address(&self) -> &str {
        self.0.address()
    }

    fn capabilities(&self) -> Capabilities {
        self.0.capabilities()
    }

    async fn create(&self, name: &ObjectName) -> storage::Result<Box<dyn ObjectWriter>> {
        self.0.create(name).await
    }

    async fn read(&self, name: &ObjectName, range: Range) -> storage::Result<Bytes> {
        *self.1.lock().unwrap().entry(name.to_string()).or_default() += 1;
        self.0.read(name, range).await
    }

    async fn size(&self, name: &ObjectName) -> storage::Result<u64> {
        self.0.size(name).await
    }

    async fn list(
        &self,
        prefix: &str,
        after: Option<&str>,
        limit: usize,
    ) -> storage::Result<Vec<Listed>> {
        self.0.list(prefix, after, limit).await
    }

    async fn folders(&self, folder: &str) -> storage::Result<Vec<String>> {
        self.0.folders(folder).await
    }

    async fn delete(&self, name: &ObjectName) -> storage::Result<()> {
        self.0.delete(name).await
    }

    async fn replace(&self, name: &ObjectName, bytes: Bytes) -> storage::Result<()> {
        self.0.replace(name, bytes).await
    }

    async fn ensure_durable(&self, name: &ObjectName) -> storage::Result<()> {
        self.0.ensure_durable(name).await
    }
}

#[test]
fn files_of_several_windows_come_back_and_frames_are_read_once() {
    let mut files = made_up();
    // 300 MiB, mostly holes: more blocks than a window has.
    let mut long = vec![0; 38_000 * BLOCK + 5];
    for (i, at) in (0..38_000).step_by(500).enumerate() {
        long[at * BLOCK..][..BLOCK].copy_from_slice(&pages(500 + i as u64, 1));
    }
    files.put("base/2/long", long);
    for i in 0..20 {
        files.put(&format!("base/3/{i}"), pages(700 + i, 9));
    }
    let (mut house, stored) = House::with(&files);
    let root = house.path("repository");
    let counting = Arc::new(Counting(Local::open(&root).unwrap(), Mutex::default()));
    let key = KeyMaterial::KeyFile(read_key_file(&root.with_extension("key")).unwrap());
    let opened = Repository::open("main", counting.clone(), &key, 1);
    house.repository = house.runtime.block_on(opened).unwrap();
    house.restore(&stored).unwrap();
    house.assert_restored(&files);

    let reads = counting.1.lock().unwrap().clone();
    let mut packs = 0;
    for (name, reads) in reads.iter().filter(|(name, _)| name.contains("/packs/0")) {
        let name = ObjectName::new(name.clone()).unwrap();
        let reader = ObjectReader::open(&house.repository, &name);
        let frames = house.runtime.block_on(reader).unwrap().frame_count();
        // Its end, its header, each frame; two windows may share one.
        assert!(
            (frames + 2..=frames + 3).contains(reads),
            "{name}: {reads} reads, {frames} frames"
        );
        packs += 1;
    }
    assert!(packs > 2);
}
