//! What recovery is given of a segment that isn't whole, and what is made of that.

use std::{fs, os::unix::fs::MetadataExt, process::Command, sync::Arc};

use bytes::Bytes;
use pgkeep::{
    repo::{
        Repository,
        keys::{KeyMaterial, read_key_file},
        layout::ClusterLayout,
        wal::WalStore,
    },
    storage::local::Local,
};
use rustix::process::Signal;
use tokio::runtime::Runtime;

use super::Site;
use crate::support::{
    Cluster,
    install::run,
    objects::{delete, flip_bit},
    places::skipped_on_s3,
    scratch::Scratch,
    wait_until,
};

#[test]
fn a_servers_own_file_is_not_replaced_by_less_nor_archived_unfinished() {
    let mut site = Site::archiving(Cluster::builder(17).wal_segsize(1).start());
    site.cluster.make_table("t", 10);
    site.pgkeep.ok(["backup"]);
    let stream = site.stream();
    site.cluster.insert("t", 5);
    site.wait_for_stream();
    stream.signal(Signal::TERM);
    stream.wait();
    let segment = site.cluster.sql("SELECT pg_walfile_name(pg_current_wal_lsn())");
    let pgdata = site.cluster.pgdata().to_owned();
    let get = ["archive-get", &segment, "pg_wal/RECOVERYXLOG"];
    let output = site.pgkeep.run_in(&pgdata, get);
    assert_eq!(output.code, 1, "its own file has all of it: {output}");
    assert!(!pgdata.join("pg_wal/RECOVERYXLOG").exists());
    // One that lacks it is given what there is.
    site.cluster.kill9();
    let copy = site.cluster.copy_offline();
    let wal = copy.pgdata().join("pg_wal");
    fs::remove_file(wal.join(&segment)).expect("lose the file");
    site.pgkeep.add_cluster("copy", &copy);
    site.pgkeep.edit(|text| {
        text.replace("[cluster.main]", "[cluster.other]")
            .replace("[cluster.copy]", "[cluster.main]")
    });
    let output = site.pgkeep.run_in(copy.pgdata(), ["--cluster", "main", get[0], get[1], get[2]]);
    assert_eq!(output.code, 0, "{output}");
    // With archive_mode = always a standby would offer it as if it were the segment.
    fs::rename(wal.join("RECOVERYXLOG"), wal.join(&segment)).expect("as the server does");
    let push = ["--cluster", "main", "archive-push", &format!("pg_wal/{segment}")];
    let output = site.pgkeep.run_in(copy.pgdata(), push);
    assert_eq!(output.code, 10, "{output}");
    assert!(output.stderr.contains("isn't a finished segment"), "{output}");
    // By hand it may be called by its name alone.
    let push = ["--cluster", "main", "archive-push", &segment];
    let output = site.pgkeep.run_in(&wal, push);
    assert!(output.stderr.contains("isn't a finished segment"), "{output}");
}

/// Once it is promoted, nobody will have more of the segment, and what comes behind it waits for it.
#[test]
fn a_server_that_archives_what_it_restored_is_promoted_and_archives_on() {
    let mut site = Site::archiving(Cluster::builder(17).wal_segsize(1).start());
    site.cluster.make_table("t", 10);
    site.pgkeep.ok(["backup"]);
    let stream = site.stream();
    site.cluster.insert("t", 500);
    site.wait_for_stream();
    let rows = site.cluster.digest("t");
    site.cluster.kill9();
    stream.signal(Signal::TERM);
    stream.wait();
    let set = ["--set", "archive_mode=always", "--target-timeline", "current"];
    let pgdata = site.pgkeep.scratch().path().join("always");
    let path = pgdata.to_string_lossy().into_owned();
    let restore = ["restore", "--pgdata", &path];
    site.pgkeep.ok([&restore[..], &set].concat());
    let mut always = Cluster::at(&pgdata, 17);
    always.start();
    always.wait_for_primary(60);
    assert_eq!(always.digest("t"), rows);
    let statuses = || {
        let status = fs::read_dir(pgdata.join("pg_wal/archive_status")).expect("read").flatten();
        let names = status.filter_map(|entry| entry.file_name().into_string().ok());
        names.filter(|name| name.starts_with("00000001")).collect::<Vec<_>>()
    };
    assert!(!statuses().is_empty(), "it archives what it has restored");
    let later = always.switch_wal();
    wait_until("what comes behind is archived", 60, || site.archived().contains(&later));
    let partials: Vec<_> =
        site.archived().into_iter().filter(|name| name.contains(".partial")).collect();
    assert!(!partials.is_empty(), "{:?}", site.archived());
}

