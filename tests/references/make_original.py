"""Makes original.json.gz: single-file checkpoints key by key, as diffusers reads them.

    pip install torch==2.15.0 diffusers==0.42.1 transformers==5.23.0
    python tests/references/make_original.py            # proves the layout with diffusers, compares with what is here
    python tests/references/make_original.py --write    # writes

For each model: `keys`, the tensors of the file and their shapes; `weights`, by component and canonical name, the key that a
weight is stored under, or `[key, first row, is transposed, shape]` where it is not that tensor as it is; `configs`, all keys of
each component's configuration; `defaults`, those of its class.

The keys are those of the published models, made from their configurations by turning diffusers' conversion tables around.
`weights` comes from diffusers' own conversion: it is given tensors whose every row says which tensor and row it is. And a
small pipeline of each family, written as one file, is loaded back with `from_single_file` and compared weight by weight.
"""

import argparse
import gzip
import inspect
import json
import re
import shutil
import tempfile
from pathlib import Path

import diffusers
import torch
from diffusers import (AutoencoderKL, ControlNetModel, DDIMScheduler, StableDiffusionPipeline,
                       StableDiffusionXLImg2ImgPipeline, StableDiffusionXLPipeline, UNet2DConditionModel)
from diffusers.loaders import single_file_utils as single
from safetensors.torch import save_file
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer, PretrainedConfig

HERE = Path(__file__).resolve().parent
ROWS = 1 << 17
CROSS, PLAIN = "CrossAttnDownBlock2D", "DownBlock2D"


def unet(channels, attends, heads, context, sample_size, **more):
    down = [CROSS if on else PLAIN for on in attends]
    up = [name.replace("Down", "Up") for name in reversed(down)]
    return dict(block_out_channels=channels, down_block_types=down, up_block_types=up, attention_head_dim=heads,
                cross_attention_dim=context, sample_size=sample_size, **more)


def vae(channels, layers, sample_size, scaling_factor=0.18215):
    n = len(channels)
    return dict(block_out_channels=channels, down_block_types=["DownEncoderBlock2D"] * n,
                up_block_types=["UpDecoderBlock2D"] * n, layers_per_block=layers, latent_channels=4,
                sample_size=sample_size, scaling_factor=scaling_factor)


def clip(hidden, inner, heads, layers, act, projection, vocab=49408):
    return dict(hidden_size=hidden, intermediate_size=inner, num_attention_heads=heads, num_hidden_layers=layers,
                hidden_act=act, projection_dim=projection, vocab_size=vocab, bos_token_id=0, eos_token_id=2,
                pad_token_id=1)


def text_time(dim, added, **more):
    return dict(addition_embed_type="text_time", addition_time_embed_dim=dim, use_linear_projection=True,
                projection_class_embeddings_input_dim=added, **more)


def models():
    """Configurations as they are published, and small ones of the same families."""
    big, xl = [320, 640, 1280, 1280], [320, 640, 1280]
    refiner = [384, 768, 1536, 1536]
    openai = clip(768, 3072, 12, 12, "quick_gelu", 768)
    small_vae = vae([32, 64], 1, 512)
    folder = {name: json.loads((HERE / f"sd15/{name}/config.json").read_text()) for name in ("unet", "vae", "text_encoder")}
    own = lambda name, cls: {k: v for k, v in folder[name].items() if k in inspect.signature(cls).parameters}
    return {
        "sd15": dict(unet=unet(big, [1, 1, 1, 0], 8, 768, 64), vae=vae([128, 256, 512, 512], 2, 512),
                     text_encoder=openai),
        "sd21": dict(unet=unet(big, [1, 1, 1, 0], [5, 10, 20, 20], 1024, 96, use_linear_projection=True,
                               upcast_attention=True),
                     vae=vae([128, 256, 512, 512], 2, 768), text_encoder=clip(1024, 4096, 16, 23, "gelu", 512)),
        "sdxl": dict(unet=unet(xl, [0, 1, 1], [5, 10, 20], 2048, 128, transformer_layers_per_block=[1, 2, 10],
                               **text_time(256, 2816)),
                     vae=vae([128, 256, 512, 512], 2, 1024, 0.13025), text_encoder=openai,
                     text_encoder_2=clip(1280, 5120, 20, 32, "gelu", 1280)),
        "refiner": dict(unet=unet(refiner, [0, 1, 1, 0], [6, 12, 24, 24], 1280, 128, transformer_layers_per_block=4,
                                  **text_time(256, 2560)),
                        vae=vae([128, 256, 512, 512], 2, 1024, 0.13025),
                        text_encoder_2=clip(1280, 5120, 20, 32, "gelu", 1280)),
        "controlnet": dict(controlnet=dict(block_out_channels=big, down_block_types=[CROSS] * 3 + [PLAIN],
                                           attention_head_dim=8, cross_attention_dim=768)),
        "sd15-small": dict(unet=own("unet", UNet2DConditionModel) | dict(sample_size=256),
                           vae=own("vae", AutoencoderKL) | dict(sample_size=512),
                           text_encoder=clip(32, 69, 1, 3, "quick_gelu", 32)),
        "sd21-small": dict(unet=unet([64, 128], [1, 0], [1, 2], 64, 384, use_linear_projection=True, layers_per_block=1,
                                     upcast_attention=True),
                           vae=vae([32, 64], 1, 768), text_encoder=clip(64, 80, 1, 2, "gelu", 512, vocab=1000)),
        "sdxl-small": dict(unet=unet([64, 128], [0, 1], [1, 2], 32 + 64, 512, layers_per_block=1,
                                     transformer_layers_per_block=2, **text_time(8, 40 + 48)),
                           vae=vae([32, 64], 1, 1024, 0.13025), text_encoder=clip(32, 69, 1, 2, "quick_gelu", 32, 1000),
                           text_encoder_2=clip(64, 80, 1, 2, "gelu", 40, 1000)),
        "refiner-small": dict(unet=unet([64, 128, 128], [0, 1, 0], [1, 2, 2], 64, 512, layers_per_block=1,
                                        **text_time(8, 48 + 40)),
                              vae=vae([32, 64], 1, 1024, 0.13025), text_encoder_2=clip(64, 80, 1, 2, "gelu", 48, 1000)),
    }


