"""PyTorch's seconds for 50 DDIM steps and a decode, without the text encoder: python torch_baseline.py CHECKPOINT.

Prints a line of JSON after each way, with all so far: the fastest of three pictures, after one that warms it up.
"""

import json
import sys
import time

import torch
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel

STEPS = 50
ROUNDS = 3


def load(folder, dtype, channels_last):
    layout = torch.channels_last if channels_last else torch.contiguous_format
    unet = UNet2DConditionModel.from_pretrained(folder, subfolder="unet", torch_dtype=dtype)
    vae = AutoencoderKL.from_pretrained(folder, subfolder="vae", torch_dtype=dtype)
    return (model.to("cuda", memory_format=layout).eval() for model in (unet, vae))


@torch.inference_mode()
def draw(unet, vae, scheduler, dtype):
    torch.cuda.synchronize()
    start = time.perf_counter()
    generator = torch.Generator("cuda").manual_seed(0)
    latents = torch.randn(1, 4, 64, 64, device="cuda", dtype=dtype, generator=generator)
    states = torch.randn(2, 77, 768, device="cuda", dtype=dtype, generator=generator)
    scheduler.set_timesteps(STEPS, device="cuda")
    for timestep in scheduler.timesteps:
        noise = unet(torch.cat([latents] * 2), timestep, encoder_hidden_states=states, return_dict=False)[0]
        without, with_text = noise.chunk(2)
        latents = scheduler.step(without + 7.5 * (with_text - without), timestep, latents, return_dict=False)[0]
    torch.cuda.synchronize()
    stepped = time.perf_counter() - start
    vae.decode(latents / 0.18215, return_dict=False)[0].float().cpu()
    return time.perf_counter() - start, stepped


def measure(folder, dtype=torch.float16, channels_last=False, compiled=None):
    torch._dynamo.reset()
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    unet, vae = load(folder, dtype, channels_last)
    if compiled:
        unet = torch.compile(unet, mode=compiled, fullgraph=True)
        vae.decode = torch.compile(vae.decode)
    scheduler = DDIMScheduler.from_pretrained(folder, subfolder="scheduler")
    draw(unet, vae, scheduler, dtype)
    seconds, stepped = min(draw(unet, vae, scheduler, dtype) for _ in range(ROUNDS))
    peak = torch.cuda.max_memory_allocated()
    return {"seconds": seconds, "steps_per_second": STEPS / stepped, "peak_bytes": peak}


def main(folder):
    torch.backends.cudnn.benchmark = True
    ways = {
        "fp32": {"dtype": torch.float32},
        "fp16": {},
        "fp16, channels last": {"channels_last": True},
        "fp16, channels last, torch.compile": {"channels_last": True, "compiled": "reduce-overhead"},
        "fp16, channels last, torch.compile, tuned": {"channels_last": True, "compiled": "max-autotune"},
    }
    found = {"torch": torch.__version__, "device": torch.cuda.get_device_name()}
    for name, way in ways.items():
        try:
            found[name] = measure(folder, **way)
        except Exception as error:
            found[name] = {"failed": str(error)[:500]}
        print(json.dumps(found), flush=True)


main(sys.argv[1])
