//! The directory in which the demo lives, and the user it lives as.

use std::{
    fs,
    os::unix::{
        fs::{DirBuilderExt, MetadataExt, PermissionsExt},
        process::CommandExt,
    },
    path::{Path, PathBuf},
    process::Command,
};

use super::DemoOptions;
use crate::error::{Context, Error, Kind, Result};

/// The demo's directory. It is removed when this is dropped, unless it is to be kept.
pub(super) struct Home {
    path: PathBuf,
    keep: bool,
}

impl Home {
    /// A new directory below the system's temporary one, or the empty one that was given.
    pub fn make(options: &DemoOptions) -> Result<Self> {
        let path = match &options.home {
            // Its content will be run and removed, so it has to be ours.
            Some(path)
                if !fs::metadata(path).is_ok_and(|m| {
                    m.is_dir() && m.uid() == rustix::process::geteuid().as_raw()
                }) =>
            {
                let message = format!("{} isn't a directory of this user", path.display());
                return Err(Error::new(Kind::Local, message));
            }
            Some(path) => path.clone(),
            None => new_directory(0o700)?,
        };
        Ok(Home { path, keep: options.keep })
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Writes the configuration that all commands of the story work with, and returns its path.
    pub fn configure(&self) -> Result<PathBuf> {
        let home = self.path.display();
        let path = self.path.join("pgkeep.toml");
        let text = format!(
            "[repository.demo]\n\
             url      = \"file://{home}/repository\"\n\
             key-file = \"{home}/demo.key\"\n\n\
             [cluster.demo]\n\
             conninfo = \"host={home} port={} user={}\"\n\
             pgdata   = \"{home}/original\"\n",
            super::server::PORT,
            super::server::ROLE,
        );
        fs::write(&path, text).context(Kind::Local, || format!("write {}", path.display()))?;
        let program = std::env::current_exe().context(Kind::Local, || "find this program")?;
        let copy = self.program();
        if program != copy {
            fs::copy(&program, &copy)
                .context(Kind::Local, || format!("copy this program to {}", copy.display()))?;
        }
        Ok(path)
    }

    /// The copy of this program that the servers call: the original may lie where they can't
    /// read it.
    fn program(&self) -> PathBuf {
        self.path.join("pgkeep")
    }

    fn command(&self) -> String {
        let home = self.path.display();
        format!("{home}/pgkeep --config {home}/pgkeep.toml")
    }

    /// What the original server calls for each segment.
    pub fn archive_command(&self) -> String {
        format!("{} archive-push %p", self.command())
    }

    /// What the restored server calls for each segment.
    pub fn restore_command(&self) -> String {
        format!("{} archive-get %f %p", self.command())
    }
}

impl Drop for Home {
    fn drop(&mut self) {
        if !self.keep
            && let Err(e) = fs::remove_dir_all(&self.path)
        {
            tracing::warn!("remove {}: {e}", self.path.display());
        }
    }
}

/// A directory of this mode and a name that nobody can foresee.
fn new_directory(mode: u32) -> Result<PathBuf> {
    let mut random = [0; 6];
    getrandom::fill(&mut random)
        .map_err(|e| Error::new(Kind::Internal, format!("get random bytes: {e}")))?;
    let path = std::env::temp_dir().join(format!("pgkeep-demo-{}", hex::encode(random)));
    fs::DirBuilder::new()
        .mode(mode)
        .create(&path)
        .context(Kind::Local, || format!("make {}", path.display()))?;
    Ok(path)
}

/// Whether this process runs as root, as whom PostgreSQL refuses to run.
pub fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// Becomes the demo run by an unprivileged user: `postgres`, or else `nobody`. For root only.
///
/// `arguments` are those of the program but for the hidden one that says where to work. The program
/// is copied there, for that user may not be able to read it where it is. Returns only when it
/// fails.
pub fn as_server_user(arguments: &[std::ffi::OsString]) -> Error {
    let attempt = || -> Result<std::io::Error> {
        let (user, group) =
            ["postgres", "nobody"].iter().find_map(|name| user_of(name)).ok_or_else(|| {
                Error::new(Kind::Local, "there is no user postgres or nobody to run as")
            })?;
        let home = new_directory(0o700)?;
        let program = home.join("pgkeep");
        let prepare = || -> std::io::Result<()> {
            fs::copy(std::env::current_exe()?, &program)?;
            fs::set_permissions(&program, fs::Permissions::from_mode(0o755))?;
            std::os::unix::fs::chown(&program, Some(user), Some(group))?;
            std::os::unix::fs::chown(&home, Some(user), Some(group))
        };
        prepare().context(Kind::Local, || format!("prepare {}", home.display()))?;
        let mut command = Command::new(&program);
        command.args(arguments).arg("--home").arg(&home).current_dir(&home).env("HOME", &home);
        let failure = command.uid(user).gid(group).exec();
        // There is nobody else now who would remove it.
        let _ = fs::remove_dir_all(&home);
        Ok(failure)
    };
    match attempt() {
        Ok(failure) => {
            Error::new(Kind::Local, "run the demo as an unprivileged user").because(failure)
        }
        Err(e) => e,
    }
}

/// A user's ids, from the system's list.
fn user_of(name: &str) -> Option<(u32, u32)> {
    let users = fs::read_to_string("/etc/passwd").ok()?;
    users.lines().find_map(|line| {
        let mut fields = line.split(':');
        let found = fields.next() == Some(name);
        let (user, group) = (fields.nth(1)?.parse().ok()?, fields.next()?.parse().ok()?);
        found.then_some((user, group))
    })
}
