#!/bin/sh
# Installs the library, its header and its pkg-config file: install.sh BUILT PREFIX [FINAL], with DESTDIR as usual. FINAL
# is where the prefix will lie, if not where it is written.
set -eu
[ $# -ge 2 ] || { echo "usage: $0 BUILT PREFIX [FINAL]" >&2; exit 2; }
here=$(cd "$(dirname "$0")" && pwd)
to=${DESTDIR:-}$2
version=$(sed -n 's/^version = "\(.*\)"/\1/p' "$here/../../Cargo.toml" | head -n 1)
install -d "$to/lib/pkgconfig" "$to/include"
install -m 755 "$1/libkiln.so" "$to/lib/libkiln.so.$version"
ln -sf "libkiln.so.$version" "$to/lib/libkiln.so.1"
ln -sf libkiln.so.1 "$to/lib/libkiln.so"
install -m 644 "$1/libkiln.a" "$to/lib/libkiln.a"
install -m 644 "$here/include/kiln.h" "$to/include/kiln.h"
{
    printf 'prefix=%s\n' "${3:-$2}"
    sed "s|@VERSION@|$version|" "$here/kiln.pc.in"
} > "$to/lib/pkgconfig/kiln.pc"
