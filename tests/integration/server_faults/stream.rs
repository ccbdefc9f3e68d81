//! `stream`: it goes on by itself, and reports nothing that isn't there.

use std::{path::Path, sync::Arc, thread::sleep};

use super::*;
use crate::support::{
    objects::{ObjectKind, objects},
    pgkeep::start,
};

/// The size of the clusters' segments.
const SEGMENT: u64 = 1 << 20;

/// How long a stream may take to have all, in seconds: a pause of ten between two attempts is usual.
const SECONDS: u64 = 90;

struct Stream {
    sites: Vec<Site>,
    /// What was reported and wasn't there.
    lies: Vec<Arc<Mutex<Vec<String>>>>,
}

impl Stream {
    fn index(&self, site: &Site) -> usize {
        let here = |other: &Site| other.config == site.config;
        self.sites.iter().position(here).expect("a site")
    }
}

pub fn site() -> Site {
    let cluster = Cluster::builder(15).wal_segsize(1).conf("autovacuum = off").start();
    let pgkeep = Pgkeep::archiving(&cluster);
    pgkeep.ok(["check"]);
    // What isn't archived stays where it is.
    cluster.conf("archive_command = '/bin/false'");
    cluster.reload();
    cluster.sql("CREATE TABLE rows (n bigint, text text)");
    Site::new(cluster, pgkeep)
}

/// Some rows, and the segment with them closed.
pub fn fill_a_segment(cluster: &Cluster) -> String {
    cluster.sql("INSERT INTO rows SELECT n, md5(n::text) FROM generate_series(1, 300) AS n");
    cluster.switch_wal()
}

/// Whether a segment is in the repository, whole.
pub fn is_stored(site: &Site, segment: &str) -> bool {
    let objects = objects(&site.pgkeep.repository());
    objects.iter().any(|o| o.kind == ObjectKind::Segment && o.name.ends_with(segment))
}

/// Everything before `position` of its segment is in this folder of WAL, and the segment before it.
fn is_durable(folder: &Path, position: u64) -> bool {
    let number = (position - 1) / SEGMENT;
    let within = position - number * SEGMENT;
    let name = |number: u64| format!("00000001{:08X}{:08X}", number / 4096, number % 4096);
    let files: Vec<String> = fs::read_dir(folder)
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|entry| entry.file_name().into_string().ok())
        .collect();
    if files.contains(&name(number)) {
        return true;
    }
    let prefix = format!("{}.part.", name(number));
    let mut parts: Vec<(u64, u64)> = files
        .iter()
        .filter_map(|file| file.strip_prefix(&prefix))
        .map(|rest| {
            let hex = |text: &str| u64::from_str_radix(text, 16).expect("an offset");
            (hex(&rest[..8]), hex(&rest[9..17]))
        })
        .collect();
    parts.sort_unstable();
    let covered = parts.iter().fold(0, |to, part| if part.0 <= to { to.max(part.1) } else { to });
    covered >= within
}

/// Has a list get each position that is reported and isn't durable by then.
fn listen(site: &Site, lies: &Arc<Mutex<Vec<String>>>) {
    let lies = lies.clone();
    let wal = site.pgkeep.repository().join("clusters/main/wal");
    let mut first = None;
    site.wire.on_report(move |position| {
        let system = fs::read_dir(&wal).expect("the WAL").flatten().next().expect("a system");
        // Where a stream begins at a segment's first byte nothing was there before.
        let floor = *first.get_or_insert(if position % SEGMENT == 0 { position } else { 1 });
        if position <= floor {
            return;
        }
        // A part goes when the segment is there, which may be between two looks.
        let look = || is_durable(&system.path().join("00000001"), position);
        if !(0..5).any(|_| {
            look() || {
                sleep(Duration::from_millis(10));
                false
            }
        }) {
            lies.lock().unwrap().push(format!("{:X}/{:X}", position >> 32, position as u32));
        }
    });
}

impl Work for Stream {
    fn name(&self) -> &str {
        "stream"
    }

    fn sites(&self) -> &[Site] {
        &self.sites
    }

    fn reset(&self, site: &Site) {
        self.lies[self.index(site)].lock().unwrap().clear();
        let drop = "SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots";
        crate::support::wait_until("the slot goes", 20, || site.cluster.try_sql(drop).is_ok());
        site.cluster.sql("CHECKPOINT");
        site.cluster.switch_wal();
        for object in objects(&site.pgkeep.repository()) {
            if object.name.contains("/wal/") {
                fs::remove_file(object.path).expect("remove an object");
            }
        }
    }

    fn run(&self, site: &Site, fault: Option<Fault>) -> Output {
        listen(site, &self.lies[self.index(site)]);
        // It ends with this process's handle of it, so without a wrapper that would leave it behind.
        let mut stream = start(site.program(fault, &["stream"]));
        let began = Instant::now();
        let mut segments = vec![fill_a_segment(&site.cluster)];
        sleep(Duration::from_millis(300));
        segments.extend([fill_a_segment(&site.cluster), fill_a_segment(&site.cluster)]);
        let end = Instant::now() + Duration::from_secs(SECONDS);
        let are_stored = || segments.iter().all(|segment| is_stored(site, segment));
        while !are_stored() && stream.runs() {
            if Instant::now() > end {
                panic!("{segments:?} don't come: {}", stream.kill_after(Duration::ZERO));
            }
            // A server that never says anything again is waited for for ever.
            if began.elapsed() > Duration::from_secs(5) {
                site.wire.end_silence();
            }
            sleep(Duration::from_millis(20));
        }
        stream.signal(rustix::process::Signal::TERM);
        let output = stream.wait();
        for segment in segments.iter().filter(|_| output.code == 0) {
            let path = site.pgkeep.scratch().path().join("segment");
            let got = site.pgkeep.run(["archive-get", segment, path.to_str().expect("a path")]);
            assert_eq!(got.code, 0, "{segment}: {got}");
            let came = fs::read(&path).expect("read");
            let original = fs::read(site.cluster.pgdata().join("pg_wal").join(segment));
            assert!(came == original.expect("read"), "{segment} has other bytes");
        }
        output
    }

    /// The setting is asked for now and then, and WAL comes in pieces as it is written.
    fn is_certain(&self, place: &Place) -> bool {
        let most = match &*place.what {
            "dw" => 3,
            "dk" => 1,
            _ => usize::MAX,
        };
        place.link == Link::Replication && place.before < most
    }

    fn check(&self, site: &Site, case: &Case, output: &Output) {
        let lies = self.lies[self.index(site)].lock().unwrap().clone();
        assert!(lies.is_empty(), "{case}: reported and not there: {lies:?}: {output}");
        if output.code == 0 {
            return;
        }
        // What waiting doesn't mend ends it: another system.
        let may_end =
            matches!(case.fault, Fault::Field(..)) && case.place.asked == "IDENTIFY_SYSTEM";
        assert!(may_end && [7, 9].contains(&output.code), "{case}: {output}");
        self.reset(site);
        let again = self.run(site, None);
        assert_eq!(again.code, 0, "{case}: the second run: {again}");
    }
}

#[test]
fn a_stream() {
    let lies = vec![Arc::default(), Arc::default()];
    matrix(&Stream { sites: vec![site(), site()], lies }, 30, (30, 700));
}
