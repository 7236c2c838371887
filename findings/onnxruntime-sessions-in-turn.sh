#!/usr/bin/env bash
# A model cut into two ONNX Runtime sessions that run in turn is slower than the same model in one session, by default: each
# session has a pool of threads, and those of the one that has just run spin on the cores that the other needs. With
# `session.intra_op.allow_spinning` = 0, the two sessions take about the time of one.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet onnxruntime==1.32.0 onnx==1.23.2 numpy
ORT_DISABLE_TELEMETRY=1 "$work/venv/bin/python" - <<'PYTHON'
import statistics
import time

import numpy as np
import onnx
import onnxruntime as ort
from onnx import TensorProto, helper

CHANNELS, SIDE, LAYERS, ROUNDS = 64, 24, 12, 60


def model(layers):
    """Convolutions, each with its activation."""
    weights = np.random.default_rng(0).normal(0, 0.04, (CHANNELS, CHANNELS, 3, 3)).astype(np.float32)
    nodes, name = [], "x"
    for i in range(layers):
        nodes.append(helper.make_node("Conv", [name, "w"], [f"c{i}"], pads=[1, 1, 1, 1]))
        nodes.append(helper.make_node("Relu", [f"c{i}"], [f"r{i}"]))
        name = f"r{i}"
    nodes.append(helper.make_node("Identity", [name], ["y"]))
    port = lambda name: helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, CHANNELS, SIDE, SIDE])
    graph = helper.make_graph(nodes, "g", [port("x")], [port("y")], [onnx.numpy_helper.from_array(weights, "w")])
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    return made.SerializeToString()


def sessions(parts, spins):
    options = ort.SessionOptions()
    options.intra_op_num_threads = 2
    options.add_session_config_entry("session.intra_op.allow_spinning", "1" if spins else "0")
    made = [model(LAYERS // parts)] * parts
    return [ort.InferenceSession(m, options, providers=["CPUExecutionProvider"]) for m in made]


def seconds(chain, x):
    begun = time.perf_counter()
    for session in chain:
        (x,) = session.run(None, {"x": x})
    return time.perf_counter() - begun


x = np.random.default_rng(1).normal(size=(1, CHANNELS, SIDE, SIDE)).astype(np.float32)
ways = {"one session": (1, True), "two in turn": (2, True), "two that do not spin": (2, False)}
# Each way by itself, and several times: idle pools of the others would sleep, but they share the machine.
medians = {name: [] for name in ways}
for _ in range(5):
    for name, way in ways.items():
        chain = sessions(*way)
        times = [seconds(chain, x) for _ in range(ROUNDS)]
        medians[name].append(statistics.median(times[10:]) * 1e3)
        del chain
found = {name: min(times) for name, times in medians.items()}
print("onnxruntime", ort.__version__)
for name, milliseconds in found.items():
    print(f"{name:21} {milliseconds:6.2f} ms")
ratio = found["two in turn"] / found["two that do not spin"]
print(f"two that spin take {ratio:.2f} of the time of two that do not")
raise SystemExit(0 if ratio > 1.15 else 1)
PYTHON
