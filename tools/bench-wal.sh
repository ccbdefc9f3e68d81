#!/usr/bin/env bash
# Measures the archiving of WAL beside Debian's pgBackRest and `cp` with `sync`, in one run: on the local disk, and
# on S3 behind added latency. The ratios mean something, the times only on a quiet machine. `make bench-wal` calls
# it with the release binary. Root hands over to the user postgres, as whom a server runs.
#
#   tools/bench-wal.sh PGKEEP
#
# In the environment, with what they are otherwise:
#   PGKEEP_BENCH_PARTS="single backlog recovery memory cost"   what is measured
#   PGKEEP_BENCH_PLACES="disk s3"      where the repositories are; cost is of the disk only
#   PGKEEP_BENCH_WAL="pages records"   what most of the WAL is: whole pages after checkpoints, or changes of rows
#   PGKEEP_BENCH_SEGMENTS=200          how many segments a backlog on the disk has
#   PGKEEP_BENCH_S3_SEGMENTS=60        the same on S3
#   PGKEEP_BENCH_SINGLES=15            how many segments are pushed one at a time
#   PGKEEP_BENCH_ROUNDS=2              how often each backlog and each recovery is measured
#   PGKEEP_BENCH_DELAY=20              what each answer of S3 takes longer, in ms
#   PGKEEP_BENCH_SCALE=50              pgbench's scale: some 15 MB each
#   PGKEEP_BENCH_PAIRS=12              runs of pgbench with a stream, and as many without
#   PGKEEP_BENCH_PAIR_SECONDS=10       how long each takes
#   PGKEEP_BENCH_SEED=1                decides which of a pair comes first
#   PGKEEP_BENCH_DIR=/tmp              where the cluster and the repositories are made
#   PGKEEP_BENCH_KEEP=                 if set, they stay
set -euo pipefail
pgkeep=$(readlink -f "$1")
if [ "$(id -u)" = 0 ]; then
    place=$(mktemp -d)
    trap 'rm -rf "$place"' EXIT
    chmod 0755 "$place"
    install -m 0755 "$pgkeep" "$place/pgkeep"
    install -m 0755 "$0" "${0%/*}/delay.py" "$place"
    cd /
    setpriv --reuid postgres --regid postgres --init-groups -- "$place/${0##*/}" "$place/pgkeep" &
    trap 'kill "$!"' INT TERM
    result=0
    # A signal ends the first wait.
    wait "$!" || result=$?
    trap '' INT TERM
    wait "$!" || result=$?
    exit "$result"
fi
tools=$(readlink -f "${0%/*}")
parts=${PGKEEP_BENCH_PARTS:-single backlog recovery memory cost}
places=${PGKEEP_BENCH_PLACES:-disk s3}
kinds=${PGKEEP_BENCH_WAL:-pages records}
segments=${PGKEEP_BENCH_SEGMENTS:-200}
s3_segments=${PGKEEP_BENCH_S3_SEGMENTS:-60}
singles=${PGKEEP_BENCH_SINGLES:-15}
rounds=${PGKEEP_BENCH_ROUNDS:-2}
delay=${PGKEEP_BENCH_DELAY:-20}
scale=${PGKEEP_BENCH_SCALE:-50}
pairs=${PGKEEP_BENCH_PAIRS:-12}
pair_seconds=${PGKEEP_BENCH_PAIR_SECONDS:-10}
seed=${PGKEEP_BENCH_SEED:-1}
keep=${PGKEEP_BENCH_KEEP:-}
home=$(mktemp -d "${PGKEEP_BENCH_DIR:-/tmp}/pgkeep-bench-wal.XXXXXX")
# pgkeep refuses variables of its name that it doesn't know.
unset "${!PGKEEP_@}"

bin=/usr/lib/postgresql/15/bin
for tool in "$bin/pgbench" /usr/bin/pgbackrest /usr/bin/python3; do
    [ -x "$tool" ] || { echo "$tool is missing: make install-bench" >&2; exit 1; }
done
export PGHOST=$home PGUSER=bench PGDATABASE=postgres
export AWS_EC2_METADATA_DISABLED=true
status=$home/data/pg_wal/archive_status

