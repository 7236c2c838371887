"""The stages of check.sh: python stages.py WORK [STAGE...].

Each keeps what it found in results.json in $OUT from command to command, so that a stage that is cut short leaves what it had.
"""

import json
import os
import pathlib
import shutil
import subprocess
import sys
import time
import traceback

OUT = pathlib.Path(os.environ["OUT"])
WORK = pathlib.Path(sys.argv[1])
DEADLINE = time.time() + float(os.environ.get("LIMIT", "inf"))
PROMPTS = ["a red circle above a blue square on a white background", "a small green star", "two yellow triangles"]


class Found(dict):
    """What a stage found so far; what is added to it, or to what is in it, is in results.json at once."""

    def __init__(self, save):
        super().__init__()
        self.save = save

    def __setitem__(self, name, value):
        super().__setitem__(name, value)
        self.save()

    def within(self, name):
        self[name] = Found(self.save)
        return self[name]


def stage(name, work):
    path = OUT / "results.json"
    results = json.loads(path.read_text()) if path.exists() else {}

    def save():
        whole = path.with_suffix(".partial")
        whole.write_text(json.dumps(results, indent=1))
        whole.replace(path)

    found = results[name] = Found(save)
    try:
        work(found)
    except Exception:
        found["failed"] = traceback.format_exc()
    print(f"{name}: done", flush=True)


def run(*command, timeout=540):
    """What a command said and how it ended."""
    start = time.time()
    timeout = max(min(timeout, DEADLINE - start), 0.01)
    try:
        done = subprocess.run([str(part) for part in command], capture_output=True, text=True, timeout=timeout)
        code, out, said = done.returncode, done.stdout, done.stderr
    except subprocess.TimeoutExpired as error:
        out, said = ((text or b"").decode(errors="replace") for text in (error.stdout, error.stderr))
        code, said = 124, f"over {timeout:.0f} s: {said}"
    except OSError as error:
        code, out, said = 127, "", str(error)
    return {
        "command": " ".join(map(str, command)),
        "code": code,
        "seconds": round(time.time() - start, 2),
        "answer": answer_in(out.strip()),
        "said": said.strip()[-2000:],
    }


def answer_in(out):
    """The JSON that a command wrote, or its last line if that is JSON, or else all of it."""
    for text in (out, out[out.rfind("\n") + 1 :]):
        try:
            return json.loads(text)
        except ValueError:
            pass
    return out


def bundle_of(compiled):
    return compiled["answer"]["bundles"][0]["bundle"] if compiled["code"] == 0 else None


def probe(found):
    query = "name,driver_version,memory.total,compute_cap,clocks.max.sm,pcie.link.gen.max,pcie.link.width.max"
    found["nvidia_smi"] = run("nvidia-smi", f"--query-gpu={query}", "--format=csv")
    found["devices"] = run("kiln", "devices", "--check", "--json")
    found["cores"] = os.cpu_count()


def engines(found, name, cpu, *options):
    """The small model for one library: does it load, and are components and pictures the CPU's?"""
    found["compile"] = run("kiln", "compile", "models/shapes", "--json", *options)
    bundle = bundle_of(found["compile"])
    if bundle is None:
        return
    found["components"] = run("kiln", "verify", bundle, "--against", cpu, "--max-drift", "0.02", "--json")
    pictures = []
    for seed, prompt in enumerate(PROMPTS):
        gpu, host = OUT / f"small-{name}-{seed}.png", WORK / f"small-cpu-{seed}.png"
        gpu.unlink(missing_ok=True)
        drawn = run("kiln", "generate", prompt, "--model", bundle, "--seed", seed, "--out", gpu, "--json")
        if not host.exists():
            run("kiln", "generate", prompt, "--model", cpu, "--seed", seed, "--out", host)
        compared = run("kiln", "compare", gpu, host, "--min-psnr", "30", "--json")
        pictures.append({"drawn": drawn, "compared": compared})
        found["pictures"] = pictures
        if seed:
            gpu.unlink(missing_ok=True)
    found["swaps"] = run("swaps", bundle, 10)
    found["measure"] = run("kiln", "measure", bundle, "--json")
    found["memory"] = memory_of(bundle, f"small-{name}")


