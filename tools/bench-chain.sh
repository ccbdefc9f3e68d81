#!/usr/bin/env bash
# Measures what a backup stores where one page of 200 has changed, here and there, and how long the last of a
# chain of incremental backups takes to restore, beside a full backup of the same content. `make bench-chain`
# calls it with the release binary. Root hands over to the user postgres, as whom a server runs.
#
#   tools/bench-chain.sh PGKEEP
#
# In the environment, with what they are otherwise:
#   PGKEEP_BENCH_SCALE=200     pgbench's scale: some 15 MB each
#   PGKEEP_BENCH_CHAIN=30      how long the chain of incremental backups is; 0 leaves it out
#   PGKEEP_BENCH_DIR=/tmp      where the cluster and the repositories are made
#   PGKEEP_BENCH_KEEP=         if set, they stay
set -euo pipefail
pgkeep=$(readlink -f "$1")
if [ "$(id -u)" = 0 ]; then
    place=$(mktemp -d)
    trap 'rm -rf "$place"' EXIT
    chmod 0755 "$place"
    install -m 0755 "$pgkeep" "$place/pgkeep"
    install -m 0755 "$0" "$place/bench-chain.sh"
    cd /
    setpriv --reuid postgres --regid postgres --init-groups -- "$place/bench-chain.sh" "$place/pgkeep"
    exit
fi
scale=${PGKEEP_BENCH_SCALE:-200}
chain=${PGKEEP_BENCH_CHAIN:-30}
bin=/usr/lib/postgresql/15/bin
[ -x "$bin/pgbench" ] || { echo "PostgreSQL 15 of Debian is needed: make install-bench" >&2; exit 1; }
keep=${PGKEEP_BENCH_KEEP:-}
home=$(mktemp -d "${PGKEEP_BENCH_DIR:-/tmp}/pgkeep-bench.XXXXXX")
# pgkeep refuses variables of its name that it doesn't know.
unset "${!PGKEEP_@}"
finish() {
    "$bin/pg_ctl" -D "$home/data" -m immediate stop >/dev/null 2>&1 || true
    [ -n "$keep" ] && echo "kept: $home" || rm -rf "$home"
}
trap finish EXIT

cp "$pgkeep" "$home/pgkeep"
cat >"$home/pgkeep.toml" <<TOML
threads = 2
[repository.main]
url = "file://$home/repository"
key-file = "$home/main.key"
[cluster.main]
conninfo = "host=$home user=bench"
pgdata = "$home/data"
archive-timeout = "10min"
TOML
run=("$home/pgkeep" --config "$home/pgkeep.toml" --quiet)

"$bin/initdb" -D "$home/data" -U bench -A trust --data-checksums --no-sync >/dev/null
cat >>"$home/data/postgresql.conf" <<CONF
listen_addresses = ''
unix_socket_directories = '$home'
max_wal_size = 4GB
wal_compression = on
archive_mode = on
archive_command = '${run[*]} archive-push %p'
CONF
export PGHOST=$home PGUSER=bench PGDATABASE=postgres
"${run[@]}" init >/dev/null
"$bin/pg_ctl" -D "$home/data" -l "$home/log" -w start >/dev/null
"${run[@]}" check >/dev/null
"$bin/pgbench" -i -q -s "$scale" >/dev/null 2>&1
"$bin/psql" -qAtc checkpoint
size=$("$bin/psql" -qAtc "select pg_size_pretty(sum(pg_database_size(oid))) from pg_database")
echo "a cluster of $size, $(nproc) cores, load $(cut -d' ' -f1 /proc/loadavg)"
echo

# Runs a command; sets `took` (seconds) and `peak` (MiB, the most that its process had in memory).
measure() {
    local begin=$EPOCHREALTIME now
    "$@" >"$home/out" 2>&1 &
    local process=$! kib=0 seen
    while kill -0 "$process" 2>/dev/null; do
        seen=$(sed -n 's/^VmHWM:[^0-9]*\([0-9]*\) kB/\1/p' "/proc/$process/status" 2>/dev/null || true)
        [ -z "$seen" ] || kib=$seen
        sleep 0.05
    done
    wait "$process" || { cat "$home/out" >&2; exit 1; }
    now=$EPOCHREALTIME
    took=$(awk "BEGIN { printf \"%.1f\", $now - $begin }")
    peak=$((kib / 1024))
}
line() { printf '%-58s %7s s %6s MiB peak   %s\n' "$@"; }

