//! What is stored and fetched before it is asked for, what is stored although nobody asks any more, and that nothing
//! hangs on any of it.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    thread::sleep,
    time::Duration,
};

use pgkeep::{
    archive::{Stored, data_directory::DataDirectory, proven::Proven, state::Identity},
    config::{ClusterSettings, KeySource, Location, RepositorySettings, RetentionSettings},
    postgres::{SegmentName, SegmentSize, WalFile},
    repo::wal_floor::Floors,
    storage::{ObjectName, s3::S3Settings},
};
use rustix::process::{Pid, Signal, kill_process};

use super::{Keeper, cluster_with_segments, run, system, wal};
use crate::support::{
    Cluster, Pgkeep,
    objects::{ObjectKind, flip_bit, objects_of},
    on_each_version,
    places::skipped_on_s3,
    random::Random,
    scratch::{self, Scratch},
    wait_until,
    wal::data_directory,
};

/// Marks a file of `pg_wal` as one that waits to be archived.
fn mark_ready(cluster: &Cluster, segment: &str) {
    scratch::write(&wal(cluster, &format!("archive_status/{segment}.ready")), "");
}

#[test]
fn what_waits_is_stored_with_the_file_that_is_offered() {
    if skipped_on_s3("folders are moved") {
        return;
    }
    let (cluster, segments) = cluster_with_segments(15, 6);
    let keeper = Keeper { ahead: true, ..Keeper::new(&cluster, &["main", "second"]) };
    segments[..5].iter().for_each(|segment| mark_ready(&cluster, segment));
    let _ = fs::remove_file(wal(&cluster, &format!("archive_status/{}.ready", segments[5])));
    assert_eq!(keeper.pushed(&cluster, &segments[0]), [Stored::New, Stored::New]);
    for segment in &segments[1..5] {
        assert_eq!(keeper.served(segment), fs::read(wal(&cluster, segment)).unwrap());
    }
    assert!(keeper.get(&segments[5]).unwrap() == pgkeep::archive::Got::Absent, "it isn't ready");

    // Their pushes have nothing to do any more, not even to ask.
    let (place, aside) = (keeper.places.objects("second"), keeper.scratch.path().join("aside"));
    fs::rename(&place, &aside).unwrap();
    assert_eq!(keeper.pushed(&cluster, &segments[1]), [Stored::Already, Stored::Already]);
    // A file that was changed since is another one, whatever its times say.
    let third = wal(&cluster, &segments[2]);
    let modified = fs::metadata(&third).unwrap().modified().unwrap();
    let content = fs::read(&third).unwrap();
    sleep(Duration::from_millis(20));
    fs::write(&third, &content).unwrap();
    fs::File::open(&third).unwrap().set_modified(modified).unwrap();
    assert!(keeper.push(&third).is_err(), "it has to be stored, and one repository is away");
    fs::rename(&aside, &place).unwrap();
    assert_eq!(keeper.pushed(&cluster, &segments[2]), [Stored::Already, Stored::Already]);

    // A note is about the repositories that it names.
    let notes = keeper.scratch.path().join("state/proven");
    let of_fourth = file_below(&notes, &segments[3]);
    let text = fs::read_to_string(&of_fourth).unwrap();
    fs::write(&of_fourth, text.replace("second ", "third ")).unwrap();
    fs::remove_file(keeper.object("second", &cluster, &segments[3])).unwrap();
    assert_eq!(keeper.pushed(&cluster, &segments[3]), [Stored::Already, Stored::New]);
    // And of this boot of the system.
    let of_fifth = file_below(&notes, &segments[4]);
    let text = fs::read_to_string(&of_fifth).unwrap();
    fs::write(&of_fifth, text.replace("\"boot\":\"", "\"boot\":\"0")).unwrap();
    fs::remove_file(keeper.object("main", &cluster, &segments[4])).unwrap();
    assert_eq!(keeper.pushed(&cluster, &segments[4]), [Stored::New, Stored::Already]);
}

