//! The moments at which a process is killed by tests, each under a name.
//!
//! A kill finds its way between any two instructions; what matters is what is durable by then and what
//! somebody was told. [`reached`] stands where that changes. A release build has nothing of it.
//!
//! In a debug build the environment variable `DIE_AT_STEP` names a file, and who first reaches the step whose
//! name is in it removes the file and dies by SIGKILL. So one process dies, once, whoever runs it.

/// Marks a moment: `name` says what has happened by then, with the part of the program before it.
#[inline]
pub fn reached(name: &'static str) {
    #[cfg(debug_assertions)]
    die_if_asked(name);
    #[cfg(not(debug_assertions))]
    let _ = name;
}

#[cfg(debug_assertions)]
fn die_if_asked(name: &str) {
    use std::{fs, path::PathBuf, sync::OnceLock};

    static FILE: OnceLock<Option<PathBuf>> = OnceLock::new();
    let file = FILE.get_or_init(|| std::env::var_os("DIE_AT_STEP").map(PathBuf::from));
    let Some(file) = file else { return };
    let is_asked = fs::read_to_string(file).is_ok_and(|asked| asked.trim() == name);
    // Of several that come here at once, one dies.
    if is_asked && fs::remove_file(file).is_ok() {
        let me = rustix::process::getpid();
        let _ = rustix::process::kill_process(me, rustix::process::Signal::KILL);
        // It comes before the next instruction of this thread, or nearly.
        loop {
            std::thread::park();
        }
    }
}
