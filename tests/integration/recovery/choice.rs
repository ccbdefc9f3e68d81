//! Which backup is taken when nobody says which.

use std::fs;

use chrono::{Duration, Utc};
use pgkeep::repo::catalog;

use super::Site;
use crate::{
    backup::tree::Opened,
    support::{
        objects::{ObjectKind, objects_of},
        scratch,
    },
};

/// Makes the first backup one that ended an hour from now by the server's clock, as if that had
/// been set back since.
fn set_the_clock_back(site: &Site) {
    let opened = Opened::new(&site.pgkeep);
    let mut record = opened.backups().remove(0);
    record.stopped_at = Utc::now() + Duration::hours(1);
    let name = opened.layout.of_backup(&record.id, "backup.json");
    let new = opened.runtime.block_on(async {
        let storage = opened.repository.storage();
        storage.delete(&name).await.expect("delete");
        catalog::commit(&opened.repository, &opened.layout, &record).await.expect("commit");
        storage.read(&name, pgkeep::storage::Range::All).await.expect("read")
    });
    let stored = objects_of(&site.pgkeep.repository(), ObjectKind::Record);
    let stored = stored.iter().find(|object| object.name == name.as_str()).expect("it is there");
    fs::remove_file(&stored.path).expect("remove");
    scratch::write(&stored.path, new);
}

#[test]
fn a_backup_taken_before_the_clock_was_set_back_is_not_the_newest() {
    let site = Site::new(15);
    site.cluster.make_table("t", 10);
    site.pgkeep.ok(["backup"]);
    site.cluster.insert("t", 5);
    let then = site.cluster.digest("t");
    site.pgkeep.ok(["backup"]);
    site.archive_all();
    set_the_clock_back(&site);

    let info = site.pgkeep.json(["info"]);
    let backups = info["repositories"][0]["systems"][0]["backups"].as_array().unwrap().clone();
    let stop = |i: usize| backups[i]["stop-lsn"].as_str().unwrap().to_owned();
    assert_eq!(backups.len(), 2);
    assert!(stop(0) < stop(1), "{info:#}");
    for (name, arguments) in
        [("immediate", &["--target-immediate"][..]), ("current", &["--target-timeline", "current"])]
    {
        let said = site.pgkeep.ok(site.restore_arguments(name, arguments)).stdout;
        assert!(said.contains(backups[1]["id"].as_str().unwrap()), "{said}");
    }
    let mut restored = crate::support::Cluster::at(&site.place("immediate"), 15);
    restored.start();
    restored.wait_for_pause(60);
    assert_eq!(restored.digest("t"), then);
}
