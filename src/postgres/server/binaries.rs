//! Where a server's programs are.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use crate::postgres::{SUPPORTED, client::ServerVersion};

/// Where Debian and its kin put the servers of each major version: `15/bin` and so on.
const DEBIAN: &str = "/usr/lib/postgresql";

/// PostgreSQL's programs, in one folder.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Binaries {
    folder: PathBuf,
    version: ServerVersion,
    /// What variables begin with that stay although they begin with `PG`.
    handed_on: Option<&'static str>,
}

/// No programs that will do.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BinariesError {
    /// There are none of a supported version.
    #[error("no PostgreSQL server of a supported version is installed")]
    None,
    /// There are none of this version.
    #[error("no server of PostgreSQL {major} is installed: looked in {}", listed(.looked))]
    NotInstalled {
        /// The major version.
        major: u32,
        /// Where was looked.
        looked: Vec<PathBuf>,
    },
    /// The folder that was named has another version.
    #[error("{folder} has PostgreSQL {found}, not {major}")]
    OtherVersion {
        /// The folder.
        folder: String,
        /// The major version that is needed.
        major: u32,
        /// What is there.
        found: String,
    },
    /// The folder that was named has no server that can be run.
    #[error("{0} has no program `postgres` that can be run")]
    Unusable(String),
}

fn listed(folders: &[PathBuf]) -> String {
    folders.iter().map(|folder| folder.display().to_string()).collect::<Vec<_>>().join(", ")
}

impl Binaries {
    /// The newest supported server on this host that also has `initdb`: below `/usr/lib/postgresql`,
    /// or in PATH.
    pub fn newest() -> Result<Self, BinariesError> {
        let mut majors: Vec<u32> = fs::read_dir(DEBIAN)
            .into_iter()
            .flatten()
            .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
            .filter(|major| SUPPORTED.contains(major))
            .collect();
        majors.sort_unstable_by(|a, b| b.cmp(a));
        let debian = majors.into_iter().map(|major| Path::new(DEBIAN).join(format!("{major}/bin")));
        debian
            .chain(path())
            .filter(|folder| folder.join("initdb").is_file())
            .filter_map(Binaries::in_folder)
            .find(|binaries| SUPPORTED.contains(&binaries.version.major()))
            .ok_or(BinariesError::None)
    }

    /// The programs of a major version: in `given`, if a folder is named, else in the usual ones.
    pub fn of_major(major: u32, given: Option<&Path>) -> Result<Self, BinariesError> {
        if let Some(folder) = given {
            let name = folder.display().to_string();
            let found = Binaries::in_folder(folder.to_owned())
                .ok_or_else(|| BinariesError::Unusable(name.clone()))?;
            return match found.version.major() == major {
                true => Ok(found),
                false => Err(BinariesError::OtherVersion {
                    folder: name,
                    major,
                    found: found.version.text,
                }),
            };
        }
        let looked: Vec<PathBuf> = [
            format!("{DEBIAN}/{major}/bin"),
            format!("/usr/pgsql-{major}/bin"),
            format!("/usr/lib/postgresql{major}/bin"),
        ]
        .into_iter()
        .map(PathBuf::from)
        .chain(path())
        .collect();
        let mut found = looked.iter().cloned().filter_map(Binaries::in_folder);
        found
            .find(|binaries| binaries.version.major() == major)
            .ok_or(BinariesError::NotInstalled { major, looked })
    }

    /// Those in a folder, if it has a server that says its version.
    fn in_folder(folder: PathBuf) -> Option<Self> {
        let program = folder.join("postgres");
        if !program.is_file() {
            return None;
        }
        let output = Command::new(program).arg("--version").stdin(Stdio::null()).output().ok()?;
        let text = String::from_utf8_lossy(&output.stdout);
        let version = ServerVersion::parse(text.trim().strip_prefix("postgres (PostgreSQL) ")?)?;
        Some(Binaries { folder, version, handed_on: None })
    }

    /// The folder.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// The server's version.
    pub fn version(&self) -> &ServerVersion {
        &self.version
    }

    /// A program, if it is part of this installation.
    pub fn program(&self, name: &str) -> Option<PathBuf> {
        Some(self.folder.join(name)).filter(|path| path.is_file())
    }

    /// Lets variables that begin with `prefix` pass, for the commands that a server runs.
    #[must_use]
    pub fn hand_on(self, prefix: &'static str) -> Self {
        Binaries { handed_on: Some(prefix), ..self }
    }

    /// A program, ready to run in an environment that speaks of no other server and no other
    /// language: without variables that begin with `PG`, but for those that are handed on.
    pub fn command(&self, name: &str) -> Command {
        let mut command = Command::new(self.folder.join(name));
        for (variable, _) in std::env::vars_os() {
            let text = variable.to_str().unwrap_or_default();
            let stays = self.handed_on.is_some_and(|prefix| text.starts_with(prefix));
            if text.starts_with("PG") && !stays {
                command.env_remove(&variable);
            }
        }
        command.env("LC_ALL", "C").stdin(Stdio::null());
        command
    }
}

/// The folders of PATH.
fn path() -> Vec<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).filter(|folder| folder.is_absolute()).collect()
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    /// A folder with a `postgres` that says this.
    fn installed(says: &str) -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        let program = folder.path().join("postgres");
        fs::write(&program, format!("#!/bin/sh\necho '{says}'\n")).unwrap();
        fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
        folder
    }

    #[test]
    fn a_folder_that_is_named_has_to_have_the_version() {
        let folder = installed("postgres (PostgreSQL) 16.9 (Debian 16.9-1)");
        let found = Binaries::of_major(16, Some(folder.path())).unwrap();
        assert_eq!(found.version().text, "16.9 (Debian 16.9-1)");
        assert!(found.program("postgres").is_some() && found.program("pg_amcheck").is_none());
        let e = Binaries::of_major(15, Some(folder.path())).unwrap_err().to_string();
        assert!(e.ends_with("has PostgreSQL 16.9 (Debian 16.9-1), not 15"), "{e}");
        let nonsense = installed("hello");
        for folder in [nonsense.path(), Path::new("/nonexistent")] {
            let e = Binaries::of_major(15, Some(folder)).unwrap_err();
            assert!(matches!(e, BinariesError::Unusable(_)), "{e}");
        }
    }

    #[test]
    fn what_isnt_installed_is_said_with_where_was_looked() {
        let e = Binaries::of_major(99, None).unwrap_err().to_string();
        assert!(e.starts_with("no server of PostgreSQL 99 is installed: looked in"), "{e}");
        assert!(e.contains("/usr/lib/postgresql/99/bin, /usr/pgsql-99/bin"), "{e}");
    }
}
