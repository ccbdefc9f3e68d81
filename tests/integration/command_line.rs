//! The command line without a server: help, wrong usage, exit codes, and what errors look like.

use std::{
    fs,
    io::Write,
    os::unix::fs::PermissionsExt,
    path::Path,
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use assert_cmd::prelude::*;
use rustix::process::Signal;

use crate::support::{Cluster, Pgkeep, wait_until};

const COMMANDS: [&str; 11] = [
    "init",
    "check",
    "archive-push",
    "archive-get",
    "backup",
    "restore",
    "info",
    "verify",
    "delete",
    "pin",
    "unpin",
];
const SEGMENT: &str = "000000010000000000000001";
const TARGET: &str = "pg_wal/RECOVERYXLOG";

/// pgkeep in a directory of its own, with an empty configuration.
struct Room {
    folder: tempfile::TempDir,
}

struct Said {
    code: i32,
    stdout: String,
    stderr: String,
}

impl Room {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        fs::create_dir_all(folder.path().join("pg_wal")).unwrap();
        fs::write(folder.path().join("PG_VERSION"), "17\n").unwrap();
        let room = Room { folder };
        room.configure("");
        room
    }

    fn path(&self) -> &Path {
        self.folder.path()
    }

    /// A configuration with one repository, in `r` below, and one cluster.
    fn configured() -> Self {
        let room = Room::new();
        let path = room.path().display();
        room.configure(&format!(
            "[repository.main]\nurl = \"file://{path}/r\"\nkey-file = \"{path}/main.key\"\n\
             [cluster.main]\noutage-timeout = \"0s\"\n"
        ));
        room
    }

    fn configure(&self, text: &str) {
        let file = self.path().join("pgkeep.toml");
        fs::write(&file, text).unwrap();
        fs::set_permissions(&file, fs::Permissions::from_mode(0o600)).unwrap();
    }

    fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_pgkeep"));
        command.env_clear().env("PGKEEP_CONFIG", self.path().join("pgkeep.toml"));
        command.current_dir(self.path()).args(args).stdin(Stdio::null());
        command
    }

    /// Runs it; the room's own path is shown as ROOM.
    fn run(&self, args: &[&str]) -> Said {
        let output = self.command(args).output().unwrap();
        let text = |bytes: &[u8]| {
            String::from_utf8_lossy(bytes).replace(&self.path().display().to_string(), "ROOM")
        };
        Said {
            code: output.status.code().expect("not ended by a signal"),
            stdout: text(&output.stdout),
            stderr: text(&output.stderr),
        }
    }
}

#[test]
fn help_and_version_are_answers() {
    let room = Room::new();
    for args in [vec!["--help"], vec!["-h"], vec!["--version"], vec!["help"]] {
        let said = room.run(&args);
        assert_eq!((said.code, said.stderr.as_str()), (0, ""), "{args:?}");
        assert!(said.stdout.contains("pgkeep"), "{args:?}");
    }
    let help = room.run(&["--help"]).stdout;
    for command in COMMANDS {
        assert!(help.contains(command), "{command}");
        let said = room.run(&[command, "--help"]);
        assert_eq!((said.code, said.stderr.as_str()), (0, ""), "{command}");
        assert!(said.stdout.contains("Example"), "{command}");
    }
    room.command(&["help"]).assert().success();
}

