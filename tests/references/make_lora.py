"""Makes `lora.json` and `lora.safetensors` with diffusers, transformers, peft and torch.

    pip install torch==2.15.0 diffusers==0.42.1 transformers==5.23.0 peft==0.21.2
    python tests/references/make_lora.py            # compares with what is here
    python tests/references/make_lora.py --write    # writes

Each case loads LoRA files of one naming into a pipeline with `load_lora_weights`, fuses them with `fuse_lora` and runs it.
The files are not stored: `lora.json` holds names and shapes of their tensors, whose values are drawn as in
`make_families.py`, and the weights that they change; `lora.safetensors` holds eight elements of each fused weight and the
latents that the pipeline makes, all in single precision.
"""

import argparse
import json
import shutil
import tempfile
from pathlib import Path

import torch
from diffusers import StableDiffusionPipeline, StableDiffusionXLPipeline
from safetensors.torch import load_file, save_file
from transformers import CLIPTokenizer

import make
import make_families
from make_families import draw

HERE = Path(__file__).resolve().parent
PROBES = 8
ATTENTION = "down_blocks.0.attentions.0"
TRANSFORMER = f"{ATTENTION}.transformer_blocks.0"
LINEAR = [f"{ATTENTION}.proj_in", f"{ATTENTION}.proj_out", f"{TRANSFORMER}.attn1.to_q", f"{TRANSFORMER}.attn2.to_k",
          f"{TRANSFORMER}.attn2.to_v", f"{TRANSFORMER}.attn1.to_out.0", f"{TRANSFORMER}.ff.net.0.proj",
          f"{TRANSFORMER}.ff.net.2", "mid_block.attentions.0.transformer_blocks.0.attn2.to_out.0"]
CONVOLUTIONS = ["conv_in", "conv_out", "down_blocks.0.resnets.0.conv1", "down_blocks.1.resnets.0.conv2",
                "down_blocks.1.resnets.0.conv_shortcut", "down_blocks.0.downsamplers.0.conv",
                "up_blocks.0.upsamplers.0.conv", "mid_block.resnets.1.conv1", "up_blocks.0.resnets.1.time_emb_proj",
                "time_embedding.linear_1", "time_embedding.linear_2"]
TEXT = ["encoder.layers.0.self_attn.q_proj", "encoder.layers.1.self_attn.out_proj", "encoder.layers.1.mlp.fc1",
        "encoder.layers.0.mlp.fc2"]
ATTENDS = [f"{TRANSFORMER}.attn1.to_q", f"{TRANSFORMER}.attn2.to_k", f"{TRANSFORMER}.attn2.to_v",
           f"{TRANSFORMER}.attn1.to_out.0"]
PROJECTIONS = ["encoder.layers.0.self_attn.q_proj", "encoder.layers.1.self_attn.v_proj",
               "encoder.layers.1.self_attn.out_proj"]
# Modules of SDXL in the names of the original code, and diffusers'.
ORIGINAL = {
    "input_blocks_0_0": "conv_in", "out_2": "conv_out", "time_embed_0": "time_embedding.linear_1",
    "label_emb_0_2": "add_embedding.linear_2", "input_blocks_1_0_in_layers_2": "down_blocks.0.resnets.0.conv1",
    "input_blocks_1_0_emb_layers_1": "down_blocks.0.resnets.0.time_emb_proj",
    "input_blocks_2_0_op": "down_blocks.0.downsamplers.0.conv",
    "input_blocks_3_0_skip_connection": "down_blocks.1.resnets.0.conv_shortcut",
    "input_blocks_3_1_proj_in": "down_blocks.1.attentions.0.proj_in",
    "input_blocks_3_1_transformer_blocks_1_attn1_to_q": "down_blocks.1.attentions.0.transformer_blocks.1.attn1.to_q",
    "middle_block_0_out_layers_3": "mid_block.resnets.0.conv2",
    "middle_block_1_transformer_blocks_0_attn2_to_out_0": "mid_block.attentions.0.transformer_blocks.0.attn2.to_out.0",
    "middle_block_2_in_layers_2": "mid_block.resnets.1.conv1",
    "output_blocks_0_1_transformer_blocks_1_ff_net_0_proj": "up_blocks.0.attentions.0.transformer_blocks.1.ff.net.0.proj",
    "output_blocks_1_2_conv": "up_blocks.0.upsamplers.0.conv",
    "output_blocks_2_0_in_layers_2": "up_blocks.1.resnets.0.conv1",
}


