//! A server that recovers from S3, and loses it in the middle: it stops. It never ends recovery there,
//! since all that comes after would be lost.

use std::fs;

use crate::support::{
    Cluster, Pgkeep, on_each_version,
    s3::{Server, Wire, wire::Fault},
    scratch, wait_until,
};

const OUTAGES: [Fault; 6] = [
    Fault::Answer(503, "SlowDown"),
    Fault::ResetBefore,
    Fault::Answer(403, "ExpiredToken"),
    Fault::Answer(404, "NoSuchBucket"),
    Fault::Page(404),
    Fault::Silence,
];

on_each_version!(an_outage_in_the_middle_of_recovery_stops_the_server);

fn an_outage_in_the_middle_of_recovery_stops_the_server(version: u32) {
    let primary = Cluster::builder(version).wal_segsize(1).start();
    let pgkeep = Pgkeep::on_server(&primary, Server::start());
    pgkeep.init();
    pgkeep.archive(&primary);
    pgkeep.ok(["check"]);
    primary.make_table("t", 10);
    let mut copy = primary.copy_online();
    for _ in 0..6 {
        primary.insert("t", 500);
        primary.switch_wal();
    }
    let last = primary.switch_wal();
    wait_until("everything is archived", 60, || {
        primary.sql("SELECT last_archived_wal FROM pg_stat_archiver") >= last
    });

    let server = pgkeep.server().expect("a server");
    let wire = Wire::to(server.address());
    pgkeep.edit(|text| text.replace(&server.endpoint(), &wire.endpoint()));
    pgkeep.set("repository.main.s3", "retry-pause = \"1ms\"\nstall-timeout = \"1s\"");
    pgkeep.set("cluster.main", "outage-timeout = \"0s\"");
    let command = pgkeep.restore_command();
    copy.conf(&format!("archive_mode = off\nrestore_command = '{command}'"));
    scratch::write(&copy.pgdata().join("recovery.signal"), "");
    // The servers differ in nothing that matters here, so one of them meets them all.
    let outages = if version == 15 { &OUTAGES[..] } else { &OUTAGES[..2] };
    for outage in outages {
        let mut segments = 0;
        let outage = *outage;
        wire.plan(move |request| {
            let asked = request.operation == "GetObject" && request.key.contains("/wal/");
            segments += usize::from(asked);
            (segments > 3).then_some(outage)
        });
        let told = copy.log().len();
        copy.spawn();
        copy.wait_for_end(90);
        let log = copy.log()[told..].to_owned();
        assert!(log.contains("restored log file"), "{outage:?}: {log}");
        assert!(log.contains("FATAL"), "{outage:?}: {log}");
        assert!(!log.contains("archive recovery complete"), "{outage:?}: {log}");
        let histories = fs::read_dir(copy.pgdata().join("pg_wal")).expect("read").flatten();
        let histories: Vec<_> =
            histories.filter(|e| e.path().extension().is_some_and(|e| e == "history")).collect();
        assert!(histories.is_empty(), "{outage:?}: {histories:?}: {log}");
        assert!(wire.seen().iter().any(|seen| seen.fault == Some(outage)), "{outage:?}");
    }
    wire.heal();
    copy.start();
    copy.wait_for_primary(60);
    assert_eq!(copy.digest("t"), primary.digest("t"));
    assert_eq!(copy.timeline(), 2);
}
