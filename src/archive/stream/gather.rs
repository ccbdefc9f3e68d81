//! Taking what a server sends several messages at a time, where nothing waits for them.
//!
//! A busy server sends a message for nearly every commit. To be woken for each takes more than all that is done with
//! what it brings, and takes it from the server, which is on the same host as often as not.

use std::time::{Duration, Instant};

/// How long nothing is read once everything was.
const REST: Duration = Duration::from_millis(2);

/// More bytes than that in a rest, and the server may be waiting for its buffer to be emptied.
const MUCH: usize = 128 << 10;

/// How long there is no rest then.
const BUSY: Duration = Duration::from_millis(50);

/// When to read and when not to.
#[derive(Debug, Default)]
pub struct Gather {
    /// How many bytes came since the last rest.
    came: usize,
    busy: Option<Instant>,
}

impl Gather {
    /// Takes note of bytes that came.
    pub fn came(&mut self, bytes: usize) {
        self.came += bytes;
    }

    /// Whether something came since the last rest, and a rest is in order when there is no more just now.
    pub fn may_rest(&self) -> bool {
        self.came > 0 && self.busy.is_none_or(|until| until <= Instant::now())
    }

    /// Rests: the thread sleeps. Were it only not to read, it would still be woken for each message.
    pub fn rest(&mut self) {
        if std::mem::take(&mut self.came) <= MUCH {
            self.busy = None;
            std::thread::sleep(REST);
        } else if self.busy.take().is_none() {
            self.busy = Some(Instant::now() + BUSY);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// How long a rest takes.
    fn rest(gather: &mut Gather) -> Duration {
        let begin = Instant::now();
        gather.rest();
        begin.elapsed()
    }

    #[test]
    fn a_rest_follows_what_came_and_none_when_it_was_much() {
        let mut gather = Gather::default();
        assert!(!gather.may_rest(), "nothing came: the next message is waited for");
        gather.came(100);
        gather.came(MUCH - 100);
        assert!(gather.may_rest());
        assert!(rest(&mut gather) >= REST);
        assert!(!gather.may_rest(), "nothing came meanwhile");

        gather.came(MUCH + 1);
        assert!(gather.may_rest());
        gather.rest();
        gather.came(100);
        assert!(!gather.may_rest(), "no rest for a while");
        std::thread::sleep(BUSY);
        assert!(gather.may_rest());
        // However much came in that while.
        gather.came(MUCH * 10);
        gather.rest();
        gather.came(100);
        assert!(gather.may_rest());
        assert!(rest(&mut gather) >= REST);
    }
}
