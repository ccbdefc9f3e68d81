//! The program, on the repository of a real cluster: full, differential and incremental backups,
//! tablespaces, two timelines. What it prints, what CI reads, and its exit codes.

use std::{fs, path::PathBuf};

use chrono::{DateTime, Utc};
use serde_json::Value;

use crate::support::{
    Cluster, Pgkeep, Scratch, Stop,
    objects::{Object, ObjectKind, cut, flip_bit, objects_of},
    places::on_s3,
    s3::{Server, Traits},
    wait_until,
};

/// A repository with a history: three backups on the first timeline, one on the second.
struct Site {
    _cluster: Cluster,
    pgkeep: Pgkeep,
    full: Value,
    incr: Value,
    /// On the second timeline.
    after: Value,
    /// When nothing was written on that timeline yet.
    promoted: DateTime<Utc>,
    _space: Scratch,
}

fn id(record: &Value) -> &str {
    record["id"].as_str().expect("an id")
}

impl Site {
    fn new() -> Self {
        let builder = Cluster::builder(17).wal_segsize(1).checksums(true);
        let mut cluster = builder.conf("summarize_wal = on").conf("autovacuum = off").start();
        let pgkeep = Pgkeep::archiving(&cluster);
        let space = Scratch::new("space");
        let place = space.path().display();
        cluster.sql(&format!("CREATE TABLESPACE there LOCATION '{place}'"));
        cluster.sql("CREATE TABLE far TABLESPACE there AS SELECT generate_series(1, 3000) AS n");
        cluster.make_table("t", 2000);
        let standby = Cluster::standby_of(&cluster);
        let take = |kind: &str| {
            let mut taken = pgkeep.json(["backup", "--type", kind]);
            taken["backups"][0]["backup"].take()
        };
        let full = take("full");
        cluster.insert("t", 200);
        take("diff");
        cluster.sql("UPDATE far SET n = n + 1 WHERE n % 50 = 0");
        let incr = take("incr");
        for _ in 0..3 {
            cluster.insert("t", 50);
            cluster.switch_wal();
        }
        cluster.insert("t", 50);
        standby.catch_up_with(&cluster);
        cluster.stop(Stop::Fast);
        standby.promote();
        pgkeep.edit(|text| {
            text.replace(&cluster.conninfo(), &standby.conninfo())
                .replace(cluster.pgdata().to_str().unwrap(), standby.pgdata().to_str().unwrap())
        });
        let promoted = Utc::now();
        standby.insert("t", 50);
        let after = take("incr");
        standby.insert("t", 50);
        let last = standby.switch_wal();
        let site = Site { _cluster: standby, pgkeep, full, incr, after, promoted, _space: space };
        wait_until("the last segment arrives", 60, || {
            site.of(ObjectKind::Segment).iter().any(|object| object.name.ends_with(&last))
        });
        assert!(!site.of(ObjectKind::History).is_empty());
        site
    }

    fn of(&self, kind: ObjectKind) -> Vec<Object> {
        objects_of(&self.pgkeep.repository(), kind)
    }

    /// The object of a segment of the first timeline: the one in which a position lies, or so many
    /// behind it.
    fn segment(&self, lsn: &Value, behind: u32) -> Object {
        let (high, low) = lsn.as_str().unwrap().split_once('/').unwrap();
        let number = (u64::from_str_radix(high, 16).unwrap() << 32
            | u64::from_str_radix(low, 16).unwrap())
            / (1 << 20)
            + u64::from(behind);
        let name = format!("00000001{:08X}{:08X}", number >> 12, number & 0xFFF);
        let found = self.of(ObjectKind::Segment).into_iter().find(|o| o.name.ends_with(&name));
        found.unwrap_or_else(|| panic!("{name} isn't there"))
    }

    /// Does something to an object, verifies, and undoes it.
    fn with<T>(&self, object: &Object, deed: impl FnOnce(&PathBuf), then: impl FnOnce() -> T) -> T {
        let bytes = fs::read(&object.path).unwrap();
        deed(&object.path);
        let result = then();
        crate::support::scratch::write(&object.path, bytes);
        result
    }

    /// Verifies at a level: the exit code and the document.
    fn verify(&self, level: &str) -> (i32, Value) {
        let output = self.pgkeep.run(["--output", "json", "verify", "--level", level]);
        let document = serde_json::from_str(&output.stdout)
            .unwrap_or_else(|e| panic!("{level}: {e}: {output}"));
        (output.code, document)
    }

