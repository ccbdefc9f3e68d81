//! Tablespaces, wherever they lie.

use std::fs;

use super::tree::{Opened, on_disk};
use crate::support::{Cluster, Pgkeep, Scratch, on_each_version};

on_each_version!(tablespaces_are_below_pg_tblspc_once);

fn tablespaces_are_below_pg_tblspc_once(version: u32) {
    let cluster = Cluster::builder(version).conf("autovacuum = off").start();
    let outside = Scratch::new("space");
    let inside = cluster.pgdata().join("spaces");
    crate::support::install::run(
        crate::support::install::command("mkdir").args(["-m", "0700"]).arg(&inside),
    );
    let mut locations = vec![
        ("far", outside.path().to_str().unwrap().to_owned()),
        ("near", inside.to_str().unwrap().to_owned()),
        ("empty", outside.folder("it is empty").to_str().unwrap().to_owned()),
    ];
    if version > 15 {
        locations.push(("here", String::new()));
    }
    for (name, location) in &locations {
        let location = location.replace('\'', "''");
        cluster.sql(&format!("CREATE TABLESPACE {name} LOCATION '{location}'"));
        if *name != "empty" {
            cluster.sql(&format!(
                "CREATE TABLE in_{name} TABLESPACE {name} AS SELECT n, repeat('x', 50) FROM \
                 generate_series(1, 20000) n"
            ));
        }
    }
    let pgkeep = Pgkeep::archiving(&cluster);
    cluster.sql("CHECKPOINT");
    pgkeep.ok(["backup"]);

    let opened = Opened::new(&pgkeep);
    let record = &opened.backups()[0];
    let tree = opened.tree(record);
    let disk = on_disk(cluster.pgdata());
    for (name, location) in &locations {
        let oid = cluster.sql(&format!("SELECT oid FROM pg_tablespace WHERE spcname = '{name}'"));
        let known = record.tablespaces.iter().find(|t| t.oid.to_string() == oid).unwrap();
        if *name == "here" {
            assert!(known.in_place);
            assert_eq!(known.location, format!("pg_tblspc/{oid}"));
            assert!(tree.contains_key(known.location.as_bytes()), "its directory");
        } else {
            assert!(!known.in_place);
            assert_eq!(known.location, *location);
        }
        if *name != "empty" {
            let path = cluster.sql(&format!("SELECT pg_relation_filepath('in_{name}')"));
            assert!(path.starts_with(&format!("pg_tblspc/{oid}/PG_")), "{path}");
            assert!(tree[path.as_bytes()] == disk[path.as_bytes()], "{path}");
        }
    }
    assert_eq!(record.tablespaces.len(), locations.len());
    // The one inside the data directory isn't there a second time.
    let twice = tree.keys().any(|path| path.starts_with(b"spaces/"));
    assert!(!twice && tree.contains_key(&b"spaces"[..]));
    let map = String::from_utf8(tree[&b"tablespace_map"[..]].1.clone().unwrap()).unwrap();
    assert_eq!(map.lines().count(), 3, "{map}");
    assert!(fs::read_dir(cluster.pgdata()).unwrap().count() > 10, "the source is as it was");
}

#[test]
fn what_postgresql_15_leaves_out_is_refused() {
    let cluster = Cluster::builder(15).start();
    cluster.sql("CREATE TABLESPACE here LOCATION ''");
    let pgkeep = Pgkeep::archiving(&cluster);
    let output = pgkeep.fails(["backup"]);
    assert_eq!(output.code, 6, "{output}");
    assert!(output.stderr.contains("tablespace here"), "{output}");
    assert!(Opened::new(&pgkeep).backups().is_empty());
    cluster.sql("DROP TABLESPACE here");
    pgkeep.ok(["backup"]);
}
