"""Measures pgkeep beside Debian's pgBackRest, pg_basebackup and cp.

    python3 tools/bench PGKEEP [GROWTH]

One cluster of PostgreSQL 15 and one of 17, the tools in turn, each a few times; the order changes from round to round. The
ratios mean something, the times only on a quiet machine. `make bench` and `make bench-quick` call it with the release
binary. With a second argument it shows how costs grow instead, and writes that file (SVG). Root hands over to the user
postgres, as whom a server runs.

In the environment, with what they are otherwise:
    PGKEEP_BENCH_SCALE=1      how large the clusters are, in units of 3 GB
    PGKEEP_BENCH_ROUNDS=3     how often each is measured
    PGKEEP_BENCH_LEVEL=1      the zstd level of all tools
    PGKEEP_BENCH_PARTS=       of backups, incremental, 17, single, catalogs, s3; all of them if it is empty
    PGKEEP_BENCH_DIR=/tmp     where clusters and repositories are made: four times what they hold
    PGKEEP_BENCH_WRITE=       a file that gets the table in Markdown
"""

import json
import os
import pwd
import re
import shutil
import subprocess
import sys
import tempfile
from types import SimpleNamespace

from growth import PARTS_OF_ALL, Growth
from rows import Bench

TOOLS = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
PARTS = {"backups": "backups", "incremental": "incremental", "17": "incremental_of_17", "single": "single",
         "catalogs": "catalogs", "s3": "on_s3"}


def option(name, default):
    return os.environ.get("PGKEEP_BENCH_" + name) or default


def place_of(below):
    """Where something is that the installation has put below one of two places."""
    for root in ("/var/lib/pgkeep-test", f"{os.path.dirname(TOOLS)}/target/pgkeep-test"):
        if os.path.exists(f"{root}/{below}"):
            return f"{root}/{below}"
    raise SystemExit(f"{below} is missing: make install-bench")


def tests(arguments, environment):
    """How to run some of the tests, which make catalogs and serve S3."""
    environment = dict(os.environ, **environment)
    for name in [name for name in environment if name.startswith("PGKEEP_BENCH_")]:
        del environment[name]
    return dict(args=["cargo", "test", "--quiet", "--locked", "--test", "integration", "--", "--nocapture", *arguments],
                env=environment, text=True, cwd=os.path.dirname(TOOLS))


def grown_catalog(backups):
    """A repository with many backups."""
    given = tests(["catalog::info"], {"PGKEEP_TEST_KEEP": "1", "PGKEEP_TEST_BACKUPS": str(backups)})
    done = subprocess.run(**given, capture_output=True)
    found = re.findall(r"^kept: (\S*pgkeep-catalog-\S+)", done.stderr, re.M)
    if done.returncode or not found:
        raise SystemExit(f"the catalog couldn't be made: {done.stdout}{done.stderr}")
    return found[-1]


def serve_s3():
    """A process that serves S3 until its input ends, and the port, bucket, key and secret."""
    server = subprocess.Popen(**tests(["s3::served"], {"PGKEEP_TEST_SERVE": "1"}), stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    for line in server.stdout:
        if found := re.search(r"serving (\d+) (\S+) (\S+) (.*)", line):
            return server, list(found.groups())
    raise SystemExit("the tests' S3 server didn't start")


def hand_over(arguments):
    """Root can't run a server. What the user postgres may not reach is copied to where it may."""
    write = os.environ.get("PGKEEP_BENCH_WRITE")
    with tempfile.TemporaryDirectory() as place:
        os.chmod(place, 0o755)
        tools = shutil.copytree(TOOLS, f"{place}/tools")
        program = shutil.copy(arguments[0], place)
        result = f"{place}/result"
        os.mkdir(result)
        os.chown(result, pwd.getpwnam("postgres").pw_uid, -1)
        environment = dict(os.environ, PGKEEP_BENCH_WRITE=f"{result}/table" if write else "")
        more = [f"{result}/growth.svg"] if arguments[1:] else []
        command = ["setpriv", "--reuid", "postgres", "--regid", "postgres", "--init-groups", "/usr/bin/python3",
                   f"{tools}/bench", program, *more]
        status = subprocess.call(command, cwd="/", env=environment)
        if status == 0:
            for of, to in [("table", write), ("growth.svg", arguments[1] if more else None)]:
                if to and os.path.exists(f"{result}/{of}"):
                    shutil.copyfile(f"{result}/{of}", to)
        return status


def main(arguments):
    if len(arguments) not in (1, 2):
        raise SystemExit(__doc__)
    parts = option("PARTS", " ".join(PARTS)).split()
    if set(parts) - set(PARTS):
        raise SystemExit(f"PGKEEP_BENCH_PARTS takes {', '.join(PARTS)}")
    growth = len(arguments) == 2
    if "PGKEEP_BENCH_MADE" not in os.environ:
        return prepared(arguments, parts, growth)
    if os.geteuid() == 0:
        return hand_over(arguments)
    made = json.loads(os.environ["PGKEEP_BENCH_MADE"])
    write = os.environ.get("PGKEEP_BENCH_WRITE")
    options = SimpleNamespace(
        scale=float(option("SCALE", 1)), rounds=int(option("ROUNDS", 3)), level=int(option("LEVEL", 1)), tools=TOOLS,
        catalogs=made["catalogs"], s3=made["s3"])
    if "17" in parts and not growth:
        options.programs_17 = place_of("postgresql/17/bin")
    home = tempfile.mkdtemp(prefix="pgkeep-bench.", dir=option("DIR", "/tmp"))
    # pgkeep refuses variables of its name that it doesn't know.
    for name in [name for name in os.environ if name.startswith("PGKEEP_")]:
        del os.environ[name]
    program = shutil.copy(arguments[0], home)
    bench = Growth(options, program, home, arguments[1]) if growth else Bench(options, program, home)
    try:
        if growth:
            bench.measure_all()
        else:
            bench.make()
            for part in [part for part in PARTS if part in parts]:
                getattr(bench, PARTS[part])()
            bench.table.show()
            if write:
                with open(write, "w") as file:
                    file.write(f"{bench.what}\n\n{bench.table.markdown()}")
    finally:
        bench.end()
        shutil.rmtree(home, ignore_errors=True)
    return 0


def prepared(arguments, parts, growth):
    """Has the tests make what they can make better, and measures with that."""
    sizes = [500 // part for part in PARTS_OF_ALL] if growth else [500] if "catalogs" in parts else []
    made, server = {"catalogs": [grown_catalog(size) for size in sizes], "s3": None}, None
    try:
        if "s3" in parts and not growth:
            server, made["s3"] = serve_s3()
        os.environ["PGKEEP_BENCH_MADE"] = json.dumps(made)
        return main(arguments)
    finally:
        if server:
            server.stdin.close()
            server.wait()
        for catalog in made["catalogs"]:
            shutil.rmtree(catalog, ignore_errors=True)


sys.exit(main(sys.argv[1:]))
