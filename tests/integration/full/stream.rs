//! A stream into a repository on a disk that is full.

use std::{fs, thread::sleep, time::Duration};

use rustix::process::Signal;

use super::small::{Room, SmallDisk};
use crate::support::{Cluster, Pgkeep, Writes, wait_until};

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
