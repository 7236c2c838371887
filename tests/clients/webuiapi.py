"""Drives a running `kiln serve` of the small model models/shapes with webuiapi.

    pip install webuiapi==0.9.17
    python tests/clients/webuiapi.py 127.0.0.1 7860 [KEY]
"""

import sys

# The folder of this file would hide the package of the same name.
sys.path.pop(0)

import threading
import time

import webuiapi
from PIL import Image, ImageDraw

host, port = sys.argv[1], int(sys.argv[2])
key = sys.argv[3] if len(sys.argv) > 3 else None
api = webuiapi.WebUIApi(host=host, port=port, username="anyone" if key else None, password=key)

result = api.txt2img(prompt="a red circle", seed=7, steps=10, width=64, height=64)
assert result.image.size == (64, 64), result.image.size
assert result.info["seed"] == 7 and result.info["sampler_name"] == "Euler a", result.info
assert result.image.text["parameters"] == result.info["infotexts"][0]
assert api.png_info(result.image).info == result.info["infotexts"][0]

many = api.txt2img(
    prompt="a blue star", n_iter=2, batch_size=2, seed=1, steps=4, sampler_name="DPM++ 2M", scheduler="Karras"
)
assert len(many.images) == 4 and many.info["all_seeds"] == [1, 2, 3, 4], many.info
large = api.txt2img(
    prompt="a red circle", seed=7, steps=4, width=64, height=64, enable_hr=True, hr_scale=2,
    hr_upscaler=webuiapi.HiResUpscaler.Latent,
)
assert large.image.size == (128, 128)

changed = api.img2img(images=[result.image], prompt="a green circle", seed=3, steps=6, width=64, height=64)
assert changed.image.size == (64, 64)
mask = Image.new("L", (64, 64), 0)
ImageDraw.Draw(mask).rectangle((8, 8, 23, 23), fill=255)
inpainted = api.img2img(
    images=[result.image], mask_image=mask, mask_blur=0, prompt="a star", seed=3, steps=6, width=64, height=64
)
for x in range(64):
    for y in range(64):
        is_inside = 8 <= x < 24 and 8 <= y < 24
        assert is_inside or inpainted.image.getpixel((x, y)) == result.image.getpixel((x, y)), (x, y)

for name in [
    "options", "cmd_flags", "progress", "samplers", "schedulers", "sd_vae", "upscalers", "latent_upscale_modes",
    "loras", "sd_models", "hypernetworks", "face_restorers", "realesrgan_models", "prompt_styles", "scripts",
    "embeddings", "memory",
]:
    getattr(api, f"get_{name}")()
api.refresh_checkpoints()
api.interrupt()
api.skip()
api.set_options({"CLIP_stop_at_last_layers": 1})
api.util_set_model("shapes")
assert api.util_get_current_model() in api.util_get_model_names()
assert "Euler a" in api.util_get_sampler_names() and "karras" in api.util_get_scheduler_names()
api.util_wait_for_ready()
assert api.controlnet_model_list() == [] and api.controlnet_module_list() == ["none"]
assert api.controlnet_version() == 2
resized = api.extra_single_image(image=result.image, upscaler_1=webuiapi.Upscaler.Lanczos, upscaling_resize=1.5)
assert resized.image.size == (96, 96)
assert len(api.extra_batch_images(images=[result.image] * 2, upscaler_1="Lanczos").images) == 2

try:
    api.txt2img(prompt="x", restore_faces=True)
    raise AssertionError("restore_faces was drawn")
except RuntimeError as error:
    assert error.args[0] == 400 and "restore_faces" in error.args[1], error
try:
    api.interrogate(result.image)
    raise AssertionError("a picture was described")
except RuntimeError as error:
    assert "interrogate" in error.args[1], error

stopped = []


def draw():
    try:
        stopped.append(api.txt2img(prompt="x", steps=150, width=256, height=256))
    except RuntimeError as error:
        stopped.append(error)


thread = threading.Thread(target=draw)
thread.start()
while api.get_progress()["state"]["sampling_step"] == 0:
    time.sleep(0.05)
assert 0 < api.get_progress()["progress"] <= 1
api.interrupt()
thread.join(60)
assert isinstance(stopped[0], RuntimeError) and stopped[0].args[0] == 409, stopped
print("webuiapi 0.9.17: all calls are answered")
