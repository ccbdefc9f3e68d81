#!/usr/bin/python3
"""Takes the program's defences out, one at a time, and looks whether the tests notice.

    tools/mutants.py             each defence of the list below
    tools/mutants.py WORDS...    those that have one of these words in what they defend
    tools/mutants.py --shard 3/60    a sixtieth of all changes that cargo-mutants makes in repo, archive, retention, restore

`make mutants` calls it. It works on a copy in target/mutants, which keeps what was compiled. A defence that no test misses
is an error, and so is one that isn't where the list says: then the list is to be put right.
"""

import os
import re
import shutil
import subprocess
import sys
import time

# What is defended, where, what stands there, what is put in its place, and the tests that are to fail.
DEFENCES = [
    ("a file is synced before it gets its name", "src/storage/local.rs",
     'reached("local storage: written");\n        temporary.file.sync_all()?;', 'reached("local storage: written");',
     ["durability::", "power::archive::a_push_acknowledges"]),
    ("a name is durable before it is acknowledged", "src/storage/local.rs",
     "self.storage.sync_folders(folder)?;", "let _ = folder;",
     ["durability::", "power::archive::a_push_acknowledges"]),
    ("a name that is taken is never written over", "src/storage/local.rs",
     "match renameat_with(CWD, from, CWD, to, RenameFlags::NOREPLACE) {", "match renameat_with(CWD, from, CWD, to, RenameFlags::empty()) {",
     ["storage::directory::", "archive::push::"]),
    ("what is there already is durable before a push of it ends", "src/archive/store.rs",
     "Ok(store.repository().storage().ensure_durable(name).await?)", "Ok(())",
     ["durability::", "power::archive::"]),
    ("other WAL under the same name is a conflict", "src/archive/store.rs",
     "|stored: &StoredSummary| stored.sha256 == summary.sha256;", "|stored: &StoredSummary| stored.sha256 == stored.sha256;",
     ["archive::push::"]),
    ("a segment is absent only when every repository has said so", "src/archive/get.rs",
     "                Err(e) => errors.push(e),\n            }\n        }\n        if errors", "                Err(_) => {}\n            }\n        }\n        if errors",
     ["archive::get::absent", "archive::process::exit_codes"]),
    ("WAL that has expired isn't absent", "src/archive/get.rs",
     "Ok(Some(error)) => Err(Failure { error, may_pass: false }),", "Ok(Some(_)) => Ok(Got::Absent),",
     ["archive::get::", "retention::server::a_point_restores"]),
    ("an object is bound to its name", "src/repo/sealed/frame.rs",
     "[header.0.as_slice(), name.as_str().as_bytes()].concat()", "header.0.to_vec()",
     ["verify::table::"]),
    ("each block of a restore is what the backup says", "src/restore/frames.rs",
     "if self.hasher.block(block) != wanted.hash {", "if self.hasher.block(block) != wanted.hash && self.failed.load(Ordering::Relaxed) {",
     ["restore_write::", "recovery::damage::"]),
    ("the control file comes last", "src/restore/windows.rs",
     'b"global/pg_control.restoring"', 'b"global/pg_control"',
     ["restore_write::crashes", "power::restore::", "durability::a_restored"]),
    ("packs that another backup uses stay", "src/retention/references.rs",
     "self.packs.get(backup).is_some_and(|packs| packs.contains(&pack))", "self.packs.get(backup).is_some_and(|packs| packs.len() > pack as usize + packs.len())",
     ["retention::crash", "retention::schedules"]),
    ("nothing goes under a mark that may not last", "src/retention/sweep.rs",
     'match repository.storage().ensure_durable(&layout.of_backup(id, "deleted")).await {', 'match repository.storage().size(&layout.of_backup(id, "deleted")).await.map(drop) {',
     ["power::backup::what_a_killed_deletion"]),
    ("the newest backups stay, whatever their age", "src/retention/plan.rs",
     "usable.iter().take(minimum as usize)", "usable.iter().take(minimum as usize - 1)",
     ["retention::histories"]),
    ("pinned backups stay", "src/retention/plan.rs",
     "facts.pinned.contains(&backups[*at].record.id)) {", "facts.pinned.len() > backups.len() + *at) {",
     ["retention::histories", "retention::command", "retention::expire"]),
    ("a running backup isn't taken for a crashed one", "src/repo/lease.rs",
     "age > EXPIRED_AFTER)", "age > EXPIRED_AFTER / 1_000_000)",
     ["retention::command::", "clocks::leases", "protocol::real"]),
    ("a lease doesn't age when the clock is set back", "src/repo/lease.rs",
     "Utc::now().max(self.then + self.at.elapsed())", "Utc::now().max(self.then)",
     ["clocks::leases"]),
    ("a backup whose folder was marked meanwhile fails", "src/backup/commit.rs",
     "if let Err(e) = check_committed(repository, layout, id).await {", "if let Err(e) = check_committed(repository, layout, id).await.or(Ok::<(), Error>(())) {",
     ["protocol::real"]),
    ("a backup exists when its WAL is archived", "src/backup/run.rs",
     "self.prove(&mut server, &begin, Part::Whole(read.end.stop_lsn)).await?;", "let _ = Part::Whole(read.end.stop_lsn);",
     ["backup::archiving"]),
    ("a stream reports what is durable", "src/archive/stream/receiver.rs",
     "Some(durable) => durable.up_to().min(end),", "Some(_) => end,",
     ["stream::acknowledged", "power::stream", "steps::stream"]),
    ("timelines are hexadecimal", "src/postgres/segment.rs",
     "ok.then(|| u32::from_str_radix(s, 16).ok()).flatten()", "ok.then(|| u32::from_str_radix(s, 10).ok()).flatten()",
     ["recovery::timelines::timelines_are_hexadecimal"]),
    ("no secret is shown", "src/postgres/client/conninfo/mod.rs",
     'f.write_str("(secret)")', "f.write_str(&self.0)",
     ["command_line::secrets", "conninfo"]),
]
ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
MUTATED = ["repo", "archive", "retention", "restore"]
# What needs little time and has much to say of these.
TESTS = ["repo::", "retention::histories", "retention::expire", "retention::crash", "retention::schedules", "faults::", "verify::table",
         "verify::contents", "verify::outages", "restore_write::crashes", "restore_write::damage", "restore::", "archive::push",
         "archive::get", "archive::ahead", "archive::timelines", "recovery::targets", "--skip", "s3::", "--skip", "server_faults"]


