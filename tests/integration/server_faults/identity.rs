//! Servers that say one thing and then another: what is between them and the program leads elsewhere.

use super::{
    backup::{committed, tiny_cluster},
    *,
};
use crate::support::pgkeep::{run_to_end, start};

const OTHER: &str = "7000000000000000001";

/// The row of an answer over a replication connection.
fn row_of(asked: &str, before: usize) -> Place {
    Place { link: Link::Replication, asked: asked.to_owned(), what: "D".to_owned(), before }
}

fn archiving_site(version: u32) -> Site {
    let cluster = tiny_cluster(version);
    let pgkeep = Pgkeep::archiving(&cluster);
    pgkeep.ok(["check"]);
    Site::new(cluster, pgkeep)
}

/// A backup that meets this fails with this code, says this, and leaves none.
fn fails(site: &Site, place: &Place, fault: Fault, code: i32, says: &str) {
    site.wire.plan(place, fault);
    let output = run_to_end(&mut site.command(Some(fault), &["backup", "--type", "full"]));
    assert!(site.wire.seen().iter().any(|seen| seen.fault.is_some()), "it wasn't met: {output}");
    assert_eq!(output.code, code, "{fault:?}: {output}");
    assert!(output.stderr.contains(says), "{fault:?}: {output}");
    assert_eq!(committed(&site.pgkeep), Vec::<String>::new(), "{fault:?}");
}

#[test]
fn a_backup_over_connections_to_different_servers_is_refused() {
    let site = archiving_site(15);
    let who = row_of("IDENTIFY_SYSTEM", 0);
    fails(&site, &who, Fault::Field(0, OTHER), 9, OTHER);
    fails(&site, &who, Fault::Field(1, "7"), 6, "timeline");
    fails(&site, &who, Fault::Field(2, "no position"), 6, "xlogpos");
}

#[test]
fn positions_of_a_backup_that_cannot_be_are_refused() {
    let site = archiving_site(15);
    site.wire.heal();
    let output = run_to_end(&mut site.command(None, &["backup"]));
    assert_eq!(output.code, 0, "{output}");
    let id = committed(&site.pgkeep).remove(0);
    site.pgkeep.ok(["delete", &id]);
    let seen = site.wire.seen();
    let rows = |place: &&Place| place.asked.starts_with("BASE_BACKUP") && place.what == "D";
    let rows: Vec<Place> = seen.iter().map(|seen| &seen.place).filter(rows).cloned().collect();
    let (first, last) = (rows.first().expect("a row"), rows.last().expect("a row"));
    fails(&site, last, Fault::Field(0, "0/28"), 6, "ends before");
    fails(&site, last, Fault::Field(0, "FFFFFFFF/FFFFFF28"), 7, "WAL");
    fails(&site, last, Fault::Field(1, "9"), 6, "promoted");
    fails(&site, first, Fault::Field(0, "0/28"), 6, "backup_label says");
    fails(&site, first, Fault::Field(1, "9"), 6, "timeline");
}

/// The second connection of a stream leads to another system: nothing of that is taken.
#[test]
fn a_stream_that_is_led_to_another_system_ends() {
    let site = stream::site();
    let asked = "IDENTIFY_SYSTEM";
    site.wire.plan(&row_of(asked, 1), Fault::Field(0, OTHER));
    let mut stream = start(site.program(None, &["stream"]));
    let segment = stream::fill_a_segment(&site.cluster);
    let stored = || stream::is_stored(&site, &segment);
    crate::support::wait_until("a segment is stored", 60, stored);
    site.cluster.sql("SELECT pg_terminate_backend(pid) FROM pg_stat_replication");
    crate::support::wait_until("the stream ends", 60, || !stream.runs());
    let output = stream.wait();
    assert_eq!(output.code, 9, "{output}");
    assert!(output.stderr.contains(OTHER), "{output}");
}
