//! A host that has nothing but the binary, the repository and the key.

use std::{fs, path::Path, process::Command};

use super::Site;
use crate::support::{Cluster, install, places::skipped_on_s3, scratch};

/// A root directory with the binary, the libraries it is linked with, and copies of repository and
/// key in other places than they were made at. Only root can enter another root directory.
#[test]
fn a_bare_root_with_binary_repository_and_key_restores() {
    if skipped_on_s3("the root is given a directory") {
        return;
    }
    let site = Site::new(15);
    site.cluster.make_table("t", 1_000);
    let expected = site.cluster.digest("t");
    site.pgkeep.ok(["backup"]);

    let root = site.place("root");
    for folder in ["etc", "srv", "tmp"] {
        fs::create_dir_all(root.join(folder)).unwrap();
    }
    let binary = install::pgkeep_binary();
    fs::copy(binary, root.join("pgkeep")).unwrap();
    for library in libraries(binary) {
        let inside = root.join(library.trim_start_matches('/'));
        fs::create_dir_all(inside.parent().unwrap()).unwrap();
        fs::copy(&library, inside).unwrap();
    }
    let copied =
        Command::new("cp").arg("-a").arg(site.pgkeep.repository()).arg(root.join("srv/r")).status();
    assert!(copied.unwrap().success());
    fs::copy(site.pgkeep.key_file("main"), root.join("srv/key")).unwrap();
    for place in ["srv", "srv/key", "tmp"] {
        scratch::own(&root.join(place));
    }

    let restored = root.join("srv/restored");
    if install::is_root() {
        let user = install::user();
        let mut command = Command::new("/usr/sbin/chroot");
        command.arg(format!("--userspec={}:{}", user.uid, user.gid)).arg(&root).arg("/pgkeep");
        restore(command, "/srv/r", "/srv/key", "/srv/restored");
    } else {
        eprintln!("not root: the host's own root directory stands in for a bare one");
        let inside = |path: &str| root.join(path).display().to_string();
        restore(
            install::command(binary),
            &inside("srv/r"),
            &inside("srv/key"),
            &inside("srv/restored"),
        );
    }
    let mut cluster = Cluster::at(&restored, 15);
    // The command that was written is of the other root; here the server runs outside it.
    cluster.option(&format!("restore_command={}", site.pgkeep.restore_command()));
    cluster.start();
    cluster.wait_for_primary(60);
    assert_eq!(cluster.digest("t"), expected);
}

/// Lists and restores with an environment that has only what the documentation names.
fn restore(mut pgkeep: Command, repository: &str, key: &str, pgdata: &str) {
    pgkeep
        .env_clear()
        .env("PGKEEP_REPOSITORY__MAIN__URL", format!("file://{repository}"))
        .env("PGKEEP_REPOSITORY__MAIN__KEY_FILE", key);
    let run = |command: &mut Command| {
        let output = command.output().expect("run pgkeep");
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success(), "{command:?}: {text}");
        String::from_utf8_lossy(&output.stdout).into_owned()
    };
    let program = pgkeep.get_program().to_owned();
    let mut info = Command::new(program);
    info.args(pgkeep.get_args()).arg("info").env_clear();
    for (name, value) in pgkeep.get_envs() {
        info.env(name, value.unwrap_or_default());
    }
    assert!(run(&mut info).contains("-full"));
    run(pgkeep.args(["restore", "--archive-mode", "off", "--pgdata", pgdata]));
}

/// The shared libraries of a program, its loader included.
fn libraries(program: &Path) -> Vec<String> {
    let output = Command::new("ldd").arg(program).output().expect("run ldd");
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let paths = text.split_whitespace().filter(|word| word.starts_with('/'));
    paths.map(str::to_owned).collect()
}
