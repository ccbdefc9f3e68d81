"""All changes that cargo-mutants makes in the folders below, held against the tests.

Compiling the tests for each change would take days, so they are compiled once, with every change in the code behind a switch
(tests/mutants). A run of each test alone tells which changes it comes by; then each change is switched on, and those tests are
run, the quick and particular ones first, until one fails or SECONDS of them have passed. What is known is kept in
target/mutants until the source changes, so that short runs add up: a change that nothing has noticed meets more of
its tests when SECONDS grow.
"""

import concurrent.futures
import hashlib
import json
import os
import re
import resource
import shutil
import signal
import subprocess
import tempfile
import threading
import time

from working_copy import ROOT, copied, files

FOLDERS = ["repo", "archive", "retention", "restore"]
# Of the tests beside the library's own. The others are about other folders, or make a whole matrix of servers for each answer.
TESTS = ["archive::", "backup::archiving", "command_line::",
         "configuration::", "durability::", "faults::", "fixture::", "full::stream", "life::", "protocol::", "recovery::", "restore_choice::",
         "restore_write::", "retention::", "stream::", "verify::"]
SLOWEST = 30  # seconds that a test may take by itself to be asked at all


class Tests:
    """The programs with the tests, and what each of these comes by."""

    def __init__(self, programs, tree, place):
        self.programs, self.tree, self.place = programs, tree, place
        self.known = {}  # (program, test) -> (seconds, changes)

    def call(self, program, tests, limit, **environment):
        """Whether they pass. Everything that they left running is ended."""
        with tempfile.TemporaryDirectory(prefix="pgkeep-mutant-", dir="/dev/shm" if os.path.isdir("/dev/shm") else None) as scratch:
            os.chmod(scratch, 0o755)
            child = subprocess.Popen(
                [self.programs[program], "--exact", *tests, "--test-threads", "2"], cwd=self.tree, stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True,
                env=dict(os.environ, RUST_BACKTRACE="0", PGKEEP_TEST_DIR=scratch, PGKEEP_TEST_SCHEDULES="40", PGKEEP_TEST_POSTGRES="15,17",
                         **environment),
                preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_DATA, (8 << 30, 8 << 30)))
            try:
                return child.wait(limit) == 0
            except subprocess.TimeoutExpired:
                return False
            finally:
                end(child.pid, scratch)

    def learn(self, threads):
        path = f"{self.place}/seen.json"
        if os.path.exists(path):
            with open(path) as file:
                self.known = {tuple(key.split(" ", 1)): (seconds, set(ids)) for key, (seconds, ids) in json.load(file).items()}
            return
        wanted = []
        for program in self.programs:
            listed = subprocess.run([self.programs[program], "--list"], cwd=self.tree, capture_output=True, text=True, check=True)
            for test in re.findall(r"^(\S+): test$", listed.stdout, re.M):
                if program == "lib" or test.startswith(tuple(TESTS)):
                    wanted.append((program, test))

        def one(key):
            program, test = key
            with tempfile.NamedTemporaryFile(prefix="pgkeep-seen-") as seen:
                os.chmod(seen.name, 0o666)
                begin = time.monotonic()
                passed = self.call(program, [test], SLOWEST, MUTANTS_SEEN=seen.name)
                seconds = time.monotonic() - begin
                return key, passed, seconds, [at for at, byte in enumerate(seen.read()) if byte]

        left_out = []
        with concurrent.futures.ThreadPoolExecutor(threads) as pool:
            for key, passed, seconds, ids in pool.map(one, wanted):
                if passed:
                    self.known[key] = (seconds, set(ids))
                else:
                    left_out.append(" ".join(key))
        print(f"{len(self.known)} tests, {sum(len(ids) > 0 for _, ids in self.known.values())} of them come by a change; "
              f"left out, as they take too long or can't be looked into: {', '.join(left_out) or 'none'}", flush=True)
        with open(path, "w") as file:
            json.dump({" ".join(key): (seconds, sorted(ids)) for key, (seconds, ids) in self.known.items()}, file)

    def of(self, change):
        """What comes by it: the quick and particular ones first."""
        found = [(seconds * (1 + len(ids) / 200), seconds, key) for key, (seconds, ids) in self.known.items() if change in ids]
        return [(key, seconds) for _, seconds, key in sorted(found)]


