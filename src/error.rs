//! What operations fail with.
//!
//! An [`Error`] has a [`Kind`] (one exit code each, listed in `docs/commands.md`), a sentence that
//! says what was being done and with which object or setting, often a hint about what to do next,
//! and the error below it. `storage` and `postgres` have error types of their own, which say
//! whether the thing is absent, refused or merely unreachable; here they become a kind.

use std::{
    fmt, fs, io,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
};

use rustix::{
    fs::{Access, access},
    io::Errno,
};

/// The kind of failure: decides the exit code, nothing else.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Kind {
    /// The answer to the question is no: the segment isn't there, problems were found.
    No,
    /// Wrong usage or configuration.
    Usage,
    /// A repository can't be reached, read or written. Trying again may help.
    Repository,
    /// Something stored is damaged: it was flipped, cut, swapped, forged or deleted.
    Damaged,
    /// The key is missing, wrong or weak.
    Key,
    /// PostgreSQL refused, failed or can't be reached.
    Postgres,
    /// WAL isn't where it should be: archiving doesn't work, or a segment is missing.
    Wal,
    /// The recovery target can't be reached from what the repositories hold.
    Target,
    /// Something else is there under this name: another cluster, other content.
    Conflict,
    /// A local file or directory can't be used.
    Local,
    /// Stopped by a signal.
    Interrupted,
    /// A fault in pgkeep itself.
    Internal,
    /// A repository refuses this user or these credentials. Only a person can help.
    Denied,
}

impl Kind {
    /// The process exit code. `archive-push` and `archive-get` translate it further, as their
    /// callers demand.
    pub fn exit_code(self) -> u8 {
        match self {
            Kind::No => 1,
            Kind::Usage => 2,
            Kind::Repository => 3,
            Kind::Damaged => 4,
            Kind::Key => 5,
            Kind::Postgres => 6,
            Kind::Wal => 7,
            Kind::Target => 8,
            Kind::Conflict => 9,
            Kind::Local => 10,
            Kind::Interrupted => 11,
            Kind::Internal => 12,
            Kind::Denied => 13,
        }
    }

    /// The stable name used in JSON output.
    pub fn name(self) -> &'static str {
        match self {
            Kind::No => "no",
            Kind::Usage => "usage",
            Kind::Repository => "repository",
            Kind::Damaged => "damaged",
            Kind::Key => "key",
            Kind::Postgres => "postgres",
            Kind::Wal => "wal",
            Kind::Target => "target",
            Kind::Conflict => "conflict",
            Kind::Local => "local",
            Kind::Interrupted => "interrupted",
            Kind::Internal => "internal",
            Kind::Denied => "denied",
        }
    }
}

/// A failure with its kind, what was being done, and what to do next.
pub struct Error {
    kind: Kind,
    message: String,
    hints: Vec<String>,
    source: Option<Box<dyn std::error::Error + Send + Sync>>,
}

/// The result of an operation.
pub type Result<T, E = Error> = std::result::Result<T, E>;

impl Error {
    /// An error of this kind that says `message`: one sentence, no full stop, naming the object or
    /// the setting it is about.
    pub fn new(kind: Kind, message: impl Into<String>) -> Self {
        Error { kind, message: message.into(), hints: Vec::new(), source: None }
    }

    /// Whether it says what there is in a repository and what there isn't. Others say that this
    /// couldn't be found out, or not all of it.
    pub fn is_an_answer(&self) -> bool {
        matches!(self.kind, Kind::No | Kind::Wal | Kind::Target)
    }

    /// Adds what to do next. May be called more than once.
    #[must_use]
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hints.push(hint.into());
        self
    }

    /// Adds the error below this one; it is printed after the message.
    #[must_use]
    pub fn because(mut self, source: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Self {
        self.source = Some(source.into());
        self
    }

    /// Says what was being done when this happened: `doing: message`. Kind and hints stay.
    #[must_use]
    pub fn while_doing(mut self, doing: impl fmt::Display) -> Self {
        self.message = format!("{doing}: {}", self.message);
        self
    }

    /// Adds who owns what, and who asks, if this process wasn't permitted to use `path`.
    #[must_use]
    pub fn if_denied(self, path: &Path) -> Self {
        let mut below = self.source.as_deref().map(|e| e as &(dyn std::error::Error + 'static));
        while let Some(error) = below {
            let io = error.downcast_ref::<io::Error>();
            if io.is_some_and(|e| e.kind() == io::ErrorKind::PermissionDenied) {
                return self.hint(who_may_use(path));
            }
            below = error.source();
        }
        self
    }

    /// The kind.
    pub fn kind(&self) -> Kind {
        self.kind
    }

    /// The SQLSTATE of what PostgreSQL answered, if this is about that.
    pub fn sqlstate(&self) -> Option<&str> {
        let below = self.source.as_deref()?;
        below.downcast_ref::<crate::postgres::client::PgError>()?.code()
    }

    /// What to do next, in order.
    pub fn hints(&self) -> &[String] {
        &self.hints
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)?;
        let mut below = self.source.as_deref().map(|e| e as &dyn std::error::Error);
        while let Some(error) = below {
            write!(f, ": {error}")?;
            below = error.source();
        }
        Ok(())
    }
}

impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}: {self}", self.kind)
    }
}

