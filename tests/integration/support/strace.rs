//! What a program asks of the file system, and in what order: whether what it calls durable was
//! synced, which no test of the content can tell without cutting the power.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use super::{
    install::command,
    pgkeep::{Output, run_to_end},
    scratch::Scratch,
};

/// The system calls that make, write, name, remove or sync something.
const CALLS: &str = "open,openat,creat,mkdir,mkdirat,write,pwrite64,writev,pwritev,pwritev2,\
                     copy_file_range,sendfile,ftruncate,fallocate,rename,renameat,renameat2,link,\
                     linkat,symlink,symlinkat,unlink,unlinkat,rmdir,fsync,fdatasync";

/// What a program did to a path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Act {
    /// Made a directory or a link.
    Made,
    /// Created, cut or wrote a file.
    Wrote,
    /// Gave this name to what is at the other path.
    Named(PathBuf),
    Removed,
    Synced,
}

/// A call that succeeded.
#[derive(Debug, Clone)]
pub struct Call {
    pub act: Act,
    pub path: PathBuf,
    thread: usize,
    index: usize,
    began: f64,
    ended: f64,
}

impl Call {
    /// Whether this call was over when the other one began.
    pub fn is_before(&self, other: &Call) -> bool {
        if self.thread == other.thread {
            self.index < other.index
        } else {
            self.ended <= other.began
        }
    }
}

/// The calls of a program that ran to its end, by the time they began.
#[derive(Debug)]
pub struct Trace(pub Vec<Call>);

impl Trace {
    /// Runs `command`, one of [`super::install::command`], and looks on. `None`, and a loud word, where
    /// nobody may look on.
    pub fn of(traced: &Command) -> Option<(Output, Trace)> {
        if let Some(why) = forbidden() {
            eprintln!(
                "SKIPPED: the order of syncs can't be tested, ptrace is forbidden here: {why}"
            );
            return None;
        }
        let scratch = Scratch::new("strace");
        let mut strace = command("strace");
        strace.args(["-ff", "-y", "-s", "0", "-ttt", "-T", "-e", &format!("trace={CALLS}"), "-o"]);
        strace.arg(scratch.path().join("trace")).arg(traced.get_program()).args(traced.get_args());
        if let Some(directory) = traced.get_current_dir() {
            strace.current_dir(directory);
        }
        let output = run_to_end(&mut strace);
        let mut calls = Vec::new();
        for (thread, entry) in fs::read_dir(scratch.path()).expect("read").flatten().enumerate() {
            let text = fs::read_to_string(entry.path()).expect("read a trace");
            for (index, line) in text.lines().enumerate() {
                calls.extend(parse(line, thread, index));
            }
        }
        calls.sort_by(|a, b| a.began.total_cmp(&b.began));
        Some((output, Trace(calls)))
    }

    /// Those that fit.
    pub fn all<'t>(&'t self, fits: impl Fn(&Call) -> bool + 't) -> impl Iterator<Item = &'t Call> {
        self.0.iter().filter(move |call| fits(call))
    }

    /// The calls that gave a name to something below `root`.
    pub fn named_below<'t>(&'t self, root: &'t Path) -> impl Iterator<Item = &'t Call> {
        self.all(move |call| matches!(call.act, Act::Named(_)) && call.path.starts_with(root))
    }

    /// Fails unless what is at `path` was synced after all that was written into it, and before
    /// `until`.
    pub fn assert_written_out(&self, path: &Path, until: &Call) {
        let last = self.all(|c| c.act == Act::Wrote && c.path == path && c.is_before(until)).last();
        let last = last.unwrap_or_else(|| panic!("{} was never written", path.display()));
        let synced = |c: &Call| c.act == Act::Synced && c.path == path;
        let sync = self.all(synced).find(|c| last.is_before(c) && c.is_before(until));
        assert!(
            sync.is_some(),
            "{} wasn't synced after {last:?} and before {until:?}: {:?}",
            path.display(),
            self.all(synced).collect::<Vec<_>>()
        );
    }

    /// Fails unless `path` was synced after `call`. Returns when.
    pub fn assert_synced_after(&self, path: &Path, call: &Call) -> &Call {
        let synced = |c: &&Call| c.act == Act::Synced && c.path == path && call.is_before(c);
        self.0.iter().find(synced).unwrap_or_else(|| {
            panic!("{} wasn't synced after {call:?}", path.display());
        })
    }

    /// Fails unless everything that got a name below `root` was synced before, and every folder from
    /// there to `root` after; and so was the folder of every directory that was made. Returns the
    /// names, in the order in which they were given.
    pub fn assert_durable_below(&self, root: &Path) -> Vec<PathBuf> {
        for call in self.named_below(root) {
            let Act::Named(from) = &call.act else { continue };
            self.assert_written_out(from, call);
            for folder in call.path.ancestors().skip(1).take_while(|f| f.starts_with(root)) {
                self.assert_synced_after(folder, call);
            }
        }
        for call in self.all(|c| c.act == Act::Made && c.path.starts_with(root)) {
            self.assert_synced_after(call.path.parent().expect("a folder"), call);
        }
        self.named_below(root).map(|call| call.path.clone()).collect()
    }
}

