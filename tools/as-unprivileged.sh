#!/usr/bin/env bash
# Runs the release binary of this directory: as it is for an ordinary user, and for root as the user
# `postgres`, since PostgreSQL's server refuses to run as root. The directory may be one that only
# root can enter, so root hands over a copy.
#
#   tools/as-unprivileged.sh pgkeep ARGUMENT…
set -euo pipefail
binary=${CARGO_TARGET_DIR:-$(dirname "$0")/../target}/release/$1
shift
[ "$(id -u)" = 0 ] || exec "$binary" "$@"

place=$(mktemp -d)
trap 'rm -rf "$place"' EXIT
chmod 0755 "$place"
cp "$binary" "$place/pgkeep"
cd /
# In the foreground, so that Ctrl-C reaches it, and not by exec, so that the copy goes.
setpriv --reuid postgres --regid postgres --init-groups --reset-env -- "$place/pgkeep" "$@"
