#!/usr/bin/env bash
# Measures backup, restore and archiving of a real cluster beside PostgreSQL's own tools, in one run:
# the ratios mean something, the times only on a quiet machine. `make bench` calls it with the release
# binary. Root hands over to the user postgres, as whom a server runs.
#
#   tools/bench.sh PGKEEP          PGKEEP_BENCH_SCALE=200 is pgbench's scale: some 15 MB each
set -euo pipefail
pgkeep=$(readlink -f "$1")
if [ "$(id -u)" = 0 ]; then
    place=$(mktemp -d)
    trap 'rm -rf "$place"' EXIT
    chmod 0755 "$place"
    install -m 0755 "$pgkeep" "$place/pgkeep"
    install -m 0755 "$0" "$place/bench.sh"
    cd /
    setpriv --reuid postgres --regid postgres --init-groups -- "$place/bench.sh" "$place/pgkeep"
    exit
fi
scale=${PGKEEP_BENCH_SCALE:-200}
bin=/usr/lib/postgresql/15/bin
[ -x "$bin/pgbench" ] || { echo "PostgreSQL 15 of Debian is needed: make install-test" >&2; exit 1; }
home=$(mktemp -d "${PGKEEP_BENCH_DIR:-/tmp}/pgkeep-bench.XXXXXX")
finish() {
    "$bin/pg_ctl" -D "$home/data" -m immediate stop >/dev/null 2>&1 || true
    rm -rf "$home"
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
size_of() { du -sm "$1" | cut -f1; }

for round in 1 2; do
    measure "${run[@]}" backup --type full
    line "pgkeep backup --type full (round $round)" "$took" "$peak" "$(size_of "$home/repository/clusters/main/backups") MiB for $round"
    rm -rf "$home/base"
    measure "$bin/pg_basebackup" -D "$home/base" -Ft -X none -c fast --compress=client-zstd:level=1,workers=2
    line "pg_basebackup -Ft, zstd level 1, 2 workers (round $round)" "$took" "$peak" "$(size_of "$home/base") MiB"
done
mkdir "$home/unpacked"
for round in 1 2; do
    rm -rf "$home/restored"
    measure "${run[@]}" restore --archive-mode off --pgdata "$home/restored" --target-immediate
    line "pgkeep restore (round $round)" "$took" "$peak" "verified and synced"
    rm -rf "$home/unpacked"; mkdir "$home/unpacked"
    measure sh -c "zstd -dc '$home/base/base.tar.zst' | tar -xC '$home/unpacked'; sync '$home/unpacked'"
    line "zstd -d | tar -x (round $round)" "$took" "$peak" "neither"
done

echo
segment=$(ls "$home"/data/pg_wal | grep -E '^[0-9A-F]{24}$' | head -1)
time_of() { # the median of 15 runs, in ms
    for _ in $(seq 15); do
        local begin=$EPOCHREALTIME
        "$@" >/dev/null 2>&1 || { "$@"; exit 1; }
        awk "BEGIN { printf \"%d\n\", ($EPOCHREALTIME - $begin) * 1000 }"
    done | sort -n | sed -n 8p
}
cd "$home/data"
new_push() { rm -f "$home"/repository/clusters/main/wal/*/*/"$segment"; "${run[@]}" archive-push "pg_wal/$segment"; }
copy() { rm -f "$home/copy"; cp "pg_wal/$segment" "$home/copy"; sync "$home/copy"; }
echo "archive-push of a new 16 MiB segment        $(time_of new_push) ms"
echo "archive-push of one that is there           $(time_of "${run[@]}" archive-push "pg_wal/$segment") ms"
echo "archive-get                                 $(time_of "${run[@]}" archive-get "$segment" "$home/fetched") ms"
echo "archive-get of one that isn't there         $(time_of bash -c "! ${run[*]} archive-get 0000000100000FFF00000001 '$home/fetched'") ms"
echo "cp and sync, for comparison                 $(time_of copy) ms"
