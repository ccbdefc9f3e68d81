//! Expiring by a clock that is wrong.

use chrono::{Duration, Utc};

use super::*;

/// `days` believes the clock, as retention.md says. What is kept all the same is what counts backups and
/// not days.
#[test]
fn by_a_clock_a_year_ahead_what_is_counted_stays_and_what_is_dated_goes() {
    let site = Site::new(15);
    let taken: Vec<String> = (0..4).map(|_| site.backup("full").0).collect();
    site.pgkeep.add("[repository.main.retention]\ndays = 7\nminimum = 3");
    site.ok(&["expire"]);
    assert_eq!(site.backups(), taken);
    site.clock.set(-YEAR);
    site.ok(&["expire"]);
    assert_eq!(site.backups(), taken, "by a clock that is behind more stays");
    site.clock.set(YEAR);
    site.ok(&["expire"]);
    assert_eq!(site.backups(), taken[1..], "the minimum");
    site.pgkeep.edit(|text| text.replace("minimum = 3\n", ""));
    site.ok(&["expire"]);
    assert_eq!(site.backups(), taken[3..], "the newest, which no clock takes away");
    assert_eq!(site.rows("latest", &[]), 4);
    site.pgkeep.ok(["verify", "--level", "full"]);
}

#[test]
fn a_pin_ends_by_the_clock_of_who_expires() {
    let site = Site::new(15);
    let (pinned, _) = site.backup("full");
    let (second, _) = site.backup("full");
    let (third, _) = site.backup("full");
    site.pgkeep.add("[repository.main.retention]\nminimum = 1");
    let tomorrow = (Utc::now() + Duration::days(1)).format("%F %TZ").to_string();
    site.ok(&["pin", &pinned, "--until", &tomorrow]);
    site.clock.set(-YEAR);
    site.ok(&["expire", "--dry-run"]);
    site.ok(&["expire"]);
    assert_eq!(site.backups(), [pinned.clone(), third.clone()], "{second}");
    site.clock.set(2 * DAY);
    let refused = site.run(&["pin", &third, "--until", &tomorrow]);
    assert_eq!(refused.code, 2, "{refused}");
    assert!(refused.stderr.contains("in the past"), "{refused}");
    site.ok(&["expire"]);
    assert_eq!(site.backups(), [third]);
}
