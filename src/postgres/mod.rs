//! What PostgreSQL is, and nothing about pgkeep: positions, names, file formats, the wire protocol.

pub mod archiving;
pub mod backup_label;
pub mod backup_manifest;
pub mod client;
pub mod control;
pub mod history;
pub mod incremental;
pub mod lsn;
pub mod page;
pub mod replication;
pub mod segment;
pub mod server;
pub mod streaming;
pub mod tar;
pub mod wal;

pub use lsn::{Lsn, Timeline};
pub use segment::{SegmentName, SegmentSize, WalFile};

/// The major versions whose formats and protocol are known here and tested.
pub const SUPPORTED: std::ops::RangeInclusive<u32> = 15..=18;
