//! Which backup is the newest, and what each is called.

use super::*;
use crate::support::clock::now;

#[test]
fn backups_taken_while_the_clock_goes_back_keep_their_order() {
    let site = Site::with_server(15);
    let (full, _) = site.backup("full");
    site.clock.set(-DAY);
    let (incr, base) = site.backup("incr");
    assert!(incr < full, "{incr}: the id says what the clock said");
    assert_eq!(base.as_ref(), Some(&full));
    site.clock.set(-2 * DAY);
    let (diff, base) = site.backup("diff");
    assert_eq!(base.as_ref(), Some(&full));
    let (last, base) = site.backup("incr");
    assert_eq!(base.as_ref(), Some(&diff), "the last one by the WAL");
    let taken = [full, incr, diff, last];
    assert_eq!(site.backups(), taken);
    // Of two backups that are the newest by one measure each, nobody takes the wrong one.
    assert_eq!(site.rows("latest", &[]), 4);
    assert_eq!(site.rows("immediate", &["--target-immediate"]), 4);
    for (backup, rows) in taken.iter().zip(1..) {
        assert_eq!(site.rows_of(backup), rows, "{backup}");
    }
    // A rule that counts, counts from the last one by the WAL.
    site.pgkeep.add("[repository.main.retention]\nminimum = 2");
    site.ok(&["expire"]);
    assert_eq!(site.backups(), taken[2..]);
    assert_eq!(site.rows("after", &[]), 4);
    site.pgkeep.ok(["verify", "--level", "full"]);
}

#[test]
fn an_id_is_given_out_once_however_often_its_second_comes() {
    let site = Site::new(15);
    site.pgkeep.ok(["backup"]);
    let begun = now();
    let mut ids = Vec::new();
    for _ in 0..4 {
        site.clock.set(begun - now());
        ids.push(site.backup("full").0);
    }
    let mut unique = ids.clone();
    unique.sort();
    unique.dedup();
    assert_eq!(unique, ids, "each is a second later than the one before");
    assert_eq!(site.backups()[1..], ids);
}

#[test]
fn hosts_whose_clocks_differ_take_turns() {
    let site = Site::new(17);
    let (full, _) = site.backup("full");
    site.clock.set(-5 * HOUR);
    let (behind, base) = site.backup("incr");
    assert!(behind < full && base.as_ref() == Some(&full));
    site.clock.set(3 * HOUR);
    let (ahead, base) = site.backup("incr");
    assert_eq!(base.as_ref(), Some(&behind));
    site.clock.set(0);
    let (diff, base) = site.backup("diff");
    assert_eq!(base.as_ref(), Some(&full), "the full one is the last full one by the WAL");
    let (last, base) = site.backup("incr");
    assert_eq!(base.as_ref(), Some(&diff));
    let taken = [full, behind, ahead, diff, last];
    assert_eq!(site.backups(), taken);
    assert_eq!(site.rows("latest", &[]), 5);
    for (backup, rows) in taken.iter().zip(1..) {
        assert_eq!(site.rows_of(backup), rows, "{backup}");
    }
    // By whichever of the clocks something expires, `full` keeps what follows the newest full one.
    site.pgkeep.add("[repository.main.retention]\nfull = 1");
    for clock in [-5 * HOUR, 3 * HOUR, YEAR] {
        site.clock.set(clock);
        site.ok(&["expire"]);
        assert_eq!(site.backups(), taken);
    }
}
