"""Makes `adapters.json` and `adapters.safetensors` with lycoris-lora, peft and torch.

    pip install torch==2.15.0 lycoris-lora==4.1.3 peft==0.21.2 diffusers==0.42.1 transformers==5.23.0
    python tests/references/make_adapters.py            # compares with what is here
    python tests/references/make_adapters.py --write    # writes

Each case puts an adapter of one kind on a linear layer, a convolution or a norm and probes what the layer then computes, at
weights 1 and 0.5: the network as it runs, not lycoris' `merge_to`, which applies alpha / rank twice for LoHa and LoKr.
`adapters.json` holds names and shapes of the adapter's tensors, whose values are drawn as in `make_families.py`, and the text
of peft's configuration, where the order of patterns counts; `adapters.safetensors` holds sixteen elements of each weight and bias.
"""

import argparse
import json
import tempfile
from pathlib import Path

import peft
import torch
from lycoris.modules.boft import ButterflyOFTModule
from lycoris.modules.diag_oft import DiagOFTModule
from lycoris.modules.full import FullModule
from lycoris.modules.glora import GLoRAModule
from lycoris.modules.ia3 import IA3Module
from lycoris.modules.locon import LoConModule
from lycoris.modules.loha import LohaModule
from lycoris.modules.lokr import LokrModule
from lycoris.modules.norms import NormModule
from safetensors.torch import load_file, save_file
from torch import nn

import make
from make_families import draw

HERE = Path(__file__).resolve().parent
PROBES = 16
WEIGHTS = (1.0, 0.5)
# The model: diffusers' names of a linear layer, a convolution and a norm.
LINEAR, SMALL, CONV, NORM = "time_embedding.linear_1", "time_embedding.linear_2", "conv_in", "conv_norm_out"


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.time_embedding = nn.Module()
        self.time_embedding.linear_1, self.time_embedding.linear_2 = nn.Linear(12, 16), nn.Linear(16, 16, bias=False)
        self.conv_in, self.conv_norm_out = nn.Conv2d(8, 16, 3, padding=1), nn.GroupNorm(4, 16)
        self.load_state_dict({name: draw(f"base.{name}", tuple(value.shape)).float()
                              for name, value in self.state_dict().items()})

    def forward(self, x):
        return x


@torch.no_grad()
def probed(layer):
    """What a layer multiplies by and adds."""
    if "Norm" in type(layer).__name__:
        return probed_norm(layer)
    is_conv = "Conv" in type(layer).__name__
    n = layer.in_channels if is_conv else layer.in_features
    if not is_conv:
        bias = layer(torch.zeros(1, n))[0]
        return (layer(torch.eye(n)) - bias).T, bias
    x = torch.zeros(n, n, 3, 3)
    x[range(n), range(n), 1, 1] = 1
    bias = layer(torch.zeros(1, n, 3, 3))[0, :, 1, 1]
    return (layer(x) - bias[None, :, None, None]).flip(2, 3).transpose(0, 1), bias


def probed_norm(layer):
    # Each channel by itself: the norm of one point of the input, with and without the affine map.
    x = torch.randn(1, 16, 3, 3, generator=torch.Generator().manual_seed(0))
    plain, y = nn.functional.group_norm(x, 4), layer(x)
    a, b = plain.flatten(2)[0], y.flatten(2)[0]
    weight = (b[:, 0] - b[:, 1]) / (a[:, 0] - a[:, 1])
    return weight, b[:, 0] - weight * a[:, 0]