    /// The one problem that there is.
    fn problem(&self, level: &str) -> Value {
        let (code, mut document) = self.verify(level);
        assert_eq!((code, &document["sound"]), (1, &false.into()), "{document:#}");
        let report = &mut document["repositories"][0];
        assert_eq!(report["sound"], false);
        let problems = report["problems"].as_array_mut().unwrap();
        assert_eq!(problems.len(), 1, "{problems:#?}");
        problems.remove(0)
    }
}

fn remove(path: &PathBuf) {
    fs::remove_file(path).unwrap();
}

#[test]
fn a_repository_with_a_history_is_sound_and_what_is_done_to_it_is_found() {
    let site = Site::new();
    for level in ["quick", "full"] {
        let (code, document) = site.verify(level);
        assert_eq!((code, &document["sound"]), (0, &true.into()), "{document:#}");
        let report = &document["repositories"][0];
        assert_eq!(report["problems"], Value::Array(Vec::new()));
        assert_eq!(report["notices"], Value::Array(Vec::new()), "{report:#}");
        assert_eq!(report["backups"].as_array().unwrap().len(), 4);
        assert_eq!(report["timelines"].as_array().unwrap().len(), 2);
        let count = |what: &str| report["checked"][what].as_u64().unwrap();
        assert!(count("packs") >= 8 && count("segments") >= 10, "{report:#}");
        if level == "full" {
            assert!(count("pages") > 1000 && count("blocks") > count("pages"), "{report:#}");
            assert!(count("records") > 1000, "{report:#}");
        }
    }
    wal_that_is_missing(&site);
    packs_that_are_damaged(&site);
    what_people_and_ci_systems_see(&site);
    only_one_backup(&site);
    outages(&site);
}

fn wal_that_is_missing(site: &Site) {
    // Between the last backup of the timeline and its end.
    let gap = site.segment(&site.incr["stop-lsn"], 1);
    for level in ["quick", "full"] {
        let problem = site.with(&gap, remove, || site.problem(level));
        assert_eq!(
            (&problem["kind"], &problem["object"]),
            (&"missing".into(), &gap.name.as_str().into())
        );
        assert_eq!(problem["backups"], Value::Array(Vec::new()), "the backups can be restored");
        // On the way to the second timeline's backup, and on its own timeline.
        let moments = problem["moments"].as_array().unwrap();
        assert!(!moments.is_empty(), "{problem:#}");
        assert_eq!(moments[0]["timeline"], 1, "{problem:#}");
        let time = |of: &Value, what: &str| of[what].as_str().map(str::to_owned);
        assert!(time(&moments[0], "from") >= time(&site.incr, "stopped-at"), "{problem:#}");
        assert!(time(&moments[0], "from") < time(&site.after, "stopped-at"), "{problem:#}");
        // The second begins in the middle of a segment, in which it has transactions of its own.
        let of_second = moments.iter().find(|moments| moments["timeline"] == 2);
        let of_second = of_second.unwrap_or_else(|| panic!("{problem:#}"));
        assert_eq!(of_second["until"], site.after["stopped-at"], "{problem:#}");
        let from = time(of_second, "from").and_then(|from| from.parse::<DateTime<Utc>>().ok());
        assert!(from.is_some_and(|from| from < site.promoted), "{problem:#}");
        assert!(!problem["hints"].as_array().unwrap().is_empty());
    }
    // Of a backup itself.
    let own = site.segment(&site.full["start-lsn"], 0);
    let problem = site.with(&own, remove, || site.problem("quick"));
    let backups: Vec<_> = problem["backups"].as_array().unwrap().iter().collect();
    assert!(backups.contains(&&site.full["id"]), "{problem:#}");
    assert!(!backups.contains(&&site.after["id"]), "{problem:#}");
    // Cut, and with a flipped bit inside.
    let problem = site.with(&gap, |path| cut(path, 40), || site.problem("quick"));
    assert_eq!(
        (&problem["kind"], &problem["object"]),
        (&"damaged".into(), &gap.name.as_str().into())
    );
    let flip = |path: &PathBuf| flip_bit(path, 90);
    assert_eq!(site.with(&gap, flip, || site.verify("quick")).0, 0, "its end is sound");
    let problem = site.with(&gap, flip, || site.problem("full"));
    assert_eq!(
        (&problem["kind"], &problem["object"]),
        (&"damaged".into(), &gap.name.as_str().into())
    );
    // The history.
    let history = site.of(ObjectKind::History).remove(0);
    let problem = site.with(&history, remove, || site.problem("quick"));
    assert_eq!(problem["object"], history.name.as_str());
    assert_eq!(problem["backups"][0], site.after["id"], "{problem:#}");
}

