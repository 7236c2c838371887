#!/bin/sh
# Builds the command and the shared C library twice, in two folders, and compares every byte.
#
# A compiler in between tells rustc which folders to leave out: flags for that would be other flags in each folder, and cargo
# names symbols after flags. Names of symbols are left out, as packages leave them out.
set -eu
cd "$(dirname "$0")/.."
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cat > "$work/rustc" <<'WRAPPER'
#!/bin/sh
exec "$@" --remap-path-prefix="$KILN_BUILT_IN=/kiln" --remap-path-prefix="${CARGO_HOME:-$HOME/.cargo}=/cargo"
WRAPPER
chmod +x "$work/rustc"
git clone --quiet . "$work/one"
git clone --quiet "$work/one" "$work/another/one"
for folder in one another/one; do
    (
        cd "$work/$folder"
        export RUSTC_WRAPPER="$work/rustc" KILN_BUILT_IN="$PWD"
        CARGO_TARGET_DIR=target cargo build --quiet --release --locked -p kiln-cli -p kiln-capi \
            --config 'profile.release.strip="symbols"'
        sha256sum target/release/kiln target/release/libkiln.so
        rm -rf target
    ) > "$work/$(echo "$folder" | tr / -).sums"
done
cat "$work/one.sums"
diff "$work/one.sums" "$work/another-one.sums"
echo "ok: two builds are the same"
