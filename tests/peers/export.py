"""Exports a checkpoint's networks with PyTorch's own exporter.

    python export.py CHECKPOINT FOLDER
"""
import os
import sys

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from transformers import CLIPTextModel

from runtimes import inputs


class Decoder(torch.nn.Module):
    def __init__(self, vae):
        super().__init__()
        self.vae = vae

    def forward(self, latents):
        return self.vae.decode(latents, return_dict=False)[0]


def main():
    checkpoint, folder = sys.argv[1:]
    os.makedirs(folder)
    load = lambda kind, name: kind.from_pretrained(os.path.join(checkpoint, name)).eval()
    size = {2: torch.export.Dim.AUTO, 3: torch.export.Dim.AUTO}
    networks = {"unet": (load(UNet2DConditionModel, "unet"), {"sample": size, "timestep": None, "encoder_hidden_states": None}),
                "vae_decoder": (Decoder(load(AutoencoderKL, "vae")), {"latents": size}),
                "text_encoder": (load(CLIPTextModel, "text_encoder"), {"input_ids": None})}
    for name, (network, sizes) in networks.items():
        given = tuple(torch.from_numpy(value) for value in inputs(name, 512).values())
        torch.onnx.export(network, given, os.path.join(folder, f"{name}.onnx"), dynamo=True, external_data=True,
                          dynamic_shapes=tuple(sizes.values()), input_names=list(sizes))


if __name__ == "__main__":
    main()
