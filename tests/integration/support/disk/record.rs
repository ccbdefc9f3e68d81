//! What a program changes below a directory, call by call, with the bytes it writes.

use std::{
    ffi::OsString,
    fs,
    os::unix::ffi::OsStringExt,
    path::{Path, PathBuf},
    process::Command,
};

use crate::support::{
    install::command,
    pgkeep::{Output, run_to_end, start},
    scratch::Scratch,
    strace::forbidden,
};

/// Calls that change no file and that nobody needs to see: they would only be long.
const UNSEEN: &str = "read,pread64,readv,preadv,preadv2,recvfrom,recvmsg,futex,\
                      munmap,mprotect,madvise,brk,rt_sigaction,rt_sigprocmask,epoll_wait,poll,\
                      clock_nanosleep,nanosleep,sched_yield,getrandom";

/// Calls that name files and change nothing of what the model keeps: names and contents. Permissions
/// and times aren't kept, and what only asks the kernel to begin with something proves nothing.
const HARMLESS: [&str; 30] = [
    "access",
    "faccessat",
    "faccessat2",
    "stat",
    "lstat",
    "fstat",
    "newfstatat",
    "statx",
    "statfs",
    "fstatfs",
    "readlink",
    "readlinkat",
    "getdents64",
    "getcwd",
    "execve",
    "close",
    "flock",
    "fcntl",
    "fadvise64",
    "chmod",
    "fchmod",
    "fchmodat",
    "fchown",
    "utimensat",
    "ioctl",
    "mmap",
    "syncfs",
    "sync_file_range",
    "sendto",
    "sendmsg",
];

/// A change, or a step of one, at the moment when it is over.
#[derive(Debug, Clone)]
pub enum Op {
    /// Opened for writing, and made if it wasn't there.
    Open {
        path: PathBuf,
        truncate: bool,
        append: bool,
    },
    /// A file without a name, known by what the kernel calls it, under this descriptor.
    Unnamed {
        path: PathBuf,
        descriptor: u32,
    },
    /// Bytes at an offset, or where the file is.
    Write {
        path: PathBuf,
        offset: Option<u64>,
        bytes: Vec<u8>,
    },
    /// Where the file is now.
    Seek {
        path: PathBuf,
        position: u64,
    },
    Truncate {
        path: PathBuf,
        size: u64,
    },
    MakeDirectory(PathBuf),
    MakeLink {
        path: PathBuf,
        target: PathBuf,
    },
    Rename {
        from: PathBuf,
        to: PathBuf,
    },
    Link {
        from: PathBuf,
        to: PathBuf,
    },
    /// The file without a name under this descriptor gets one.
    LinkUnnamed {
        descriptor: u32,
        to: PathBuf,
    },
    Remove(PathBuf),
    /// A sync begins, of this number: what is written from now on isn't part of it.
    BeginSync(usize, PathBuf),
    /// It is over.
    Sync(usize, PathBuf),
    /// The server is told that WAL up to here is durable: a standby status update (`protocol-replication`).
    Told(u64),
}

impl Op {
    /// Whether a crash right before this one and right after it may differ in more than bytes.
    pub fn is_turn(&self) -> bool {
        !matches!(self, Op::Open { .. } | Op::Write { .. } | Op::Seek { .. } | Op::Truncate { .. })
    }
}

/// A run of a program, to its end or its death.
#[derive(Debug)]
pub struct Recording {
    pub output: Output,
    pub ops: Vec<Op>,
}

/// Runs `traced`, one of [`crate::support::install::command`], and takes down what it changes below
/// `root`. `None`, and a loud word, where nobody may look on.
///
/// Fails on a call that might change something there and that the model doesn't know.
pub fn record(traced: &Command, root: &Path) -> Option<Recording> {
    if let Some(why) = forbidden() {
        eprintln!("SKIPPED: power losses can't be tested, ptrace is forbidden here: {why}");
        return None;
    }
    let scratch = Scratch::new("record");
    let output = run_to_end(&mut tracer(traced, &scratch));
    Some(Recording { output, ops: read(traced, root, &scratch) })
}

