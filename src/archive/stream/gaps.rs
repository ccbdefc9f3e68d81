//! What of a server's WAL the repositories don't have.

use crate::{
    postgres::{Timeline, history::TimelineHistory},
    repo::timelines::WalInventory,
};

/// Segments in a row of one timeline that at least one repository hasn't whole.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stretch {
    /// The timeline whose files recovery reads them from.
    pub timeline: Timeline,
    /// The number of the first one.
    pub first: u64,
    /// The number behind the last one; `None` where it is the server's present end.
    pub until: Option<u64>,
    /// Whether some before the first one are left for the next session.
    pub leaves_some: bool,
}

impl Stretch {
    /// Goes on behind a segment that the server doesn't have any more, nor any before it, of whichever timeline;
    /// false when nothing is left. Which is the first one that it has is found by halves: a part of the
    /// stretch is left for the next time.
    pub fn skip_removed(&mut self, number: u64) -> bool {
        if number < self.first {
            return true;
        }
        self.first = number + 1;
        let Some(until) = self.until else { return true };
        if self.first >= until {
            return false;
        }
        let left = (until - self.first) / 2;
        self.first += left;
        self.leaves_some = left > 0;
        true
    }
}

/// The stretches along `path` that are missing in one of the inventories, from segment `from` on, in
/// their order. The last one has no end: it is what the server writes.
///
/// `held` is the first segment that the server has for certain, as a slot holds it, and `present` the
/// one it writes. What lies before `held` comes apart, as the server may not have it any more.
pub fn missing(
    path: &TimelineHistory,
    inventories: &[WalInventory],
    from: u64,
    held: u64,
    present: u64,
) -> Vec<Stretch> {
    let size = inventories.first().map(|inventory| inventory.segment_size).unwrap_or_default();
    let is_there = |number: u64| inventories.iter().all(|i| i.segment(path, number).is_some());
    let timeline_of = |number: u64| path.timeline_of_segment(number, size);
    // The next one that isn't everywhere.
    let next = |number: u64| {
        let first = |i: &WalInventory| i.first_missing(path, number).number(size);
        inventories.iter().filter_map(first).min().unwrap_or(number)
    };
    let mut stretches = Vec::new();
    let mut number = next(from);
    while number < present {
        let (first, timeline) = (number, timeline_of(number));
        let goes_on =
            |n: u64| n < present && n != held && timeline_of(n) == timeline && !is_there(n);
        number += 1;
        while goes_on(number) {
            number += 1;
        }
        stretches.push(Stretch { timeline, first, until: Some(number), leaves_some: false });
        number = next(number);
    }
    let timeline = timeline_of(number);
    let live = Stretch { timeline, first: number, until: None, leaves_some: false };
    match stretches.last_mut() {
        // One goes over into the other.
        Some(last)
            if last.until == Some(number)
                && last.timeline == live.timeline
                && last.first >= held =>
        {
            last.until = None;
        }
        _ => stretches.push(live),
    }
    stretches
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::postgres::SegmentSize;

    const SIZE: SegmentSize = SegmentSize::DEFAULT;

    fn stretch(timeline: u32, first: u64, until: Option<u64>) -> Stretch {
        Stretch { timeline: Timeline(timeline), first, until, leaves_some: false }
    }

    fn inventory(wal: &[(u32, &[u64])]) -> WalInventory {
        WalInventory::of(SIZE, wal, &[(2, "1\t0/5800000\tpromoted\n")])
    }

    #[test]
    fn what_one_archive_lacks_is_missing() {
        // Timeline 2 leaves timeline 1 in the midst of segment 5.
        let one = inventory(&[(1, &[2, 3, 5]), (2, &[5, 6])]);
        let path = one.path(Timeline(2)).unwrap().clone();
        let all = |inventories: &[WalInventory], from, held, present| {
            missing(&path, inventories, from, held, present)
        };
        let one_lacks = all(std::slice::from_ref(&one), 2, 7, 8);
        assert_eq!(one_lacks, [stretch(1, 4, Some(5)), stretch(2, 7, None)]);
        // What lies before the slot's position comes apart.
        let apart = all(std::slice::from_ref(&one), 6, 9, 9);
        assert_eq!(apart, [stretch(2, 7, Some(9)), stretch(2, 9, None)]);
        let other = inventory(&[(1, &[2, 3, 4]), (2, &[5])]);
        let both = all(&[one, other], 2, 7, 7);
        assert_eq!(
            both,
            [stretch(1, 4, Some(5)), stretch(2, 6, Some(7)), stretch(2, 7, None)],
            "each lacks something else"
        );
        let empty = inventory(&[]);
        assert_eq!(
            missing(&path, &[empty], 3, 3, 7),
            [stretch(1, 3, Some(5)), stretch(2, 5, None)],
            "each timeline's files"
        );
    }

    #[test]
    fn the_first_segment_that_is_still_there_is_found_by_halves() {
        for there in 11..=31 {
            let mut removed: Option<u64> = None;
            let mut got = [false; 31];
            let mut asked = 0;
            // What is missing: everything from 11 on that hasn't come.
            while let Some(first) = (11..=30).find(|n| !got[*n as usize]) {
                let until = (first..=30).find(|n| got[*n as usize]).unwrap_or(31);
                let mut next = stretch(1, first, Some(until));
                if removed.is_some_and(|n| !next.skip_removed(n)) {
                    break;
                }
                asked += 1;
                match next.first < there {
                    true => removed = Some(next.first),
                    false => (next.first..until).for_each(|n| got[n as usize] = true),
                }
            }
            let came: Vec<u64> = (11..=30).filter(|n| got[*n as usize]).collect();
            assert_eq!(came, (there..=30).collect::<Vec<_>>());
            assert!(asked <= 12, "{there}: {asked} questions");
        }
        let mut live = stretch(1, 5, None);
        assert!(live.skip_removed(5) && live == stretch(1, 6, None));
        let mut older = stretch(1, 5, Some(6));
        assert!(!older.skip_removed(9), "what comes before is gone as well, of a parent too");
        let mut newer = stretch(2, 10, Some(12));
        assert!(newer.skip_removed(9) && newer == stretch(2, 10, Some(12)));
    }
}
