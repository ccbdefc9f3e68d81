//! Incremental base backups, which servers from 17 on can make: only pages that changed since an
//! earlier backup cross the wire (documentation, "Incremental Backup").
//!
//! The server keeps *WAL summaries*: which blocks were touched between two positions
//! (`postmaster/walsummarizer.c`, with `summarize_wal = on`). It is told which backup the client
//! has by that backup's manifest ([`ManifestUpload`]); then `BASE_BACKUP (INCREMENTAL)` runs on the
//! same connection. Of its manifest only paths and WAL ranges count, so any backup will do whose
//! content is known, however it was made.
//!
//! In the stream, `INCREMENTAL.<name>` takes the place of `<name>` for a relation's file of which
//! not everything is sent ([`original_path`]); [`IncrementalParser`] reads it, and
//! [`IncrementalHeader::runs`] says how the file looks now. Every other file comes whole: those
//! that aren't a relation's, free space maps, new files, those of which more than nine tenths
//! changed, and those not in the manifest (`GetFileBackupMethod`). Files that aren't in the stream
//! at all are gone.
//!
//! [`mod@check`] finds out beforehand whether all that can work and be trusted, [`CutOff`] of which
//! files it can't, and [`NativeRefusal::of`] what a server means that says no.

mod check;
mod cut_off;
mod file;
mod rebuild;
mod upload;

pub use check::{NativeRefusal, check, reached};
pub use cut_off::CutOff;
pub use file::{
    BLOCK_SIZE, IncrementalEvent, IncrementalHeader, IncrementalParser, NotIncremental,
    original_path,
};
pub use rebuild::{Origin, Run};
pub use upload::ManifestUpload;
