//! What PostgreSQL's own tools say of what was restored.

use std::{fs, path::Path};

use sha2::{Digest, Sha256};

use super::{
    cluster::Cluster,
    install::{command, program, run},
    scratch::write,
};

/// What `pg_verifybackup` says of a restored directory that wasn't started yet. Only the one of 15
/// is at hand: of later versions' manifests it gets what its own would have.
pub fn verify_backup(pgdata: &Path) {
    let manifest = fs::read_to_string(pgdata.join("backup_manifest")).expect("read the manifest");
    let aside = pgdata.with_extension("manifest");
    write(&aside, as_version_1(&manifest));
    let verify = program(15, "pg_verifybackup");
    run(command(verify).arg("-n").arg("-m").arg(&aside).arg(pgdata));
}

/// A manifest without the system's identifier, which version 2 added, and with the checksum that it
/// has then.
fn as_version_1(manifest: &str) -> String {
    let (body, last) = manifest.rsplit_once("\"Manifest-Checksum\"").expect("a checksum");
    assert!(last.contains(&hex::encode(Sha256::digest(body))), "the manifest's checksum");
    let lines = body.lines().filter(|line| !line.starts_with("\"System-Identifier\""));
    let body: String = lines.map(|line| format!("{line}\n")).collect();
    let body = body.replacen("-Version\": 2", "-Version\": 1", 1);
    let checksum = hex::encode(Sha256::digest(&body));
    format!("{body}\"Manifest-Checksum\": \"{checksum}\"}}\n")
}

/// That every heap and every B-tree of a running primary is sound, in all its databases.
pub fn check_structures(cluster: &Cluster) {
    run(command(program(15, "pg_amcheck"))
        .arg("-h")
        .arg(cluster.socket_dir())
        .args(["-p", &cluster.port().to_string(), "-U", "postgres"])
        .args(["--all", "--install-missing", "--heapallindexed", "--parent-check"]));
}
