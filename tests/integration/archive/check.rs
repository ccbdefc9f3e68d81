//! `pgkeep check`: archiving proven, and each way in which it can fail told apart.

use std::{fs, path::Path};

use serde_json::Value;

use crate::support::{
    Cluster, Pgkeep, Stop,
    install::is_root,
    objects::{ObjectKind, objects_of},
    on_each_version,
    pgkeep::Output,
    places::on_s3,
};

/// Runs `check` with JSON output: the exit code and the report.
fn check(pgkeep: &Pgkeep, arguments: &[&str]) -> (i32, Value) {
    let output = run(pgkeep, arguments);
    let report = serde_json::from_str(&output.stdout).unwrap_or_else(|e| panic!("{e}: {output}"));
    (output.code, report)
}

fn run(pgkeep: &Pgkeep, arguments: &[&str]) -> Output {
    let mut all = vec!["--output", "json", "check"];
    all.extend(arguments);
    pgkeep.run(all)
}

/// The state of a step, and its text with its hints: the one that is a problem, if there are
/// several of the name.
fn step(report: &Value, name: &str) -> (String, String) {
    let steps = report["steps"].as_array().expect("steps").iter();
    let of_name = steps.filter(|step| step["name"] == name);
    let step = of_name.max_by_key(|step| step["state"] == "problem");
    let step = step.unwrap_or_else(|| panic!("no step {name}: {report:#}"));
    let state = step["state"].as_str().expect("a state").to_owned();
    (state, format!("{} {}", step["text"], step["hints"]))
}

/// Fails with a problem in this step, which says all of `words`.
fn problem(pgkeep: &Pgkeep, name: &str, words: &[&str]) {
    let (code, report) = check(pgkeep, &[]);
    let (state, text) = step(&report, name);
    assert_eq!((code, state.as_str()), (1, "problem"), "{report:#}");
    for word in words {
        assert!(text.contains(word), "{word}: {text}");
    }
}

on_each_version!(archiving_is_proven);

fn archiving_is_proven(version: u32) {
    let cluster = Cluster::builder(version).conf("archive_timeout = 60").start();
    let pgkeep = Pgkeep::archiving(&cluster);
    for _ in 0..2 {
        let (code, report) = check(&pgkeep, &[]);
        assert_eq!(code, 0, "{report:#}");
        for step in report["steps"].as_array().unwrap() {
            assert_eq!(step["state"], "ok", "{report:#}");
        }
        let segment = report["segment"].as_str().unwrap();
        let stored = objects_of(&pgkeep.repository(), ObjectKind::Segment);
        assert!(stored.iter().any(|object| object.name.ends_with(segment)), "{stored:?}");
    }
    let text = pgkeep.ok(["check"]).stdout;
    assert!(text.ends_with("Archiving of cluster main works.\n"), "{text}");
}

#[test]
fn what_keeps_the_server_from_archiving_is_named() {
    let mut cluster = Cluster::builder(15).start();
    let pgkeep = Pgkeep::new(&cluster);
    pgkeep.init();
    pgkeep.set("cluster.main", "archive-timeout = \"3s\"");

    problem(&pgkeep, "archive-command", &["isn't set", "archive-push %p"]);
    cluster.conf("archive_command = 'true'");
    cluster.reload();
    let (code, report) = check(&pgkeep, &[]);
    assert_eq!((code, step(&report, "archive-command").0.as_str()), (1, "warning"));
    problem(&pgkeep, "arrival", &["stores somewhere else", "PGKEEP_CONFIG"]);

    cluster.conf("archive_command = 'false archive-push %p'");
    cluster.reload();
    pgkeep.edit(|text| text.replace("archive-timeout = \"3s\"", "archive-timeout = \"60s\""));
    let began = std::time::Instant::now();
    problem(&pgkeep, "arrival", &["failed", "times meanwhile", "server's log"]);
    assert!(began.elapsed().as_secs() < 50, "it doesn't wait in vain for a minute");
    pgkeep.edit(|text| text.replace("archive-timeout = \"60s\"", "archive-timeout = \"3s\""));

    cluster.conf("archive_command = 'sleep 1000; true archive-push %p'");
    cluster.reload();
    problem(&pgkeep, "arrival", &["may still be running"]);
    cluster.conf("archive_command = 'true archive-push'");
    cluster.reload();
    problem(&pgkeep, "archive-command", &["no %p"]);

    cluster.stop(Stop::Immediate);
    cluster.conf("archive_mode = off");
    cluster.start();
    problem(&pgkeep, "archive-mode", &["off", "restart"]);
    cluster.stop(Stop::Fast);
    cluster.conf("wal_level = minimal\nmax_wal_senders = 0");
    cluster.start();
    problem(&pgkeep, "wal-level", &["minimal", "replica"]);
    cluster.stop(Stop::Fast);
    problem(&pgkeep, "server", &["connect"]);
}

