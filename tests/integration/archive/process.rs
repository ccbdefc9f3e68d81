//! The program itself: exit codes and kills.

use std::{fs, os::unix::fs::PermissionsExt, process::Stdio, time::Duration};

use s3s::S3ErrorCode;

use super::{snapshot, wal};
use crate::support::{
    Cluster, Pgkeep, Stop,
    install::{command, is_root, pgkeep_binary, user},
    objects::{ObjectKind, flip_bit, objects_of},
    pgkeep::run_to_end,
    places::{on_s3, skipped_on_s3},
    scratch,
};

/// A cluster that doesn't archive by itself, and a pgkeep that knows its system.
fn prepared(version: u32) -> (Cluster, Pgkeep) {
    let cluster = Cluster::builder(version).wal_segsize(1).start();
    let pgkeep = Pgkeep::new(&cluster);
    pgkeep.init();
    pgkeep.set("cluster.main", "archive-timeout = \"1s\"");
    pgkeep.set("cluster.main", "outage-timeout = \"0s\"");
    // It finds that nothing archives, but registers the system.
    pgkeep.run(["check"]);
    (cluster, pgkeep)
}

/// Pushes as the archiver does; the exit code.
fn push(pgkeep: &Pgkeep, cluster: &Cluster, name: &str) -> i32 {
    pgkeep.run_in(cluster.pgdata(), ["archive-push", &format!("pg_wal/{name}")]).code
}

/// Gets as recovery does; the exit code.
fn get(pgkeep: &Pgkeep, cluster: &Cluster, name: &str) -> i32 {
    let output = pgkeep.run_in(cluster.pgdata(), ["archive-get", name, "pg_wal/RECOVERYXLOG"]);
    let path = wal(cluster, "RECOVERYXLOG");
    assert_eq!(path.exists(), output.code == 0, "{output}");
    if path.exists() {
        assert_eq!(fs::read(&path).unwrap(), fs::read(wal(cluster, name)).unwrap());
        fs::remove_file(&path).unwrap();
    }
    output.code
}

#[test]
fn exit_codes_tell_recovery_only_what_is_certain() {
    let (cluster, pgkeep) = prepared(15);
    // Nothing is stored but what is pushed.
    pgkeep.without_state();
    let (segment, missing) = (cluster.switch_wal(), cluster.switch_wal());
    assert_eq!(push(&pgkeep, &cluster, &segment), 0);
    assert_eq!(push(&pgkeep, &cluster, &segment), 0);
    let before = snapshot(&cluster);
    assert_eq!(get(&pgkeep, &cluster, &segment), 0);
    assert_eq!(get(&pgkeep, &cluster, &missing), 1);
    assert_eq!(get(&pgkeep, &cluster, "00000002.history"), 1);
    assert_eq!(get(&pgkeep, &cluster, "nonsense"), 126);
    assert_eq!(snapshot(&cluster), before, "nothing but the path that was given is written");

    if let Some(server) = pgkeep.server() {
        server.front().refuse("GetObject", S3ErrorCode::AccessDenied);
        assert_eq!(get(&pgkeep, &cluster, &missing), 126);
        server.front().heal();
    }
    // The server of the tests reads what it owns, whatever its mode.
    let unreadable = ["", "clusters", "clusters/main/wal", "repo.json"];
    for part in unreadable.into_iter().filter(|_| !on_s3()) {
        let path = pgkeep.repository().join(part);
        let mode = fs::metadata(&path).unwrap().permissions();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o000)).unwrap();
        assert_eq!(get(&pgkeep, &cluster, &missing), 126, "unreadable: {part:?}");
        fs::set_permissions(&path, mode).unwrap();
    }

    let signal = cluster.pgdata().join("standby.signal");
    let aside = pgkeep.scratch().path().join("aside");
    let outage = |during: &dyn Fn()| {
        fs::rename(pgkeep.repository(), &aside).unwrap();
        during();
        fs::rename(&aside, pgkeep.repository()).unwrap();
    };
    outage(&|| {
        assert_eq!(get(&pgkeep, &cluster, &segment), 126);
        assert_eq!(get(&pgkeep, &cluster, &missing), 126);
        assert!((1..=125).contains(&push(&pgkeep, &cluster, &segment)));
        fs::write(&signal, "").unwrap();
        assert_eq!(get(&pgkeep, &cluster, &segment), 1, "a standby goes on streaming");
        pgkeep.set("cluster.main", "standby-outage = \"stop\"");
        assert_eq!(get(&pgkeep, &cluster, &segment), 126);
    });
    pgkeep.edit(|text| text.replace("standby-outage = \"stop\"", "standby-outage = \"continue\""));

    // Damage is no outage, not on a standby either.
    flip_bit(&objects_of(&pgkeep.repository(), ObjectKind::Segment)[0].path, 300);
    assert_eq!(get(&pgkeep, &cluster, &segment), 126);
    fs::remove_file(&signal).unwrap();
    assert_eq!(get(&pgkeep, &cluster, &segment), 126);
    assert_eq!(push(&pgkeep, &cluster, &segment), 0, "healed");
    assert_eq!(get(&pgkeep, &cluster, &segment), 0);

    flip_bit(&wal(&cluster, &segment), 9000);
    assert!((1..=125).contains(&push(&pgkeep, &cluster, &segment)), "a conflict");
    assert!((1..=125).contains(&push(&pgkeep, &cluster, "nonsense")));
    let control = cluster.pgdata().join("global/pg_control");
    fs::rename(&control, control.with_extension("aside")).unwrap();
    assert!((1..=125).contains(&push(&pgkeep, &cluster, &missing)));
    pgkeep.edit(|text| text.replace("pgdata = ", "# pgdata = "));
    assert_eq!(get(&pgkeep, &cluster, &missing), 126);
    fs::rename(control.with_extension("aside"), &control).unwrap();
}

