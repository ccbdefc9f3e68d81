//! Servers that send changes, and for once can't: everything is sent and compared, and that is said.

use std::{fs, path::Path};

use crc_fast::crc32_iscsi;
use pgkeep::postgres::{
    control::ControlFile,
    page::{self, RelationFile},
};
use serde_json::Value;

use super::{Site, assert_over, compare::entries, id, oracle::is_what_a_full_one_is, start};
use crate::support::{Cluster, Stop, gate::Gate, on_each_version, wait_until};

on_each_version!(what_the_server_cannot_tell_is_compared: 17 postgres_17, 18 postgres_18);

fn what_the_server_cannot_tell_is_compared(version: u32) {
    let site = Site::new(Cluster::builder(version));
    let cluster = &site.cluster;
    cluster.make_table("t", 8000);
    cluster.sql("VACUUM (FREEZE, ANALYZE)");
    let change = |seed: u32| {
        cluster.sql(&format!("UPDATE t SET filler = 'new {seed}' WHERE id % 997 = {seed}"));
    };
    let full = site.take("full");

    // Switched off.
    cluster.conf("summarize_wal = off");
    cluster.reload();
    change(1);
    let off = take_compared(&site, &full, "summarize_wal is off");
    is_what_a_full_one_is(&site, &off, "off");

    // Switched on again; but of the time since then the summaries have been removed.
    cluster.conf("summarize_wal = on");
    cluster.reload();
    change(2);
    summarized_since(&site, &off);
    remove_summaries(cluster.pgdata());
    let why = "the server has no summary of the WAL of timeline 1 at ";
    let gone = take_compared(&site, &off, why);
    is_what_a_full_one_is(&site, &gone, "gone");

    // Removed when the server had been asked for them: it says so itself then.
    change(3);
    summarized_since(&site, &gone);
    let pgdata = cluster.pgdata().to_owned();
    let gate = Gate::before(cluster, "BASE_BACKUP", move || remove_summaries(&pgdata));
    site.pgkeep.edit(|text| text.replace(&cluster.conninfo(), &gate.conninfo()));
    let refused = take_compared(&site, &gone, "the server refuses: ");
    site.pgkeep.edit(|text| text.replace(&gate.conninfo(), &cluster.conninfo()));
    let why = refused["why-compared"].as_str().unwrap();
    assert!(why.contains("WAL summaries are required") && why.contains("incomplete"), "{why}");
    is_what_a_full_one_is(&site, &refused, "refused");

    // And the next is one of changes again.
    change(4);
    let next = site.take("incr");
    assert_over(&next, &refused, version);
}

on_each_version!(checksums_that_were_turned_on_are_on_every_page: 15 postgres_15, 17 postgres_17);

/// `pg_checksums` writes every page anew, and nothing of that is in the WAL or its summaries.
fn checksums_that_were_turned_on_are_on_every_page(version: u32) {
    let mut site = Site::new(Cluster::builder(version).checksums(false));
    site.cluster.make_table("t", 8000);
    let full = site.take("full");
    site.cluster.stop(Stop::Fast);
    let wrong = |pgdata: &Path| pages_with_wrong_checksums(pgdata, false);
    assert_ne!(wrong(site.cluster.pgdata()), Vec::<String>::new());
    turn_checksums_on(site.cluster.pgdata());
    site.cluster.start();
    site.cluster.sql("UPDATE t SET filler = 'new' WHERE id = 7");
    let over = match version {
        ..17 => site.take("incr"),
        _ => take_compared(&site, &full, "data checksums were turned on since"),
    };
    let digest = site.cluster.digest("t");
    let mut restored = start(&site.restore(&over, "restored"), version);
    assert_eq!(restored.digest("t"), digest);
    restored.stop(Stop::Fast);
    assert_eq!(wrong(restored.pgdata()), Vec::<String>::new());
    // And from then on changes only.
    site.cluster.sql("UPDATE t SET filler = 'newer' WHERE id = 9");
    assert_over(&site.take("incr"), &over, version);
}

/// As `pg_checksums --enable` does it, which isn't there for each version.
fn turn_checksums_on(pgdata: &Path) {
    pages_with_wrong_checksums(pgdata, true);
    let path = pgdata.join("global/pg_control");
    let mut bytes = fs::read(&path).expect("read pg_control");
    // data_checksum_version and the checksum of what lies before it, in the versions up to 17.
    bytes[252..256].copy_from_slice(&1u32.to_le_bytes());
    let checksum = crc32_iscsi(&bytes[..288]);
    bytes[288..292].copy_from_slice(&checksum.to_le_bytes());
    fs::write(&path, bytes).expect("write pg_control");
    assert!(ControlFile::read(pgdata).expect("a control file").data_checksums);
}

/// Pages of a cluster that is stopped, in relations of one file each; they are mended if that is wanted.
fn pages_with_wrong_checksums(pgdata: &Path, mend: bool) -> Vec<String> {
    let mut wrong = Vec::new();
    for (name, path) in entries(pgdata) {
        if RelationFile::parse(&name).is_none() {
            continue;
        }
        let mut bytes = fs::read(&path).expect("read a relation");
        for (block, page) in bytes.chunks_exact_mut(8192).enumerate() {
            let checksum = page::checksum(page, block as u32);
            if !page::is_new(page) && page::stored_checksum(page) != checksum {
                wrong.push(format!("{name} {block}"));
                page[8..10].copy_from_slice(&checksum.to_le_bytes());
            }
        }
        if mend {
            fs::write(&path, bytes).expect("write a relation");
        }
    }
    wrong
}

/// Takes an incremental backup, which has to be one by comparison, and to say why.
fn take_compared(site: &Site, base: &Value, why: &str) -> Value {
    let output = site.pgkeep.run(["--output", "json", "backup", "--type", "incr"]);
    assert_eq!(output.code, 0, "{output}");
    let base = id(base);
    let warning =
        format!("the server is going to send everything, and it is compared with {base}: {why}");
    assert!(output.stderr.contains(&warning), "{output}");
    let mut taken: Value = serde_json::from_str(&output.stdout).expect("JSON");
    let record = taken["backups"][0]["backup"].take();
    for (key, value) in [("kind", "incr"), ("asked", "incr"), ("base", base), ("way", "comparison")]
    {
        assert_eq!(record[key], value, "{record}");
    }
    let compared = record["why-compared"].as_str().unwrap_or_default();
    assert!(compared.starts_with(why), "{record}");
    let info = site.pgkeep.ok(["info"]).stdout;
    let told = format!("{} was compared as a whole: {compared}", id(&record));
    assert!(info.contains(&told), "{info}");
    record
}

/// Waits until the server has a summary of the WAL from where a backup began.
fn summarized_since(site: &Site, record: &Value) {
    let start = record["start-lsn"].as_str().expect("a position");
    site.cluster.sql("CHECKPOINT");
    let found =
        format!("SELECT count(*) FROM pg_available_wal_summaries() WHERE end_lsn > '{start}'");
    wait_until("there is a summary", 60, || site.cluster.sql(&found) != "0");
}

/// As when `wal_summary_keep_time` is over.
fn remove_summaries(pgdata: &Path) {
    for file in fs::read_dir(pgdata.join("pg_wal/summaries")).expect("read the summaries") {
        let path = file.expect("an entry").path();
        if path.extension().is_some_and(|extension| extension == "summary") {
            fs::remove_file(path).expect("remove a summary");
        }
    }
}
