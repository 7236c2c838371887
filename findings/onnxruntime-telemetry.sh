#!/usr/bin/env bash
# onnxruntime's Linux wheel from PyPI writes a database and a device id into the user's cache folder when its environment is
# made, also where telemetry is disabled through its API; the variable ORT_DISABLE_TELEMETRY=1 keeps it from that.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet onnxruntime==1.32.0 numpy

# Makes the environment with a home folder of its own and prints what lies in that afterwards.
seen() {
    mkdir -p "$work/$1"
    env -i PATH="$PATH" HOME="$work/$1" "${@:2}" "$work/venv/bin/python" -c '
import onnxruntime
onnxruntime.disable_telemetry_events()
print("onnxruntime", onnxruntime.__version__)'
    (cd "$work/$1" && find . -type f | sort | sed 's/^/    /')
}

echo "telemetry disabled through the API:"
seen api | tee "$work/api.txt"
echo "and ORT_DISABLE_TELEMETRY=1:"
seen variable ORT_DISABLE_TELEMETRY=1 | tee "$work/variable.txt"

grep -q '/\.onnxruntime/onnxruntime\.db' "$work/api.txt"
grep -q '/deviceid' "$work/api.txt"
! grep -q '^    ' "$work/variable.txt"
