"""Says whether pictures show what their prompts say: background, and each thing's colour, shape, size and place.

    python models/shapes/judge.py --self-test                          # the judge on rendered pictures
    python models/shapes/judge.py PICTURES                             # NNN.png against line NNN of heldout.txt, from 000
    python models/shapes/judge.py PICTURES --kiln PATH/TO/kiln         # make the pictures first, with kiln
    python models/shapes/judge.py PICTURES --diffusers                 # make the pictures first, with diffusers

The i-th prompt is drawn with seed i. An unstated size or background is not judged.
"""

import argparse
import json
import random
import subprocess
from collections import Counter
from dataclasses import replace
from functools import cache
from itertools import permutations
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

import pictures
from pictures import BACKGROUNDS, COLOURS, RADII, RELATIONS, SHAPES, SIDE, SIZES, Scene, Thing

HERE = Path(__file__).resolve().parent
BACKGROUND_REACH = 45  # largest RGB distance at which a background still counts as its named colour
COLOUR_REACH = 65
SPECK = 8              # smaller patches, in pixels, are ignored
SHAPE_ERROR = 0.40     # largest share of a thing's area that may differ from the ideal shape


def parse(prompt):
    """The scene a caption describes; the background is empty where unstated."""
    words = prompt.removeprefix("a picture of ").split()
    background = ""
    if words[-1] == "background":
        background = words[-2]
        words = words[:-4]
    words = [word for word in words if word not in ("a", "an", "of")]
    first, relation, second = words, "", []
    for name in RELATIONS:
        key = name.split()[0]
        if key in words:
            at = words.index(key)
            first, relation, second = words[:at], name, words[at + 1:]
    things = tuple(Thing("", *ws) if len(ws) == 2 else Thing(*ws) for ws in (first, second) if ws)
    return Scene(things, relation, background)


def nearest(rgb, palette, reach):
    name, distance = min(((n, np.linalg.norm(rgb - np.array(c))) for n, c in palette.items()), key=lambda nd: nd[1])
    return name if distance <= reach else "?"


def grow(mask):
    padded = np.pad(mask, 1)
    return np.any([padded[y:y + SIDE, x:x + SIDE] for y in range(3) for x in range(3)], axis=0)


def patches(mask):
    """The connected patches of a mask, specks left out."""
    left, found = mask.copy(), []
    while left.any():
        patch = np.zeros_like(mask)
        patch[np.unravel_index(left.argmax(), left.shape)] = True
        while (grown := grow(patch) & left).sum() > patch.sum():
            patch = grown
        left &= ~patch
        if patch.sum() >= SPECK:
            found.append(patch)
    return found


def stamp(shape, x, y, r, scale=4):
    """Coverage of each pixel by an ideal shape."""
    image = Image.new("L", (SIDE * scale, SIDE * scale))
    pictures.draw_thing(ImageDraw.Draw(image), shape, x * scale, y * scale, r * scale, 255, 0)
    return np.asarray(image.resize((SIDE, SIDE), Image.Resampling.BOX)) / 255


@cache
def unit_area(shape):
    return stamp(shape, SIDE / 2, SIDE / 2, 20).sum() / 20 ** 2


def measure(pixels, background, patch, others):
    """Colour, shape, centre and radius of one patch."""
    inside = pixels[patch]
    far = np.linalg.norm(inside - background, axis=1)
    rgb = np.median(inside[far >= np.median(far)], axis=0)
    towards = rgb - background
    cover = np.clip((pixels - background) @ towards / max(towards @ towards, 1), 0, 1)
    cover *= grow(grow(patch)) & ~grow(others)
    area = cover.sum()
    rows, columns = np.mgrid[:SIDE, :SIDE] + 0.5
    x, y = (columns * cover).sum() / area, (rows * cover).sum() / area
    fits = {}
    for shape in SHAPES:
        r = (area / unit_area(shape)) ** 0.5
        fits[shape] = np.abs(stamp(shape, x, y, r) - cover).sum() / area, r
    shape = min(fits, key=fits.get)
    error, r = fits[shape]
    return dict(colour=nearest(rgb, COLOURS, COLOUR_REACH), shape=shape if error <= SHAPE_ERROR else "?",
                x=x, y=y, r=r, error=error)


def see(image):
    """Background colour and things of a picture."""
    pixels = np.asarray(image.convert("RGB").resize((SIDE, SIDE)), dtype=float)
    edge = np.concatenate([pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]])
    background = np.median(edge, axis=0)
    masks = patches(np.linalg.norm(pixels - background, axis=2) > BACKGROUND_REACH)
    found = []
    for mask in masks:
        others = np.any([m for m in masks if m is not mask] or [np.zeros_like(mask)], axis=0)
        found.append(measure(pixels, background, mask, others))
    return nearest(background, BACKGROUNDS, BACKGROUND_REACH), found


def size_name(r, n_things):
    """The size whose range of radii lies nearest."""
    return min(SIZES, key=lambda size: abs(r - sum(RADII[n_things][size]) / 2))


def related(relation, first, second):
    dx, dy = RELATIONS[relation]
    along = (first["x"] - second["x"]) * dx + (first["y"] - second["y"]) * dy
    across = (first["x"] - second["x"]) * dy + (first["y"] - second["y"]) * dx
    return along > abs(across)