/// PostgreSQL offers one file again and again while it fails, so the others' pushes never come.
#[test]
fn a_repository_that_is_reached_gets_what_waits_while_another_one_is_not() {
    if skipped_on_s3("folders are moved") {
        return;
    }
    let (cluster, segments) = cluster_with_segments(15, 5);
    let keeper = Keeper::new(&cluster, &["main", "second"]);
    segments.iter().for_each(|segment| mark_ready(&cluster, segment));
    let has = |name: &str, segment: &str| keeper.object(name, &cluster, segment).exists();

    keeper.pushed(&cluster, &segments[0]);
    assert!(!has("main", &segments[1]), "without a state-dir nothing is stored ahead");

    let (place, aside) = (keeper.places.objects("second"), keeper.scratch.path().join("aside"));
    fs::rename(&place, &aside).unwrap();
    assert!(keeper.push(&wal(&cluster, &segments[1])).is_err());
    for segment in &segments[1..] {
        assert!(has("main", segment), "{segment} is in the repository that can be reached");
    }
    // One of them may get lost meanwhile, and is stored again with the next try; what is there stays.
    fs::remove_file(keeper.object("main", &cluster, &segments[3])).unwrap();
    let written =
        |segment: &str| fs::metadata(keeper.object("main", &cluster, segment)).unwrap().modified();
    let before = written(&segments[4]).unwrap();
    assert!(keeper.push(&wal(&cluster, &segments[1])).is_err());
    assert!(has("main", &segments[3]));
    assert_eq!(written(&segments[4]).unwrap(), before);
    fs::rename(&aside, &place).unwrap();
    for segment in &segments[1..] {
        assert_eq!(keeper.pushed(&cluster, segment), [Stored::Already, Stored::New]);
    }

    // So it does while another one can't be opened, for whatever reason.
    let more: Vec<String> = (0..3).map(|_| cluster.switch_wal()).collect();
    more.iter().for_each(|segment| mark_ready(&cluster, segment));
    let (file, other) = (place.join("repo.json"), keeper.scratch.path().join("other"));
    fs::copy(&file, &other).unwrap();
    fs::write(&file, "{").unwrap();
    assert!(keeper.push(&wal(&cluster, &more[0])).is_err());
    assert!(more.iter().all(|segment| has("main", segment)));
    fs::copy(&other, &file).unwrap();
}

fn file_below(folder: &Path, name: &str) -> PathBuf {
    let folders = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    folders.map(|folder| folder.join(name)).find(|path| path.exists()).expect("a note")
}

/// What is durable in one place is not known to be in another of the same URL.
#[test]
fn a_note_says_at_which_endpoint_and_in_which_region_a_bucket_is() {
    let scratch = Scratch::new("notes");
    let data = data_directory(&scratch.path().join("data"));
    let segment = data.join("pg_wal/000000010000000000000001");
    fs::write(&segment, "content").expect("write");
    let directory = DataDirectory::read(&data).expect("a data directory");
    let cluster = ClusterSettings::named("main");
    let proven = Proven::of(&scratch.path().join("state"), &directory, &cluster);
    let file: WalFile = "000000010000000000000001".parse().expect("a segment");
    let at = |endpoint: Option<&str>, region: Option<&str>| RepositorySettings {
        name: "main".to_owned(),
        location: Location::Bucket(Box::new(S3Settings {
            endpoint: endpoint.map(str::to_owned),
            region: region.map(str::to_owned),
            ..S3Settings::new("bucket", "wal")
        })),
        key: KeySource::Unencrypted,
        compression_level: 1,
        retention: RetentionSettings::NONE,
    };
    let here = at(Some("https://one.example"), Some("a"));
    let identity = Identity::of(&segment).expect("it is there");
    proven.note(file, identity, &[&here]);
    assert!(proven.has(&segment, file, &[&here]));
    for there in [
        at(Some("https://two.example"), Some("a")),
        at(Some("https://one.example"), Some("b")),
        at(None, None),
    ] {
        assert!(!proven.has(&segment, file, &[&there]), "{there:?}");
    }
}

