"""Holds traced models against the onnx checker, shape inference included.

    pip install onnx==1.23.2
    kiln trace CHECKPOINT --out DIR && python tests/check_onnx.py DIR
"""

import sys
from pathlib import Path

import onnx

paths = sorted(Path(sys.argv[1]).glob("*.onnx"))
if not paths:
    sys.exit(f"{sys.argv[1]}: holds no models")
for path in paths:
    onnx.checker.check_model(path, full_check=True)
    print(f"{path.name}: valid")
