#!/bin/sh
# Builds kiln for aarch64 and runs it under qemu, and checks that it compiles for Windows and macOS.
#
# Needs the compilers gcc-aarch64-linux-gnu and gcc-mingw-w64-x86-64, qemu-user, and from PyPI cargo-zigbuild and ziglang.
set -eu
cd "$(dirname "$0")/.."
cargo build --quiet --locked -p kiln-cli --bin kiln
host=${CARGO_TARGET_DIR:-target}/debug/kiln
export CARGO_TARGET_DIR=target/ports
rustup --quiet target add aarch64-unknown-linux-gnu x86_64-pc-windows-gnu aarch64-apple-darwin

CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_LINKER=aarch64-linux-gnu-gcc \
    cargo build --quiet --locked -p kiln-cli --bin kiln --target aarch64-unknown-linux-gnu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
kiln() { qemu-aarch64 -L /usr/aarch64-linux-gnu target/ports/aarch64-unknown-linux-gnu/debug/kiln "$@"; }
kiln --version
kiln inspect models/shapes > /dev/null
kiln trace models/shapes --out "$folder/traced" > /dev/null
draw() {
    "$1" generate "a red circle" --model models/shapes --backend rten --seed 7 --steps 4 \
        --engine-cache "$folder/engines" --out "$folder/$2.png"
}
draw kiln aarch64
draw "$host" x86-64
"$host" compare "$folder/aarch64.png" "$folder/x86-64.png" --max-difference 1

cargo check --quiet --locked -p kiln-cli -p kiln-capi --target x86_64-pc-windows-gnu
cargo-zigbuild check --quiet --locked -p kiln-cli -p kiln-capi --target aarch64-apple-darwin
echo "ok: aarch64 runs, Windows and macOS compile"