#[test]
fn what_is_missing_before_a_segment_is_stored_with_it() {
    let (cluster, segments) = cluster_with_segments(15, 6);
    let keeper = Keeper::new(&cluster, &["main"]);
    // Archiving begins with the second one: what lies before it isn't missing.
    keeper.pushed(&cluster, &segments[1]);
    assert!(keeper.get(&segments[0]).unwrap() == pgkeep::archive::Got::Absent);
    keeper.pushed(&cluster, &segments[5]);
    for segment in &segments[2..] {
        assert_eq!(keeper.served(segment), fs::read(wal(&cluster, segment)).unwrap());
    }
    assert!(keeper.get(&segments[0]).unwrap() == pgkeep::archive::Got::Absent);
}

/// The hole is older than what the server still has, so its edge isn't found from behind.
#[test]
fn what_is_missing_behind_a_hole_is_stored() {
    let (cluster, segments) = cluster_with_segments(15, 6);
    let keeper = Keeper::new(&cluster, &["main"]);
    let aside = keeper.scratch.path().join("aside");
    fs::rename(wal(&cluster, &segments[1]), &aside).unwrap();
    let stored = || {
        let store = keeper.store("main", &cluster);
        let has = |s: &String| run(store.has(WalFile::Segment(s.parse().unwrap()))).unwrap();
        segments.iter().map(has).collect::<Vec<_>>()
    };
    // Where nothing is earlier, archiving begins here.
    keeper.pushed(&cluster, &segments[3]);
    assert_eq!(stored(), [false, false, false, true, false, false]);
    keeper.pushed(&cluster, &segments[0]);
    keeper.pushed(&cluster, &segments[5]);
    assert_eq!(stored(), [true, false, false, true, true, true]);
    keeper.pushed(&cluster, &segments[3]);
    assert_eq!(stored(), [true, false, true, true, true, true]);
    fs::rename(&aside, wal(&cluster, &segments[1])).unwrap();
}

/// What an expiry has removed isn't missing, although `pg_wal` may have it still.
#[test]
fn what_has_expired_before_a_segment_is_not_stored_again() {
    let (cluster, segments) = cluster_with_segments(15, 5);
    let keeper = Keeper::new(&cluster, &["main"]);
    // WAL of a backup that is kept as a point.
    keeper.pushed(&cluster, &segments[0]);
    let repository = keeper.open(&keeper.repositories[0]);
    let (layout, system) = (keeper.layout(), system(&cluster));
    let fourth: SegmentName = segments[3].parse().unwrap();
    let size = SegmentSize::new(1 << 20).unwrap();
    let floor = size.start_of(fourth.number(size).unwrap());
    let raised = BTreeMap::from([(fourth.timeline, floor)]);
    run(async {
        let mut floors = Floors::read(&repository, &layout, system).await.unwrap();
        floors.write(&repository, &layout, system, &raised).await.unwrap();
    });
    keeper.pushed(&cluster, &segments[3]);
    let stored = |at: usize| {
        run(keeper.store("main", &cluster).has(WalFile::Segment(segments[at].parse().unwrap())))
    };
    for at in [1, 2] {
        assert!(!stored(at).unwrap(), "{} had expired", segments[at]);
    }
    // What is missing behind the floor is stored.
    let object = keeper.object("main", &cluster, &segments[3]);
    let name = object.strip_prefix(keeper.places.objects("main")).expect("below it");
    let name = ObjectName::new(name.to_str().expect("a name")).unwrap();
    run(repository.storage().delete(&name)).unwrap();
    keeper.pushed(&cluster, &segments[4]);
    assert!(stored(3).unwrap() && stored(4).unwrap() && !stored(2).unwrap());

    // Where nobody knows what has expired, it is stored once more, and archiving goes on.
    run(repository.storage().delete(&name)).unwrap();
    let floors = objects_of(&keeper.places.objects("main"), ObjectKind::WalFloor);
    flip_bit(&floors[0].path, 60);
    keeper.pushed(&cluster, &segments[4]);
    assert!((0..5).all(|at| stored(at).unwrap()));
}

/// A server with a table, which archives.
fn archiving(version: u32) -> (Cluster, Pgkeep) {
    let primary = Cluster::builder(version).wal_segsize(1).start();
    let pgkeep = Pgkeep::archiving(&primary);
    pgkeep.ok(["check"]);
    primary.make_table("t", 10);
    (primary, pgkeep)
}

