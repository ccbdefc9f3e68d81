//! Servers that are several, down, silent, or something else; and sessions once they stand.

use std::{
    io::{Read, Write},
    net::TcpListener,
    time::{Duration, Instant},
};

use pgkeep::postgres::{
    client::{Client, Mode, PgError},
    replication,
};

use super::{block_on, code_of, conninfo, fails_with, whoami};
use crate::support::{Cluster, Scratch, Stop, on_each_version, scratch::write};

#[test]
fn several_hosts_are_tried_in_turn() {
    let mut primary = Cluster::builder(15).start();
    let standby = Cluster::standby_of(&primary);
    let home = Scratch::new("home");
    let sockets = [&standby, &primary].map(|c| c.socket_dir().display().to_string());
    let both =
        format!("host=/nonexistent,{},{} port=1,5432,5432 user=postgres", sockets[0], sockets[1]);
    let recovers = |rest: &str| {
        block_on(async {
            let info = conninfo(&format!("{both} {rest}"), &home);
            let mut client = Client::connect(&info, Mode::Sql).await?;
            let rows = client.query("SELECT pg_is_in_recovery()").await?;
            Ok::<_, PgError>(rows[0].get(0) == Some("t"))
        })
    };
    assert!(recovers("").unwrap());
    for (wanted, standby) in [
        ("any", true),
        ("read-write", false),
        ("primary", false),
        ("read-only", true),
        ("standby", true),
        ("prefer-standby", true),
    ] {
        let rest = format!("target_session_attrs={wanted}");
        assert_eq!(recovers(&rest).unwrap(), standby, "{wanted}");
        let rest = format!("{rest} load_balance_hosts=random");
        assert!(wanted == "any" || recovers(&rest).unwrap() == standby, "{wanted}");
    }
    primary.stop(Stop::Immediate);
    fails_with(
        recovers("target_session_attrs=primary"),
        "NoServer",
        "target_session_attrs=primary",
    );
    // A wrong name is no reason to try the next server, nor is a refusal.
    drop(primary);
    let refused = recovers("dbname=none");
    assert_eq!(code_of(refused), "3D000");
}

#[test]
fn a_server_that_is_down_is_told_so() {
    let home = Scratch::new("home");
    let free = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let down = conninfo(&format!("host=127.0.0.1 port={free}"), &home);
    fails_with(whoami(&down), "Connect", "listen_addresses");
    fails_with(whoami(&conninfo("host=/nonexistent", &home)), "Connect", "/nonexistent/.s.PGSQL");
    fails_with(whoami(&conninfo("host=no.such.name.invalid", &home)), "Connect", "looked up");

    let mut cluster = Cluster::builder(15).make();
    cluster.conf("hot_standby = off");
    write(&cluster.pgdata().join("standby.signal"), "");
    cluster.spawn();
    let info = conninfo(&cluster.conninfo(), &home);
    crate::support::wait_until(
        "the server says that it isn't ready",
        20,
        || matches!(whoami(&info), Err(e) if e.code() == Some("57P03") && e.is_unreachable()),
    );
}

/// Nothing that answers like a server, or not at all, holds us for long.
#[test]
fn silence_and_nonsense_end_in_bounded_time() {
    let home = Scratch::new("home");
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let info = |rest: &str| {
        conninfo(&format!("host=127.0.0.1 port={port} connect_timeout=2 {rest}"), &home)
    };
    // The kernel takes the connection, and nobody ever answers.
    for rest in ["sslmode=disable", "sslmode=prefer", "sslmode=require"] {
        let begun = Instant::now();
        fails_with(whoami(&info(rest)), "Connect", "within 2 seconds");
        assert!(begun.elapsed() < Duration::from_secs(8), "{rest}: {:?}", begun.elapsed());
    }
    let answers: [(&str, &[u8]); 6] = [
        ("sslmode=disable", b"HTTP/1.1 400 Bad Request\r\n\r\n"),
        ("sslmode=require", b"HTTP/1.1 400 Bad Request\r\n\r\n"),
        ("sslmode=require", b"Sin clear"),
        ("sslmode=disable", b""),
        ("sslmode=disable", b"R\0\0\0\x08\0\0\0\x0bR"),
        ("sslmode=disable", b"Efork failed\n\0"),
    ];
    for (rest, answer) in answers {
        // Those that connected before are still queued.
        listener.set_nonblocking(true).unwrap();
        while listener.accept().is_ok() {}
        listener.set_nonblocking(false).unwrap();
        let listener = listener.try_clone().unwrap();
        let server = std::thread::spawn(move || {
            let (mut socket, _) = listener.accept().unwrap();
            let _ = socket.read(&mut [0; 1024]);
            socket.write_all(answer).unwrap();
        });
        let error = whoami(&info(rest)).expect_err("nonsense");
        server.join().unwrap();
        if answer.starts_with(b"E") {
            assert!(error.to_string().contains("fork failed"), "{error}");
        }
    }
}