# Processes of this run that may outlive who started them: what archives ahead, what fetches ahead.
lingering() {
    local process
    for process in /proc/[0-9]*; do
        [ -O "$process" ] || continue
        if [ "$(readlink "$process/exe" 2>/dev/null)" = "$home/pgkeep" ] ||
            grep -qzxF -- "--config=$home/pgbackrest-disk.conf" "$process/cmdline" 2>/dev/null ||
            grep -qzxF -- "--config=$home/pgbackrest-s3.conf" "$process/cmdline" 2>/dev/null; then
            echo "${process#/proc/}"
        fi
    done
}
helpers=()
finish() {
    local process
    for cluster in data copy; do
        [ ! -e "$home/$cluster/postmaster.pid" ] ||
            "$bin/pg_ctl" -D "$home/$cluster" -m immediate stop >/dev/null 2>&1 || true
    done
    for process in "${helpers[@]}" $(lingering); do kill "$process" 2>/dev/null || true; done
    [ -n "$keep" ] && echo "kept: $home" || rm -rf "$home"
}
trap finish EXIT
trap 'exit 130' INT TERM

wanted() { [[ " $parts " = *" $1 "* ]]; }
wanted_place() { [[ " $places " = *" $1 "* ]]; }
fail() { echo "$*" >&2; exit 1; }
say() { printf '%-52s %s\n' "$@"; }
calc() { awk "BEGIN { printf \"${2:-%.2f}\", $1 }"; }
median() { sort -n "$1" | awk '{ v[NR] = $1 } END { printf "%.1f", (v[int((NR + 1) / 2)] + v[int(NR / 2) + 1]) / 2 }'; }
free_port() { /usr/bin/python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])'; }
failed=0
# Of the whole machine since it was started, in seconds.
cpu_seconds() { awk '/^cpu / { print ($2 + $3 + $4 + $7 + $8) / 100 }' /proc/stat; }
wait_for() { # what, seconds, command
    local what=$1 end=$((SECONDS + $2))
    shift 2
    until "$@"; do
        [ "$SECONDS" -lt "$end" ] || fail "waited in vain: $what"
        sleep 0.05
    done
}
none_lingers() { [ -z "$(lingering)" ]; }

# --- Repositories ---

