//! What libpq takes from around the process: `PG*` variables, the user's name and home directory.
//!
//! Kept as a value, so that a test can say what the surroundings are.

use std::{
    collections::HashMap,
    fmt, fs,
    path::{Path, PathBuf},
};

/// The surroundings that a connection string is completed from.
#[derive(Clone, Default)]
pub struct Environment {
    variables: HashMap<String, String>,
    home: Option<PathBuf>,
    user: Option<String>,
    service_directories: Vec<PathBuf>,
}

/// Where packaged libpqs keep the system-wide service file when `PGSYSCONFDIR` isn't set: Debian's
/// and the RPMs' `--sysconfdir`, then the plain one.
const SERVICE_DIRECTORIES: [&str; 3] = ["/etc/postgresql-common", "/etc/sysconfig/pgsql", "/etc"];

impl Environment {
    /// The surroundings of this process. Like libpq, the home directory is `$HOME`, else the one of
    /// the password database, and the user is the one the process runs as.
    pub fn of_process() -> Self {
        let variables: HashMap<String, String> = std::env::vars_os()
            .map(|(k, v)| (k.to_string_lossy().into_owned(), v.to_string_lossy().into_owned()))
            .filter(|(k, _)| k.starts_with("PG"))
            .collect();
        let account = Account::current();
        let home = std::env::var_os("HOME").filter(|h| !h.is_empty()).map(PathBuf::from);
        let service_directories = match variables.get("PGSYSCONFDIR") {
            Some(directory) => vec![PathBuf::from(directory)],
            None => SERVICE_DIRECTORIES.iter().map(PathBuf::from).collect(),
        };
        Environment {
            variables,
            home: home.or_else(|| account.as_ref().map(|a| a.home.clone())),
            user: account.map(|a| a.user),
            service_directories,
        }
    }

    /// Surroundings with nothing in them but these variables, this home directory and this user.
    pub fn new(variables: &[(&str, &str)], home: Option<&Path>, user: Option<&str>) -> Self {
        let variables: HashMap<String, String> =
            variables.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
        let service_directories =
            variables.get("PGSYSCONFDIR").map(PathBuf::from).into_iter().collect();
        Environment {
            variables,
            home: home.map(Path::to_owned),
            user: user.map(str::to_owned),
            service_directories,
        }
    }

    /// The variable's value; an empty one counts as unset.
    pub(super) fn variable(&self, name: &str) -> Option<&str> {
        self.variables.get(name).map(String::as_str).filter(|v| !v.is_empty())
    }

    /// The name of the user that the process runs as.
    pub(super) fn user(&self) -> Option<&str> {
        self.user.as_deref()
    }

    /// `name` in the home directory.
    pub(super) fn in_home(&self, name: &str) -> Option<PathBuf> {
        self.home.as_ref().map(|home| home.join(name))
    }

    /// The directories of the system-wide service file, in order.
    pub(super) fn service_directories(&self) -> &[PathBuf] {
        &self.service_directories
    }
}

/// Shows names only: `PGPASSWORD` may be among the variables.
impl fmt::Debug for Environment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut names: Vec<_> = self.variables.keys().collect();
        names.sort();
        f.debug_struct("Environment").field("variables", &names).finish_non_exhaustive()
    }
}

/// The line of `/etc/passwd` for the user that the process runs as. Accounts of a directory
/// service aren't found here; for them, `user` has to be set.
struct Account {
    user: String,
    home: PathBuf,
}

impl Account {
    fn current() -> Option<Self> {
        let id = rustix::process::geteuid().as_raw().to_string();
        let passwd = fs::read_to_string("/etc/passwd").ok()?;
        passwd.lines().find_map(|line| {
            let fields: Vec<&str> = line.split(':').collect();
            match fields.as_slice() {
                [user, _, uid, _, _, home, ..] if *uid == id => {
                    Some(Account { user: (*user).to_owned(), home: PathBuf::from(home) })
                }
                _ => None,
            }
        })
    }
}
