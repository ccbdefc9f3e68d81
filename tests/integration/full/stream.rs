//! A stream into a repository on a disk that is full.

use std::{fs, thread::sleep, time::Duration};

use rustix::process::Signal;

use super::small::{Room, SmallDisk};
use crate::support::{Cluster, Pgkeep, Writes, objects::objects, wait_until};

#[test]
fn a_commit_waits_for_room_and_none_is_lost() {
    let mut cluster = Cluster::builder(17).wal_segsize(1).start();
    let pgkeep = Pgkeep::archiving(&cluster);
    pgkeep.ok(["backup"]);
    let Some(disk) = SmallDisk::over(&pgkeep.repository()) else { return };
    let stream = pgkeep.spawn(["stream"]);
    cluster.sql("ALTER SYSTEM SET synchronous_standby_names = 'pgkeep'");
    cluster.reload();
    let writes = Writes::start(&cluster, "rows");
    let mut last = 0;
    let goes_on =
        |last: u64| wait_until("rows are acknowledged", 60, || writes.acknowledged() > last + 50);
    for room in [
        Room::Pages(0),
        Room::Pages(1),
        Room::Pages(30),
        Room::Files(0),
        Room::Files(1),
        Room::Files(7),
    ] {
        goes_on(last);
        disk.leave(room);
        wait_until("the disk is full", 120, || {
            last = writes.acknowledged();
            sleep(Duration::from_secs(2));
            writes.acknowledged() == last
        });
        disk.make_room();
    }
    goes_on(last);
    cluster.kill9();
    let acknowledged = writes.stop();
    fs::remove_dir_all(cluster.pgdata()).expect("lose the server");
    stream.signal(Signal::KILL);
    let output = stream.wait();
    assert!(output.stderr.contains("No space left on device"), "{output}");
    assert!(output.stderr.contains("trying again"), "{output}");
    let restored = pgkeep.restored(17, "restored", &[]);
    let rows: u64 = restored.sql("SELECT count(*) FROM rows").parse().expect("a number");
    assert!(
        (acknowledged..=acknowledged + 1).contains(&rows),
        "{rows}, {acknowledged} acknowledged"
    );
}

/// One whose disk is full answers all the while. It holds up the other for as long as that is patient, but not for ever
/// anew.
#[test]
fn a_full_repository_does_not_keep_another_from_its_wal() {
    let cluster = Cluster::builder(17).wal_segsize(1).start();
    let pgkeep = Pgkeep::new(&cluster);
    pgkeep.add_repository("second");
    pgkeep.init();
    pgkeep.archive(&cluster);
    cluster.make_table("t", 10);
    pgkeep.ok(["backup"]);
    cluster.sql("ALTER SYSTEM SET archive_command = '/bin/false'");
    cluster.reload();
    let Some(disk) = SmallDisk::over(&pgkeep.repository_of("second")) else { return };
    let stream = pgkeep.spawn(["stream"]);
    let has_all = "SELECT count(*) FROM pg_stat_replication WHERE application_name = 'pgkeep' AND \
                   flush_lsn >= pg_current_wal_flush_lsn()";
    wait_until("both have all", 60, || cluster.sql(has_all) == "1");
    disk.leave(Room::Pages(0));
    let closed: Vec<String> = (0..30)
        .map(|_| {
            cluster.insert("t", 1000);
            cluster.switch_wal()
        })
        .collect();
    let archived = |name: &str| {
        let objects = objects(&pgkeep.repository_of(name)).into_iter();
        objects.filter(|object| closed.iter().any(|c| object.name.ends_with(c))).count()
    };
    wait_until("the first one has them", 60, || archived("main") == closed.len());
    assert!(archived("second") < closed.len());
    assert_eq!(cluster.sql(has_all), "0", "the second one hasn't");
    disk.make_room();
    wait_until("the second one has them as well", 120, || cluster.sql(has_all) == "1");
    let last = cluster.digest("t");
    stream.signal(Signal::TERM);
    let output = stream.wait();
    assert_eq!(output.code, 0, "{output}");
    assert!(output.stderr.contains("No space left on device"), "{output}");
    assert_eq!(pgkeep.restored(17, "second", &["--repo", "second"]).digest("t"), last);
}
