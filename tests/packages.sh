#!/bin/sh
# Installs Debian packages in a folder of their own, uses and removes them: packages.sh PACKAGES
#
# Needs root, debootstrap, lintian and a C compiler. PACKAGES is what crates/kiln-cli/packaging/build.sh
# wrote.
set -eu
packages=$(cd "$1" && pwd)
cd "$(dirname "$0")/.."

lintian --allow-root --fail-on error "$packages"/*.deb

root=$(mktemp -d)
trap 'umount "$root/proc" 2>/dev/null || true; rm -rf "$root"' EXIT
debootstrap --variant=minbase --include=procps,man-db,systemd bookworm "$root" > /dev/null
mount -t proc proc "$root/proc"
list() (cd "$root" && find . -path ./proc -prune -o -path ./var/lib/dpkg -prune -o -path ./var/log -prune -o -print | sort)
list > "$root/../before.$$"

cp "$packages"/*.deb "$root/tmp/"
chroot "$root" sh -c 'apt-get install -y -qq /tmp/*.deb > /tmp/log 2>&1 || { cat /tmp/log; exit 1; }; rm /tmp/*.deb /tmp/log'
chroot "$root" sh -eu -c '
    cd /tmp
    export KILN_CACHE_DIR=/tmp/cache
    kiln generate "a red circle" --steps 4 --seed 7 --out /tmp/circle.png
    test -s /tmp/circle.png
    zcat /usr/share/man/man1/kiln-serve.1.gz | grep -q "memory.*budget"
    grep -q _kiln /usr/share/bash-completion/completions/kiln
    kiln serve /etc/kiln/models.yaml --state /tmp/state --print-config | grep -q shapes
'
chroot "$root" systemd-analyze verify kiln.service kiln-worker.service

# A program in C, which the -dev package compiles and the library's package runs.
cc crates/kiln-capi/examples/draw.c -I"$root/usr/include" -L"$root/usr/lib" -lkiln -o "$root/tmp/draw"
chroot "$root" sh -eu -c '
    cd /tmp
    export KILN_CACHE_DIR=/tmp/cache
    ldconfig
    ./draw "$(kiln compile /usr/share/kiln/models/shapes --backend rten)" "a red circle" by-c.png
    kiln compare by-c.png by-c.png > /dev/null
    rm -r cache circle.png by-c.png draw
'

chroot "$root" sh -c 'apt-get purge -y -qq kiln libkiln1 libkiln-dev > /tmp/log 2>&1 || { cat /tmp/log; exit 1; }; rm /tmp/log; dpkg --audit'
list > "$root/../after.$$"
left=$(comm -13 "$root/../before.$$" "$root/../after.$$" | grep -v -e '^./run' -e '^./var/cache' -e '^./var/lib/apt' -e libgcc || true)
rm "$root/../before.$$" "$root/../after.$$"
[ -z "$left" ] || { echo "left behind: $left" >&2; exit 1; }
echo "ok: packages install, draw and leave nothing behind"
