//! What servers refuse, what they don't and should, and how that is told from failures.

use std::fs;

use pgkeep::postgres::{
    Timeline,
    backup_manifest::WalRange,
    client::{Client, ConnInfo, Environment, Mode, PgError},
    incremental::{ManifestUpload, NativeRefusal, check},
    replication,
};

use super::{
    settle,
    stream::{Taken, block_on, connect, history, ranges, take, upload},
    summarizing,
};
use crate::support::{Cluster, Stop, on_each_version, wait_until};

/// What [`check`] has against an increment over `base`.
async fn objection(cluster: &Cluster, base: &Taken) -> Option<NativeRefusal> {
    let mut client = connect(cluster, Mode::Replication).await;
    let identity = replication::identify_system(&mut client).await.unwrap();
    let history = history(&mut client, identity.timeline).await;
    let ranges = ranges(&mut client, base).await;
    let mut client = connect(cluster, Mode::Sql).await;
    check(&mut client, &history, &ranges).await.unwrap()
}

/// That an increment over `base` is refused by the server with this SQLSTATE and message, and that
/// the connection is good for a full backup then.
async fn assert_refused(cluster: &Cluster, base: &Taken, code: &str, message: &str) {
    let mut client = connect(cluster, Mode::Replication).await;
    upload(&mut client, base).await.unwrap();
    let refusal = refusal(take(&mut client, true).await.map(drop));
    assert_eq!(refusal.code, code, "{refusal:?}");
    assert!(refusal.message.contains(message), "{refusal:?}");
    take(&mut client, false).await.unwrap();
}

/// What the server said, taken for a refusal.
fn refusal(result: Result<(), PgError>) -> pgkeep::postgres::client::ServerError {
    match NativeRefusal::of(result.unwrap_err()) {
        Ok(NativeRefusal::Server(error)) => *error,
        other => panic!("no refusal: {other:?}"),
    }
}

#[test]
fn older_servers_have_none() {
    let cluster = Cluster::builder(16).start();
    block_on(async {
        let mut client = connect(&cluster, Mode::Replication).await;
        let full = take(&mut client, false).await.unwrap();
        assert_eq!(objection(&cluster, &full).await, Some(NativeRefusal::Version));
        assert!(matches!(take(&mut client, true).await, Err(PgError::Unsuitable(_))));
        // The server takes the command for SQL.
        assert_eq!(refusal(upload(&mut client, &full).await).code, "0A000");
        take(&mut client, false).await.unwrap();
    });
}

on_each_version!(summaries_that_are_off_or_missing_are_told: 17 postgres_17, 18 postgres_18);

fn summaries_that_are_off_or_missing_are_told(version: u32) {
    let builder = Cluster::builder(version).wal_segsize(1).conf("archive_mode = off");
    let cluster = builder.conf("max_wal_size = 2MB").conf("min_wal_size = 2MB").start();
    cluster.make_table("t", 100);
    block_on(async {
        let mut client = connect(&cluster, Mode::Replication).await;
        let full = take(&mut client, false).await.unwrap();
        assert_eq!(objection(&cluster, &full).await, Some(NativeRefusal::SummariesOff));
        let off = "cannot be taken unless WAL summarization is enabled";
        assert_refused(&cluster, &full, "55000", off).await;

        // Without a manifest.
        cluster.conf("summarize_wal = on");
        cluster.reload();
        let mut other = connect(&cluster, Mode::Replication).await;
        let refused = refusal(take(&mut other, true).await.map(drop));
        assert_eq!(refused.code, "55000");
        assert!(refused.message.contains("UPLOAD_MANIFEST"), "{refused:?}");

        // A backup from now on has all it needs, soon or later.
        let full = take(&mut client, false).await.unwrap();
        assert_eq!(objection(&cluster, &full).await, None);
        upload(&mut client, &full).await.unwrap();
        take(&mut client, true).await.unwrap();
        assert_eq!(objection(&cluster, &full).await, None);

        // Switched off until the WAL is gone, and on again.
        cluster.conf("summarize_wal = off");
        cluster.reload();
        let gone = cluster.switch_wal();
        wait_until("a segment is gone", 60, || {
            cluster.switch_wal();
            cluster.sql("CHECKPOINT");
            !cluster.pgdata().join("pg_wal").join(&gone).exists()
        });
        cluster.conf("summarize_wal = on");
        cluster.reload();
        wait_until("there are summaries again", 60, || {
            cluster.sql("CHECKPOINT");
            let newer = format!("end_lsn > pg_current_wal_lsn() - {}", 1 << 20);
            let found = format!("SELECT count(*) FROM pg_available_wal_summaries() WHERE {newer}");
            cluster.sql(&found) != "0"
        });
        let objection = objection(&cluster, &full).await;
        assert!(
            matches!(
                objection,
                Some(NativeRefusal::SummariesMissing { timeline: Timeline(1), .. })
            ),
            "{objection:?}"
        );
        let missing = "the summaries for that timeline and LSN range are incomplete";
        assert_refused(&cluster, &full, "55000", missing).await;
    });
}

