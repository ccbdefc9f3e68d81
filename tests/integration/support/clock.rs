//! A clock that can be set for some processes alone, while they run.
//!
//! A library that is loaded before the C library's answers what the time is, in its place. It adds what
//! is in a file, which it has mapped: so the clock jumps for all who have the file, at once. Only the time
//! of day does: what measures how long something takes goes on as it was.

use std::{
    fs,
    os::unix::fs::{FileExt, PermissionsExt},
    path::PathBuf,
    process::Command,
    time::{SystemTime, UNIX_EPOCH},
};

use tempfile::TempDir;

use super::{
    install::{command, run},
    server::Variable,
};

/// The library. The C library's functions are wrappers of one system call, so that it is made here.
const LIBRARY: &str = r#"
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

static volatile const int64_t *off_by;

__attribute__((constructor)) static void begin(void)
{
    const char *path = getenv("CLOCK_OFF_BY");
    int file = path ? open(path, O_RDONLY | O_CLOEXEC) : -1;
    if (file < 0)
        return;
    void *mapped = mmap(0, sizeof *off_by, PROT_READ, MAP_SHARED, file, 0);
    if (mapped != MAP_FAILED)
        off_by = mapped;
    close(file);
}

int clock_gettime(clockid_t clock, struct timespec *now)
{
    int failed = syscall(SYS_clock_gettime, clock, now);
    if (!failed && off_by && (clock == CLOCK_REALTIME || clock == CLOCK_REALTIME_COARSE))
        now->tv_sec += *off_by;
    return failed;
}

int gettimeofday(struct timeval *restrict now, void *restrict zone)
{
    struct timespec exact;
    (void) zone;
    if (clock_gettime(CLOCK_REALTIME, &exact))
        return -1;
    now->tv_sec = exact.tv_sec;
    now->tv_usec = exact.tv_nsec / 1000;
    return 0;
}

time_t time(time_t *now)
{
    struct timespec exact;
    clock_gettime(CLOCK_REALTIME, &exact);
    if (now)
        *now = exact.tv_sec;
    return exact.tv_sec;
}
"#;

/// A clock. Goes with its file.
#[derive(Debug)]
pub struct Clock {
    folder: TempDir,
}

impl Clock {
    /// One that is right.
    pub fn new() -> Self {
        // Not where clusters are: programs in memory may not be allowed to be run.
        let folder = TempDir::with_prefix("pgkeep-clock-").expect("make a folder");
        fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o755)).expect("chmod");
        let source = folder.path().join("clock.c");
        fs::write(&source, LIBRARY).expect("write");
        let clock = Clock { folder };
        let options = ["-shared", "-fPIC", "-O1", "-Wall", "-Werror", "-o"];
        run(Command::new("cc").args(options).arg(clock.preload()).arg(source));
        fs::write(clock.file(), 0i64.to_ne_bytes()).expect("write");
        // It is of no use where it isn't loaded.
        clock.set(86_400);
        let date = run(command("date").arg("+%s").envs(clock.variables()));
        let ahead = date.trim().parse::<i64>().expect("a number") - now();
        assert!((86_390..86_410).contains(&ahead), "the clock can't be set here: {ahead} s");
        clock.set(0);
        clock
    }

    fn preload(&self) -> PathBuf {
        self.folder.path().join("clock.so")
    }

    fn file(&self) -> PathBuf {
        self.folder.path().join("off-by")
    }

    /// Sets it to the right time and so many seconds.
    pub fn set(&self, seconds: i64) {
        let file = fs::File::options().write(true).open(self.file()).expect("open the clock");
        file.write_all_at(&seconds.to_ne_bytes(), 0).expect("set the clock");
    }

    /// The variables for who goes by it.
    pub fn variables(&self) -> [Variable; 2] {
        [("LD_PRELOAD", self.preload()), ("CLOCK_OFF_BY", self.file())]
    }
}

/// The right time, in seconds.
pub fn now() -> i64 {
    SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970").as_secs() as i64
}