/// What a standby sits out passes by itself. All else stops it, so that a person sees it.
#[test]
fn a_standby_sits_out_an_outage_and_nothing_else() {
    let (cluster, pgkeep) = prepared(15);
    let (segment, missing) = (cluster.switch_wal(), cluster.switch_wal());
    assert_eq!(push(&pgkeep, &cluster, &segment), 0);
    fs::write(cluster.pgdata().join("standby.signal"), "").unwrap();
    let answers = |what: &str, expected: i32| {
        for name in [&segment, &missing] {
            assert_eq!(get(&pgkeep, &cluster, name), expected, "{what}");
        }
    };
    let root = pgkeep.repository();
    if let Some(server) = pgkeep.server() {
        server.front().refuse("GetObject", S3ErrorCode::AccessDenied);
        answers("access denied", 126);
        server.front().refuse("GetObject", S3ErrorCode::SlowDown);
        answers("throttled", 1);
        server.front().heal();
    }
    let unreadable = ["", "clusters", "clusters/main/wal", "repo.json", "keys"];
    for part in unreadable.into_iter().filter(|_| !on_s3()) {
        let path = root.join(part);
        let mode = fs::metadata(&path).unwrap().permissions();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o000)).unwrap();
        answers(&format!("unreadable: {part:?}"), 126);
        let pushed = push(&pgkeep, &cluster, &segment);
        assert!((1..=125).contains(&pushed), "unreadable: {part:?}: {pushed}");
        fs::set_permissions(&path, mode).unwrap();
    }
    for (name, other) in [("[cluster.main]", "[cluster.mian]"), ("main.key", "mian.key")] {
        pgkeep.edit(|text| text.replace(name, other));
        answers(other, 126);
        pgkeep.edit(|text| text.replace(other, name));
    }
    let aside = pgkeep.scratch().path().join("aside");
    if is_root() && !on_s3() {
        let owner = |id: Option<u32>| {
            std::os::unix::fs::chown(&root, id.or(Some(user().uid)), None).unwrap();
        };
        owner(Some(0));
        answers("the repository of another user", 126);
        owner(None);
        // The mount point of a disk that isn't mounted is root's, too.
        fs::rename(&root, &aside).unwrap();
        fs::create_dir(&root).unwrap();
        answers("a mount point of root", 1);
        fs::remove_dir(&root).unwrap();
        fs::rename(&aside, &root).unwrap();
    }
    fs::rename(&root, &aside).unwrap();
    fs::create_dir(&root).unwrap();
    scratch::own(&root);
    fs::set_permissions(&root, fs::Permissions::from_mode(0o700)).unwrap();
    answers("a mount point", 1);
    fs::remove_dir(&root).unwrap();
    answers("no mount point", 1);
    fs::rename(&aside, &root).unwrap();
    assert_eq!(get(&pgkeep, &cluster, &segment), 0);
}

