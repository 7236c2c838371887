#!/usr/bin/env bash
# With the arena off and the memory pattern on, which it is by default, ONNX Runtime takes more memory from the second run of a
# size on: the first run allocates tensors one by one and frees each after its last reader; later ones take one block
# that was planned from the first, and hold it until the run ends. Where tensors differ much in size, its layout has
# gaps. Turning the pattern off (`enable_mem_pattern`) keeps every run at the peak of the first.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet onnxruntime==1.32.0 onnx==1.23.2 numpy
ORT_DISABLE_TELEMETRY=1 "$work/venv/bin/python" - <<'PYTHON'
import numpy as np
import onnx
import onnxruntime as ort
from onnx import TensorProto, helper

SIDE, RUNS = 64, 4
# Channels of tensors that follow each other, as in an autoencoder that is enlarging: each is read by the next node alone.
CHANNELS = [64, 512, 64, 1024, 128, 2048, 64, 1536, 256, 512]


def model():
    nodes, weights, name = [], [], "x"
    for i, (before, after) in enumerate(zip(CHANNELS, CHANNELS[1:])):
        w = np.full((after, before, 1, 1), 1e-3, np.float32)
        weights.append(onnx.numpy_helper.from_array(w, f"w{i}"))
        nodes.append(helper.make_node("Conv", [name, f"w{i}"], [f"t{i}"]))
        name = f"t{i}"
    nodes.append(helper.make_node("ReduceMean", [name], ["y"], keepdims=0))
    port = lambda name, shape: helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)
    ports = [port("x", ["batch", CHANNELS[0], SIDE, SIDE])], [port("y", [])]
    made = helper.make_model(helper.make_graph(nodes, "g", *ports, weights),
                             opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    return made.SerializeToString()


def status(key):
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) * 1024 for line in file if line.startswith(key))


def peaks(pattern):
    """Bytes that each run takes at most, beside what the process held before it."""
    options = ort.SessionOptions()
    options.enable_cpu_mem_arena, options.enable_mem_pattern = False, pattern
    session = ort.InferenceSession(model(), options, providers=["CPUExecutionProvider"])
    x = np.ones((4, CHANNELS[0], SIDE, SIDE), np.float32)
    found = []
    for _ in range(RUNS):
        with open("/proc/self/clear_refs", "w") as file:
            file.write("5")  # the peak counts anew
        held = status("VmRSS")
        session.run(None, {"x": x})
        found.append(status("VmHWM") - held)
    return found


print(f"onnxruntime {ort.__version__}")
found = {pattern: peaks(pattern) for pattern in (False, True)}
for pattern, of in found.items():
    print(f"pattern {'on ' if pattern else 'off'}: " + ", ".join(f"{peak / 2**20:.0f} MiB" for peak in of))
steady = max(found[False]) / min(found[False])
growth = min(found[True][1:]) / found[True][0]
print(f"second run beside the first: {growth:.2f} x with the pattern; off, runs differ by {steady:.2f} x")
assert steady < 1.2 and growth > 1.2, "it behaves otherwise now"
PYTHON
