//! Which parts become one.
//!
//! Of the first level are those that came from the stream, of each further one those that were merged
//! from the level before. So a byte is stored once a level, however many parts there were.

use crate::repo::wal_parts::{Part, PartRange};

/// How many parts become one.
const MERGED: usize = 64;

/// The parts of a chunk.
#[derive(Debug, Default)]
pub struct Levels(Vec<Vec<Part>>);

/// Parts that follow each other without a gap.
#[derive(Debug)]
pub struct Row {
    /// The level that they are of.
    pub level: usize,
    /// The parts.
    pub parts: Vec<Part>,
    /// What they have together.
    pub range: PartRange,
}

impl Levels {
    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.0.iter().all(Vec::is_empty)
    }

    /// Adds a part, which may come before others that lie before it.
    pub fn add(&mut self, level: usize, part: Part) {
        while self.0.len() <= level {
            self.0.push(Vec::new());
        }
        if let Some(parts) = self.0.get_mut(level) {
            parts.insert(parts.partition_point(|other| other.range <= part.range), part);
        }
    }

    /// Takes out a row that is to become one part, if there are enough.
    pub fn take_row(&mut self) -> Option<Row> {
        self.0.iter_mut().enumerate().find_map(|(level, parts)| {
            let mut range = parts.first()?.range;
            let follows = |part: &&Part| {
                let follows = part.range.from <= range.to;
                range.to = if follows { range.to.max(part.range.to) } else { range.to };
                follows
            };
            let len = parts.iter().take_while(follows).count();
            (len >= MERGED).then(|| Row { level, parts: parts.drain(..len).collect(), range })
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::storage::ObjectName;

    fn part(from: u32, to: u32) -> Part {
        let name = ObjectName::new(format!("{from}-{to}")).unwrap();
        Part { range: PartRange { from, to }, name }
    }

    #[test]
    fn rows_without_a_gap_become_one() {
        let mut levels = Levels::default();
        for n in (0..MERGED as u32).rev() {
            assert!(levels.take_row().is_none());
            // One of the first is on its way.
            if n != 1 {
                levels.add(0, part(n * 10, n * 10 + 10));
            }
        }
        levels.add(0, part(640, 700));
        assert!(levels.take_row().is_none(), "there is a gap");
        levels.add(0, part(10, 20));
        let row = levels.take_row().unwrap();
        assert_eq!((row.level, row.parts.len()), (0, MERGED + 1));
        assert_eq!(row.range, PartRange { from: 0, to: 700 });
        assert!(levels.is_empty());
        for n in 0..MERGED as u32 {
            levels.add(1, part(n * 100, n * 100 + 100));
        }
        assert_eq!(levels.take_row().unwrap().level, 1);
    }
}
