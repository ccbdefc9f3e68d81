//! A backup, a deletion and an expiry that die at each step: a backup is whole or isn't one, and those that
//! are kept restore.

use crate::support::{
    Cluster, Pgkeep,
    pgkeep::{Output, run_to_end},
    steps::Death,
};

pub const STEPS: &[&str] = &[
    "backup: lease taken",
    "backup: all received",
    "backup: its WAL is archived",
    "backup: committed",
    "backup: acknowledged",
    "delete: the folder is being removed",
    "delete: only its marks are left",
    "expire: the floor is raised",
    "expire: objects are being removed",
];

/// The backups that `info` lists, the newest last.
fn listed(pgkeep: &Pgkeep) -> Vec<String> {
    let info = pgkeep.json(["info"]);
    let systems = info["repositories"][0]["systems"].as_array().expect("systems");
    let backups = systems.iter().flat_map(|system| system["backups"].as_array().expect("backups"));
    backups.map(|backup| backup["id"].as_str().expect("an id").to_owned()).collect()
}

#[test]
fn what_dies_at_any_step_leaves_whole_backups() {
    let version = *crate::support::versions().last().expect("a version");
    let cluster = Cluster::builder(version).wal_segsize(1).start();
    let pgkeep = Pgkeep::archiving(&cluster);
    cluster.make_table("t", 500);
    pgkeep.ok(["backup"]);
    pgkeep.add("[repository.main.retention]\nminimum = 1\nafter-backup = false");
    let death = Death::in_folder(pgkeep.scratch());
    let run = |arguments: &[&str]| -> Output {
        let mut command = pgkeep.command(arguments);
        let (name, value) = death.variable();
        run_to_end(command.env(name, value))
    };
    for step in STEPS.iter().filter(|step| step.starts_with("backup")) {
        let before = listed(&pgkeep);
        cluster.insert("t", 50);
        death.at(step);
        let output = run(&["backup"]);
        assert_eq!(output.code, -9, "{step}: {output}");
        let is_committed = matches!(*step, "backup: committed" | "backup: acknowledged");
        assert_eq!(listed(&pgkeep).len(), before.len() + usize::from(is_committed), "{step}");
        pgkeep.ok(["verify", "--level", "full"]);
        // Nobody waits for the one that has died.
        pgkeep.ok(["backup"]);
    }
    for step in STEPS.iter().filter(|step| step.starts_with("delete")) {
        let before = listed(&pgkeep);
        let newest = before.last().expect("a backup").clone();
        death.at(step);
        let output = run(&["delete", &newest]);
        assert_eq!(output.code, -9, "{step}: {output}");
        assert!(!listed(&pgkeep).contains(&newest), "{step}");
        pgkeep.ok(["verify", "--level", "full"]);
        // Run again, it removes what is left.
        let _ = pgkeep.run(["delete", &newest]);
        assert!(!listed(&pgkeep).contains(&newest), "{step}");
    }
    for step in STEPS.iter().filter(|step| step.starts_with("expire")) {
        pgkeep.ok(["backup", "--type", "full"]);
        death.at(step);
        let output = run(&["expire"]);
        assert_eq!(output.code, -9, "{step}: {output}");
        pgkeep.ok(["verify", "--level", "full"]);
        pgkeep.ok(["expire"]);
        pgkeep.ok(["verify", "--level", "full"]);
    }
    assert!(death.has_come());
    let end = cluster.digest("t");
    cluster.switch_wal();
    let restored = pgkeep.restored(version, "latest", &[]);
    assert_eq!(restored.digest("t"), end);
}
