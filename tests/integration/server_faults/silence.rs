//! Servers that are there, and say nothing.

use super::{backup::tiny_cluster, *};
use crate::support::{
    pgkeep::{run_to_end, start},
    wait_until,
};

const SAYS: &str = "PostgreSQL has said nothing for 2 s";

fn place(site: &Site, what: &str, is_it: impl Fn(&Place) -> bool) -> Place {
    let seen = site.wire.seen();
    let found =
        seen.iter().map(|seen| &seen.place).find(|place| place.what == what && is_it(place));
    found.expect("a message like this").clone()
}

/// In the midst of an answer, of a backup's data, and while a checkpoint is waited for.
#[test]
fn a_server_that_falls_silent_is_given_up() {
    let cluster = tiny_cluster(15);
    let pgkeep = Pgkeep::archiving(&cluster);
    pgkeep.ok(["check"]);
    let site = Site::new(cluster, pgkeep);
    site.wire.heal();
    let clean = run_to_end(&mut site.command(None, &["backup", "--type", "full"]));
    assert_eq!(clean.code, 0, "{clean}");
    let asked = |words: &'static str| move |place: &Place| place.asked.starts_with(words);
    let places = [
        place(&site, "D", asked("SELECT name, setting")),
        place(&site, "D", asked("IDENTIFY_SYSTEM")),
        place(&site, "T", asked("BASE_BACKUP")),
        place(&site, "dd", |place| place.before == 20),
        place(&site, "Z", asked("BASE_BACKUP")),
    ];
    for place in &places {
        site.wire.plan(place, Fault::Silence);
        let began = Instant::now();
        let output =
            run_to_end(&mut site.command(Some(Fault::Silence), &["backup", "--type", "full"]));
        assert_eq!(output.code, 6, "{place:?}: {output}");
        let says = [SAYS, "no answer within"].iter().any(|text| output.stderr.contains(text));
        assert!(says, "{place:?}: {output}");
        assert!(began.elapsed() < Duration::from_secs(60), "{place:?}: {:?}", began.elapsed());
    }
}

/// A stream whose server has nothing to say goes on; one whose server doesn't answer when it is asked for
/// a sign of life is connected to again.
#[test]
fn a_stream_tells_a_quiet_server_from_a_silent_one() {
    let site = stream::site();
    site.wire.heal();
    let stream = start(site.program(Some(Fault::Silence), &["stream"]));
    let first = stream::fill_a_segment(&site.cluster);
    wait_until("a segment is stored", 60, || stream::is_stored(&site, &first));
    let connected = "SELECT pid FROM pg_stat_replication WHERE state = 'streaming'";
    let before = site.cluster.sql(connected);
    std::thread::sleep(Duration::from_secs(7));
    assert_eq!(site.cluster.sql(connected), before, "three times the limit, and nothing to say");
    // What it is asked for comes to nothing.
    let life = site.wire.seen().iter().filter(|seen| seen.place.what == "dk").count();
    assert!(life >= 3, "{life} signs of life");
    let next = Place { before: life, ..place(&site, "dk", |_| true) };
    site.wire.now(&next, Fault::SilenceHere);
    wait_until("it connects again", 60, || {
        let now = site.cluster.try_sql(connected).unwrap_or_default();
        !now.is_empty() && now != before
    });
    let second = stream::fill_a_segment(&site.cluster);
    wait_until("the next segment is stored", 60, || stream::is_stored(&site, &second));
    stream.signal(rustix::process::Signal::TERM);
    let output = stream.wait();
    assert_eq!(output.code, 0, "{output}");
    assert!(output.stderr.contains(SAYS), "{output}");
}
