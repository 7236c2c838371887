"""The stages of check.sh: python stages.py WORK [STAGE...]. Each writes STAGE.json to $OUT, whatever happens."""

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


def engine(capability, cpu):
    """The small model's engines for one compute capability: do they load, and are components and pictures the CPU's?"""
    found = {}
    args = ["kiln", "compile", "models/shapes", "--target", "tensorrt-rtx", "--json"]
    found["compile"] = run(*args, "--compute-capability", capability)
    bundle = bundle_of(found["compile"])
    if bundle is None:
        return found
    found["components"] = run("kiln", "verify", bundle, "--against", cpu, "--max-drift", "0.02", "--json")
    found["pictures"] = []
    for seed, prompt in enumerate(PROMPTS):
        gpu, host = OUT / f"small-{capability}-{seed}.png", OUT / f"small-cpu-{seed}.png"
        drawn = run("kiln", "generate", prompt, "--model", bundle, "--seed", seed, "--out", gpu, "--json")
        if not host.exists():
            run("kiln", "generate", prompt, "--model", cpu, "--seed", seed, "--out", host)
        compared = run("kiln", "compare", gpu, host, "--min-psnr", "30", "--json")
        found["pictures"].append({"drawn": drawn, "compared": compared})
    found["swaps"] = run("swaps", bundle, 10)
    found["measure"] = run("kiln", "measure", bundle, "--json")
    shutil.rmtree(OUT / f"memory-{capability}", ignore_errors=True)
    found["memory"] = run("kiln", "bench", "memory", bundle, "--out", OUT / f"memory-{capability}", "--json")
    return found


def small():
    capability = run("kiln", "devices", "--json")["answer"]["devices"][1]["compute_capability"]
    cpu = bundle_of(run("kiln", "compile", "models/shapes", "--no-figures", "--json"))
    return {"own": capability, "engines": {name: engine(name, cpu) for name in dict.fromkeys([capability, "8.0"])}}


def checkpoint():
    folder = WORK / "sd15"
    if not (folder / "model_index.json").exists():
        made = run("kiln", "synth", "sd15", "--out", folder)
        assert made["code"] == 0, made
    return folder


def full():
    """Stable Diffusion 1.5 with random weights: the ladder, the memory table, and the picture of the processor."""
    model, found = checkpoint(), {}
    shutil.rmtree(OUT / "ladder", ignore_errors=True)
    args = ["kiln", "bench", "ladder", model, "--steps", "50", "--rounds", "3", "--device", "cuda:0"]
    found["ladder"] = run(*args, "--out", OUT / "ladder", "--json")
    prompt = "a photograph of an astronaut riding a horse"
    drawn = ["kiln", "generate", prompt, "--model", model, "--seed", "0", "--steps", "20", "--json"]
    found["gpu"] = run(*drawn, "--device", "cuda:0", "--out", OUT / "full-gpu.png")
    found["cpu"] = run(*drawn, "--device", "cpu", "--out", OUT / "full-cpu.png")
    found["compared"] = run("kiln", "compare", OUT / "full-gpu.png", OUT / "full-cpu.png", "--json")
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


STAGES = {"probe": probe, "small": small, "full": full, "torch": torch}

for name in sys.argv[2:] or STAGES:
    try:
        found = STAGES[name]()
    except Exception:
        found = {"failed": traceback.format_exc()}
    (OUT / f"{name}.json").write_text(json.dumps(found, indent=1))
    print(f"{name}: done", flush=True)