/// As [`record`], of a command that goes on until it is told to stop, by SIGTERM, when `during` is over.
pub fn record_while(traced: &Command, root: &Path, during: impl FnOnce()) -> Option<Recording> {
    if let Some(why) = forbidden() {
        eprintln!("SKIPPED: power losses can't be tested, ptrace is forbidden here: {why}");
        return None;
    }
    let scratch = Scratch::new("record");
    let strace = start(tracer(traced, &scratch));
    during();
    let pid = strace.pid();
    let children = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children"));
    let child = children.expect("the tracer's children").trim().parse().expect("one of them");
    let child = rustix::process::Pid::from_raw(child).expect("a process id");
    rustix::process::kill_process(child, rustix::process::Signal::TERM).expect("stop it");
    let output = strace.wait();
    Some(Recording { output, ops: read(traced, root, &scratch) })
}

fn tracer(traced: &Command, scratch: &Scratch) -> Command {
    let mut strace = command("strace");
    strace.args(["-f", "-ff", "--seccomp-bpf", "-y", "-xx", "-s", "268435456", "-ttt", "-T", "-e"]);
    strace.arg(format!("trace=!{UNSEEN}"));
    strace.arg("-o").arg(scratch.path().join("trace"));
    strace.arg(traced.get_program()).args(traced.get_args());
    strace.current_dir(traced.get_current_dir().unwrap_or(Path::new("/")));
    strace
}

fn read(traced: &Command, root: &Path, scratch: &Scratch) -> Vec<Op> {
    let reader = Reader { root, cwd: traced.get_current_dir().unwrap_or(Path::new("/")) };
    let mut found = Vec::new();
    for (thread, entry) in fs::read_dir(scratch.path()).expect("read").flatten().enumerate() {
        let text = fs::read_to_string(entry.path()).expect("read a trace");
        for (index, line) in text.lines().enumerate() {
            let id = thread << 32 | index;
            found.extend(reader.ops(line, id).into_iter().map(|(at, op)| ((at, id), op)));
        }
    }
    // By time; of one thread also where the clock's microsecond is the same.
    found.sort_by_key(|(at, _)| *at);
    found.into_iter().map(|(_, op)| op).collect()
}

pub(super) struct Reader<'a> {
    pub root: &'a Path,
    pub cwd: &'a Path,
}

/// `3<\x2f…>`, or `3<\x2f…>(deleted)` for what has no name.
pub(super) struct Descriptor {
    number: u32,
    pub path: PathBuf,
    has_name: bool,
}

pub(super) fn descriptor(text: &str) -> Option<Descriptor> {
    let (number, rest) = text.split_once('<')?;
    let (path, after) = rest.split_once('>')?;
    let path = unescape(path)?;
    let number = number.parse().unwrap_or(u32::MAX);
    Some(Descriptor { number, path: OsString::from_vec(path).into(), has_name: after.is_empty() })
}

/// `\x2f\x64`
fn unescape(text: &str) -> Option<Vec<u8>> {
    let digits = text.split("\\x").skip(1);
    digits.map(|two| u8::from_str_radix(two, 16).ok()).collect()
}

/// What `-xx` makes of a text.
fn escaped(text: &str) -> String {
    text.bytes().map(|b| format!("\\x{b:02x}")).collect()
}

/// The position that a standby status update says is flushed: the second of its three.
fn told(message: &[u8]) -> Option<u64> {
    let update = message.strip_prefix(b"d")?.get(4..)?.strip_prefix(b"r")?;
    Some(u64::from_be_bytes(update.get(8..16)?.try_into().ok()?))
}

pub(super) fn quoted(text: &str) -> Option<Vec<u8>> {
    unescape(text.strip_prefix('"')?.strip_suffix('"')?)
}

fn micros(text: &str) -> Option<u64> {
    let (seconds, fraction) = text.split_once('.')?;
    Some(seconds.parse::<u64>().ok()? * 1_000_000 + fraction.parse::<u64>().ok()?)
}