start_s3() {
    local program= each server port
    for each in "$(command -v s3s-fs || true)" /var/lib/pgkeep-test/tools/bin/s3s-fs "$tools/../target/pgkeep-test/tools/bin/s3s-fs"; do
        [ ! -x "$each" ] || { program=$each; break; }
    done
    [ -n "$program" ] || fail "s3s-fs is missing: make install-bench"
    printf '%s\n' '[req]' 'distinguished_name = name' 'x509_extensions = more' 'prompt = no' '[name]' 'CN = localhost' \
        '[more]' 'subjectAltName = IP:127.0.0.1' 'basicConstraints = critical, CA:FALSE' >"$home/openssl.cnf"
    openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 30 -config "$home/openssl.cnf" \
        -keyout "$home/tls.key" -out "$home/tls.crt" 2>/dev/null
    mkdir -p "$home/s3/wal"
    server=$(free_port)
    RUST_LOG=off "$program" --host 127.0.0.1 --port "$server" --access-key x --secret-key y "$home/s3" >"$home/s3.log" 2>&1 &
    helpers+=($!)
    port=$(free_port)
    /usr/bin/python3 "$tools/delay.py" "$port" "$server" "$delay" "$home/tls.crt" "$home/tls.key" >"$home/delay.log" 2>&1 &
    helpers+=($!)
    s3=https://127.0.0.1:$port
    near_s3=http://127.0.0.1:$server
    s3_port=$port
    wait_for "S3 listens" 10 curl -sko "$home/out" "$s3"
}
write_configurations() {
    local place
    for place in $places; do
        cat >"$home/pgkeep-$place.toml" <<TOML
state-dir = "$home/state-$place"
[repository.main]
url = "$([ "$place" = disk ] && echo "file://$home/pgkeep-disk" || echo "s3://wal/pgkeep")"
key-file = "$home/$place.key"
[cluster.main]
conninfo = "host=$home user=bench"
pgdata = "$home/data"
archive-timeout = "10min"
TOML
        mkdir "$home/spool-$place" "$home/lock-$place"
        cat >"$home/pgbackrest-$place.conf" <<CONF
[global]
repo1-path=$([ "$place" = disk ] && echo "$home/pgbackrest-disk" || echo /pgbackrest)
repo1-cipher-type=aes-256-cbc
repo1-cipher-pass=of-the-benchmark
repo1-retention-full=9
spool-path=$home/spool-$place
lock-path=$home/lock-$place
log-path=$home
log-level-console=off
log-level-stderr=error
log-level-file=off
compress-type=zst
compress-level=1
process-max=2
[main]
pg1-path=$home/data
pg1-socket-path=$home
pg1-user=bench
pg1-database=postgres
CONF
    done
    if wanted_place s3; then
        printf '[default]\naws_access_key_id = x\naws_secret_access_key = y\n' >"$home/credentials"
        chmod 0600 "$home/credentials"
        cat >>"$home/pgkeep-s3.toml" <<TOML
[repository.main.s3]
endpoint = "$s3"
ca-file = "$home/tls.crt"
credentials-file = "$home/credentials"
TOML
        cat >"$home/pgbackrest-of-s3.conf" <<CONF
repo1-type=s3
repo1-s3-bucket=wal
repo1-s3-endpoint=127.0.0.1
repo1-s3-region=us-east-1
repo1-s3-uri-style=path
repo1-s3-key=x
repo1-s3-key-secret=y
repo1-storage-host=127.0.0.1
repo1-storage-port=$s3_port
repo1-storage-verify-tls=n
CONF
        sed -i "/^\[global\]/r $home/pgbackrest-of-s3.conf" "$home/pgbackrest-s3.conf"
    fi
}
keep_of() { echo "$home/pgkeep --config $home/pgkeep-$place.toml --quiet"; }
rest_of() { echo "pgbackrest --config=$home/pgbackrest-$place.conf --stanza=main"; }
# What is archived goes, and what anybody remembers of it, so that the next one archives the same anew. What says
# which server it is stays.
wipe() {
    wait_for "the last processes end" 60 none_lingers
    rm -rf "$home"/{pgkeep-disk,s3/wal/pgkeep}/clusters/main/wal/*/0000*/0*
    rm -rf "$home"/{pgbackrest-disk,s3/wal/pgbackrest}/archive/main/15-1/0*
    rm -rf "$home"/spool-*/* "$home"/state-* "$home/copies"
    mkdir "$home/copies"
    sync
}

# Fails unless a tool has really stored what it said it has.
stored() { # tool, how many
    local directories each count=0
    case $1 in
        pgkeep) directories=("$home"/{pgkeep-disk,s3/wal/pgkeep}/clusters/main/wal) ;;
        pgbackrest*) directories=("$home"/{pgbackrest-disk,s3/wal/pgbackrest}/archive/main) ;;
        cp | mv) directories=("$home/copies") ;;
    esac
    for each in $(head -n "$2" "$home/segments"); do
        [ -z "$(find "${directories[@]}" -type f -name "$each*" -print -quit 2>/dev/null)" ] || count=$((count + 1))
    done
    [ "$count" = "$2" ] || fail "$1 has stored $count of $2 segments"
}

# --- The server, and its WAL ---

archive_with() { echo "archive_command = '$1'" >"$home/archive.conf"; }
start() { "$bin/pg_ctl" -D "$1" -l "$1.log" -w -t 600 start >/dev/null; }
stop() { "$bin/pg_ctl" -D "$1" -m fast -w -t 600 stop >/dev/null; }
reload() { "$bin/pg_ctl" -D "$home/data" reload >/dev/null; }
sql() { "$bin/psql" -qAtc "$1"; }
ready() { compgen -G "$status/*.ready" | wc -l; }
none_ready() { ! compgen -G "$status/*.ready" >/dev/null; }

# Makes pgbench's tables. pgbench itself fills them with blanks, whose WAL nearly vanishes in compression.
load() { # scale
    "$bin/pgbench" -i -I dt -s "$1" >/dev/null 2>&1
    sql "INSERT INTO pgbench_branches SELECT n, 0, md5(n::text) FROM generate_series(1, $1) n"
    sql "INSERT INTO pgbench_tellers SELECT n, (n - 1) / 10 + 1, 0, md5(n::text) FROM generate_series(1, $1 * 10) n"
    sql "INSERT INTO pgbench_accounts SELECT n, (n - 1) / 100000 + 1, 0, md5(n::text) || md5((-n)::text)
         FROM generate_series(1, $1 * 100000) n"
    "$bin/pgbench" -i -I vp -s "$1" >/dev/null 2>&1
}
make_cluster() {
    local place
    "$bin/initdb" -D "$home/data" -U bench -A trust --data-checksums --no-sync >/dev/null
    cat >>"$home/data/postgresql.conf" <<CONF
listen_addresses = ''
unix_socket_directories = '$home'
shared_buffers = 256MB
max_wal_size = 4GB
wal_keep_size = $((segments * 16 + 4096))MB
archive_mode = on
log_line_prefix = '%n '
include = '$home/archive.conf'
CONF
    archive_with ''
    start "$home/data"
    for place in $places; do
        $(keep_of) init >/dev/null
        archive_with "$(keep_of) archive-push %p"
        reload
        $(keep_of) check >/dev/null
        $(rest_of) stanza-create
    done
    load "$scale"
    archive_with ''
    stop "$home/data"
    # No session waits for the rows of another.
    printf '%s\n' '\set rows 25000 * :scale' '\set first :client_id * :rows + random(1, :rows - 99)' \
        'UPDATE pgbench_accounts SET abalance = abalance + 1 WHERE aid BETWEEN :first AND :first + 99;' >"$home/records.sql"
}
# What a recovery begins with. It has no WAL but what its own checkpoint is in.
make_cold() {
    local last
    last=$("$bin/pg_controldata" "$home/data" | sed -n "s/.*REDO WAL file: *//p")
    rm -rf "$home/cold"
    mkdir -m 0700 "$home/cold"
    tar -C "$home/data" --exclude='./pg_wal/*' -cf - . | tar -C "$home/cold" -xf -
    mkdir "$home/cold/pg_wal/archive_status"
    cp "$home/data/pg_wal/$last" "$home/cold/pg_wal/"
}
# Makes more finished segments than are needed, which wait, and remembers the first ones.
make_wal() { # kind
    local need=$((segments > s3_segments ? segments : s3_segments))
    local load=("$bin/pgbench" -n -c 4 -T 8)
    # Of a fifth of the rows, so that few changes are the first one of their page.
    [ "$1" = pages ] || load+=(-f "$home/records.sql" -s "$(((scale + 4) / 5))")
    all_done
    make_cold
    start "$home/data"
    while [ "$(ready)" -lt "$need" ]; do
        [ "$1" != pages ] || sql checkpoint
        PGOPTIONS='-c synchronous_commit=off' "${load[@]}" >/dev/null 2>&1
    done
    stop "$home/data"
    (cd "$status" && ls | sed -n 's/^\([0-9A-F]\{24\}\)\.ready$/\1/p' | sort | head -n "$need") >"$home/segments"
    all_done
    local whole zstd
    whole=$((need * 16))
    zstd=$(sed "s|^|$home/data/pg_wal/|" "$home/segments" | xargs cat | zstd -q -1 -c | wc -c)
    say "$need segments of WAL, most of it $1" "$whole MiB, $((zstd >> 20)) MiB with zstd -1"
}
all_done() {
    local each
    for each in "$status"/*.ready; do [ ! -e "$each" ] || mv "$each" "${each%.ready}.done"; done
}
all_ready() { # how many
    local each
    all_done
    for each in $(head -n "$1" "$home/segments"); do mv "$status/$each.done" "$status/$each.ready"; done
}

# --- One segment at a time ---

push_single() { # tool, segment
    case $1 in
        pgkeep) $(keep_of) archive-push "pg_wal/$2" ;;
        pgbackrest) $(rest_of) archive-push "$home/data/pg_wal/$2" ;;
        pgbackrest-3) $(rest_of) --compress-level=3 archive-push "$home/data/pg_wal/$2" ;;
        cp) cp "pg_wal/$2" "$home/copies/$2" && sync "$home/copies/$2" "$home/copies" ;;
    esac
}
single() { # place, tools, how many there are
    local place=$1 tools=($2) count=$3 n=0 segment tool turn
    wipe
    cd "$home/data"
    rm -f "$home"/*.ms "$home"/*.cpu
    # Neighbours, as a server has them: pgkeep stores what is missing between two as well.
    for segment in $(head -n "$count" "$home/segments" | tail -n "$singles"); do
        for turn in "${!tools[@]}"; do
            tool=${tools[(turn + n) % ${#tools[@]}]}
            # Both of pgBackRest's have one repository.
            rm -f "$home"/{pgbackrest-disk,s3/wal/pgbackrest}/archive/main/15-1/*/"$segment"-*
            TIMEFORMAT='%R %U %S'
            { time push_single "$tool" "$segment" 2>"$home/err" || { cat "$home/err"; exit 1; }; } 2>"$home/time"
            awk '{ print $1 * 1000 }' "$home/time" >>"$home/$tool.ms"
            awk '{ print ($2 + $3) * 1000 }' "$home/time" >>"$home/$tool.cpu"
        done
        n=$((n + 1))
    done
    cd "$home"
    echo "a single segment, from ready to durable: $place, the median of $n"
    say "  pgkeep, of pgbackrest-3" "$(calc "$(median "$home/pgkeep.ms") / $(median "$home/pgbackrest-3.ms")")"
    for tool in "${tools[@]}"; do
        say "  $tool" "$(median "$home/$tool.ms") ms, CPU $(median "$home/$tool.cpu") ms$(ratio "$(median "$home/$tool.ms")" "$(median "$home/pgbackrest.ms")" "$tool")"
    done
}
ratio() { # this, pgBackRest's, tool
    [ "$3" = pgbackrest ] || echo ", $(calc "$1 / $2") of pgBackRest's"
}

