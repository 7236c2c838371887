"""Runs what `kiln trace --for` writes in the tools that it is for, and compares with ONNX Runtime.

    pip install numpy==2.4.6 onnx==1.23.2 onnxruntime==1.32.0 openvino==2026.4.1 tract==0.23.9 MNN==3.6.1 \\
        pnnx==20261020 ncnn==1.0.20261020 "iree-base-compiler[onnx]==3.13.0" iree-base-runtime==3.13.0 sympy==1.14.0
    python tests/check_consumers.py target/debug/kiln models/shapes [TOOL...]

Prints a row for each tool and model: the largest difference of its output. Exits with 1 where one is over its bound.
"""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import onnx
import onnxruntime

PARTS = ["text_encoder", "unet", "vae_encoder", "vae_decoder"]
SIZE = 64


def trace(kiln, checkpoint, out, *options):
    command = [kiln, "trace", checkpoint, "--out", out, *options]
    subprocess.run(list(map(str, command)), check=True, capture_output=True)
    return out


def inputs(path, rows):
    """Numbers for a model's inputs; its symbols become rows, or sides of latents."""
    draw, made = np.random.default_rng(7), {}
    for port in onnx.load(path, load_external_data=False).graph.input:
        kind = port.type.tensor_type
        sides = [d.dim_value or (rows if d.dim_param == "batch" else side(d.dim_param)) for d in kind.shape.dim]
        if kind.elem_type == 7:
            made[port.name] = draw.integers(0, 200, sides)
        elif port.name == "timestep":
            made[port.name] = np.full(sides, 300, np.float32)
        else:
            made[port.name] = draw.standard_normal(sides).astype(np.float32)
    return made


def side(symbol):
    return 77 if symbol in ("tokens", "sequence") else SIZE // 8 if "8" not in symbol else SIZE


def of_onnxruntime(path, values):
    return onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"]).run(None, values)[0]


def ort_web(path, values):
    """ONNX Runtime with the bytes of one file, which is all that browsers give it."""
    return onnxruntime.InferenceSession(path.read_bytes(), providers=["CPUExecutionProvider"]).run(None, values)[0]