/// Why a process can't be looked at here, if it can't. That strace isn't there is no reason.
pub fn forbidden() -> Option<String> {
    let tried = command("strace").args(["-o", "/dev/null", "true"]).output();
    let tried = tried.expect("strace isn't installed for the tests: run `make test` once");
    if tried.status.success() {
        return None;
    }
    let why = String::from_utf8_lossy(&tried.stderr).trim().replace('\n', "; ");
    let is_refusal = why.contains("Operation not permitted") || why.contains("Permission denied");
    assert!(is_refusal, "strace doesn't work: {why}");
    Some(why)
}

/// `1795545422.174075 fsync(3</path>) = 0 <0.000075>`
fn parse(line: &str, thread: usize, index: usize) -> Option<Call> {
    let (began, rest) = line.split_once(' ')?;
    let (name, rest) = rest.split_once('(')?;
    let (arguments, result) = rest.rsplit_once(") = ")?;
    if result.starts_with('-') {
        return None;
    }
    let began: f64 = began.parse().ok()?;
    let took: f64 = result.rsplit_once('<')?.1.trim_end_matches('>').parse().ok()?;
    let arguments: Vec<&str> = arguments.split(", ").collect();
    // `3</path>`, or `3</path>(deleted)` for what has no name.
    let descriptor = |text: &str| {
        let (_, path) = text.split_once('<')?;
        Some(PathBuf::from(path.split_once('>')?.0))
    };
    let opened = |i: usize| descriptor(arguments.get(i)?);
    let quoted = |i: usize| Some(Path::new(arguments.get(i)?.trim_matches('"')));
    // An absolute name replaces the directory that it is relative to.
    let at = |i: usize| Some(opened(i)?.join(quoted(i + 1)?));
    let (act, path) = match name {
        "fsync" | "fdatasync" => (Act::Synced, opened(0)?),
        "mkdir" => (Act::Made, quoted(0)?.to_owned()),
        "mkdirat" => (Act::Made, at(0)?),
        "symlink" => (Act::Made, quoted(1)?.to_owned()),
        "symlinkat" => (Act::Made, at(1)?),
        "unlink" | "rmdir" => (Act::Removed, quoted(0)?.to_owned()),
        "unlinkat" => (Act::Removed, at(0)?),
        "rename" | "link" => (Act::Named(quoted(0)?.to_owned()), quoted(1)?.to_owned()),
        "renameat" | "renameat2" | "linkat" => (Act::Named(at(0)?), at(2)?),
        "open" | "openat" | "creat" => {
            let flags = ["O_CREAT", "O_TRUNC", "O_TMPFILE"];
            if name != "creat" && !flags.iter().any(|flag| line.contains(flag)) {
                return None;
            }
            (Act::Wrote, descriptor(result)?)
        }
        "copy_file_range" => (Act::Wrote, opened(2)?),
        _ => (Act::Wrote, opened(0)?),
    };
    Some(Call { act, path, thread, index, began, ended: began + took })
}

#[test]
fn lines_are_read() {
    let calls: Vec<Call> = [
        r#"1.5 openat(AT_FDCWD</tmp>, "/r/.tmp/a", O_RDWR|O_CREAT, 0600) = 3</r/.tmp/a> <0.25>"#,
        r#"2.0 openat(AT_FDCWD</tmp>, "/r/b", O_RDONLY) = 4</r/b> <0.000020>"#,
        r#"2.1 write(3</r/.tmp/a>, ""..., 2) = 2 <0.000075>"#,
        r#"2.2 fsync(3</r/.tmp/a>) = -1 EIO (Input/output error) <0.000075>"#,
        r#"2.3 fsync(3</r/.tmp/a>) = 0 <0.000075>"#,
        r#"2.4 renameat2(AT_FDCWD</tmp>, "/r/.tmp/a", AT_FDCWD</tmp>, "/r/a", RENAME_NOREPLACE) = 0 <0.1>"#,
        r#"2.5 renameat(5</r/global>, "x", 5</r/global>, "y") = 0 <0.1>"#,
        r#"2.6 --- SIGCHLD {si_signo=SIGCHLD} ---"#,
        r#"2.65 write(9</r/#4711>(deleted), ""..., 8) = 8 <0.1>"#,
        r#"2.7 unlinkat(5</r>, "y", 0) = 0 <0.1>"#,
    ]
    .iter()
    .enumerate()
    .filter_map(|(index, line)| parse(line, 0, index))
    .collect();
    let named = |from: &str| Act::Named(from.into());
    let expected = [
        (Act::Wrote, "/r/.tmp/a"),
        (Act::Wrote, "/r/.tmp/a"),
        (Act::Synced, "/r/.tmp/a"),
        (named("/r/.tmp/a"), "/r/a"),
        (named("/r/global/x"), "/r/global/y"),
        (Act::Wrote, "/r/#4711"),
        (Act::Removed, "/r/y"),
    ];
    let found: Vec<_> = calls.iter().map(|c| (c.act.clone(), c.path.to_str().unwrap())).collect();
    assert_eq!(found, expected);
    assert_eq!((calls[0].began, calls[0].ended), (1.5, 1.75));
}
