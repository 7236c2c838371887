"""Interrupts kiln at random moments, and lets several processes share one small engine cache. Not part of CI.

    cargo build && python tests/stress.py signals --n 1000
    cargo build && python tests/stress.py cache --minutes 10 --processes 6

Both end with a line of figures, and with exit code 1 where a run ended otherwise than docs/reference.md says, left
something behind, or drew another picture than the same command alone.
"""

import argparse
import json
import os
import random
import shutil
import signal
import struct
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SHAPES = ROOT / "models/shapes"
SIGNALS = [signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGPIPE]


def generate(args, cache, out, model=SHAPES, seed=1, steps=8):
    return [args.kiln, "generate", "a red circle", "--model", model, "--seed", str(seed), "--steps", str(steps),
            "--threads", "2", "--engine-cache", cache, "--out", out]


def listing(folder):
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}


def failures(failed):
    for line in failed[:20]:
        print(line, file=sys.stderr)
    return 1 if failed else 0


def signals(args, work):
    """Sends a signal to each of many runs; every other one begins with an empty engine cache."""
    out, temporary, warm = work / "out", work / "tmp", work / "warm"
    for folder in (out, temporary):
        folder.mkdir()
    environment = {**os.environ, "TMPDIR": str(temporary)}
    picture = out / "a.png"
    spans = {}
    for cold in (True, False):
        begun = time.monotonic()
        subprocess.run(generate(args, warm, picture), check=True, env=environment, stdout=subprocess.DEVNULL)
        spans[cold] = time.monotonic() - begun
    expected, complete, failed, codes = picture.read_bytes(), listing(warm), [], Counter()
    for i in range(args.n):
        cold, which = bool(i % 2), SIGNALS[i // 2 % len(SIGNALS)]
        picture.unlink(missing_ok=True)
        cache = work / "cold" if cold else warm
        shutil.rmtree(work / "cold", ignore_errors=True)
        delay = random.uniform(0, 1.1 * spans[cold])
        process = subprocess.Popen(generate(args, cache, picture), env=environment, stdout=subprocess.DEVNULL,
                                   stderr=subprocess.PIPE)
        time.sleep(delay)
        process.send_signal(which)
        _, stderr = process.communicate(timeout=120)
        code = process.returncode
        codes[which.name, code] += 1
        # Until a process watches for signals, or ignores SIGPIPE, which it does before it writes anything, they end it.
        fine = {0, -which} if which == signal.SIGPIPE else {0, 128 + which, -which}
        left = listing(out) - {"a.png"} | listing(temporary)
        left |= listing(cache) - complete if cache.exists() else set()
        wrong = picture.exists() and picture.read_bytes() != expected or code == 0 and not picture.exists()
        if code not in fine or left or wrong:
            failed.append(f"run {i}: {which.name} after {delay:.3f} s, cold {cold}: code {code}, left {sorted(left)}, "
                          f"wrong picture {wrong}: {stderr.decode(errors='replace')[-300:]}")
            shutil.rmtree(temporary)
            temporary.mkdir()
    print(f"{args.n} signals, {len(failed)} failures: " +
          ", ".join(f"{name} {code}: {n}" for (name, code), n in sorted(codes.items())))
    return failures(failed)


def variant(folder, factor):
    """A copy of the small model whose UNet ends with other biases."""
    shutil.copytree(SHAPES, folder)
    path = folder / "unet/diffusion_pytorch_model.safetensors"
    data = bytearray(path.read_bytes())
    length = struct.unpack("<Q", data[:8])[0]
    header = json.loads(data[8:8 + length])
    begin, end = header["conv_out.bias"]["data_offsets"]
    for at in range(8 + length + begin, 8 + length + end, 2):
        data[at:at + 2] = struct.pack("<e", factor * 0.02)
    path.write_bytes(data)


def cache(args, work):
    """Draws, compiles and prunes in several processes at once, over a cache that does not hold all the models."""
    models = [work / f"model-{i}" for i in range(4)]
    for i, model in enumerate(models):
        variant(model, i)
    expected = {}
    for model in models:
        for seed in (1, 2):
            picture = work / "alone.png"
            subprocess.run(generate(args, work / "alone", picture, model, seed, 2), check=True,
                           stdout=subprocess.DEVNULL)
            expected[model, seed] = picture.read_bytes()
    assert len(set(expected.values())) == len(expected)
    limit = sum(p.stat().st_size for p in (work / "alone").rglob("*") if p.is_file() and "entries" in p.parts) // 2
    shared, deadline, lock = work / "shared", time.monotonic() + 60 * args.minutes, threading.Lock()
    failed, counts = [], Counter()

    def work_on(number):
        chance = random.Random(number)
        while time.monotonic() < deadline:
            model, seed, out = chance.choice(models), chance.choice((1, 2)), work / f"{number}.png"
            what = chance.choices(("draw", "compile", "prune"), (6, 2, 2))[0]
            out.unlink(missing_ok=True)
            command = {
                "draw": generate(args, shared, out, model, seed, 2),
                "compile": [args.kiln, "compile", model, "--no-figures", "--engine-cache", shared, "--cache-limit",
                            str(limit)],
                "prune": [args.kiln, "cache", "--engine-cache", shared, "prune", "--max-size", str(limit)],
            }[what]
            done = subprocess.run(command, capture_output=True, timeout=300)
            problem = None
            if done.returncode != 0:
                problem = f"code {done.returncode}: {done.stderr.decode(errors='replace')[-300:]}"
            elif what == "draw" and (not out.exists() or out.read_bytes() != expected[model, seed]):
                problem = "another picture than alone"
            with lock:
                counts[what] += 1
                if problem:
                    failed.append(f"{what} {model.name}: {problem}")

    threads = [threading.Thread(target=work_on, args=(number,)) for number in range(args.processes)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    left = [name for name in listing(shared) if "kiln-" in name or name.endswith((".tmp", "-abandoned"))]
    failed += [f"left behind: {name}" for name in left]
    print(f"{args.processes} processes, {args.minutes} minutes, {len(failed)} failures: " +
          ", ".join(f"{what} {n}" for what, n in sorted(counts.items())))
    return failures(failed)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["signals", "cache"])
    parser.add_argument("--kiln", default=str(ROOT / "target/debug/kiln"), help="the program")
    parser.add_argument("--n", type=int, default=1000, help="signals to send")
    parser.add_argument("--minutes", type=float, default=10, help="how long processes share a cache")
    parser.add_argument("--processes", type=int, default=6, help="how many share it")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as work:
        sys.exit({"signals": signals, "cache": cache}[args.what](args, Path(work)))


main()
