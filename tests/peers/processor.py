#!/usr/bin/env python3
"""Compares kiln with other runtimes of the same weights on this processor, in alternating rounds.

    pip install -r tests/peers/requirements.txt
    target/release/kiln synth sd15 --out SD15
    python tests/peers/processor.py target/release/kiln SD15 --out DIR

Writes `processor.md`, `processor.json` and `processor.svg`. One process at a time: each loads, runs once unmeasured, and
then `--calls` times. docs: tests/peers/README.md.
"""
import argparse
import json
import math
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time

import numpy as np

from chart import svg

HERE = os.path.dirname(os.path.abspath(__file__))
F32, REDUCED = "f32", "reduced"
# The arithmetic of each runtime, and its kind: one is compared with others of its kind.
KILN = {"kiln-f32": F32, "kiln-bf16": REDUCED, "kiln-int8": REDUCED}
PEERS = {"openvino-f32": F32, "onnxruntime": F32, "torch-f32": F32, "kiln-rten": F32,
         "openvino": REDUCED, "torch-bf16": REDUCED}
OPTIONAL = {"onnxruntime-torch-export": F32}
# What keeps runtimes that can be told to AVX2.
AVX2 = {"ONEDNN_MAX_CPU_ISA": "AVX2", "ATEN_CPU_CAPABILITY": "avx2", "MKL_ENABLE_INSTRUCTIONS": "AVX2"}
WORKS = ["unet:512", "unet:256", "unet:768", "decode:512", "text:512", "start:256", "picture:512"]


def arguments():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("kiln")
    parser.add_argument("checkpoint", help="a Stable Diffusion 1.x checkpoint in the diffusers layout")
    parser.add_argument("--out", required=True, help="a folder for the results, and for models that are made for peers")
    parser.add_argument("--works", nargs="+", default=WORKS, help="WORK:SIDE, such as unet:512")
    parser.add_argument("--peers", nargs="+", default=list(PEERS), choices=[*PEERS, *OPTIONAL])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--calls", type=int, default=3, help="measured calls of a round")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--kernels", help="KILN_KERNELS for kiln; with avx2, PyTorch and oneDNN are kept to it, too")
    return parser.parse_args()


def run(command, environment):
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, **environment})
    if done.returncode != 0:
        raise RuntimeError((done.stderr.strip().splitlines() or ["it said nothing"])[-1][:200])
    return done.stdout


class Kiln:
    """kiln itself, in a precision: its command line draws a picture whose parts it times."""

    def __init__(self, name, comparison):
        options, self.name = comparison.options, name
        self.options, self.flags = options, ["--backend", "rten"] if name == "kiln-rten" else []
        self.environment = {"KILN_KERNELS": options.kernels} if options.kernels else {}
        self.folder = comparison.folder
        self.bundle = comparison.bundle(precision(name) if name in KILN else "f32")
        self.version = run([options.kiln, "--version"], {}).split()[-1]

    def measure(self, work, side):
        steps = {"picture": 10, "start": 1, "decode": 1}.get(work, self.options.calls)
        command = [self.options.kiln, "generate", "a cat", "--model", self.bundle, "--steps", str(steps), "--seed", "1",
                   "--width", side, "--height", side, "--json", "--threads", str(self.options.threads), *self.flags,
                   "--out", os.path.join(self.folder, f"{self.name}.png")]
        if work != "start":
            command += ["--warm-up", "1"]
        # The most that it had resident, without a program in between.
        begun = time.time()
        with tempfile.TemporaryFile("w+") as errors:
            child = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, text=True,
                                     env={**os.environ, **self.environment})
            said = child.stdout.read()
            _, status, usage = os.wait4(child.pid, 0)
            took = time.time() - begun
            errors.seek(0)
            complaint = errors.read()
        if status != 0:
            raise RuntimeError((complaint.strip().splitlines() or ["it said nothing"])[-1][:200])
        seconds = json.loads(said)["seconds"]
        value = {"unet": seconds["steps"] / steps, "decode": seconds["decode"], "start": took - seconds["decode"],
                 "picture": sum(seconds.values())}[work]
        return {"seconds": [value], "peak_bytes": usage.ru_maxrss * 1024, "version": self.version}


