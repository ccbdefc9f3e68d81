//! A repository behind a connection that takes everything and answers nothing, as an address that
//! a firewall has cut off, or a load balancer whose servers are gone. It comes first in the configuration.

use std::{
    net::TcpListener,
    thread,
    time::{Duration, Instant},
};

use crate::support::{Cluster, Pgkeep, objects::objects, scratch, wait_until};

/// How long a repository that says nothing takes to be given up, at least: two requests without an answer.
const GIVEN_UP: Duration = Duration::from_secs(2 * 60);

/// Takes every connection and keeps it, without a word, as long as the tests run.
fn silence() -> String {
    let listener = TcpListener::bind(("127.0.0.1", 0)).expect("listen");
    let address = listener.local_addr().expect("an address");
    thread::spawn(move || listener.incoming().collect::<Vec<_>>());
    format!("http://{address}")
}

/// A cluster that archives into one repository, and is known there.
fn prepared() -> (Cluster, Pgkeep) {
    let cluster = Cluster::builder(17).wal_segsize(1).start();
    let pgkeep = Pgkeep::archiving(&cluster);
    pgkeep.set("cluster.main", "outage-timeout = \"0s\"");
    pgkeep.ok(["check"]);
    (cluster, pgkeep)
}

/// Puts a silent repository before it, with more of its settings in `table`.
fn silent_first(pgkeep: &Pgkeep, table: &str) {
    let credentials = pgkeep.scratch().file(
        "credentials",
        "[default]\naws_access_key_id = AKIDEXAMPLE\naws_secret_access_key = secret\n",
    );
    let silent = format!(
        "[repository.a-silent-one]\nurl = \"s3://bucket/prefix\"\nkey-file = \"{}\"\n\
         [repository.a-silent-one.s3]\nendpoint = \"{}\"\ncredentials-file = \"{}\"\n{table}\n\n",
        pgkeep.key_file("main").display(),
        silence(),
        credentials.display(),
    );
    pgkeep
        .edit(|text| text.replacen("[repository.main]", &format!("{silent}[repository.main]"), 1));
}

/// What can't be told without it isn't told: recovery would stop at its WAL's end.
#[test]
fn it_holds_up_no_recovery_whose_wal_another_one_has() {
    let (cluster, pgkeep) = prepared();
    cluster.make_table("t", 10);
    let mut copy = cluster.copy_online();
    for _ in 0..6 {
        cluster.insert("t", 500);
        cluster.switch_wal();
    }
    let (target, expected) = (cluster.sql("SELECT pg_current_wal_lsn()"), cluster.digest("t"));
    let last = cluster.switch_wal();
    wait_until("everything is archived", 60, || {
        cluster.sql("SELECT last_archived_wal FROM pg_stat_archiver") >= last
    });
    silent_first(&pgkeep, "");
    copy.conf(&format!(
        "archive_mode = off\nrestore_command = '{}'\nrecovery_target_timeline = 'current'\n\
         recovery_target_lsn = '{target}'\nrecovery_prefetch = off",
        pgkeep.restore_command()
    ));
    scratch::write(&copy.pgdata().join("recovery.signal"), "");
    copy.spawn();
    copy.wait_for_pause(GIVEN_UP.as_secs() - 20);
    assert_eq!(copy.digest("t"), expected);
}

#[test]
fn it_holds_up_no_stream_into_another() {
    let (cluster, pgkeep) = prepared();
    cluster.sql("ALTER SYSTEM SET archive_command = '/bin/false'");
    cluster.reload();
    silent_first(&pgkeep, "");
    let begun = Instant::now();
    let mut stream = pgkeep.spawn(["stream"]);
    cluster.make_table("t", 1000);
    let closed = cluster.switch_wal();
    wait_until("the other one has it", GIVEN_UP.as_secs() - 20, || {
        objects(&pgkeep.repository()).iter().any(|object| object.name.ends_with(&closed))
    });
    // It is looked for again, and that holds up nobody either.
    let mut last = closed;
    while begun.elapsed() < Duration::from_secs(40) {
        last = cluster.switch_wal();
        wait_until("the other one has what comes then", 10, || {
            objects(&pgkeep.repository()).iter().any(|object| object.name.ends_with(&last))
        });
        cluster.insert("t", 10);
    }
    assert!(stream.runs());
    let reported =
        "SELECT count(flush_lsn) FROM pg_stat_replication WHERE application_name = 'pgkeep'";
    assert_eq!(cluster.sql(reported), "0", "{last} isn't in both");
}

#[test]
fn a_push_stores_in_the_others_and_says_that_it_failed() {
    let (cluster, pgkeep) = prepared();
    cluster.sql("ALTER SYSTEM SET archive_command = '/bin/false'");
    cluster.reload();
    let segments = [cluster.switch_wal(), cluster.switch_wal(), cluster.switch_wal()];
    wait_until("they wait", 60, || {
        let status = cluster.pgdata().join("pg_wal/archive_status");
        segments.iter().all(|segment| status.join(format!("{segment}.ready")).exists())
    });
    silent_first(&pgkeep, "stall-timeout = \"1s\"\nattempts = 20");
    let begun = Instant::now();
    let output =
        pgkeep.run_in(cluster.pgdata(), ["archive-push", &format!("pg_wal/{}", segments[0])]);
    assert!(begun.elapsed() < Duration::from_secs(30), "{:?}", begun.elapsed());
    assert!((1..=125).contains(&output.code), "{output}");
    assert!(output.stderr.contains("nothing moved for 1 s, after 2 attempts"), "{output}");
    for segment in &segments {
        let there = objects(&pgkeep.repository());
        assert!(there.iter().any(|object| object.name.ends_with(segment)), "{segment}: {output}");
    }
}
