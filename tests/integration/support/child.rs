//! Library code in a process of its own: as another user, on a full disk, or killed.
//!
//! The test program starts itself again with one test, which does what `CHILD_OF_A_TEST` says
//! and passes at once when that isn't set.

use std::{
    path::{Path, PathBuf},
    process::Command,
    sync::OnceLock,
};

use super::install;

/// Not one of `PGKEEP_…`: pgkeep refuses those that it doesn't know.
const VARIABLE: &str = "CHILD_OF_A_TEST";

/// The command that runs the test `name` (its full path) alone, as the server's user, with `what`
/// to do.
pub fn child(name: &str, what: &str) -> Command {
    let mut command = install::command(program());
    // A test process may be a filter's or a lister's: say exactly what to run and how.
    command.args([name, "--exact", "--nocapture", "--test-threads=1"]).env(VARIABLE, what);
    command
}

/// What this process was started to do, if it was by [`child`].
pub fn task() -> Option<String> {
    std::env::var(VARIABLE).ok()
}

/// This test program, at a path that the server's user can reach.
pub fn program() -> &'static Path {
    static PROGRAM: OnceLock<PathBuf> = OnceLock::new();
    PROGRAM.get_or_init(|| {
        let built = std::env::current_exe().expect("this program's path");
        install::reachable(&built, "--list")
    })
}