def few(values):
    flat = values.flatten()
    return flat[[k * (len(flat) - 1) // (PROBES - 1) for k in range(PROBES)]]


def lycoris(case, target, kind, **options):
    """An adapter in kohya's names, and what the layer is at each weight."""
    out, prefix = {}, f"lora_unet_{target.replace('.', '_')}."
    for share in WEIGHTS:
        layer = Model().get_submodule(target)
        has_bias = layer.bias is not None
        module = kind("x", layer, share, **options)
        shapes = {key: value for key, value in module.state_dict().items()}
        numbers = {key: value.item() for key, value in shapes.items() if value.ndim == 0}
        values = {key: draw(f"{case}.{prefix}{key}", tuple(value.shape)).float() for key, value in shapes.items()
                  if value.ndim}
        for key, value in values.items():
            name = {"diff": "weight", "diff_b": "bias"}.get(key, key)
            owner, _, leaf = name.rpartition(".")
            getattr(module.get_submodule(owner), leaf).data.copy_(value)
        module.eval()
        if kind is FullModule:
            layer_forward, layer.forward = layer.forward, module.forward
            module.org_forward = layer_forward
        else:
            module.apply_to()
        weight, bias = probed(layer)
        out[f"{case}.{share}.{target}.weight"] = few(weight)
        if has_bias:
            out[f"{case}.{share}.{target}.bias"] = few(bias)
    file = dict(tensors={prefix + key: list(value.shape) for key, value in values.items()},
                numbers={prefix + key: number for key, number in numbers.items()}, config=None)
    return file, out


def pefts(case, config, scales=True):
    """peft's folder, and what the layers are at each weight."""
    out = {}
    for share in WEIGHTS if scales else WEIGHTS[:1]:
        wrapped = peft.get_peft_model(Model(), config)
        with tempfile.TemporaryDirectory() as folder:
            wrapped.save_pretrained(folder)
            keys = load_file(Path(folder) / "adapter_model.safetensors")
            text = json.loads((Path(folder) / "adapter_config.json").read_text())
            state = {key: draw(f"{case}.{key}", tuple(value.shape)).float() for key, value in keys.items()}
            save_file(state, Path(folder) / "adapter_model.safetensors")
            wrapped = peft.PeftModel.from_pretrained(Model(), folder)
        for module in wrapped.modules():
            if share != 1.0 and hasattr(module, "set_scale"):
                module.set_scale("default", share)
        merged = wrapped.merge_and_unload().state_dict()
        base = Model().state_dict()
        for name, value in merged.items():
            if not torch.equal(value, base[name]):
                out[f"{case}.{share}.{name}"] = few(value.detach())
    kept = ("peft_type", "r", "lora_alpha", "alpha", "rank_pattern", "alpha_pattern", "use_rslora", "use_dora", "bias",
            "lora_bias", "feedforward_modules", "init_lora_weights", "modules_to_save", "target_modules", "oft_block_size",
            "coft", "eps", "block_share", "use_cayley_neumann", "num_cayley_neumann_terms", "apply_GS")
    config = {key: text[key] for key in kept if key in text}
    config = {key: sorted(value) if isinstance(value, list) else value for key, value in config.items()}
    return dict(tensors={key: list(value.shape) for key, value in keys.items()}, numbers={}, config=json.dumps(config)), out


def staged(case, config):
    """BOFT of several stages, which peft computes with an extension of its own; block_diag does the same."""
    from peft.tuners.boft import layer

    class BlockDiag:
        @staticmethod
        def apply(blocks):
            return torch.stack([torch.block_diag(*stage) for stage in blocks])

    known = layer.get_fbd_cuda, layer.FastBlockDiag
    layer.get_fbd_cuda, layer.FastBlockDiag = lambda: True, BlockDiag
    try:
        return pefts(case, config, scales=False)
    finally:
        layer.get_fbd_cuda, layer.FastBlockDiag = known


def cases():
    rank = dict(lora_dim=2, alpha=3)
    for target in (LINEAR, CONV):
        name = "linear" if target == LINEAR else "conv"
        for kind, module, options in (
            ("lora", LoConModule, rank), ("loha", LohaModule, rank), ("lokr", LokrModule, rank | dict(factor=4, lora_dim=1)),
            ("lokr_both", LokrModule, dict(lora_dim=1, alpha=3, factor=4, decompose_both=True)),
            ("lokr_whole", LokrModule, rank | dict(factor=4, full_matrix=True)),
            ("full", FullModule, {}), ("ia3", IA3Module, {}), ("glora", GLoRAModule, rank),
            ("oft", DiagOFTModule, dict(lora_dim=4)), ("oft_bound", DiagOFTModule, dict(lora_dim=4, constraint=0.05)),
            ("oft_rescaled", DiagOFTModule, dict(lora_dim=4, rescaled=True)),
            ("boft", ButterflyOFTModule, dict(lora_dim=4)),
            ("boft_rescaled", ButterflyOFTModule, dict(lora_dim=2, rescaled=True, constraint=0.05)),
        ):
            yield f"lycoris_{kind}_{name}", lambda case, a=(target, module), o=options: lycoris(case, *a, **o)
        for kind, module in (("lora", LoConModule), ("loha", LohaModule), ("lokr", LokrModule)):
            of = rank | (dict(factor=4, lora_dim=1) if kind == "lokr" else {})
            for side, on_out in (("rows", True), ("columns", False)):
                options = of | dict(weight_decompose=True, wd_on_out=on_out)
                yield (f"lycoris_dora_{kind}_{side}_{name}",
                       lambda case, a=(target, module), o=options: lycoris(case, *a, **o))
    for kind, module in (("lora", LoConModule), ("loha", LohaModule), ("lokr", LokrModule)):
        of = rank | dict(use_tucker=True) | (dict(factor=4, lora_dim=1) if kind == "lokr" else {})
        yield f"lycoris_{kind}_tucker", lambda case, m=module, o=of: lycoris(case, CONV, m, **o)
    yield "lycoris_ia3_inputs_linear", lambda case: lycoris(case, LINEAR, IA3Module, train_on_input=True)
    yield "lycoris_ia3_inputs_conv", lambda case: lycoris(case, CONV, IA3Module, train_on_input=True)
    yield "lycoris_norm", lambda case: lycoris(case, NORM, NormModule)
    targets = [LINEAR, SMALL, CONV]
    lora = dict(r=2, lora_alpha=3, target_modules=targets)
    patterns = dict(rank_pattern={"linear_1": 3}, alpha_pattern={r".*linear_\d": 5, "linear_1": 7})
    yield "peft_lora", lambda case: pefts(case, peft.LoraConfig(**lora, **patterns))
    yield "peft_rslora", lambda case: pefts(case, peft.LoraConfig(**lora, use_rslora=True, rank_pattern={"^conv_in": 4}))
    yield "peft_dora", lambda case: pefts(case, peft.LoraConfig(**lora, use_dora=True))
    yield "peft_lora_bias", lambda case: pefts(case, peft.LoraConfig(**lora | dict(target_modules=[LINEAR, CONV]),
                                                                    lora_bias=True))
    yield "peft_bias", lambda case: pefts(case, peft.LoraConfig(**lora, bias="lora_only"), scales=False)
    yield "peft_saved", lambda case: pefts(case, peft.LoraConfig(**lora | dict(target_modules=[LINEAR]),
                                                                modules_to_save=[NORM]), scales=False)
    yield "peft_loha", lambda case: pefts(case, peft.LoHaConfig(r=2, alpha=3, target_modules=targets))
    yield "peft_loha_effective", lambda case: pefts(case, peft.LoHaConfig(r=2, alpha=3, target_modules=targets,
                                                                         use_effective_conv2d=True))
    yield "peft_lokr", lambda case: pefts(case, peft.LoKrConfig(r=1, alpha=3, target_modules=targets, decompose_factor=4))
    yield "peft_lokr_effective", lambda case: pefts(case, peft.LoKrConfig(r=1, alpha=3, target_modules=targets,
                                                                         use_effective_conv2d=True, decompose_factor=4))
    yield "peft_lokr_whole", lambda case: pefts(case, peft.LoKrConfig(r=8, alpha=3, target_modules=targets))
    for case, options in (
        ("oft", {}), ("oft_exact", dict(use_cayley_neumann=False)), ("oft_bound", dict(coft=True, eps=0.01)),
        ("oft_shared", dict(block_share=True)), ("oft_terms", dict(num_cayley_neumann_terms=3)),
        ("oft_many_terms", dict(num_cayley_neumann_terms=7, coft=True, eps=0.5)),
        ("oft_shared_bound", dict(block_share=True, coft=True, eps=0.01, use_cayley_neumann=False)),
    ):
        config = peft.OFTConfig(oft_block_size=4, target_modules=targets, **options)
        yield f"peft_{case}", lambda case, c=config: pefts(case, c, scales=False)
    yield "peft_boft", lambda case: pefts(case, peft.BOFTConfig(boft_block_size=4, target_modules=targets), scales=False)
    yield "peft_boft_staged", lambda case: staged(case, peft.BOFTConfig(boft_block_size=2, boft_n_butterfly_factor=3,
                                                                       target_modules=[SMALL, CONV]))
    yield "peft_hra", lambda case: pefts(case, peft.HRAConfig(r=3, target_modules=targets), scales=False)
    yield "peft_hra_orthogonal", lambda case: pefts(case, peft.HRAConfig(r=3, apply_GS=True, target_modules=targets),
                                                    scales=False)
    yield "peft_ia3", lambda case: pefts(case, peft.IA3Config(target_modules=targets, feedforward_modules=[]), scales=False)
    yield "peft_ia3_inputs", lambda case: pefts(case, peft.IA3Config(target_modules=targets, feedforward_modules=targets),
                                                scales=False)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true")
    write = parser.parse_args().write
    tensors, description = {}, {}
    with torch.no_grad():
        for case, run in cases():
            description[case], out = run(case)
            tensors |= out
            print(case, len(out))
    if write:
        (HERE / "adapters.json").write_text(json.dumps(description, sort_keys=True) + "\n")
        path = HERE / "adapters.safetensors"
        save_file({key: value.float().contiguous() for key, value in tensors.items()}, path)
        path.chmod(0o644)
    else:
        make.compare("adapters", tensors, load_file(HERE / "adapters.safetensors"))
        same = description == json.loads((HERE / "adapters.json").read_text())
        print("adapters.json:", "equal" if same else "different")


if __name__ == "__main__":
    main()
