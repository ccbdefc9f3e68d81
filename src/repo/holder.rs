//! Which process holds a lease, told apart from every other one, so that whoever looks from the same
//! host sees at once that it is gone.
//!
//! A process id alone says little: it is given again, after a restart of the host soon, and in a
//! container it counts for that container only. So the kernel's boot id, the process id namespace
//! and the moment at which the process started go with it (proc(5), namespaces(7)). Where that
//! can't be read, nothing is concluded.

use std::fs;

use rustix::{
    io::Errno,
    process::{Pid, test_kill_process},
};
use serde::{Deserialize, Serialize};

/// A process of one boot of one host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Holder {
    /// `/proc/sys/kernel/random/boot_id`: the host, from one start of it to the next.
    boot: String,
    /// The process id namespace, as `/proc/self/ns/pid` leads to: where the id means something.
    namespace: String,
    /// When the process started, in clock ticks since the boot.
    started: u64,
}

impl Holder {
    /// This process, if the system tells.
    pub fn this_process() -> Option<Self> {
        Holder::of(std::process::id())
    }

    fn of(process: u32) -> Option<Self> {
        let (boot, namespace) = here()?;
        let (_, started) = state(process)?;
        Some(Holder { boot, namespace, started })
    }

    /// Whether it is certain, as seen from here, that the process of this id is gone. Never of one
    /// of another host.
    pub fn is_gone(&self, process: u32) -> bool {
        let is_here =
            here().is_some_and(|(boot, ns)| (&boot, &ns) == (&self.boot, &self.namespace));
        let pid = i32::try_from(process).ok().and_then(Pid::from_raw);
        let Some(pid) = pid.filter(|_| is_here) else { return false };
        // Other users' processes may be hidden in /proc, but not from a signal.
        test_kill_process(pid) == Err(Errno::SRCH)
            || state(process).is_some_and(|(state, started)| {
                started != self.started || matches!(state, 'Z' | 'X')
            })
    }
}

/// The boot and the namespace that this process is in.
fn here() -> Option<(String, String)> {
    let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id").ok()?;
    let namespace = fs::read_link("/proc/self/ns/pid").ok()?;
    Some((boot.trim().to_owned(), namespace.to_str()?.to_owned()))
}

/// A process's state, `Z` for one that has ended and wasn't waited for, and when it started.
fn state(process: u32) -> Option<(char, u64)> {
    let stat = fs::read_to_string(format!("/proc/{process}/stat")).ok()?;
    // The second field, the program's name in brackets, may hold anything.
    let (_, rest) = stat.rsplit_once(')')?;
    let mut fields = rest.split_whitespace();
    let state = fields.next()?.chars().next()?;
    // State is the third field, the start time the twenty-second.
    Some((state, fields.nth(18)?.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    #[test]
    fn a_process_is_gone_when_it_has_ended_whoever_has_its_id_now() {
        let mut child = Command::new("sleep").arg("60").spawn().unwrap();
        let id = child.id();
        let holder = Holder::of(id).unwrap();
        assert!(!holder.is_gone(id));
        let later = Holder { started: holder.started + 1, ..holder.clone() };
        assert!(later.is_gone(id), "another process has the id");
        for elsewhere in [
            Holder { boot: "another".into(), ..later.clone() },
            Holder { namespace: "another".into(), ..later.clone() },
        ] {
            assert!(!elsewhere.is_gone(id), "that can't be seen from here");
        }
        child.kill().unwrap();
        while state(id).is_some_and(|(state, _)| state != 'Z') {
            std::thread::yield_now();
        }
        assert!(holder.is_gone(id), "before anybody has waited for it");
        child.wait().unwrap();
        assert!(holder.is_gone(id));
        assert!(!Holder::this_process().unwrap().is_gone(std::process::id()));
    }
}
