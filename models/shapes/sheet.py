"""Pastes the pictures of held-out prompts into one sheet, each above its prompt.

    python models/shapes/sheet.py PICTURES models/shapes/samples.png
"""

import sys
import textwrap
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

COLUMNS, ROWS, SIDE, TEXT, GAP = 6, 4, 160, 42, 10


def main():
    folder, out = map(Path, sys.argv[1:])
    prompts = (Path(__file__).parent / "heldout.txt").read_text().splitlines()
    step = len(prompts) // (COLUMNS * ROWS)
    sheet = Image.new("RGB", (COLUMNS * (SIDE + GAP) + GAP, ROWS * (SIDE + TEXT + GAP) + GAP), "white")
    draw = ImageDraw.Draw(sheet)
    font = ImageFont.load_default(11)
    for i in range(COLUMNS * ROWS):
        index = i * step + i % step
        x, y = GAP + i % COLUMNS * (SIDE + GAP), GAP + i // COLUMNS * (SIDE + TEXT + GAP)
        picture = Image.open(folder / f"{index:03}.png").resize((SIDE, SIDE), Image.Resampling.BICUBIC)
        sheet.paste(picture, (x, y))
        draw.rectangle((x, y, x + SIDE - 1, y + SIDE - 1), outline="#cccccc")
        draw.multiline_text((x, y + SIDE + 3), textwrap.fill(prompts[index], 30), "black", font, spacing=1)
    sheet.save(out, optimize=True)


if __name__ == "__main__":
    main()
