//! A drill that is interrupted leaves nothing.

use std::time::Duration;

use rustix::process::Signal;

use super::{Site, names};
use crate::support::{
    install::command,
    objects::{ObjectKind, objects_of},
    pgkeep::start,
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
    // Whoever runs this may ignore SIGHUP, as `nohup` does.
    let drill = |signals: &str| {
        let drill = site.pgkeep.command(["drill"]);
        let mut env = command("/usr/bin/env");
        env.arg(signals).arg(drill.get_program()).args(drill.get_args());
        start(env)
    };
    let interrupt = |signal: Signal, when: &str, reached: &dyn Fn() -> bool| {
        let running = drill("--default-signal=HUP");
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
    let mut running = drill("--ignore-signal=HUP");
    wait_until("files are being written", 60, || there("data/base"));
    running.signal(Signal::HUP);
    std::thread::sleep(Duration::from_millis(500));
    assert!(running.runs(), "it was told not to care");
    running.signal(Signal::TERM);
    assert_eq!(running.wait().code, 11);
    site.nothing_is_left();
    assert_eq!(objects_of(&site.pgkeep.repository(), ObjectKind::Drill).len(), before);
}
