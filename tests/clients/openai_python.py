"""Drives a running `kiln serve` with OpenAI's Python client.

    pip install openai==3.57.0
    python tests/clients/openai_python.py http://127.0.0.1:7860 [KEY]
"""

import base64
import struct
import sys
import urllib.request
import zlib

import openai

base, key = sys.argv[1], (sys.argv[2:] or ["none"])[0]
client = openai.OpenAI(base_url=f"{base}/v1", api_key=key, max_retries=0)


def png(width, height, pixel):
    """A PNG file of the pixels that `pixel(x, y)` gives, three bytes each, or four with alpha."""
    rows = b"".join(b"\0" + b"".join(bytes(pixel(x, y)) for x in range(width)) for y in range(height))
    color = 6 if len(pixel(0, 0)) == 4 else 2
    chunk = lambda kind, data: (
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
    )
    header = struct.pack(">IIBBBBB", width, height, 8, color, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def refused(error, call, **fields):
    """The error of this type that a call with these fields raises."""
    try:
        call(**fields)
    except error as e:
        return e
    raise AssertionError(f"{fields} was not refused")


model = client.models.list().data[0]
assert model.owned_by and isinstance(model.created, int)
assert client.models.retrieve(model.id).id == model.id
assert refused(openai.NotFoundError, client.models.retrieve, model="sd/../x").code == "model_not_found"

fast = {"steps": 4, "seed": 7}
both = client.images.generate(model=model.id, prompt="a red circle", n=2, extra_body=fast)
assert isinstance(both.created, int) and both.background == "opaque" and both.usage.total_tokens == 0
first, second = (base64.b64decode(picture.b64_json) for picture in both.data)
assert first[1:4] == b"PNG" and first != second
assert urllib.request.urlopen(both.data[0].url).read() == first, "a link needs no key"
again = client.images.generate(model=model.id, prompt="a red circle", response_format="b64_json", extra_body=fast)
assert base64.b64decode(again.data[0].b64_json) == first and again.data[0].url is None
link = client.images.generate(model=model.id, prompt="a red circle", response_format="url", user="me", quality="hd")
assert link.data[0].b64_json is None and link.data[0].url.startswith(base)
more = {"steps": 4, "negative_prompt": "blue", "guidance_scale": 3.5, "scheduler": "euler", "loras": {}}
small = client.images.generate(
    model=model.id, prompt="x", size="64x48", output_format="jpeg", output_compression=50, extra_body=more
)
assert small.size == "64x48" and base64.b64decode(small.data[0].b64_json)[:2] == b"\xff\xd8"

events = list(
    client.images.generate(
        model=model.id, prompt="a red circle", stream=True, partial_images=2, extra_body={"steps": 12, "seed": 7}
    )
)
assert [event.type for event in events] == ["image_generation.partial_image"] * 2 + ["image_generation.completed"]
assert [event.partial_image_index for event in events[:2]] == [0, 1] and events[2].usage.total_tokens == 0
assert len({event.b64_json for event in events}) == 3

picture = png(64, 64, lambda x, y: (255, 4 * x, 4 * y))
mask = png(64, 64, lambda x, y: (0, 0, 0, 0 if x < 32 else 255))
edit = {"model": model.id, "prompt": "a blue circle", "extra_body": {"steps": 8, "seed": 1, "strength": 0.7}}
plain = client.images.edit(image=picture, **edit)
listed = client.images.edit(image=[("a.png", picture)], **edit)
masked = client.images.edit(image=picture, mask=mask, size="64x64", n=1, **edit)
assert plain.data[0].b64_json == listed.data[0].b64_json != masked.data[0].b64_json
events = list(client.images.edit(image=picture, stream=True, partial_images=1, **edit))
assert [event.type for event in events] == ["image_edit.partial_image", "image_edit.completed"]
assert events[1].b64_json == plain.data[0].b64_json
assert refused(openai.BadRequestError, client.images.edit, image=[picture, picture], **edit).param == "image"
edit["extra_body"] = {"loras": {"none": 0.5}}
assert refused(openai.BadRequestError, client.images.edit, image=picture, **edit).param == "loras"
assert client.images.create_variation(image=picture, model=model.id, n=2).data[1].b64_json

draw = client.images.generate
assert refused(openai.NotFoundError, draw, model="dall-e-9", prompt="x").param == "model"
for name, value in {"n": 11, "size": "7x7", "background": "transparent", "response_format": "gif"}.items():
    assert refused(openai.BadRequestError, draw, model=model.id, prompt="x", **{name: value}).param == name
for name, value in {"steps": 0, "seed": -1, "scheduler": "none", "loras": {"none": 1.0}, "tiling": True}.items():
    assert refused(openai.BadRequestError, draw, model=model.id, prompt="x", extra_body={name: value}).param == name
print("openai", openai.__version__, "draws")