def kohya(stem):
    return f"{stem}.lora_down.weight", f"{stem}.lora_up.weight"


def underscored(prefix):
    return lambda module: kohya(prefix + module.replace(".", "_"))


def dotted(prefix, down, up):
    return lambda module: (f"{prefix}{module}.{down}.weight", f"{prefix}{module}.{up}.weight")


def processors(prefix, names):
    def keys(module):
        parent = module.rsplit(".", 2 if module.endswith(".0") else 1)[0]
        name = next(new for old, new in names.items() if module.endswith(old))
        return f"{prefix}{parent}.{name}.down.weight", f"{prefix}{parent}.{name}.up.weight"
    return keys


UNET_PROCESSORS = {"to_q": "processor.to_q_lora", "to_k": "processor.to_k_lora", "to_v": "processor.to_v_lora",
                   "to_out.0": "processor.to_out_lora"}
TEXT_PROCESSORS = {"q_proj": "to_q_lora", "k_proj": "to_k_lora", "v_proj": "to_v_lora", "out_proj": "to_out_lora"}


def canonical(state):
    """Text encoders' names without the prefix that some classes have."""
    return {name.removeprefix("text_model."): value for name, value in state.items()}


def lora(pipe, parts, alpha=None, rank=2, metadata=None):
    """A file: names and shapes of its tensors, by component, modules and naming of each part."""
    tensors, alphas = {}, {}
    for component, modules, naming in parts:
        for i, module in enumerate(modules):
            state = canonical(getattr(pipe, component).state_dict())
            weight = state[f"{ORIGINAL.get(module, module)}.weight"]
            # All of peft's layers have one rank where the header speaks for them.
            r = rank if metadata else rank + i % 2
            kernel = [1] * (weight.ndim - 2)
            down, up = naming(module)
            tensors[down], tensors[up] = [r, *weight.shape[1:]], [weight.shape[0], r, *kernel]
            if alpha is not None:
                alphas[down.replace(".lora_down.weight", ".alpha")] = alpha
    return dict(tensors=tensors, alphas=alphas, metadata=metadata or {})


def state_dict(case, index, file):
    state = {key: draw(f"{case}.{index}.{key}", shape) for key, shape in file["tensors"].items()}
    return state | {key: torch.tensor(alpha) for key, alpha in file["alphas"].items()}


def cases(sd15, sdxl):
    """Per case: model, files, weights of the files."""
    kohya_file = lora(sd15, [("unet", LINEAR, underscored("lora_unet_")),
                             ("text_encoder", TEXT, underscored("lora_te_text_model_"))], alpha=1.5, rank=3)
    peft_file = lora(sd15, [("unet", LINEAR[::2], dotted("unet.", "lora_A", "lora_B")),
                            ("text_encoder", TEXT, dotted("text_encoder.text_model.", "lora_A", "lora_B"))])
    settings = {"r": 4, "lora_alpha": 6, "rank_pattern": {}, "target_modules": LINEAR[2:6],
                "alpha_pattern": {f"{TRANSFORMER}.attn2.to_k": 2, "attn1.to_out.0": 3}}
    yield "kohya", "sd15", [kohya_file], [1.0]
    yield "convolutions", "sd15", [lora(sd15, [("unet", CONVOLUTIONS, underscored("lora_unet_"))], alpha=1)], [0.8]
    yield "peft", "sd15", [peft_file], [1.0]
    yield "diffusers", "sd15", [lora(sd15, [
        ("unet", LINEAR[2:6], dotted("unet.", "lora.down", "lora.up")),
        ("text_encoder", TEXT, dotted("text_encoder.text_model.", "lora_linear_layer.down", "lora_linear_layer.up")),
    ])], [1.0]
    yield "processors", "sd15", [lora(sd15, [
        ("unet", ATTENDS, processors("unet.", UNET_PROCESSORS)),
        ("text_encoder", PROJECTIONS, processors("text_encoder.text_model.", TEXT_PROCESSORS)),
    ])], [0.5]
    yield "adapter", "sd15", [lora(sd15, [("unet", LINEAR[2:6], dotted("unet.", "lora_A", "lora_B"))], rank=4, metadata={
        "lora_adapter_metadata": json.dumps({f"unet.{key}": value for key, value in settings.items()})})], [1.0]
    yield "several", "sd15", [kohya_file, peft_file], [0.7, -0.4]
    yield "original", "sdxl", [lora(sdxl, [
        ("unet", list(ORIGINAL), lambda stem: kohya(f"lora_unet_{stem}")),
        ("text_encoder", TEXT, underscored("lora_te1_text_model_")),
        # Nothing depends on the last layer of SDXL's first encoder.
        ("text_encoder", ["encoder.layers.2.mlp.fc1"], underscored("lora_te1_text_model_")),
        ("text_encoder_2", TEXT, underscored("lora_te2_text_model_")),
    ], alpha=1)], [1.0]
    yield "second_encoder", "sdxl", [lora(sdxl, [
        ("text_encoder_2", TEXT, dotted("text_encoder_2.text_model.", "lora_A", "lora_B")),
        ("text_encoder_2", ["text_projection"], dotted("text_encoder_2.", "lora_A", "lora_B")),
    ])], [1.0]


