//! System calls that fail: which of a command's change something, and the command run while one of them gets an
//! error instead of what it asked for.

use std::{
    collections::HashMap,
    ffi::OsString,
    fs,
    os::unix::ffi::OsStringExt,
    path::{Path, PathBuf},
    process::Command,
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::{Duration, Instant},
};

use rustix::process::{Pid, Signal, kill_process};

use super::record::{Reader, descriptor, quoted, split};
use crate::support::{
    install::command,
    pgkeep::{Output, Running, start},
    scratch::Scratch,
    strace::forbidden,
};

const CALLS: &str = "open,openat,creat,mkdir,mkdirat,write,pwrite64,writev,copy_file_range,\
                     ftruncate,fallocate,rename,renameat,renameat2,link,linkat,symlink,symlinkat,\
                     unlink,unlinkat,rmdir,fsync,fdatasync";

/// How long a command may take. It is slow under strace, and a backup waits a minute for its WAL.
const PATIENCE: Duration = Duration::from_secs(100);

/// A call that changes something.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    /// Its name.
    pub call: String,
    /// Which one of this name it is of its thread's, from 1 on: so `strace` counts.
    pub nth: usize,
    /// What it changes: the new name of what is named.
    pub path: PathBuf,
}

/// A run in which a call got an error.
#[derive(Debug)]
pub struct Faulty {
    pub output: Output,
    /// What the calls that failed were about.
    pub hit: Vec<PathBuf>,
    /// How many calls failed that change nothing below the root, which no disk would have done.
    pub strays: usize,
}

/// Runs `traced` to its end, and says which calls changed something below `root`. `None`, and a loud word,
/// where nobody may look on.
pub fn places(traced: &Command, root: &Path) -> Option<(Output, Vec<Place>)> {
    if let Some(why) = forbidden() {
        eprintln!("SKIPPED: calls can't be made to fail, ptrace is forbidden here: {why}");
        return None;
    }
    let (output, lines) = run(traced, None);
    let reader = reader(traced, root);
    let mut found = Vec::new();
    for thread in lines {
        let mut counts: HashMap<String, usize> = HashMap::new();
        for line in thread.lines() {
            let Some((.., name, arguments, result)) = split(line) else { continue };
            let nth = counts.entry(name.to_owned()).or_default();
            *nth += 1;
            if let Some(path) = changed(&reader, name, arguments)
                && !result.starts_with('-')
            {
                found.push(Place { call: name.to_owned(), nth: *nth, path });
            }
        }
    }
    Some((output, found))
}

/// Runs `traced` with `error` (`ENOSPC`) for the call at `place`, and if it is `lasting` for all of the same name that
/// follow it.
pub fn run_with(
    traced: &Command,
    root: &Path,
    place: &Place,
    error: &str,
    lasting: bool,
) -> Faulty {
    let when = format!("{}{}", place.nth, if lasting { "+" } else { "" });
    let (output, lines) = run(traced, Some(format!("{}:error={error}:when={when}", place.call)));
    let reader = reader(traced, root);
    let (mut hit, mut strays) = (Vec::new(), 0);
    for line in lines.iter().flat_map(|thread| thread.lines()) {
        if !line.contains("(INJECTED)") {
            continue;
        }
        let parts = split(line).expect("a call that failed");
        match changed(&reader, parts.2, parts.3) {
            Some(path) => hit.push(path),
            None => strays += 1,
        }
    }
    Faulty { output, hit, strays }
}

fn reader<'a>(traced: &'a Command, root: &'a Path) -> Reader<'a> {
    Reader { root, cwd: traced.get_current_dir().unwrap_or(Path::new("/")) }
}

/// What the command printed, and the calls of each of its threads.
fn run(traced: &Command, inject: Option<String>) -> (Output, Vec<String>) {
    let scratch = Scratch::new("fault");
    let mut strace = command("strace");
    strace.args(["-f", "-ff", "--seccomp-bpf", "-y", "-xx", "-s", "0", "-ttt", "-T", "-e"]);
    strace.arg(format!("trace={CALLS}"));
    if let Some(inject) = inject {
        strace.arg("-e").arg(format!("inject={inject}"));
    }
    strace.arg("-o").arg(scratch.path().join("trace"));
    strace.arg(traced.get_program()).args(traced.get_args());
    strace.current_dir(traced.get_current_dir().unwrap_or(Path::new("/")));
    let output = bounded(start(strace));
    let entries = fs::read_dir(scratch.path()).expect("read").flatten();
    let lines = entries.map(|e| fs::read_to_string(e.path()).expect("read a trace")).collect();
    (output, lines)
}

/// Waits for the end of strace. Where the call that failed was one of those by which threads wake each other, the command
/// never ends: it is killed then.
fn bounded(strace: Running) -> Output {
    let pid = strace.pid();
    let ended = AtomicBool::new(false);
    thread::scope(|scope| {
        scope.spawn(|| {
            let end = Instant::now() + PATIENCE;
            while Instant::now() < end {
                if ended.load(Ordering::Relaxed) {
                    return;
                }
                thread::sleep(Duration::from_millis(20));
            }
            let children = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children"));
            for child in children.unwrap_or_default().split_whitespace() {
                if let Some(child) = child.parse().ok().and_then(Pid::from_raw) {
                    let _ = kill_process(child, Signal::KILL);
                }
            }
        });
        let output = strace.wait();
        ended.store(true, Ordering::Relaxed);
        output
    })
}

/// What a call changes below the root, if it does.
fn changed(reader: &Reader<'_>, name: &str, arguments: &str) -> Option<PathBuf> {
    let arguments: Vec<&str> = arguments.split(", ").collect();
    let argument = |i: usize| arguments.get(i).copied().unwrap_or_default();
    let opened = |i: usize| Some(descriptor(argument(i))?.path);
    let path = |i: usize| Some(reader.cwd.join(OsString::from_vec(quoted(argument(i))?)));
    let at = |i: usize| {
        Some(descriptor(argument(i))?.path.join(OsString::from_vec(quoted(argument(i + 1))?)))
    };
    let makes = |flags: &str| flags.contains("O_CREAT") || flags.contains("O_TMPFILE");
    let path = match name {
        "open" => makes(argument(1)).then(|| path(0))?,
        "openat" => makes(argument(2)).then(|| at(0))?,
        "creat" | "mkdir" | "unlink" | "rmdir" => path(0),
        "mkdirat" | "unlinkat" => at(0),
        "rename" | "link" | "symlink" => path(1),
        "renameat" | "renameat2" | "linkat" => at(2),
        "symlinkat" => at(1),
        "copy_file_range" => opened(2),
        _ => opened(0),
    };
    path.filter(|path| reader.is_below(path))
}