def copied():
    """A copy of what git has, as it lies here."""
    place = os.path.join(os.environ.get("CARGO_TARGET_DIR", f"{ROOT}/target"), "mutants")
    tree = f"{place}/tree"
    shutil.rmtree(tree, ignore_errors=True)
    names = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    for name in filter(None, names.split("\0")):
        os.makedirs(os.path.dirname(f"{tree}/{name}"), exist_ok=True)
        shutil.copy2(f"{ROOT}/{name}", f"{tree}/{name}")
    return tree, f"{place}/target"


def tested(tree, target, tests):
    """Whether the tests pass; what failed. `None` when the code doesn't compile."""
    environment = dict(os.environ, CARGO_TARGET_DIR=target, RUST_BACKTRACE="0")
    build = ["cargo", "test", "--locked", "--lib", "--test", "integration"]
    if subprocess.run([*build, "--no-run"], cwd=tree, env=environment, capture_output=True).returncode:
        return None, []
    done = subprocess.run([*build, "--no-fail-fast", "--", *tests], cwd=tree, env=environment, capture_output=True, text=True,
                          stdin=subprocess.DEVNULL)
    return done.returncode == 0, re.findall(r"^test (\S+) .*FAILED$", done.stdout, re.M)


def defences(words):
    tree, target = copied()
    wrong = 0
    for what, path, before, after, tests in DEFENCES:
        if words and not any(word in what for word in words):
            continue
        begin = time.monotonic()
        with open(f"{tree}/{path}") as file:
            text = file.read()
        if text.count(before) != 1:
            print(f"WRONG   {what}: {path} doesn't have it once", flush=True)
            wrong += 1
            continue
        with open(f"{tree}/{path}", "w") as file:
            file.write(text.replace(before, after))
        passed, failed = tested(tree, target, tests)
        with open(f"{tree}/{path}", "w") as file:
            file.write(text)
        said = {None: "WRONG   ", True: "MISSED  ", False: "caught  "}[passed]
        wrong += passed is not False
        first = failed[0] if failed else "it doesn't compile" if passed is None else "no test fails"
        print(f"{said}{what}: {first}{f' and {len(failed) - 1} more' if len(failed) > 1 else ''}"
              f" ({time.monotonic() - begin:.0f} s)", flush=True)
    return wrong


def shard(which):
    tree, target = copied()
    if shutil.which("cargo-mutants") is None:
        raise SystemExit("cargo-mutants is missing: cargo install --locked cargo-mutants")
    files = [word for folder in MUTATED for word in ("-f", f"src/{folder}/**")]
    environment = dict(os.environ, CARGO_TARGET_DIR=target, RUST_BACKTRACE="0", PGKEEP_TEST_SCHEDULES="40",
                       PGKEEP_TEST_POSTGRES="15")
    return subprocess.call(
        ["cargo", "mutants", "--in-place", "--baseline=skip", "--timeout", "600", "--no-shuffle", "--shard", which, "--sharding",
         "round-robin", "--output", f"{os.path.dirname(target)}", *files, "--", "--lib", "--test", "integration", "--", *TESTS],
        cwd=tree, env=environment)


arguments = sys.argv[1:]
if arguments[:1] == ["--shard"] and len(arguments) == 2:
    sys.exit(shard(arguments[1]))
if any(argument.startswith("-") for argument in arguments):
    sys.exit(__doc__)
sys.exit(1 if defences(arguments) else 0)
