//! The program killed at each step that the code names (`pgkeep::steps`), while a client writes.
//!
//! Each module has a list of steps and goes through all of it: one that isn't reached fails it. Here it is
//! made sure that no step of the code is in no list.

mod backup;
mod get;
mod push;
mod restore;
mod stream;

use std::{collections::BTreeSet, fs, path::Path};

/// The names in the source, in the calls of `reached`.
fn steps_below(folder: &Path, found: &mut BTreeSet<String>) {
    for entry in fs::read_dir(folder).expect("read the source") {
        let path = entry.expect("read the source").path();
        if path.is_dir() {
            steps_below(&path, found);
            continue;
        }
        let text = fs::read_to_string(&path).expect("read the source");
        for call in text.split("reached(").skip(1) {
            let Some(call) = call.trim_start().strip_prefix('"') else { continue };
            let name = call.split('"').next().expect("a name").to_owned();
            assert!(found.insert(name.clone()), "{name:?} stands twice");
        }
    }
}

#[test]
fn every_step_of_the_code_is_one_that_something_dies_at() {
    let mut named = BTreeSet::new();
    steps_below(&Path::new(env!("CARGO_MANIFEST_DIR")).join("src"), &mut named);
    let lists = [push::STEPS, get::STEPS, stream::STEPS, backup::STEPS, restore::STEPS];
    let tried: BTreeSet<String> = lists.concat().into_iter().map(str::to_owned).collect();
    assert_eq!(named, tried);
    assert!(named.len() >= 40, "{named:?}");
}
