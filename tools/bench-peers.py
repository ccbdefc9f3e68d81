#!/usr/bin/python3
"""Measures whole backups, incremental ones, restores and verification beside Debian's pgBackRest and pg_basebackup.

    tools/bench-peers.py PGKEEP

One cluster of PostgreSQL 15, the tools in turn, each a few times; the order changes from round to round. pgBackRest is set
up as its own documentation advises: zst, bundles, block incremental, as many processes as processors, its encryption on.
The ratios mean something, the times only on a quiet machine. `make bench-peers` calls it with the release binary. Root
hands over to the user postgres, as whom a server runs.

In the environment, with what they are otherwise:
    PGKEEP_BENCH_SCALE=1      how large the cluster is, in units of 3 GB
    PGKEEP_BENCH_ROUNDS=3     how often each is measured
    PGKEEP_BENCH_LEVEL=1      the zstd level of all of them
    PGKEEP_BENCH_DIR=/tmp     where the cluster and the repositories are made
    PGKEEP_BENCH_WRITE=       a file that gets the table in Markdown
"""

import os, pwd, shutil, statistics, subprocess, sys, tempfile, threading, time

BIN = "/usr/lib/postgresql/15/bin"
TICK = os.sysconf("SC_CLK_TCK")


def option(name, default):
    return os.environ.get("PGKEEP_BENCH_" + name) or default


def fail(text):
    sys.exit(text)


def tree(root):
    """The processes below one, itself included."""
    children = {}
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            try:
                with open(f"/proc/{entry}/stat") as file:
                    parent = int(file.read().rsplit(") ", 1)[1].split()[1])
                children.setdefault(parent, []).append(int(entry))
            except (OSError, IndexError):
                pass
    found, left = [], [root]
    while left:
        one = left.pop()
        found.append(one)
        left += children.get(one, [])
    return found


def resident(process):
    """KiB that are its own, so that what forked processes share isn't counted twice."""
    try:
        with open(f"/proc/{process}/smaps_rollup") as file:
            fields = dict(line.split(":", 1) for line in file if ":" in line)
        return sum(int(fields[name].split()[0]) for name in ("Pss",))
    except (OSError, KeyError, ValueError):
        return 0


def machine_cpu():
    """Seconds of all processors, but for what runs at a low priority."""
    with open("/proc/stat") as file:
        fields = file.readline().split()
    return sum(int(fields[n]) for n in (1, 3, 6, 7)) / TICK


class Measured:
    def __init__(self, command, **more):
        self.peak = 0
        before, begin = machine_cpu(), time.monotonic()
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, **more)
        said = []
        reader = threading.Thread(target=lambda: said.append(process.stderr.read()))
        reader.start()
        while True:
            done, status, usage = os.wait4(process.pid, os.WNOHANG)
            if done:
                break
            self.peak = max(self.peak, sum(map(resident, tree(process.pid))))
            time.sleep(0.02)
        self.wall = time.monotonic() - begin
        reader.join()
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            fail(f"{command} has failed: {said[0].decode()}")
        self.cpu = usage.ru_utime + usage.ru_stime
        self.machine = machine_cpu() - before
        self.peak /= 1024
        self.stored = None


