#!/bin/sh
# Builds Debian packages, and what else a release holds: build.sh OUT [TARGET]
#
# OUT is a new folder. Needs cargo-deb, cargo-cyclonedx, git, binutils and dpkg-dev; with a target of this processor, such as
# x86_64-unknown-linux-gnu.2.28, whose number is that of the oldest glibc to run with, cargo-zigbuild and zig.
set -eu
[ $# -ge 1 ] || { echo "usage: $0 OUT [TARGET]" >&2; exit 2; }
case ${2:-$(uname -m)} in
    "$(uname -m)"*) ;;
    *) echo "$2: is not of this processor, $(uname -m)" >&2; exit 2 ;;
esac
mkdir "$1"
out=$(cd "$1" && pwd)
cd "$(dirname "$0")/../../.."

version=$(sed -n 's/^version = "\(.*\)"/\1/p' Cargo.toml | head -n 1)
SOURCE_DATE_EPOCH=${SOURCE_DATE_EPOCH:-$(git log -1 --format=%ct)}
export SOURCE_DATE_EPOCH
# Paths of the machine that builds are not in what it builds.
separator=$(printf '\037')
CARGO_ENCODED_RUSTFLAGS="--remap-path-prefix=$PWD=/kiln${separator}--remap-path-prefix=${CARGO_HOME:-$HOME/.cargo}=/cargo"
export CARGO_ENCODED_RUSTFLAGS
grep -q "libkiln1 (= $version-1)" crates/kiln-capi/Cargo.toml || { echo "kiln-capi's Cargo.toml: depends is not $version-1" >&2; exit 1; }

built=target/release
if [ $# -ge 2 ]; then
    cargo zigbuild --release --locked --target "$2" -p kiln-cli -p kiln-capi
    built=target/${2%%.*[0-9]}/release
    mkdir -p target/release
    cp "$built/kiln" "$built/libkiln.so" "$built/libkiln.a" target/release/
else
    cargo build --release --locked -p kiln-cli -p kiln-capi
fi

made=target/packaging
rm -rf "$made"
mkdir -p "$made/completions"
target/release/kiln man --out "$made/man"
target/release/kiln completions bash > "$made/completions/kiln.bash"
target/release/kiln completions zsh > "$made/completions/_kiln"
target/release/kiln completions fish > "$made/completions/kiln.fish"
sh crates/kiln-capi/install.sh target/release "$made/prefix" /usr
strip --strip-unneeded "$made/prefix/lib/libkiln.so.$version"
cat > "$made/changelog" <<END
kiln ($version-1) unstable; urgency=medium

  * Release $version; CHANGELOG.md says what is new.

 -- kiln developers <kiln@example.org>  $(LC_ALL=C date -u -R -d "@$SOURCE_DATE_EPOCH")
END

deb() (cd "crates/$1" && shift && cargo deb --no-build --locked --quiet --output "$out" "$@")
deb kiln-cli
deb kiln-capi
# What depends on the library, and on what it depends, are things that cargo-deb does not say.
unpacked="$made/libkiln1"
package=$(ls "$out"/libkiln1_*.deb)
dpkg-deb -R "$package" "$unpacked"
echo "libkiln 1 libkiln1 (>= $version)" > "$unpacked/DEBIAN/shlibs"
libc=$(dpkg-deb -f "$out"/kiln_*.deb Depends)
sed -i "s/^Depends:.*/Depends: $libc, libgcc-s1/" "$unpacked/DEBIAN/control"
dpkg-deb --root-owner-group -b "$unpacked" "$package" > /dev/null
deb kiln-capi --variant dev

# What it is made of, for those who look for known flaws.
cargo cyclonedx --quiet --format json --spec-version 1.5 --manifest-path crates/kiln-cli/Cargo.toml \
    --override-filename kiln.cdx
mv crates/kiln-cli/kiln.cdx.json "$out/kiln-$version.cdx.json"
find crates tests -name kiln.cdx.json -delete
(cd "$out" && sha256sum ./*.deb ./*.json > SHA256SUMS)
