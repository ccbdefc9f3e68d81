#!/bin/sh
# Fuzzes what reads bytes that nobody vouches for. Run by `make fuzz`.
#
#   tools/fuzz.sh [SECONDS [TARGET...]]      each target in turn for so long; 60 seconds, all targets
#
# What it found out so far lies in target/fuzz, or below CARGO_TARGET_DIR: the corpus of each target, and how often and how long it
# ran, so that short runs add up. It begins with what is kept of both in fixtures/corpus; with KEEP set, what adds nothing to
# the coverage is dropped from the corpora in the end, and the rest is kept there. An input that fails goes to fixtures/fuzz/TARGET,
# from where `cargo test --test integration -- fuzzed::` replays it.
set -eu

cd "$(dirname "$0")/.."
seconds=${1:-60}
[ $# -eq 0 ] || shift
case $seconds in
    '' | *[!0-9]*) echo "tools/fuzz.sh: \"$seconds\" is no number of seconds" >&2; exit 2 ;;
esac

if ! rustc +nightly --version >/dev/null 2>&1; then
    echo "tools/fuzz.sh: coverage needs a nightly compiler: rustup toolchain install nightly --profile minimal" >&2
    exit 2
fi
if ! command -v c++ >/dev/null 2>&1; then
    echo "tools/fuzz.sh: libFuzzer needs a C++ compiler: apt-get install g++" >&2
    exit 2
fi

build=${CARGO_TARGET_DIR:-target}/fuzz
mkdir -p "$build/corpus" "$build/failed"
build=$(cd "$build" && pwd)
progress=$build/progress
kept=fixtures/corpus

# What cargo-fuzz passes, without a sanitizer: the library has no unsafe code, and memory is counted by
# the fuzzer itself. The target is named so that build scripts are built without it.
host=$(rustc +nightly -vV | sed -n 's/^host: //p')
RUSTFLAGS="--cfg fuzzing -Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4 \
-Cllvm-args=-sanitizer-coverage-inline-8bit-counters -Cllvm-args=-sanitizer-coverage-pc-table \
-Cllvm-args=-sanitizer-coverage-trace-compares" \
    cargo +nightly build --quiet --release --locked --target "$host" --target-dir "$build/build" \
    --manifest-path tests/fuzz/Cargo.toml
program=$build/build/$host/release/fuzz

# Each client of S3 reads the system's certificates; one is enough here.
{
    echo '-----BEGIN CERTIFICATE-----'
    tail -c +2 fixtures/fuzz/certificate/seed-names | base64
    echo '-----END CERTIFICATE-----'
} >"$build/certificate.pem"
SSL_CERT_FILE=$build/certificate.pem
export SSL_CERT_FILE

targets=$*
[ -n "$targets" ] || targets=$(PGKEEP_FUZZ_TARGET=list "$program" -artifact_prefix="$build/" 2>&1 | sed -n 's/^PGKEEP_FUZZ_TARGET is to be one of: //p')

# TARGET SECONDS EXECUTIONS, one line for each run; what is kept has one for each target.
[ -e "$progress" ] || cp "$kept/progress" "$progress"
total() {
    awk -v target="$1" '$1 == target { s += $2; n += $3 } END { printf "%d s, %.0f executions", s, n }' "$progress"
}

# A program of Rust's own ignores it; the fuzzer's main is libFuzzer's.
trap '' PIPE

# Inputs of 20 KiB reach everything, and longer ones would take a time of their own. What an input may
# take of memory is bounded by the fuzzer itself (tests/fuzz/src/limit.rs); the bound here is that of the process.
fuzz() { # TARGET, what libFuzzer is told
    target=$1
    shift
    PGKEEP_FUZZ_TARGET=$target "$program" "$@" -max_len=20480 -timeout=10 -rss_limit_mb=1024 \
        -artifact_prefix="$build/failed/$target-" </dev/null
}

failed=0
for target in $targets; do
    seeds=fixtures/fuzz/$target
    if ! [ -d "$seeds" ]; then
        echo "tools/fuzz.sh: there is no target \"$target\"" >&2
        exit 2
    fi
    corpus=$build/corpus/$target
    found=$build/failed/$target-
    log=$build/$target.log
    mkdir -p "$corpus"
    if [ -z "$(ls "$corpus")" ] && [ -e "$kept/$target.tar.gz" ]; then
        tar -C "$corpus" -xzf "$kept/$target.tar.gz"
    fi
    rm -f "$found"*
    begin=$(date +%s)
    status=0 left=0
    fuzz "$target" "$corpus" "$seeds" -max_total_time="$seconds" -use_value_profile=1 -print_final_stats=1 -verbosity=1 \
        >"$log" 2>&1 || status=$?
    ran=$(($(date +%s) - begin))
    executions=$(sed -n 's/^stat::number_of_executed_units: *//p' "$log" | tail -n 1)
    covered=$(sed -n 's/.* cov: \([0-9]*\) .*/\1/p' "$log" | tail -n 1)
    echo "$target $ran ${executions:-0}" >>"$progress"
    printf '%-16s %9s executions in %s s, %s edges, %s inputs; in all %s\n' "$target" "${executions:-0}" \
        "$ran" "${covered:-0}" "$(ls "$corpus" | wc -l)" "$(total "$target")"
    for input in "$found"*; do
        [ -e "$input" ] || continue
        case $input in
            # Slow, and yet within its time.
            *slow-unit-*) continue ;;
        esac
        failed=1 left=1
        kept=$seeds/$(basename "$input" | cut -d - -f 2- | cut -c 1-28)
        cp "$input" "$kept"
        {
            echo "tools/fuzz.sh: the target $target FAILED; the input is kept as $kept"
            grep -aE "panicked at|ERROR: libFuzzer|^thread" -A 3 "$log" | head -n 8
            echo "replay it: cargo test --locked --test integration -- fuzzed::what_was_kept_passes"
        } >&2
    done
    if [ "$status" -ne 0 ] && [ "$left" -eq 0 ]; then
        echo "tools/fuzz.sh: the target $target ended with $status and left no input; see $log" >&2
        failed=1
    fi
done

# Nothing of what is kept depends on when and by whom it was packed.
if [ -n "${KEEP:-}" ]; then
    for target in $targets; do
        small=$build/small
        rm -rf "$small"
        mkdir "$small"
        fuzz "$target" -merge=1 "$small" "$build/corpus/$target" >"$build/$target.log" 2>&1
        tar -C "$small" --sort=name --mtime=@0 --owner=0 --group=0 --numeric-owner -cf - . | gzip -9n >"$kept/$target.tar.gz"
    done
    for target in $(cut -d ' ' -f 1 "$progress" | sort -u); do
        awk -v target="$target" '$1 == target { s += $2; n += $3 } END { printf "%s %d %.0f\n", target, s, n }' "$progress"
    done >"$build/sums"
    mv "$build/sums" "$kept/progress"
    cp "$kept/progress" "$progress"
fi
exit "$failed"
