//! What reads bytes that nobody vouches for, each as a function of any bytes.
//!
//! A target panics when the library does, and when something doesn't hold that has to: that what was read
//! is the same when it is written and read again, that bounds hold, that nothing leads out of a directory. The
//! fuzzer runs them (`tools/fuzz.sh`), and the test suite (`tests/integration/fuzzed.rs`) with what is in
//! `fixtures/fuzz/`. Where a checksum or a tag would stop every mutation at the door, a target puts it right.

mod backup_manifest;
mod certificate;
mod config;
mod conninfo;
mod control;
mod history;
mod incremental;
mod input;
mod keys;
mod label;
mod leaves;
mod manifest;
mod marker;
mod names;
mod notes;
mod objects;
mod parts;
mod pgpass;
mod place;
mod repository;
mod restore;
mod s3;
mod sealed;
mod server;
mod tar;
mod time;
mod wal;

/// A name, which is also that of a folder in `fixtures/fuzz/`, and what takes an input.
pub type Target = (&'static str, fn(&[u8]));

/// All there are.
pub const TARGETS: &[Target] = &[
    ("backup_manifest", backup_manifest::run),
    ("certificate", certificate::run),
    ("config", config::run),
    ("conninfo", conninfo::run),
    ("control", control::run),
    ("history", history::run),
    ("incremental", incremental::run),
    ("keys", keys::run),
    ("label", label::run),
    ("leaves", leaves::run),
    ("manifest", manifest::run),
    ("marker", marker::run),
    ("names", names::run),
    ("notes", notes::run),
    ("objects", objects::run),
    ("parts", parts::run),
    ("pgpass", pgpass::run),
    ("repository", repository::run),
    ("restore", restore::run),
    ("s3", s3::run),
    ("sealed", sealed::run),
    ("server", server::run),
    ("tar", tar::run),
    ("time", time::run),
    ("wal", wal::run),
];
