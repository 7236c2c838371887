#!/bin/sh
# Builds the command and the C library twice, in two folders, and compares every byte.
set -eu
cd "$(dirname "$0")/.."
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
for folder in one another/one; do
    git clone --quiet . "$work/$folder"
    (
        cd "$work/$folder"
        separator=$(printf '\037')
        export CARGO_ENCODED_RUSTFLAGS="--remap-path-prefix=$PWD=/kiln${separator}--remap-path-prefix=${CARGO_HOME:-$HOME/.cargo}=/cargo"
        CARGO_TARGET_DIR=target cargo build --quiet --release --locked -p kiln-cli -p kiln-capi
        sha256sum target/release/kiln target/release/libkiln.so target/release/libkiln.a
        rm -rf target
    ) > "$work/$(echo "$folder" | tr / -).sums"
done
cat "$work/one.sums"
diff "$work/one.sums" "$work/another-one.sums"
echo "ok: two builds are the same"