def openvino(path, values):
    import openvino as ov

    core = ov.Core()
    model = core.compile_model(str(path), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    return model(values)[0]


def reference(path, values):
    from onnx.reference import ReferenceEvaluator

    return ReferenceEvaluator(str(path)).run(None, values)[0]


def tract(path, values):
    import tract as tool

    model = tool.onnx().load(str(path)).into_model().into_runnable()
    return model.run(list(values.values()))[0].to_numpy()


def mnn(path, values):
    import MNN

    out = path.with_suffix(".mnn")
    script = "from MNN.tools import mnnconvert; mnnconvert.main()"
    command = [sys.executable, "-c", script, "-f", "ONNX", "--modelFile", path, "--MNNModel", out, "--bizCode", "kiln"]
    said = subprocess.run(list(map(str, command)), capture_output=True, text=True)
    if not out.exists():
        raise RuntimeError((said.stdout + said.stderr).strip().splitlines()[-1])
    names = [port.name for port in onnx.load(path, load_external_data=False).graph.output]
    net = MNN.nn.load_module_from_file(str(out), list(values), names)
    kinds = {np.dtype(np.int64): np.int32}
    given = [MNN.expr.const(v.astype(kinds.get(v.dtype, v.dtype)), list(v.shape), MNN.expr.NCHW,
                            MNN.expr.int if v.dtype == np.int64 else MNN.expr.float) for v in values.values()]
    result = net.onForward(given)
    result = result[0] if isinstance(result, (list, tuple)) else result
    return MNN.expr.convert(result, MNN.expr.NCHW).read()


def pnnx(path, values):
    import ncnn

    kinds = {np.dtype(np.int64): "i64", np.dtype(np.float32): "f32"}
    shapes = ",".join(f"{list(v.shape)}{kinds[v.dtype]}".replace(" ", "") for v in values.values())
    folder = path.parent / f"{path.stem}-ncnn"
    folder.mkdir()
    tool = Path(sys.executable).with_name("pnnx")
    command = [tool, path, f"inputshape={shapes}", "fp16=0"]
    command += [f"ncnnparam={folder / 'm.param'}", f"ncnnbin={folder / 'm.bin'}"]
    subprocess.run(list(map(str, command)), capture_output=True, text=True, cwd=folder)
    net = ncnn.Net()
    net.opt.use_fp16_packed = net.opt.use_fp16_storage = net.opt.use_fp16_arithmetic = net.opt.use_bf16_storage = False
    if net.load_param(str(folder / "m.param")) or net.load_model(str(folder / "m.bin")):
        raise RuntimeError("ncnn does not load it")
    run = net.create_extractor()
    for name, value in zip(net.input_names(), values.values()):
        value = value.astype(np.int32) if value.dtype == np.int64 else value
        run.input(name, ncnn.Mat(np.ascontiguousarray(value if value.ndim == 1 else value[0])).clone())
    code, out = run.extract(net.output_names()[0])
    if code:
        raise RuntimeError(f"ncnn extracts nothing: {code}")
    return np.array(out)[None]


def iree(path, values):
    import iree.runtime as rt

    folder = path.parent
    mlir, module = folder / f"{path.stem}.mlir", folder / f"{path.stem}.vmfb"
    tools = Path(sys.executable).parent
    command = [tools / "iree-import-onnx", path, "-o", mlir, "--opset-version", "18"]
    subprocess.run(command, check=True, capture_output=True)
    command = [tools / "iree-compile", mlir, "--iree-hal-target-device=local", "-o", module]
    command += ["--iree-hal-local-target-device-backends=llvm-cpu", "--iree-llvmcpu-target-cpu=host"]
    subprocess.run(command, check=True, capture_output=True)
    command = [tools / "iree-run-module", f"--module={module}", "--device=local-task"]
    for i, value in enumerate(values.values()):
        np.save(folder / f"in{i}.npy", value)
        command.append(f"--input=@{folder / f'in{i}.npy'}")
    parameters = path.parent / f"{path.stem}_params.irpa"
    if parameters.exists():
        command.append(f"--parameters=model={parameters}")
    command.append(f"--output=@{folder / 'out.npy'}")
    outputs = len(onnx.load(path, load_external_data=False).graph.output)
    command += [f"--output=@{folder / f'more{i}.npy'}" for i in range(outputs - 1)]
    subprocess.run(command, check=True, capture_output=True)
    return np.load(folder / "out.npy")


def quantize_dynamic(path, values):
    from onnxruntime.quantization import quantize_dynamic as quantize

    out = path.with_suffix(".int8.onnx")
    quantize(path, out)
    onnx.checker.check_model(out)
    return of_onnxruntime(out, values)


def quantize_static(path, values):
    from onnxruntime.quantization import CalibrationDataReader, quant_pre_process, quantize_static as quantize

    class Reader(CalibrationDataReader):
        left = 1

        def get_next(self):
            self.left -= 1
            return values if self.left == 0 else None

    prepared, out = path.with_suffix(".prepared.onnx"), path.with_suffix(".qdq.onnx")
    quant_pre_process(path, prepared, auto_merge=True)
    quantize(prepared, out, Reader())
    return of_onnxruntime(out, values)


# What runs a model, the value of --for, rows of its inputs, and how far it may be off: the largest difference, or for
# quantizers its root mean square beside that of the output.
TOOLS = {
    "openvino": (openvino, "openvino", 2, 1e-4),
    "onnx.reference": (reference, "openvino", 2, 1e-4),
    "tract": (tract, "tract", 2, 1e-4),
    "iree": (iree, "iree", 2, 1e-4),
    "mnn": (mnn, "mnn", 2, 1e-3),
    "pnnx": (pnnx, "pnnx", 1, 1e-4),
    "ort-web": (ort_web, "ort-web", 2, 1e-5),
    "quantize_dynamic": (quantize_dynamic, "quantization", 2, 0.1),
    "quantize_static": (quantize_static, "quantization", 2, 0.2),
}


def check(name, kiln, checkpoint, folder):
    """Whether a tool computes what ONNX Runtime does from the fused form with weights beside."""
    run, form, rows, bound = TOOLS[name]
    written = trace(kiln, checkpoint, folder / "for", "--for", form)
    sizes = ["--height", SIZE, "--width", SIZE] if form in ("tract", "iree") else []
    plain = trace(kiln, checkpoint, folder / "plain", *sizes)
    holds = True
    for part in PARTS:
        path = written / f"{part}.onnx"
        values = inputs(path, rows)
        expected = of_onnxruntime(plain / path.name, values)
        try:
            found = np.asarray(run(path, values), np.float32).reshape(expected.shape)
            apart = np.abs(found - expected).max()
            if name.startswith("quantize"):
                apart = np.sqrt(np.mean((found - expected) ** 2) / np.mean(expected**2))
            is_close = bool(apart <= bound)
            said = f"{apart:.1e}"
        except Exception as e:  # noqa: BLE001: a tool may fail in any way.
            last = str(e).strip().splitlines()[-1:] or [""]
            is_close, said = False, f"{type(e).__name__}: {last[0][:120]}"
        holds &= is_close
        print(f"| {name} | {part} | {said} | {'ok' if is_close else 'FAILS'} |", flush=True)
    return holds


def main():
    kiln, checkpoint, *names = sys.argv[1:]
    kiln = os.path.abspath(kiln)
    results = []
    for name in names or TOOLS:
        with tempfile.TemporaryDirectory() as folder:
            results.append(check(name, kiln, checkpoint, Path(folder)))
    sys.exit(not all(results))


if __name__ == "__main__":
    main()
