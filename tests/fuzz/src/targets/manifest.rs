//! A backup's manifest, and what it leads to: the raw frames, sealed here and read back.
//!
//! The input is the three frames, each behind its length in two bytes; others than three are tried too.

use pgkeep::repo::{BackupId, manifest::Manifest};

use super::{
    input::Input,
    place::{layout, plain, seal, wait},
};

pub fn run(bytes: &[u8]) {
    let mut input = Input::new(bytes);
    let mut frames = Vec::new();
    while !input.is_empty() && frames.len() < 8 {
        frames.push(input.piece());
    }
    let (place, repository) = plain();
    let (layout, id) = (layout(), "20250120T205812Z-incr".parse::<BackupId>().expect("an id"));
    let name = layout.of_backup(&id, "manifest");
    place.put(&name, seal(&repository, &name, &frames, &[]));
    if let Ok(manifest) = wait(Manifest::read(&repository, &layout, &id)) {
        assert_eq!(manifest.facts.backup, id);
        assert!(manifest.references.is_sorted());
        for extent in &manifest.leaves {
            assert!(manifest.table.get(extent.place.backup).is_some());
        }
    }
}