# --- A backlog, by the server's archiver ---

push_command() { # tool
    case $1 in
        pgkeep) echo "$(keep_of) archive-push %p" ;;
        pgbackrest) echo "$(rest_of) --archive-async archive-push %p" ;;
        pgbackrest-3) echo "$(rest_of) --compress-level=3 --archive-async archive-push %p" ;;
        cp | mv) echo "cp %p $home/copies/%f && sync $home/copies/%f $home/copies" ;;
    esac
}
# Sets `took` and `cpu`, seconds.
push_all() { # tool, how many
    local begin before
    wipe
    all_ready "$2"
    archive_with ''
    start "$home/data"
    archive_with "$(push_command "$1")"
    before=$(cpu_seconds) begin=$EPOCHREALTIME
    reload
    wait_for "$1 archives" 3600 none_ready
    took=$(calc "$EPOCHREALTIME - $begin" %.3f)
    cpu=$(calc "$(cpu_seconds) - $before")
    # Or the segment that a shutdown ends would be archived too.
    archive_with ''
    reload
    stop "$home/data"
    all_done
    stored "$1" "$2"
}
backlog() { # place, tools, how many
    local place=$1 count=$3 round tool line
    rm -f "$home"/*.rate
    echo "a backlog of $count segments: $place"
    for round in $(seq "$rounds"); do
        for tool in $2; do
            push_all "$tool" "$count"
            calc "$count / $took" '%.2f\n' >>"$home/$tool.rate"
            line="$took s, $(calc "$count / $took" %.1f) segments/s"
            [ "$place" = s3 ] || line+=", CPU of the machine $(calc "$cpu * 1000 / $count" %.0f) ms each"
            say "  $tool (round $round)" "$line"
        done
    done
    for tool in pgbackrest pgbackrest-3; do
        say "  pgkeep's rate, of that of $tool" "$(calc "$(median "$home/pgkeep.rate") / $(median "$home/$tool.rate")")"
    done
}

# --- A recovery ---

get_command() { # tool
    case $1 in
        pgkeep) echo "$(keep_of) --cluster main archive-get %f %p" ;;
        pgbackrest) echo "$(rest_of) --pg1-path=$home/copy --archive-async archive-get %f %p" ;;
        cp) echo "cp $home/copies/%f %p" ;;
        # Nothing can take less: the segments are there, unpacked and on the same file system.
        mv) echo "mv $home/near/%f %p" ;;
        local) echo false ;;
    esac
}
# Sets `took`, from the start to the new timeline. The checkpoint that follows isn't in it.
recover() { # tool, how many
    local begin end each
    wait_for "the last processes end" 60 none_lingers
    rm -rf "$home/copy" "$home/copy.log" "$home"/spool-*/* "$home"/state-*
    cp -a "$home/cold" "$home/copy"
    rm -rf "$home/near"
    [ "$1" != mv ] || cp -r "$home/copies" "$home/near"
    if [ "$1" = local ]; then
        for each in $(head -n "$2" "$home/segments"); do cp "$home/data/pg_wal/$each" "$home/copy/pg_wal/"; done
    fi
    cat >>"$home/copy/postgresql.conf" <<CONF
archive_mode = off
restore_command = '$(get_command "$1")'
CONF
    touch "$home/copy/recovery.signal"
    sync
    begin=$EPOCHREALTIME
    start "$home/copy"
    wait_for "the recovery ends" 3600 grep -q 'archive recovery complete' "$home/copy.log"
    end=$(awk '/archive recovery complete/ { print $1; exit }' "$home/copy.log")
    took=$(calc "$end - $begin")
    # All of it, or the ratios mean nothing.
    case $1 in
        local) reached=$(redo_end) ;;
        *) [ "$(redo_end)" = "$reached" ] || fail "$1 recovered up to $(redo_end), and not $reached" ;;
    esac
    stop "$home/copy"
}
redo_end() { sed -n 's/.*redo done at \([^ ]*\).*/\1/p' "$home/copy.log"; }
recovery() { # place, tools, how many
    local place=$1 round tool
    rm -f "$home"/*.recovered
    echo "a recovery of $3 segments: $place"
    for tool in $2; do
        push_all "$tool" "$3"
        for round in $(seq "$rounds"); do
            for tool in local "$tool"; do
                recover "$tool" "$3"
                echo "$took" >>"$home/$tool.recovered"
                say "  $tool" "$took s"
            done
        done
    done
    for tool in $2; do
        say "  $tool, of local" "$(calc "$(median "$home/$tool.recovered") / $(median "$home/local.recovered")")"
    done
}

# --- The stream ---

start_stream() { # place
    local place=$1
    $(keep_of) stream 2>"$home/stream.err" &
    stream=$!
    wait_for "the stream has what there is" 600 stream_is_near
}
stream_is_near() {
    kill -0 "$stream" || fail "the stream has ended: $(cat "$home/stream.err")"
    [ "$(sql "SELECT count(*) FROM pg_stat_replication WHERE pg_current_wal_flush_lsn() - flush_lsn < 1 << 20")" = 1 ]
}
end_stream() {
    kill "$stream"
    wait "$stream" || fail "the stream has failed: $(cat "$home/stream.err")"
}
# Nothing is archived beside it, so that all that costs is the stream's.
start_for_stream() {
    wipe
    archive_with /bin/true
    start "$home/data"
}
stop_after_stream() {
    sql "SELECT pg_drop_replication_slot('pgkeep')" >/dev/null
    stop "$home/data"
}
# Twice the rows of pgbench's tables, by as many sessions as there are processors: WAL as fast as it is made here.
load_in_bulk() {
    local session sessions=()
    sql "CREATE TABLE bulk (LIKE pgbench_accounts)"
    for session in $(seq "$(nproc)"); do
        sql "INSERT INTO bulk SELECT * FROM pgbench_accounts UNION ALL SELECT * FROM pgbench_accounts" &
        sessions+=($!)
    done
    wait "${sessions[@]}"
    sql "DROP TABLE bulk"
}
memory() { # place
    local begin from bytes peak ticks
    start_for_stream
    start_stream "$1"
    begin=$EPOCHREALTIME from=$(sql "SELECT pg_current_wal_lsn()")
    load_in_bulk
    took=$(calc "$EPOCHREALTIME - $begin")
    bytes=$(sql "SELECT pg_current_wal_lsn() - '$from'")
    wait_for "the stream has caught up" 600 stream_is_near
    caught=$(calc "$EPOCHREALTIME - $begin")
    peak=$(awk '/^VmHWM/ { print $2 }' "/proc/$stream/status")
    ticks=$(ticks_of "$stream")
    end_stream
    stop_after_stream
    echo "stream: $1, at full rate"
    say "  WAL made by bulk loading" "$((bytes >> 20)) MiB in $took s, $(calc "$bytes / 1048576 / $took" %.0f) MiB/s"
    say "  all of it in the repository after" "$caught s"
    say "  CPU of the stream" "$(calc "$ticks / 100") s, $(calc "$ticks * 10 * 16777216 / $bytes" %.0f) ms a segment"
    say "  memory at the peak, of at most 64 MiB" "$(calc "$peak / 1024" %.1f) MiB"
    [ "$peak" -lt 65536 ] || { echo "that is too much" >&2; failed=1; }
}
# Hundredths of a second of CPU that a process has taken.
ticks_of() { awk '{ print $14 + $15 }' "/proc/$1/stat"; }
run_pgbench() {
    sql checkpoint
    "$bin/pgbench" -n -c 4 -j 2 -T "$pair_seconds" 2>/dev/null | sed -n 's/^tps = \([0-9.]*\).*/\1/p'
}
cost() {
    local pair first with without from begin
    start_for_stream
    rm -f "$home/pairs" "$home/streams"
    for pair in $(seq "$pairs"); do
        first=$(awk -v seed="$((seed * 1000 + pair))" 'BEGIN { srand(seed); rand(); print rand() < 0.5 ? "with" : "without" }')
        [ "$first" = with ] || without=$(run_pgbench)
        start_stream disk
        from=$(sql "SELECT pg_current_wal_lsn()") begin=$EPOCHREALTIME
        with=$(run_pgbench)
        sql "SELECT pg_current_wal_lsn() - '$from'" | awk -v ticks="$(ticks_of "$stream")" \
            -v seconds="$(calc "$EPOCHREALTIME - $begin")" '{ print $1 / 1048576, seconds, ticks / 100 }' >>"$home/streams"
        end_stream
        [ "$first" = without ] || without=$(run_pgbench)
        echo "$with $without" >>"$home/pairs"
    done
    stop_after_stream
    echo "stream: disk, what pgbench loses beside it: $pairs pairs of $pair_seconds s, seed $seed"
    awk '{ with += $1; without += $2; lost[NR] = 100 * (1 - $1 / $2); sum += lost[NR] }
        END {
            mean = sum / NR; v = NR - 1; z = 1.959964
            for (i = 1; i <= NR; i++) squares += (lost[i] - mean) ^ 2
            # The quantile of Student'"'"'s distribution, by its expansion.
            t = z + (z ^ 3 + z) / (4 * v) + (5 * z ^ 5 + 16 * z ^ 3 + 3 * z) / (96 * v ^ 2)
            half = t * sqrt(squares / v / NR)
            printf "  %.0f transactions/s with, %.0f without: %.1f %% less (95 %%: %.1f to %.1f)\n",
                with / NR, without / NR, mean, mean - half, mean + half
        }' "$home/pairs"
    awk '{ mib += $1; seconds += $2; cpu += $3 }
        END { printf "  %.1f MiB/s of WAL, CPU of the stream %.1f %% of one processor, %.0f ms a segment\n",
                mib / seconds, 100 * cpu / seconds, 1000 * cpu / (mib / 16) }' "$home/streams"
}

