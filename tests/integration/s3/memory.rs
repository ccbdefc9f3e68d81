//! How much memory what goes to S3 takes: parts on their way are bounded.
//!
//! ```text
//! PGKEEP_TEST_PROGRAM=target/release/pgkeep cargo test --test integration -- --nocapture s3::memory
//! ```
//!
//! measures a build whose code counts too, with more than two packs.

use crate::support::{Cluster, Pgkeep, install::other_program, pgkeep::start, s3::Server};

const MIB: u64 = 1 << 20;

/// A running server with so many bytes in a table that hardly compress.
pub fn cluster_with_noise(bytes: u64) -> Cluster {
    let cluster = Cluster::builder(15).conf("max_wal_size = 4GB").start();
    cluster.sql("CREATE TABLE noise (line text)");
    cluster.sql("ALTER TABLE noise ALTER line SET STORAGE EXTERNAL");
    cluster.sql(&format!(
        "COPY noise FROM PROGRAM 'head -c {} /dev/urandom | base64 -w 1500'",
        bytes * 3 / 4
    ));
    cluster
}

#[test]
fn backup_push_and_restore_stay_within_their_bounds() {
    // Packs have 256 MiB, and up to three at once are on their way: but not in a debug build, which
    // makes them slower than they are sent.
    let noise = if other_program().is_some() { 1500 } else { 150 };
    let cluster = cluster_with_noise(noise * MIB);
    let pgkeep = Pgkeep::on_server(&cluster, Server::start());
    pgkeep.without_state();
    pgkeep.init();
    let segment = cluster.switch_wal();
    pgkeep.set("cluster.main", "archive-timeout = \"1s\"");
    pgkeep.run(["check"]);
    let measured = |arguments: &[&str]| {
        let mut command = pgkeep.command(arguments);
        command.current_dir(cluster.pgdata());
        let (output, peak) = start(command).wait_and_measure();
        assert_eq!(output.code, 0, "{arguments:?}: {output}");
        let (own, all) = (peak.own / MIB, peak.all / MIB);
        println!("{:<14} {all:>4} MiB at the peak, {own:>4} of them its own", arguments[0]);
        if other_program().is_some() { peak.all } else { peak.own }
    };
    // One of those that hold the noise: it is sent in parts.
    let number = u64::from_str_radix(&segment[16..], 16).expect("a number") - 3;
    let noise = format!("{}{number:08X}", &segment[..16]);
    let server = pgkeep.server().expect("a server");
    server.front().heal();
    assert!(measured(&["archive-push", &format!("pg_wal/{noise}")]) < 40 * MIB);
    assert!(server.front().counts()["UploadPart"] > 1, "{:?}", server.front().counts());
    assert!(measured(&["archive-push", &format!("pg_wal/{noise}")]) < 40 * MIB, "once more");
    assert!(measured(&["archive-get", &noise, "pg_wal/RECOVERYXLOG"]) < 40 * MIB);

    pgkeep.edit(|text| text.replace("archive-timeout = \"1s\"", ""));
    pgkeep.archive(&cluster);
    server.front().heal();
    assert!(measured(&["backup"]) < 200 * MIB);
    assert!(server.front().counts()["UploadPart"] > 10, "{:?}", server.front().counts());
    let target = pgkeep.scratch().path().join("restored").display().to_string();
    assert!(measured(&["restore", "--pgdata", &target]) < 200 * MIB);
}