impl Reader<'_> {
    /// What a line of the trace did below the root, and when.
    fn ops(&self, line: &str, id: usize) -> Vec<(u64, Op)> {
        let Some((began, took, name, arguments, result)) = split(line) else { return Vec::new() };
        if result.starts_with(['-', '?']) {
            return Vec::new();
        }
        let ended = began + took;
        let arguments: Vec<&str> = arguments.split(", ").collect();
        let what = self.what(name, &arguments, result, line);
        let Some(what) = what else { return Vec::new() };
        match what {
            Op::Sync(_, path) => {
                vec![(began, Op::BeginSync(id, path.clone())), (ended, Op::Sync(id, path))]
            }
            // The server may have it as soon as it is on its way.
            Op::Told(lsn) => vec![(began, Op::Told(lsn))],
            op => vec![(ended, op)],
        }
    }

    pub fn is_below(&self, path: &Path) -> bool {
        path.starts_with(self.root)
    }

    fn what(&self, name: &str, arguments: &[&str], result: &str, line: &str) -> Option<Op> {
        let argument = |i: usize| arguments.get(i).copied().unwrap_or_default();
        let open = |i: usize| descriptor(argument(i)).filter(|d| self.is_below(&d.path));
        // Of what has lost its name nobody will read anything; what never had one is another matter.
        let written = |i: usize| open(i).filter(|d| d.has_name || is_unnamed(&d.path));
        let path = |i: usize| Some(self.cwd.join(OsString::from_vec(quoted(argument(i))?)));
        // An absolute name replaces the directory that it is relative to.
        let at = |i: usize| {
            Some(descriptor(argument(i))?.path.join(OsString::from_vec(quoted(argument(i + 1))?)))
        };
        let below = |path: Option<PathBuf>| path.filter(|path| self.is_below(path));
        let number = |text: &str| text.split(['<', ' ']).next().and_then(|n| n.parse::<u64>().ok());
        match name {
            "open" | "openat" | "creat" => {
                let flags = argument(if name == "openat" { 2 } else { 1 });
                let made = descriptor(result).filter(|d| self.is_below(&d.path))?;
                if flags.contains("O_TMPFILE") {
                    return Some(Op::Unnamed { path: made.path, descriptor: made.number });
                }
                let writes = ["O_WRONLY", "O_RDWR", "O_CREAT", "O_TRUNC"];
                if name != "creat" && !writes.iter().any(|flag| flags.contains(flag)) {
                    return None;
                }
                let truncate = name == "creat" || flags.contains("O_TRUNC");
                let append = flags.contains("O_APPEND");
                Some(Op::Open { path: made.path, truncate, append })
            }
            "write" | "sendto" if argument(0).contains(&escaped("socket:")) => {
                told(&quoted(argument(1))?).map(Op::Told)
            }
            "write" | "pwrite64" => {
                let path = written(0)?.path;
                let mut bytes = quoted(argument(1)).expect("all bytes are told");
                bytes.truncate(number(result)? as usize);
                let offset = (name == "pwrite64").then(|| number(argument(3))).flatten();
                Some(Op::Write { path, offset, bytes })
            }
            "writev" => {
                let path = written(0)?.path;
                let parts = line.split("iov_base=").skip(1);
                let mut bytes: Vec<u8> = parts
                    .flat_map(|part| {
                        let end = part.find([',', '}']).expect("a base has an end");
                        quoted(&part[..end]).expect("all bytes are told")
                    })
                    .collect();
                bytes.truncate(number(result)? as usize);
                Some(Op::Write { path, offset: None, bytes })
            }
            "lseek" => Some(Op::Seek { path: written(0)?.path, position: number(result)? }),
            "ftruncate" => {
                Some(Op::Truncate { path: written(0)?.path, size: number(argument(1))? })
            }
            "mkdir" => below(path(0)).map(Op::MakeDirectory),
            "mkdirat" => below(at(0)).map(Op::MakeDirectory),
            "symlink" | "symlinkat" => {
                let target = OsString::from_vec(quoted(argument(0))?).into();
                let path = below(if name == "symlink" { path(1) } else { at(1) })?;
                Some(Op::MakeLink { path, target })
            }
            "rename" => self.two(path(0)?, path(1)?).map(|(from, to)| Op::Rename { from, to }),
            "renameat" | "renameat2" => {
                self.two(at(0)?, at(2)?).map(|(from, to)| Op::Rename { from, to })
            }
            "link" | "linkat" => {
                let (from, to) =
                    if name == "link" { (path(0)?, path(1)?) } else { (at(0)?, at(2)?) };
                if let Ok(open) = from.strip_prefix("/proc/self/fd") {
                    let descriptor = open.to_str()?.parse().expect("a descriptor");
                    return below(Some(to)).map(|to| Op::LinkUnnamed { descriptor, to });
                }
                self.two(from, to).map(|(from, to)| Op::Link { from, to })
            }
            "unlink" | "rmdir" => below(path(0)).map(Op::Remove),
            "unlinkat" => below(at(0)).map(Op::Remove),
            // The number is the line's, which only the caller knows.
            "fsync" | "fdatasync" => Some(Op::Sync(0, open(0)?.path)),
            "mmap" if line.contains("MAP_SHARED") && line.contains("PROT_WRITE") => {
                assert!(open(4).is_none(), "a file of the tree is written in memory: {line}");
                None
            }
            "ioctl" => {
                assert!(!line.contains("FICLONE"), "the model knows no clones: {line}");
                None
            }
            _ => {
                let named = arguments.iter().any(|argument| {
                    let quoted = quoted(argument).filter(|bytes| !bytes.is_empty());
                    let quoted = quoted.map(|bytes| self.cwd.join(OsString::from_vec(bytes)));
                    let named = [quoted, descriptor(argument).map(|d| d.path)];
                    named.into_iter().flatten().any(|path| self.is_below(&path))
                });
                assert!(
                    HARMLESS.contains(&name) || !named,
                    "the model doesn't know what this call changes: {line}"
                );
                None
            }
        }
    }

    /// Both or none are below the root.
    fn two(&self, from: PathBuf, to: PathBuf) -> Option<(PathBuf, PathBuf)> {
        assert_eq!(self.is_below(&from), self.is_below(&to), "{from:?} to {to:?}");
        self.is_below(&from).then_some((from, to))
    }
}