impl std::error::Error for Error {}

/// Who owns `path`, or what is in the way to it, and who asks.
fn who_may_use(path: &Path) -> String {
    let closed = |above: &&Path| access(*above, Access::EXEC_OK) == Err(Errno::ACCESS);
    let closed = path.ancestors().skip(1).filter(closed).last();
    let there = || path.ancestors().find(|above| above.symlink_metadata().is_ok());
    let me = user(rustix::process::geteuid().as_raw());
    let owner = closed.or_else(there).and_then(|what| Some((what, fs::metadata(what).ok()?)));
    let Some((what, meta)) = owner else { return format!("this process runs as {me}") };
    format!(
        "{} belongs to {} and has mode {:04o}, this process runs as {me}: run pgkeep as the user who \
         may, as in `sudo -u postgres pgkeep …`, or let this one, by chown or chmod",
        what.display(),
        user(meta.uid()),
        meta.mode() & 0o7777
    )
}

/// A user's name, where this host's own list has it.
fn user(id: u32) -> String {
    let list = fs::read_to_string("/etc/passwd").unwrap_or_default();
    let name = list.lines().find_map(|line| {
        let mut fields = line.split(':');
        let name = fields.next()?;
        (fields.nth(1)?.parse() == Ok(id)).then(|| name.to_owned())
    });
    name.unwrap_or_else(|| format!("user id {id}"))
}

/// Turns a lower error into an [`Error`] with a kind and a message.
pub trait Context<T> {
    /// `kind`: `message()`: the lower error.
    fn context<M: Into<String>>(self, kind: Kind, message: impl FnOnce() -> M) -> Result<T>;
}

impl<T, E> Context<T> for std::result::Result<T, E>
where
    E: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    fn context<M: Into<String>>(self, kind: Kind, message: impl FnOnce() -> M) -> Result<T> {
        self.map_err(|e| Error::new(kind, message()).because(e))
    }
}

impl Error {
    /// What PostgreSQL answered, or what kept it from answering, while `doing`: with its own
    /// message, SQLSTATE and hint.
    pub fn of_server(doing: impl Into<String>, e: crate::postgres::client::PgError) -> Self {
        let hint = e.hint().map(str::to_owned);
        let error = Error::new(Kind::Postgres, doing).because(e);
        match hint {
            Some(hint) => error.hint(hint),
            None => error,
        }
    }
}

impl From<crate::storage::StorageError> for Error {
    /// An object that should be there and isn't, or ends too early, is damage; what depends on the
    /// answer "not there" asks [`crate::storage::StorageError::is_not_found`] before it comes here.
    fn from(e: crate::storage::StorageError) -> Self {
        use crate::storage::ErrorKind;
        let kind = match e.kind {
            ErrorKind::NotFound | ErrorKind::OutOfRange => Kind::Damaged,
            ErrorKind::AlreadyExists => Kind::Conflict,
            ErrorKind::Denied | ErrorKind::Refused | ErrorKind::Locked => Kind::Denied,
            ErrorKind::RootMissing | ErrorKind::Full | ErrorKind::Unavailable => Kind::Repository,
        };
        let hint = match e.kind {
            _ if e.hint.is_some() => e.hint.as_deref(),
            ErrorKind::RootMissing => Some(
                "is the disk mounted, and is the url right? `pgkeep init` makes a new repository",
            ),
            ErrorKind::Full => Some("make room; nothing was acknowledged"),
            ErrorKind::Denied => {
                Some("whoever runs pgkeep must be able to read and write all of the repository")
            }
            _ => None,
        };
        let error = Error::new(kind, e.to_string());
        // EACCES: a read-only file system is denied too.
        let denied = e.kind == ErrorKind::Denied && e.message.ends_with("(os error 13)");
        match (hint, e.address.strip_prefix("file://").filter(|_| denied)) {
            (_, Some(root)) => {
                // Without a slash at the end.
                let path: PathBuf = Path::new(root).join(&e.object).components().collect();
                error.hint(who_may_use(&path))
            }
            (Some(hint), _) => error.hint(hint),
            _ => error,
        }
    }
}
