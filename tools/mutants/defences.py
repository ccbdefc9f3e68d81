"""The defences of the table, each taken out for its tests."""

import os
import re
import subprocess
import time

from table import DEFENCES, NOTHING_TO_TAKE
from working_copy import ROOT, copied


def tested(tree, target, tests):
    """Whether the tests pass; what failed. `None` when the code doesn't compile."""
    environment = dict(os.environ, CARGO_TARGET_DIR=target, RUST_BACKTRACE="0")
    build = ["cargo", "test", "--locked", "--lib", "--test", "integration"]
    if subprocess.run([*build, "--no-run"], cwd=tree, env=environment, capture_output=True).returncode:
        return None, []
    done = subprocess.run([*build, "--no-fail-fast", "--", *tests], cwd=tree, env=environment, capture_output=True, text=True,
                          stdin=subprocess.DEVNULL)
    return done.returncode == 0, re.findall(r"^test (\S+) .*FAILED$", done.stdout, re.M)


def rows_without():
    """The rows of the fault list that no defence is for."""
    with open(f"{ROOT}/docs/testing.md") as file:
        rows = set(map(int, re.findall(r"^\| (\d+) \|", file.read(), re.M)))
    return rows - {int(row) for _, rows_of, *_ in DEFENCES for row in rows_of.split()} - NOTHING_TO_TAKE


def run(words):
    """How many aren't noticed, or aren't where the table says."""
    tree, target = copied()
    wrong = 0
    for row in sorted(rows_without()):
        print(f"WRONG   row {row} of the fault list has no defence in the table", flush=True)
        wrong += 1
    for what, rows, path, before, after, tests in DEFENCES:
        if words and not any(word in rows.split() if word.isdigit() else word in what for word in words):
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
        print(f"{said}{what} (row {rows.replace(' ', ', ')}): {first}"
              f"{f' and {len(failed) - 1} more' if len(failed) > 1 else ''} ({time.monotonic() - begin:.0f} s)", flush=True)
    return wrong