fn packs_that_are_damaged(site: &Site) {
    let of_full = |object: &Object| object.name.contains(id(&site.full));
    let packs: Vec<Object> = site.of(ObjectKind::Pack).into_iter().filter(of_full).collect();
    // All backups build on the full one.
    let problem = site.with(&packs[0], remove, || site.problem("quick"));
    assert_eq!(
        (&problem["kind"], &problem["object"]),
        (&"missing".into(), &packs[0].name.as_str().into())
    );
    assert_eq!(problem["backups"].as_array().unwrap().len(), 4, "{problem:#}");
    // A frame that only some of them need.
    let flip = |path: &PathBuf| flip_bit(path, 5000);
    let problem = site.with(&packs[0], flip, || site.problem("full"));
    assert_eq!(
        (&problem["kind"], &problem["object"]),
        (&"damaged".into(), &packs[0].name.as_str().into())
    );
    assert!(!problem["backups"].as_array().unwrap().is_empty(), "{problem:#}");
    // The newest backup's own pack costs no other backup.
    let of_last = |object: &Object| object.name.contains(id(&site.after));
    let own = site.of(ObjectKind::Pack).into_iter().rfind(of_last).unwrap();
    let problem = site.with(&own, |path| flip_bit(path, 200), || site.problem("full"));
    assert_eq!(problem["backups"], Value::Array(vec![site.after["id"].clone()]), "{problem:#}");
}

fn what_people_and_ci_systems_see(site: &Site) {
    let file = site.pgkeep.scratch().folder("ci").join("verify.xml");
    let path = file.to_str().unwrap();
    let sound = site.pgkeep.ok(["verify", "--junit", path]);
    assert!(sound.stdout.ends_with("Repository main is sound.\n"), "{sound}");
    let xml = fs::read_to_string(&file).unwrap();
    assert!(xml.contains("tests=\"7\" failures=\"0\" errors=\"0\""), "{xml}");

    let gap = site.segment(&site.incr["stop-lsn"], 1);
    let output = site.with(&gap, remove, || site.pgkeep.run(["verify", "--junit", path]));
    assert_eq!(output.code, 1, "{output}");
    for words in [
        format!("PROBLEM  {}\n", gap.name),
        "this WAL segment is missing".to_owned(),
        "costs the moments on timeline 1 after 20".to_owned(),
        "hint: `pgkeep backup`".to_owned(),
        "1 problem was found in repository main.".to_owned(),
    ] {
        assert!(output.stdout.contains(&words), "{words}: {output}");
    }
    let xml = fs::read_to_string(&file).unwrap();
    assert!(xml.contains("tests=\"7\" failures=\"1\" errors=\"0\""), "{xml}");
    let case = xml.split("<testcase").find(|case| case.contains("timeline 1\"")).unwrap();
    assert!(case.contains("<failure type=\"missing\"") && case.contains(&gap.name), "{xml}");
    // Of a cluster of which there is nothing, nothing is wrong either.
    site.pgkeep.add("[cluster.mian]\nconninfo = \"host=/nowhere\"");
    let misspelt = site.pgkeep.run(["--cluster", "mian", "verify"]);
    assert_eq!(misspelt.code, 1, "{misspelt}");
    assert!(misspelt.stdout.contains("there is nothing of cluster mian in this"), "{misspelt}");
    assert!(misspelt.stdout.contains("There is something of main"), "{misspelt}");
    site.pgkeep.edit(|text| text.replace("[cluster.mian]\nconninfo = \"host=/nowhere\"", ""));
    let nowhere = site.pgkeep.fails(["verify", "--junit", "/nowhere/verify.xml"]);
    assert_eq!(nowhere.code, 10, "{nowhere}");
}

fn only_one_backup(site: &Site) {
    for record in [&site.full, &site.after] {
        for level in ["quick", "full"] {
            site.pgkeep.ok(["verify", "--backup", id(record), "--level", level]);
        }
    }
    let unknown = site.pgkeep.fails(["verify", "--backup", "20200101T000000Z-full"]);
    assert_eq!(unknown.code, 1, "{unknown}");
    assert!(unknown.stderr.contains("there is no backup 20200101T000000Z-full"), "{unknown}");
    // What another backup alone needs is none of its business.
    let of_last = |object: &Object| object.name.contains(id(&site.after));
    let own = site.of(ObjectKind::Pack).into_iter().find(of_last).unwrap();
    site.with(&own, remove, || {
        site.pgkeep.ok(["verify", "--backup", id(&site.full)]);
        let output = site.pgkeep.run(["verify", "--backup", id(&site.after)]);
        assert_eq!(output.code, 1, "{output}");
    });
}

