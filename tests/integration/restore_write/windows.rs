//! That frames are read once, by counting what is read.

use std::{collections::BTreeMap, sync::Arc};

use pgkeep::{
    repo::{
        Repository,
        keys::{KeyMaterial, read_key_file},
        sealed::ObjectReader,
        tree::BLOCK,
    },
    storage::ObjectName,
};

use super::{House, made_up, store::pages};
use crate::support::reading::Reading;

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
    let reading = Arc::new(Reading::of(&root));
    let key = KeyMaterial::KeyFile(read_key_file(&root.with_extension("key")).unwrap());
    let opened = Repository::open("main", reading.clone(), &key, 1);
    house.repository = house.runtime.block_on(opened).unwrap();
    house.restore(&stored).unwrap();
    house.assert_restored(&files);

    let mut reads: BTreeMap<String, usize> = BTreeMap::new();
    for (name, _) in reading.take() {
        *reads.entry(name).or_default() += 1;
    }
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
