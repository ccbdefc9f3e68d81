//! Replication commands and base backups as they come from real servers.

use std::{
    fs,
    os::unix::fs::FileExt,
    time::{Duration, Instant},
};

use pgkeep::postgres::{
    Timeline,
    client::{Client, ConnInfo, Environment, Mode, PgError},
    replication::{
        self, BaseBackup, BaseBackupEnd, BaseBackupEvent, BaseBackupOptions, TablespaceRow,
    },
};

use crate::support::{Cluster, on_each_version};

fn block_on<T>(work: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime.expect("a runtime").block_on(work)
}

async fn connect(cluster: &Cluster) -> Client {
    let environment = Environment::new(&[], None, None);
    let info = ConnInfo::parse_in(&cluster.conninfo(), &environment).expect("a conninfo");
    Client::connect(&info, Mode::Replication).await.unwrap_or_else(|e| panic!("{e}"))
}

fn options() -> BaseBackupOptions {
    BaseBackupOptions {
        label: "it's a test".to_owned(),
        fast_checkpoint: true,
        max_rate: None,
        wait_for_archive: false,
        verify_checksums: true,
        incremental: false,
    }
}

/// What came of a base backup: archives with their sizes, warnings, the end.
#[derive(Debug)]
struct Taken {
    archives: Vec<(String, String, u64)>,
    label: String,
    progress: u64,
    warnings: Vec<String>,
    end: BaseBackupEnd,
}

async fn take(backup: &mut BaseBackup<'_>) -> Result<Taken, PgError> {
    let (mut archives, mut warnings) = (Vec::<(String, String, u64)>::new(), Vec::new());
    let (mut label, mut progress) = (String::new(), 0);
    loop {
        match backup.next().await? {
            BaseBackupEvent::Archive { name, location } => archives.push((name, location, 0)),
            BaseBackupEvent::Data(data) => {
                let archive = archives.last_mut().expect("an archive before its data");
                if archive.0 == "base.tar" && archive.2 < 1024 {
                    label.push_str(&String::from_utf8_lossy(&data));
                }
                archive.2 += data.len() as u64;
            }
            BaseBackupEvent::Progress(bytes) => {
                assert!(bytes >= progress, "progress goes back");
                progress = bytes;
            }
            BaseBackupEvent::Notice(notice) => warnings.push(notice.message),
            BaseBackupEvent::End(end) => {
                return Ok(Taken { archives, label, progress, warnings, end });
            }
        }
    }
}

on_each_version!(small_commands);

fn small_commands(version: u32) {
    let cluster = Cluster::builder(version).wal_segsize(1).start();
    block_on(async {
        let mut client = connect(&cluster).await;
        assert_eq!(client.server_version().major(), version);
        let identity = replication::identify_system(&mut client).await.unwrap();
        assert_eq!(identity.system_identifier, cluster.system_identifier());
        assert_eq!(identity.timeline, Timeline(1));
        assert!(identity.position.is_valid());
        assert_eq!(replication::show(&mut client, "wal_segment_size").await.unwrap(), "1MB");
        // Timeline 1 has no history. The rows are announced, and then comes an error instead.
        let error = replication::timeline_history(&mut client, Timeline(1)).await.unwrap_err();
        assert_eq!(error.code(), Some("58P01"));
        let error = client.query("SELECT 1").await.unwrap_err();
        assert!(error.code().is_some(), "{error}");
        assert!(replication::show(&mut client, "no_such_setting").await.is_err());
        replication::identify_system(&mut client).await.unwrap();
        client.close().await;
    });
    let standby = Cluster::standby_of(&cluster);
    standby.promote();
    block_on(async {
        let mut client = connect(&standby).await;
        let identity = replication::identify_system(&mut client).await.unwrap();
        assert_eq!(identity.timeline, Timeline(2));
        let history = replication::timeline_history(&mut client, Timeline(2)).await.unwrap();
        let on_disk = fs::read(standby.pgdata().join("pg_wal/00000002.history")).unwrap();
        assert_eq!(history, on_disk);
    });
}

on_each_version!(a_base_backup_arrives_whole);

