//! How archiving is doing, as `info` and `check` say it: against what the server says to others.

use std::{fs, net::TcpListener, time::Instant};

use rustix::process::Signal;
use serde_json::{Value, json};

use crate::support::{
    Cluster, Pgkeep, Stop,
    objects::{ObjectKind, delete, objects_of},
    on_each_version,
    pgkeep::Running,
    wait_until,
};

const MIB: u64 = 1 << 20;

/// A cluster with small segments, a backup of it, and WAL behind that.
fn backed_up(version: u32) -> (Cluster, Pgkeep) {
    let settings = "wal_keep_size = 200MB";
    let cluster = Cluster::builder(version).wal_segsize(1).conf(settings).start();
    let pgkeep = Pgkeep::archiving(&cluster);
    cluster.make_table("t", 10);
    pgkeep.ok(["backup"]);
    (cluster, pgkeep)
}

/// `pgkeep stream`, once it has all that the server has flushed.
fn stream(cluster: &Cluster, pgkeep: &Pgkeep) -> Running {
    let stream = pgkeep.spawn(["stream"]);
    let caught_up = "SELECT count(*) FROM pg_stat_replication WHERE application_name = 'pgkeep' \
                     AND state = 'streaming' AND flush_lsn >= pg_current_wal_flush_lsn()";
    wait_until("the stream has caught up", 60, || cluster.sql(caught_up) == "1");
    stream
}

fn system(info: &Value) -> &Value {
    &info["repositories"][0]["systems"][0]
}

/// Closes a segment and waits until it is archived; its name.
fn archived_segment(cluster: &Cluster, pgkeep: &Pgkeep) -> String {
    let segment = cluster.switch_wal();
    wait_until("it is archived", 60, || is_stored(pgkeep, &segment));
    segment
}

fn is_stored(pgkeep: &Pgkeep, segment: &str) -> bool {
    let stored = objects_of(&pgkeep.repository(), ObjectKind::Segment);
    stored.iter().any(|object| object.name.contains(segment))
}

/// Deletes the objects of a segment.
fn lose(pgkeep: &Pgkeep, segment: &str) {
    for object in objects_of(&pgkeep.repository(), ObjectKind::Segment) {
        if object.name.contains(segment) {
            delete(&object.path);
        }
    }
}

on_each_version!(what_archiving_does_is_told);

fn what_archiving_does_is_told(version: u32) {
    let (mut cluster, pgkeep) = backed_up(version);
    let closed = archived_segment(&cluster, &pgkeep);
    let counted = "SELECT last_archived_wal FROM pg_stat_archiver";
    wait_until("the archiver has counted it", 60, || cluster.sql(counted) == closed);
    let info = pgkeep.json(["info"]);
    let archiving = &info["archiving"];
    assert_eq!(archiving["unknown"], Value::Null, "{info:#}");
    assert_eq!(archiving["server"]["timeline"], 1);
    assert_eq!(archiving["server"]["standby"], false);
    assert_eq!(archiving["archiver"]["last-archived"], *closed, "{info:#}");
    assert_eq!(archiving["archiver"]["failing"], false);
    assert!(archiving["archiver"]["rate"].as_f64().unwrap() > 0.0, "{info:#}");
    assert_eq!(
        archiving["waiting"],
        json!({"files": 0, "segments": 0, "oldest": null, "age": null})
    );
    assert_eq!(archiving["stream"]["exists"], false, "{info:#}");
    assert_eq!(system(&info)["gaps"], json!([]));
    let text = pgkeep.ok(["info"]).stdout;
    assert!(text.contains("none: this server has no slot pgkeep"), "{text}");

    // What fails is told, with what waits for it and how far it is behind.
    cluster.conf("archive_command = 'false'");
    cluster.reload();
    cluster.insert("t", 10);
    let failed = cluster.switch_wal();
    cluster.insert("t", 10);
    cluster.switch_wal();
    let failing = || pgkeep.json(["info"])["archiving"]["archiver"]["failing"] == true;
    wait_until("it fails", 60, failing);
    let info = pgkeep.json(["info"]);
    let archiving = &info["archiving"];
    assert_eq!(archiving["archiver"]["last-failed"], *failed, "{info:#}");
    let waiting = &archiving["waiting"];
    assert_eq!((&waiting["segments"], &waiting["oldest"]), (&json!(2), &json!(failed)));
    assert!((0.0..600.0).contains(&waiting["age"].as_f64().unwrap()), "{waiting}");
    let behind = &system(&info)["behind"];
    let bytes = behind["bytes"].as_u64().unwrap();
    assert!((2 * MIB - 4096..4 * MIB).contains(&bytes), "{behind}");
    assert!((0.0..600.0).contains(&behind["age"].as_f64().unwrap()), "{behind}");
    assert_eq!(behind["streamed-lsn"], Value::Null);
    let text = pgkeep.ok(["info"]).stdout;
    assert!(text.contains("FAILS still") && text.contains("2 files"), "{text}");

    // The stream stores it meanwhile.
    let streaming = stream(&cluster, &pgkeep);
    let caught_up = || system(&pgkeep.json(["info"]))["behind"]["bytes"] == 0;
    wait_until("the repository has it all", 60, caught_up);
    let info = pgkeep.json(["info"]);
    let slot = &info["archiving"]["stream"];
    assert_eq!((&slot["exists"], &slot["active"]), (&json!(true), &json!(true)), "{slot}");
    assert_eq!((&slot["state"], &slot["sync-state"]), (&json!("streaming"), &json!("async")));
    assert_eq!(slot["behind"], 0, "{slot}");
    assert_eq!(slot["wal-status"], "reserved", "{slot}");
    assert_eq!(system(&info)["behind"]["age"], 0.0, "{info:#}");
    streaming.signal(Signal::TERM);
    assert_eq!(streaming.wait().code, 0);
    wait_until("nobody streams", 60, || {
        pgkeep.json(["info"])["archiving"]["stream"]["active"] == false
    });
    let text = pgkeep.ok(["info"]).stdout;
    assert!(text.contains("NOBODY streams"), "{text}");

    // It works again.
    cluster.conf(&format!("archive_command = '{}'", pgkeep.archive_command()));
    cluster.reload();
    cluster.switch_wal();
    wait_until("it works again", 120, || {
        let info = pgkeep.json(["info"]);
        info["archiving"]["archiver"]["failing"] == false
            && info["archiving"]["waiting"]["files"] == 0
    });
    assert!(pgkeep.ok(["info"]).stdout.contains("and works again"));

    // Without a server the rest is shown, and what its directory says.
    cluster.stop(Stop::Fast);
    let info = pgkeep.json(["info"]);
    let why = info["archiving"]["unknown"].as_str().unwrap();
    assert!(why.starts_with("connect"), "{why}");
    assert_eq!(info["archiving"]["server"], Value::Null);
    assert!(info["archiving"]["waiting"]["files"].is_u64(), "{info:#}");
    assert!(system(&info).get("behind").is_none() && system(&info)["windows"][0].is_object());
}

