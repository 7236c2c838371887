"""Procedural pictures of coloured shapes, and the captions that describe them."""

import math
import random
import zlib
from dataclasses import dataclass

from PIL import Image, ImageDraw

SIDE = 64
COLOURS = {
    "red": (214, 40, 40),
    "orange": (247, 140, 30),
    "yellow": (250, 220, 50),
    "green": (40, 160, 70),
    "blue": (40, 90, 210),
    "purple": (140, 60, 170),
}
BACKGROUNDS = {"white": (255, 255, 255), "black": (15, 15, 15), "gray": (150, 150, 150), "pink": (250, 190, 205)}
SHAPES = ["circle", "square", "triangle", "star", "cross", "ring"]
SIZES = ["small", "", "large"]
RELATIONS = {"above": (0, -1), "below": (0, 1), "left of": (-1, 0), "right of": (1, 0)}

# Radius in pixels by number of objects and size.
RADII = {1: {"small": (8.5, 10.5), "": (14, 16), "large": (20, 23.5)},
         2: {"small": (7.2, 8), "": (10, 10.8), "large": (12.8, 13.6)}}

# Colour and shape never meet in training; half of the held-out prompts are about these pairs.
UNSEEN_PAIRS = {("purple", "star"), ("orange", "ring"), ("green", "cross")}


@dataclass(frozen=True)
class Thing:
    size: str
    colour: str
    shape: str

    def __str__(self):
        words = " ".join(word for word in (self.size, self.colour, self.shape) if word)
        return ("an " if words[0] in "aeiou" else "a ") + words


@dataclass(frozen=True)
class Scene:
    things: tuple
    relation: str
    background: str

    def caption(self, name_background=True):
        text = str(self.things[0])
        if len(self.things) == 2:
            text += f" {self.relation} {self.things[1]}"
        return text + (f" on a {self.background} background" if name_background else "")

    def layout(self):
        """What is where, whatever the wording: one thing, two upright or two abreast; background; and colour, shape and
        size of the thing that is alone, on top or on the left, then of the other."""
        things, dx, dy = list(self.things), *RELATIONS.get(self.relation, (0, 0))
        if max(dx, dy) > 0:
            things.reverse()
        answers = [0 if not self.relation else 1 if dy else 2, list(BACKGROUNDS).index(self.background)]
        for thing in things:
            answers += [list(COLOURS).index(thing.colour), SHAPES.index(thing.shape), SIZES.index(thing.size)]
        return answers + [len(COLOURS), len(SHAPES), len(SIZES)] * (2 - len(things))

    def held_out(self):
        """Whether training must never see it: an unseen pair, or one of ten by hash of what it shows."""
        if any((t.colour, t.shape) in UNSEEN_PAIRS for t in self.things):
            return True
        key = "|".join(f"{t.colour} {t.shape}" for t in self.things) + self.relation
        key += self.background + self.things[0].size if len(self.things) == 1 else ""
        return zlib.crc32(key.encode()) % 10 == 0


def read_caption(caption):
    """The scene that a caption of the grammar describes; an unstated background is white."""
    text = " ".join(caption.replace("a picture of ", "").split())
    text, _, background = text.partition(" on a ")
    relation = next((name for name in RELATIONS if f" {name} " in text), "")
    things = []
    for words in (text.split(f" {relation} ") if relation else [text]):
        *size, colour, shape = words.split()[1:]
        things.append(Thing("".join(size), colour, shape))
    return Scene(tuple(things), relation, background.removesuffix(" background") or "white")


# Number of answers to each question of `Scene.layout`.
LAYOUT = (3, len(BACKGROUNDS), *(len(COLOURS) + 1, len(SHAPES) + 1, len(SIZES) + 1) * 2)


def random_scene(rng, n_things=None):
    n = n_things or (1 if rng.random() < 0.35 else 2)
    things = [Thing(rng.choice(SIZES), rng.choice(list(COLOURS)), rng.choice(SHAPES)) for _ in range(n)]
    relation = rng.choice(list(RELATIONS)) if n == 2 else ""
    return Scene(tuple(things), relation, rng.choice(list(BACKGROUNDS)))


def layout(scene, rng):
    """Centre and radius of each thing."""
    middle = SIDE / 2
    radii = [rng.uniform(*RADII[len(scene.things)][t.size]) for t in scene.things]
    if len(scene.things) == 1:
        return [(middle + rng.uniform(-4, 4), middle + rng.uniform(-4, 4), radii[0])]
    dx, dy = RELATIONS[scene.relation]
    places = []
    for sign, radius in zip((1, -1), radii):
        along, across = 15.5 + rng.uniform(-1, 1), rng.uniform(-2.5, 2.5)
        x = middle + sign * dx * along + (across if dx == 0 else 0)
        y = middle + sign * dy * along + (across if dy == 0 else 0)
        places.append((x, y, radius))
    return places


def outline(shape, x, y, r):
    """Corners of the polygonal shapes."""
    def around(radii, n, start=-math.pi / 2):
        return [(x + radii[i % len(radii)] * math.cos(start + 2 * math.pi * i / n),
                 y + radii[i % len(radii)] * math.sin(start + 2 * math.pi * i / n)) for i in range(n)]

    if shape == "square":
        h = 0.88 * r
        return [(x - h, y - h), (x + h, y - h), (x + h, y + h), (x - h, y + h)]
    if shape == "triangle":
        y += 0.15 * r
        return around([1.15 * r], 3)
    if shape == "star":
        return around([1.15 * r, 0.48 * r], 10)
    w = 0.36 * r
    return [(x - w, y - r), (x + w, y - r), (x + w, y - w), (x + r, y - w), (x + r, y + w), (x + w, y + w),
            (x + w, y + r), (x - w, y + r), (x - w, y + w), (x - r, y + w), (x - r, y - w), (x - w, y - w)]


def draw_thing(draw, shape, x, y, r, fill, hole):
    if shape in ("circle", "ring"):
        draw.ellipse((x - r, y - r, x + r, y + r), fill=fill)
        if shape == "ring":
            h = 0.55 * r
            draw.ellipse((x - h, y - h, x + h, y + h), fill=hole)
    else:
        draw.polygon(outline(shape, x, y, r), fill=fill)


def render(scene, rng, scale=4):
    """The scene as an anti-aliased picture."""
    background = BACKGROUNDS[scene.background]
    image = Image.new("RGB", (SIDE * scale, SIDE * scale), background)
    draw = ImageDraw.Draw(image)
    for thing, (x, y, r) in zip(scene.things, layout(scene, rng)):
        draw_thing(draw, thing.shape, x * scale, y * scale, r * scale, COLOURS[thing.colour], background)
    return image.resize((SIDE, SIDE), Image.Resampling.BOX)


def training_example(rng):
    """A scene that training may see, with its caption; white backgrounds often go unmentioned."""
    while (scene := random_scene(rng)).held_out():
        pass
    named = scene.background != "white" or rng.random() < 0.5
    caption = scene.caption(named)
    return scene, "a picture of " + caption if rng.random() < 0.1 else caption


def held_out_scenes(n=100, seed=1):
    """The held-out scenes: one and two things, half of them with an unseen pair."""
    rng = random.Random(seed)
    scenes = []
    while len(scenes) < n:
        scene = random_scene(rng, n_things=1 + len(scenes) % 2)
        unseen = any((t.colour, t.shape) in UNSEEN_PAIRS for t in scene.things)
        if scene.held_out() and scene not in scenes and unseen == (len(scenes) % 4 < 2):
            scenes.append(scene)
    return scenes
