//! Credentials that may do less: what isn't told isn't taken for absent, and what `docs/s3.md` says
//! that a command needs is what it needs.

use std::{collections::BTreeSet, fs, path::PathBuf};

use crate::support::{
    Cluster, Pgkeep,
    install::{command, pgkeep_binary},
    objects::objects,
    pgkeep::{Output, run_to_end},
    s3::{
        BUCKET, Server, Wire,
        policy::{DENIED, Documented, Needs, Policy, action, commands},
    },
    scratch, wait_until,
};

const ABSENT: &str = "0000000100000000000000F0";

/// A repository with one segment, and credentials without `s3:ListBucket`.
struct Place {
    cluster: Cluster,
    pgkeep: Pgkeep,
    wire: Wire,
    segment: String,
}

impl Place {
    fn new() -> Self {
        let cluster = Cluster::builder(15).wal_segsize(1).start();
        let pgkeep = Pgkeep::on_server(&cluster, Server::start());
        pgkeep.init();
        pgkeep.archive(&cluster);
        pgkeep.ok(["check"]);
        let segment = cluster.switch_wal();
        let server = pgkeep.server().expect("a server");
        let wire = Wire::to(server.address());
        pgkeep.edit(|text| text.replace(&server.endpoint(), &wire.endpoint()));
        pgkeep.set("cluster.main", "outage-timeout = \"0s\"");
        let pushed = pgkeep.run_in(cluster.pgdata(), ["archive-push", &wal(&segment)]);
        assert_eq!(pushed.code, 0, "{pushed}");
        Place { cluster, pgkeep, wire, segment }
    }

    fn get(&self, segment: &str) -> Output {
        let arguments = ["archive-get", segment, "pg_wal/RECOVERYXLOG"];
        self.pgkeep.run_in(self.cluster.pgdata(), arguments)
    }

    fn objects(&self) -> PathBuf {
        self.pgkeep.server().expect("a server").objects("")
    }
}

fn wal(segment: &str) -> String {
    format!("pg_wal/{segment}")
}

#[test]
fn without_permission_to_list_a_missing_object_is_not_absent() {
    let place = Place::new();
    assert_eq!(place.get(ABSENT).code, 1, "who may list hears that it isn't there");

    // S3 answers 403 then for a key that isn't there, and lists nothing.
    let objects = place.objects();
    assert!(objects.ends_with(BUCKET));
    let is_missing = move |key: &str| !objects.join(key).exists();
    let missing = is_missing.clone();
    place.wire.plan(move |request| match request.operation {
        "GetObject" | "HeadObject" => missing(&request.key).then_some(DENIED),
        // The keys are found by listing: that may be allowed on its own.
        "ListObjectsV2" => (!request.key.ends_with("/keys/")).then_some(DENIED),
        _ => None,
    });
    assert_eq!(place.get(&place.segment).code, 0);
    let absent = place.get(ABSENT);
    assert_eq!(absent.code, 126, "{absent}");
    assert!(absent.stderr.contains("AccessDenied"), "{absent}");
    assert!(absent.stderr.contains("docs/s3.md says which permissions"), "{absent}");
    let next = place.cluster.switch_wal();
    let pushed = place.pgkeep.run_in(place.cluster.pgdata(), ["archive-push", &wal(&next)]);
    assert!((3..=125).contains(&pushed.code), "{pushed}");
    assert!(pushed.stderr.contains("AccessDenied"), "{pushed}");

    // And nothing at all without the keys.
    place.wire.plan(move |request| match request.operation {
        "GetObject" | "HeadObject" => is_missing(&request.key).then_some(DENIED),
        "ListObjectsV2" => Some(DENIED),
        _ => None,
    });
    for segment in [&place.segment, ABSENT] {
        let got = place.get(segment);
        assert_eq!(got.code, 126, "{got}");
        assert!(got.stderr.contains("AccessDenied"), "{got}");
    }
}

/// A cluster, and a repository where the document has it, with two backups, one of them pinned.
struct Office {
    cluster: Cluster,
    pgkeep: Pgkeep,
    /// What the server archives by: a way that always works.
    direct: PathBuf,
    /// One that is stored, and one that isn't yet.
    segments: [String; 2],
    backups: Vec<String>,
}

