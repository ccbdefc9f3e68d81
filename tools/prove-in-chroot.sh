#!/usr/bin/env bash
# Proves that the README's commands are enough on a bare machine: a fresh Debian 12 made by
# debootstrap, with nothing in it but Rust and this source. A machine that has been worked on hides
# missing install steps. Run as root; it isn't part of CI.
#
#   tools/prove-in-chroot.sh [TARGET…]         demo and test unless said; PGKEEP_CHROOT says where (a new
#                                              directory below /var/tmp otherwise), KEEP=1 keeps it
#
# The chroot gets this machine's package sources, certificates, resolver, client configuration and
# Rust as they are, so it reaches what this machine reaches. The source is what git has committed.
set -euo pipefail
[ "$(id -u)" = 0 ] || { echo "run as root: this makes a chroot" >&2; exit 1; }
cd "$(dirname "$0")/.."
source=$PWD
commands=("$@")
[ ${#commands[@]} -gt 0 ] || commands=(demo test)

command -v debootstrap >/dev/null || apt-get install -y -q debootstrap </dev/null

root=${PGKEEP_CHROOT:-$(mktemp -d /var/tmp/pgkeep-chroot.XXXXXX)}
# The root directory of a machine is everybody's to enter.
chmod 755 "$root"
unmount() {
    for mount in dev proc; do
        if mountpoint -q "$root/$mount"; then umount -R -l "$root/$mount"; fi
    done
}
finish() {
    status=$?
    # What was started in there and still runs would keep it busy.
    for process in /proc/[0-9]*; do
        if [ "$(readlink "$process/root" 2>/dev/null)" = "$root" ]; then
            kill -9 "${process#/proc/}" 2>/dev/null || true
        fi
    done
    sleep 1
    unmount
    if [ -n "${KEEP:-}" ]; then echo "kept: $root"; else rm -rf --one-file-system "$root"; fi
    exit $status
}
trap finish EXIT
trap 'exit 1' INT TERM

# The first Debian mirror of this machine's own sources.
mirror=$(apt-get indextargets --format '$(SITE)' 'Created-By: Packages' 'Origin: Debian' | head -1)
[ -n "$mirror" ] || { echo "no Debian mirror in this machine's package sources" >&2; exit 1; }
echo "== a bare Debian 12 in $root"
debootstrap --variant=minbase bookworm "$root" "$mirror" >"$root.log" 2>&1 ||
    { tail -20 "$root.log" >&2; exit 1; }
rm -f "$root.log"

echo "== package sources, certificates and Rust as here"
give() { # copies a file or directory to the same place
    for path; do
        [ -e "$path" ] || continue
        mkdir -p "$root$(dirname "$path")"
        cp -aL "$path" "$root$(dirname "$path")/"
    done
}
# Only Debian's own sources: others may need programs or keys that a bare machine hasn't.
rm -f "$root/etc/apt/sources.list"
for list in /etc/apt/sources.list /etc/apt/sources.list.d/*; do
    if [ -e "$list" ] && grep -q debian "$list" && ! grep -qvE '^\s*#|^\s*$|debian|^(Types|Suites|Components|Architectures|Enabled):' "$list"; then
        give "$list"
    fi
done
give /etc/apt/apt.conf /etc/apt/auth.conf /etc/apt/auth.conf.d /etc/resolv.conf /etc/hosts
for conf in /etc/apt/apt.conf.d/*; do
    # Proxies and certificates, not hooks that call what isn't there.
    if grep -qiE 'proxy|https?::|cainfo' "$conf"; then give "$conf"; fi
done
give "$HOME/.npmrc" /etc/pip.conf "$HOME/.config/pip"
cargo_home=${CARGO_HOME:-$HOME/.cargo}
rustup_home=${RUSTUP_HOME:-$HOME/.rustup}
mkdir -p "$root/root/.cargo"
for path in bin env config config.toml credentials.toml; do
    [ ! -e "$cargo_home/$path" ] || cp -a "$cargo_home/$path" "$root/root/.cargo/"
done
cp -a "$rustup_home" "$root/root/.rustup"

# Variables that name certificates or proxies, with the files that they name.
environment=(HOME=/root PATH=/root/.cargo/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
    LANG=C.UTF-8 TERM="${TERM:-dumb}" CI=true)
while IFS='=' read -r name value; do
    case $name in
        *_proxy | *_PROXY | *CERT* | *CA_BUNDLE* | *CAINFO* | CARGO_HTTP_* | CARGO_NET_* | npm_config_*)
            # Certificates under a name that installing Debian's own doesn't write over.
            if [ -f "$value" ]; then
                mkdir -p "$root/etc/of-the-host"
                cp -L "$value" "$root/etc/of-the-host/"
                value=/etc/of-the-host/$(basename "$value")
            fi
            [ -d "$value" ] || environment+=("$name=$value")
            ;;
    esac
done < <(env)
cafile=$(npm config get cafile 2>/dev/null || true)
if [ -f "$cafile" ]; then
    mkdir -p "$root/etc/of-the-host"
    cp -L "$cafile" "$root/etc/of-the-host/npm.crt"
    environment+=(npm_config_cafile=/etc/of-the-host/npm.crt)
fi

mount -t proc proc "$root/proc"
mount --rbind /dev "$root/dev"
mount --make-rslave "$root/dev"

echo "== the source as committed: $(git -C "$source" rev-parse --short HEAD)"
mkdir -p "$root/root/pgkeep"
git -C "$source" archive HEAD | tar -x -C "$root/root/pgkeep"

# A machine that builds Rust has make and a linker; what is missing beyond that is ours to install.
in_chroot() { chroot "$root" env -i "${environment[@]}" "$@" </dev/null; }
in_chroot sh -c 'apt-get update -q && apt-get install -y -q --no-install-recommends make' >/dev/null

for command in "${commands[@]}"; do
    echo "== make $command"
    begin=$SECONDS
    in_chroot sh -c "cd /root/pgkeep && make $command"
    echo "== make $command: worked, in $((SECONDS - begin)) s"
done
