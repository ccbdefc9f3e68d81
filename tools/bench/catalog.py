"""Catalogs of many backups and much WAL, made without taking them."""

import hashlib
import json
import os
import shutil

from measure import run


def of_pgkeep(program, made, place, full):
    """A copy of the repository that the tests' `catalog::` has left at `made`, and how to call pgkeep on it."""
    shutil.rmtree(place, ignore_errors=True)
    run(["cp", "-a", made, place])
    with open(f"{place}/pgkeep.toml", "w") as file:
        file.write(f"""[repository.main]
url = "file://{place}/repository"
key-file = "{place}/main.key"
[repository.main.retention]
full = {full}
[cluster.main]
""")
    return [program, "--config", f"{place}/pgkeep.toml", "--quiet"]


class OfPgBackRest:
    """A repository of pgBackRest that has one backup and one segment, which then get copies under other names: its
    catalog is a file of lines, with a SHA-1 over all of them (its src/info/info.c). It isn't encrypted, so it can be
    written from here; reading it takes pgBackRest less for that."""

    def __init__(self, cluster, place, backups, segments, full):
        self.place, self.backups = place, backups
        shutil.rmtree(place, ignore_errors=True)
        os.makedirs(f"{place}/lock")
        with open(f"{place}/pgbackrest.conf", "w") as file:
            file.write(f"""[global]
repo1-path={place}/repository
repo1-bundle=y
repo1-retention-full={full}
log-path={place}
lock-path={place}/lock
log-level-console=off
log-level-stderr=error
log-level-file=off
compress-type=zst
start-fast=y
[main]
pg1-path={cluster.data}
pg1-socket-path={cluster.home}
pg1-user=bench
pg1-database=postgres
""")
        self.command = ["pgbackrest", f"--config={place}/pgbackrest.conf", "--stanza=main"]
        run(self.command + ["stanza-create"])
        cluster.archive_with([" ".join(self.command) + " archive-push %p"])
        cluster.reload()
        run(self.command + ["backup", "--type=full"])
        self.copy_segments(segments)
        self.copy_backups(segments // backups)

    def copy_segments(self, segments):
        archive = f"{self.place}/repository/archive/main/15-1"
        found = sorted(os.path.join(folder, name) for folder, _, names in os.walk(archive) for name in names
                       if name.endswith(".zst"))
        rest = os.path.basename(found[-1])[24:]
        content = open(found[-1], "rb").read()
        for path in found:
            os.remove(path)
        for number in range(1, segments + 1):
            name = segment(number)
            folder = f"{archive}/{name[:16]}"
            os.makedirs(folder, exist_ok=True)
            with open(f"{folder}/{name}{rest}", "wb") as file:
                file.write(content)

    def copy_backups(self, between):
        home = f"{self.place}/repository/backup/main"
        lines = open(f"{home}/backup.info").read().split("\n")
        at = lines.index("[backup:current]")
        label, entry = lines[at + 1].split("=", 1)
        entry, entries, begin = json.loads(entry), {}, 1_750_000_000
        last_full = None
        for number in range(self.backups):
            one, full = dict(entry), number % 10 == 0
            time = begin + number * 3600
            name = run(["date", "-u", "-d", f"@{time}", "+%Y%m%d-%H%M%S"])
            last_full = f"{name}F" if full else last_full
            name = last_full if full else f"{last_full}_{name}I"
            where = segment(1 + number * between)
            one.update({"backup-archive-start": where, "backup-archive-stop": where,
                        "backup-timestamp-start": time, "backup-timestamp-stop": time + 60,
                        "backup-type": "full" if full else "incr"})
            if not full:
                one.update({"backup-prior": last_full, "backup-reference": [last_full]})
            entries[name] = one
            shutil.copytree(f"{home}/{label}", f"{home}/{name}", copy_function=os.link)
        shutil.rmtree(f"{home}/{label}")
        lines[at + 1: at + 2] = [f"{name}={compact(one)}" for name, one in sorted(entries.items())]
        text = signed(lines)
        for name in ("backup.info", "backup.info.copy"):
            with open(f"{home}/{name}", "w") as file:
                file.write(text)

    def info(self):
        return self.command + ["info"]

    def expire(self):
        return self.command + ["expire"]


def segment(number):
    return f"00000001{number // 256:08X}{number % 256:08X}"


def compact(value):
    return json.dumps(value, separators=(",", ":"), sort_keys=True)


def signed(lines):
    """The lines with the checksum that they ought to have."""
    sections, section = {}, None
    for line in lines:
        if line.startswith("["):
            section = sections.setdefault(line[1:-1], [])
        elif "=" in line and not line.startswith("backrest-checksum="):
            key, value = line.split("=", 1)
            section.append(f'"{key}":{value}')
    whole = "{" + ",".join(f'"{name}":{{{",".join(pairs)}}}' for name, pairs in sections.items()) + "}"
    checksum = hashlib.sha1(whole.encode()).hexdigest()
    return "\n".join(f'backrest-checksum="{checksum}"' if line.startswith("backrest-checksum=") else line
                     for line in lines)
