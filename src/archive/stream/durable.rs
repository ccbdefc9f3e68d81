//! How far the stream is stored: pieces become durable in any order, what is reported has no gap.

use std::collections::BTreeMap;

use crate::postgres::Lsn;

/// A position up to which everything is durable, and what is durable behind it.
#[derive(Debug)]
pub struct Durable {
    up_to: Lsn,
    behind: BTreeMap<Lsn, Lsn>,
}

impl Durable {
    /// Everything before `up_to` is.
    pub fn new(up_to: Lsn) -> Self {
        Durable { up_to, behind: BTreeMap::new() }
    }

    /// The first position that isn't.
    pub fn up_to(&self) -> Lsn {
        self.up_to
    }

    /// The bytes from `from` to `to` are durable as well.
    pub fn add(&mut self, from: Lsn, to: Lsn) {
        let known = self.behind.entry(from).or_insert(to);
        *known = to.max(*known);
        while let Some(entry) = self.behind.first_entry()
            && *entry.key() <= self.up_to
        {
            self.up_to = self.up_to.max(entry.remove());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_gap_holds_the_position_back() {
        let mut durable = Durable::new(Lsn(100));
        durable.add(Lsn(300), Lsn(400));
        durable.add(Lsn(200), Lsn(300));
        assert_eq!(durable.up_to(), Lsn(100));
        durable.add(Lsn(50), Lsn(150));
        assert_eq!(durable.up_to(), Lsn(150));
        durable.add(Lsn(150), Lsn(200));
        assert_eq!(durable.up_to(), Lsn(400));
        // What was stored in pieces and as a whole.
        durable.add(Lsn(0), Lsn(420));
        durable.add(Lsn(400), Lsn(410));
        assert_eq!(durable.up_to(), Lsn(420));
    }
}
