//! Bytes by name: what a repository needs of the place where it lies.
//!
//! [`Storage`] is the contract, [`local`] the back end for a directory and [`s3`] the one for a
//! bucket. `tests/integration/storage` has the one suite that every back end has to pass.
//!
//! Objects are created once and never overwritten; a conflict is always seen. Leases are the only
//! exception ([`Storage::replace`]), and nothing's safety rests on them.

pub mod local;
mod name;
pub mod s3;

use std::{fmt, time::Duration};

use async_trait::async_trait;
use bytes::Bytes;
use chrono::{DateTime, Utc};

pub use name::{NotAnObjectName, ObjectName};

/// What a back end is like. Callers adapt to it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Capabilities {
    /// How many bytes are worth reading at once when what lies beside each other is wanted: what a
    /// request costs beside its bytes.
    pub read_together: u64,
    /// How many questions are worth asking at once: 1 where waiting for an answer gains nothing.
    pub questions_at_once: usize,
}

/// What becomes of the creation of an object whose name is taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CreateOnly {
    /// It is refused, by the nature of the place.
    Inherent,
    /// It is refused: that was tried.
    Honoured,
    /// What is there is overwritten: that was tried. Names must carry their content's checksum.
    Ignored,
}

/// Bytes of an object, and how long it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fetched {
    /// What was asked for, as far as the object goes.
    pub bytes: Bytes,
    /// The object's size in bytes.
    pub size: u64,
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
    /// Everything, of an object of at most [`LARGEST_WHOLE`] bytes; a larger one is refused
    /// ([`ErrorKind::Refused`]).
    All,
}

/// The largest object that is read whole, in bytes: a manifest of 64 MiB that can't be compressed. Bounds
/// memory whatever lies there.
pub const LARGEST_WHOLE: u64 = 65 << 20;