/// What a run of a command came to.
struct Ran {
    output: Output,
    /// The actions that were refused, and all that were asked for.
    refused: BTreeSet<String>,
    asked: BTreeSet<String>,
    server: Server,
}

impl Office {
    fn new() -> Self {
        let cluster = Cluster::builder(15).wal_segsize(1).conf("wal_keep_size = 1GB").start();
        let pgkeep = Pgkeep::on_server(&cluster, Server::start());
        pgkeep
            .edit(|text| text.replace(&format!("{BUCKET}/main"), &format!("{BUCKET}/some/prefix")));
        pgkeep.server().expect("a server").make_prefix("some/prefix");
        pgkeep.init();
        let direct = pgkeep.scratch().file("direct.toml", fs::read(pgkeep.config()).expect("read"));
        let call = format!("{} --config {}", pgkeep_binary().display(), direct.display());
        cluster.conf(&format!("archive_command = '{call} archive-push %p'"));
        cluster.reload();
        pgkeep.ok(["check"]);
        let mut backups = Vec::new();
        for _ in 0..2 {
            let taken = pgkeep.json(["backup", "--type", "full"]);
            backups.push(taken["backups"][0]["backup"]["id"].as_str().expect("an id").to_owned());
        }
        pgkeep.ok(["pin", &backups[0]]);
        let stored = cluster.switch_wal();
        wait_until("it is archived", 60, || {
            cluster.sql("SELECT last_archived_wal FROM pg_stat_archiver") >= stored
        });
        cluster.conf("archive_command = ''");
        cluster.reload();
        let next = cluster.switch_wal();
        cluster.conf(&format!("archive_command = '{call} archive-push %p'"));
        Office { cluster, pgkeep, direct, segments: [stored, next], backups }
    }

    /// The arguments of a command that has something to do.
    fn arguments(&self, command: &str) -> Vec<String> {
        let file = |name: &str| self.pgkeep.scratch().path().join(name).display().to_string();
        let [stored, next] = &self.segments;
        let own = match command {
            "archive-get" => vec![stored.clone(), file("got")],
            "archive-push" => vec![wal(next)],
            "restore" => {
                let place = file("restored");
                let _ = fs::remove_dir_all(&place);
                vec!["--archive-mode".into(), "off".into(), "--pgdata".into(), place]
            }
            "pin" | "unpin" => vec![self.backups[0].clone()],
            "delete" => vec![self.backups[1].clone()],
            _ => Vec::new(),
        };
        [vec![command.to_owned()], own].concat()
    }

    /// Runs a command with a policy, on a server with what there was in the beginning.
    fn run(&self, command: &str, policy: &Policy) -> Ran {
        let original = self.pgkeep.server().expect("a server");
        let server = original.copy();
        if command == "init" {
            fs::remove_dir_all(server.objects("some/prefix")).expect("remove the repository");
            server.make_prefix("some/prefix");
        }
        self.run_on(server, command, policy)
    }

    fn run_on(&self, server: Server, name: &str, policy: &Policy) -> Ran {
        let original = self.pgkeep.server().expect("a server");
        let wire = Wire::to(server.address());
        let text = fs::read_to_string(self.pgkeep.config()).expect("read the configuration");
        let to = |endpoint: &str| text.replace(&original.endpoint(), endpoint);
        scratch::write(&self.direct, to(&server.endpoint()));
        let rules = "[repository.main.retention]\nminimum = 1\n";
        let rules = if name == "expire" { rules } else { "" };
        let config = format!("{}\n{rules}", to(&wire.endpoint()));
        let config = self.pgkeep.scratch().file("policy.toml", config);
        // What it needs of the server is archived by the way that works.
        self.cluster.reload();
        if name == "check" {
            // WAL of the commands before it went to other copies: this one has it behind a gap, which
            // check would tell of, unless there is a backup after it.
            let mut backup = command(pgkeep_binary());
            backup.arg("--config").arg(&self.direct).args(["backup", "--type", "full"]);
            let taken = run_to_end(backup.current_dir(self.cluster.pgdata()));
            assert_eq!(taken.code, 0, "{taken}");
        }
        wire.plan(policy.plan());
        let mut program = command(pgkeep_binary());
        program.arg("--config").arg(config).args(self.arguments(name));
        let output = run_to_end(program.current_dir(self.cluster.pgdata()));
        let seen = wire.seen();
        let actions = |refused: bool| {
            let of = seen.iter().filter(|seen| !refused || seen.fault == Some(DENIED));
            of.map(|seen| action(&seen.request).trim_start_matches("s3:").to_owned()).collect()
        };
        Ran { output, refused: actions(true), asked: actions(false), server }
    }
}