# What S3 takes here by itself, to read the numbers by.
describe_s3() {
    local url times
    head -c 2000000 /dev/urandom >"$home/two"
    for url in "$near_s3" "$s3"; do
        times=$(for _ in 1 2 3 4 5; do
            curl -sSk --fail --expect100-timeout 0.001 --user x:y --aws-sigv4 aws:amz:us-east-1:s3 -H 'x-amz-content-sha256: UNSIGNED-PAYLOAD' \
                -T "$home/two" -o "$home/out" -w '%{time_total}\n' "$url/wal/two"
        done | sort -n | sed -n 3p)
        say "a PUT of 2 MB, $([ "$url" = "$s3" ] && echo "with TLS and $delay ms" || echo "at the server itself")" "$(calc "$times * 1000" %.0f) ms"
    done
}

cp "$pgkeep" "$home/pgkeep"
cd "$home"
! wanted_place s3 || start_s3
write_configurations
make_cluster
echo "$("$home/pgkeep" --version), pgBackRest $(pgbackrest version | cut -d' ' -f2), $(nproc) cores, load $(cut -d' ' -f1 /proc/loadavg)"
! wanted_place s3 || describe_s3
for kind in $kinds; do
    echo
    make_wal "$kind"
    for place in $places; do
        # pgbackrest-3 is at the level that it takes by itself; all others are at zstd's level 1.
        if [ "$place" = disk ]; then
            count=$segments pushing="pgkeep pgbackrest pgbackrest-3 cp" getting="pgkeep pgbackrest cp mv"
        else
            count=$s3_segments pushing="pgkeep pgbackrest pgbackrest-3" getting="pgkeep pgbackrest"
        fi
        ! wanted single || { echo; single "$place" "$pushing" "$count"; }
        ! wanted backlog || { echo; backlog "$place" "$pushing" "$count"; }
        ! wanted recovery || { echo; recovery "$place" "$getting" "$count"; }
    done
done
for place in $places; do
    ! wanted memory || { echo; memory "$place"; }
done
! wanted cost || ! wanted_place disk || { echo; cost; }
exit "$failed"
