//! Servers that archive and recover with the program: exit codes are only as good as what
//! PostgreSQL makes of them.

use std::{
    fs,
    path::{Path, PathBuf},
};

use crate::support::{
    Cluster, Pgkeep, Stop,
    objects::{ObjectKind, flip_bit, objects_of},
    on_each_version, scratch, wait_until,
};

/// A cluster with rows in three archived stretches of WAL, and a copy of it as it was before them,
/// ready to recover.
struct Recovery {
    primary: Cluster,
    pgkeep: Pgkeep,
    copy: Cluster,
    rows: u64,
}

impl Recovery {
    fn new(version: u32, settings: &str) -> Self {
        let primary = Cluster::builder(version).wal_segsize(1).start();
        let pgkeep = Pgkeep::archiving(&primary);
        pgkeep.set("cluster.main", "outage-timeout = \"0s\"");
        pgkeep.ok(["check"]);
        primary.make_table("t", 10);
        let copy = primary.copy_online();
        for _ in 0..6 {
            primary.insert("t", 500);
            primary.switch_wal();
        }
        let last = primary.switch_wal();
        wait_until("everything is archived", 60, || {
            primary.sql("SELECT last_archived_wal FROM pg_stat_archiver") >= last
        });
        let rows = primary.digest("t").rows;
        // The copy archives nothing.
        copy.conf(&format!(
            "archive_mode = off\nrestore_command = '{}'\n{settings}",
            pgkeep.restore_command()
        ));
        Recovery { primary, pgkeep, copy, rows }
    }

    fn signal(&self, name: &str) {
        scratch::write(&self.copy.pgdata().join(name), "");
    }

    fn restore_with(&self, command: &str) {
        self.copy.conf(&format!("restore_command = '{command}'"));
    }

    /// A `restore_command` that moves the repository to `aside` the third time it is called, before
    /// it asks pgkeep: a disk that fails in the middle of a recovery.
    fn losing_the_repository(&self, aside: &Path) -> String {
        let scratch = self.pgkeep.scratch();
        let script = format!(
            "echo \"$1\" >>{calls}\n\
             [ $(wc -l <{calls}) -ne 3 ] || mv {repository} {aside}\n\
             exec {command}\n",
            calls = scratch.path().join("calls").display(),
            repository = self.pgkeep.repository().display(),
            aside = aside.display(),
            command = self.pgkeep.restore_command().replace("%f", "\"$1\"").replace("%p", "\"$2\""),
        );
        format!("sh {} %f %p", scratch.file("restore.sh", script).display())
    }

    /// Starts the copy, which has to give up by itself and must not promote.
    fn spawn_and_wait_for_its_end(&mut self) {
        self.copy.spawn();
        self.copy.wait_for_end(60);
        let log = self.copy.log();
        assert!(log.contains("FATAL") && !log.contains("archive recovery complete"), "{log}");
        assert_eq!(self.timelines(), Vec::<String>::new(), "{log}");
    }

    fn segments(&self) -> Vec<PathBuf> {
        let objects = objects_of(&self.pgkeep.repository(), ObjectKind::Segment);
        objects.into_iter().map(|object| object.path).collect()
    }

    fn timelines(&self) -> Vec<String> {
        let entries = fs::read_dir(self.copy.pgdata().join("pg_wal")).unwrap();
        let names = entries.map(|e| e.unwrap().file_name().into_string().unwrap());
        names.filter(|name| name.ends_with(".history")).collect()
    }
}

on_each_version!(an_outage_in_the_middle_of_recovery_stops_it);

