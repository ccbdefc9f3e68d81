//! New data directories in a tenth of a second: `initdb` runs once for each version and set of
//! options, and its result is copied. Each copy gets a system identifier of its own.

use std::{
    fs::{self, File},
    path::{Path, PathBuf},
    process::Command,
};

use rustix::fs::{FlockOperation, flock};

use super::{
    install::{command, program, run, user},
    scratch::Scratch,
};

/// Makes a data directory at `pgdata`, which mustn't exist yet.
pub fn new_data_directory(version: u32, initdb_options: &[String], pgdata: &Path) {
    let template = template(version, initdb_options);
    copy(&template, pgdata);
    give_new_identity(pgdata);
}

/// Copies a directory with owners, modes and links.
pub fn copy(from: &Path, to: &Path) {
    run(Command::new("cp").arg("-a").arg(from).arg(to));
}

/// The template for these options, made now if it isn't there. Other test processes may be at it
/// too: a lock lets one of them work.
fn template(version: u32, options: &[String]) -> PathBuf {
    let cache = Path::new(env!("CARGO_TARGET_TMPDIR")).join("initdb");
    fs::create_dir_all(&cache).expect("make the template folder");
    let full = run(command(program(version, "postgres")).arg("--version"));
    let mut name = format!("{}-{}-{}", full.trim(), options.join(""), user().uid);
    name.retain(|c| c.is_ascii_alphanumeric() || ".-=".contains(c));
    let template = cache.join(name);

    let lock = File::create(format!("{}.lock", template.display())).expect("open the lock");
    flock(&lock, FlockOperation::LockExclusive).expect("lock");
    if !template.exists() {
        let scratch = Scratch::new("initdb");
        let fresh = scratch.path().join("data");
        run(command(program(version, "initdb"))
            .args(["-U", "postgres", "-A", "trust", "-E", "UTF8", "--locale=C", "--no-sync"])
            .args(options)
            .arg("-D")
            .arg(&fresh));
        let unfinished = PathBuf::from(format!("{}.unfinished", template.display()));
        let _ = fs::remove_dir_all(&unfinished);
        copy(&fresh, &unfinished);
        fs::rename(unfinished, &template).expect("name the template");
    }
    template
}

/// Gives a stopped, never started data directory its own system identifier, in the control file
/// and in the headers of its WAL segments, which the server compares.
fn give_new_identity(pgdata: &Path) {
    let mut identity = [0; 8];
    getrandom::fill(&mut identity).expect("random bytes");
    // initdb's own are seconds since 1970 in the upper half, so never "negative".
    identity[7] &= 0x7f;

    let path = pgdata.join("global/pg_control");
    let mut control = fs::read(&path).expect("read the control file");
    let checksum =
        |bytes: &[u8]| crc_fast::checksum(crc_fast::CrcAlgorithm::Crc32Iscsi, bytes) as u32;
    // The checksum stands at the end of the structure, whose length differs between versions.
    let at = (64..512)
        .step_by(4)
        .find(|at| control[*at..at + 4] == checksum(&control[..*at]).to_le_bytes())
        .expect("the control file has a checksum");
    control[..8].copy_from_slice(&identity);
    let new = checksum(&control[..at]);
    control[at..at + 4].copy_from_slice(&new.to_le_bytes());
    fs::write(&path, control).expect("write the control file");

    for entry in fs::read_dir(pgdata.join("pg_wal")).expect("read pg_wal").flatten() {
        if entry.path().is_file() {
            let mut segment = fs::read(entry.path()).expect("read a segment");
            segment[24..32].copy_from_slice(&identity);
            fs::write(entry.path(), segment).expect("write a segment");
        }
    }
}
