"""Clusters with data, and the tools set up for them."""

import os
import shutil
import subprocess

from measure import run

PROGRAMS = "/usr/lib/postgresql/15/bin"


class Cluster:
    """A server below `home`, with what the tools need to know."""

    def __init__(self, home, name, programs, extra=""):
        self.home, self.data, self.programs = f"{home}/{name}", f"{home}/{name}/data", programs
        os.mkdir(self.home)
        run([f"{programs}/initdb", "-D", self.data, "-U", "bench", "-A", "trust", "--data-checksums", "--no-sync"])
        with open(f"{self.data}/postgresql.conf", "a") as file:
            file.write(f"""
listen_addresses = ''
unix_socket_directories = '{self.home}'
shared_buffers = 256MB
max_wal_size = 4GB
wal_compression = on
wal_keep_size = 1GB
archive_mode = on
include = '{self.home}/archive.conf'
{extra}
""")
        self.archive_with([])

    def archive_with(self, commands):
        with open(f"{self.home}/archive.conf", "w") as file:
            file.write(f"archive_command = '{' && '.join(commands)}'\n")

    def start(self):
        run([f"{self.programs}/pg_ctl", "-D", self.data, "-l", f"{self.home}/log", "-w", "start"],
            stdin=subprocess.DEVNULL)

    def reload(self):
        run([f"{self.programs}/pg_ctl", "-D", self.data, "reload"])

    def stop(self):
        subprocess.run([f"{self.programs}/pg_ctl", "-D", self.data, "-m", "immediate", "stop"], capture_output=True)

    def sql(self, text):
        return run([f"{PROGRAMS}/psql", "-h", self.home, "-U", "bench", "-d", "postgres", "-qAtc", text])

    def pgbench(self, *arguments):
        run([f"{PROGRAMS}/pgbench", "-h", self.home, "-U", "bench", *arguments, "postgres"])

    def fill(self, scale):
        """Half of it compresses twenty times, half three times: 2.7 GB for each unit."""
        self.pgbench("-i", "-q", "-s", str(max(1, round(100 * scale))))
        self.sql("CREATE TABLE events (id bigint PRIMARY KEY, at timestamptz, kind int, payload jsonb, digest bytea)")
        self.sql(f"""INSERT INTO events SELECT n, now() - n * interval '1 s', n % 17, jsonb_build_object('user', n % 1000,
            'session', md5(n::text), 'path', '/api/v1/' || (n % 97), 'took', (n % 1009) * 7),
            sha256(n::text::bytea) FROM generate_series(1, {round(5_500_000 * scale)}) n""")
        self.settle()

    def settle(self):
        self.sql("VACUUM (FREEZE, ANALYZE)")
        self.sql("CHECKPOINT")

    def scatter(self, turn):
        """Changes 0.5 % of the table's pages, here and there, others each time."""
        pages = int(self.sql("SELECT pg_relation_size('events') / 8192"))
        self.sql(f"""UPDATE events SET kind = kind + 1 WHERE ctid = ANY (ARRAY(SELECT format('(%s,1)', page)::tid
                 FROM generate_series({turn}, {pages - 1}, 200) page))""")
        self.sql("CHECKPOINT")

    def insert(self, rows):
        self.sql(f"""INSERT INTO events SELECT (SELECT max(id) FROM events) + n, now(), 1,
                 jsonb_build_object('n', md5(n::text)), sha256(n::text::bytea) FROM generate_series(1, {rows}) n""")
        self.sql("CHECKPOINT")

    def size(self):
        """MiB."""
        return int(float(self.sql("SELECT sum(pg_database_size(oid)) / (1 << 20) FROM pg_database")))


