"""Holds traced models against the onnx checker and stock ONNX Runtime.

    pip install onnx onnxruntime
    kiln trace CHECKPOINT --out DIR && python tests/check_onnx.py DIR
"""

import sys
from pathlib import Path

import onnx
import onnxruntime

for path in sorted(Path(sys.argv[1]).glob("*.onnx")):
    onnx.checker.check_model(path, full_check=True)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    ports = [[f"{p.name}{p.shape}" for p in group] for group in (session.get_inputs(), session.get_outputs())]
    print(f"{path.name}: {', '.join(ports[0])} -> {', '.join(ports[1])}")