#[test]
fn each_command_needs_what_the_table_says() {
    let office = Office::new();
    let commands = commands();
    assert_eq!(commands.len(), 12, "{commands:?}");
    for Needs { command, needs, uses } in &commands {
        let all = [&needs[..], uses].concat();
        let ran = office.run(command, &Policy::allowing(&all));
        assert_eq!(ran.output.code, 0, "{command}: {}", ran.output);
        assert!(ran.refused.is_empty(), "{command} needs more: {:?}", ran.refused);
        // Only failures have anything aborted.
        let unused = |action: &&String| !ran.asked.contains(*action);
        let unused: Vec<_> =
            all.iter().filter(unused).filter(|a| *a != "AbortMultipartUpload").collect();
        assert!(unused.is_empty(), "{command} has no use for {unused:?}");

        let ran = office.run(command, &Policy::allowing(needs));
        assert_eq!(ran.output.code, 0, "{command}: {}", ran.output);
        assert!(
            ran.refused.iter().all(|action| uses.contains(action)),
            "{command}: {:?}",
            ran.refused
        );

        for missing in needs {
            let others: Vec<_> = needs.iter().filter(|need| *need != missing).cloned().collect();
            let ran = office.run(command, &Policy::allowing(&others));
            assert_ne!(ran.output.code, 0, "{command} without {missing}: {}", ran.output);
            let said = format!("{}{}", ran.output.stdout, ran.output.stderr);
            assert!(said.contains("AccessDenied"), "{command} without {missing}: {}", ran.output);
            assert!(
                said.contains("docs/s3.md says which permissions"),
                "{command} without {missing}: {}",
                ran.output
            );
        }
    }
}

#[test]
fn a_host_that_may_only_add_removes_nothing() {
    let office = Office::new();
    let Documented { add, conditional, remove, .. } = Documented::read();
    let adds = add.and(&conditional);
    let removes = adds.and(&remove);
    let there = |server: &Server| -> BTreeSet<(String, Vec<u8>)> {
        let objects = objects(&server.objects("some/prefix")).into_iter();
        objects.map(|object| (object.name, fs::read(object.path).expect("read"))).collect()
    };
    let before = there(office.pgkeep.server().expect("a server"));
    for Needs { command, needs, .. } in commands() {
        let takes = needs.iter().any(|action| action == "DeleteObject");
        let ran = office.run(&command, &adds);
        let Ran { output, refused, server, .. } = ran;
        if takes {
            assert!(output.code > 1, "{command}: {output}");
            assert!(there(&server) == before, "{command} has changed something");
            assert!(output.stderr.contains("AccessDenied"), "{command}: {output}");
            assert!(
                output.stderr.contains("docs/s3.md says which permissions"),
                "{command}: {output}"
            );
        } else {
            assert_eq!(output.code, 0, "{command}: {output}");
            assert!(
                refused.iter().all(|action| action == "DeleteObject"),
                "{command}: {refused:?}"
            );
        }
        if command != "init" {
            let after = there(&server);
            let gone: Vec<_> = before.difference(&after).map(|(name, _)| name).collect();
            assert!(gone.is_empty(), "{command}: {gone:?}");
        }
        // And the other host does what this one couldn't.
        let ran = office.run_on(server, if takes { &command } else { "info" }, &removes);
        assert_eq!(ran.output.code, 0, "{command}: {}", ran.output);
        assert!(ran.refused.is_empty(), "{command}: {:?}", ran.refused);
    }
}