/// A repository that can't be reached is an error of its own, and doesn't hide the other one.
fn outages(site: &Site) {
    site.pgkeep.add_repository("second");
    site.pgkeep.init();
    site.pgkeep.ok(["verify"]);
    if on_s3() {
        return;
    }
    let (here, aside) = (site.pgkeep.repository(), site.pgkeep.scratch().path().join("aside"));
    fs::rename(&here, &aside).unwrap();
    let file = site.pgkeep.scratch().path().join("ci/verify.xml");
    let output = site.pgkeep.run(["--output", "json", "verify", "--junit", file.to_str().unwrap()]);
    assert_eq!(output.code, 3, "{output}");
    let document: Value = serde_json::from_str(&output.stdout).unwrap();
    assert_eq!(document["sound"], false, "of the other nobody knows");
    assert_eq!(document["repositories"][0]["repository"], "second");
    assert_eq!(document["repositories"][0]["sound"], true);
    let error: Value = serde_json::from_str(output.stderr.lines().last().unwrap()).unwrap();
    assert_eq!(error["error"]["kind"], "repository");
    let xml = fs::read_to_string(&file).unwrap();
    assert!(xml.contains("errors=\"1\"") && xml.contains("<error type=\"repository\""), "{xml}");
    fs::rename(&aside, &here).unwrap();
    // What was found is told, wherever it can't be written to.
    let output = site.pgkeep.run(["verify", "--junit", "/proc/nobody/verify.xml"]);
    assert_eq!(output.code, 10, "{output}");
    assert!(output.stdout.contains("Repository main is sound."), "{output}");
    // Only the file at its root is gone: that is no outage.
    let root = here.join("repo.json");
    let bytes = fs::read(&root).unwrap();
    remove(&root);
    let output = site.pgkeep.run(["--repo", "main", "verify"]);
    assert_eq!(output.code, 1, "{output}");
    assert!(output.stdout.contains("PROBLEM  repo.json"), "{output}");
    crate::support::scratch::write(&root, bytes);
}

/// Pages that were damaged in the cluster already are in the backup's record, and no news.
#[test]
fn pages_that_were_known_to_be_bad_are_no_problem() {
    let mut cluster = Cluster::builder(17).checksums(true).conf("autovacuum = off").start();
    let pgkeep = Pgkeep::archiving(&cluster);
    cluster.make_table("t", 2000);
    cluster.sql("CHECKPOINT");
    let path = cluster.sql("SELECT pg_relation_filepath('t')");
    cluster.stop(Stop::Fast);
    // In the free room of its third page.
    flip_bit(&cluster.pgdata().join(&path), 2 * 8192 + 60);
    cluster.start();
    let taken = pgkeep.json(["backup"]);
    let bad = &taken["backups"][0]["backup"]["bad-pages"];
    assert_eq!(bad["count"], 1, "{taken:#}");

    let output = pgkeep.ok(["verify", "--level", "full"]);
    assert!(output.stdout.contains("1 page in it has a wrong checksum, as was known"), "{output}");
    assert!(output.stdout.contains(&format!("page 2 of {path}")), "{output}");

    // The server sends only what changed, and says nothing of this page any more; nor does a record that is gone.
    cluster.sql("ALTER SYSTEM SET summarize_wal = on");
    cluster.reload();
    let full = pgkeep.json(["backup", "--type", "full"]);
    cluster.sql("CREATE TABLE other AS SELECT generate_series(1, 1000) AS n");
    let next = pgkeep.json(["backup", "--type", "incr"])["backups"][0]["backup"].take();
    assert_eq!((&next["way"], &next["bad-pages"]), (&"summaries".into(), bad), "{next:#}");
    for older in [&taken, &full] {
        pgkeep.ok(["delete", id(&older["backups"][0]["backup"])]);
    }
    let output = pgkeep.ok(["verify", "--level", "full"]);
    assert!(output.stdout.contains("1 page in it has a wrong checksum, as was known"), "{output}");
}

