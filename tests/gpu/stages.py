"""The stages of check.sh: python stages.py WORK [STAGE...]. Each adds to results.json in $OUT, whatever happens."""

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
PROMPTS = ["a red circle above a blue square on a white background", "a small green star", "two yellow triangles"]


def run(*command, timeout=540):
    """What a command said and how it ended."""
    start = time.time()
    try:
        done = subprocess.run([str(part) for part in command], capture_output=True, text=True, timeout=timeout)
        code, out, said = done.returncode, done.stdout, done.stderr
    except subprocess.TimeoutExpired as error:
        code, out, said = 124, "", f"over {timeout} s: {error.stderr or ''}"
    except OSError as error:
        code, out, said = 127, "", str(error)
    try:
        answer = json.loads(out)
    except ValueError:
        answer = out.strip()
    return {
        "command": " ".join(map(str, command)),
        "code": code,
        "seconds": round(time.time() - start, 2),
        "answer": answer,
        "said": said.strip()[-2000:],
    }


def bundle_of(compiled):
    return compiled["answer"]["bundles"][0]["bundle"] if compiled["code"] == 0 else None


def probe():
    query = "name,driver_version,memory.total,compute_cap,clocks.max.sm,pcie.link.gen.max,pcie.link.width.max"
    return {
        "nvidia_smi": run("nvidia-smi", f"--query-gpu={query}", "--format=csv"),
        "devices": run("kiln", "devices", "--check", "--json"),
        "cores": os.cpu_count(),
    }


def engines(name, cpu, *options):
    """The small model for one library: does it load, and are components and pictures the CPU's?"""
    found = {"compile": run("kiln", "compile", "models/shapes", "--json", *options)}
    bundle = bundle_of(found["compile"])
    if bundle is None:
        return found
    found["components"] = run("kiln", "verify", bundle, "--against", cpu, "--max-drift", "0.02", "--json")
    found["pictures"] = []
    for seed, prompt in enumerate(PROMPTS):
        gpu, host = OUT / f"small-{name}-{seed}.png", WORK / f"small-cpu-{seed}.png"
        drawn = run("kiln", "generate", prompt, "--model", bundle, "--seed", seed, "--out", gpu, "--json")
        if not host.exists():
            run("kiln", "generate", prompt, "--model", cpu, "--seed", seed, "--out", host)
        compared = run("kiln", "compare", gpu, host, "--min-psnr", "30", "--json")
        found["pictures"].append({"drawn": drawn, "compared": compared})
        if seed:
            gpu.unlink(missing_ok=True)
    found["swaps"] = run("swaps", bundle, 10)
    found["measure"] = run("kiln", "measure", bundle, "--json")
    found["memory"] = memory_of(bundle, f"small-{name}")
    return found


def memory_of(bundle, name, *more):
    return run("kiln", "bench", "memory", bundle, "--out", fresh(WORK / f"memory-{name}"), "--json", *more)


def fresh(folder):
    shutil.rmtree(folder, ignore_errors=True)
    return folder


def small():
    capability = run("kiln", "devices", "--json")["answer"]["devices"][1]["compute_capability"]
    cpu = bundle_of(run("kiln", "compile", "models/shapes", "--no-figures", "--json"))
    found = {}
    for built_for in dict.fromkeys([capability, "8.0"]):
        options = ["--target", "tensorrt-rtx", "--compute-capability", built_for]
        found[f"tensorrt-rtx-{built_for}"] = engines(f"rtx-{built_for}", cpu, *options)
    found["cuda"] = engines("cuda", cpu, "--target", "cuda")
    return {"own": capability, "engines": found}


def checkpoint():
    folder = WORK / "sd15"
    if not (folder / "model_index.json").exists():
        made = run("kiln", "synth", "sd15", "--out", folder)
        assert made["code"] == 0, made
    return folder


def full():
    """Stable Diffusion 1.5 with random weights: the ladder, and the picture beside the processor's."""
    model, found = checkpoint(), {}
    args = ["kiln", "bench", "ladder", model, "--steps", "50", "--rounds", "2", "--device", "cuda:0", "--speed-only"]
    found["ladder"] = run(*args, "--out", fresh(WORK / "ladder"), "--json")
    prompt = "a photograph of an astronaut riding a horse"
    drawn = ["kiln", "generate", prompt, "--model", model, "--seed", "0", "--steps", "20", "--json"]
    found["gpu"] = run(*drawn, "--device", "cuda:0", "--out", OUT / "full-gpu.png")
    found["cpu"] = run(*drawn, "--device", "cpu", "--out", WORK / "full-cpu.png", timeout=300)
    found["compared"] = run("kiln", "compare", OUT / "full-gpu.png", WORK / "full-cpu.png", "--json")
    return found


def memory():
    """What Stable Diffusion 1.5 takes: engines in segments, which can be swapped one by one, and ONNX Runtime."""
    model, found = checkpoint(), {}
    capability = run("kiln", "devices", "--json")["answer"]["devices"][1]["compute_capability"]
    options = ["--target", "tensorrt-rtx", "--compute-capability", capability, "--segment-size", "256MiB"]
    found["compile"] = run("kiln", "compile", model, *options, "--no-figures", "--json")
    found["compile cuda"] = run("kiln", "compile", model, "--target", "cuda", "--no-figures", "--json")
    for name in ["compile", "compile cuda"]:
        bundle = bundle_of(found[name])
        if bundle is not None:
            found[name.replace("compile", "memory")] = memory_of(bundle, "full", "--steps", "4", "--rounds", "1")
    return found


def torch():
    """PyTorch with the same weights and latents."""
    target = WORK / "site"
    if not target.exists():
        wheels = sorted((WORK / "tree" / "wheels").glob("*.whl"))
        install = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--target", target]
        installed = run(*install, *wheels)
        assert installed["code"] == 0, installed
    environment = f"PYTHONPATH={target}"
    return {"torch": run("env", environment, sys.executable, "tests/gpu/torch_baseline.py", checkpoint())}


STAGES = {"probe": probe, "small": small, "full": full, "memory": memory, "torch": torch}

for name in sys.argv[2:] or STAGES:
    try:
        found = STAGES[name]()
    except Exception:
        found = {"failed": traceback.format_exc()}
    path = OUT / "results.json"
    results = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps({**results, name: found}, indent=1))
    print(f"{name}: done", flush=True)