def memory_of(bundle, name, *more):
    return run("kiln", "bench", "memory", bundle, "--out", fresh(WORK / f"memory-{name}"), "--json", *more)


def fresh(folder):
    shutil.rmtree(folder, ignore_errors=True)
    return folder


def small(found):
    capability = run("kiln", "devices", "--json")["answer"]["devices"][1]["compute_capability"]
    cpu = bundle_of(run("kiln", "compile", "models/shapes", "--no-figures", "--json"))
    found["own"] = capability
    of = found.within("engines")
    for built_for in dict.fromkeys([capability, "8.0"]):
        options = ["--target", "tensorrt-rtx", "--compute-capability", built_for]
        engines(of.within(f"tensorrt-rtx-{built_for}"), f"rtx-{built_for}", cpu, *options)
    engines(of.within("cuda"), "cuda", cpu, "--target", "cuda")


def checkpoint():
    folder = WORK / "sd15"
    if not (folder / "model_index.json").exists():
        made = run("kiln", "synth", "sd15", "--out", folder)
        assert made["code"] == 0, made
    return folder


def on_gpu(*command):
    """With TensorRT-RTX, or where that does not run, with ONNX Runtime alone."""
    command = [*command, "--device", "cuda:0"]
    found = run(*command)
    if found["code"] != 0:
        found = {**run(*command, "--backend", "onnxruntime"), "instead_of": found}
    return found


def full(found):
    """Stable Diffusion 1.5 with random weights: the ladder."""
    args = ["kiln", "bench", "ladder", checkpoint(), "--steps", "50", "--speed-only"]
    found["ladder"] = on_gpu(*args, "--out", fresh(WORK / "ladder"), "--json")


def picture(found):
    """Its picture beside the processor's."""
    model = checkpoint()
    prompt = "a photograph of an astronaut riding a horse"
    drawn = ["kiln", "generate", prompt, "--model", model, "--seed", "0", "--steps", "20", "--json"]
    for old in (OUT / "full-gpu.png", WORK / "full-cpu.png"):
        old.unlink(missing_ok=True)
    found["gpu"] = on_gpu(*drawn, "--out", OUT / "full-gpu.png")
    found["cpu"] = run(*drawn, "--device", "cpu", "--out", WORK / "full-cpu.png")
    found["compared"] = run("kiln", "compare", OUT / "full-gpu.png", WORK / "full-cpu.png", "--json")


def memory(found):
    """What Stable Diffusion 1.5 takes: engines in segments, which can be swapped one by one, and ONNX Runtime."""
    model = checkpoint()
    capability = run("kiln", "devices", "--json")["answer"]["devices"][1]["compute_capability"]
    options = ["--target", "tensorrt-rtx", "--compute-capability", capability, "--segment-size", "128MiB"]
    found["compile"] = run("kiln", "compile", model, *options, "--no-figures", "--json")
    cuda = ["--target", "cuda", "--segment-size", "128MiB"]
    found["compile cuda"] = run("kiln", "compile", model, *cuda, "--no-figures", "--json")
    for name in ["compile", "compile cuda"]:
        bundle = bundle_of(found[name])
        if bundle is not None:
            found[name.replace("compile", "memory")] = memory_of(bundle, "full", "--steps", "4", "--rounds", "1")


def torch(found):
    """PyTorch with the same weights and latents."""
    target = WORK / "site"
    if not target.exists():
        wheels = sorted((WORK / "tree" / "wheels").glob("*.whl"))
        install = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--target", target]
        installed = run(*install, *wheels)
        assert installed["code"] == 0, installed
    environment = f"PYTHONPATH={target}"
    found["torch"] = run("env", environment, sys.executable, "tests/gpu/torch_baseline.py", checkpoint())


STAGES = {"probe": probe, "small": small, "full": full, "picture": picture, "memory": memory, "torch": torch}

for name in sys.argv[2:] or STAGES:
    stage(name, STAGES[name])
