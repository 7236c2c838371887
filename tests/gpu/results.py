"""Writes what check.sh found as RESULTS.md beside it: python results.py FOLDER. Says what fell short."""

import datetime
import json
import pathlib
import sys

FOLDER = pathlib.Path(sys.argv[1])


def read(name):
    path = FOLDER / "results.json"
    return json.loads(path.read_text()).get(name, {}) if path.exists() else {}


def table(header, rows):
    lines = ["| " + " | ".join(header) + " |", "|" + "---|" * len(header)]
    return "\n".join(lines + ["| " + " | ".join(map(str, row)) + " |" for row in rows])


def state(found):
    """How a command ended, in a few words."""
    if not found:
        return "not run"
    if "instead_of" in found:
        rest = {key: value for key, value in found.items() if key != "instead_of"}
        return f"{state(found['instead_of'])}; with ONNX Runtime instead: {state(rest)}"
    if found["code"] == 0:
        return "ok"
    return f"exit {found['code']}: {(found['said'] or 'nothing said').splitlines()[0][:160]}"


def answer(found):
    return found["answer"] if found and isinstance(found["answer"], dict) else {}


def gigabytes(n):
    return f"{n / 1e9:.2f} GB"


def psnr(compared):
    found = compared and compared.get("answer")
    if not isinstance(found, dict):
        return None
    return found["psnr"] if found.get("psnr") is not None else float("inf")


class Bars:
    def __init__(self):
        self.rows = []

    def check(self, what, found, bar, is_met):
        verdict = "not measured" if found is None else "met" if is_met(found) else "MISSED"
        self.rows.append((what, "" if found is None else f"{found:.3g}", bar, verdict))


def probe():
    found = read("probe")
    yield "## The machine"
    smi = (found.get("nvidia_smi") or {}).get("answer") or "nvidia-smi said nothing"
    yield f"```\n{smi}\n```"
    devices = answer(found.get("devices")).get("devices", [])
    yield f"`kiln devices --check`: {state(found.get('devices'))}"
    for device in devices[1:]:
        check = device.get("check") or {}
        rates = [f"{key}: {value:.3g}" for key, value in check.items() if isinstance(value, float)]
        yield f"- {device['device']}: {', '.join(rates)}; {json.dumps(device.get('targets'))}"


def small(bars):
    found = read("small")
    yield "## The small model"
    for name, engine in found.get("engines", {}).items():
        own = name in (f"tensorrt-rtx-{found.get('own')}", "cuda")
        yield f"### {name}{' (the device as it is)' if own else ''}"
        names = ["compile", "components", "swaps", "measure", "memory"]
        yield table(["what", "how it ended", "seconds"], [
            (step, state(engine.get(step)), (engine.get(step) or {}).get("seconds", "")) for step in names
        ])
        components = (engine.get("components") or {}).get("answer")
        if isinstance(components, dict):
            yield table(["component", "drift from the CPU in fp32"], [
                (role, "not finite" if drift is None else f"{drift:.2e}")
                for role, drift in components["components"].items()
            ])
        rows = []
        for i, picture in enumerate(engine.get("pictures", [])):
            seconds = answer(picture["drawn"]).get("seconds", {})
            rows.append((i, state(picture["drawn"]), psnr(picture["compared"]), json.dumps(seconds)))
            if own:
                bars.check(f"{name}: small picture {i}, dB", psnr(picture["compared"]), "at least 40", lambda x: x >= 40)
        yield table(["picture", "drawn", "PSNR, dB", "seconds"], rows)
        swaps = (engine.get("swaps") or {}).get("answer")
        yield f"Free memory over ten swaps:\n\n```\n{swaps}\n```"
        memory_rows = answer(engine.get("memory")).get("rows", [])
        if memory_rows:
            yield memory(memory_rows)


