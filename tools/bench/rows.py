"""What is measured: each row once for each tool, in turn, as often as there are rounds."""

import os
import shutil
import time

import catalog
from cluster import PROGRAMS, Cluster, PgBackRest, Pgkeep
from measure import S3, Measured, run
from table import Table

# Of the catalogs.
BACKUPS, SEGMENTS, FULL = 500, 10_000, 5
# How many segments are pushed and fetched one by one, for each round.
SINGLE = 5

SCATTERED = "incremental, 0.5 % scattered"
INSERTED = "incremental, rows inserted"


class Bench:
    def __init__(self, options, program, home):
        self.options, self.home, self.program = options, home, program
        self.rounds, self.level, self.scale = options.rounds, options.level, options.scale
        self.table = Table("pgBackRest")
        self.clusters = []

    def end(self):
        for cluster in self.clusters:
            cluster.stop()

    # --- Clusters ---

    def make(self):
        self.cluster = Cluster(self.home, "main", PROGRAMS)
        self.clusters.append(self.cluster)
        self.pgkeep = Pgkeep(self.program, self.cluster, self.level)
        self.other = PgBackRest(self.cluster, self.level)
        self.set_up(self.cluster, [self.pgkeep, self.other])
        self.cluster.fill(self.scale)
        versions = [run(self.pgkeep.command + ["--version"]), run(["pgbackrest", "version"])]
        self.what = (
            f"A cluster of {self.cluster.size()} MiB, PostgreSQL 15, zstd level {self.level}, {os.cpu_count()} cores of "
            f"{processor()}; {', '.join(versions)}; medians of {self.rounds}."
        )
        print(self.what, flush=True)

    def set_up(self, cluster, tools):
        running = os.path.exists(f"{cluster.data}/postmaster.pid")
        if not running:
            cluster.start()
        for tool in tools:
            tool.set_up()
        cluster.archive_with([tool.archive_command() for tool in tools])
        cluster.reload()
        for tool in tools:
            if isinstance(tool, Pgkeep):
                tool.check()

    # --- Measuring ---

    def measure(self, row, tool, command, backups=None, **more):
        before = size_of(backups) if backups else None
        measured = Measured(command, **more)
        if backups:
            measured.stored = (size_of(backups) - before) / (1 << 20)
        self.table.add(row, tool, measured)

    def in_turn(self, row, commands, prepare=None, stores=False):
        """One round: each tool once."""
        backups = {tool.name: tool.backups for tool in (self.pgkeep, self.other)} if stores else {}
        for name in self.table.turn(row, commands):
            if prepare:
                prepare()
            os.sync()
            self.measure(row, name, commands[name], backups.get(name))

    def both(self, command):
        return {tool.name: command(tool) for tool in (self.pgkeep, self.other)}

    def clear(self):
        for name in ("restored", "base"):
            shutil.rmtree(f"{self.home}/{name}", ignore_errors=True)
        os.mkdir(f"{self.home}/restored", 0o700)

    # --- Rows ---

    def backups(self):
        base = [f"{PROGRAMS}/pg_basebackup", "-h", self.cluster.home, "-U", "bench", "-X", "none", "-c", "fast", "-Ft"]
        zstd = f"--compress=client-zstd:level={self.level},workers={os.cpu_count()}"
        whole = self.both(lambda tool: tool.backup("full")) | {
            "pg_basebackup, zstd": base + ["-D", f"{self.home}/base", zstd],
            # What the protocol allows.
            "pg_basebackup to nowhere": ["sh", "-c", " ".join(base) + " -D - >/dev/null"],
        }
        for _ in range(self.rounds):
            self.in_turn("full", whole, self.clear, stores=True)
        for _ in range(self.rounds):
            self.in_turn("restore", self.both(lambda tool: tool.restore(f"{self.home}/restored")), self.clear)
        self.clear()
        for _ in range(self.rounds):
            self.in_turn("verify", self.both(lambda tool: tool.verify()))

    def incremental(self):
        incremental = self.both(lambda tool: tool.backup("incr"))
        for turn in range(self.rounds):
            self.cluster.scatter(turn)
            self.in_turn(SCATTERED, incremental, stores=True)
        rows = max(1, int(100_000 * self.scale))
        for _ in range(self.rounds):
            self.cluster.insert(rows)
            self.in_turn(INSERTED, incremental, stores=True)
        for _ in range(self.rounds):
            self.in_turn("differential", self.both(lambda tool: tool.backup("diff")), stores=True)

    def incremental_of_17(self):
        """The same data on 17, whose server knows what has changed. Debian's pgBackRest knows no newer than 15, so its
        rows are what they are compared with."""
        cluster = Cluster(self.home, "of17", self.options.programs_17, "summarize_wal = on")
        self.clusters.append(cluster)
        tool = Pgkeep(self.program, cluster, self.level)
        self.set_up(cluster, [tool])
        cluster.fill(self.scale)
        on_17 = lambda row: f"{row}, PostgreSQL 17"

        def measure(row, kind):
            self.table.compare(on_17(row), row)
            os.sync()
            self.measure(on_17(row), tool.name, tool.backup(kind), tool.backups)

        for _ in range(self.rounds):
            measure("full", "full")
        for turn in range(self.rounds):
            cluster.scatter(turn)
            measure(SCATTERED, "incr")
        for _ in range(self.rounds):
            cluster.insert(max(1, int(100_000 * self.scale)))
            measure(INSERTED, "incr")
        cluster.stop()
        shutil.rmtree(cluster.home)

    @staticmethod
    def archive_nothing(cluster):
        """From now on the server only says what waits."""
        cluster.archive_with(["false"])
        cluster.reload()
        # It may be at a file still.
        time.sleep(2)

    def single(self):
        """Segments of pgbench's WAL, each pushed and fetched alone."""
        cluster, folder = self.cluster, f"{self.cluster.data}/pg_wal"
        status = f"{folder}/archive_status"
        self.archive_nothing(cluster)
        # One more of each tool: its memory is looked at.
        wanted = SINGLE * self.rounds + 1
        ready = lambda: sorted(name[:24] for name in os.listdir(status) if name.endswith(".ready"))
        while len(ready()) < wanted:
            cluster.sql("CHECKPOINT")
            cluster.pgbench("-n", "-c", "4", "-T", "4")
        segments = ready()[:wanted]
        self.nothing_waits(cluster)
        copies = f"{self.home}/copies"
        os.mkdir(copies)

        def pushes(name):
            return self.both(lambda tool: tool.push(f"{folder}/{name}")) | {
                "cp and sync": ["sh", "-c", f"cp {folder}/{name} {copies} && sync {copies}/{name} {copies}"]
            }

        def gets(name):
            place = f"{self.home}/segment"
            return self.both(lambda tool: tool.get(name, place)) | {"cp": ["cp", f"{copies}/{name}", place]}

        for row, commands in [("push of a segment", pushes), ("get of a segment", gets)]:
            for number, name in enumerate(segments):
                ours = commands(name)
                for tool in self.table.turn(row, ours):
                    watch = number == len(segments) - 1
                    measured = Measured(ours[tool], watch=watch, cwd=cluster.data)
                    if watch:
                        measured.wall = None
                    self.table.add(row, tool, measured)
        shutil.rmtree(copies)

    @staticmethod
    def nothing_waits(cluster):
        """What waits to be archived would be pushed ahead by the first push."""
        status = f"{cluster.data}/pg_wal/archive_status"
        for name in os.listdir(status):
            if name.endswith(".ready"):
                os.rename(f"{status}/{name}", f"{status}/{name[:-6]}.done")

    def catalogs(self):
        """500 backups and 10,000 segments."""
        place = f"{self.home}/catalog"
        other = catalog.OfPgBackRest(self.cluster, f"{self.home}/catalog-of-pgbackrest", BACKUPS, SEGMENTS, FULL)
        kept = f"{self.home}/catalog-kept"
        shutil.copytree(other.place, kept, copy_function=os.link)
        size = f"{BACKUPS} backups, {SEGMENTS} segments"

        def prepare():
            ours = catalog.of_pgkeep(self.program, self.options.catalogs[-1], place, FULL)
            shutil.rmtree(other.place)
            shutil.copytree(kept, other.place, copy_function=os.link)
            os.sync()
            return ours

        for row in ("info", "expire"):
            for number in range(self.rounds + 1):
                ours = prepare()
                commands = {"pgkeep": ours + [row], "pgBackRest": getattr(other, row)()}
                for tool in self.table.turn(f"{row}, {size}", commands):
                    watch = number == self.rounds
                    measured = Measured(commands[tool], watch=watch)
                    if watch:
                        measured.wall = None
                    self.table.add(f"{row}, {size}", tool, measured)
        for folder in (place, other.place, kept):
            shutil.rmtree(folder)

    def on_s3(self):
        """A tenth of the cluster with its repositories on S3, for the number of requests alone."""
        s3 = S3(self.options.s3, self.home, self.options.tools)
        cluster = Cluster(self.home, "s3", PROGRAMS)
        self.clusters.append(cluster)
        tools = [Pgkeep(self.program, cluster, self.level, s3), PgBackRest(cluster, self.level, s3)]

        def count(row, tool, command):
            before = s3.asked()
            measured = Measured(command, watch=False, cwd=cluster.data)
            measured.wall, measured.requests = None, s3.asked() - before
            self.table.add(row, tool.name, measured)

        try:
            self.set_up(cluster, tools)
            cluster.fill(self.scale / 10)
            for tool in tools:
                count("full", tool, tool.backup("full"))
            for tool in tools:
                self.clear()
                count("restore", tool, tool.restore(f"{self.home}/restored"))
            self.clear()
            for tool in tools:
                count("verify", tool, tool.verify())
            cluster.scatter(0)
            for tool in tools:
                count(SCATTERED, tool, tool.backup("incr"))
            self.archive_nothing(cluster)
            for turn in range(2):
                cluster.insert(1)
                name = cluster.sql("SELECT pg_walfile_name(pg_switch_wal())")
                self.nothing_waits(cluster)
                for tool in tools:
                    push = tool.push(f"{cluster.data}/pg_wal/{name}")
                    # The first one after a pause finds out what is there.
                    if turn == 0:
                        run(push, cwd=cluster.data)
                    else:
                        count("push of a segment", tool, push)
            for tool in tools:
                count("get of a segment", tool, tool.get(name, f"{self.home}/segment"))
        finally:
            s3.end()


def size_of(path):
    return int(run(["du", "-sb", path]).split()[0]) if os.path.isdir(path) else 0


def processor():
    with open("/proc/cpuinfo") as file:
        return next((line.split(":", 1)[1].strip() for line in file if line.startswith("model name")), "unknown make")
