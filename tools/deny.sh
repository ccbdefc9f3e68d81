#!/usr/bin/env bash
# Holds the dependencies to deny.toml: licenses, bans, sources. Uses the `cargo deny` that is
# installed, else compiles VERSION once (about two minutes; unoptimised, it runs for a second) and
# keeps it beside the servers that the tests use.
#
#   tools/deny.sh VERSION
set -euo pipefail
cd "$(dirname "$0")/.."

if cargo deny --version >/dev/null 2>&1; then
    deny="cargo deny"
else
    if [ "$(id -u)" = 0 ]; then root=/var/lib/pgkeep-test/tools; else root=$PWD/target/pgkeep-test/tools; fi
    deny=$root/bin/cargo-deny
    if [ "$("$deny" --version 2>/dev/null)" != "cargo-deny $1" ]; then
        build=$(mktemp -d)
        trap 'rm -rf "$build"' EXIT
        CARGO_TARGET_DIR=$build cargo install cargo-deny --version "$1" --locked --profile dev \
            --root "$root" --quiet
    fi
fi
$deny check licenses bans sources