def end(group, scratch):
    """Ends the processes of a test, and the servers that it had below its folder."""
    try:
        os.killpg(group, signal.SIGKILL)
    except ProcessLookupError:
        pass
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            if os.readlink(f"/proc/{pid}/cwd").startswith(scratch):
                os.kill(int(pid), signal.SIGKILL)
        except (FileNotFoundError, PermissionError, ProcessLookupError):
            pass


def digest():
    """Of all that a result depends on."""
    whole = hashlib.sha256()
    for name in files("src", "tests", "Cargo.lock", "tools/mutants"):
        with open(f"{ROOT}/{name}", "rb") as file:
            whole.update(name.encode() + b"\0" + hashlib.sha256(file.read()).digest())
    return whole.hexdigest()


def build(tree, target):
    """Weaves the changes into the tree, takes out again what doesn't compile, and makes the tests."""
    environment = dict(os.environ, CARGO_TARGET_DIR=target)
    listed = subprocess.run(["cargo", "mutants", "--list", "--json", *[w for f in FOLDERS for w in ("-f", f"src/{f}/**")]], cwd=ROOT,
                            capture_output=True, text=True, check=True, env=environment)
    changes = [dict(change, id=number) for number, change in enumerate(json.loads(listed.stdout))]
    for change in changes:
        change.pop("diff", None)
    subprocess.run(["cargo", "build", "--quiet", "--release", "--locked", "--manifest-path", f"{ROOT}/tests/mutants/Cargo.toml"], check=True,
                   env=environment)
    unviable = set()
    while True:
        shutil.rmtree(f"{tree}/src")
        shutil.copytree(f"{tree}-src", f"{tree}/src")
        text = json.dumps([change for change in changes if change["id"] not in unviable])
        woven = subprocess.run([f"{target}/release/pgkeep-mutants", tree], input=text, capture_output=True, text=True, check=True)
        woven = {int(line) for line in woven.stdout.split()}
        done = subprocess.run(["cargo", "check", "--locked", "--lib", "--message-format=json"], cwd=tree, env=environment,
                              capture_output=True, text=True)
        if done.returncode == 0:
            break
        wrong = set()
        for line in done.stdout.splitlines():
            message = json.loads(line)
            if message.get("reason") == "compiler-message" and message["message"]["level"] == "error":
                wrong |= blamed(tree, message["message"]["spans"])
        if not wrong - unviable:
            raise SystemExit(f"the woven source doesn't compile, and not for a change:\n{done.stderr}")
        unviable |= wrong
        print(f"{len(unviable)} changes don't compile so far", flush=True)
    # The tests give the programs that they start an environment of their own.
    support = f"{tree}/tests/integration/support/install.rs"
    with open(support) as file:
        text = file.read()
    if text.count(".env_clear()") != 1:
        raise SystemExit(f"{support} doesn't clear the environment at one place any more")
    with open(support, "w") as file:
        file.write(text.replace(".env_clear()", '.env_clear().envs(std::env::vars().filter(|(name, _)| name.starts_with("MUTANT")))'))
    done = subprocess.run(["cargo", "test", "--locked", "--lib", "--test", "integration", "--no-run", "--message-format=json"], cwd=tree,
                          env=environment, stdout=subprocess.PIPE, text=True)
    if done.returncode:
        raise SystemExit("the woven tests don't compile")
    programs = {}
    for line in done.stdout.splitlines():
        message = json.loads(line)
        if message.get("executable") and message["profile"]["test"]:
            programs["lib" if "lib" in message["target"]["kind"] else "integration"] = message["executable"]
    return changes, woven, unviable, programs