class Bench:
    def __init__(self, pgkeep):
        self.home = tempfile.mkdtemp(prefix="pgkeep-bench-peers.", dir=option("DIR", "/tmp"))
        self.rounds = int(option("ROUNDS", 3))
        self.scale = float(option("SCALE", 1))
        self.level = int(option("LEVEL", 1))
        self.rows = {}
        self.data = f"{self.home}/data"
        self.pgkeep = [shutil.copy(pgkeep, self.home), "--config", f"{self.home}/pgkeep.toml", "--quiet"]
        self.other = ["pgbackrest", f"--config={self.home}/pgbackrest.conf", "--stanza=main"]
        for name in [name for name in os.environ if name.startswith("PGKEEP_")]:
            del os.environ[name]
        os.environ.update(PGHOST=self.home, PGUSER="bench", PGDATABASE="postgres")

    def run(self, command, **more):
        done = subprocess.run(command, capture_output=True, text=True, **more)
        if done.returncode:
            fail(f"{command} has failed: {done.stdout}{done.stderr}")
        return done.stdout.strip()

    def sql(self, text):
        return self.run([f"{BIN}/psql", "-qAtc", text])

    def make_cluster(self):
        self.run([f"{BIN}/initdb", "-D", self.data, "-U", "bench", "-A", "trust", "--data-checksums", "--no-sync"])
        with open(f"{self.data}/postgresql.conf", "a") as file:
            file.write(f"""
listen_addresses = ''
unix_socket_directories = '{self.home}'
shared_buffers = 256MB
max_wal_size = 4GB
wal_compression = on
archive_mode = on
archive_command = '{' '.join(self.pgkeep)} archive-push %p && {' '.join(self.other)} archive-push %p'
""")
        with open(f"{self.home}/pgkeep.toml", "w") as file:
            file.write(f"""
threads = {os.cpu_count()}
state-dir = "{self.home}/state"
[repository.main]
url = "file://{self.home}/pgkeep-repository"
key-file = "{self.home}/main.key"
compression-level = {self.level}
[cluster.main]
conninfo = "host={self.home} user=bench"
pgdata = "{self.data}"
archive-timeout = "10min"
""")
        with open(f"{self.home}/pgbackrest.conf", "w") as file:
            file.write(f"""
[global]
repo1-path={self.home}/pgbackrest-repository
repo1-block=y
repo1-bundle=y
repo1-cipher-type=aes-256-cbc
repo1-cipher-pass=of-the-benchmark
repo1-retention-full=99
beta=y
log-path={self.home}
lock-path={self.home}
log-level-console=off
log-level-stderr=error
log-level-file=off
compress-type=zst
compress-level={self.level}
process-max={os.cpu_count()}
start-fast=y
[main]
pg1-path={self.data}
pg1-socket-path={self.home}
pg1-user=bench
pg1-database=postgres
""")
        self.run(self.pgkeep + ["init"])
        self.run([f"{BIN}/pg_ctl", "-D", self.data, "-l", f"{self.home}/log", "-w", "start"], stdin=subprocess.DEVNULL)
        self.run(self.other + ["stanza-create"])
        self.run(self.pgkeep + ["check"])
        # Half of it compresses twenty times, half three times.
        self.run([f"{BIN}/pgbench", "-i", "-q", "-s", str(max(1, round(100 * self.scale)))])
        self.sql("CREATE TABLE events (id bigint PRIMARY KEY, at timestamptz, kind int, payload jsonb, digest bytea)")
        self.sql(f"""INSERT INTO events SELECT n, now() - n * interval '1 s', n % 17, jsonb_build_object('user', n % 1000,
            'session', md5(n::text), 'path', '/api/v1/' || (n % 97), 'took', (n % 1009) * 7),
            sha256(n::text::bytea) FROM generate_series(1, {round(5_500_000 * self.scale)}) n""")
        self.sql("VACUUM (FREEZE, ANALYZE)")
        self.sql("CHECKPOINT")
        size = self.sql("SELECT sum(pg_database_size(oid)) / (1 << 20) FROM pg_database")
        self.what = (
            f"a cluster of {int(float(size))} MiB, PostgreSQL 15, zstd level {self.level}, {os.cpu_count()} cores; "
            f"{self.run(self.pgkeep + ['--version'])}, {self.run(['pgbackrest', 'version'])}; "
            f"medians of {self.rounds}"
        )
        print(self.what, flush=True)

    def size_of(self, tool):
        folder = {"pgkeep": "pgkeep-repository/clusters/main/backups", "pgBackRest": "pgbackrest-repository/backup"}
        path = f"{self.home}/{folder[tool]}"
        return int(self.run(["du", "-sb", path]).split()[0]) if os.path.isdir(path) else 0

    def measure(self, row, tool, command, **more):
        before = self.size_of(tool) if more.pop("stores", False) else None
        measured = Measured(command, **more)
        if before is not None:
            measured.stored = (self.size_of(tool) - before) / (1 << 20)
        self.rows.setdefault(row, {}).setdefault(tool, []).append(measured)

    def in_turn(self, row, tools, prepare=None):
        """One round: each tool once."""
        turn = len(next(iter(self.rows.get(row, {}).values()), []))
        names = list(tools)
        for name in names[turn % len(names):] + names[: turn % len(names)]:
            if prepare:
                prepare()
            os.sync()
            command, stores = tools[name]
            self.measure(row, name, command, stores=stores)

    def clear(self):
        for name in ("restored", "base"):
            shutil.rmtree(f"{self.home}/{name}", ignore_errors=True)
        os.mkdir(f"{self.home}/restored", 0o700)

    def backups(self):
        def both(kind):
            return {
                "pgkeep": (self.pgkeep + ["backup", "--type", kind], True),
                "pgBackRest": (self.other + ["backup", f"--type={kind}"], True),
            }

        base = [f"{BIN}/pg_basebackup", "-X", "none", "-c", "fast", "-Ft"]
        whole = both("full") | {
            "pg_basebackup, zstd": (
                base + ["-D", f"{self.home}/base", f"--compress=client-zstd:level={self.level},workers={os.cpu_count()}"],
                False,
            ),
            # What the protocol allows.
            "pg_basebackup to nowhere": (["sh", "-c", " ".join(base) + " -D - >/dev/null"], False),
        }
        for _ in range(self.rounds):
            self.in_turn("full", whole, self.clear)
        for _ in range(self.rounds):
            self.in_turn("restore", {
                "pgkeep": (self.pgkeep + ["restore", "--archive-mode", "off", "--pgdata", f"{self.home}/restored",
                                          "--target-immediate"], False),
                "pgBackRest": (self.other + ["restore", f"--pg1-path={self.home}/restored", "--type=immediate",
                                             "--archive-mode=off"], False),
            }, self.clear)
        for _ in range(self.rounds):
            self.in_turn("verify", {
                "pgkeep": (self.pgkeep + ["verify", "--level", "full"], False),
                "pgBackRest": (self.other + ["verify"], False),
            })
        pages = int(self.sql("SELECT pg_relation_size('events') / 8192"))
        for round in range(self.rounds):
            # 0.5 % of the pages, here and there, others each time.
            self.sql(f"""UPDATE events SET kind = kind + 1 WHERE ctid = ANY (ARRAY(SELECT format('(%s,1)', page)::tid
                     FROM generate_series({round}, {pages - 1}, 200) page))""")
            self.sql("CHECKPOINT")
            self.in_turn("incremental, 0.5 % scattered", both("incr"))
        rows = round_to(100_000 * self.scale)
        for round in range(self.rounds):
            self.sql(f"""INSERT INTO events SELECT (SELECT max(id) FROM events) + n, now(), 1, jsonb_build_object('n', md5(n::text)),
                     sha256(n::text::bytea) FROM generate_series(1, {rows}) n""")
            self.sql("CHECKPOINT")
            self.in_turn("incremental, rows inserted", both("incr"))
        for _ in range(self.rounds):
            self.in_turn("differential", both("diff"))

    def table(self):
        """The rows as cells."""
        head = ["", "wall s", "spread", "of pgBackRest's", "CPU s", "CPU of the machine", "peak MiB", "stored MiB"]
        cells = [head]
        for row, tools in self.rows.items():
            other = statistics.median(one.wall for one in tools["pgBackRest"])
            for tool, all_of_it in tools.items():
                wall = [one.wall for one in all_of_it]
                middle = lambda name: statistics.median(getattr(one, name) for one in all_of_it)
                stored = "" if all_of_it[0].stored is None else f"{middle('stored'):.1f}"
                cells.append([
                    f"{row}: {tool}", f"{statistics.median(wall):.2f}", f"{min(wall):.2f} to {max(wall):.2f}",
                    f"{statistics.median(wall) / other:.2f}", f"{middle('cpu'):.1f}", f"{middle('machine'):.1f}",
                    f"{max(one.peak for one in all_of_it):.0f}", stored,
                ])
        return cells

    def show(self, write):
        cells = self.table()
        widths = [max(len(line[n]) for line in cells) for n in range(len(cells[0]))]
        for line in cells:
            print("  ".join(cell.ljust(width) if n == 0 else cell.rjust(width)
                            for n, (cell, width) in enumerate(zip(line, widths))))
        if write:
            with open(write, "w") as file:
                file.write(self.what + "\n\n")
                for number, line in enumerate(cells):
                    file.write("| " + " | ".join(line) + " |\n")
                    if number == 0:
                        file.write("|---" * len(line) + "|\n")

    def end(self):
        subprocess.run([f"{BIN}/pg_ctl", "-D", self.data, "-m", "immediate", "stop"], capture_output=True)
        shutil.rmtree(self.home, ignore_errors=True)