/// Where the server overwrites, names hold checksums, and two contents of one segment can be there.
#[test]
fn names_that_hold_checksums_are_verified_too() {
    let cluster = Cluster::builder(17).wal_segsize(1).start();
    let traits = Traits { conditional: false, checksums: false };
    let pgkeep = Pgkeep::on_server(&cluster, Server::with(traits));
    pgkeep.init();
    pgkeep.archive(&cluster);
    pgkeep.ok(["backup"]);
    for level in ["quick", "full"] {
        let output = pgkeep.ok(["verify", "--level", level]);
        assert!(output.stdout.ends_with("Repository main is sound.\n"), "{output}");
    }
    let segments = objects_of(&pgkeep.repository(), ObjectKind::Segment);
    let segment = segments.last().unwrap();
    let bytes = fs::read(&segment.path).unwrap();
    // Under another checksum: neither genuine nor alone.
    let (stem, _) = segment.path.to_str().unwrap().rsplit_once('.').unwrap();
    let forged = PathBuf::from(format!("{stem}.0123456789abcdef"));
    crate::support::scratch::write(&forged, &bytes);
    let output = pgkeep.run(["verify"]);
    assert_eq!(output.code, 1, "{output}");
    assert!(output.stdout.contains("there are two contents"), "{output}");
    assert!(output.stdout.contains(forged.file_name().unwrap().to_str().unwrap()), "{output}");
    remove(&forged);
    remove(&segment.path);
    let output = pgkeep.run(["verify"]);
    assert_eq!(output.code, 1, "{output}");
    let missing = stem.rsplit_once('/').unwrap().1;
    assert!(output.stdout.contains(missing), "{output}");
}

/// Below what expiry has cut a backup that is kept as a point needs its own WAL, and no more.
#[test]
fn what_expiry_has_cut_is_not_missed() {
    let cluster = Cluster::builder(17).wal_segsize(1).start();
    let pgkeep = Pgkeep::archiving(&cluster);
    let take = || {
        let mut taken = pgkeep.json(["backup", "--type", "full"]);
        taken["backups"][0]["backup"].take()
    };
    let switch = || {
        cluster.sql("CREATE TABLE IF NOT EXISTS t (n int)");
        cluster.sql("INSERT INTO t VALUES (1)");
        cluster.switch_wal()
    };
    let point = take();
    pgkeep.ok(["pin", id(&point)]);
    (0..3).for_each(|_| drop(switch()));
    let newest = take();
    switch();
    let (after, last) = (switch(), switch());
    let segments = || objects_of(&pgkeep.repository(), ObjectKind::Segment);
    let is_there = |name: &str| segments().iter().any(|object| object.name.ends_with(name));
    wait_until("the last segment arrives", 60, || is_there(&last));
    let before = segments().len();
    pgkeep.ok(["verify"]);
    pgkeep.add("[repository.main.retention]\nfull = 1");
    pgkeep.ok(["expire"]);
    assert!(segments().len() < before, "WAL between the backups has gone");
    for level in ["quick", "full"] {
        let output = pgkeep.ok(["verify", "--level", level]);
        assert!(output.stdout.ends_with("Repository main is sound.\n"), "{output}");
        pgkeep.ok(["verify", "--level", level, "--backup", id(&point)]);
    }

    let without = |name: &str| {
        let object = segments().into_iter().find(|object| object.name.ends_with(name)).unwrap();
        let bytes = fs::read(&object.path).unwrap();
        remove(&object.path);
        let output = pgkeep.run(["--output", "json", "verify"]);
        crate::support::scratch::write(&object.path, bytes);
        assert_eq!(output.code, 1, "{name}: {output}");
        let mut document: Value = serde_json::from_str(&output.stdout).unwrap();
        let problem = document["repositories"][0]["problems"][0].take();
        assert_eq!(problem["object"], object.name.as_str());
        problem
    };
    let file =
        |lsn: &Value| cluster.sql(&format!("SELECT pg_walfile_name({lsn})").replace('"', "'"));
    let own = without(&file(&point["start-lsn"]));
    assert_eq!(own["backups"], Value::Array(vec![point["id"].clone()]), "{own:#}");
    let behind = without(&after);
    assert_eq!(behind["backups"], Value::Array(Vec::new()), "{behind:#}");
    let moments = behind["moments"].as_array().unwrap();
    assert!(!moments.is_empty(), "{behind:#}");
    assert!(moments[0]["from"].as_str() >= newest["stopped-at"].as_str(), "{behind:#}");
}
