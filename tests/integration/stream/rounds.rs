//! Losing the server again and again, while the stream and the repository fail as well.
//!
//! Each round a client commits rows as fast as it can, the stream is killed and started again, the
//! repository goes away and comes back; then the server and its disk are lost at a random moment. What
//! is restored from the repository alone has every row that was acknowledged, and is the server of
//! the next round. `PGKEEP_TEST_ROUNDS` says how many rounds there are.

use std::{
    fs,
    path::Path,
    thread::sleep,
    time::{Duration, Instant},
};

use rustix::process::Signal;

use super::Site;
use crate::support::{
    Cluster, Pgkeep, Writes, objects::objects, pgkeep::Running, places::on_s3, random::Random,
    scratch::own, versions,
};

/// How many rounds there are where nobody says so.
const ROUNDS: u64 = 6;

#[test]
fn no_acknowledged_row_is_lost_whenever_the_server_is() {
    let rounds = match std::env::var("PGKEEP_TEST_ROUNDS") {
        Ok(rounds) => rounds.parse().expect("PGKEEP_TEST_ROUNDS is a number"),
        Err(_) => ROUNDS,
    };
    let version = *versions().last().expect("a version");
    let mut random = Random::of_this_run();
    let mut site = Site::archiving(Cluster::builder(version).wal_segsize(1).start());
    site.pgkeep.ok(["backup"]);
    site.cluster.sql("ALTER SYSTEM SET synchronous_standby_names = 'pgkeep'");
    let (mut killed, mut away, mut rows) = (0, 0, 0);
    for round in 0..rounds {
        let lost = Round { number: round, random: &mut random, site: &mut site }.live();
        killed += lost.killed;
        away += lost.away;
        rows += lost.acknowledged;
        site = restore(site, version, round);
        let there = site.cluster.sql(&format!("SELECT count(*) FROM rows_{round}"));
        let there: u64 = there.parse().expect("a number");
        let acknowledged = lost.acknowledged;
        assert!(
            (acknowledged..=acknowledged + 1).contains(&there),
            "round {round}: {there} rows, {acknowledged} were acknowledged"
        );
    }
    eprintln!(
        "{rounds} rounds: {rows} rows acknowledged, none lost; the stream was killed {killed} times, the \
         repository went away {away} times"
    );
    assert!(rows > rounds, "{rows} rows");
}

/// What became of a round.
#[derive(Default)]
struct Lost {
    acknowledged: u64,
    killed: u64,
    away: u64,
}

struct Round<'a> {
    number: u64,
    random: &'a mut Random,
    site: &'a mut Site,
}

impl Round<'_> {
    fn live(&mut self) -> Lost {
        let mut lost = Lost::default();
        let mut stream = self.site.pgkeep.spawn(["stream"]);
        self.site.synchronous();
        let writes = Writes::start(&self.site.cluster, &format!("rows_{}", self.number));
        let end = Instant::now() + Duration::from_millis(300 + self.random.below(1500));
        while Instant::now() < end {
            self.pause(150);
            match self.random.below(4) {
                0 => {
                    stream.signal(Signal::KILL);
                    stream.wait();
                    lost.killed += 1;
                    self.pause(100);
                    stream = self.site.pgkeep.spawn(["stream"]);
                }
                // A bucket doesn't go away by renaming a folder.
                1 if !on_s3() => {
                    lost.away += 1;
                    self.without_repository();
                }
                2 => drop(self.site.cluster.try_sql("SELECT pg_switch_wal()")),
                _ => {}
            }
        }
        // The server first: what it acknowledges from here on doesn't count.
        self.site.cluster.kill9();
        lost.acknowledged = writes.stop();
        end_stream(stream, self.random.below(2) == 0);
        lost
    }

    fn without_repository(&mut self) {
        let root = self.site.pgkeep.repository();
        let away = root.with_extension("away");
        fs::rename(&root, &away).expect("take the repository away");
        let is_mount_point = self.random.below(2) == 0;
        if is_mount_point {
            fs::create_dir(&root).expect("make the mount point");
            own(&root);
        }
        self.pause(200);
        if is_mount_point {
            assert_eq!(objects(&root), [], "stored where no repository is");
            fs::remove_dir_all(&root).expect("remove the mount point");
        }
        fs::rename(&away, &root).expect("bring it back");
    }

    fn pause(&mut self, most: u64) {
        sleep(Duration::from_millis(self.random.below(most)));
    }
}

fn end_stream(stream: Running, at_once: bool) {
    if at_once {
        stream.signal(Signal::KILL);
    } else {
        stream.signal(Signal::TERM);
    }
    let output = stream.wait();
    // One that was started just now may not even have looked at signals yet.
    let unbegun = output.code == -15 && output.stderr.is_empty();
    assert!(at_once || output.code == 0 || unbegun, "{output}");
}

/// Loses the server and its files, restores, and goes on with that.
fn restore(site: Site, version: u32, round: u64) -> Site {
    let Site { cluster, pgkeep } = site;
    fs::remove_dir_all(cluster.pgdata()).expect("lose the server");
    let place = pgkeep.scratch().path().join(format!("round-{round}"));
    let path: &Path = &place;
    pgkeep.ok(["restore", "--pgdata", &path.to_string_lossy()]);
    let mut restored = Cluster::at(&place, version);
    pgkeep.replace_cluster(&cluster, &restored);
    restored.start();
    restored.wait_for_primary(60);
    if round % 4 == 3 {
        backup(&pgkeep);
    }
    Site { cluster: restored, pgkeep }
}

/// A commit of the backup's own would wait for the stream, so there is one meanwhile.
fn backup(pgkeep: &Pgkeep) {
    let stream = pgkeep.spawn(["stream"]);
    pgkeep.ok(["backup"]);
    end_stream(stream, false);
}