on_each_version!(a_manifest_of_another_system_is_refused_at_once: 17 postgres_17, 18 postgres_18);

fn a_manifest_of_another_system_is_refused_at_once(version: u32) {
    let cluster = summarizing(version);
    block_on(async {
        let mut client = connect(&cluster, Mode::Replication).await;
        let mut upload = ManifestUpload::start(&mut client, 7).await.unwrap();
        // Far more than the server and the sockets hold.
        let mut result = Ok(());
        for number in 0..1_000_000 {
            result = upload.file(format!("base/5/{number}").as_bytes(), 0).await;
            if result.is_err() {
                break;
            }
        }
        let refused = refusal(result);
        assert_eq!(refused.code, "XX000");
        assert!(
            refused.message.contains("system identifier in backup manifest is 7"),
            "{refused:?}"
        );
        // A short one is refused at its end.
        let upload = ManifestUpload::start(&mut client, 7).await.unwrap();
        assert_eq!(refusal(upload.finish(&[]).await).code, "XX000");
        // Nothing is left behind of what the server didn't want.
        let full = take(&mut client, false).await.unwrap();
        super::upload(&mut client, &full).await.unwrap();
        take(&mut client, true).await.unwrap();

        // Dropped half way, the client isn't good for anything else, and says so.
        drop(ManifestUpload::start(&mut client, 7).await.unwrap());
        assert!(replication::identify_system(&mut client).await.is_err());
    });
}

on_each_version!(a_large_manifest_with_any_names_is_taken: 17 postgres_17, 18 postgres_18);

fn a_large_manifest_with_any_names_is_taken(version: u32) {
    let cluster = summarizing(version);
    block_on(async {
        let mut client = connect(&cluster, Mode::Replication).await;
        let full = take(&mut client, false).await.unwrap();
        let mut upload =
            ManifestUpload::start(&mut client, cluster.system_identifier()).await.unwrap();
        for number in 0..100_000u32 {
            let name = [&number.to_be_bytes()[..], b"\"\\\x01\xff a file"].concat();
            upload.file(&name, u64::from(number) << 32).await.unwrap();
            upload.file(format!("a \"file\" {number} \\ \u{1} ä").as_bytes(), 0).await.unwrap();
        }
        let range = WalRange { timeline: full.timeline, start: full.start, end: full.stop };
        upload.finish(&[range]).await.unwrap();
        let increment = take(&mut client, true).await.unwrap();
        // None of its files was listed, so all of them come whole.
        assert!(increment.files.keys().all(|path| !path.contains("INCREMENTAL")));
    });
}

on_each_version!(a_backup_of_another_history_is_refused: 17 postgres_17, 18 postgres_18);

