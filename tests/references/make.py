"""Makes the references in this folder with diffusers, transformers and torch.

    pip install torch==2.15.0 diffusers==0.42.1 transformers==5.23.0 scipy==1.17.1
    python tests/references/make.py            # compares with what is here
    python tests/references/make.py --write    # writes

`sd15/` is a pipeline with random weights that half precision holds exactly; its references are computed in single
precision on the CPU from the inputs that `reference.safetensors` holds.
"""

import argparse
import json
import shutil
import tempfile
from pathlib import Path

import torch
from diffusers import DDIMScheduler, StableDiffusionPipeline
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers import CLIPTokenizer

from samplers import samplers

HERE = Path(__file__).resolve().parent
PROMPTS = ["a photo of an astronaut riding a horse on mars", "a small cat"]
NEGATIVES = ["blurry, low quality", ""]
BETAS = dict(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")


def tokenizer(special_tokens_map=None):
    """CLIP's tokenizer, with a `special_tokens_map.json` where one is given."""
    with tempfile.TemporaryDirectory() as folder:
        shutil.copytree(HERE / "clip-tokenizer", folder, dirs_exist_ok=True)
        if special_tokens_map:
            (Path(folder) / "special_tokens_map.json").write_text(json.dumps(special_tokens_map))
        return CLIPTokenizer.from_pretrained(folder, model_max_length=77)


def sd2_special_tokens():
    """Stable Diffusion 2.x pads with an exclamation mark."""
    token = lambda content: dict(content=content, lstrip=False, normalized=True, rstrip=False, single_word=False)
    return dict(bos_token=token("<|startoftext|>"), eos_token=token("<|endoftext|>"), pad_token="!",
                unk_token=token("<|endoftext|>"))


def randn():
    sizes = [(7,), (15,), (16,), (17,), (1, 4, 8, 8), (2, 4, 9, 11)]
    out = {}
    for seed in (0, 42, 2**31 + 5):
        for size in sizes:
            generator = torch.Generator("cpu").manual_seed(seed)
            out[f"randn.{seed}.{'x'.join(map(str, size))}"] = torch.randn(size, generator=generator)
        generator = torch.Generator("cpu").manual_seed(seed)
        torch.randn((1, 4, 8, 8), generator=generator)
        out[f"randn.{seed}.second"] = torch.randn((1, 4, 8, 8), generator=generator)
    return out


def pipeline(scheduler_config=None):
    """The pipeline in `sd15/`, with another `scheduler_config.json` where one is given."""
    with tempfile.TemporaryDirectory() as folder:
        shutil.copytree(HERE / "sd15", folder, dirs_exist_ok=True)
        shutil.copytree(HERE / "clip-tokenizer", Path(folder) / "tokenizer", dirs_exist_ok=True)
        if scheduler_config:
            (Path(folder) / "scheduler/scheduler_config.json").write_text(json.dumps(scheduler_config))
        pipe = StableDiffusionPipeline.from_pretrained(folder, torch_dtype=torch.float32, tokenizer=tokenizer())
    pipe.set_progress_bar_config(disable=True)
    return pipe


@torch.no_grad()
def sd15():
    path = HERE / "sd15/reference.safetensors"
    out = load_file(path)
    pipe = pipeline()
    text = pipe.text_encoder(out["text_encoder.input_ids"], output_hidden_states=True)
    out["text_encoder.last_hidden_state"] = text.last_hidden_state
    out["unet.output"] = pipe.unet(out["unet.sample"], out["unet.timestep"], out["unet.encoder_hidden_states"]).sample
    posterior = pipe.vae.encode(out["vae.encode.image"]).latent_dist
    out["vae.encode.mean"], out["vae.encode.logvar"] = posterior.mean, posterior.logvar
    out["vae.decode.output"] = pipe.vae.decode(out["vae.decode.latent"]).sample

    def run(n=1, pipe=pipe, **options):
        generator = torch.Generator("cpu").manual_seed(7)
        prompts = dict(prompt=PROMPTS[:n], negative_prompt=NEGATIVES[:n])
        return pipe(**prompts, num_inference_steps=10, guidance_scale=7.5, height=64, width=64, generator=generator,
                    output_type="latent", **options).images

    out["pipeline.latents"] = run()
    out["pipeline.eta1.latents"] = run(eta=1.0)
    out["pipeline.batch2.latents"] = run(n=2)
    out["pipeline.minimal_scheduler.latents"] = run(pipe=pipeline(dict(BETAS, _class_name="DDIMScheduler")))
    decoded = pipe.vae.decode(out["pipeline.latents"] / pipe.vae.config.scaling_factor).sample
    out["pipeline.image"] = (decoded / 2 + 0.5).clamp(0, 1)
    return out


def trajectory(out, case, scheduler, x, steps, eta=0.0):
    """Steps of the model eps(x, t) = 0.3 x + 0.01 sin(t); noise from seed 1."""
    scheduler.set_timesteps(steps)
    generator = torch.Generator("cpu").manual_seed(1)
    out[f"{case}.init"], out[f"{case}.timesteps"] = x, scheduler.timesteps
    for i, t in enumerate(scheduler.timesteps):
        x = scheduler.step(0.3 * x + 0.01 * torch.sin(t.float()), t, x, eta=eta, generator=generator).prev_sample
        out[f"{case}.step{i:02}"] = x


def ddim():
    """One case per option of DDIM."""
    base = dict(BETAS, num_train_timesteps=1000, clip_sample=False)
    betas = [round(0.001 + 0.0002 * i + 0.00001 * (i * i % 7), 8) for i in range(50)]
    cases = {
        "eta": (dict(base, steps_offset=1, set_alpha_to_one=False), 7, 0.7),
        "eta_v": (dict(base, prediction_type="v_prediction"), 5, 1.0),
        "sample": (dict(base, prediction_type="sample"), 5, 0.3),
        "linear": (dict(num_train_timesteps=1000), 9, 0.0),
        "cosine": (dict(base, beta_schedule="squaredcos_cap_v2", timestep_spacing="trailing"), 6, 0.0),
        "linspace": (dict(base, timestep_spacing="linspace"), 7, 0.5),
        "trained": (dict(num_train_timesteps=50, trained_betas=betas, clip_sample=False), 8, 0.0),
        "dynamic": (dict(base, thresholding=True, dynamic_thresholding_ratio=0.9, sample_max_value=1.5), 6, 0.0),
        "dynamic_low": (dict(base, thresholding=True, sample_max_value=0.5), 4, 0.0),
        "clip": (dict(base, clip_sample=True, clip_sample_range=0.8), 6, 0.0),
        "snr_leading": (dict(base, rescale_betas_zero_snr=True), 5, 0.0),
        "one_step": (dict(base, timestep_spacing="linspace"), 1, 0.0),
        "odd_train": (dict(base, num_train_timesteps=997, timestep_spacing="trailing"), 13, 0.0),
    }
    out, metadata = {}, {}
    for case, (config, steps, eta) in cases.items():
        scheduler = DDIMScheduler(**config)
        x = torch.randn(2, 3, 4, 5, generator=torch.Generator().manual_seed(0))
        trajectory(out, case, scheduler, x, steps, eta)
        noise = torch.randn(2, 3, 4, 5, generator=torch.Generator().manual_seed(2))
        middle = scheduler.timesteps[len(scheduler.timesteps) // 2]
        out[f"{case}.alphas_cumprod"] = scheduler.alphas_cumprod
        out[f"{case}.noised"] = scheduler.add_noise(x, noise, middle.repeat(2))
        metadata[case] = json.dumps(dict(config=config, steps=steps, eta=eta))
    return out, metadata


def schedulers():
    """The DDIM cases; their configurations are in the file's metadata."""
    path = HERE / "schedulers.safetensors"
    with safe_open(path, "pt") as file:
        metadata = {case: value for case, value in file.metadata().items() if case.endswith(".DDIMScheduler")}
    out = {}
    for case, value in metadata.items():
        config = json.loads(value)
        steps, seed = config.pop("steps"), config.pop("seed")
        x = torch.randn(1, 4, 8, 8, generator=torch.Generator("cpu").manual_seed(seed))
        scheduler = DDIMScheduler(**config)
        trajectory(out, case, scheduler, x * scheduler.init_noise_sigma, steps)
        out[f"{case}.timesteps"] = out[f"{case}.timesteps"].float()
    return out, metadata


def clip_tokens(name, special_tokens_map):
    texts = [case["text"] for case in json.loads((HERE / name).read_text())]
    clip = tokenizer(special_tokens_map)
    return [dict(text=text, ids=clip(text, padding="max_length", truncation=True).input_ids) for text in texts]


def compare(name, found, expected):
    missing = sorted(set(expected) ^ set(found))
    worst = max((found[key].double() - expected[key].double()).abs().max().item() for key in found if key in expected)
    print(f"{name}: {len(found)} tensors, largest difference {worst:g}" + (f", only one has {missing}" if missing else ""))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true")
    write = parser.parse_args().write
    for name, made in {"torch_randn": randn(), "sd15/reference": sd15(), "ddim": ddim(),
                       "schedulers": schedulers(), "samplers": samplers()}.items():
        tensors, metadata = made if isinstance(made, tuple) else (made, None)
        path = HERE / f"{name}.safetensors"
        if write:
            save_file({key: value.contiguous() for key, value in tensors.items()}, path, metadata)
        else:
            compare(name, tensors, load_file(path))
    for name, special in {"clip_tokens.json": None, "clip_tokens_sd2.json": sd2_special_tokens()}.items():
        made = clip_tokens(name, special)
        if write:
            (HERE / name).write_text(json.dumps(made, indent=0))
        else:
            print(f"{name}:", "equal" if made == json.loads((HERE / name).read_text()) else "different")


if __name__ == "__main__":
    main()