#[test]
fn wrong_usage_is_2_and_says_what_is_wrong() {
    let room = Room::new();
    for (args, what) in [
        (vec![], "Usage"),
        (vec!["inf"], "inf"),
        (vec!["info", "--nope"], "--nope"),
        (vec!["info", "extra"], "extra"),
        (vec!["--output", "xml", "info"], "xml"),
        (vec!["-q", "-v", "info"], "--verbose"),
        (vec!["restore"], "--pgdata"),
        (
            vec!["restore", "--pgdata", "/x", "--target-time", "2026-11-20 20:12:27"],
            "zone is missing",
        ),
        (vec!["restore", "--pgdata", "/x", "--target-lsn", "17"], "16/B374D848"),
        (vec!["restore", "--pgdata", "/x", "--target-xid", "2"], "--target-xid"),
        (
            vec!["restore", "--pgdata", "/x", "--target-xid", "5", "--target-immediate"],
            "cannot be used",
        ),
        (vec!["restore", "--pgdata", "/x", "--target-timeline", "0000001A"], "0x1A"),
        (vec!["restore", "--pgdata", "/x", "--backup", "latest"], "20261120T195812Z-full"),
        (vec!["restore", "--pgdata", "/x", "--target-exclusive"], "--target-exclusive needs"),
        (vec!["restore", "--pgdata", "/x", "--target-action", "promote"], "--target-action needs"),
        (vec!["restore", "--pgdata", "/x", "--tablespace-map", "16401"], "16401=/new/place"),
        (vec!["restore", "--pgdata", "/x", "--set", "port"], "NAME=VALUE"),
        (vec!["backup", "--type", "partial"], "partial"),
        (vec!["backup", "--max-rate", "1G"], "50M"),
        (vec!["info"], "no repository is configured"),
    ] {
        let said = room.run(&args);
        assert_eq!((said.code, said.stdout.as_str()), (2, ""), "{args:?}: {}", said.stderr);
        assert!(said.stderr.contains(what), "{args:?}: {}", said.stderr);
        let begins = said.stderr.starts_with("pgkeep: ") || args.is_empty();
        assert!(begins, "{args:?}: {}", said.stderr);
    }
    insta::assert_snapshot!(room.run(&["inf"]).stderr, @r"
    pgkeep: unrecognized subcommand 'inf'
    hint: some similar subcommands exist: 'init', 'info'
    hint: usage: pgkeep [OPTIONS] <COMMAND>
    hint: pgkeep COMMAND --help says how it is used
    ");
    insta::assert_snapshot!(room.run(&["restore"]).stderr, @r"
    pgkeep: the following required arguments were not provided: --pgdata <DIR>
    hint: usage: pgkeep restore --pgdata <DIR>
    hint: pgkeep COMMAND --help says how it is used
    ");
}

#[test]
fn archive_get_is_126_whenever_it_cant_tell() {
    let unset = Room::new();
    let bad = Room::new();
    bad.configure("[repository.main]\nurl = 1");
    let unreadable = Room::configured();
    fs::remove_file(unreadable.path().join("pgkeep.toml")).unwrap();
    fs::create_dir(unreadable.path().join("pgkeep.toml")).unwrap();
    let outage = Room::configured();
    for (room, args) in [
        (&unset, vec!["archive-get", SEGMENT, TARGET]),
        (&unset, vec!["archive-get"]),
        (&unset, vec!["archive-get", SEGMENT]),
        (&unset, vec!["archive-get", SEGMENT, TARGET, "more"]),
        (&unset, vec!["archive-get", "--nope", SEGMENT, TARGET]),
        (&unset, vec!["--config", "archive-get", SEGMENT, TARGET]),
        (&unset, vec!["archiveget", SEGMENT, TARGET]),
        (&unset, vec!["--config", "/nowhere", "archive-get", SEGMENT, TARGET]),
        (&bad, vec!["archive-get", SEGMENT, TARGET]),
        (&unreadable, vec!["archive-get", SEGMENT, TARGET]),
        (&outage, vec!["archive-get", SEGMENT, TARGET]),
        (&outage, vec!["archive-get", "pg_wal", TARGET]),
        (&outage, vec!["--cluster", "other", "archive-get", SEGMENT, TARGET]),
        (&outage, vec!["--repo", "other", "archive-get", SEGMENT, TARGET]),
        (&outage, vec!["--output", "json", "archive-get", SEGMENT, TARGET]),
    ] {
        let said = room.run(&args);
        assert_eq!((said.code, said.stdout.as_str()), (126, ""), "{args:?}: {}", said.stderr);
        assert_eq!(said.stderr.lines().count(), 1, "{args:?}: {}", said.stderr);
    }
}

#[test]
fn archive_push_stays_below_126() {
    let unset = Room::new();
    let outage = Room::configured();
    let path = &format!("pg_wal/{SEGMENT}");
    fs::write(outage.path().join(path), "not a segment").unwrap();
    for (room, args) in [
        (&unset, vec!["archive-push", path]),
        (&unset, vec!["archive-push"]),
        (&unset, vec!["archive-push", "--nope", path]),
        (&unset, vec!["--config", "/nowhere", "archive-push", path]),
        (&outage, vec!["archive-push", path]),
        (&outage, vec!["archive-push", "pg_wal/other"]),
        (&outage, vec!["--repo", "main", "archive-push", path]),
    ] {
        let said = room.run(&args);
        assert!((1..=125).contains(&said.code), "{args:?}: {} {}", said.code, said.stderr);
        assert_eq!(said.stdout, "");
        assert_eq!(said.stderr.lines().count(), 1, "{args:?}: {}", said.stderr);
    }
}

/// A death by SIGTERM would be 143, which PostgreSQL takes for a shutdown.
#[test]
fn a_signal_is_answered_with_an_exit_code() {
    let cluster = Cluster::builder(15).make();
    let keep = Pgkeep::new(&cluster);
    keep.init();
    // A command that waits for a passphrase waits long enough.
    let asked = keep.scratch().path().join("asked");
    let key = format!("key-file = \"{}\"", keep.key_file("main").display());
    let command = format!("passphrase-command = \"touch {}; exec sleep 60\"", asked.display());
    keep.edit(|text| text.replace(&key, &command));
    let target = cluster.pgdata().join(TARGET).display().to_string();
    let segment = cluster.pgdata().join("pg_wal").join(SEGMENT).display().to_string();
    for (args, signal, code) in [
        (vec!["archive-get", SEGMENT, &target], Signal::TERM, 126),
        (vec!["archive-get", SEGMENT, &target], Signal::INT, 126),
        (vec!["archive-get", SEGMENT, &target], Signal::QUIT, 126),
        (vec!["archive-get", SEGMENT, &target], Signal::USR1, 126),
        (vec!["archive-push", &segment], Signal::TERM, 11),
        (vec!["archive-push", &segment], Signal::HUP, 11),
        (vec!["archive-push", &segment], Signal::XCPU, 11),
        (vec!["info"], Signal::INT, 11),
        (vec!["backup"], Signal::TERM, 11),
        (vec!["restore", "--pgdata", "/nowhere"], Signal::TERM, 11),
    ] {
        let _ = fs::remove_file(&asked);
        let running = keep.spawn(&args);
        wait_until("the passphrase is asked for", 30, || asked.exists());
        let begun = Instant::now();
        running.signal(signal);
        let output = running.wait();
        assert_eq!(output.code, code, "{args:?}: {output}");
        assert!(output.stderr.contains("stopped by SIG"), "{args:?}: {output}");
        assert!(begun.elapsed() < Duration::from_secs(30), "{args:?} went on waiting");
    }
    assert!(!Path::new(&target).exists());
}

/// A process that writes an error into a full pipe is past its first milliseconds, and has done none
/// of its work yet.
#[test]
fn a_signal_before_the_work_begins_leaves_the_exit_code_alone() {
    let room = Room::new();
    for (command, code) in [("archive-get", 126), ("archive-push", 2)] {
        let (mut reader, mut writer) = std::io::pipe().unwrap();
        rustix::io::ioctl_fionbio(&writer, true).unwrap();
        while writer.write(&[b'x'; 4096]).is_ok() {}
        rustix::io::ioctl_fionbio(&writer, false).unwrap();
        let mut child = room.command(&[command, "--nope"]).stderr(writer).spawn().unwrap();
        let stat = format!("/proc/{}/stat", child.id());
        let sleeps = || fs::read_to_string(&stat).unwrap().contains(") S ");
        wait_until("it writes", 30, || {
            std::thread::sleep(Duration::from_millis(300));
            sleeps()
        });
        let pid = rustix::process::Pid::from_child(&child);
        rustix::process::kill_process(pid, Signal::TERM).unwrap();
        std::thread::sleep(Duration::from_millis(100));
        std::io::copy(&mut reader, &mut std::io::sink()).unwrap();
        assert_eq!(child.wait().unwrap().code(), Some(code), "{command}");
    }
}

#[test]
fn errors_say_what_is_wrong_and_what_to_do() {
    let room = Room::configured();
    let path = room.path().display();
    insta::assert_snapshot!(room.run(&["info"]).stderr, @r"
    pgkeep: open the repository file://ROOM/r: No such file or directory (os error 2)
    hint: is the disk mounted, and is the url right? `pgkeep init` makes a new repository
    ");
    let text = room.run(&["--repo", "other", "info"]).stderr;
    insta::assert_snapshot!(text, @r"
    pgkeep: no repository other is configured
    hint: configured: main
    ");
    insta::assert_snapshot!(
        room.run(&["--output", "json", "--repo", "other", "info"]).stderr,
        @r#"{"error":{"kind":"usage","message":"no repository other is configured","hints":["configured: main"]}}"#
    );
    room.configure(&format!("[repository.main]\nurl = \"file://{path}/r\"\nkeyfile = \"/k\"\n"));
    insta::assert_snapshot!(room.run(&["info"]).stderr, @r"
    pgkeep: unknown key repository.main.keyfile (ROOM/pgkeep.toml, line 3)
    hint: [repository.NAME] takes url, key-file, passphrase-file, passphrase-command, encryption, compression-level, and the tables [repository.NAME.s3] and [repository.NAME.retention]
    ");
    // TOML's own word for this would be about booleans.
    room.configure(&format!("[repository.main]\nurl = file://{path}/r\n"));
    insta::assert_snapshot!(room.run(&["info"]).stderr, @r#"
    pgkeep: ROOM/pgkeep.toml, line 2: the value of url is a text without quotes
    hint: a text is in quotes: url = "…"
    "#);
    room.configure(&format!("[repository.main]\nurl = \"file://{path}/r\"\nkeyfile = \"/k\"\n"));
    // A server's log gets one line.
    insta::assert_snapshot!(
        room.run(&["archive-push", "x"]).stderr,
        @"pgkeep: unknown key repository.main.keyfile (ROOM/pgkeep.toml, line 3) (hint: [repository.NAME] takes url, key-file, passphrase-file, passphrase-command, encryption, compression-level, and the tables [repository.NAME.s3] and [repository.NAME.retention])"
    );
}

#[test]
fn a_key_file_that_was_there_is_named_and_a_damaged_one_is_brought_back_from_its_copy() {
    let room = Room::configured();
    let key = room.path().join("main.key");
    assert_eq!(room.run(&["init"]).code, 0);
    fs::remove_dir_all(room.path().join("r")).unwrap();
    let again = room.run(&["init"]).stdout;
    assert!(again.contains("ROOM/main.key, which was there and is used"), "{again}");
    fs::remove_dir_all(room.path().join("r")).unwrap();
    let json = room.run(&["--output", "json", "init"]).stdout;
    let json: serde_json::Value = serde_json::from_str(&json).unwrap();
    let made = &json["repositories"][0];
    assert!(made["key-file"].is_null() && made["used-key-file"].is_string(), "{json}");

    let text = fs::read_to_string(&key).unwrap();
    for damaged in [text.replace("pgkeep-key", "pgkeep-kex"), text[..60].to_owned()] {
        fs::write(&key, damaged).unwrap();
        let said = room.run(&["info"]);
        assert_eq!(said.code, 5, "{}", said.stderr);
        assert!(said.stderr.contains("from the copy"), "{}", said.stderr);
    }
}

#[test]
fn who_may_not_is_told_who_may() {
    let cluster = Cluster::builder(15).make();
    let keep = Pgkeep::new(&cluster);
    keep.init();
    let denied = |path: &Path, said: &str| {
        let meta = fs::metadata(path).unwrap();
        fs::set_permissions(path, fs::Permissions::from_mode(0o000)).unwrap();
        let output = keep.fails(["info"]);
        fs::set_permissions(path, meta.permissions()).unwrap();
        assert!(output.stderr.contains(said), "{output}");
        let who = format!("hint: {} belongs to ", path.display());
        for words in [&*who, "and has mode 0000, this process runs as ", "chown or chmod"] {
            assert!(output.stderr.contains(words), "{words}: {output}");
        }
    };
    denied(&keep.key_file("main"), "key file");
    denied(keep.config(), "configuration file");
    denied(&keep.repository().join("keys"), "keys");
    denied(keep.repository().parent().unwrap(), "open the repository");
    denied(&keep.repository().join("repo.json"), "repo.json");
}

#[test]
fn where_there_is_no_backup_it_is_said_how_to_take_one() {
    let keep = Pgkeep::without_cluster();
    keep.init();
    let refused = keep.fails(["restore", "--pgdata", "/nowhere/data"]);
    assert_eq!(refused.code, 8, "{refused}");
    assert!(refused.stderr.contains("`pgkeep backup` takes one"), "{refused}");
}

#[test]
fn a_repository_is_made_once() {
    let room = Room::configured();
    let said = room.run(&["init"]);
    assert_eq!(said.code, 0);
    // Only root is told something: what it makes is of no use to a server.
    let is_root = crate::support::install::is_root();
    assert_eq!(said.stderr.contains("belong to root now"), is_root, "{}", said.stderr);
    assert_eq!(said.stderr.lines().count(), usize::from(is_root), "{}", said.stderr);
    let id = said.stdout.lines().find_map(|l| l.trim().strip_prefix("id").map(str::trim)).unwrap();
    insta::assert_snapshot!(said.stdout.replace(id, "ID"), @r"
    made the repository main
      url         file://ROOM/r
      id          ID
      encryption  AES-256-GCM
      key file    ROOM/main.key
    Copy the key file to another machine now: without it nothing can be restored.
    ");
    let key = fs::metadata(room.path().join("main.key")).unwrap();
    assert_eq!(key.permissions().mode() & 0o7777, 0o600);
    let again = room.run(&["init"]);
    assert_eq!((again.code, again.stdout.as_str()), (9, ""));
    insta::assert_snapshot!(again.stderr, @"pgkeep: there is a repository at file://ROOM/r already");
    let path = room.path().display();
    room.configure(&format!(
        "[repository.main]\nurl = \"file://{path}/r\"\nkey-file = \"{path}/main.key\"\n\
         [repository.plain]\nurl = \"file://{path}/plain\"\nencryption = \"none\"\n"
    ));
    let json: serde_json::Value =
        serde_json::from_str(&room.run(&["--output", "json", "init"]).stdout).unwrap();
    let made = &json["repositories"][0];
    assert_eq!((made["name"].as_str(), made["encrypted"].as_bool()), (Some("plain"), Some(false)));
    assert!(json["repositories"][1].is_null(), "the other one was there");
}

#[test]
fn a_key_file_can_be_read_by_its_owner_whatever_the_umask_is() {
    let room = Room::configured();
    let mut init = room.command(&["init"]);
    let program = init.get_program().to_owned();
    let made = Command::new("sh")
        .args(["-c", "umask 777 && exec \"$0\" init"])
        .arg(program)
        .envs(init.get_envs().filter_map(|(key, value)| Some((key, value?))))
        .output()
        .unwrap();
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    let key = fs::metadata(room.path().join("main.key")).unwrap();
    assert_eq!(key.permissions().mode() & 0o7777, 0o600);
    assert_eq!(init.status().unwrap().code(), Some(9), "it is there");
}

#[test]
fn secrets_are_never_shown() {
    let room = Room::new();
    let path = room.path().display();
    room.configure(&format!(
        "[repository.main]\nurl = \"file://{path}/r\"\n\
         passphrase-command = \"echo hunter2-and-more\"\n\
         [cluster.main]\nconninfo = \"host={path} user=u password=hunter2-too\"\n"
    ));
    for args in [
        vec!["-vv", "init"],
        vec!["-vv", "info"],
        vec!["-vv", "backup"],
        vec!["-vv", "archive-get", SEGMENT, TARGET],
        vec!["-vv", "--output", "json", "backup"],
    ] {
        let said = room.run(&args);
        let all = format!("{}{}", said.stdout, said.stderr);
        assert!(!all.contains("hunter2"), "{args:?}: {all}");
    }
}

#[test]
fn whoever_stops_listening_still_gets_the_exit_code() {
    let room = Room::new();
    let into_broken_pipe = || std::io::pipe().unwrap().1;
    let code = |command: &mut Command| command.status().unwrap().code();
    assert_eq!(code(room.command(&["--help"]).stdout(into_broken_pipe())), Some(0));
    assert_eq!(code(room.command(&["info"]).stderr(into_broken_pipe())), Some(2));
    let get = ["archive-get", SEGMENT, TARGET];
    assert_eq!(code(room.command(&get).stderr(into_broken_pipe())), Some(126));
}