class Peer:
    """A runtime of `runtimes.py`."""

    def __init__(self, name, comparison):
        self.name, self.options, self.folder = name, comparison.options, comparison.folder
        self.models = comparison.models(name)

    def measure(self, work, side):
        command = [sys.executable, os.path.join(HERE, "runtimes.py"), self.name, work, side, str(self.options.calls),
                   self.models, self.output(work, side)]
        environment = {"OMP_NUM_THREADS": str(self.options.threads), "STARTED": str(time.time())}
        if self.options.kernels == "avx2":
            environment |= AVX2
        return json.loads(run(command, environment).splitlines()[-1])

    def output(self, work, side):
        return os.path.join(self.folder, f"{self.name}-{work}-{side}.npy")


class Comparison:
    def __init__(self, options):
        self.options, self.folder, self.absent = options, os.path.abspath(options.out), {}
        os.makedirs(self.folder, exist_ok=True)
        self.runners = []
        for name in [*KILN, *options.peers]:
            try:
                self.runners.append(Kiln(name, self) if name.startswith("kiln") else Peer(name, self))
            except RuntimeError as error:
                self.absent[name] = str(error)

    def bundle(self, precision):
        command = [self.options.kiln, "compile", self.options.checkpoint, "--precision", precision, "--no-reference",
                   "--no-figures", "--no-accuracy"]
        return run(command, {}).split()[-1]

    def models(self, name):
        """What a peer reads: the checkpoint, or ONNX that kiln or PyTorch wrote for it."""
        if name.startswith("torch"):
            return self.options.checkpoint
        folder = os.path.join(self.folder, "onnx-" + {"onnxruntime": "kiln", "onnxruntime-torch-export": "torch"}.get(
            name, "openvino"))
        if not os.path.isdir(folder):
            if name == "onnxruntime-torch-export":
                run([sys.executable, os.path.join(HERE, "export.py"), self.options.checkpoint, folder], {})
            else:
                form = ["--flavor", "onnxruntime"] if name == "onnxruntime" else ["--for", "openvino"]
                run([self.options.kiln, "trace", self.options.checkpoint, *form, "--out", folder], {})
        return folder

    def measure(self):
        """Every runtime's figures of each piece of work, by round."""
        found = {}
        for work in self.options.works:
            for i in range(self.options.rounds):
                for runner in self.runners[i % len(self.runners):] + self.runners[:i % len(self.runners)]:
                    kind, side = work.split(":")
                    if isinstance(runner, Kiln) and kind == "text" or (runner.name, work) in self.absent:
                        continue
                    print(f"{work}, round {i + 1}: {runner.name}", file=sys.stderr, flush=True)
                    try:
                        run = runner.measure(kind, side)
                    except RuntimeError as error:
                        self.absent[runner.name, work] = str(error)
                        continue
                    found.setdefault(work, {}).setdefault(runner.name, []).append(run)
        return found

    def errors(self):
        """How far outputs of the UNet and the decoder are from those in f32, in decibels."""
        errors = {}
        for name in ("openvino", "openvino-f32", "onnxruntime", "torch-bf16"):
            for work in ("unet-512", "decode-512"):
                paths = [os.path.join(self.folder, f"{of}-{work}.npy") for of in ("torch-f32", name)]
                if all(map(os.path.isfile, paths)):
                    errors.setdefault(name, {})[work.split("-")[0]] = decibels(*map(np.load, paths))
        bundles = {runner.name: runner.bundle for runner in self.runners if isinstance(runner, Kiln)}
        for name in sorted({"kiln-bf16", "kiln-int8"} & bundles.keys()) if "kiln-f32" in bundles else ():
            verify = [self.options.kiln, "verify", bundles[name], "--against", bundles["kiln-f32"], "--json",
                      "--max-drift", "1"]
            drifts = json.loads(run(verify, {}))["components"]
            errors[name] = {work: -20 * math.log10(max(drifts[network], 1e-15))
                            for work, network in (("unet", "unet"), ("decode", "vae_decoder"))}
        return errors


