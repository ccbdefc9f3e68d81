//! Drills: what is sound passes, what isn't doesn't, and the original notices nothing.

mod configuration;
mod errors;
mod fails;
mod interrupted;
mod leaves_alone;
mod passes;

use std::{
    fs,
    path::{Path, PathBuf},
};

use serde_json::Value;

use crate::support::{Cluster, Pgkeep, install::program, pgkeep::Output, wait_until};

/// A cluster that archives, and where its drills are done.
struct Site {
    cluster: Cluster,
    pgkeep: Pgkeep,
    /// In which drills make their directories.
    place: PathBuf,
}

impl Site {
    fn of(cluster: Cluster) -> Self {
        let pgkeep = Pgkeep::archiving(&cluster);
        let place = pgkeep.scratch().folder("drills");
        let bin = program(cluster.version(), "postgres");
        pgkeep.add(&format!(
            "[drill]\nbin-dir = \"{}\"\ndirectory = \"{}\"",
            bin.parent().unwrap().display(),
            place.display()
        ));
        Site { cluster, pgkeep, place }
    }

    fn new(version: u32) -> Self {
        Site::of(Cluster::builder(version).wal_segsize(1).checksums(true).start())
    }

    /// Adds queries to the configuration: database, SQL, what has to come.
    fn queries(&self, queries: &[(&str, &str, &str)]) {
        let entries = queries.iter().map(|(database, sql, expect)| {
            format!("  {{ database = {database:?}, sql = {sql:?}, expect = {expect:?} }},\n")
        });
        self.pgkeep.set("drill", &format!("queries = [\n{}]", entries.collect::<String>()));
    }

    fn backup(&self, kind: &str) -> String {
        let taken = self.pgkeep.json(["backup", "--type", kind]);
        taken["backups"][0]["backup"]["id"].as_str().expect("an id").to_owned()
    }

    /// Closes the segment in use and waits until all WAL up to it is archived.
    fn archive_all(&self) -> String {
        let closed = self.cluster.switch_wal();
        let status = self.cluster.pgdata().join(format!("pg_wal/archive_status/{closed}.ready"));
        let last = "SELECT coalesce(last_archived_wal, '') FROM pg_stat_archiver";
        wait_until(&format!("{closed} is archived"), 60, || {
            self.cluster.sql(last)[..] >= closed[..] && !status.exists()
        });
        closed
    }

    /// Does a drill that comes to a verdict, after which nothing may be left.
    fn drill(&self, arguments: &[&str]) -> Drilled {
        let output = self.pgkeep.run([&["--output", "json", "drill"], arguments].concat());
        assert!(matches!(output.code, 0 | 1), "{output}");
        let document: Value =
            serde_json::from_str(&output.stdout).unwrap_or_else(|e| panic!("{e}: {output}"));
        assert_eq!(document["passed"], output.code == 0, "{output}");
        self.nothing_is_left();
        Drilled { document, output }
    }

    fn nothing_is_left(&self) {
        assert_eq!(names(&self.place), Vec::<String>::new(), "{}", self.place.display());
        // What fetches ahead looks every few hundredths of a second whether its server is still there, and gives way to
        // everything else meanwhile.
        let here = || processes_in(&self.place);
        wait_until(&format!("these processes have ended: {:?}", here()), 5, || here().is_empty());
    }
}

/// What came of a drill.
struct Drilled {
    document: Value,
    output: Output,
}

impl Drilled {
    fn passed(self) -> Value {
        assert_eq!(self.output.code, 0, "{}", self.output);
        self.document
    }

    /// The text of the only check that failed, which has this name; with its details.
    fn failed(self, name: &str) -> String {
        let checks = self.document["checks"].as_array().expect("checks");
        let failed: Vec<&Value> = checks.iter().filter(|c| c["outcome"] == "failed").collect();
        assert_eq!(failed.len(), 1, "{}", self.output);
        assert_eq!(failed[0]["name"], name, "{}", self.output);
        let details = failed[0]["details"].as_array().cloned().unwrap_or_default();
        let lines = details.iter().map(|line| format!("\n{}", line.as_str().unwrap()));
        format!("{}{}", failed[0]["text"].as_str().unwrap(), lines.collect::<String>())
    }
}

/// What came of a check.
fn outcome<'d>(document: &'d Value, name: &str) -> &'d str {
    let checks = document["checks"].as_array().expect("checks");
    let check = checks.iter().find(|check| check["name"] == name);
    check.unwrap_or_else(|| panic!("{name}: {document:#}"))["outcome"].as_str().expect("a word")
}

fn names(folder: &Path) -> Vec<String> {
    let mut names: Vec<String> = fs::read_dir(folder)
        .expect("read a folder")
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

/// The processes that work below a directory.
fn processes_in(folder: &Path) -> Vec<String> {
    let processes = fs::read_dir("/proc").expect("read /proc").flatten();
    processes
        .filter(|process| {
            let cwd = fs::read_link(process.path().join("cwd")).unwrap_or_default();
            cwd.starts_with(folder)
        })
        .map(|process| {
            let line = fs::read(process.path().join("cmdline")).unwrap_or_default();
            String::from_utf8_lossy(&line).replace('\0', " ")
        })
        .collect()
}
