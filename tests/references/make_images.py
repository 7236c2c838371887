"""Makes `images.safetensors`: resizing by Pillow, brightness and masks by diffusers, similarity by scikit-image; and
`turned.jpg`, whose EXIF data says that it lies on its side, and `alpha.webp`.

    pip install torch==2.15.0 diffusers==0.42.1 pillow scikit-image
    python tests/references/make_images.py            # compares with what is here
    python tests/references/make_images.py --write    # writes
"""

import argparse
import json
from pathlib import Path

import numpy as np
import torch
from diffusers.image_processor import VaeImageProcessor
from PIL import Image
from safetensors import safe_open
from safetensors.torch import save_file
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

PATH = Path(__file__).resolve().parent / "images.safetensors"
SIZES = [(64, 40), (9, 30), (23, 5), (40, 17), (23, 17), (1, 1)]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true")
    write = parser.parse_args().write
    random = np.random.default_rng(0)
    pixels = random.integers(0, 256, (17, 23, 3), dtype=np.uint8)
    image = Image.fromarray(pixels)
    out = {"image": torch.from_numpy(pixels)}
    for width, height in SIZES:
        out[f"lanczos.{width}x{height}"] = torch.from_numpy(np.array(image.resize((width, height), Image.LANCZOS)))
    masks = VaeImageProcessor(vae_scale_factor=1, do_normalize=False, do_binarize=True, do_convert_grayscale=True)
    out["mask"] = masks.preprocess(image, height=20, width=30)[0]
    other = np.clip(pixels.astype(int) + random.integers(-9, 10, pixels.shape), 0, 255).astype(np.uint8)
    out["other"] = torch.from_numpy(other)
    ssim = structural_similarity(pixels, other, channel_axis=2, gaussian_weights=True, sigma=1.5,
                                 use_sample_covariance=False, data_range=255)
    figures = dict(ssim=float(ssim), psnr=float(peak_signal_noise_ratio(pixels, other, data_range=255)))
    wide = Image.new("RGB", (32, 16), (200, 40, 40))
    wide.paste((30, 60, 200), (16, 0, 32, 16))
    if write:
        exif = Image.Exif()
        exif[0x0112] = 6
        wide.save(PATH.with_name("turned.jpg"), exif=exif, quality=95)
        transparent = wide.convert("RGBA")
        transparent.putalpha(100)
        transparent.save(PATH.with_name("alpha.webp"), lossless=True, exact=True)
        save_file({key: value.contiguous() for key, value in out.items()}, PATH, {"figures": json.dumps(figures)})
        PATH.chmod(0o644)
        return
    with safe_open(PATH, "pt") as file:
        same = all(torch.equal(value, file.get_tensor(key)) for key, value in out.items())
        print("tensors", "equal" if same else "differ", file.metadata(), figures)


if __name__ == "__main__":
    main()
