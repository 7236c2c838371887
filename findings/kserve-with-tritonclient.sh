#!/usr/bin/env bash
# kserve and tritonclient[grpc] both speak the Open Inference Protocol, and one Python process cannot import both: each
# registers the protobuf package `inference` with a file of its own, and whichever comes second raises a TypeError. A script
# that compares the two clients needs a process for each.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet kserve==0.21.0 'tritonclient[grpc]==2.73.0'
"$work/venv/bin/pip" list 2>/dev/null | grep -E '^(kserve|tritonclient|protobuf) '

# Imports modules one after another and prints how each went, cut to what the message says.
imports() {
    "$work/venv/bin/python" - "$@" <<'PYTHON'
import importlib
import sys

for name in sys.argv[1:]:
    try:
        importlib.import_module(name)
        print(f"    {name}: imported")
    except TypeError as error:
        print(f"    {name}: TypeError: {str(error).splitlines()[-1][-60:]}")
PYTHON
}

echo "each alone:"
imports kserve | tee "$work/alone.txt"
imports tritonclient.grpc | tee -a "$work/alone.txt"
echo "one after the other:"
imports tritonclient.grpc kserve | tee "$work/both.txt"
imports kserve tritonclient.grpc | tee -a "$work/both.txt"

[ "$(grep -c ': imported' "$work/alone.txt")" = 2 ]
[ "$(grep -c ': imported' "$work/both.txt")" = 2 ]
[ "$(grep -c "TypeError: .*duplicate symbol 'inference.ServerLiveRequest'" "$work/both.txt")" = 2 ]
