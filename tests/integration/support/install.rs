//! What is installed on this machine: PostgreSQL's versions and the user that servers run as.

use std::{
    fs,
    os::unix::process::CommandExt,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::OnceLock,
};

/// The versions that the tests are for.
const ALL: [u32; 4] = [15, 16, 17, 18];

/// The major versions to test with: 15 to 18, or those that `PGKEEP_TEST_POSTGRES` names, as in
/// `PGKEEP_TEST_POSTGRES=15,18`.
pub fn versions() -> Vec<u32> {
    match std::env::var("PGKEEP_TEST_POSTGRES") {
        Err(_) => ALL.to_vec(),
        Ok(text) => text
            .split(',')
            .map(|v| v.trim().parse().expect("PGKEEP_TEST_POSTGRES is a list like 15,18"))
            .collect(),
    }
}

/// A program of PostgreSQL `version`. Only 15 has more than `postgres`, `initdb` and `pg_ctl`.
pub fn program(version: u32, name: &str) -> PathBuf {
    let candidates = [
        std::env::var("PGKEEP_TEST_POSTGRES_DIR").map(|dir| format!("{dir}/{version}")).ok(),
        Some(format!("/usr/lib/postgresql/{version}")),
        Some(format!("/var/lib/pgkeep-test/postgresql/{version}")),
        Some(format!("{}/target/pgkeep-test/postgresql/{version}", env!("CARGO_MANIFEST_DIR"))),
    ];
    let found = candidates.iter().flatten().find(|dir| Path::new(dir).join("bin/initdb").exists());
    let Some(found) = found else {
        panic!("PostgreSQL {version} isn't installed for the tests: run `make test` once");
    };
    let path = Path::new(found).join("bin").join(name);
    assert!(path.exists(), "{} isn't part of this PostgreSQL", path.display());
    path
}

/// An unprivileged user.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct User {
    pub uid: u32,
    pub gid: u32,
}

/// The user that servers and pgkeep run as: `postgres` when the tests run as root, since a server
/// refuses root; else whoever runs the tests.
pub fn user() -> User {
    static USER: OnceLock<User> = OnceLock::new();
    *USER.get_or_init(|| {
        let uid = rustix::process::geteuid().as_raw();
        if uid != 0 {
            return User { uid, gid: rustix::process::getegid().as_raw() };
        }
        let passwd = fs::read_to_string("/etc/passwd").expect("read /etc/passwd");
        let line = passwd.lines().find(|line| line.starts_with("postgres:"));
        let fields: Vec<&str> =
            line.expect("there is a user postgres: run `make test` once").split(':').collect();
        let id = |i: usize| fields[i].parse().expect("a numeric id");
        User { uid: id(2), gid: id(3) }
    })
}

/// Whether the tests run as root, and so may do what only root can.
pub fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// A command that runs as [`user`], with nothing of this process's environment but PATH, and
/// without standard input.
pub fn command(program: impl AsRef<Path>) -> Command {
    let mut command = Command::new(program.as_ref());
    command
        .env_clear()
        .env("PATH", std::env::var_os("PATH").unwrap_or_default())
        .env("HOME", "/nonexistent")
        .env("LC_ALL", "C.UTF-8")
        .env("TZ", "UTC")
        .env("AWS_EC2_METADATA_DISABLED", "true")
        .current_dir("/")
        .stdin(Stdio::null());
    if is_root() {
        // Being root, this drops the supplementary groups too.
        command.uid(user().uid).gid(user().gid);
    }
    command
}

/// Runs a command to its end, and fails the test with all it printed unless it succeeds.
pub fn run(command: &mut Command) -> String {
    let output = command.output().unwrap_or_else(|e| panic!("run {command:?}: {e}"));
    assert!(
        output.status.success(),
        "{command:?} failed: {}\n{}{}",
        output.status,
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr),
    );
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// The pgkeep binary under test, at a path that [`user`] can reach: the one that was built with the
/// tests, or the one that `PGKEEP_TEST_PROGRAM` names.
pub fn pgkeep_binary() -> &'static Path {
    static BINARY: OnceLock<PathBuf> = OnceLock::new();
    BINARY.get_or_init(|| match other_program() {
        Some(other) => reachable(&other, "--version"),
        None => reachable(Path::new(env!("CARGO_BIN_EXE_pgkeep")), "--version"),
    })
}

/// The build that is tested in the place of the tests' own, if one is.
pub fn other_program() -> Option<PathBuf> {
    let named = std::env::var_os("PGKEEP_TEST_PROGRAM")?;
    let path = fs::canonicalize(&named);
    Some(path.unwrap_or_else(|e| panic!("PGKEEP_TEST_PROGRAM names {named:?}: {e}")))
}

/// A program at a path that [`user`] can reach, tried with `argument`: the build directory may lie
/// below one that only root can enter, and then it is a copy.
pub fn reachable(built: &Path, argument: &str) -> PathBuf {
    if command(built).arg(argument).output().is_ok() {
        return built.to_owned();
    }
    sweep_binaries();
    let folder = PathBuf::from(format!("{BINARY_FOLDER}{}", std::process::id()));
    fs::create_dir_all(&folder).expect("make a folder for the program");
    let copy = folder.join(built.file_name().expect("a program has a name"));
    let _ = fs::remove_file(&copy);
    if fs::hard_link(built, &copy).is_err() {
        fs::copy(built, &copy).expect("copy the program");
    }
    copy
}

const BINARY_FOLDER: &str = "/tmp/pgkeep-test-binary-";

/// Removes the copies that earlier test processes left: a static is never dropped.
fn sweep_binaries() {
    for entry in fs::read_dir("/tmp").into_iter().flatten().flatten() {
        let path = entry.path();
        let pid = path.to_str().and_then(|path| path.strip_prefix(BINARY_FOLDER));
        if pid.is_some_and(|pid| !Path::new("/proc").join(pid).exists()) {
            let _ = fs::remove_dir_all(path);
        }
    }
}
