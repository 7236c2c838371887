"""Makes the references of `families/` with diffusers, transformers and torch: one small pipeline per family and task.

    pip install torch==2.15.0 diffusers==0.42.1 transformers==5.23.0
    python tests/references/make_families.py            # compares with what is here
    python tests/references/make_families.py --write    # writes
    python tests/references/make_families.py --write sdxl lcm    # writes some

The weights are not stored: each is drawn by torch's CPU generator, seeded with its name, and rounded to half precision
(`draw`), which the Rust tests repeat. `<case>.json` holds configurations, names and shapes of the weights, and the calls;
`<case>.safetensors` holds what the calls read and the latents that they make in single precision.
"""

import argparse
import inspect
import json
import zlib
from pathlib import Path

import diffusers
import torch
import torch.nn.functional as F
from diffusers import (AutoencoderKL, AutoencoderTiny, ControlNetModel, DDIMScheduler, LCMScheduler,
                       MultiControlNetModel, PNDMScheduler, UNet2DConditionModel)
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

HERE = Path(__file__).resolve().parent
FOLDER = HERE / "families"
TOKENIZER = HERE.parent.parent / "models/shapes/tokenizer"
PROMPT, NEGATIVE = "a red circle above a blue square", "a small green star"
BETAS = dict(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")
DDIM = dict(BETAS, clip_sample=False, set_alpha_to_one=False, steps_offset=1)
EULER = dict(BETAS, steps_offset=1, timestep_spacing="leading")
LATENTS = 4

WEIGHTED = r"a (red:1.4) circle [above] a ((blue)) square BREAK a \(green\) star"
WEIGHTED_BLOCKS = [
    [["a ", 1.0], ["red", 1.4], [" circle ", 1.0], ["above", 1 / 1.1], [" a ", 1.0], ["blue", 1.21], [" square", 1.0]],
    [["a (green) star", 1.0]],
]
LONG = "a red circle above a blue square on a white background " * 9


def draw(name, shape):
    """Values of a weight: norms near one, all else scaled by its fan-in."""
    generator = torch.Generator("cpu").manual_seed(zlib.crc32(name.encode()))
    values = torch.randn(shape, generator=generator)
    if len(shape) < 2:
        values = values * 0.1 + (1.0 if name.endswith("weight") else 0.0)
    elif "embedding" in name:
        values = values * 0.5
    else:
        fan_in = 1
        for n in shape[1:]:
            fan_in *= n
        values = values * torch.tensor(1.0 / fan_in).sqrt()
    return values.half()


def fill(model, component):
    state = {name: draw(f"{component}.{name}", tuple(value.shape)) for name, value in model.state_dict().items()
             if not name.endswith("position_ids")}
    model.load_state_dict({name: value.float() for name, value in state.items()}, strict=False)
    return model.eval()


def text_encoder(cls=CLIPTextModel, component="text_encoder", **options):
    tokenizer = CLIPTokenizer.from_pretrained(TOKENIZER)
    config = dict(vocab_size=len(tokenizer), hidden_size=32, intermediate_size=48, num_hidden_layers=3,
                  num_attention_heads=4, projection_dim=24, bos_token_id=tokenizer.bos_token_id,
                  eos_token_id=tokenizer.eos_token_id, pad_token_id=1)
    model = fill(cls(CLIPTextConfig(**(config | options))), component)
    if not hasattr(model, "text_model"):
        # transformers 5 has no inner model; diffusers' clip skip looks for its norm there.
        model.__dict__["text_model"] = model
    return model


def unet(**options):
    config = dict(block_out_channels=(16, 32), layers_per_block=1, norm_num_groups=8, attention_head_dim=4,
                  cross_attention_dim=32, sample_size=16, down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
                  up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"))
    return fill(UNet2DConditionModel(**(config | options)), "unet")


def vae(**options):
    config = dict(block_out_channels=(8, 16), layers_per_block=1, norm_num_groups=4, latent_channels=LATENTS,
                  down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2)
    return fill(AutoencoderKL(**(config | options)), "vae")


def controlnet(component, **options):
    config = dict(block_out_channels=(16, 32), layers_per_block=1, norm_num_groups=8, attention_head_dim=4,
                  cross_attention_dim=32, down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
                  conditioning_embedding_out_channels=(8, 12))
    return fill(ControlNetModel(**(config | options)), component)


XL = dict(addition_embed_type="text_time", addition_time_embed_dim=8, cross_attention_dim=72,
          use_linear_projection=True, attention_head_dim=(2, 4), transformer_layers_per_block=(1, 2),
          down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"), up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"))


def xl_encoders():
    second = dict(hidden_size=40, intermediate_size=56, hidden_act="gelu")
    return dict(text_encoder=text_encoder(),
                text_encoder_2=text_encoder(CLIPTextModelWithProjection, "text_encoder_2", **second))


def cases():
    """Per case: class of the pipeline, scheduler, components, extra entries of model_index.json, calls."""
    yield "sd1", "StableDiffusionPipeline", DDIMScheduler(**DDIM), dict(
        text_encoder=text_encoder(),
        unet=unet(block_out_channels=(16, 24, 32), layers_per_block=(1, 2, 1), attention_head_dim=8,
                  down_block_types=("CrossAttnDownBlock2D", "DownBlock2D", "CrossAttnDownBlock2D"),
                  up_block_types=("CrossAttnUpBlock2D", "UpBlock2D", "CrossAttnUpBlock2D"), flip_sin_to_cos=False,
                  freq_shift=1, center_input_sample=True),
        vae=vae(block_out_channels=(8, 12, 16), layers_per_block=2, scaling_factor=0.3,
                down_block_types=("DownEncoderBlock2D",) * 3, up_block_types=("UpDecoderBlock2D",) * 3)), {}, {
        "plain": dict(height=48, width=80),
        "clip_skip": dict(clip_skip=1, seed=[5, 6], batch=2),
        "rescaled": dict(guidance_rescale=0.7, eta=0.5),
        "unguided": dict(guidance_scale=1.0),
        "img2img": dict(task="Img2Img", strength=0.58, num_inference_steps=7, batch=2),
        "img2img_each": dict(task="Img2Img", strength=0.4, num_inference_steps=5, batch=2, seed=[1, 2], eta=1.0),
        "inpaint": dict(task="Inpaint", eta=0.3),
        "inpaint_partly": dict(task="Inpaint", strength=0.5, batch=2, seed=[3, 4], eta=0.3),
        "inpaint_noise": dict(task="Inpaint", strength=0.5, batch=2, seed=[3, 4], fill="noise"),
        "inpaint_zeros": dict(task="Inpaint", strength=0.6, fill="zeros"),
        "weighted": dict(prompt=WEIGHTED, blocks=WEIGHTED_BLOCKS),
        "long": dict(prompt=LONG, blocks=[[[LONG, 1.0]]]),
        "learned": dict(prompt="a <toy> above a blue square", learned=True),
        "variation": dict(variation_seed=11, variation_strength=0.3),
        "hires_latents": dict(hires="latents", hires_scale=1.5, hires_strength=0.6, eta=0.2),
        # Rounding to eight bits in between can turn either way.
        "hires_pixels": dict(hires="pixels", hires_scale=2.0, hires_strength=0.4, tolerance=1e-2),
    }
    yield "sd2", "StableDiffusionPipeline", DDIMScheduler(**(DDIM | dict(
        prediction_type="v_prediction", rescale_betas_zero_snr=True, timestep_spacing="trailing"))), dict(
        text_encoder=text_encoder(hidden_act="gelu", num_hidden_layers=2),
        unet=unet(use_linear_projection=True, attention_head_dim=(2, 4), upcast_attention=True), vae=vae()), {}, {
        "plain": dict(guidance_rescale=0.5), "clip_skip": dict(clip_skip=1),
        "img2img": dict(task="Img2Img", strength=0.5), "inpaint": dict(task="Inpaint"),
    }
    yield "sdxl", "StableDiffusionXLPipeline", DDIMScheduler(**DDIM), dict(
        **xl_encoders(), unet=unet(**XL, projection_class_embeddings_input_dim=24 + 6 * 8),
        vae=vae(scaling_factor=0.13025)), dict(force_zeros_for_empty_prompt=True), {
        "plain": {},
        "zeros": dict(negative=None),
        "sizes": dict(original_size=(70, 90), crops_coords_top_left=(3, 5), target_size=(40, 50), clip_skip=1, batch=2),
        "unguided": dict(guidance_scale=0.0, num_inference_steps=2),
        "img2img": dict(task="Img2Img", strength=0.5),
        "inpaint": dict(task="Inpaint", strength=0.9999),
        "img2img_open": dict(task="Img2Img", guidance_scale=None),
        "inpaint_open": dict(task="Inpaint", guidance_scale=None),
    }
    yield "sdxl-inpaint", "StableDiffusionXLInpaintPipeline", DDIMScheduler(**DDIM), dict(
        **xl_encoders(), unet=unet(**XL, in_channels=9, projection_class_embeddings_input_dim=24 + 6 * 8),
        vae=vae(scaling_factor=0.13025)), dict(force_zeros_for_empty_prompt=True), {
        "whole": dict(task="Inpaint", strength=1.0),
        "open": dict(task="Inpaint", guidance_scale=None),
    }
    yield "variants", "StableDiffusionPipeline", DDIMScheduler(**DDIM), dict(
        text_encoder=text_encoder(), vae=vae(),
        unet=unet(act_fn="swish", mid_block_type="UNetMidBlock2D", cross_attention_dim=(32, 32))), {}, {
        "plain": {},
    }
    # As in SSD-1B and Segmind Vega, transformers of one level differ in depth.
    nested = XL | dict(layers_per_block=2, down_block_types=("CrossAttnDownBlock2D",) * 2,
                       up_block_types=("CrossAttnUpBlock2D",) * 2)
    yield "depths", "StableDiffusionXLPipeline", DDIMScheduler(**DDIM), dict(
        **xl_encoders(), vae=vae(scaling_factor=0.13025), unet=unet(**nested | dict(
            transformer_layers_per_block=[1, [2, 1]], reverse_transformer_layers_per_block=[[1, 2, 3], 1],
            projection_class_embeddings_input_dim=24 + 6 * 8))), dict(force_zeros_for_empty_prompt=True), {
        "plain": {},
    }
    yield "depths-controlnet", "StableDiffusionXLControlNetPipeline", DDIMScheduler(**DDIM), dict(
        **xl_encoders(), vae=vae(scaling_factor=0.13025), unet=unet(**nested | dict(
            transformer_layers_per_block=[2, 1], reverse_transformer_layers_per_block=[1, [2, 0, 1]],
            mid_block_type=None, projection_class_embeddings_input_dim=24 + 6 * 8)),
        controlnet=controlnet("controlnet", **{k: v for k, v in nested.items() if k != "up_block_types"} | dict(
            transformer_layers_per_block=[[1, 2], [2, 1]], projection_class_embeddings_input_dim=24 + 6 * 8))), dict(
        force_zeros_for_empty_prompt=True), {
        "plain": dict(task="ControlNet"),
    }
    second = dict(hidden_size=40, intermediate_size=56, hidden_act="gelu", eos_token_id=2)
    yield "refiner", "StableDiffusionXLImg2ImgPipeline", DDIMScheduler(**DDIM), dict(
        text_encoder_2=text_encoder(CLIPTextModelWithProjection, "text_encoder_2", **second),
        unet=unet(**(XL | dict(cross_attention_dim=40)), projection_class_embeddings_input_dim=24 + 5 * 8),
        vae=vae(scaling_factor=0.13025)), dict(requires_aesthetics_score=True), {
        "img2img": dict(task="Img2Img", strength=0.5),
        "scores": dict(task="Img2Img", strength=0.3, aesthetic_score=7.0, negative_aesthetic_score=1.5),
        "crop": dict(task="Img2Img", strength=0.5, crops_coords_top_left=(2, 3)),
        "inpaint": dict(task="Inpaint", strength=0.7, crops_coords_top_left=(2, 3)),
        "inpaint_open": dict(task="Inpaint", guidance_scale=None),
    }
    yield "inpaint", "StableDiffusionInpaintPipeline", DDIMScheduler(**DDIM), dict(
        text_encoder=text_encoder(), unet=unet(in_channels=9), vae=vae()), {}, {
        "whole": dict(task="Inpaint", eta=1.0),
        "partly": dict(task="Inpaint", strength=0.6, batch=2),
        "noise": dict(task="Inpaint", strength=0.6, fill="noise"),
    }
    yield "lcm", "StableDiffusionPipeline", DDIMScheduler(**DDIM), dict(
        text_encoder=text_encoder(), unet=unet(time_cond_proj_dim=21), vae=vae()), {}, {
        "plain": dict(guidance_scale=8.5, num_inference_steps=4),
    }
    yield "lcm-pipeline", "LatentConsistencyModelPipeline", LCMScheduler(**DDIM), dict(
        text_encoder=text_encoder(), unet=unet(time_cond_proj_dim=24), vae=vae()), {}, {
        "plain": dict(num_inference_steps=4, guidance_scale=8.5, negative=None, batch=2),
        "img2img": dict(task="Img2Img", num_inference_steps=4, guidance_scale=8.5, strength=0.5, negative=None),
    }
    yield "samplers", "StableDiffusionPipeline", PNDMScheduler(**(BETAS | dict(
        skip_prk_steps=True, steps_offset=1))), dict(text_encoder=text_encoder(), unet=unet(), vae=vae()), {}, {
        "pndm": {},
        "pndm_img2img": dict(task="Img2Img", strength=0.6),
        "pndm_inpaint": dict(task="Inpaint"),
        "ddpm": dict(scheduler="ddpm"),
        "euler": dict(scheduler="euler"),
        "euler_img2img": dict(scheduler="euler:karras", task="Img2Img", strength=0.6),
        "euler_a_inpaint": dict(scheduler="euler-a", task="Inpaint"),
        "heun_img2img": dict(scheduler="heun", task="Img2Img", strength=0.6),
        "lms": dict(scheduler="lms"),
        "kdpm2_inpaint": dict(scheduler="kdpm2", task="Inpaint", strength=0.6),
        "dpm_2m": dict(scheduler="dpm++2m:karras"),
        "dpm_2m_sde": dict(scheduler="dpm++2m-sde"),
        "dpm_2m_sde_each": dict(scheduler="dpm++2m-sde", batch=2, seed=[1, 2]),
        "dpm_2m_img2img": dict(scheduler="dpm++2m", task="Img2Img", strength=0.8),
        "dpm_2m_sde_img2img": dict(scheduler="dpm++2m-sde", task="Img2Img", strength=0.8, batch=2, seed=[1, 2]),
        "dpm_2s": dict(scheduler="dpm++2s"),
        "unipc_inpaint": dict(scheduler="unipc", task="Inpaint", strength=0.8),
        "lcm": dict(scheduler="lcm"),
    }
    yield "taesd", "StableDiffusionPipeline", DDIMScheduler(**DDIM), dict(
        text_encoder=text_encoder(), unet=unet(), vae=fill(AutoencoderTiny(
            encoder_block_out_channels=(8, 8), decoder_block_out_channels=(12, 12), num_encoder_blocks=(1, 2),
            num_decoder_blocks=(2, 1)), "vae")), {}, {
        "decoded": dict(decoded=True),
        "img2img": dict(task="Img2Img", strength=0.5),
        "inpaint": dict(task="Inpaint", strength=0.7),
        # A size that only the autoencoder's factor divides.
        "odd_img2img": dict(task="Img2Img", strength=0.5, height=36, width=44, open_size=True),
    }
    yield "controlnet", "StableDiffusionControlNetPipeline", DDIMScheduler(**DDIM), dict(
        text_encoder=text_encoder(), unet=unet(), vae=vae(), controlnet=controlnet("controlnet")), {}, {
        "plain": dict(task="ControlNet", controlnet_conditioning_scale=0.7),
        "partly": dict(task="ControlNet", control_guidance_start=0.2, control_guidance_end=0.7, batch=2),
        "inpaint": dict(task="ControlNetInpaint", strength=0.7),
        "img2img": dict(task="ControlNetImg2Img", strength=0.6),
        "inpaint_open": dict(task="ControlNetInpaint", guidance_scale=None, height=48, width=32, open_size=True),
    }
    yield "controlnets", "StableDiffusionControlNetPipeline", DDIMScheduler(**DDIM), dict(
        text_encoder=text_encoder(), unet=unet(), vae=vae(), controlnet=MultiControlNetModel([
            controlnet("controlnet"),
            controlnet("controlnet_1", controlnet_conditioning_channel_order="bgr")])), {}, {
        "both": dict(task="ControlNet", controlnet_conditioning_scale=[0.7, 1.2], control_guidance_start=[0.0, 0.5],
                     control_guidance_end=[0.6, 1.0]),
    }
    yield "sdxl-controlnet", "StableDiffusionXLControlNetPipeline", DDIMScheduler(**DDIM), dict(
        **xl_encoders(), unet=unet(**XL, projection_class_embeddings_input_dim=24 + 6 * 8),
        vae=vae(scaling_factor=0.13025), controlnet=controlnet(
            "controlnet", **{k: v for k, v in XL.items() if k != "up_block_types"},
            projection_class_embeddings_input_dim=24 + 6 * 8)), dict(force_zeros_for_empty_prompt=True), {
        "plain": dict(task="ControlNet"),
        "img2img": dict(task="ControlNetImg2Img", guidance_scale=None),
        "inpaint": dict(task="ControlNetInpaint", strength=0.7, crops_coords_top_left=(2, 3)),
    }


# What kiln's short names stand for.
SCHEDULERS = {
    "ddpm": ("DDPMScheduler", {}),
    "euler": ("EulerDiscreteScheduler", {}),
    "euler:karras": ("EulerDiscreteScheduler", dict(use_karras_sigmas=True)),
    "euler-a": ("EulerAncestralDiscreteScheduler", {}),
    "heun": ("HeunDiscreteScheduler", {}),
    "lms": ("LMSDiscreteScheduler", {}),
    "kdpm2": ("KDPM2DiscreteScheduler", {}),
    "dpm++2m": ("DPMSolverMultistepScheduler", dict(algorithm_type="dpmsolver++")),
    "dpm++2m:karras": ("DPMSolverMultistepScheduler", dict(algorithm_type="dpmsolver++", use_karras_sigmas=True)),
    "dpm++2m-sde": ("DPMSolverMultistepScheduler", dict(algorithm_type="sde-dpmsolver++")),
    "dpm++2s": ("DPMSolverSinglestepScheduler", dict(algorithm_type="dpmsolver++")),
    "unipc": ("UniPCMultistepScheduler", {}),
    "lcm": ("LCMScheduler", {}),
}


def pipeline_class(base, task):
    stems = ("StableDiffusionXL", "StableDiffusion", "LatentConsistencyModel")
    stem = next(stem for stem in stems if base.startswith(stem))
    return getattr(diffusers, f"{stem}{task}Pipeline")


# Parts of a call that are no arguments of diffusers' pipelines.
OWN = ("prompt", "blocks", "learned", "variation", "hires", "tolerance", "open_size", "fill")


def embeds(pipe, blocks):
    """States of a weighted prompt: blocks of 75 tokens, weights, and the mean put back (lpw_stable_diffusion.py)."""
    tokenizer, room = pipe.tokenizer, 75
    framed = []
    for block in blocks:
        tokens = [(token, weight) for text, weight in block
                  for token in tokenizer(text, add_special_tokens=False, truncation=False).input_ids]
        framed += [tokens[i:i + room] for i in range(0, max(len(tokens), 1), room)]
    states, weights = [], []
    for tokens in framed:
        pad = [tokenizer.pad_token_id] * (room - len(tokens))
        ids = [tokenizer.bos_token_id, *(token for token, _ in tokens), tokenizer.eos_token_id, *pad]
        states.append(pipe.text_encoder(torch.tensor([ids]))[0])
        weights += [1.0, *(weight for _, weight in tokens), 1.0, *[1.0] * len(pad)]
    states, weights = torch.cat(states, dim=1), torch.tensor(weights)[None, :, None]
    return states * weights * (states.mean() / (states * weights).mean())


def slerp(a, b, share):
    """Spherical interpolation in double precision."""
    a, b = a.double(), b.double()
    angle = torch.acos((a * b).sum() / (a.norm() * b.norm()))
    return ((torch.sin((1 - share) * angle) * a + torch.sin(share * angle) * b) / torch.sin(angle)).float()


def refine(pipe, latents, call, options):
    """The second pass: enlarged, then img2img with the generator as the first pass left it."""
    scale, factor = call["hires_scale"], pipe.vae_scale_factor
    size = [int(side * factor * scale / 8 + 0.5) * 8 for side in latents.shape[2:]]
    if call["hires"] == "latents":
        image = F.interpolate(latents, [side // factor for side in size], mode="bilinear")
    else:
        decoded = pipe.vae.decode(latents / pipe.vae.config.scaling_factor).sample
        image = pipe.image_processor.postprocess(decoded, output_type="pil")[0].resize(size[::-1], Image.LANCZOS)
    second = diffusers.StableDiffusionImg2ImgPipeline(**pipe.components, requires_safety_checker=False)
    second.set_progress_bar_config(disable=True)
    keep = ("num_inference_steps", "guidance_scale", "eta", "generator")
    options = {key: value for key, value in options.items() if key in keep}
    return second(PROMPT, negative_prompt=NEGATIVE, image=image, strength=call["hires_strength"], output_type="latent",
                  **options).images


def filled(prepare, scheduler, mask, fill):
    """What inpainting starts from where the web UIs fill latents under the mask with noise or zeros (`inpainting_fill`)."""

    def prepare_latents(*args, timestep, return_image_latents, **kwargs):
        latents, noise, kept = prepare(*args, timestep=timestep, return_image_latents=True, **kwargs)
        at = F.interpolate(mask, size=latents.shape[2:])
        kept = kept * (1 - at) + (noise * at if fill == "noise" else 0)
        made = scheduler.add_noise(kept, noise, timestep), noise
        return (*made, kept) if return_image_latents else made

    return prepare_latents


def make(base, scheduler, components, extra, call, inputs):
    """Latents of one call; what it reads is added to `inputs`."""
    call = dict(call)
    task, batch = call.pop("task", ""), call.pop("batch", 1)
    seed, decoded, negative = call.pop("seed", 7), call.pop("decoded", False), call.pop("negative", NEGATIVE)
    cls = pipeline_class(base, task)
    tokenizer = CLIPTokenizer.from_pretrained(TOKENIZER)
    if call.get("learned"):
        components = components | dict(text_encoder=text_encoder())
    parts = dict(components, scheduler=scheduler, **extra)
    for name in ("tokenizer", "tokenizer_2"):
        parts[name] = tokenizer
    known = inspect.signature(cls.__init__).parameters
    parts = {name: parts.get(name) for name in known if name != "self" and (name in parts or
             known[name].default is inspect.Parameter.empty)}
    if "requires_safety_checker" in known:
        parts["requires_safety_checker"] = False
    pipe = cls(**parts)
    pipe.set_progress_bar_config(disable=True)
    if name := call.pop("scheduler", None):
        other, options = SCHEDULERS[name]
        pipe.scheduler = getattr(diffusers, other).from_config(pipe.scheduler.config, **options)
    size = [call.pop("height", 32), call.pop("width", 32)]
    draws = torch.Generator("cpu").manual_seed(0)
    image, mask = torch.rand(1, 3, *size, generator=draws), (torch.rand(1, 1, *size, generator=draws) > 0.5).float()
    inputs[f"image.{size[0]}x{size[1]}"], inputs[f"mask.{size[0]}x{size[1]}"] = image, mask
    own = {key: call.pop(key) for key in list(call) if key.startswith(OWN)}
    # What is None is left to the pipeline.
    options = dict(num_inference_steps=5, guidance_scale=7.5) | call
    options = {key: value for key, value in options.items() if value is not None}
    if task == "ControlNet":
        n = len(pipe.controlnet.nets) if isinstance(pipe.controlnet, MultiControlNetModel) else 0
        options["image"] = [image, 1 - image][:n] if n else image
    elif task:
        options["image"] = image
    if task.startswith("ControlNet") and task != "ControlNet":
        options["control_image"] = 1 - image
    if "Inpaint" in task:
        options |= dict(mask_image=mask)
        if "open_size" not in own:
            options |= dict(height=size[0], width=size[1])
    elif task in ("", "ControlNet"):
        options |= dict(height=size[0], width=size[1])
    seeds = [torch.Generator("cpu").manual_seed(s) for s in (seed if isinstance(seed, list) else [seed])]
    options["generator"] = seeds if isinstance(seed, list) else seeds[0]
    negatives = None if negative is None else [negative] * batch
    prompts = dict(prompt=[own.get("prompt", PROMPT)] * batch, negative_prompt=negatives)
    if base.startswith("LatentConsistency"):
        del prompts["negative_prompt"]
    with torch.no_grad():
        if "blocks" in own:
            positive = embeds(pipe, own["blocks"])
            negative = embeds(pipe, [[[negative, 1.0]], [["", 1.0]]])
            prompts = dict(prompt_embeds=positive, negative_prompt_embeds=negative)
        if "learned" in own:
            inputs["learned"] = torch.randn(3, 32, generator=draws) * 0.5
            pipe.load_textual_inversion({"<toy>": inputs["learned"]})
        if "variation_seed" in own:
            shape = (1, LATENTS, *(side // pipe.vae_scale_factor for side in size))
            noise = [torch.randn(shape, generator=torch.Generator().manual_seed(s)) for s in (seed, own["variation_seed"])]
            options["latents"] = slerp(*noise, own["variation_strength"])
        if "fill" in own:
            pipe.prepare_latents = filled(pipe.prepare_latents, pipe.scheduler, mask, own["fill"])
        images = pipe(**prompts, output_type="pt" if decoded else "latent", **options).images
        return refine(pipe, images, own, options) if "hires" in own else images


def parts_of(components):
    for name, model in components.items():
        if isinstance(model, MultiControlNetModel):
            yield from ((f"{name}_{i}" if i else name, net) for i, net in enumerate(model.nets))
        else:
            yield name, model


def scheduler_file(scheduler):
    """scheduler_config.json, which gives every key, also those that have their default."""
    config = {key: value for key, value in scheduler.config.items() if not key.startswith("_")}
    return dict(config, _class_name=type(scheduler).__name__)


def describe(base, scheduler, components, extra, calls):
    index = {"_class_name": base, "scheduler": ["diffusers", type(scheduler).__name__], **extra}
    for name, model in components.items():
        library = "transformers" if name.startswith("text") else "diffusers"
        index[name] = [library, type(model).__name__]
    parts = {}
    for name, model in parts_of(components):
        config = model.config.to_diff_dict() if name.startswith("text") else dict(model.config)
        config = {key: value for key, value in config.items() if not key.startswith("_")}
        if not name.startswith("text"):
            config["_class_name"] = type(model).__name__
        parts[name] = dict(config=config, weights={
            weight: list(value.shape) for weight, value in model.state_dict().items()
            if not weight.endswith("position_ids")})
    return dict(index=index, scheduler=scheduler_file(scheduler), components=parts, prompt=PROMPT, negative=NEGATIVE, calls=calls)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true")
    parser.add_argument("names", nargs="*", help="cases; all by default")
    args = parser.parse_args()
    for name, base, scheduler, components, extra, calls in cases():
        if args.names and name not in args.names:
            continue
        scheduler = type(scheduler).from_config(scheduler_file(scheduler))
        tensors = {}
        for call, options in calls.items():
            inputs = {}
            tensors[f"{call}.latents"] = make(base, scheduler, components, extra, options, inputs).contiguous()
            tensors |= inputs
        path = FOLDER / f"{name}.safetensors"
        if args.write:
            FOLDER.mkdir(exist_ok=True)
            save_file(tensors, path)
            path.chmod(0o644)
            text = json.dumps(describe(base, scheduler, components, extra, calls), sort_keys=True)
            path.with_suffix(".json").write_text(text + "\n")
            print(name, {key: list(value.shape) for key, value in tensors.items()})
        else:
            stored = load_file(path)
            worst = max((stored[key] - value).abs().max().item() for key, value in tensors.items())
            print(f"{name}: {len(tensors)} tensors, largest difference {worst:g}")


if __name__ == "__main__":
    main()
