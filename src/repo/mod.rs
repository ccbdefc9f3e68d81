//! The repository format, version 1. `docs/repository-format.md` is normative; this is its code.
//!
//! From the outside in: a [`repository::Repository`] is an address, a key and an id. Everything in
//! it but `repo.json` and the keys is a *sealed object* ([`sealed`]), named by [`layout`], known by its
//! name to [`named`]. A
//! backup is a tree: [`record`] (the commit object), [`manifest`], file leaves and map leaves
//! ([`tree`], read by [`tree_reader`]), blocks in packs ([`pack`]). [`catalog`] lists what backups there are, [`wal`] keeps
//! the archive, [`wal_parts`] what isn't a whole segment yet, [`timelines`] says what can be reached
//! with it, [`replay`] follows recovery through it before it happens, [`lease`] tells running from
//! crashed, on one host by [`holder`], [`tombstone`] ends backups, [`pin`] keeps them from it, and
//! [`drill`] says what restoring one has come to.

pub mod catalog;
pub mod codec;
pub mod drill;
pub mod holder;
pub mod id;
pub mod keys;
pub mod layout;
pub mod lease;
pub mod leftovers;
pub mod manifest;
pub mod named;
pub mod open;
pub mod opening;
pub mod pack;
pub mod pin;
pub mod record;
pub mod replay;
pub mod repository;
pub mod sealed;
pub mod timelines;
pub mod tombstone;
pub mod tree;
pub mod tree_reader;
pub mod wal;
pub mod wal_floor;
pub mod wal_gaps;
pub mod wal_names;
pub mod wal_parts;
pub mod wal_small;
pub mod wal_taken;
pub mod wal_wait;

pub use id::{BackupId, BackupType, SystemId};
pub use repository::Repository;
