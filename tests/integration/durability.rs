//! What is acknowledged was synced, and in the right order: the system calls of the program itself.

use std::path::{Path, PathBuf};

use crate::support::{
    Cluster, Pgkeep,
    strace::{Act, Call, Trace},
};

/// Runs pgkeep in the cluster's data directory, as its server does, and looks on.
fn traced(pgkeep: &Pgkeep, cluster: &Cluster, arguments: &[&str]) -> Option<Trace> {
    let mut command = pgkeep.command(arguments);
    let (output, trace) = Trace::of(command.current_dir(cluster.pgdata()))?;
    assert_eq!(output.code, 0, "{arguments:?}: {output}");
    Some(trace)
}

fn file_names(paths: &[PathBuf]) -> Vec<&str> {
    paths.iter().map(|path| path.file_name().unwrap().to_str().unwrap()).collect()
}

#[test]
fn what_init_and_push_acknowledge_was_synced_before() {
    let cluster = Cluster::builder(15).wal_segsize(1).start();
    let pgkeep = Pgkeep::new(&cluster);
    let (root, key) = (pgkeep.repository(), pgkeep.key_file("main"));
    // A directory that init has to make.
    std::fs::remove_dir(&root).unwrap();
    let Some(init) = traced(&pgkeep, &cluster, &["init"]) else { return };
    let made: Vec<_> = init.all(|c| c.act == Act::Made && c.path == root).collect();
    assert_eq!(made.len(), 1);
    init.assert_synced_after(root.parent().unwrap(), made[0]);
    let named = init.assert_durable_below(&root);
    assert!(named.len() == 2 && named[0].starts_with(root.join("keys")), "{named:?}");
    assert_eq!(named[1], root.join("repo.json"), "the last of it");
    // Nothing is sealed with a key that might be lost.
    let first = init.named_below(&root).next().unwrap();
    let key_named = init.named_below(&key).next().expect("the key file got its name");
    let Act::Named(new) = &key_named.act else { unreachable!() };
    init.assert_written_out(new, key_named);
    assert!(init.assert_synced_after(key.parent().unwrap(), key_named).is_before(first));

    pgkeep.set("cluster.main", "archive-timeout = \"1s\"");
    // It finds that nothing archives, but registers the system.
    pgkeep.run(["check"]);
    let segment = cluster.switch_wal();
    let push = ["archive-push", &format!("pg_wal/{segment}")];
    let new = traced(&pgkeep, &cluster, &push).unwrap();
    let made: Vec<_> = new.all(|c| c.act == Act::Made).map(|c| c.path.clone()).collect();
    assert_eq!(file_names(&made).last(), Some(&"00000001"), "the timeline's folder is new");
    assert!(made.len() >= 3, "{made:?}");
    let named = new.assert_durable_below(&root);
    assert_eq!(file_names(&named), [&segment]);

    // Whoever stored it before may have died before it was durable.
    let again = traced(&pgkeep, &cluster, &push).unwrap();
    assert_eq!(again.named_below(&root).count(), 0);
    for path in named[0].ancestors().take_while(|path| path.starts_with(&root)) {
        let synced = again.all(|c| c.act == Act::Synced && c.path == path).count();
        assert!(synced > 0, "{} was not synced again", path.display());
    }

    let get = ["archive-get", &segment, "pg_wal/RECOVERYXLOG"];
    let got = traced(&pgkeep, &cluster, &get).unwrap();
    let pg_wal = cluster.pgdata().join("pg_wal");
    let named: Vec<&Call> = got.named_below(&pg_wal).collect();
    assert_eq!(named.len(), 1, "{named:?}");
    assert!(named[0].path.ends_with("pg_wal/RECOVERYXLOG"), "{named:?}");
    // It was written without a name.
    let wrote = got.all(|c| c.act == Act::Wrote && c.path.starts_with(&pg_wal)).last().unwrap();
    got.assert_written_out(&wrote.path, named[0]);
}

#[test]
fn a_backup_is_committed_when_all_of_it_is_durable() {
    let cluster = Cluster::builder(15).start();
    let pgkeep = Pgkeep::archiving(&cluster);
    cluster.make_table("t", 1000);
    let Some(backup) = traced(&pgkeep, &cluster, &["backup"]) else { return };
    let root = pgkeep.repository();
    let named = backup.assert_durable_below(&root);
    let is_of_backup = |call: &Call| call.path.starts_with(root.join("clusters/main/backups"));
    let of_backup: Vec<_> = backup.named_below(&root).filter(|call| is_of_backup(call)).collect();
    let (commit, rest) = of_backup.split_last().expect("a backup");
    assert!(commit.path.ends_with("backup.json"), "{named:?}");
    assert!(rest.len() >= 4, "begin, packs, and the manifest: {named:?}");
    for call in rest {
        for folder in call.path.ancestors().skip(1).take_while(|f| f.starts_with(&root)) {
            let synced = backup.assert_synced_after(folder, call);
            assert!(synced.is_before(commit), "{synced:?} is after {commit:?}");
        }
    }
}

#[test]
fn a_restored_cluster_gets_its_control_file_when_all_else_is_durable() {
    let cluster = Cluster::builder(15).start();
    let pgkeep = Pgkeep::archiving(&cluster);
    cluster.make_table("t", 1000);
    pgkeep.ok(["backup"]);
    let place = pgkeep.scratch().path().join("restored");
    let path = place.display().to_string();
    let Some(restore) = traced(&pgkeep, &cluster, &["restore", "--pgdata", &path]) else { return };
    let control = place.join("global/pg_control");
    let named: Vec<_> = restore.named_below(&control).collect();
    assert_eq!(named.len(), 1, "{named:?}");
    let named = named[0];
    let marker = |call: &Call| {
        let name = call.path.strip_prefix(&place).ok().and_then(Path::to_str);
        name.is_some_and(|name| name.starts_with("pgkeep-restore.json"))
    };

    let mut files: Vec<&Path> = restore
        .all(|c| c.act == Act::Wrote && c.path.starts_with(&place) && !marker(c))
        .inspect(|c| assert!(c.is_before(named), "{c:?}"))
        .map(|c| c.path.as_path())
        .collect();
    files.sort();
    files.dedup();
    assert!(files.len() > 900, "{}", files.len());
    for file in &files {
        restore.assert_written_out(file, named);
    }
    // All names in all directories, and those of the directories.
    let mut folders = 0;
    for file in &files {
        let folder = file.parent().unwrap();
        let last = restore
            .all(|c| c.act == Act::Wrote && c.path.parent() == Some(folder) && !marker(c))
            .last()
            .unwrap();
        assert!(restore.assert_synced_after(folder, last).is_before(named), "{}", folder.display());
    }
    for made in restore.all(|c| c.act == Act::Made && c.path.starts_with(&place)) {
        folders += 1;
        let parent = made.path.parent().unwrap();
        assert!(restore.assert_synced_after(parent, made).is_before(named), "{made:?}");
    }
    assert!(folders > 20, "{folders}");
    // The marker goes when the server can start, also after a power cut.
    let synced = restore.assert_synced_after(&place.join("global"), named);
    let removed = restore.all(|c| c.act == Act::Removed && marker(c)).last().expect("the marker");
    assert!(synced.is_before(removed), "{removed:?}");
    restore.assert_synced_after(&place, removed);
}
