//! Anything stored may be flipped, cut short, deleted or exchanged: a restore says so by the
//! object's name, and what it leaves can't start.

use std::{
    fs,
    path::{Path, PathBuf},
};

use super::Site;
use crate::support::{
    install,
    objects::{self, Object, ObjectKind, objects_of},
    scratch,
};

#[derive(Debug, Clone, Copy, PartialEq)]
enum Damage {
    Flipped,
    Cut,
    Deleted,
    Exchanged,
}

const ALL: [Damage; 4] = [Damage::Flipped, Damage::Cut, Damage::Deleted, Damage::Exchanged];

#[test]
fn each_kind_of_object_damaged_in_each_way_fails_by_name() {
    let site = Site::new(15);
    site.cluster.make_table("t", 3_000);
    site.pgkeep.ok(["backup"]);
    site.cluster.insert("t", 3_000);
    let second = site.pgkeep.json(["backup", "--type", "full"])["backups"][0]["backup"].take();
    let id = second["id"].as_str().expect("an id").to_owned();
    site.archive_all();

    let repository = site.pgkeep.repository();
    let of_second = |kind| -> Vec<Object> {
        objects_of(&repository, kind).into_iter().filter(|o| o.name.contains(&id)).collect()
    };
    let start = second["start-lsn"].as_str().expect("an LSN");
    let segment = site.cluster.sql(&format!("SELECT pg_walfile_name('{start}')"));
    let mut victims = vec![
        objects_of(&repository, ObjectKind::RepositoryFile).remove(0),
        objects_of(&repository, ObjectKind::Keys).remove(0),
        of_second(ObjectKind::Record).remove(0),
        of_second(ObjectKind::Manifest).remove(0),
    ];
    let packs = of_second(ObjectKind::Pack);
    victims.push(packs.first().expect("a pack of data").clone());
    victims.push(packs.last().expect("a pack of leaves").clone());
    let is_needed = |o: &Object| o.name.ends_with(&segment);
    victims.extend(objects_of(&repository, ObjectKind::Segment).into_iter().filter(is_needed));
    assert_eq!(victims.len(), 7);

    let mut tried = 0;
    for victim in &victims {
        for damage in ALL {
            let Some(undo) = do_damage(&repository, victim, damage) else { continue };
            tried += 1;
            let output =
                site.refuse(&format!("place-{tried}"), &["--backup", &id, "--target-immediate"]);
            let file = victim.path.file_name().unwrap().to_str().unwrap();
            let named = match (victim.kind, damage) {
                // Without it there is no telling that this is a repository, or a backup.
                (ObjectKind::RepositoryFile, Damage::Deleted) => "no repository",
                (ObjectKind::Keys, Damage::Deleted) => "keys",
                (ObjectKind::Record, Damage::Deleted) => id.as_str(),
                _ => file,
            };
            assert!(output.stderr.contains(named), "{} {damage:?}: {output}", victim.name);
            undo.back();
        }
    }
    assert!(tried >= 24, "{tried}");
    let mut restored = site.restore("sound", &["--backup", &id, "--target-immediate"]);
    restored.start();
    restored.wait_for_pause(60);
    assert_eq!(restored.digest("t").rows, 6_000, "all damage was undone");
}

/// Copies of the files that were changed.
struct Undo(Vec<(PathBuf, Vec<u8>)>);

impl Undo {
    fn of(paths: &[&Path]) -> Self {
        Undo(
            paths.iter().map(|p| (p.to_path_buf(), fs::read(p).expect("read an object"))).collect(),
        )
    }

    fn back(self) {
        for (path, bytes) in self.0 {
            scratch::write(&path, bytes);
            let mode = std::os::unix::fs::PermissionsExt::from_mode(0o600);
            fs::set_permissions(&path, mode).expect("set a mode");
        }
    }
}

fn do_damage(repository: &Path, victim: &Object, damage: Damage) -> Option<Undo> {
    let size = fs::metadata(&victim.path).expect("look at an object").len();
    let undo = Undo::of(&[&victim.path]);
    match damage {
        // In the middle of what is stored, not in what only describes it. repo.json has nothing
        // but its id that a bit could falsify.
        Damage::Flipped if victim.kind == ObjectKind::RepositoryFile => {
            let text = fs::read_to_string(&victim.path).expect("read repo.json");
            let at = text.find("\"repository\"").expect("an id") + 17;
            objects::flip_bit(&victim.path, at as i64);
        }
        Damage::Flipped if victim.kind == ObjectKind::Segment => {
            objects::flip_bit(&victim.path, -40);
        }
        Damage::Flipped => objects::flip_bit(&victim.path, (size / 2) as i64),
        Damage::Cut => objects::cut(&victim.path, size - 7),
        Damage::Deleted => objects::delete(&victim.path),
        Damage::Exchanged => {
            let is_other = |o: &Object| o.path != victim.path && rank(o) == rank(victim);
            let other = objects_of(repository, victim.kind).into_iter().find(is_other)?;
            let undo = Undo::of(&[&victim.path, &other.path]);
            objects::swap(&victim.path, &other.path);
            return Some(undo);
        }
    }
    Some(undo)
}

/// Packs of data and packs of leaves have different numbers.
fn rank(object: &Object) -> bool {
    object.path.file_name().is_some_and(|name| name.to_string_lossy().starts_with('9'))
}

/// Damage inside a segment shows only when its records are read: then the server stops, and never
/// ends recovery as if this were the end of the WAL.
#[test]
fn a_segment_damaged_inside_stops_recovery_and_the_server_never_promotes() {
    let site = Site::new(15);
    site.cluster.make_table("t", 100);
    site.pgkeep.ok(["backup"]);
    site.cluster.insert("t", 20_000);
    site.archive_all();
    let moment = site.cluster.moment("t");
    site.archive_all();
    site.cluster.moment("t");
    site.archive_all();
    let segments = objects_of(&site.pgkeep.repository(), ObjectKind::Segment);
    let victim = &segments[segments.len() - 3];
    objects::flip_bit(&victim.path, 5_000);
    let mut restored = site.restore("latest", &["--target-time", &moment.time]);
    restored.spawn();
    restored.wait_for_end(60);
    let log = restored.log();
    assert!(log.contains("is damaged"), "{log}");
    assert!(!log.contains("selected new timeline"), "{log}");
    let control = install::program(15, "pg_controldata");
    let control = install::run(install::command(control).arg(restored.pgdata()));
    assert!(control.contains("in archive recovery"), "{control}");
}
