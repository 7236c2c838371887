#!/usr/bin/env bash
# Fuzzes each target, or those that are named, for some seconds each (60 by default), over a copy of its corpus:
#   tests/fuzz/run.sh [SECONDS] [TARGET…]
# Prints a line per target. An input that crashes or takes over a second or 512 MiB is left in target/fuzz-artifacts/,
# and the exit code is then 1; it is 2 where a tool is missing.
set -euo pipefail
cd "$(dirname "$0")"
root=$(cd ../.. && pwd)

missing() {
    echo "$1" >&2
    exit 2
}
cargo +nightly --version >/dev/null 2>&1 || missing "no nightly compiler: rustup toolchain install nightly"
cargo fuzz --version >/dev/null 2>&1 || missing "no cargo-fuzz: cargo install cargo-fuzz --locked"

seconds=60
if [[ ${1:-} =~ ^[0-9]+$ ]]; then
    seconds=$1
    shift
fi
targets=("$@")
[ $# -gt 0 ] || mapfile -t targets < <(cargo fuzz list --fuzz-dir .)

# No sanitizer: what is unsafe lies in dependencies, and their shadows would hide how much memory is taken.
export CARGO_TARGET_DIR=${CARGO_TARGET_DIR:-$root/target/fuzz}
cargo +nightly fuzz build --fuzz-dir . --sanitizer none
programs=$CARGO_TARGET_DIR/$(rustc +nightly -vV | sed -n 's/host: //p')/release

work=$(mktemp -d -p "$([ -w /dev/shm ] && echo /dev/shm || echo "${TMPDIR:-/tmp}")")
trap 'rm -rf "$work"' EXIT
export TMPDIR=$work
artifacts=$root/target/fuzz-artifacts
mkdir -p "$artifacts"

# Runs a target; whether nothing was found.
fuzz() {
    local target=$1 log=$work/$1.log options=(-max_total_time="$seconds" -rss_limit_mb=512 -timeout=30)
    local most=4096
    case $target in
        original | packed) most=32768 ;;
        picture | manifest | network | prompt | server_*) most=16384 ;;
    esac
    [ ! -f "dictionaries/$target" ] || options+=(-dict="dictionaries/$target")
    cp -r "corpus/$target" "$work/corpus-$target"
    options+=(-max_len="$most" -artifact_prefix="$artifacts/$target-" -print_final_stats=1)
    local found=0
    "$programs/$target" "$work/corpus-$target" "${options[@]}" >"$log" 2>&1 || found=$?
    awk -v target="$target" -v found="$found" '
        / cov: / { for (i = 1; i < NF; i++) if ($i == "cov:") cov = $(i + 1) }
        /^Done / { seconds = $5 }
        /stat::number_of_executed_units/ { n = $2 }
        /stat::peak_rss_mb/ { rss = $2 }
        END { printf "%-14s %10d executions %6d edges %6d s %5d MiB  %s\n", target, n, cov, seconds, rss,
                     found == 0 ? "nothing found" : "FOUND" }' "$log"
    [ "$found" = 0 ] || { tail -n 40 "$log" >&2; return 1; }
}

failed=0
for target in "${targets[@]}"; do
    fuzz "$target" || failed=1
done
exit $failed