CLIP_KEYS = inspect.signature(CLIPTextConfig).parameters.keys() - inspect.signature(PretrainedConfig).parameters.keys()
CLASSES = dict(unet=UNet2DConditionModel, vae=AutoencoderKL, controlnet=ControlNetModel)


def build(component, config):
    if component == "text_encoder":
        return CLIPTextModel(CLIPTextConfig(**config))
    if component == "text_encoder_2":
        return CLIPTextModelWithProjection(CLIPTextConfig(**config))
    return CLASSES[component](**config)


def full_config(component, model):
    if component.startswith("text_encoder"):
        return {k: v for k, v in model.config.to_dict().items() if k in CLIP_KEYS}
    return {k: v for k, v in dict(model.config).items() if not k.startswith("_")}


def defaults(component):
    cls = CLIPTextConfig if component.startswith("text_encoder") else CLASSES[component]
    parameters = inspect.signature(cls).parameters.values()
    return {p.name: p.default for p in parameters if p.default is not p.empty}


# --- diffusers' names to the original ones


RESNET = dict(norm1="in_layers.0", conv1="in_layers.2", time_emb_proj="emb_layers.1", norm2="out_layers.0",
              conv2="out_layers.3", conv_shortcut="skip_connection")


def denoiser_key(name, config, table):
    for section in ("layers", "addition_embed_type"):
        if name in table[section]:
            return table[section][name]
    layers, n = config["layers_per_block"], len(config["block_out_channels"])
    if match := re.fullmatch(r"(down|up)_blocks\.(\d+)\.(resnets|attentions|downsamplers|upsamplers)\.(\d+)\.(.+)", name):
        half, block, kind, i, rest = match[1], int(match[2]), match[3], int(match[4]), match[5]
        attends = "CrossAttn" in config[f"{half}_block_types"][block]
        first = 1 + block * (layers + 1) if half == "down" else block * (layers + 1)
        side = "input_blocks" if half == "down" else "output_blocks"
        if kind == "downsamplers":
            return f"{side}.{first + layers}.0.op.{rest.removeprefix('conv.')}"
        if kind == "upsamplers":
            return f"{side}.{first + layers}.{2 if attends else 1}.{rest}"
        if kind == "attentions":
            return f"{side}.{first + i}.1.{rest}"
        part, rest = rest.split(".", 1)
        return f"{side}.{first + i}.0.{RESNET[part]}.{rest}"
    if match := re.fullmatch(r"mid_block\.resnets\.(\d)\.(\w+)\.(.+)", name):
        return f"middle_block.{2 * int(match[1])}.{RESNET[match[2]]}.{match[3]}"
    if match := re.fullmatch(r"mid_block\.attentions\.0\.(.+)", name):
        return f"middle_block.1.{match[1]}"
    if match := re.fullmatch(r"controlnet_down_blocks\.(\d+)\.(.+)", name):
        return f"zero_convs.{match[1]}.0.{match[2]}"
    if match := re.fullmatch(r"controlnet_mid_block\.(.+)", name):
        return f"middle_block_out.0.{match[1]}"
    if match := re.fullmatch(r"controlnet_cond_embedding\.blocks\.(\d+)\.(.+)", name):
        return f"input_hint_block.{2 * int(match[1]) + 2}.{match[2]}"
    raise KeyError(name)


