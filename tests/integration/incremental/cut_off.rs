//! Relations that are made shorter while a backup begins.
//!
//! The server is told which files it has to send whole before the checkpoint that the backup begins
//! with; what is cut off in between isn't among them. A vacuum comes there by chance. Here it comes
//! whenever the program asks for the backup.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering::Relaxed},
};

use serde_json::Value;

use super::{Site, assert_over, id, oracle::is_what_a_full_one_is};
use crate::support::{Cluster, gate::Gate, on_each_version};

/// How many tables there are to be cut off.
const TABLES: usize = 8;

on_each_version!(what_is_cut_off_whenever_the_backup_begins_is_compared: 17 postgres_17, 18 postgres_18);

fn what_is_cut_off_whenever_the_backup_begins_is_compared(version: u32) {
    let site = Site::new(Cluster::builder(version));
    let cluster = &site.cluster;
    for table in 0..TABLES {
        cluster.make_table(&format!("t_{table}"), 2000);
    }
    cluster.sql("VACUUM (FREEZE, ANALYZE)");
    let full = site.take("full");
    let cutter = Cutter::before(cluster);

    // Twice something is cut off, and the third backup is one that can be relied on.
    let (third, said) = cutter.take(&site, 2);
    assert_eq!(said.matches("beginning again: a relation was made shorter").count(), 2, "{said}");
    assert!(!said.contains("everything"), "{said}");
    assert_over(&third, &full, version);
    assert_eq!(third["why-compared"], Value::Null);
    is_what_a_full_one_is(&site, &third, "third");

    // As it goes on, everything is compared after three times. That it still goes on is no matter then.
    let (compared, said) = cutter.take(&site, 4);
    assert_eq!(said.matches("beginning again: a relation was made shorter").count(), 3, "{said}");
    let why = "relations are made shorter all the while, and the server's summaries aren't relied on for those";
    let warning = format!(
        "the server is going to send everything, and it is compared with {}: {why}",
        id(&third)
    );
    assert!(said.contains(&warning), "{said}");
    for (key, value) in [("kind", "incr"), ("asked", "incr"), ("base", id(&third))] {
        assert_eq!(compared[key], value, "{compared}");
    }
    assert_eq!((&compared["way"], &compared["why-compared"]), (&"comparison".into(), &why.into()));
    let size = |what: &str| compared["sizes"][what].as_u64().unwrap();
    assert!(size("sent") > size("cluster") && size("changed") < size("cluster") / 4, "{compared}");

    let info = site.pgkeep.json(["info"]);
    let backups = info["repositories"][0]["systems"][0]["backups"].as_array().unwrap();
    assert_eq!(backups.last(), Some(&compared));
    let info = site.pgkeep.ok(["info"]).stdout;
    assert!(info.contains(&format!("{} was compared as a whole: {why}", id(&compared))), "{info}");
    is_what_a_full_one_is(&site, &compared, "compared");

    // And when nothing is cut off any more, the next is again one of changes.
    let next = site.take("incr");
    assert_over(&next, &compared, version);
}

/// Cuts off a table whenever a backup is asked for.
struct Cutter {
    gate: Gate,
    /// How many more times.
    left: Arc<AtomicUsize>,
}

impl Cutter {
    fn before(cluster: &Cluster) -> Self {
        let left = Arc::new(AtomicUsize::new(0));
        let mut session = cluster.session();
        let (counter, mut tables) = (left.clone(), 0..TABLES);
        let gate = Gate::before(cluster, "BASE_BACKUP", move || {
            if counter.load(Relaxed) == 0 {
                return;
            }
            counter.fetch_sub(1, Relaxed);
            let table = tables.next().expect("a table that is whole");
            let pages = format!("SELECT pg_relation_size('t_{table}') / 8192");
            let before: u32 = session.sql(&pages).parse().unwrap();
            session.sql(&format!("DELETE FROM t_{table} WHERE id > 300"));
            session.sql(&format!("VACUUM t_{table}"));
            let after: u32 = session.sql(&pages).parse().unwrap();
            assert!(0 < after && after < before / 4, "{after} of {before} pages are left");
        });
        Cutter { gate, left }
    }

    /// Takes an incremental backup, whose first beginnings this comes before; returns its record and
    /// what was said.
    fn take(&self, site: &Site, times: usize) -> (Value, String) {
        let direct = site.cluster.conninfo();
        self.left.store(times, Relaxed);
        site.pgkeep.edit(|text| text.replace(&direct, &self.gate.conninfo()));
        let output = site.pgkeep.run(["--output", "json", "backup", "--type", "incr"]);
        site.pgkeep.edit(|text| text.replace(&self.gate.conninfo(), &direct));
        assert_eq!(output.code, 0, "{output}");
        assert_eq!(self.left.load(Relaxed), 0, "the backup began less often: {output}");
        let mut taken: Value = serde_json::from_str(&output.stdout).expect("JSON");
        (taken["backups"][0]["backup"].take(), output.stderr)
    }
}
