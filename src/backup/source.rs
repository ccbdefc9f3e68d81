//! Where a backup's files come from.
//!
//! A [`Source`] gives directories and files, one after the other, to a [`FileSink`], and says at
//! the end where the backup stops. It hands over what it has at hand and returns, so that whoever
//! drives it can pass on what came of it before there is more: nothing piles up in between. The
//! stream of `BASE_BACKUP` is one ([`super::base_backup`]).

use async_trait::async_trait;

use crate::{
    error::Result,
    postgres::{Lsn, Timeline},
};

/// Takes files as they come. A file is `begin_file`, any number of `data` and `unchanged`, `end_file`.
///
/// Paths are relative to the data directory, without slashes at their ends; tablespaces are below
/// `pg_tblspc/<oid>/`.
pub trait FileSink: Send {
    /// A directory. Its content may come later or earlier.
    fn directory(&mut self, path: &[u8], mode: u32) -> Result<()>;

    /// A regular file of `size` bytes begins.
    fn begin_file(&mut self, path: &[u8], mode: u32, size: u64) -> Result<()>;

    /// The next bytes of the file.
    fn data(&mut self, bytes: &[u8]) -> Result<()>;

    /// The next blocks of the file, of 8 KiB each, are what they were in the base backup under the
    /// same path; zeros where its file was shorter. What came before are whole blocks.
    fn unchanged(&mut self, blocks: u64) -> Result<()>;

    /// The file is complete: as long as was said.
    fn end_file(&mut self) -> Result<()>;

    /// Something that the server says, and that a person has to know of.
    fn warning(&mut self, message: String);
}

/// What feeding a sink came to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Fed {
    /// There is more. So many bytes came over the wire or from the disk.
    More(u64),
    /// Everything has been given.
    End(SourceEnd),
}

/// How a source ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SourceEnd {
    /// The backup is consistent once WAL has been replayed to here.
    pub stop_lsn: Lsn,
    /// The timeline of the stop position.
    pub timeline: Timeline,
    /// The server found pages with wrong checksums, and read them again to be sure.
    pub checksum_failures: bool,
}

/// A backup in progress that files can be taken from.
#[async_trait]
pub trait Source: Send {
    /// Gives the sink what is at hand, waiting until there is something.
    async fn feed(&mut self, sink: &mut dyn FileSink) -> Result<Fed>;
}