/// A code other than 0 would have it done again, although it is done.
#[test]
fn what_is_done_is_no_failure_because_it_cannot_be_printed() {
    let cluster = Cluster::builder(15).wal_segsize(1).start();
    let pgkeep = Pgkeep::new(&cluster);
    let into_full = |arguments: &[&str]| {
        let mut command = pgkeep.command(arguments);
        let full = fs::File::options().write(true).open("/dev/full").unwrap();
        let child = command.current_dir(cluster.pgdata()).stdout(full).stderr(Stdio::piped());
        let output = child.spawn().unwrap().wait_with_output().unwrap();
        (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
    };
    let done = |arguments: &[&str], what: &str| {
        let (code, stderr) = into_full(arguments);
        assert_eq!(code, Some(0), "{arguments:?}: {stderr}");
        assert!(stderr.contains(what) && stderr.contains("No space left"), "{stderr}");
        stderr
    };
    done(&["init"], "the repository is made");
    pgkeep.archive(&cluster);
    let stderr = done(&["backup"], "is complete");
    let id = stderr.split("warning: backup ").nth(1).unwrap().split(' ').next().unwrap();
    let info = pgkeep.ok(["info"]).stdout;
    assert!(info.contains(id) && id.ends_with("-full"), "{info}{stderr}");
    let segment = cluster.switch_wal();
    let path = format!("pg_wal/{segment}");
    done(&["--output", "json", "archive-push", &path], "is stored");
    done(&["--output", "json", "archive-get", &segment, "pg_wal/RECOVERYXLOG"], "is there");
    let place = pgkeep.scratch().path().join("restored");
    done(&["restore", "--pgdata", &place.display().to_string()], "the restore is complete");
    // Whose whole work is to print has failed.
    assert_eq!(into_full(&["info"]).0, Some(10));
}

/// SIGXFSZ, which a limit sends, would end them with 153: the archiver itself would die of that.
#[test]
fn a_file_size_limit_is_an_error_like_others() {
    if skipped_on_s3("a push writes no file there") {
        return;
    }
    let (cluster, pgkeep) = prepared(15);
    let segment = cluster.switch_wal();
    let limited = |arguments: &[&str]| {
        let mut command = command("prlimit");
        command.arg("--fsize=512").arg(pgkeep_binary()).arg("--config").arg(pgkeep.config());
        run_to_end(command.args(arguments).current_dir(cluster.pgdata()))
    };
    let pushed = limited(&["archive-push", &format!("pg_wal/{segment}")]);
    assert!((1..=125).contains(&pushed.code), "{pushed}");
    assert!(pushed.stderr.contains("File too large"), "{pushed}");
    assert!(objects_of(&pgkeep.repository(), ObjectKind::Segment).is_empty());
    assert_eq!(push(&pgkeep, &cluster, &segment), 0);
    let got = limited(&["archive-get", &segment, "pg_wal/RECOVERYXLOG"]);
    assert_eq!(got.code, 126, "{got}");
    assert_eq!(get(&pgkeep, &cluster, &segment), 0);
}

/// Kills pushes at all kinds of moments. Whatever was stored by then, the next push succeeds, and
/// `pg_wal` stays as it was.
#[test]
fn a_push_that_was_killed_is_done_again() {
    let mut cluster = Cluster::builder(15).start();
    let pgkeep = Pgkeep::new(&cluster);
    pgkeep.init();
    pgkeep.set("cluster.main", "archive-timeout = \"1s\"");
    pgkeep.run(["check"]);
    let segment = cluster.switch_wal();
    cluster.stop(Stop::Fast);
    let before = snapshot(&cluster);
    let path = wal(&cluster, &segment).to_string_lossy().into_owned();
    let began = std::time::Instant::now();
    assert_eq!(push(&pgkeep, &cluster, &segment), 0);
    let whole = began.elapsed();
    let object = objects_of(&pgkeep.repository(), ObjectKind::Segment)[0].path.clone();
    let content = fs::read(wal(&cluster, &segment)).unwrap();
    let (mut killed, mut stored) = (0, 0);
    let rounds = 40;
    for round in 0..rounds {
        fs::remove_file(&object).unwrap();
        let time = whole.mul_f64(0.8 * f64::from(round) / f64::from(rounds));
        let output = pgkeep.spawn(["archive-push", &path]).kill_after(time);
        killed += i32::from(output.code == -9);
        stored += i32::from(object.exists());
        assert_eq!(push(&pgkeep, &cluster, &segment), 0, "after a kill at {time:?}");
        assert_eq!(get(&pgkeep, &cluster, &segment), 0);
        assert_eq!(fs::read(wal(&cluster, &segment)).unwrap(), content);
    }
    assert_eq!(snapshot(&cluster), before, "changed, moved or added in pg_wal");
    assert!(killed > rounds / 4, "{killed} of {rounds} were killed, {stored} had stored");
}

/// Death by SIGTERM would be 143, which PostgreSQL takes for its own shutdown.
#[test]
fn a_get_that_is_told_to_stop_is_an_error_like_others() {
    let (cluster, pgkeep) = prepared(15);
    let segment = cluster.switch_wal();
    assert_eq!(push(&pgkeep, &cluster, &segment), 0);
    pgkeep.edit(|text| text.replace("outage-timeout = \"0s\"", "outage-timeout = \"60s\""));
    let aside = pgkeep.scratch().path().join("aside");
    fs::rename(pgkeep.repository(), &aside).unwrap();
    let target = wal(&cluster, "RECOVERYXLOG");
    let waiting = pgkeep.spawn(["archive-get", &segment, &target.to_string_lossy()]);
    std::thread::sleep(Duration::from_secs(2));
    waiting.signal(rustix::process::Signal::TERM);
    let output = waiting.wait();
    assert_eq!(output.code, 126, "{output}");
    assert!(output.stderr.contains("trying again"), "{output}");
}

/// Kills gets at all kinds of moments: the file is there whole or not at all, and nothing else is.
#[test]
fn a_get_that_was_killed_leaves_nothing_that_counts() {
    let mut cluster = Cluster::builder(15).start();
    let pgkeep = Pgkeep::new(&cluster);
    pgkeep.init();
    pgkeep.set("cluster.main", "archive-timeout = \"1s\"");
    pgkeep.run(["check"]);
    let segment = cluster.switch_wal();
    cluster.stop(Stop::Fast);
    assert_eq!(push(&pgkeep, &cluster, &segment), 0);
    let began = std::time::Instant::now();
    assert_eq!(get(&pgkeep, &cluster, &segment), 0);
    let whole = began.elapsed();
    let names = || {
        let entries = fs::read_dir(wal(&cluster, "")).unwrap();
        let mut names: Vec<_> = entries.map(|e| e.unwrap().file_name()).collect();
        names.sort();
        names
    };
    let before = names();
    let content = fs::read(wal(&cluster, &segment)).unwrap();
    let target = wal(&cluster, "RECOVERYXLOG");
    for round in 0..40 {
        let time = whole.mul_f64(1.2 * f64::from(round) / 40.0);
        pgkeep.spawn(["archive-get", &segment, &target.to_string_lossy()]).kill_after(time);
        if target.exists() {
            assert!(fs::read(&target).unwrap() == content, "whole, or not there");
            fs::remove_file(&target).unwrap();
        }
        assert_eq!(names(), before);
    }
}