on_each_version!(a_promoted_standby_archives_what_the_primary_took_with_it: 15 postgres_15, 18 postgres_18);

/// The standby's own copies of those segments are marked as done (postgres-facts: `XLogArchiveForceDone`).
fn a_promoted_standby_archives_what_the_primary_took_with_it(version: u32) {
    let (mut primary, pgkeep) = archiving(version);
    pgkeep.ok(["backup"]);
    let standby = Cluster::standby_of(&primary);
    primary.conf("archive_command = '/bin/false'");
    primary.reload();
    for _ in 0..3 {
        primary.insert("t", 500);
        primary.switch_wal();
    }
    let moment = primary.moment("t");
    primary.insert("t", 5);
    standby.catch_up_with(&primary);
    let last = primary.digest("t");
    primary.kill9();
    fs::remove_dir_all(primary.pgdata()).expect("lose the primary");

    pgkeep.replace_cluster(&primary, &standby);
    standby.promote();
    standby.insert("t", 1);
    let end = standby.digest("t");
    let segment = standby.switch_wal();
    wait_until("it archives", 60, || {
        standby.sql("SELECT last_archived_wal FROM pg_stat_archiver") >= segment
    });
    let target = ["--target-time", &moment.time, "--target-action", "promote"];
    assert_eq!(pgkeep.restored(version, "before", &target).digest("t"), moment.digest);
    let old = ["--target-timeline", "1"];
    assert_eq!(pgkeep.restored(version, "old", &old).digest("t"), last);
    assert_eq!(pgkeep.restored(version, "latest", &[]).digest("t"), end);
}

/// The processes of the program that were started with this configuration and have `word` among their arguments.
fn processes(pgkeep: &Pgkeep, word: &str) -> Vec<Pid> {
    let config = pgkeep.config().to_string_lossy().into_owned();
    let is_one = |pid: &i32| {
        let arguments = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        let arguments = String::from_utf8_lossy(&arguments).into_owned();
        let mut words = arguments.split('\0');
        // Not the shell that runs it.
        let is_shell = words.next().is_some_and(|program| program.ends_with("sh"));
        !is_shell && arguments.contains(&config) && words.any(|w| w == word)
    };
    let pids = fs::read_dir("/proc").unwrap().flatten();
    let pids = pids.filter_map(|e| e.file_name().to_str()?.parse::<i32>().ok());
    pids.filter(is_one).filter_map(Pid::from_raw).collect()
}

on_each_version!(pushes_that_are_killed_lose_nothing_and_nothing_stays_stuck: 15 postgres_15, 18 postgres_18);

fn pushes_that_are_killed_lose_nothing_and_nothing_stays_stuck(version: u32) {
    let mut random = Random::of_this_run();
    let (primary, pgkeep) = archiving(version);
    pgkeep.ok(["backup"]);
    for _ in 0..3 {
        // Some wait at a time, so that some are stored ahead. The server begins its archiver again ten seconds
        // after its end (`pgarch.c`, PGARCH_RESTART_INTERVAL).
        for _ in 0..6 {
            primary.insert("t", 200);
            primary.switch_wal();
        }
        wait_until("a push is killed", 60, || {
            let Some(pid) = processes(&pgkeep, "archive-push").pop() else {
                primary.switch_wal();
                return false;
            };
            sleep(Duration::from_millis(random.below(15)));
            kill_process(pid, Signal::KILL).is_ok()
        });
    }
    let end = primary.digest("t");
    // Reading tidies pages up, which is WAL as well. Until the last one is archived there may be a gap before it.
    let last = primary.switch_wal();
    let archived = || primary.sql("SELECT last_archived_wal FROM pg_stat_archiver");
    wait_until("the archiver gets on by itself", 150, || archived() >= last);
    pgkeep.ok(["verify", "--level", "full"]);
    assert_eq!(pgkeep.restored(version, "latest", &[]).digest("t"), end);
}

