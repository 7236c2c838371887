"""Times kiln's kernels beside ONNX Runtime's own operators, in alternating rounds on the same shapes.

    pip install numpy==2.4.6 onnx==1.23.2 onnxruntime==1.32.0
    cargo build --release -p kiln-kernels --example bench
    python crates/kiln-kernels/benches/compare.py target/release/examples/bench [--isa ISA] [--filter TEXT]

ONNX Runtime has its default session options but for the number of threads. Both run the same operator in each round,
with a pause before, so that no idle thread of the other still spins. The table has the least and the median of the
rounds, in milliseconds, and the ratio of kiln's fastest f32 algorithm to ONNX Runtime.
"""

import argparse
import pathlib
import re
import statistics
import subprocess
import time

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper

VERSIONS = {np: "2.4.6", onnx: "1.23.2", onnxruntime: "1.32.0"}


def model(operator, shapes, weights, **attributes):
    """A model of one operator with weights and bias."""
    tensor = lambda name, shape: helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)
    node = helper.make_node(operator, ["x", "w", "b"], ["y"], **attributes)
    initializers = [onnx.numpy_helper.from_array(array, name) for name, array in zip("wb", weights)]
    graph = helper.make_graph([node], "g", [tensor("x", shapes[0])], [tensor("y", shapes[1])], initializers)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10).SerializeToString()


def attention(queries, keys, heads):
    """A model of ONNX Runtime's own operator for attention."""
    names, shapes = "qkv", [queries, keys, keys]
    inputs = [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in zip(names, shapes)]
    output = helper.make_tensor_value_info("y", TensorProto.FLOAT, queries)
    node = helper.make_node("MultiHeadAttention", list(names), ["y"], domain="com.microsoft", num_heads=heads)
    opsets = [helper.make_opsetid("", 20), helper.make_opsetid("com.microsoft", 1)]
    graph = helper.make_graph([node], "g", inputs, [output])
    return helper.make_model(graph, opset_imports=opsets, ir_version=10).SerializeToString()


def session(line, threads):
    """A session of the operator and its inputs."""
    kind, *sizes = line.split()
    sizes = [int(size) for size in sizes]
    random = np.random.default_rng(0)
    numbers = lambda *shape: random.standard_normal(shape, np.float32)
    if kind == "conv":
        batch, inputs, height, width, outputs, kernel, stride = sizes
        x = numbers(batch, inputs, height, width)
        weights = numbers(outputs, inputs, kernel, kernel) * np.float32(0.02), numbers(outputs)
        attributes = dict(kernel_shape=[kernel] * 2, strides=[stride] * 2, pads=[kernel // 2] * 4)
        y = [batch, outputs, -(-height // stride), -(-width // stride)]
        built, feed = model("Conv", (x.shape, y), weights, **attributes), {"x": x}
    elif kind == "attention":
        batch, queries, keys, heads, size = sizes
        feed = {name: numbers(batch, n, heads * size) for name, n in zip("qkv", [queries, keys, keys])}
        built = attention(feed["q"].shape, feed["k"].shape, heads)
    else:
        rows, inputs, outputs = sizes
        x = numbers(rows, inputs)
        weights = numbers(outputs, inputs) * np.float32(0.02), numbers(outputs)
        built, feed = model("Gemm", (x.shape, [rows, outputs]), weights, transB=1), {"x": x}
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    return onnxruntime.InferenceSession(built, options, providers=["CPUExecutionProvider"]), feed


class Kiln:
    """The example `bench`, which times what it is asked for."""

    def __init__(self, program, isa, threads):
        command = [program, isa, str(threads), "serve"]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def times(self, runs, line):
        print(runs, line, file=self.process.stdin, flush=True)
        return [float(seconds) for seconds in self.process.stdout.readline().split()]


def of_onnxruntime(opened, feed, runs):
    def once():
        start = time.perf_counter()
        opened.run(None, feed)
        return time.perf_counter() - start

    return [once() for _ in range(runs)]


def compare(line, kiln, arguments):
    """Times by contender, in milliseconds."""
    opened, feed = session(line, arguments.threads)
    kind, _, sizes = line.partition(" ")
    winograd = sizes.endswith(" 3 1")
    names = ["f4", "f2", "gemm", "f4-bf16", "f2-bf16", "gemm-bf16"] if winograd else ["gemm", "gemm-bf16"]
    names = [name for name in names if name in arguments.algorithms.split(",")]
    contenders = {"ort": lambda runs: of_onnxruntime(opened, feed, runs)}
    for name in names:
        contenders[name] = lambda runs, name=name: kiln.times(runs, f"{kind} {name} {sizes}")
    seconds = {name: [] for name in contenders}
    for round in range(arguments.rounds + 1):
        for name, times in contenders.items():
            time.sleep(0.05)
            # The first run of each has cold caches, and is not counted.
            found = times(1 + arguments.runs)[1:]
            if round > 0:
                seconds[name] += found
    return {name: [1e3 * second for second in found] for name, found in seconds.items()}


def gflop(line):
    kind, *sizes = line.split()
    sizes = [int(size) for size in sizes]
    if kind == "linear":
        return 2e-9 * sizes[0] * sizes[1] * sizes[2]
    if kind == "attention":
        batch, queries, keys, heads, size = sizes
        return 4e-9 * batch * queries * keys * heads * size
    batch, inputs, height, width, outputs, kernel, stride = sizes
    return 2e-9 * batch * inputs * outputs * kernel**2 * -(-height // stride) * -(-width // stride)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("program")
    parser.add_argument("--isa", default="best")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--runs", type=int, default=2)
    parser.add_argument("--filter", default="")
    parser.add_argument("--algorithms", default="f4,f2,gemm,gemm-bf16")
    arguments = parser.parse_args()
    for module, version in VERSIONS.items():
        assert module.__version__ == version, f"{module.__name__} {module.__version__}, not {version}"
    shapes = re.search(r'"\\\n(.*)";', pathlib.Path(__file__).with_name("shapes.rs").read_text(), re.DOTALL)[1]
    kiln = Kiln(arguments.program, arguments.isa, arguments.threads)
    print("| operator | ONNX Runtime | GFLOP/s | kiln, least (median) | GFLOP/s | ratio |\n|---|---|---|---|---|---|")
    for line in shapes.splitlines():
        if arguments.filter in line:
            found = compare(line, kiln, arguments)
            cell = lambda name: f"{min(found[name]):.2f} ({statistics.median(found[name]):.2f})"
            others = [name for name in found if name != "ort"]
            best = min((name for name in others if "bf16" not in name), key=lambda name: min(found[name]))
            ort, least = min(found["ort"]), min(found[best])
            cells = ", ".join(f"{name} {cell(name)}" for name in others)
            rates = f"{gflop(line) / ort * 1e3:.0f}", f"{gflop(line) / least * 1e3:.0f}"
            print(f"| {line} | {cell('ort')} | {rates[0]} | {cells} | {rates[1]} | {least / ort:.2f} |", flush=True)


main()
