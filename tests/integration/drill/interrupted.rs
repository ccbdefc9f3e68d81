//! A drill that is interrupted leaves nothing.

use std::time::Duration;

use rustix::process::Signal;

use super::{Site, names};
use crate::support::{
    objects::{ObjectKind, objects_of},
    wait_until,
};

#[test]
fn an_interrupted_drill_leaves_nothing_behind() {
    let site = Site::new(17);
    site.cluster.sql("CREATE TABLE t AS SELECT generate_series(1, 30000) AS n");
    site.backup("full");
    for n in 0..5 {
        site.cluster.sql(&format!("UPDATE t SET n = {n}"));
        site.archive_all();
    }
    site.queries(&[("postgres", "SELECT pg_sleep(60)", "")]);
    let before = objects_of(&site.pgkeep.repository(), ObjectKind::Drill).len();
    let home = || names(&site.place).first().map(|name| site.place.join(name));
    let there = |path: &str| home().is_some_and(|home| home.join(path).exists());
    let interrupt = |signal: Signal, when: &str, reached: &dyn Fn() -> bool| {
        let running = site.pgkeep.spawn(["drill"]);
        wait_until(when, 60, reached);
        running.signal(signal);
        let output = running.wait();
        assert_eq!(output.code, 11, "{when}: {output}");
        site.nothing_is_left();
        let leases = objects_of(&site.pgkeep.repository(), ObjectKind::Lease);
        assert!(leases.is_empty(), "{when}: {leases:?}");
    };
    interrupt(Signal::INT, "files are being written", &|| there("data/base"));
    interrupt(Signal::TERM, "the server has begun", &|| there("data/postmaster.pid"));
    interrupt(Signal::HUP, "the server has said something", &|| there("server.log"));
    interrupt(Signal::TERM, "a query is asked", &|| {
        let log = home().and_then(|home| std::fs::read_to_string(home.join("server.log")).ok());
        let open = log.is_some_and(|log| log.contains("ready to accept connections"));
        if open {
            std::thread::sleep(Duration::from_millis(500));
        }
        open
    });
    assert_eq!(objects_of(&site.pgkeep.repository(), ObjectKind::Drill).len(), before);
}
