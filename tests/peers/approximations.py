#!/usr/bin/env python3
"""What kiln's approximations cost and save: pictures beside exact ones, and the time of their steps.

    target/release/kiln compile models/shapes --segment-size 64KiB
    python tests/peers/approximations.py target/release/kiln BUNDLE [--steps 25] [--prompts 12]

Prints a Markdown table of medians. Pictures of weights that are noise say nothing: BUNDLE is of a trained model.
"""
import argparse
import json
import os
import statistics
import subprocess
import tempfile

HERE = os.path.dirname(os.path.abspath(__file__))
HELDOUT = os.path.join(HERE, "..", "..", "models", "shapes", "heldout.txt")
WAYS = [["--deep-every", "2"], ["--deep-every", "3"], ["--deep-every", "5"], ["--guidance-end", "0.8"],
        ["--guidance-end", "0.6"], ["--guidance-start", "0.2"], ["--deep-every", "2", "--guidance-end", "0.8"]]


def run(*command):
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("kiln")
    parser.add_argument("bundle")
    parser.add_argument("--steps", default="25")
    parser.add_argument("--prompts", type=int, default=12)
    parser.add_argument("--size", help="width and height; the model's own by default")
    options = parser.parse_args()
    with open(HELDOUT) as file:
        prompts = [line.strip() for line in file if line.strip()][:options.prompts]
    size = ["--width", options.size, "--height", options.size] if options.size else []
    with tempfile.TemporaryDirectory() as folder:
        def draw(prompt, name, way):
            path = os.path.join(folder, f"{name}.png")
            drawn = run(options.kiln, "generate", prompt, "--model", options.bundle, "--steps", options.steps, "--seed",
                        "1", "--warm-up", "1", "--json", "--out", path, *size, *way)
            return path, drawn["seconds"]["steps"]

        ratios, psnrs = {}, {}
        for prompt in prompts:
            exact, took = draw(prompt, "exact", [])
            for way in map(tuple, WAYS):
                found, seconds = draw(prompt, "found", way)
                ratios.setdefault(way, []).append(seconds / took)
                psnrs.setdefault(way, []).append(run(options.kiln, "compare", exact, found, "--json")["psnr"] or 99)
    print("| approximation | steps' time | picture, median | worst |\n|---|---|---|---|")
    for way, of in psnrs.items():
        ratio = statistics.median(ratios[way])
        print(f"| `{' '.join(way)}` | {ratio:.2f} x | {statistics.median(of):.1f} dB | {min(of):.1f} dB |")


if __name__ == "__main__":
    main()