/// Other tools have a limit for what may wait, and drop WAL above it.
#[test]
fn nothing_that_waits_is_ever_dropped() {
    let (cluster, pgkeep) = backed_up(15);
    archived_segment(&cluster, &pgkeep);
    let (repository, aside) = (pgkeep.repository(), pgkeep.scratch().path().join("aside"));
    fs::rename(&repository, &aside).unwrap();
    let waiting: Vec<String> = (0..60)
        .map(|_| {
            cluster.insert("t", 10);
            cluster.switch_wal()
        })
        .collect();
    let failures = || cluster.sql("SELECT failed_count FROM pg_stat_archiver").parse::<u32>();
    wait_until("pushes fail", 60, || failures().unwrap() > 3);
    cluster.sql("CHECKPOINT");
    let pg_wal = cluster.pgdata().join("pg_wal");
    for segment in &waiting {
        assert!(pg_wal.join(segment).exists(), "{segment} is gone");
        assert!(pg_wal.join(format!("archive_status/{segment}.ready")).exists(), "{segment}");
    }
    let log = cluster.log();
    assert!(log.contains("archive command failed with exit code"), "{log}");
    fs::rename(&aside, &repository).unwrap();
    wait_until("all of them are archived", 120, || {
        waiting.iter().all(|segment| is_stored(&pgkeep, segment))
    });
}

on_each_version!(a_gap_is_shown_until_it_is_healed);

fn a_gap_is_shown_until_it_is_healed(version: u32) {
    let (cluster, pgkeep) = backed_up(version);
    let segments: Vec<_> = (0..4).map(|_| archived_segment(&cluster, &pgkeep)).collect();
    assert_eq!(pgkeep.run(["check"]).code, 0);
    lose(&pgkeep, &segments[1]);
    lose(&pgkeep, &segments[2]);
    let info = pgkeep.json(["info"]);
    let gap = json!([{
        "timeline": 1, "first": segments[1], "last": segments[2], "segments": 2,
        "after-newest-backup": true,
    }]);
    assert_eq!(system(&info)["gaps"], gap, "{info:#}");
    let line = format!(
        "GAP on timeline 1: {} to {} are missing, 2 segments, behind the newest backup\n",
        segments[1], segments[2]
    );
    let text = pgkeep.ok(["info"]).stdout;
    assert!(text.contains(&line), "{text}");
    let check = pgkeep.run(["--output", "json", "check"]);
    assert_eq!(check.code, 1, "{check}");
    let report: Value = serde_json::from_str(&check.stdout).unwrap();
    let steps = report["steps"].as_array().unwrap();
    let problems: Vec<_> = steps.iter().filter(|step| step["state"] == "problem").collect();
    assert_eq!(problems.len(), 1, "{report:#}");
    assert_eq!(
        (&problems[0]["name"], &problems[0]["repository"]),
        (&json!("gaps"), &json!("main"))
    );
    let said = problems[0]["text"].as_str().unwrap();
    assert!(said.contains(&format!("{} to {}", segments[1], segments[2])), "{said}");
    let hints = problems[0]["hints"].to_string();
    assert!(hints.contains("pgkeep stream") && hints.contains("archive-push"), "{hints}");

    let streaming = stream(&cluster, &pgkeep);
    wait_until("it is healed", 60, || system(&pgkeep.json(["info"]))["gaps"] == json!([]));
    streaming.signal(Signal::TERM);
    assert_eq!(streaming.wait().code, 0);
    assert_eq!(pgkeep.run(["check"]).code, 0);

    // A backup behind one is as good as any; it stays one for the older backup.
    lose(&pgkeep, &segments[2]);
    pgkeep.ok(["backup"]);
    let info = pgkeep.json(["info"]);
    assert_eq!(system(&info)["gaps"][0]["first"], *segments[2], "{info:#}");
    assert_eq!(system(&info)["gaps"][0]["after-newest-backup"], false, "{info:#}");
    assert_eq!(pgkeep.run(["check"]).code, 0);
}