fn an_outage_in_the_middle_of_recovery_stops_it(version: u32) {
    let mut recovery = Recovery::new(version, "");
    recovery.signal("recovery.signal");
    let segments = recovery.segments();
    let break_at = segments[segments.len() - 4].clone();
    let aside = recovery.pgkeep.scratch().path().join("aside");
    let repository = recovery.pgkeep.repository();

    // The repository goes away between two segments.
    recovery.restore_with(&recovery.losing_the_repository(&aside));
    recovery.spawn_and_wait_for_its_end();
    assert!(recovery.copy.log().contains("restored log file"), "{}", recovery.copy.log());
    fs::rename(&aside, &repository).unwrap();
    recovery.restore_with(&recovery.pgkeep.restore_command());

    // A segment is damaged.
    flip_bit(&break_at, 400);
    recovery.spawn_and_wait_for_its_end();
    assert!(recovery.copy.log().contains("is damaged"), "{}", recovery.copy.log());
    flip_bit(&break_at, 400);

    // The folder of its WAL is gone, which looks like an archive that ends.
    let folder = break_at.parent().unwrap().parent().unwrap();
    fs::rename(folder, &aside).unwrap();
    recovery.spawn_and_wait_for_its_end();
    fs::rename(&aside, folder).unwrap();

    // Once all is back, recovery goes on to the end, and nothing is lost.
    recovery.copy.start();
    recovery.copy.wait_for_primary(60);
    assert_eq!(recovery.copy.digest("t"), recovery.primary.digest("t"));
    assert_eq!(recovery.copy.digest("t").rows, recovery.rows);
    assert_eq!(recovery.timelines(), ["00000002.history"]);
}

#[test]
fn a_standby_sits_an_outage_out_unless_it_is_told_to_stop() {
    let mut recovery = Recovery::new(15, "primary_slot_name = kept");
    recovery.signal("standby.signal");
    let aside = recovery.pgkeep.scratch().path().join("aside");
    let repository = recovery.pgkeep.repository();

    // It has nowhere else to ask, and asks again.
    fs::rename(&repository, &aside).unwrap();
    recovery.copy.spawn();
    wait_until("it asks", 30, || recovery.copy.log().contains("standby-outage is continue"));
    assert!(recovery.copy.runs(), "{}", recovery.copy.log());
    fs::rename(&aside, &repository).unwrap();
    let rows = recovery.rows.to_string();
    wait_until("it has caught up", 60, || {
        recovery.copy.try_sql("SELECT count(*) FROM t").as_deref() == Ok(&rows)
    });

    // It streams what the archive can't give it.
    recovery.primary.sql("SELECT pg_create_physical_replication_slot('kept', true)");
    fs::rename(&repository, &aside).unwrap();
    let primary = recovery.primary.conninfo();
    recovery.copy.conf(&format!("primary_conninfo = '{primary}'"));
    recovery.copy.reload();
    recovery.primary.insert("t", 5);
    recovery.copy.catch_up_with(&recovery.primary);
    assert_eq!(recovery.copy.digest("t"), recovery.primary.digest("t"));
    assert_eq!(recovery.copy.sql("SELECT pg_is_in_recovery()"), "t");

    recovery.pgkeep.set("cluster.main", "standby-outage = \"stop\"");
    recovery.copy.stop(Stop::Fast);
    recovery.spawn_and_wait_for_its_end();
    fs::rename(&aside, &repository).unwrap();
    recovery.copy.start();
    recovery.copy.stop(Stop::Fast);
}

on_each_version!(a_server_archives_through_promotions);

/// The whole life with the program as `archive_command`: two failovers, and then all of it replayed
/// from the first copy.
fn a_server_archives_through_promotions(version: u32) {
    let mut recovery = Recovery::new(version, "recovery_target_timeline = latest");
    recovery.pgkeep.set("cluster.main", "standby-outage = \"continue\"");
    recovery.signal("recovery.signal");
    let archive = |cluster: &Cluster| {
        cluster.conf(&format!("archive_command = '{}'", recovery.pgkeep.archive_command()));
    };
    let mut first = Cluster::standby_of(&recovery.primary);
    first.catch_up_with(&recovery.primary);
    recovery.primary.stop(Stop::Fast);
    first.promote();
    archive(&first);
    first.reload();
    first.insert("t", 100);
    let second = Cluster::standby_of(&first);
    second.catch_up_with(&first);
    first.stop(Stop::Fast);
    second.promote();
    second.insert("t", 100);
    let last = second.switch_wal();
    wait_until("everything is archived", 60, || {
        second.sql("SELECT last_archived_wal FROM pg_stat_archiver") >= last
    });
    let kinds = |kind| objects_of(&recovery.pgkeep.repository(), kind).len();
    assert_eq!(kinds(ObjectKind::History), 2);
    assert!(kinds(ObjectKind::Partial) >= 1, "the first promotion's partial segment");

    recovery.copy.start();
    recovery.copy.wait_for_primary(60);
    assert_eq!(recovery.copy.digest("t"), second.digest("t"));
    assert_eq!(recovery.copy.timeline(), 4);
}