def round_to(number):
    return max(1, int(number))


def main():
    if len(sys.argv) != 2:
        fail(__doc__)
    for tool in (f"{BIN}/pgbench", shutil.which("pgbackrest") or "pgbackrest"):
        if not os.path.exists(tool):
            fail(f"{tool} is missing: make install-bench")
    write = os.environ.get("PGKEEP_BENCH_WRITE")
    if os.geteuid() == 0:
        # What the user may not reach is copied to where it may.
        with tempfile.TemporaryDirectory() as place:
            os.chmod(place, 0o755)
            copies = [shutil.copy(path, place) for path in (sys.argv[0], sys.argv[1])]
            result = f"{place}/result"
            os.mkdir(result)
            os.chown(result, pwd.getpwnam("postgres").pw_uid, -1)
            environment = dict(os.environ, PGKEEP_BENCH_WRITE=f"{result}/table" if write else "")
            status = subprocess.call(["setpriv", "--reuid", "postgres", "--regid", "postgres", "--init-groups",
                                      "/usr/bin/python3", *copies], cwd="/", env=environment)
            if write and status == 0:
                shutil.copy(f"{result}/table", write)
            sys.exit(status)
    bench = Bench(sys.argv[1])
    try:
        bench.make_cluster()
        bench.backups()
        bench.show(write)
    finally:
        bench.end()


main()