on_each_version!(a_role_with_few_rights_is_told_what_it_may_see);

fn a_role_with_few_rights_is_told_what_it_may_see(version: u32) {
    let (cluster, pgkeep) = backed_up(version);
    cluster.sql("CREATE ROLE keeper LOGIN REPLICATION");
    let streaming = stream(&cluster, &pgkeep);
    pgkeep.edit(|text| {
        let keep = |line: &&str| !line.starts_with("pgdata");
        let lines: Vec<_> = text.lines().filter(keep).collect();
        lines.join("\n").replace("user=postgres", "user=keeper")
    });
    let info = pgkeep.json(["info"]);
    let archiving = &info["archiving"];
    assert_eq!(archiving["unknown"], Value::Null, "{info:#}");
    assert_eq!(archiving["not-allowed"], json!(["waiting", "stream"]), "{info:#}");
    assert_eq!(archiving["waiting"], Value::Null);
    let slot = &archiving["stream"];
    assert_eq!((&slot["active"], &slot["behind"]), (&json!(true), &Value::Null), "{slot}");
    assert!(slot["held"].is_u64(), "{slot}");
    assert!(archiving["archiver"]["archived"].as_u64().unwrap() > 0);
    let text = pgkeep.ok(["info"]).stdout;
    assert_eq!(text.matches("not allowed to see").count(), 2, "{text}");
    cluster.sql("GRANT pg_monitor TO keeper");
    let archiving = &pgkeep.json(["info"])["archiving"];
    assert!(archiving.get("not-allowed").is_none(), "{archiving:#}");
    assert!(archiving["waiting"]["files"].is_u64() && archiving["stream"]["behind"].is_u64());
    streaming.signal(Signal::TERM);
    assert_eq!(streaming.wait().code, 0);
}

on_each_version!(a_standby_says_how_far_it_has_received);

fn a_standby_says_how_far_it_has_received(version: u32) {
    let (cluster, pgkeep) = backed_up(version);
    let standby = Cluster::standby_of(&cluster);
    standby.catch_up_with(&cluster);
    pgkeep.replace_cluster(&cluster, &standby);
    let info = pgkeep.json(["info"]);
    let server = &info["archiving"]["server"];
    assert_eq!((&server["standby"], &server["timeline"]), (&json!(true), &json!(1)), "{info:#}");
    let received = server["flushed-lsn"].as_str().unwrap();
    let there = format!("SELECT '{received}' >= '{}'::pg_lsn", cluster.lsn());
    assert_eq!(cluster.sql(&there), "t", "{info:#}");
    assert!(system(&info)["behind"]["bytes"].is_u64(), "{info:#}");
    standby.promote();
    standby.wait_for_primary(60);
    assert_eq!(pgkeep.json(["info"])["archiving"]["server"]["timeline"], 2, "at once");
}

#[test]
fn a_server_that_is_silent_or_unknown_keeps_nobody_waiting() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let pgkeep = Pgkeep::without_cluster();
    pgkeep.init();
    let info = pgkeep.json(["info"]);
    let why = "neither conninfo nor pgdata is set in [cluster.main]";
    assert_eq!(info["archiving"]["unknown"], why);
    for conninfo in [format!("host=127.0.0.1 port={port}"), "host=127.0.0.1 nonsense=1".to_owned()]
    {
        let pgkeep = Pgkeep::without_cluster();
        pgkeep.init();
        pgkeep.add(&format!("[cluster.main]\nconninfo = \"{conninfo}\""));
        let began = Instant::now();
        let info = pgkeep.json(["info"]);
        assert!(began.elapsed().as_secs() < 20, "{:?}", began.elapsed());
        let why = info["archiving"]["unknown"].as_str().unwrap();
        assert!(why.contains("didn't answer within 5 s") || why.contains("nonsense"), "{why}");
        let text = pgkeep.ok(["info"]).stdout;
        assert!(text.contains("wasn't asked or didn't answer"), "{text}");
    }
}