/// What the kernel calls a file of `O_TMPFILE`: `#` and the inode.
fn is_unnamed(path: &Path) -> bool {
    let name = path.file_name().and_then(|name| name.to_str());
    name.is_some_and(|name| name.starts_with('#') && name[1..].bytes().all(|b| b.is_ascii_digit()))
}

/// `1795545422.174075 fsync(3</path>) = 0 <0.000075>`: when, how long, name, arguments, result.
pub(super) fn split(line: &str) -> Option<(u64, u64, &str, &str, &str)> {
    let (began, rest) = line.split_once(' ')?;
    let (name, rest) = rest.split_once('(')?;
    let (arguments, result) = rest.rsplit_once(" = ")?;
    let arguments = arguments.trim_end().strip_suffix(')')?;
    let (result, took) = result.rsplit_once(" <")?;
    Some((micros(began)?, micros(took.trim_end_matches('>'))?, name, arguments, result))
}

#[test]
fn calls_are_read_with_their_bytes() {
    let reader = Reader { root: Path::new("/r"), cwd: Path::new("/r/d") };
    let escape = escaped;
    let (a, d) = (escape("/r/a"), escape("/r/d"));
    let read = |line: &str| format!("{:?}", reader.ops(line, 7));
    let write = format!("1.000005 write(3<{a}>, \"\\x68\\x00\", 2) = 2 <0.000010>");
    let expected = r#"[(1000015, Write { path: "/r/a", offset: None, bytes: [104, 0] })]"#;
    assert_eq!(read(&write), expected);
    let synced = read(&format!("1.000005 fsync(3<{a}>) = 0 <0.000010>"));
    assert_eq!(synced, r#"[(1000005, BeginSync(7, "/r/a")), (1000015, Sync(7, "/r/a"))]"#);
    let failed = format!("1.000005 fsync(3<{a}>) = -1 EIO (Input/output error) <0.000010>");
    assert_eq!(read(&failed), "[]");
    let relative = format!("1.000005 unlink(\"{}\") = 0 <0.000010>", escape("x"));
    assert_eq!(read(&relative), r#"[(1000015, Remove("/r/d/x"))]"#);
    let named = format!(
        "1.000005 linkat(AT_FDCWD<{d}>, \"{}\", AT_FDCWD<{d}>, \"{}\", AT_SYMLINK_FOLLOW) = 0 \
         <0.000010>",
        escape("/proc/self/fd/9"),
        escape("x")
    );
    assert_eq!(read(&named), r#"[(1000015, LinkUnnamed { descriptor: 9, to: "/r/d/x" })]"#);
    let unknown = format!("1.000005 setxattr(\"{a}\", \"{a}\", \"\", 0, 0) = 0 <0.000010>");
    assert!(std::panic::catch_unwind(|| reader.ops(&unknown, 0)).is_err());
}
