"""Trains the small model from scratch on procedural pictures.

    python models/shapes/train.py --work /tmp/shapes
    python models/shapes/train.py --work /tmp/shapes --from-exported     # trains the committed weights on

Stages, each resumed where it stopped: the autoencoder, the latents of a fixed set of pictures, the decoder alone
against the settled encoder, the text encoder alone (which learns to say what is where), then text encoder and UNet
together (v-prediction, zero terminal SNR, exponential moving average). Writes the pipeline beside this file.
"""

import argparse
import json
import math
import random
import shutil
import time
from collections import Counter
from copy import deepcopy
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

import pictures

HERE = Path(__file__).resolve().parent
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
VAE = dict(block_out_channels=(16, 32, 64), layers_per_block=1, norm_num_groups=4, latent_channels=4,
           down_block_types=("DownEncoderBlock2D",) * 3, up_block_types=("UpDecoderBlock2D",) * 3,
           sample_size=pictures.SIDE)
UNET = dict(block_out_channels=(64, 128, 128), layers_per_block=1, norm_num_groups=8, attention_head_dim=4,
            cross_attention_dim=128, sample_size=pictures.SIDE // 4,
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"))
TEXT = dict(hidden_size=128, intermediate_size=512, num_hidden_layers=2, num_attention_heads=4,
            max_position_embeddings=77, projection_dim=128, hidden_act="quick_gelu")
SCHEDULER = dict(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False, steps_offset=1,
                 set_alpha_to_one=False, prediction_type="v_prediction", timestep_spacing="trailing",
                 rescale_betas_zero_snr=True)


def words():
    vocabulary = [*pictures.COLOURS, *pictures.BACKGROUNDS, *pictures.SHAPES, *filter(None, pictures.SIZES)]
    return vocabulary + "a an on of picture background above below left right".split()


def byte_symbols():
    """CLIP's printable stand-ins for the 256 bytes (openai/CLIP, simple_tokenizer.py)."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    rest = [b for b in range(256) if b not in printable]
    return [chr(b) for b in printable] + [chr(256 + i) for i in range(len(rest))]


def learn_merges(vocabulary):
    """Byte-pair merges that make one token of every word."""
    splits = {word: [*word[:-1], word[-1] + "</w>"] for word in vocabulary}
    merges = []
    while pairs := Counter(pair for s in splits.values() for pair in zip(s, s[1:])):
        a, b = min(pairs, key=lambda pair: (-pairs[pair], pair))
        merges.append((a, b))
        for word, s in splits.items():
            merged = []
            while s:
                joins = len(s) > 1 and (s[0], s[1]) == (a, b)
                merged.append(a + b if joins else s[0])
                s = s[2:] if joins else s[1:]
            splits[word] = merged
    return merges


def make_tokenizer(folder):
    symbols = byte_symbols()
    merges = learn_merges(words())
    tokens = [*symbols, *(s + "</w>" for s in symbols), *(a + b for a, b in merges)]
    tokens += ["<|startoftext|>", "<|endoftext|>"]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.json").write_text(json.dumps({token: i for i, token in enumerate(tokens)}, ensure_ascii=False))
    (folder / "merges.txt").write_text("#version: 0.2\n" + "".join(f"{a} {b}\n" for a, b in merges))
    config = dict(tokenizer_class="CLIPTokenizer", model_max_length=77, bos_token="<|startoftext|>",
                  eos_token="<|endoftext|>", pad_token="<|endoftext|>", unk_token="<|endoftext|>")
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n")
    special = {k: v for k, v in config.items() if k.endswith("_token")}
    (folder / "special_tokens_map.json").write_text(json.dumps(special, indent=2) + "\n")
    return CLIPTokenizer.from_pretrained(folder)


def make_text_encoder(tokenizer):
    config = CLIPTextConfig(vocab_size=len(tokenizer), bos_token_id=tokenizer.bos_token_id,
                            eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.eos_token_id, **TEXT)
    return CLIPTextModel(config)


def to_tensor(images):
    pixels = torch.from_numpy(np.stack([np.asarray(i) for i in images])).to(DEVICE)
    return pixels.permute(0, 3, 1, 2).float() / 127.5 - 1


def save(path, **state):
    partial = path.with_suffix(".partial")
    torch.save(state, partial)
    partial.replace(path)


def learning_rate(step, steps, peak):
    return peak * min(1, (step + 1) / 100) * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * step / steps)))


def train_vae(vae, parameters, checkpoint, steps, peak, batch=16):
    """Trains the given parameters of the autoencoder and no others."""
    vae.requires_grad_(False)
    for parameter in (parameters := list(parameters)):
        parameter.requires_grad_(True)
    optimizer = torch.optim.AdamW(parameters, lr=peak, weight_decay=0, betas=(0.9, 0.99))
    start = 0
    if checkpoint.exists():
        state = torch.load(checkpoint, map_location=DEVICE)
        vae.load_state_dict(state["vae"])
        optimizer.load_state_dict(state["optimizer"])
        start = state["step"]
    rng = random.Random(f"{checkpoint.stem} {start}")
    clock = time.time()
    for step in range(start, steps):
        optimizer.param_groups[0]["lr"] = learning_rate(step, steps, peak)
        x = to_tensor([pictures.render(pictures.random_scene(rng), rng) for _ in range(batch)])
        posterior = vae.encode(x).latent_dist
        y = vae.decode(posterior.sample()).sample
        loss = F.l1_loss(y, x) + F.mse_loss(y, x)
        (loss + 1e-7 * posterior.kl().mean()).backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        if step % 50 == 0:
            print(f"{checkpoint.stem} {step} loss {loss.item():.4f} {time.time() - clock:.0f}s", flush=True)
        if step % 250 == 249 or step == steps - 1:
            save(checkpoint, vae=vae.state_dict(), optimizer=optimizer.state_dict(), step=step + 1)


@torch.no_grad()
def make_latents(work, vae, tokenizer, n, scale=None, batch=32):
    """Latents and token ids of `n` training pictures; also settles the scaling factor unless it is given."""
    path = work / "latents.pt"
    if path.exists():
        return torch.load(path, map_location=DEVICE)
    rng = random.Random(7)
    latents, captions = [], []
    for _ in range(0, n, batch):
        examples = [pictures.training_example(rng) for _ in range(batch)]
        images = to_tensor([pictures.render(scene, rng) for scene, _ in examples])
        latents.append(vae.encode(images).latent_dist.mean)
        captions += [caption for _, caption in examples]
        print(f"latents {len(captions)}", flush=True)
    ids = tokenizer(captions, padding="max_length", max_length=77, truncation=True, return_tensors="pt").input_ids
    latents = torch.cat(latents)
    data = dict(latents=latents, ids=ids.to(DEVICE, torch.int16), scale=scale or 1 / latents.std().item())
    save(path, **data)
    print(f"{n} latents, scaling factor {data['scale']:.4f}", flush=True)
    return data


class Layout(torch.nn.Module):
    """Reads `Scene.layout` off the states behind a caption's end; it helps training and is no part of the pipeline.

    Left to itself, the UNet takes long to find out which thing a relation puts where.
    """

    def __init__(self, width):
        super().__init__()
        self.linear = torch.nn.Linear(width, sum(pictures.LAYOUT))

    def loss(self, states, ids, end, answers):
        n, length = ids.shape
        first = (ids == end).int().argmax(1)
        behind = first + (torch.rand(n, device=ids.device) * (length - first)).long()
        logits = self.linear(states[torch.arange(n, device=ids.device), behind]).split(pictures.LAYOUT, 1)
        return sum(F.cross_entropy(found, answers[:, i]) for i, found in enumerate(logits))


class Model(torch.nn.Module):
    """Text encoder and UNet, trained as one."""

    def __init__(self, tokenizer):
        super().__init__()
        self.text_encoder = make_text_encoder(tokenizer)
        self.layout = Layout(TEXT["hidden_size"])
        self.unet = UNet2DConditionModel(**UNET)


def train_text(work, model, tokenizer, steps, batch=64, length=24, peak=1e-3):
    """Trains the text encoder alone, on captions without pictures."""
    checkpoint = work / "text.pt"
    parts = torch.nn.ModuleList([model.text_encoder, model.layout])
    if checkpoint.exists():
        parts.load_state_dict(torch.load(checkpoint, map_location=DEVICE)["parts"])
        return
    optimizer = torch.optim.AdamW(parts.parameters(), lr=peak)
    rng = random.Random(11)
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = learning_rate(step, steps, peak)
        scenes, captions = zip(*(pictures.training_example(rng) for _ in range(batch)))
        ids = tokenizer(captions, padding="max_length", max_length=length, return_tensors="pt").input_ids.to(DEVICE)
        answers = torch.tensor([scene.layout() for scene in scenes], device=DEVICE)
        states = model.text_encoder(ids).last_hidden_state
        loss = model.layout.loss(states, ids, tokenizer.eos_token_id, answers)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        if step % 100 == 99:
            print(f"text {step + 1} loss {loss.item():.4f}", flush=True)
    save(checkpoint, parts=parts.state_dict())


def train_denoiser(work, vae, tokenizer, data, steps, batch, text_steps, exported=None, peak=1e-3, unconditional=0.1):
    """Timesteps are drawn in proportion to their size: what is drawn where is decided while there is much noise."""
    model = Model(tokenizer).to(DEVICE)
    if exported:
        model.text_encoder.load_state_dict(exported.text_encoder.state_dict())
        model.unet.load_state_dict(exported.unet.state_dict())
    train_text(work, model, tokenizer, text_steps)
    captions = tokenizer.batch_decode(data["ids"].long(), skip_special_tokens=True)
    layouts = torch.tensor([pictures.read_caption(caption).layout() for caption in captions], device=DEVICE)
    ema = deepcopy(model)
    scheduler = DDIMScheduler(**SCHEDULER)
    optimizer = torch.optim.AdamW(model.parameters(), lr=peak, weight_decay=0.01, betas=(0.9, 0.99))
    checkpoint = work / "denoiser.pt"
    start = 0
    if checkpoint.exists():
        state = torch.load(checkpoint, map_location=DEVICE)
        model.load_state_dict(state["model"])
        ema.load_state_dict(state["ema"])
        optimizer.load_state_dict(state["optimizer"])
        start = state["step"]
    empty = tokenizer([""], padding="max_length", max_length=77, return_tensors="pt").input_ids.to(DEVICE)
    torch.manual_seed(start)
    clock, total = time.time(), 0.0
    for step in range(start, steps):
        optimizer.param_groups[0]["lr"] = learning_rate(step, steps, peak)
        pick = torch.randint(len(data["latents"]), (batch,), device=DEVICE)
        x = data["latents"][pick] * data["scale"]
        captioned = torch.rand(batch, device=DEVICE) >= unconditional
        ids = torch.where(captioned[:, None], data["ids"][pick].long(), empty)
        noise, t = torch.randn_like(x), (1000 * torch.rand(batch, device=DEVICE).sqrt()).long().clamp(max=999)
        states = model.text_encoder(ids).last_hidden_state
        prediction = model.unet(scheduler.add_noise(x, noise, t), t, states).sample
        loss = F.mse_loss(prediction, scheduler.get_velocity(x, noise, t))
        layout = model.layout.loss(states[captioned], ids[captioned], tokenizer.eos_token_id, layouts[pick[captioned]])
        (loss + 0.01 * layout).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        decay = min(0.999, (step + 1) / (step + 20))
        with torch.no_grad():
            for mean, weight in zip(ema.parameters(), model.parameters()):
                mean.lerp_(weight, 1 - decay)
        total += loss.item()
        if step % 50 == 49:
            print(f"denoiser {step + 1} loss {total / 50:.4f} {time.time() - clock:.0f}s", flush=True)
            total = 0.0
        if step % 250 == 249 or step == steps - 1:
            save(checkpoint, model=model.state_dict(), ema=ema.state_dict(), optimizer=optimizer.state_dict(),
                 step=step + 1)
            export(vae, tokenizer, ema, data["scale"])
    return ema


def load_as_float32(path):
    """transformers loads in the config's dtype, diffusers in float32; let the two agree."""
    config = json.loads(path.read_text())
    path.write_text(json.dumps(config | {"dtype": "float32"}, indent=2) + "\n")


def export(vae, tokenizer, model, scale):
    """Writes the pipeline in fp16, each component swapped in whole."""
    parts = dict(vae=AutoencoderKL(**VAE, scaling_factor=scale), unet=UNet2DConditionModel(**UNET),
                 text_encoder=CLIPTextModel(model.text_encoder.config))
    for name, source in (("vae", vae), ("unet", model.unet), ("text_encoder", model.text_encoder)):
        parts[name].load_state_dict(source.state_dict())
    pipeline = StableDiffusionPipeline(**{name: part.half() for name, part in parts.items()}, tokenizer=tokenizer,
                                       scheduler=DDIMScheduler(**SCHEDULER), safety_checker=None,
                                       feature_extractor=None, requires_safety_checker=False)
    partial = HERE / ".partial"
    shutil.rmtree(partial, ignore_errors=True)
    pipeline.save_pretrained(partial)
    load_as_float32(partial / "text_encoder" / "config.json")
    for name in ("vae", "unet", "text_encoder", "scheduler", "model_index.json"):
        target = HERE / name
        shutil.rmtree(target) if target.is_dir() else target.unlink(missing_ok=True)
        (partial / name).rename(target)
    shutil.rmtree(partial)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="folder for checkpoints and latents")
    parser.add_argument("--vae-steps", type=int, default=2200)
    parser.add_argument("--decoder-steps", type=int, default=900)
    parser.add_argument("--pictures", type=int, default=32000)
    parser.add_argument("--text-steps", type=int, default=2400)
    parser.add_argument("--steps", type=int, default=8500)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--from-exported", action="store_true", help="start from the pipeline beside this file")
    args = parser.parse_args()
    args.work.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(0)
    tokenizer = make_tokenizer(HERE / "tokenizer")
    exported, scale = None, None
    if args.from_exported:
        exported = StableDiffusionPipeline.from_pretrained(HERE, torch_dtype=torch.float32)
        vae, scale = exported.vae.to(DEVICE), exported.vae.config.scaling_factor
    else:
        vae = AutoencoderKL(**VAE).to(DEVICE)
        train_vae(vae, vae.parameters(), args.work / "vae.pt", args.vae_steps, peak=3e-3)
    data = make_latents(args.work, vae, tokenizer, args.pictures, scale)
    if not exported:
        decoder = [*vae.post_quant_conv.parameters(), *vae.decoder.parameters()]
        train_vae(vae, decoder, args.work / "decoder.pt", args.decoder_steps, peak=2e-3)
    ema = train_denoiser(args.work, vae, tokenizer, data, args.steps, args.batch, args.text_steps, exported)
    export(vae, tokenizer, ema, data["scale"])


if __name__ == "__main__":
    main()