def precision(name):
    """Of a runtime of kiln's."""
    return name.removeprefix("kiln-")


def decibels(expected, found):
    """The signal to noise ratio: root mean squares of what is expected and of the difference."""
    noise = np.sqrt(np.mean((found.astype(np.float64) - expected) ** 2))
    return float(20 * np.log10(np.sqrt(np.mean(expected.astype(np.float64) ** 2)) / max(noise, 1e-15)))


def rows(found):
    """Median seconds, most memory, and the median over rounds of kiln's seconds over those of each peer of its kind."""
    kinds = {**KILN, **PEERS, **OPTIONAL}
    for work, runs in found.items():
        seconds = {name: [statistics.median(run["seconds"]) for run in of] for name, of in runs.items()}
        for name, of in seconds.items():
            rivals = [rival for rival in seconds if rival not in KILN and kinds[rival] == kinds[name]]
            ratios = {rival: statistics.median(a / b for a, b in zip(of, seconds[rival])) for rival in rivals}
            yield {"work": work, "runtime": name, "seconds": statistics.median(of), "rounds": of,
                   "peak_bytes": max(run["peak_bytes"] for run in runs[name]), "version": runs[name][0]["version"],
                   "ratios": ratios if name in KILN else {}}


def markdown(figures):
    yield f"{figures['machine']}, {figures['threads']} threads; {figures['date']}\n"
    for work in dict.fromkeys(row["work"] for row in figures["rows"]):
        yield f"**{work}**\n"
        yield "| runtime | median | rounds | peak memory | kiln beside it |"
        yield "|---|---|---|---|---|"
        of_work = [row for row in figures["rows"] if row["work"] == work]
        for row in sorted(of_work, key=lambda row: row["seconds"]):
            beside = [f"{precision(one['runtime'])} {one['ratios'][row['runtime']]:.2f} x" for one in of_work
                      if row["runtime"] in one["ratios"]]
            rounds = ", ".join(f"{seconds:.2f}" for seconds in row["rounds"])
            yield (f"| {row['runtime']} {row['version']} | {row['seconds']:.3f} s | {rounds} | "
                   f"{row['peak_bytes'] / 1e9:.2f} GB | {', '.join(beside)} |")
        yield ""
    yield "| output beside f32 | UNet | decoder |\n|---|---|---|"
    for name, of in figures["errors"].items():
        yield f"| {name} | " + " | ".join(f"{of[work]:.1f} dB" if work in of else "" for work in ("unet", "decode")) + " |"
    for name, why in figures["absent"].items():
        yield f"\n{name} is missing: {why}"


def machine():
    with open("/proc/cpuinfo") as file:
        lines = [line.split(":", 1) for line in file if ":" in line]
    about = {key.strip(): value.strip() for key, value in reversed(lines)}
    sets = [name for name in ("avx2", "avx512f", "avx512_bf16", "avx512_vnni", "amx_bf16") if name in about["flags"].split()]
    return f"{about['model name']} ({', '.join(sets)}), Linux {platform.release().split('-')[0]}"


def main():
    options = arguments()
    comparison = Comparison(options)
    found = comparison.measure()
    absent = {" ".join(key) if isinstance(key, tuple) else key: why for key, why in comparison.absent.items()}
    figures = {"machine": machine(), "threads": options.threads, "date": time.strftime("%Y-%m-%d"),
               "rows": list(rows(found)), "errors": comparison.errors(), "absent": absent}
    text = "\n".join(markdown(figures)) + "\n"
    for ending, content in (("md", text), ("json", json.dumps(figures, indent=1) + "\n"), ("svg", svg(figures))):
        with open(os.path.join(comparison.folder, f"processor.{ending}"), "w") as file:
            file.write(content)
    print(text)


if __name__ == "__main__":
    main()
