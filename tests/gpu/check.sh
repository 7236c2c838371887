#!/usr/bin/env bash
# Proves on a GPU what was built without one: see README.md beside this. Needs tests/gpu/inputs (tests/gpu/prepare.sh).
#
#     tests/gpu/check.sh [STAGE...]     stages: probe small full picture memory torch; all of them without any
#
# Results are JSON, pictures and RESULTS.md in $OUT (default tests/gpu/results), of this run and those before it; a stage that
# fails does not keep the others from running. LIMIT=560 ends it after so many seconds, with what was found until then.
set -uo pipefail
cd "$(dirname "$0")/../.."
results=${OUT:-tests/gpu/results}
work=$PWD/tests/gpu/work
export OUT=$work/results
mkdir -p "$results" "$OUT"
python3 tests/gpu/pack.py --unpack tests/gpu/inputs "$work/tree" || exit 1
export PATH=$work/tree:$PATH
export KILN_CACHE_DIR=$work/cache KILN_ENGINE_CACHE=$work/engines
KILN_ONNXRUNTIME=$(ls "$work"/tree/lib/libonnxruntime.so.*) && export KILN_ONNXRUNTIME KILN_ONNXRUNTIME_CUDA=$KILN_ONNXRUNTIME
KILN_TENSORRT_RTX=$(ls "$work"/tree/lib/libtensorrt_rtx.so.*) && export KILN_TENSORRT_RTX
cuda=$(python3 -c 'import nvidia, pathlib; print(*(lib for root in nvidia.__path__ for lib in pathlib.Path(root).glob("*/lib")), sep=":")')
export LD_LIBRARY_PATH=$cuda${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}
python3 tests/gpu/stages.py "$work" "$@"
python3 tests/gpu/results.py "$OUT"
cp "$OUT"/* "$results/"