def load(model):
    if model == "sdxl":
        _, _, scheduler, components, extra, _ = next(case for case in make_families.cases() if case[0] == model)
        # diffusers' loader takes what make_families adds for its clip skip for an older class.
        components["text_encoder"].__dict__.pop("text_model", None)
        tokenizer = CLIPTokenizer.from_pretrained(make_families.TOKENIZER)
        scheduler = type(scheduler).from_config(make_families.scheduler_file(scheduler))
        return StableDiffusionXLPipeline(tokenizer=tokenizer, tokenizer_2=tokenizer, scheduler=scheduler, **components,
                                         **extra)
    with tempfile.TemporaryDirectory() as folder:
        shutil.copytree(HERE / "sd15", folder, dirs_exist_ok=True)
        shutil.copytree(HERE / "clip-tokenizer", Path(folder) / "tokenizer", dirs_exist_ok=True)
        return StableDiffusionPipeline.from_pretrained(folder, torch_dtype=torch.float32, tokenizer=make.tokenizer())


def encoders(pipe):
    return [name for name in ("unet", "text_encoder", "text_encoder_2") if getattr(pipe, name, None) is not None]


@torch.no_grad()
def run(case, model, files, weights):
    pipe, base = load(model), load(model)
    # One after the other: transformers forgets a text encoder's first adapter when it loads a second.
    with tempfile.TemporaryDirectory() as folder:
        for i, file in enumerate(files):
            save_file(state_dict(case, i, file), Path(folder) / f"{i}.safetensors", file["metadata"])
            pipe.load_lora_weights(folder, weight_name=f"{i}.safetensors", adapter_name=f"lora{i}")
            pipe.set_adapters([f"lora{i}"], [weights[i]])
            pipe.fuse_lora(components=encoders(pipe), adapter_names=[f"lora{i}"])
            pipe.unload_lora_weights()
    out, changed = {}, {}
    for component in encoders(pipe):
        before, after = (canonical(getattr(p, component).state_dict()) for p in (base, pipe))
        changed[component] = sorted(name for name in before if not torch.equal(before[name], after[name]))
        for name in changed[component]:
            flat = after[name].flatten()
            at = [k * (len(flat) - 1) // (PROBES - 1) for k in range(PROBES)]
            out.setdefault(f"{case}.{component}", []).append(flat[at])
    pipe.set_progress_bar_config(disable=True)
    out = {key: torch.stack(rows) for key, rows in out.items()}
    out[f"{case}.latents"] = pipe("a red circle", negative_prompt="", num_inference_steps=4, guidance_scale=5.0,
                                  height=32, width=32, generator=torch.Generator("cpu").manual_seed(3),
                                  output_type="latent").images
    return out, changed


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true")
    write = parser.parse_args().write
    tensors, description = {}, {}
    for case, model, files, weights in cases(load("sd15"), load("sdxl")):
        out, changed = run(case, model, files, weights)
        expected = sum(len(file["tensors"]) // 2 for file in files)
        print(case, {component: len(names) for component, names in changed.items()}, "of", expected)
        tensors |= out
        description[case] = dict(model=model, files=files, weights=weights, changed=changed)
    if write:
        (HERE / "lora.json").write_text(json.dumps(description, sort_keys=True) + "\n")
        path = HERE / "lora.safetensors"
        save_file({key: value.contiguous() for key, value in tensors.items()}, path)
        path.chmod(0o644)
    else:
        make.compare("lora", tensors, load_file(HERE / "lora.safetensors"))
        print("lora.json:", "equal" if description == json.loads((HERE / "lora.json").read_text()) else "different")


if __name__ == "__main__":
    main()