class Pgkeep:
    """pgkeep for a cluster, with a repository in a directory or on S3."""

    name = "pgkeep"

    def __init__(self, program, cluster, level, s3=None):
        self.repository = f"{cluster.home}/pgkeep"
        self.backups = f"{self.repository}/clusters/main/backups"
        place = f"{cluster.home}/pgkeep{'-s3' if s3 else ''}"
        with open(f"{place}.toml", "w") as file:
            file.write(f"""
threads = {os.cpu_count()}
state-dir = "{place}.state"
[repository.main]
url = "{f's3://{s3.bucket}/pgkeep' if s3 else 'file://' + self.repository}"
key-file = "{place}.key"
compression-level = {level}
[cluster.main]
conninfo = "host={cluster.home} user=bench"
pgdata = "{cluster.data}"
archive-timeout = "10min"
""")
            if s3:
                credentials = f"{cluster.home}/credentials"
                file.write(f"""[repository.main.s3]
endpoint = "https://127.0.0.1:{s3.port}"
ca-file = "{s3.certificate}"
credentials-file = "{credentials}"
""")
                with open(os.open(credentials, os.O_CREAT | os.O_WRONLY, 0o600), "w") as secret:
                    secret.write(f"[default]\naws_access_key_id = {s3.key_id}\naws_secret_access_key = {s3.secret}\n")
        self.command = [program, "--config", f"{place}.toml", "--quiet"]

    def set_up(self):
        run(self.command + ["init"])

    def check(self):
        run(self.command + ["check"])

    def archive_command(self):
        return " ".join(self.command) + " archive-push %p"

    def backup(self, kind):
        return self.command + ["backup", "--type", kind]

    def restore(self, place):
        return self.command + ["restore", "--archive-mode", "off", "--pgdata", place, "--target-immediate"]

    def verify(self):
        return self.command + ["verify", "--level", "full"]

    def push(self, path):
        return self.command + ["archive-push", path]

    def get(self, segment, path):
        return self.command + ["archive-get", segment, path]

    def info(self):
        return self.command + ["info"]

    def expire(self):
        return self.command + ["expire"]


class PgBackRest:
    """pgBackRest for the same, set up as its own documentation advises: zst, bundles, block incremental, as many
    processes as processors, its encryption on."""

    name = "pgBackRest"

    def __init__(self, cluster, level, s3=None):
        self.repository = f"{cluster.home}/pgbackrest"
        self.backups = f"{self.repository}/backup"
        place = f"{cluster.home}/pgbackrest{'-s3' if s3 else ''}"
        os.makedirs(f"{place}.lock")
        on_s3 = "" if not s3 else f"""repo1-type=s3
repo1-s3-bucket={s3.bucket}
repo1-s3-endpoint=127.0.0.1
repo1-s3-region=us-east-1
repo1-s3-uri-style=path
repo1-s3-key={s3.key_id}
repo1-s3-key-secret={s3.secret}
repo1-storage-host=127.0.0.1
repo1-storage-port={s3.port}
repo1-storage-verify-tls=n
"""
        with open(f"{place}.conf", "w") as file:
            file.write(f"""[global]
repo1-path={'/pgbackrest' if s3 else self.repository}
{on_s3}repo1-block=y
repo1-bundle=y
repo1-cipher-type=aes-256-cbc
repo1-cipher-pass=of-the-benchmark
repo1-retention-full=99
beta=y
log-path={cluster.home}
lock-path={place}.lock
log-level-console=off
log-level-stderr=error
log-level-file=off
compress-type=zst
compress-level={level}
process-max={os.cpu_count()}
start-fast=y
[main]
pg1-path={cluster.data}
pg1-socket-path={cluster.home}
pg1-user=bench
pg1-database=postgres
""")
        self.command = ["pgbackrest", f"--config={place}.conf", "--stanza=main"]

    def set_up(self):
        run(self.command + ["stanza-create"])

    def archive_command(self):
        return " ".join(self.command) + " archive-push %p"

    def backup(self, kind):
        return self.command + ["backup", f"--type={kind}"]

    def restore(self, place):
        return self.command + ["restore", f"--pg1-path={place}", "--type=immediate", "--archive-mode=off"]

    def verify(self):
        return self.command + ["verify"]

    def push(self, path):
        return self.command + ["archive-push", path]

    def get(self, segment, path):
        return self.command + ["archive-get", segment, path]


def copy_tree(of, to):
    shutil.rmtree(to, ignore_errors=True)
    run(["cp", "-a", of, to])