/// The size of an object that is read whole, unless that is too large: an error of
/// [`std::io::ErrorKind::InvalidData`].
fn whole(size: u64) -> std::io::Result<u64> {
    let too_large = || {
        let what = format!("it has {size} bytes, where {LARGEST_WHOLE} are the most");
        std::io::Error::new(std::io::ErrorKind::InvalidData, what)
    };
    (size <= LARGEST_WHOLE).then_some(size).ok_or_else(too_large)
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

    /// What this back end is like.
    fn capabilities(&self) -> Capabilities;

    /// Finds out whether [`Storage::create`] refuses a name that is taken, also when two creators
    /// race. May write an object `probe` of its own, which stays.
    async fn create_only(&self) -> Result<CreateOnly> {
        Ok(CreateOnly::Inherent)
    }

    /// From now on objects are created without the condition that there be none, which the server
    /// is known not to honour and may refuse to read.
    fn create_without_condition(&self) {}

    /// From now on this is the place only where `name` has this `content`, as it has at the moment: nothing
    /// is stored into another one, and nothing is absent because another one lies here; both are
    /// [`ErrorKind::RootMissing`]. Where no other place can come to lie under the same address, there is
    /// nothing to do.
    fn set_landmark(&self, _name: &ObjectName, _content: Bytes) {}

    /// Begins a new object. Nothing is visible under `name` until [`ObjectWriter::finish`] has
    /// returned, and then all of it is, durably. A taken name may be refused here or at `finish`.
    async fn create(&self, name: &ObjectName) -> Result<Box<dyn ObjectWriter>>;

    /// Reads `range` of an object. Absent is [`ErrorKind::NotFound`] only when the place itself
    /// answers: an unmounted disk or a wrong bucket is another kind.
    async fn read(&self, name: &ObjectName, range: Range) -> Result<Bytes>;

    /// Reads `range` as far as the object goes, which may be nothing of it, and tells the object's
    /// size. Where each question is a request, this is one; absent as in [`Storage::read`].
    async fn fetch(&self, name: &ObjectName, range: Range) -> Result<Fetched> {
        let size = self.size(name).await?;
        let range = match range {
            Range::At { offset, len } => {
                let offset = offset.min(size);
                Range::At { offset, len: len.min(size - offset) }
            }
            other => other,
        };
        Ok(Fetched { bytes: self.read(name, range).await?, size })
    }

    /// The object's size in bytes; absent as in [`Storage::read`].
    async fn size(&self, name: &ObjectName) -> Result<u64>;

    /// The objects whose names begin with `prefix`, in byte order of their names, from the first
    /// one after `after`: at most `limit`. Fewer than `limit` means that there are no more.
    /// Objects that aren't finished are not listed.
    async fn list(&self, prefix: &str, after: Option<&str>, limit: usize) -> Result<Vec<Listed>>;

    /// The names of the folders directly in `folder` (no slash at either end, `""` for the root),
    /// sorted.
    async fn folders(&self, folder: &str) -> Result<Vec<String>>;

    /// Removes an object, and older versions of it where the place keeps any. Removing one that
    /// isn't there succeeds. One that is held is [`ErrorKind::Locked`], and is still listed.
    async fn delete(&self, name: &ObjectName) -> Result<()>;

    /// Removes objects, in any order, each as [`Storage::delete`] does, and says of each what came of it,
    /// in the order of the names. Where that is quicker than one after the other, this is how. After a
    /// failure, but for [`ErrorKind::Locked`], the others needn't be tried: they get the same one.
    async fn delete_all(&self, names: &[ObjectName]) -> Vec<Result<()>> {
        let mut results = Vec::with_capacity(names.len());
        for name in names {
            let result = self.delete(name).await;
            let failed = failure_of_all(&result).cloned();
            results.push(result);
            if let Some(failure) = failed {
                results.resize(names.len(), Err(failure));
                break;
            }
        }
        results
    }

    /// Writes or replaces a small object, atomically. For leases only.
    async fn replace(&self, name: &ObjectName, bytes: Bytes) -> Result<()>;

    /// Makes sure that an object that is there already is durable: whoever made it may have died
    /// before it was.
    async fn ensure_durable(&self, name: &ObjectName) -> Result<()>;

    /// Until when the place refuses to remove an object, whoever asks; `None` where nothing is held.
    /// When the place doesn't tell whether it is, that is an error ([`ErrorKind::Denied`]).
    async fn retained_until(&self, _name: &ObjectName) -> Result<Option<DateTime<Utc>>> {
        Ok(None)
    }

    /// Has an object that is held be held at least until then. One that isn't held stays so: false.
    async fn extend_retention(&self, _name: &ObjectName, _until: DateTime<Utc>) -> Result<bool> {
        Ok(false)
    }

    /// Removes what writers that were killed left of objects whose names begin with `prefix`, if
    /// they began longer ago than that: nobody sees it, but it takes room. Returns how many.
    async fn remove_leftovers(&self, _prefix: &str, _older_than: Duration) -> Result<u64> {
        Ok(0)
    }

    /// Creates an object from bytes in memory.
    async fn put(&self, name: &ObjectName, bytes: Bytes) -> Result<()> {
        let mut writer = self.create(name).await?;
        writer.write(bytes).await?;
        writer.finish().await
    }
}

/// The failure to delete one object that isn't about this object alone.
fn failure_of_all(result: &Result<()>) -> Option<&StorageError> {
    result.as_ref().err().filter(|e| e.kind != ErrorKind::Locked)
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
    /// The place refuses the request as it is: trying again doesn't help.
    Refused,
    /// The object may not be removed yet; the message says until when.
    Locked,
    /// No space, or a quota or limit is used up.
    Full,
    /// Anything else; trying again may help.
    Unavailable,
}

/// A storage operation failed.
#[derive(Debug, Clone, thiserror::Error)]
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
    /// What to do, where the back end knows.
    pub hint: Option<String>,
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