/// As a receiver leaves them that is killed between the last part and the segment.
#[test]
fn parts_that_have_all_of_a_segment_are_as_good_and_become_one() {
    if skipped_on_s3("it puts files into the repository") {
        return;
    }
    let site = Site::archiving(Cluster::builder(17).wal_segsize(1).start());
    site.cluster.make_table("t", 10);
    site.pgkeep.ok(["backup"]);
    site.cluster.insert("t", 100);
    let segment = site.cluster.switch_wal();
    site.cluster.insert("t", 100);
    let later = site.cluster.switch_wal();
    wait_until("they are archived", 30, || site.archived().contains(&later));
    let bytes = fs::read(site.cluster.pgdata().join("pg_wal").join(&segment)).expect("read it");
    delete(&site.file(&segment));
    // They overlap, as after a second start.
    let cuts = [(0, 300_000), (200_000, 700_000), (700_000, bytes.len())];
    put_parts(&site, &segment, cuts.map(|(from, to)| (from, &bytes[from..to])));
    let last = site.cluster.digest("t");
    site.pgkeep.ok(["verify"]);
    assert_eq!(site.pgkeep.restored(17, "parts", &[]).digest("t"), last);
    let stream = site.stream();
    let archived = site.archived();
    assert!(archived.contains(&segment), "{archived:?}");
    assert!(!site.parts().iter().any(|part| part.starts_with(&segment)), "{archived:?}");
    stream.signal(Signal::TERM);
    assert_eq!(stream.wait().code, 0);
    site.pgkeep.ok(["verify", "--level", "full"]);
    assert_eq!(site.pgkeep.restored(17, "whole", &[]).digest("t"), last);
}

/// Puts parts into the repository. It is its user's, so they are made in a copy.
fn put_parts<const N: usize>(site: &Site, segment: &str, parts: [(usize, &[u8]); N]) {
    let scratch = Scratch::new("parts");
    let (root, copy) = (site.pgkeep.repository(), scratch.path().join("repository"));
    run(Command::new("cp").arg("-r").arg(&root).arg(&copy));
    Runtime::new().unwrap().block_on(async {
        let storage = Arc::new(Local::open(&copy).unwrap());
        let key = KeyMaterial::KeyFile(read_key_file(&site.pgkeep.key_file("main")).unwrap());
        let repository = Repository::open("main", storage, &key, 1).await.unwrap();
        let layout = ClusterLayout::new("main").unwrap();
        let system = format!("17-{}", site.cluster.system_identifier()).parse().unwrap();
        let store = WalStore::new(&repository, &layout, system);
        for (from, bytes) in parts {
            let piece = Bytes::copy_from_slice(bytes);
            let from = u32::try_from(from).unwrap();
            let part = store.put_part(segment.parse().unwrap(), from, &[piece]).await.unwrap();
            let (from, to) = (copy.join(part.name.as_str()), root.join(part.name.as_str()));
            fs::copy(from, &to).unwrap();
            let owner = fs::metadata(&root).unwrap();
            std::os::unix::fs::chown(&to, Some(owner.uid()), Some(owner.gid())).unwrap();
        }
    });
}

/// A part that is damaged or lost is told, by name of its segment, and what to do.
#[test]
fn a_hole_among_the_parts_is_found() {
    let site = Site::archiving(Cluster::builder(17).wal_segsize(1).start());
    site.cluster.make_table("t", 10);
    site.pgkeep.ok(["backup"]);
    let stream = site.stream();
    site.synchronous();
    for _ in 0..5 {
        site.cluster.insert("t", 1);
    }
    stream.signal(Signal::TERM);
    stream.wait();
    let parts = site.parts();
    assert!(parts.len() > 2, "{parts:?}");
    site.pgkeep.ok(["verify"]);
    let restored_to = |name: &str| {
        let place = site.pgkeep.scratch().path().join(name);
        site.pgkeep.ok(["restore", "--pgdata", &place.to_string_lossy()])
    };
    let output = restored_to("whole");
    assert!(!output.stderr.contains("recovery ends at"), "{output}");
    let lost = site.file(&parts[parts.len() / 2]);
    flip_bit(&lost, -30);
    let output = site.pgkeep.run(["verify", "--level", "full"]);
    assert_eq!(output.code, 1, "{output}");
    assert!(
        output.stdout.contains("`pgkeep stream`, started again, stores what the part had"),
        "{output}"
    );
    delete(&lost);
    // A stream that died may have left it so: it is no reason to refuse what there is.
    let output = restored_to("with-a-hole");
    assert!(output.stderr.contains("recovery ends at"), "{output}");
    assert!(output.stderr.contains(&parts[0][..24]), "{output}");
    let output = site.pgkeep.run(["verify"]);
    assert_eq!(output.code, 1, "{output}");
    assert!(output.stdout.contains(&parts[0][..24]), "{output}");
    assert!(output.stdout.contains("are missing"), "{output}");
}