def blamed(tree, spans):
    """The change that an error of the compiler is about: the nearest before it."""
    found = set()
    for span in spans:
        if not span["is_primary"] or not os.path.exists(f"{tree}/{span['file_name']}"):
            continue
        with open(f"{tree}/{span['file_name']}") as file:
            lines = file.read().splitlines()
        within = re.findall(r"mutation::on\((\d+)usize\)", "\n".join(lines[span["line_start"] - 1:span["line_end"]]))
        if not within:
            for line in reversed(lines[:span["line_start"] - 1]):
                within = re.findall(r"mutation::on\((\d+)usize\)", line)[-1:]
                if within:
                    break
        found.update(map(int, within))
    return found


def read(path):
    """What a file says, if it is there."""
    if not os.path.exists(path):
        return None
    with open(path) as file:
        return json.load(file)


def run(seconds, threads, words):
    """How many changes nobody noticed."""
    if shutil.which("cargo-mutants") is None:
        raise SystemExit("cargo-mutants is missing: cargo install --locked cargo-mutants")
    tree, target = copied()
    place = f"{os.path.dirname(target)}/woven"
    now = digest()
    build_path, results_path = f"{place}/build.json", f"{place}/results.json"
    made = read(build_path)
    if made and made["digest"] == now:
        changes, woven, unviable, programs = made["changes"], set(made["woven"]), set(made["unviable"]), made["programs"]
    else:
        shutil.rmtree(place, ignore_errors=True)
        os.makedirs(place)
        woven_tree = f"{place}/tree"
        shutil.copytree(tree, woven_tree)
        shutil.copytree(f"{woven_tree}/src", f"{woven_tree}-src")
        changes, woven, unviable, programs = build(woven_tree, f"{os.path.dirname(target)}/woven-target")
        with open(build_path, "w") as file:
            json.dump({"digest": now, "changes": changes, "woven": sorted(woven), "unviable": sorted(unviable), "programs": programs}, file)
    tests = Tests(programs, f"{place}/tree", place)
    print(f"{len(changes)} changes: {len(woven)} are woven in, {len(unviable)} don't compile", flush=True)
    tests.learn(threads)

    # By number: what noticed it, or how far the search came.
    results = read(results_path) or {}
    lock = threading.Lock()
    begin = time.monotonic()
    names = {change["id"]: change["name"] for change in changes}
    wanted = [c for c in sorted(woven) if not words or any(word in names[c] for word in words)]

    def one(change):
        result = results.setdefault(str(change), {"by": None, "passed": []})
        if result["by"]:
            return
        passed = set(result["passed"])
        left = [(key, cost) for key, cost in tests.of(change)]
        spent = sum(cost for key, cost in left if " ".join(key) in passed)
        left = [(key, cost) for key, cost in left if " ".join(key) not in passed]
        size = 1.0
        while left and spent < seconds:
            # As many of the next, of one program, as take so long.
            program, batch, cost = left[0][0][0], [], 0.0
            while left and left[0][0][0] == program and (not batch or cost + left[0][1] <= size) and len(batch) < 40:
                batch.append(left[0][0][1])
                cost += left.pop(0)[1]
            if not tests.call(program, batch, 20 + 6 * cost, MUTANT_ON=str(change)):
                result["by"] = f"{program} {batch[0]}" + (f" and {len(batch) - 1} more" if len(batch) > 1 else "")
                break
            result["passed"] += [f"{program} {test}" for test in batch]
            spent += cost
            size = min(size * 3, 20.0)
        with lock:
            temporary = f"{results_path}.new"
            if len(results) % 20 == 0 or not result["by"]:
                with open(temporary, "w") as file:
                    json.dump(dict(results), file)
                os.replace(temporary, results_path)

    with concurrent.futures.ThreadPoolExecutor(threads) as pool:
        for _ in pool.map(one, wanted):
            pass
    with open(results_path, "w") as file:
        json.dump(results, file)
    missed = [c for c in wanted if not results[str(c)]["by"]]
    for change in missed:
        result = results[str(change)]
        print(f"MISSED  {names[change]} ({len(result['passed'])} of {len(tests.of(change))} tests that come by it)")
    apart = [c for c in names if c not in woven and c not in unviable]
    print(f"{len(wanted)} changes, {len(wanted) - len(missed)} noticed, {len(missed)} missed, {len(unviable)} don't compile, "
          f"{len(apart)} have no switch; {time.monotonic() - begin:.0f} s")
    return len(missed)