fn a_backup_of_another_history_is_refused(version: u32) {
    let primary = summarizing(version);
    primary.make_table("t", 1000);
    let standby = Cluster::standby_of(&primary);
    standby.catch_up_with(&primary);
    block_on(async {
        let mut on_primary = connect(&primary, Mode::Replication).await;
        let before = take(&mut on_primary, false).await.unwrap();
        standby.catch_up_with(&primary);

        // On a standby two backups may start at the same restartpoint.
        let mut on_standby = connect(&standby, Mode::Replication).await;
        primary.insert("t", 10);
        standby.catch_up_with(&primary);
        let of_standby = take(&mut on_standby, false).await.unwrap();
        assert!(of_standby.start < of_standby.stop);
        assert_eq!(objection(&standby, &of_standby).await, None);
        let early = "but this backup starts at";
        assert_refused(&standby, &of_standby, "55000", early).await;

        standby.promote();
        standby.sql("CHECKPOINT");
        // What was before is the past of both, and what comes then isn't.
        assert_eq!(objection(&standby, &before).await, None);
        upload(&mut on_standby, &before).await.unwrap();
        let increment = take(&mut on_standby, true).await.unwrap();
        assert_eq!((before.timeline, increment.timeline), (Timeline(1), Timeline(2)));

        let of_child = take(&mut on_standby, false).await.unwrap();
        let other = |base: &Taken| {
            let (timeline, end) = (base.stop_timeline, base.stop);
            Some(NativeRefusal::OtherHistory { timeline, end })
        };
        assert_eq!(objection(&primary, &of_child).await, other(&of_child));
        let message = "timeline 2 found in manifest, but not in this server's history";
        assert_refused(&primary, &of_child, "55000", message).await;

        // The primary went its own way. A backup that was under way there has pages that the
        // standby doesn't know to undo, and it would send an increment all the same.
        primary.sql("UPDATE t SET filler = 'lost'");
        let across = Taken { stop: primary.lsn().parse().unwrap(), ..before };
        assert!(history(&mut on_standby, Timeline(2)).await.ancestors[0].end < across.stop);
        standby.switch_wal();
        assert_eq!(objection(&standby, &across).await, other(&across));
        upload(&mut on_standby, &across).await.unwrap();
        take(&mut on_standby, true).await.unwrap();
    });
}

on_each_version!(a_summary_of_what_was_never_replayed_is_refused: 17 postgres_17, 18 postgres_18);

/// A standby summarizes what it receives, replayed or not. Promoted at a target before the end of
/// that, it has summaries of a past that isn't its own.
fn a_summary_of_what_was_never_replayed_is_refused(version: u32) {
    let primary = summarizing(version);
    primary.make_table("t", 2000);
    settle(&primary);
    block_on(async {
        let mut client = connect(&primary, Mode::Replication).await;
        let full = take(&mut client, false).await.unwrap();
        let mut standby = Cluster::standby_of(&primary);
        standby.catch_up_with(&primary);
        standby.sql("SELECT pg_wal_replay_pause()");
        primary.sql("UPDATE t SET filler = 'new' WHERE id > 1900");
        let target = primary.restore_point("here");
        // Never replayed: the table is cut off.
        primary.sql("DELETE FROM t WHERE id > 100");
        primary.sql("VACUUM t");
        primary.sql("CHECKPOINT");
        primary.switch_wal();
        let beyond = format!("end_lsn > '{target}' AND tli = 1");
        let beyond = format!("SELECT count(*) FROM pg_available_wal_summaries() WHERE {beyond}");
        wait_until("the standby summarizes ahead", 60, || standby.sql(&beyond) != "0");
        standby.stop(Stop::Fast);
        standby.conf("recovery_target_name = 'here'\nrecovery_target_action = pause");
        standby.start();
        standby.wait_for_pause(60);
        standby.promote();
        standby.sql("CHECKPOINT");
        let objection = objection(&standby, &full).await;
        let left = history(&mut connect(&standby, Mode::Replication).await, Timeline(2)).await;
        let left = left.end_of(Timeline(1)).unwrap().unwrap();
        let timeline = Timeline(1);
        assert_eq!(objection, Some(NativeRefusal::SummaryBeyond { timeline, left }));
    });
}

on_each_version!(asking_needs_no_more_than_a_backup: 17 postgres_17, 18 postgres_18);

fn asking_needs_no_more_than_a_backup(version: u32) {
    let cluster = summarizing(version);
    cluster.sql("CREATE ROLE keeper LOGIN REPLICATION");
    block_on(async {
        let mut client = connect(&cluster, Mode::Replication).await;
        let full = take(&mut client, false).await.unwrap();
        let history = history(&mut client, full.timeline).await;
        let ranges = ranges(&mut client, &full).await;
        let environment = Environment::new(&[], None, None);
        let info =
            format!("{} dbname=postgres", cluster.conninfo().replace("=postgres", "=keeper"));
        let info = ConnInfo::parse_in(&info, &environment).unwrap();
        let mut client = Client::connect(&info, Mode::Sql).await.unwrap();
        assert_eq!(check(&mut client, &history, &ranges).await.unwrap(), None);
        assert!(fs::exists(cluster.pgdata().join("pg_wal/summaries")).unwrap());
    });
}
