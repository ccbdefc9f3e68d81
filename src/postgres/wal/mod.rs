//! Reading WAL: headers of segments and pages, and the records that a restore is planned by.
//!
//! WAL is a chain of records, cut into pages of 8 kB, which are cut into segments (files). A
//! [`SegmentScanner`] is fed a segment in pieces of any size and puts the records together again,
//! whether they lie in one page, over many, or over two segments. It trusts nothing but a record
//! whose checksum is right and whose back link fits. Of those it looks into the few that matter
//! for choosing where a recovery ends: commits and aborts, restore points, ends of backups, and
//! changes of timeline; and new tablespaces, which replay makes outside. They come out as [`Event`]s, and summed up as a [`SegmentSummary`], which
//! is what an archive keeps of each segment. Memory is a few kilobytes, whatever the size of
//! segments and records.
//!
//! - `header`: the headers of pages and segments;
//! - `assembler`: pages in, whole records out; knows the state at the end of a segment;
//! - `record`: one record being put together, and its checksum;
//! - `xact`, `xlog`, `tablespace`: what the records of those resource managers say;
//! - `time`: PostgreSQL's clock;
//! - `summary`: what is kept of a segment;
//! - `scanner`: the front: segments in, events and summaries out;
//! - `head`: the unfinished record at the end of a segment, found without reading all of it.
//!
//! The layouts are those of 13 to 18 (`access/xlog_internal.h`, `access/xlogrecord.h`,
//! `access/xact.h`, `catalog/pg_control.h`). A newer major version is known by its page magic:
//! [`SegmentHeader::major`] is where to add it, together with what its layouts changed.

mod assembler;
mod head;
mod header;
mod record;
mod scanner;
mod summary;
mod tablespace;
mod time;
mod xact;
mod xlog;

#[cfg(test)]
mod tests;

pub use head::{RecordHead, Trailing, trailing_head};
pub use header::{SegmentHeader, WalError};
pub use scanner::{Event, SegmentScanner, scan_file};
pub use summary::{EndOfRecovery, RestorePoint, SegmentSummary, TransactionRange};
