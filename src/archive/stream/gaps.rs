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
        stretches.push(Stretch { timeline, first, until: Some(number) });
        number = next(number);
    }
    let live = Stretch { timeline: timeline_of(number), first: number, until: None };
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