def faults(scene, background, found):
    """The attributes of the scene that the picture gets wrong; empty when all are right."""
    wrong = ["background"] if scene.background and scene.background != background else []
    if len(found) != len(scene.things):
        return wrong + ["count"]

    def compare(order):
        bad = set()
        for thing, seen in zip(scene.things, order):
            bad |= {name for name in ("colour", "shape") if getattr(thing, name) != seen[name]}
            if thing.size and thing.size != size_name(seen["r"], len(order)):
                bad.add("size")
        if scene.relation and not related(scene.relation, *order):
            bad.add("relation")
        return bad

    return wrong + sorted(min(map(compare, permutations(found)), key=len))


def wrong_captions(scene, rng):
    """Scenes that differ from this one in a single attribute."""
    at = rng.randrange(len(scene.things))

    def change(**what):
        return replace(scene, things=tuple(replace(t, **what) if i == at else t for i, t in enumerate(scene.things)))

    def other(names, name):
        return rng.choice([n for n in names if n and n != name])

    thing = scene.things[at]
    yield "background", replace(scene, background=other(BACKGROUNDS, scene.background))
    yield "colour", change(colour=other(COLOURS, thing.colour))
    yield "shape", change(shape=other(SHAPES, thing.shape))
    yield "size", change(size=other(SIZES, thing.size))
    if scene.relation:
        opposite = {"above": "below", "below": "above", "left of": "right of", "right of": "left of"}
        alike = scene.things[0] == scene.things[1]
        yield "relation", replace(scene, relation=rng.choice(
            [r for r in RELATIONS if r != scene.relation and not (alike and r == opposite[scene.relation])]))
        swapped = replace(scene, things=scene.things[::-1])
        if "" in (scene.things[0].size, scene.things[1].size):
            alike = (scene.things[0].colour, scene.things[0].shape) == (scene.things[1].colour, scene.things[1].shape)
        if not alike:
            yield "order", swapped
        yield "count", replace(scene, things=scene.things[:1], relation="")


def self_test(n):
    rng = random.Random(99)
    accepted, tried, rejected = 0, Counter(), Counter()
    for _ in range(n):
        scene = pictures.random_scene(rng)
        seen = see(pictures.render(scene, rng))
        accepted += not faults(parse(scene.caption()), *seen)
        for kind, wrong in wrong_captions(scene, rng):
            tried[kind] += 1
            rejected[kind] += bool(faults(parse(wrong.caption()), *seen))
    return dict(pictures=n, accepted=accepted / n, wrong_captions=tried.total(),
                rejected=rejected.total() / tried.total(), rejected_by_kind={k: rejected[k] / tried[k] for k in tried})


def draw_with_kiln(kiln, prompts, folder, steps, guidance):
    for i, prompt in enumerate(prompts):
        command = [kiln, "generate", prompt, "--model", HERE, "--seed", str(i), "--steps", str(steps),
                   "--out", folder / f"{i:03}.png"]
        subprocess.run(command + (["--guidance-scale", str(guidance)] if guidance else []), check=True,
                       stdout=subprocess.DEVNULL)


def draw_with_diffusers(prompts, folder, steps, guidance, batch=25):
    import torch
    from diffusers import StableDiffusionPipeline
    pipeline = StableDiffusionPipeline.from_pretrained(HERE)
    pipeline.set_progress_bar_config(disable=True)
    for start in range(0, len(prompts), batch):
        some = prompts[start:start + batch]
        seeds = [torch.Generator().manual_seed(start + i) for i in range(len(some))]
        made = pipeline(some, num_inference_steps=steps, guidance_scale=guidance or 7.5, generator=seeds).images
        for i, image in enumerate(made, start):
            image.save(folder / f"{i:03}.png")


def judge(prompts, folder):
    rows = []
    for i, prompt in enumerate(prompts):
        background, found = see(Image.open(folder / f"{i:03}.png"))
        rows.append(dict(index=i, prompt=prompt, wrong=faults(parse(prompt), background, found),
                         background=background, things=[dict(colour=t["colour"], shape=t["shape"],
                                                             radius=round(t["r"], 1)) for t in found]))
    return dict(right=sum(not row["wrong"] for row in rows), of=len(rows),
                wrong=dict(Counter(name for row in rows for name in row["wrong"])), pictures=rows)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, nargs="?", help="folder of NNN.png")
    parser.add_argument("--prompts", type=Path, default=HERE / "heldout.txt")
    parser.add_argument("--kiln", help="draw with this kiln binary first")
    parser.add_argument("--diffusers", action="store_true", help="draw with diffusers first")
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--guidance", type=float, help="guidance scale, where not the default")
    parser.add_argument("--self-test", type=int, nargs="?", const=2000, metavar="PICTURES")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    if args.self_test:
        print(json.dumps(self_test(args.self_test), indent=2))
        return
    if not args.folder:
        parser.error("a folder of pictures, or --self-test")
    prompts = args.prompts.read_text().splitlines()
    args.folder.mkdir(parents=True, exist_ok=True)
    if args.kiln:
        draw_with_kiln(args.kiln, prompts, args.folder, args.steps, args.guidance)
    if args.diffusers:
        draw_with_diffusers(prompts, args.folder, args.steps, args.guidance)
    result = judge(prompts, args.folder)
    if args.json:
        print(json.dumps(result, indent=2))
        return
    for row in result["pictures"]:
        if row["wrong"]:
            print(f"{row['index']:03} {row['prompt']}: {', '.join(row['wrong'])}")
    print(f"{result['right']} of {result['of']} right; wrong: {result['wrong'] or 'none'}")


if __name__ == "__main__":
    main()