def memory(rows):
    return table(["model", "offload", "VAE tile", "peak", "predicted", "a step", "picture, dB"], [
        (
            row["model"],
            row["offload"],
            row["vae_tile"] or "none",
            gigabytes(row["peak_bytes"]),
            gigabytes(row["predicted_bytes"]),
            f"{row['step_seconds'] * 1000:.2f} ms",
            "identical" if row["psnr"] is None else f"{row['psnr']:.1f}",
        )
        for row in rows
    ])


def full(bars):
    found, torch = read("full"), answer(read("torch").get("torch"))
    yield "## Stable Diffusion 1.5, random weights, 512 x 512, 50 DDIM steps"
    yield f"`kiln bench ladder`: {state(found.get('ladder'))}"
    ladder = answer(found.get("ladder"))
    rungs = ladder.get("rungs", [])
    yield table(["rung", "seconds", "steps a second", "speed-up", "picture, dB"], [
        (
            rung["rung"],
            f"{rung['seconds']:.3f}",
            f"{rung['steps_per_second']:.1f}",
            f"{rung['speed_up']:.2f} x",
            "identical" if rung["psnr"] is None else f"{rung['psnr']:.1f}",
        )
        for rung in rungs
    ])
    for row in ladder.get("left_out", []):
        yield f"Left out: {row['rung']}: {row['reason'][:300]}"
    ways = {name: way for name, way in torch.items() if isinstance(way, dict)}
    yield f"PyTorch {torch.get('torch', '')}, the same weights, UNet and VAE: {state(read('torch').get('torch'))}"
    yield table(["way", "seconds", "steps a second", "peak"], [
        (name, f"{way['seconds']:.3f}", f"{way['steps_per_second']:.1f}", gigabytes(way["peak_bytes"]))
        if "seconds" in way
        else (name, way["failed"][:120], "", "")
        for name, way in ways.items()
    ])
    steps = max((rung["steps_per_second"] for rung in rungs), default=None)
    bars.check("seconds for 50 steps", steps and 50 / steps, "at most 0.45", lambda x: x <= 0.45)
    best = max((way["steps_per_second"] for way in ways.values() if "seconds" in way), default=None)
    faster = steps / best if steps and best else None
    bars.check("times as fast as the best PyTorch", faster, "at least 1.3", lambda x: x >= 1.3)
    bars.check("picture beside the CPU's, dB", psnr(read("picture").get("compared")), "at least 40", lambda x: x >= 40)


def full_memory(bars):
    found = read("memory")
    yield "## Memory of Stable Diffusion 1.5"
    rows = []
    for target, name in [("tensorrt-rtx", "memory"), ("cuda", "memory cuda")]:
        yield f"{target}: {state(found.get(name) or found.get(name.replace('memory', 'compile')))}"
        found_rows = answer(found.get(name)).get("rows", [])
        if found_rows:
            yield memory(found_rows)
        rows = rows or found_rows
    for offload, bar in [("model", 2.2), ("sequential", 1.0)]:
        peaks = [row["peak_bytes"] / 1e9 for row in rows if row["offload"] == offload]
        bars.check(f"{offload} offload, GB", min(peaks, default=None), f"at most {bar}", lambda x, bar=bar: x <= bar)


def told(section):
    """What a section says, as far as it can."""
    try:
        yield from section
    except Exception as error:
        yield f"What was found cannot be told: {error!r}"


def failures():
    for name in ["probe", "small", "full", "picture", "memory", "torch"]:
        if "failed" in read(name):
            yield f"## The stage {name} failed\n\n```\n{read(name)['failed']}\n```"


bars = Bars()
sections = [*told(probe()), *told(small(bars)), *told(full(bars)), *told(full_memory(bars)), *failures()]
verdicts = table(["bar", "found", "wanted", ""], bars.rows)
head = f"# What check.sh found\n\n{datetime.date.today()}, `tests/gpu/check.sh`\n\n{verdicts}"
(FOLDER / "RESULTS.md").write_text("\n\n".join([head, *sections]) + "\n")
print(verdicts)
