//! Bytes by name: what a repository needs of the place where it lies.
//!
//! [`Storage`] is the contract and [`local`] the back end for a directory. `tests/storage.rs` has the
//! one suite that every back end has to pass.
//!
//! Objects are created once and never overwritten; a conflict is always seen. Leases are the only
//! exception ([`Storage::replace`]), and nothing's safety rests on them.

pub mod local;
mod name;

use std::fmt;

use async_trait::async_trait;
use bytes::Bytes;

pub use name::{NotAnObjectName, ObjectName};

/// What a back end can do. Callers adapt to it; none of it may be assumed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Capabilities {
    /// [`Storage::create`] refuses a name that is taken, also when two creators race. Where this is
    /// false, names must carry their content's checksum.
    pub conditional_create: bool,
}

/// Which bytes of an object to read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Range {
    /// `len` bytes from `offset`. Reading past the end is an error ([`ErrorKind::OutOfRange`]).
    At {
        /// From the object's start, in bytes.
        offset: u64,
        /// In bytes.
        len: u64,
    },
    /// The last bytes of the object: at most this many, fewer if it is shorter.
    Last(u64),
    /// Everything.
    All,
}

/// An object in a listing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listed {
    /// Its name, relative to the repository root.
    pub name: ObjectName,
    /// Its size in bytes.
    pub size: u64,
}

/// Bytes by name.
///
/// Futures may block the calling thread for the length of a local disk operation, so callers that
/// want overlap run them on several threads.
#[async_trait]
pub trait Storage: Send + Sync + fmt::Debug {
    /// Where this is, for people: a URL without secrets.
    fn address(&self) -> &str;

    /// What this back end can do.
    fn capabilities(&self) -> Capabilities;

    /// Begins a new object. Nothing is visible under `name` until [`ObjectWriter::finish`] has
    /// returned, and then all of it is, durably. A taken name may be refused here or at `finish`.
    async fn create(&self, name: &ObjectName) -> Result<Box<dyn ObjectWriter>>;

    /// Reads `range` of an object. Absent is [`ErrorKind::NotFound`] only when the place itself
    /// answers: an unmounted disk or a wrong bucket is another kind.
    async fn read(&self, name: &ObjectName, range: Range) -> Result<Bytes>;

    /// The object's size in bytes; absent as in [`Storage::read`].
    async fn size(&self, name: &ObjectName) -> Result<u64>;

    /// The objects whose names begin with `prefix`, in byte order of their names, from the first
    /// one after `after`: at most `limit`. Fewer than `limit` means that there are no more.
    /// Objects that aren't finished are not listed.
    async fn list(&self, prefix: &str, after: Option<&str>, limit: usize) -> Result<Vec<Listed>>;

    /// The names of the folders directly in `folder` (no slash at either end, `""` for the root),
    /// sorted.
    async fn folders(&self, folder: &str) -> Result<Vec<String>>;

    /// Removes an object. Removing one that isn't there succeeds.
    async fn delete(&self, name: &ObjectName) -> Result<()>;

    /// Writes or replaces a small object, atomically. For leases only.
    async fn replace(&self, name: &ObjectName, bytes: Bytes) -> Result<()>;

    /// Makes sure that an object that is there already is durable: whoever made it may have died
    /// before it was.
    async fn ensure_durable(&self, name: &ObjectName) -> Result<()>;

    /// Creates an object from bytes in memory.
    async fn put(&self, name: &ObjectName, bytes: Bytes) -> Result<()> {
        let mut writer = self.create(name).await?;
        writer.write(bytes).await?;
        writer.finish().await
    }
}

/// An object being written. Dropping it leaves nothing behind under its final name.
#[async_trait]
pub trait ObjectWriter: Send {
    /// Appends bytes.
    async fn write(&mut self, bytes: Bytes) -> Result<()>;

    /// Makes the object durable and visible, in this order. A taken name is
    /// [`ErrorKind::AlreadyExists`], and what is there stays as it was.
    async fn finish(self: Box<Self>) -> Result<()>;
}

/// What went wrong, as far as callers must tell it apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ErrorKind {
    /// The place answered that there is no such object.
    NotFound,
    /// The name is taken.
    AlreadyExists,
    /// The object ends before the range that was asked for.
    OutOfRange,
    /// The repository's root isn't there: not mounted, a wrong path, a wrong bucket.
    RootMissing,
    /// No permission, whatever the reason: a file's mode or owner, a read-only file system, credentials
    /// that are wrong or have expired (403). Trying again doesn't help.
    Denied,
    /// No space, or a quota or limit is used up.
    Full,
    /// Anything else; trying again may help.
    Unavailable,
}

/// A storage operation failed.
#[derive(Debug, thiserror::Error)]
#[error("{operation} {}: {message}", self.place())]
pub struct StorageError {
    /// What callers decide by.
    pub kind: ErrorKind,
    /// What was being done: "read", "create".
    pub operation: &'static str,
    /// The object or folder it was about; empty for the repository itself.
    pub object: String,
    /// The storage's address.
    pub address: String,
    /// What the system said.
    pub message: String,
}

impl StorageError {
    fn place(&self) -> String {
        match self.object.as_str() {
            "" => format!("the repository {}", self.address),
            object => format!("{object} in {}", self.address),
        }
    }

    /// Whether the place answered that the object doesn't exist.
    pub fn is_not_found(&self) -> bool {
        self.kind == ErrorKind::NotFound
    }

    /// Whether the name was taken.
    pub fn already_exists(&self) -> bool {
        self.kind == ErrorKind::AlreadyExists
    }

    /// Whether trying the same again can't help.
    pub fn is_permanent(&self) -> bool {
        !matches!(self.kind, ErrorKind::Unavailable | ErrorKind::RootMissing)
    }
}

/// The result of a storage operation.
pub type Result<T, E = StorageError> = std::result::Result<T, E>;
