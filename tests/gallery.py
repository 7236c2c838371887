"""Draws docs/gallery.png with the small model: a row for each way to draw.

    pip install pillow
    python tests/gallery.py target/release/kiln docs/gallery.png
"""

import subprocess
import sys
import tempfile
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

SIDE, GAP, TEXT = 128, 10, 30
PROMPT = "a red circle above a blue square on a white background"


def rows(folder):
    """Captions and the arguments of `kiln generate` behind them."""
    start, mask = folder / "start.png", folder / "mask.png"
    init = ["a green triangle on a white background", "--seed", 3, "--init-image", start]
    yield "one prompt, six seeds", [([PROMPT, "--seed", seed], f"seed {seed}") for seed in range(1, 7)]
    names = ["ddim", "euler", "euler-a", "dpm++2m:karras", "unipc", "lcm"]
    yield "samplers", [([PROMPT, "--seed", 1, "--scheduler", name, "--steps", 20], name) for name in names]
    yield "steps", [([PROMPT, "--seed", 1, "--steps", n], f"{n} steps") for n in (2, 4, 8, 15, 30, 50)]
    yield "guidance", [([PROMPT, "--seed", 1, "--guidance-scale", g], f"scale {g}") for g in (1, 2, 4, 7.5, 12, 20)]
    yield "from a picture", [([*init, "--strength", s], f"strength {s}") for s in (0.2, 0.4, 0.5, 0.6, 0.8, 1.0)]
    yield "repainted below", [([*init[:2], seed, *init[3:], "--mask", mask], f"seed {seed}") for seed in range(1, 7)]


def main():
    kiln, out = sys.argv[1], Path(sys.argv[2])
    with tempfile.TemporaryDirectory() as folder:
        sheet(kiln, Path(folder)).save(out, optimize=True)


def sheet(kiln, folder):
    draw_picture(kiln, [PROMPT, "--seed", 1], folder / "start.png")
    mask = Image.new("L", (64, 64))
    mask.paste(255, (0, 32, 64, 64))
    mask.save(folder / "mask.png")
    found = list(rows(folder))
    width, height = GAP + 6 * (SIDE + GAP), GAP + len(found) * (SIDE + 2 * TEXT)
    page = Image.new("RGB", (width, height), "white")
    pen, font = ImageDraw.Draw(page), ImageFont.load_default(13)
    for i, (title, pictures) in enumerate(found):
        top = GAP + i * (SIDE + 2 * TEXT)
        pen.text((GAP, top), title, "black", font)
        for j, (arguments, caption) in enumerate(pictures):
            path = folder / f"{i}-{j}.png"
            draw_picture(kiln, arguments, path)
            left, above = GAP + j * (SIDE + GAP), top + TEXT - 8
            page.paste(Image.open(path).resize((SIDE, SIDE), Image.Resampling.BICUBIC), (left, above))
            pen.text((left, above + SIDE + 3), caption, "#555555", font)
    return page


def draw_picture(kiln, arguments, path):
    command = [kiln, "generate", *arguments, "--model", "models/shapes", "--out", path]
    subprocess.run(list(map(str, command)), check=True, capture_output=True)


if __name__ == "__main__":
    main()