# What a backup stores where one page of 200 has changed, here and there.
table_kib() { awk "BEGIN { printf \"%.0f\", $1 / 1024 }"; }
stored() { # of the last backup, as its record says
    "${run[@]}" --output json backup --type "$1" | tr ',{}' '\n' | sed -n 's/^ *"stored": *\([0-9]*\).*/\1/p' | head -1
}
sql() { "$bin/psql" -qAtc "$1"; }
echo
sql "CREATE TABLE scattered (id int, filler text) WITH (fillfactor = 60)"
sql "INSERT INTO scattered SELECT n, (SELECT string_agg(md5(n::text || m), '') FROM generate_series(1, 20) m)
     FROM generate_series(1, 420000) n"
sql "VACUUM (FREEZE, ANALYZE) scattered"
sql "CHECKPOINT"
pages=$(sql "SELECT pg_relation_size('scattered') / 8192")
file=$home/data/$(sql "SELECT pg_relation_filepath('scattered')")
if command -v pgbackrest >/dev/null; then
    cat >"$home/pgbackrest.conf" <<CONF
[global]
repo1-path=$home/pgbackrest
repo1-block=y
repo1-bundle=y
repo1-cipher-type=aes-256-cbc
repo1-cipher-pass=of-the-benchmark
beta=y
log-path=$home
lock-path=$home
repo1-retention-full=9
log-level-console=off
log-level-stderr=off
log-level-file=off
compress-type=zst
compress-level=1
process-max=2
start-fast=y
archive-check=n
[main]
pg1-path=$home/data
pg1-socket-path=$home
pg1-user=bench
pg1-database=postgres
CONF
    other=(pgbackrest "--config=$home/pgbackrest.conf" --stanza=main)
    "${other[@]}" stanza-create
fi
other_stored() { # by the next backup of pgBackRest
    local before after
    before=$(du -sb "$home/pgbackrest/backup" | cut -f1)
    "${other[@]}" backup "--type=$1"
    after=$(du -sb "$home/pgbackrest/backup" | cut -f1)
    echo $((after - before))
}
stored full >/dev/null
[ ! -v other ] || other_stored full >/dev/null
# What either stores if nothing has changed.
idle=$(stored incr)
[ ! -v other ] || other_idle=$(other_stored incr)
sql "UPDATE scattered SET filler = reverse(filler) WHERE ctid = ANY (ARRAY(
     SELECT format('(%s,1)', page)::tid FROM generate_series(0, $pages - 1, 200) page))"
sql "CHECKPOINT"
changed=$(stored incr)
[ ! -v other ] || other_changed=$(other_stored incr)
for page in $(seq 0 200 $((pages - 1))); do
    dd if="$file" bs=8192 skip="$page" count=1 status=none
done >"$home/changed-pages"
compressed=$(zstd -q -1 -c "$home/changed-pages" | wc -c)
count=$(($(stat -c %s "$home/changed-pages") / 8192))
echo "$count of $pages pages changed, scattered: $((count * 8)) KiB, $(table_kib "$compressed") KiB compressed"
echo "pgkeep backup --type incr, stored           $(table_kib "$changed") KiB ($(table_kib "$idle") KiB if nothing had changed)"
if [ -v other ]; then
    echo "pgBackRest $(pgbackrest version | cut -d' ' -f2), block incremental        $(table_kib "$other_changed") KiB ($(table_kib "$other_idle") KiB if nothing had changed)"
else
    echo "pgBackRest isn't installed: make install-bench"
fi
most=$((compressed * 13 / 10 + (1 << 20)))
[ "$changed" -lt "$most" ] || { echo "that is more than 1.3 times the compressed pages and 1 MiB" >&2; exit 1; }

# The last of a chain beside a full backup of the same content.
[ "$chain" -gt 0 ] || exit 0
id_of() { tr ',{}' '\n' | sed -n 's/^ *"id": *"\([^"]*\)".*/\1/p' | head -1; }
echo
"${run[@]}" backup --type full >/dev/null
begin=$EPOCHREALTIME
for _ in $(seq "$chain"); do
    "$bin/pgbench" -n -c 2 -t 1000 >/dev/null 2>&1
    last=$("${run[@]}" --output json backup --type incr | id_of)
done
each=$(awk "BEGIN { printf \"%.1f\", ($EPOCHREALTIME - $begin) / $chain }")
full=$("${run[@]}" --output json backup --type full | id_of)
echo "a chain of $chain incremental backups with 2000 transactions before each, $each s for one"
for round in 1 2 3; do
    for which in "$last" "$full"; do
        rm -rf "$home/restored"
        measure "${run[@]}" restore --archive-mode off --pgdata "$home/restored" --backup "$which" --target-immediate
        line "restore of ${which##*-} (round $round)" "$took" "$peak" "$which"
    done
done