def vae_key(name, config):
    table = single.DIFFUSERS_TO_LDM_MAPPING["vae"]
    if name in table:
        return table[name]
    n = len(config["block_out_channels"])
    name = name.replace("conv_shortcut", "nin_shortcut")
    name = re.sub(r"mid_block\.resnets\.(\d)", lambda m: f"mid.block_{int(m[1]) + 1}", name)
    name = re.sub(r"down_blocks\.(\d+)\.resnets", r"down.\1.block", name)
    name = re.sub(r"down_blocks\.(\d+)\.downsamplers\.0", r"down.\1.downsample", name)
    name = re.sub(r"up_blocks\.(\d+)\.resnets", lambda m: f"up.{n - 1 - int(m[1])}.block", name)
    name = re.sub(r"up_blocks\.(\d+)\.upsamplers\.0", lambda m: f"up.{n - 1 - int(m[1])}.upsample", name)
    for old, new in dict(group_norm="norm", to_q="q", to_k="k", to_v="v").items():
        name = re.sub(rf"mid_block\.attentions\.0\.{old}\.", f"mid.attn_1.{new}.", name)
    return name.replace("mid_block.attentions.0.to_out.0.", "mid.attn_1.proj_out.")


def nested(name):
    return name if name.startswith(("text_model.", "text_projection")) else f"text_model.{name}"


def open_clip(state, sd2):
    """OpenCLIP's tensors, with the last layer and the projection that Stable Diffusion 2's files hold and nobody reads."""
    out, maps = {}, single.DIFFUSERS_TO_LDM_MAPPING["openclip"]
    for name, value in state.items():
        name = nested(name)
        if name in maps["layers"]:
            out[maps["layers"][name]] = value.T.contiguous() if name == "text_projection.weight" else value
        elif match := re.fullmatch(r"text_model\.encoder\.layers\.(\d+)\.self_attn\.q_proj\.(weight|bias)", name):
            parts = [state.get(name.replace("q_proj", f"{p}_proj"), state.get(
                name.removeprefix("text_model.").replace("q_proj", f"{p}_proj"))) for p in "qkv"]
            out[f"transformer.resblocks.{match[1]}.attn.in_proj_{match[2]}"] = torch.cat(parts)
        elif not re.search(r"\.[kv]_proj\.", name):
            key = name.removeprefix("text_model.encoder.layers.").replace("layer_norm", "ln_").replace("fc1", "c_fc")
            out[f"transformer.resblocks.{key.replace('fc2', 'c_proj').replace('self_attn', 'attn')}"] = value
    if sd2:
        width = out["ln_final.weight"].shape[0]
        last = [key for key in out if key.startswith("transformer.resblocks.0.")]
        if len(last) * 23 == sum(key.startswith("transformer.") for key in out):
            out.update({key.replace(".0.", ".23.", 1): out[key].clone() for key in last})
        out["text_projection"] = torch.zeros(width, width, device=out["ln_final.weight"].device)
    return out


def original(states, configs):
    """All tensors of the single file."""
    out, tables = {}, single.DIFFUSERS_TO_LDM_MAPPING
    is_xl, is_sd2 = "text_encoder_2" in states, configs.get("unet", {}).get("use_linear_projection")
    for component, state in states.items():
        config = configs[component]
        if component in ("unet", "controlnet"):
            prefix = "model.diffusion_model." if component == "unet" else "control_model."
            out |= {prefix + denoiser_key(name, config, tables[component]): v for name, v in state.items()}
        elif component == "vae":
            for name, value in state.items():
                attends = "mid_block.attentions" in name and value.ndim == 2
                out["first_stage_model." + vae_key(name, config)] = value[:, :, None, None] if attends else value
        elif component == "text_encoder_2":
            at = 1 if "text_encoder" in states else 0
            out |= {f"conditioner.embedders.{at}.model.{key}": v for key, v in open_clip(state, False).items()}
        elif is_sd2 and not is_xl:
            out |= {f"cond_stage_model.model.{key}": v for key, v in open_clip(state, True).items()}
        else:
            prefix = "conditioner.embedders.0.transformer." if is_xl else "cond_stage_model.transformer."
            out |= {prefix + nested(name): v for name, v in state.items()}
    return out


# --- what diffusers makes of them


def converted(component, file, config):
    if component == "unet":
        return single.convert_ldm_unet_checkpoint(dict(file), config)
    if component == "controlnet":
        return single.convert_controlnet_checkpoint(dict(file), config)
    if component == "vae":
        return single.convert_ldm_vae_checkpoint(dict(file), config)
    for prefix in ("conditioner.embedders.1.model.", "conditioner.embedders.0.model.", "cond_stage_model.model."):
        is_mine = prefix.startswith("cond_stage") or component == "text_encoder_2"
        if is_mine and any(key.startswith(prefix) for key in file):
            return single.convert_open_clip_checkpoint(None, dict(file), prefix=prefix)
    return single.convert_ldm_clip_checkpoint(dict(file))