fn a_base_backup_arrives_whole(version: u32) {
    let cluster = Cluster::builder(version).start();
    let place = cluster.socket_dir().join("a space");
    crate::support::install::run(crate::support::install::command("mkdir").arg(&place));
    cluster.sql(&format!("CREATE TABLESPACE aside LOCATION '{}'", place.display()));
    cluster.sql("CREATE TABLE t TABLESPACE aside AS SELECT generate_series(1, 50000) i");
    let oid: u32 =
        cluster.sql("SELECT oid FROM pg_tablespace WHERE spcname = 'aside'").parse().unwrap();
    block_on(async {
        let mut client = connect(&cluster).await;
        let mut backup = BaseBackup::start(&mut client, &options()).await.unwrap();
        let start = (backup.start_lsn(), backup.timeline());
        let [aside, main] = backup.tablespaces() else {
            panic!("{:?}", backup.tablespaces());
        };
        assert_eq!(aside.oid, Some(oid));
        assert_eq!(aside.location.as_deref(), place.to_str());
        assert!(aside.size.unwrap() > 1 << 20, "sizes are in bytes: {aside:?}");
        assert!(matches!(main, TablespaceRow { oid: None, location: None, size: Some(_) }));
        let sizes: u64 = backup.tablespaces().iter().filter_map(|t| t.size).sum();
        // The socket is left unread for a while; the server waits.
        tokio::time::sleep(Duration::from_millis(300)).await;
        let taken = take(&mut backup).await.unwrap();
        assert!(backup.next().await.is_err(), "nothing follows the end");
        let mut names: Vec<&str> = taken.archives.iter().map(|a| a.0.as_str()).collect();
        names.sort();
        assert_eq!(names, [format!("{oid}.tar").as_str(), "base.tar"]);
        for (name, location, size) in &taken.archives {
            assert_eq!(size % 512, 0, "{name} is a tar archive");
            assert_eq!(name == "base.tar", location.is_empty());
        }
        assert!(taken.label.starts_with("backup_label\0"));
        assert!(taken.label.contains("LABEL: it's a test\n"));
        assert!(taken.progress > sizes / 2, "{} of {sizes}", taken.progress);
        assert_eq!(start.1, taken.end.stop_timeline);
        assert!(start.0 < taken.end.stop_lsn);
        assert!(!taken.end.checksum_failures);
        assert!(taken.warnings.is_empty(), "{:?}", taken.warnings);
        // The session goes on.
        let identity = replication::identify_system(&mut client).await.unwrap();
        assert!(identity.position >= taken.end.stop_lsn);
    });
}

on_each_version!(a_damaged_page_is_told_and_does_not_fail_the_backup);

fn a_damaged_page_is_told_and_does_not_fail_the_backup(version: u32) {
    let mut cluster = Cluster::builder(version).checksums(true).start();
    cluster.sql("CREATE TABLE t AS SELECT generate_series(1, 5000) i");
    cluster.sql("CHECKPOINT");
    let path = cluster.pgdata().join(cluster.sql("SELECT pg_relation_filepath('t')"));
    cluster.stop(crate::support::Stop::Fast);
    let file = fs::File::options().write(true).open(&path).unwrap();
    file.write_all_at(b"damage", 8192 + 4000).unwrap();
    cluster.start();
    block_on(async {
        let mut client = connect(&cluster).await;
        let mut backup = BaseBackup::start(&mut client, &options()).await.unwrap();
        let taken = take(&mut backup).await.unwrap();
        assert!(taken.end.checksum_failures);
        assert!(taken.end.stop_lsn > backup.start_lsn());
        assert!(taken.warnings.iter().any(|w| w.contains("checksum")), "{:?}", taken.warnings);
        // The data came whole: it is as much as with the check turned off.
        let unchecked = BaseBackupOptions { verify_checksums: false, ..options() };
        let mut client = connect(&cluster).await;
        let mut backup = BaseBackup::start(&mut client, &unchecked).await.unwrap();
        let again = take(&mut backup).await.unwrap();
        assert!(!again.end.checksum_failures);
        assert_eq!(taken.archives, again.archives);
    });
}

#[test]
fn a_base_backup_that_breaks_is_an_error() {
    let cluster = Cluster::builder(15).start();
    cluster.sql("CREATE TABLE t AS SELECT repeat('x', 500) FROM generate_series(1, 100000)");
    block_on(async {
        let mut client = connect(&cluster).await;
        let mut backup = BaseBackup::start(&mut client, &options()).await.unwrap();
        while !matches!(backup.next().await.unwrap(), BaseBackupEvent::Data(_)) {}
        cluster.sql(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE backend_type = 'walsender'",
        );
        let error = loop {
            match backup.next().await {
                Ok(BaseBackupEvent::End(end)) => panic!("it was terminated: {end:?}"),
                Ok(_) => {}
                Err(error) => break error,
            }
        };
        assert!(matches!(error.code(), Some("57P01") | None), "{error}");

        // Dropped half way, the client isn't good for anything else, and says so.
        let mut client = connect(&cluster).await;
        let mut backup = BaseBackup::start(&mut client, &options()).await.unwrap();
        backup.next().await.unwrap();
        drop(backup);
        assert!(replication::identify_system(&mut client).await.is_err());
        drop(client);
        let running = "SELECT count(*) FROM pg_stat_progress_basebackup";
        crate::support::wait_until("the server gives up", 10, || cluster.sql(running) == "0");

        // What is wrong from the start is told by the server.
        let mut client = connect(&cluster).await;
        let wrong = BaseBackupOptions { max_rate: Some(1), ..options() };
        let error = BaseBackup::start(&mut client, &wrong).await.map(drop).unwrap_err();
        assert_eq!(error.code(), Some("22003"), "{error}");
        replication::identify_system(&mut client).await.unwrap();
    });
}

#[test]
fn the_rate_is_limited() {
    let cluster = Cluster::builder(15).start();
    block_on(async {
        let mut client = connect(&cluster).await;
        let limited = BaseBackupOptions { max_rate: Some(20_000), ..options() };
        let mut backup = BaseBackup::start(&mut client, &limited).await.unwrap();
        let begun = Instant::now();
        let taken = take(&mut backup).await.unwrap();
        let bytes: u64 = taken.archives.iter().map(|a| a.2).sum();
        let least = bytes as f64 / 20_480_000.0 * 0.7;
        assert!(begun.elapsed().as_secs_f64() > least, "{bytes} in {:?}", begun.elapsed());
    });
}
