//! How a file looks now, from what an incremental file has of it and how it was.
//!
//! The rules are those of `pg_combinebackup` (`reconstruct.c`), for one earlier backup whose files
//! are all known whole:
//!
//! 1. The file is as long as its truncation length says, or longer if it must be for the last block
//!    that the incremental file has.
//! 2. A block that the incremental file has is that one.
//! 3. Any other is the earlier backup's, if that has it and its number is below the truncation
//!    length. The block is as it was then: the server's summaries have no change of it.
//! 4. Any other is zero. Below the truncation length it is one that was added to the file without
//!    anything being written to it, which leaves no trace in the WAL. From the truncation length on
//!    it lies where the file was cut off once, so that what the earlier backup has there is gone.
//!
//! An earlier file whose length isn't a multiple of the block size has as many blocks as are whole.

use super::IncrementalHeader;

/// Where blocks are to be taken from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Origin {
    /// The incremental file.
    Increment,
    /// The earlier backup's file, at the same place.
    Base,
    /// Nowhere: they are zero.
    Zero,
}

/// Consecutive blocks of one origin.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Run {
    /// The first one's number in the segment.
    pub first: u32,
    /// How many there are, at least 1.
    pub count: u32,
    /// Where they are to be taken from.
    pub origin: Origin,
}

impl IncrementalHeader {
    /// The length of the file, in blocks.
    pub fn length(&self) -> u32 {
        let last = self.blocks.last().map_or(0, |last| last.saturating_add(1));
        last.max(self.truncation_length)
    }

    /// All blocks of the file, in order, where the earlier backup's file has `base_blocks` whole
    /// ones.
    pub fn runs(&self, base_blocks: u32) -> impl Iterator<Item = Run> + '_ {
        let kept = base_blocks.min(self.truncation_length);
        let (mut at, mut blocks) = (0, self.blocks.as_slice());
        std::iter::from_fn(move || {
            let first = at;
            let (end, origin) = match blocks {
                [next, ..] if *next == first => {
                    let consecutive = (first..).zip(blocks).take_while(|(n, b)| n == *b).count();
                    blocks = blocks.get(consecutive..).unwrap_or_default();
                    (first.saturating_add(consecutive as u32), Origin::Increment)
                }
                _ => {
                    let end = blocks.first().copied().unwrap_or(self.length());
                    if first < kept { (end.min(kept), Origin::Base) } else { (end, Origin::Zero) }
                }
            };
            at = end;
            (first < end).then(|| Run { first, count: end - first, origin })
        })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn header(truncation_length: u32, blocks: &[u32]) -> IncrementalHeader {
        IncrementalHeader { truncation_length, blocks: blocks.to_vec() }
    }

    /// The runs as a text: `b0-4 i5 z6-9`.
    fn text(header: &IncrementalHeader, base: u32) -> String {
        let run = |run: Run| {
            let letter = match run.origin {
                Origin::Increment => 'i',
                Origin::Base => 'b',
                Origin::Zero => 'z',
            };
            match run.count {
                1 => format!("{letter}{}", run.first),
                n => format!("{letter}{}-{}", run.first, run.first + n - 1),
            }
        };
        header.runs(base).map(run).collect::<Vec<_>>().join(" ")
    }

    #[test]
    fn the_rules_one_by_one() {
        for (truncation, blocks, base, expected) in [
            // Nothing changed.
            (5, &[][..], 5, "b0-4"),
            // Blocks changed.
            (5, &[0, 2, 3], 5, "i0 b1 i2-3 b4"),
            // Cut off.
            (3, &[], 5, "b0-2"),
            (3, &[1], 5, "b0 i1 b2"),
            // Grown, with and without something written there.
            (8, &[5, 6, 7], 5, "b0-4 i5-7"),
            (8, &[6], 5, "b0-4 z5 i6 z7"),
            (8, &[], 5, "b0-4 z5-7"),
            // Cut off and grown again: what lay behind the cut is gone.
            (3, &[3, 5], 9, "b0-2 i3 z4 i5"),
            (0, &[], 9, ""),
            (0, &[2], 9, "z0-1 i2"),
            (2, &[], 0, "z0-1"),
        ] {
            let header = header(truncation, blocks);
            assert_eq!(text(&header, base), expected, "{header:?} over {base}");
        }
        assert_eq!(header(3, &[3, 5]).length(), 6);
    }

    proptest! {
        /// `reconstruct.c` block by block.
        #[test]
        fn runs_agree_with_the_rules(
            truncation in 0..40_u32,
            blocks in prop::collection::btree_set(0..40_u32, 0..40),
            base in 0..50_u32,
        ) {
            let header = header(truncation, &blocks.iter().copied().collect::<Vec<_>>());
            let mut length = truncation;
            for block in &blocks {
                length = length.max(block + 1);
            }
            prop_assert_eq!(header.length(), length);
            let origin = |block: u32| match block {
                b if blocks.contains(&b) => Origin::Increment,
                b if b < truncation && b < base => Origin::Base,
                _ => Origin::Zero,
            };
            let runs: Vec<Run> = header.runs(base).collect();
            let found: Vec<(u32, Origin)> = runs
                .iter()
                .flat_map(|run| (run.first..run.first + run.count).map(|b| (b, run.origin)))
                .collect();
            let expected: Vec<_> = (0..length).map(|block| (block, origin(block))).collect();
            prop_assert_eq!(found, expected);
            // Runs are as long as they can be.
            prop_assert!(runs.windows(2).all(|pair| pair[0].origin != pair[1].origin));
        }
    }
}