#[cfg(target_os = "linux")]
#[test]
fn abstract_sockets_work() {
    let mut cluster = Cluster::builder(15).make();
    let name = format!("@pgkeep-test-{}", std::process::id());
    let directories = format!("{},{name}", cluster.socket_dir().display());
    cluster.option(&format!("unix_socket_directories={directories}"));
    cluster.start();
    let home = Scratch::new("home");
    let info = conninfo(&format!("host={name} port=5432 user=postgres"), &home);
    assert_eq!(whoami(&info).unwrap(), "postgres plain");
}

on_each_version!(sessions_are_fit_for_long_work);

fn sessions_are_fit_for_long_work(version: u32) {
    let cluster = Cluster::builder(version).start();
    cluster.sql("CREATE ROLE hasty SUPERUSER LOGIN");
    for setting in ["statement_timeout = 100", "lock_timeout = 1", "idle_session_timeout = 300"] {
        cluster.sql(&format!("ALTER ROLE hasty SET {setting}"));
    }
    let home = Scratch::new("home");
    let info = conninfo(&format!("{} user=hasty", cluster.conninfo()), &home);
    let info = info.with_application_name("pgkeep test");
    block_on(async {
        let mut client = Client::connect(&info, Mode::Sql).await.unwrap();
        assert_eq!(client.server_version().major(), version);
        assert_eq!(client.parameter("in_hot_standby"), Some("off"));
        client.query("SELECT pg_sleep(0.3)").await.unwrap();
        tokio::time::sleep(Duration::from_millis(600)).await;
        let name = client.query("SELECT current_setting('application_name') AS n").await.unwrap();
        assert_eq!(name[0].named("n"), Some("pgkeep test"));
        // After an error, the session goes on.
        let error = client.query("SELECT 1; SELECT 1/0; SELECT 2").await.unwrap_err();
        assert_eq!(error.code(), Some("22012"));
        let rows = client.query("SELECT NULL, ''; SELECT 'ö', 2 AS two, NULL").await.unwrap();
        assert_eq!((rows[0].get(0), rows[0].named("two")), (Some("ö"), Some("2")));
        assert_eq!((rows[0].get(2), rows[0].len()), (None, 3));
        // A notice with a hint of the server's, in the middle.
        client
            .execute("DO $$BEGIN RAISE WARNING 'look' USING HINT = 'there'; END$$")
            .await
            .unwrap();
        let raise =
            "DO $$BEGIN RAISE 'no' USING HINT = 'do', DETAIL = 'so', ERRCODE = 'P0999'; END$$";
        let error = client.execute(raise).await.unwrap_err();
        assert_eq!(error.to_string(), "PostgreSQL says ERROR: no: so (SQLSTATE P0999)");
        assert_eq!(error.hint(), Some("do"));
        // A server that ends the session says why.
        let pid = client.query("SELECT pg_backend_pid()").await.unwrap();
        let pid = pid[0].get(0).unwrap().to_owned();
        cluster.sql(&format!("SELECT pg_terminate_backend({pid}, 5000)"));
        let error = client.query("SELECT 1").await.unwrap_err();
        assert_eq!(error.code(), Some("57P01"), "{error}");

        let mut client = Client::connect(&info, Mode::Replication).await.unwrap();
        tokio::time::sleep(Duration::from_millis(600)).await;
        assert_eq!(replication::show(&mut client, "wal_segment_size").await.unwrap(), "16MB");
    });
}