def views(file, states, configs):
    """By component and name, where diffusers' conversion takes a weight from."""
    numbers = {key: i for i, key in enumerate(file)}
    by_number = list(file)

    def tagged(key, shape):
        rows = torch.arange(shape[0], dtype=torch.int64) + numbers[key] * ROWS
        return rows.reshape(-1, *[1] * (len(shape) - 1)).expand(shape)

    tags = {key: tagged(key, value.shape) for key, value in file.items()}
    out = {}
    for component, state in states.items():
        found = converted(component, tags, configs[component])
        found = {k.removeprefix("text_model."): v for k, v in found.items()}
        weights = out[component] = {}
        for name, value in state.items():
            name, view = name.removeprefix("text_model."), found[name.removeprefix("text_model.")]
            assert view.shape == value.shape, (name, view.shape, value.shape)
            start = view[(0,) * view.ndim].item()
            key, first = by_number[start // ROWS], start % ROWS
            is_transposed = view.ndim == 2 and view.shape[1] > 1 and view[0, 1].item() != start
            rows = view.T if is_transposed else view
            assert torch.equal(rows.reshape(rows.shape[0], -1)[:, 0], torch.arange(rows.shape[0]) + start), name
            assert torch.equal(rows, rows.reshape(rows.shape[0], -1)[:, :1].reshape(-1, *[1] * (rows.ndim - 1)).expand(rows.shape))
            plain = first == 0 and not is_transposed and view.shape == file[key].shape
            weights[name] = key if plain else [key, first, is_transposed, list(view.shape)]
    return out


def table(configs):
    with torch.device("meta"):
        built = {component: build(component, config) for component, config in configs.items()}
    states = {component: model.state_dict() for component, model in built.items()}
    full = {component: full_config(component, model) for component, model in built.items()}
    file = original(states, full)
    return dict(keys={key: list(value.shape) for key, value in file.items()}, weights=views(file, states, full),
                configs=full)


# --- the proof


def prove(name, configs):
    """Loads a random pipeline back from its single file."""
    torch.manual_seed(0)
    parts = {component: build(component, config).eval() for component, config in configs.items()}
    with tempfile.TemporaryDirectory() as temporary:
        folder, path = Path(temporary) / "folder", Path(temporary) / "model.safetensors"
        shutil.copytree(HERE / "clip-tokenizer", Path(temporary) / "tokenizer")
        tokenizer = CLIPTokenizer.from_pretrained(Path(temporary) / "tokenizer", model_max_length=77)
        cls = StableDiffusionPipeline
        more = dict(safety_checker=None, feature_extractor=None, tokenizer=tokenizer)
        if "text_encoder_2" in parts:
            has_first = "text_encoder" in parts
            cls = StableDiffusionXLPipeline if has_first else StableDiffusionXLImg2ImgPipeline
            more = dict(tokenizer=tokenizer if has_first else None, tokenizer_2=tokenizer)
            if not has_first:
                more["text_encoder"] = None
        cls(**parts, scheduler=DDIMScheduler(), **more).save_pretrained(folder)
        full = {component: full_config(component, model) for component, model in parts.items()}
        states = {component: model.state_dict() for component, model in parts.items()}
        save_file({k: v.clone().contiguous() for k, v in original(states, full).items()}, path)
        loaded = cls.from_single_file(path, config=str(folder), local_files_only=True)
        for component, state in states.items():
            again = getattr(loaded, component).state_dict()
            assert again.keys() == state.keys()
            assert all(torch.equal(again[key], value) for key, value in state.items()), component
            print(f"{name}: {component}: diffusers loads {len(state)} weights back")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true")
    write = parser.parse_args().write
    found = models()
    for name in ("sd15-small", "sd21-small", "sdxl-small", "refiner-small"):
        prove(name, found[name])
    made = {name: table(configs) for name, configs in found.items()}
    made = dict(models=made, defaults={name: defaults(name) for name in ("unet", "vae", "controlnet", "text_encoder")})
    text = json.dumps(made, separators=(",", ":"), sort_keys=True)
    path = HERE / "original.json.gz"
    if write:
        path.write_bytes(gzip.compress(text.encode(), 9, mtime=0))
    else:
        print("original.json.gz:", "equal" if gzip.decompress(path.read_bytes()).decode() == text else "different")
    for name, model in made["models"].items():
        print(f"{name}: {len(model['keys'])} keys, {sum(map(len, model['weights'].values()))} weights")


if __name__ == "__main__":
    main()