on_each_version!(recovery_finds_what_was_fetched_ahead_and_survives_its_loss: 15 postgres_15, 18 postgres_18);

fn recovery_finds_what_was_fetched_ahead_and_survives_its_loss(version: u32) {
    let mut random = Random::of_this_run();
    let (primary, pgkeep) = archiving(version);
    let copy = |name: &str| (name.to_owned(), primary.copy_online());
    let copies: Vec<_> = ["undisturbed", "killed", "spoiled"].map(copy).into();
    let mut last = String::new();
    for _ in 0..40 {
        primary.insert("t", 100);
        last = primary.switch_wal();
    }
    let archived = || primary.sql("SELECT last_archived_wal FROM pg_stat_archiver");
    wait_until("everything is archived", 60, || archived() >= last);
    let end = primary.digest("t");
    let fetched = pgkeep.scratch().path().join("state");
    for (name, mut copy) in copies {
        let command = pgkeep.restore_command();
        copy.conf(&format!("archive_mode = off\nrestore_command = '{command} && sleep 0.02'"));
        scratch::write(&copy.pgdata().join("recovery.signal"), "");
        copy.spawn();
        let (mut seen, mut kills, mut spoiled) = (0, 0, 0);
        while copy.try_sql("SELECT pg_is_in_recovery()").as_deref() != Ok("f") {
            assert!(copy.runs(), "{name}: {}", copy.log());
            let there = segments_below(&fetched);
            seen = seen.max(there.len());
            assert!(there.len() <= 17, "{name}: the spool is bounded: {}", there.len());
            match name.as_str() {
                "killed" => {
                    for pid in processes(&pgkeep, "--ahead") {
                        sleep(Duration::from_millis(random.below(30)));
                        kills += u32::from(kill_process(pid, Signal::KILL).is_ok());
                    }
                }
                "spoiled" => {
                    // Not those that may be on their way to the server.
                    for segment in there.iter().skip(4).filter(|s| has_note(s)) {
                        spoiled += u32::from(spoil(segment).is_ok());
                    }
                }
                _ => sleep(Duration::from_millis(5)),
            }
        }
        println!("{name}: up to {seen} segments in the spool, {kills} kills, {spoiled} spoiled");
        assert!(seen > 0 && (name != "killed" || kills > 0) && (name != "spoiled" || spoiled > 0));
        assert_eq!(copy.digest("t"), end, "{name}");
        let segments = fs::read_dir(copy.pgdata().join("pg_wal")).unwrap().flatten();
        let names = segments.filter_map(|entry| entry.file_name().into_string().ok());
        let strangers: Vec<_> =
            names.filter(|n| n.contains("fetch") || n.contains("tmp")).collect();
        assert!(strangers.is_empty(), "{strangers:?}");
        copy.kill9();
        wait_until("nobody fetches any more", 30, || processes(&pgkeep, "--ahead").is_empty());
        if name == "undisturbed" {
            assert!(segments_below(&fetched).is_empty(), "nothing stays behind");
        }
    }
}

/// The segments in a spool below the state's folder, in order.
fn segments_below(state: &Path) -> Vec<PathBuf> {
    let inside = |folder: PathBuf| fs::read_dir(folder).into_iter().flatten().flatten();
    let of_kind = inside(state.to_owned())
        .filter(|entry| entry.file_name().to_string_lossy().starts_with("fetched"));
    let folders = of_kind.flat_map(|entry| inside(entry.path()));
    let is_segment = |path: &PathBuf| path.file_name().is_some_and(|name| name.len() == 24);
    let files = folders.flat_map(|entry| inside(entry.path())).map(|entry| entry.path());
    let mut segments: Vec<_> = files.filter(is_segment).collect();
    segments.sort();
    segments
}

fn has_note(segment: &Path) -> bool {
    segment.with_extension("json").exists()
}

/// Changes a page of it, in place and to the same length: recovery would end there.
fn spoil(segment: &Path) -> std::io::Result<()> {
    use std::os::unix::fs::FileExt;
    fs::OpenOptions::new().write(true).open(segment)?.write_all_at(&[0x55; 64], 8192 + 64)
}