#[test]
fn a_role_that_may_not_switch_is_told_what_it_needs() {
    let cluster = Cluster::builder(15).start();
    let pgkeep = Pgkeep::archiving(&cluster);
    cluster.sql("CREATE ROLE \"Keeper\" LOGIN REPLICATION");
    pgkeep.edit(|text| text.replace("user=postgres", "user=Keeper"));
    let grant = r#"GRANT EXECUTE ON FUNCTION pg_catalog.pg_switch_wal() TO \"Keeper\""#;
    problem(&pgkeep, "switch", &["permission denied", grant]);
    cluster.sql(&grant.replace('\\', ""));
    let (code, report) = check(&pgkeep, &[]);
    assert_eq!(code, 0, "that is all it needs: {report:#}");
}

/// The shell's exit code 127 ends the archiver, which counts nothing then: it has to be seen before.
#[test]
fn a_program_that_the_server_cannot_run_is_named_at_once() {
    let cluster = Cluster::builder(15).start();
    let pgkeep = Pgkeep::archiving(&cluster);
    assert_eq!(check(&pgkeep, &[]).0, 0);
    for (program, why) in [("pgkeeep", "isn't in the PATH"), ("/nowhere/pgkeep", "isn't there")] {
        cluster.conf(&format!("archive_command = '{program} archive-push %p'"));
        cluster.reload();
        let began = std::time::Instant::now();
        let this = crate::support::install::pgkeep_binary().display().to_string();
        problem(&pgkeep, "archive-command", &[program, why, &this]);
        assert!(began.elapsed().as_secs() < 20, "it doesn't wait for the archiver");
    }
}

