"""Makes `tiling.safetensors`: pictures of the small model whose autoencoder works in tiles, by diffusers.

    pip install torch==2.15.0 diffusers==0.42.1 transformers==5.14.1 pillow
    python tests/references/make_tiling.py            # compares with what is here
    python tests/references/make_tiling.py --write    # writes
"""

import argparse
from pathlib import Path

import numpy as np
import torch
from diffusers import StableDiffusionImg2ImgPipeline, StableDiffusionPipeline
from PIL import Image
from safetensors.torch import load_file, save_file

HERE = Path(__file__).resolve().parent
PATH = HERE / "tiling.safetensors"
MODEL = HERE.parents[1] / "models" / "shapes"
PROMPT = "a red circle and a blue square"
HEIGHT, WIDTH, TILE = 112, 160, 64


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true")
    write = parser.parse_args().write
    text = StableDiffusionPipeline.from_pretrained(MODEL, torch_dtype=torch.float32, safety_checker=None)
    text.set_progress_bar_config(disable=True)
    image = StableDiffusionImg2ImgPipeline(**text.components, requires_safety_checker=False)
    image.set_progress_bar_config(disable=True)
    ramp = np.linspace(0, 255, WIDTH, dtype=np.float32)[None, :, None]
    fall = np.linspace(255, 0, HEIGHT, dtype=np.float32)[:, None, None]
    init = np.concatenate([ramp + 0 * fall, fall + 0 * ramp, (ramp + fall) / 2], axis=2).astype(np.uint8)
    out = {"init": torch.from_numpy(init)}

    def draw(pipe, **options):
        generator = torch.Generator().manual_seed(5)
        made = pipe(PROMPT, num_inference_steps=4, generator=generator, output_type="np", **options).images[0]
        return torch.from_numpy((made * 255).round().astype(np.uint8)).contiguous()

    out["whole"] = draw(text, height=HEIGHT, width=WIDTH)
    factor = 2 ** (len(text.vae.config.block_out_channels) - 1)
    text.vae.enable_tiling()
    text.vae.tile_sample_min_size = TILE
    text.vae.tile_latent_min_size = TILE // factor
    out["text"] = draw(text, height=HEIGHT, width=WIDTH)
    out["image"] = draw(image, image=Image.fromarray(init), strength=0.5)
    if write:
        save_file(out, PATH)
        return
    for name, expected in load_file(PATH).items():
        print(name, int((out[name].int() - expected.int()).abs().max()))


if __name__ == "__main__":
    main()