#[test]
fn a_backup_that_could_not_connect_is_told_before() {
    let mut cluster = Cluster::builder(15).start();
    let pgkeep = Pgkeep::archiving(&cluster);
    cluster.sql("CREATE ROLE \"Keeper\" LOGIN; GRANT pg_monitor TO \"Keeper\"");
    pgkeep.edit(|text| text.replace("user=postgres", "user=Keeper"));
    problem(
        &pgkeep,
        "replication",
        &["walsender", r#"as a superuser: ALTER ROLE \"Keeper\" REPLICATION"#],
    );
    pgkeep.edit(|text| text.replace("user=Keeper", "user=postgres"));

    let hba = cluster.pgdata().join("pg_hba.conf");
    let lines = fs::read_to_string(&hba).unwrap();
    crate::support::scratch::write(&hba, "local all all trust\n");
    cluster.reload();
    let line = r#"local replication \"postgres\" peer"#;
    problem(&pgkeep, "replication", &["no pg_hba.conf entry for replication", line]);
    crate::support::scratch::write(&hba, lines);

    cluster.stop(Stop::Fast);
    cluster.conf("max_wal_senders = 0");
    cluster.start();
    problem(&pgkeep, "replication", &["max_wal_senders (currently 0)", "max_wal_senders = 10"]);
    assert_eq!(pgkeep.fails(["backup"]).code, 6, "as was said");
}

#[test]
fn how_it_stands_with_the_stream_is_told_where_there_is_one() {
    let cluster = Cluster::builder(15).start();
    let pgkeep = Pgkeep::archiving(&cluster);
    let told = |code: i32, state: &str, words: &[&str]| {
        let (ended, report) = check(&pgkeep, &[]);
        let (is, text) = step(&report, "stream");
        assert_eq!((ended, is.as_str()), (code, state), "{report:#}");
        words.iter().for_each(|word| assert!(text.contains(word), "{word}: {text}"));
    };
    let (_, report) = check(&pgkeep, &[]);
    assert!(report["steps"].as_array().unwrap().iter().all(|s| s["name"] != "stream"));

    cluster.sql("SELECT pg_create_physical_replication_slot('pgkeep', true)");
    told(0, "warning", &["nobody uses", "keeps WAL", "no commit waits", "drop_replication_slot"]);
    cluster.sql("ALTER SYSTEM SET synchronous_standby_names = 'one, PGKEEP'");
    cluster.reload();
    told(0, "warning", &["synchronous_standby_names names it (one, PGKEEP)"]);
    let _stream = pgkeep.spawn(["stream"]);
    crate::support::wait_until("the slot is used", 60, || {
        cluster.sql("SELECT active FROM pg_replication_slots") == "t"
    });
    told(0, "ok", &["uses the replication slot pgkeep", "names it"]);

    // Its own connection, with a slot that isn't there yet.
    cluster.sql("CREATE ROLE streamer LOGIN");
    let own = cluster.conninfo().replace("user=postgres", "user=streamer");
    let table = format!("\n[cluster.main.stream]\nslot = \"other\"\nconninfo = \"{own}\"\n");
    pgkeep.edit(|text| text + &table);
    let (code, report) = check(&pgkeep, &[]);
    let all = report["steps"].to_string();
    assert_eq!(code, 1, "{report:#}");
    assert!(all.contains("stream needs a replication connection"), "{all}");
    assert!(all.contains(r#"ALTER ROLE \"streamer\" REPLICATION"#), "{all}");
    cluster.sql("ALTER ROLE streamer REPLICATION");
    told(0, "ok", &["slot other isn't there"]);
}

#[test]
fn a_stream_does_not_hide_that_the_server_archives_nothing() {
    let cluster = Cluster::builder(15).start();
    let pgkeep = Pgkeep::archiving(&cluster);
    assert_eq!(check(&pgkeep, &[]).0, 0);
    let _stream = pgkeep.spawn(["stream"]);
    crate::support::wait_until("it streams", 60, || {
        cluster.sql("SELECT active FROM pg_replication_slots") == "t"
    });
    assert_eq!(check(&pgkeep, &[]).0, 0, "both bring it");
    pgkeep.set("cluster.main", "archive-timeout = \"10s\"");
    let config = pgkeep.config().display().to_string();
    let elsewhere = pgkeep.archive_command().replace(&config, "/nowhere/pgkeep.toml");
    cluster.sql(&format!("ALTER SYSTEM SET archive_command = '{elsewhere}'"));
    cluster.reload();
    problem(&pgkeep, "arrival", &["as a stream brings it", "archive_command"]);
}

#[test]
fn a_wrong_data_directory_is_corrected_where_the_server_is_on_this_host() {
    let cluster = Cluster::builder(15).tcp().start();
    let pgkeep = Pgkeep::archiving(&cluster);
    let ours = cluster.pgdata().display().to_string();
    let elsewhere = pgkeep.scratch().folder("elsewhere").display().to_string();
    let correction = format!("set pgdata = \\\"{ours}\\\" in [cluster.main]");
    let mut now = ours.clone();
    let mut point_to = |place: &str| {
        pgkeep.edit(|text| text.replace(&format!("\"{now}\""), &format!("\"{place}\"")));
        now = place.to_owned();
    };
    for wrong in ["/nowhere/data", &elsewhere] {
        point_to(wrong);
        problem(&pgkeep, "data-directory", &[wrong, &correction]);
    }
    // Who connects over the network may be on another host.
    point_to("/nowhere/data");
    let socket = format!("host={}", cluster.socket_dir().display());
    pgkeep.edit(|text| text.replace(&socket, "host=127.0.0.1"));
    let (code, report) = check(&pgkeep, &[]);
    assert_eq!((code, step(&report, "data-directory").0.as_str()), (0, "skipped"), "{report:#}");
}

#[test]
fn another_system_is_taken_only_when_asked_for() {
    let cluster = Cluster::builder(15).start();
    let pgkeep = Pgkeep::archiving(&cluster);
    assert_eq!(check(&pgkeep, &[]).0, 0);

    let other = Cluster::builder(16).start();
    pgkeep.archive(&other);
    let ours = cluster.pgdata().to_string_lossy().into_owned();
    let socket = cluster.socket_dir().to_string_lossy().into_owned();
    let swap = |text: String| {
        text.replace(&ours, &other.pgdata().to_string_lossy())
            .replace(&socket, &other.socket_dir().to_string_lossy())
    };
    pgkeep.edit(swap);
    let refused = run(&pgkeep, &[]);
    assert_eq!(refused.code, 9, "{refused}");
    for word in [&cluster, &other].map(|c| c.system_identifier().to_string()) {
        assert!(refused.stderr.contains(&word), "{refused}");
    }
    assert!(refused.stderr.contains("--new-system"), "{refused}");
    let (code, report) = check(&pgkeep, &["--new-system"]);
    assert_eq!(code, 0, "{report:#}");
    assert_eq!(check(&pgkeep, &[]).0, 0, "from then on it is known");
    assert_eq!(objects_of(&pgkeep.repository(), ObjectKind::System).len(), 2);

    // The server that conninfo leads to isn't the one of pgdata.
    let theirs = other.pgdata().to_string_lossy().into_owned();
    pgkeep.edit(|text| text.replace(&theirs, &ours));
    problem(&pgkeep, "data-directory", &["conninfo and pgdata"]);
}

#[test]
fn a_repository_that_cannot_be_used_is_named() {
    let cluster = Cluster::builder(15).start();
    let pgkeep = Pgkeep::new(&cluster);
    pgkeep.add_repository("second");
    pgkeep.set("cluster.main", "archive-timeout = \"2s\"");
    pgkeep.ok(["--repo", "main", "init"]);
    problem(&pgkeep, "repository", &["pgkeep init"]);
    pgkeep.ok(["--repo", "second", "init"]);
    pgkeep.archive(&cluster);
    assert_eq!(check(&pgkeep, &[]).0, 0);
    if is_root() && !on_s3() {
        // Run by root, it would leave files there that the server's user can't write.
        let mut by_root = std::process::Command::new(pgkeep.command(["check"]).get_program());
        by_root.env_clear().arg("--config").arg(pgkeep.config()).arg("check");
        let output = crate::support::pgkeep::run_to_end(&mut by_root);
        assert_eq!(output.code, 1, "{output}");
        assert!(output.stdout.contains("run pgkeep as the repository's owner"), "{output}");
    }
    let key = pgkeep.key_file("second");
    fs::rename(&key, key.with_extension("aside")).unwrap();
    problem(&pgkeep, "repository", &["key file"]);
}

#[test]
fn a_standby_checks_what_can_be_checked() {
    let primary = Cluster::builder(15).start();
    let pgkeep = Pgkeep::archiving(&primary);
    assert_eq!(check(&pgkeep, &[]).0, 0);
    let standby = Cluster::standby_of(&primary);
    let on_standby = |from: &Path, to: &Path| {
        pgkeep.edit(|text| text.replace(&*from.to_string_lossy(), &to.to_string_lossy()));
    };
    on_standby(primary.pgdata(), standby.pgdata());
    on_standby(primary.socket_dir(), standby.socket_dir());
    let (code, report) = check(&pgkeep, &[]);
    assert_eq!(code, 0, "{report:#}");
    assert_eq!(step(&report, "switch").0, "skipped");
    assert_eq!(step(&report, "archive-mode").0, "skipped");
}
