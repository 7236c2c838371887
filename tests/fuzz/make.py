"""Makes the seeds of the corpus that are not written by hand, and figures.json beside it.

    pip install Pillow==12.3.0 blake3==1.0.8 zstandard==0.25.0
    python tests/fuzz/make.py
"""

import base64
import gzip
import io
import json
import struct
import tarfile
import zlib
from pathlib import Path

import zstandard
from blake3 import blake3
from PIL import Image

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
CORPUS = HERE / "corpus"
WIDTHS = {"F64": 8, "I64": 8, "F32": 4, "I32": 4, "F16": 2, "BF16": 2}


def write(target, name, content):
    path = CORPUS / target / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())


def stored(text):
    """The safetensors file that `safetensors` of lib.rs makes of lines, with small numbers as weights."""
    header, metadata, prefix, end = {}, {}, "", 0
    for line in text.splitlines():
        if line.startswith("# "):
            key, value = line[2:].split(" ", 1)
            metadata[key] = value
        elif line.startswith("> "):
            prefix = line[2:]
        else:
            name, *words = line.split()
            shape = [int(word) for word in words if word.isdigit()]
            dtype = next((word for word in words if not word.isdigit()), "F16")
            n = WIDTHS.get(dtype, 1)
            for side in shape:
                n *= side
            header[prefix + name] = {"dtype": dtype, "shape": shape, "data_offsets": [end, end + n]}
            end += n
    if metadata:
        header["__metadata__"] = metadata
    text = json.dumps(header, separators=(",", ":")).encode()
    return struct.pack("<Q", len(text)) + text + b"\x2c" * end


def lines(keys):
    """Keys and shapes as lines, what consecutive keys begin with on a line before them."""
    out, last = [], ""
    for name, shape in keys.items():
        parts = name.split(".")
        prefix = "".join(part + "." for part in parts[:max(1, len(parts) - 3)])
        if prefix != last:
            out.append("> " + prefix)
            last = prefix
        out.append(" ".join([name[len(prefix):], *map(str, shape)]))
    return "\n".join(out) + "\n"


def originals():
    models = json.loads(gzip.decompress((ROOT / "tests/references/original.json.gz").read_bytes()))["models"]
    for name in ["sd15-small", "sd21-small", "sdxl-small", "refiner-small", "controlnet"]:
        write("original", name, lines(models[name]["keys"]))


def adapters():
    cases = json.loads((ROOT / "tests/references/adapters.json").read_text())
    kinds = {}
    for name, case in cases.items():
        kind = kinds.setdefault(name.removesuffix("_linear").removesuffix("_conv"), {})
        kind.update({key: ["F32"] for key in case["numbers"]} | case["tensors"])
        if case["config"]:
            config = {f"unet.{key}": value for key, value in json.loads(case["config"]).items()}
            kind["#"] = ["lora_adapter_metadata", json.dumps(config)]
    for name, kind in kinds.items():
        write("lora_keys", name, "".join(" ".join([key, *map(str, words)]) + "\n" for key, words in kind.items()))
    for path in sorted((CORPUS / "lora_keys").iterdir()):
        if len(file := stored(path.read_text())) < 2000:
            write("lora", path.name, file)
    types = "".join(f"{name} {name} 3\n" for name in WIDTHS)
    write("safetensors", "types", stored(types + "one U8 1\nf8 F8_E4M3 2 2"))
    write("safetensors", "metadata", stored("# format pt\n# note \u00e9\nempty F32 0\nnumber F64"))
    write("safetensors", "cut-off", stored("a F32 4")[:-3])
    write("safetensors", "page", b"<!doctype html>")
    write("embedding", "emb_params", stored("emb_params F32 2 32"))
    write("embedding", "word", stored("<toy> F16 32"))
    write("embedding", "pair", stored("clip_l F16 32\nclip_g F16 32"))


def picture(mode, size=(5, 3)):
    bands = [Image.new("L", size) for _ in mode.replace("RGBX", "RGB")]
    for i, band in enumerate(bands):
        band.putdata([(40 * i + 17 * k) % 256 for k in range(size[0] * size[1])])
    return Image.merge(mode, bands) if len(bands) > 1 else bands[0]


def pictures():
    def save(name, image, **options):
        out = io.BytesIO()
        image.save(out, **options)
        write("picture", name, out.getvalue())

    rgb, rgba, grey = picture("RGB"), picture("RGBA"), picture("L")
    exif = Image.Exif()
    exif[0x0112] = 6
    save("rgb.png", rgb, format="PNG", exif=exif)
    save("rgba.png", rgba, format="PNG")
    save("grey16.png", grey.convert("I;16"), format="PNG")
    save("palette.png", rgb.quantize(4), format="PNG", transparency=1)
    save("bits.png", grey.convert("1"), format="PNG")
    save("rgb.jpg", picture("RGB", (17, 9)), format="JPEG", exif=exif)
    save("grey.jpg", grey, format="JPEG")
    save("progressive.jpg", picture("RGB", (17, 9)), format="JPEG", progressive=True)
    save("cmyk.jpg", rgb.convert("CMYK"), format="JPEG")
    save("lossless.webp", rgba, format="WEBP", lossless=True, exif=exif)
    save("lossy.webp", rgb, format="WEBP")
    save("lossy-alpha.webp", rgba, format="WEBP")
    save("animated.webp", rgb, format="WEBP", save_all=True, append_images=[picture("RGB").rotate(180)])
    save("rgb.bmp", rgb, format="BMP")
    save("rgba.bmp", rgba, format="BMP")
    save("palette.bmp", rgb.quantize(4), format="BMP")
    save("bits.bmp", grey.convert("1"), format="BMP")
    save("palette.gif", rgb.quantize(4), format="GIF")
    save("animated.gif", rgb.quantize(4), format="GIF", save_all=True, append_images=[grey.quantize(4)], transparency=0)
    save("rgb.tif", rgb, format="TIFF")
    save("rgba-lzw.tif", rgba, format="TIFF", compression="tiff_lzw")
    save("grey-deflate.tif", grey, format="TIFF", compression="tiff_adobe_deflate")
    save("grey16.tif", grey.convert("I;16"), format="TIFF")
    save("palette.tif", rgb.quantize(4), format="TIFF")


def entry(content):
    return {"size": len(content), "blake3": blake3(content).hexdigest()}


def component(stage, inputs, outputs):
    def ports(ports):
        return [{"name": name, "dtype": dtype, "shape": shape} for name, dtype, shape in ports]

    reads, makes = [port[0] for port in inputs], [port[0] for port in outputs]
    segment = {"engine": "empty", "weights": ["w"], "weight_bytes": 4, "operators": 2,
               "attention": {"fused": 1, "decomposed": 0}, "reads": reads, "makes": makes}
    return {"stage": stage, "segments": [segment], "weights": "empty", "weight_bytes": 4, "precision": "f32",
            "inputs": ports(inputs), "outputs": ports(outputs)}


def components(batch, height, width):
    latents, tokens = [batch, 4, height, width], [batch, 77, 32]
    picture = [batch, 3, f"2*{height}", f"2*{width}"] if batch == "batch" else [batch, 3, 2 * height, 2 * width]
    return {
        "text_encoder": component("text_encoder", [("input_ids", "i64", [batch, 77])],
                                  [("last_hidden_state", "f32", tokens)]),
        "unet": component("denoiser", [("sample", "f32", latents), ("timestep", "f32", [1]),
                                       ("encoder_hidden_states", "f32", tokens)], [("out_sample", "f32", latents)]),
        "vae_decoder": component("image_decoder", [("latents", "f32", latents)], [("sample", "f32", picture)]),
        "vae_encoder": component("image_encoder", [("sample", "f32", picture)], [("mean", "f32", latents)]),
    }


def figures():
    sample = {"rows": 1, "height": 8, "width": 8, "peak_bytes": 5000000, "held_bytes": 1000000, "load_seconds": 0.1,
              "seconds": 0.1}
    samples = [sample, {**sample, "height": 16, "width": 16, "peak_bytes": 9000000},
               {**sample, "rows": 2, "height": 16, "width": 16, "peak_bytes": 17000000}]
    both = {"whole": samples, "segments": samples}
    names = ["text_encoder", "unet", "vae_decoder", "vae_encoder"]
    return json.dumps({"backend": "nothing", "version": "0", "base_bytes": 9000000,
                       "components": {name: both for name in names}}).encode()


def yaml(value, indent=0):
    """Enough of YAML: mappings by lines, everything else as JSON."""
    if not isinstance(value, dict) or not value:
        return " " + json.dumps(value)
    return "".join(f"\n{' ' * indent}{key}:{yaml(item, indent + 2)}" for key, item in value.items())


def manifest(files, content, parts, **more):
    return yaml({"format": 5, "name": "seed", "target": "cpu", "content": content, "components": parts, **more,
                 "files": {name: entry(content) for name, content in files.items()},
                 "provenance": {"kiln": "0.1.0", "key": "0", "options": {}, "checkpoint": {}}}).lstrip() + "\n"


def pipeline(**more):
    encoder = {"component": "text_encoder", "tokenizer": {"kind": "clip", "folder": "tokenizer"}, "positions": 77,
               "width": 32, "vocabulary": 49408, "states": ["last_hidden_state"]}
    return {"kind": "pipeline", "architecture": "stable-diffusion", "class": "StableDiffusionPipeline",
            "size": {"width": 64, "height": 64}, "latents": {"channels": 4, "scale_factor": 2, "scaling": 0.18215},
            "text_encoders": [encoder], "scheduler": "scheduler_config.json", "scheduler_class": "DDIMScheduler",
            "settings": {"inpainting": False}, **more}


def sealed(text):
    return text.encode() + b"# blake3 " + blake3(text.encode()).hexdigest().encode() + b"\n"


def archive(members):
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    used = len(out.getvalue().rstrip(b"\0"))
    return out.getvalue()[:-(-used // 512) * 512 + 1024]


def bundles():
    shapes = ROOT / "models/shapes"
    scheduler = (shapes / "scheduler/scheduler_config.json").read_bytes()
    (HERE / "figures.json").write_bytes(figures())
    files = {"empty": b"", "figures.json": figures(), "scheduler_config.json": scheduler,
             "tokenizer/vocab.json": (shapes / "tokenizer/vocab.json").read_bytes(),
             "tokenizer/merges.txt": (shapes / "tokenizer/merges.txt").read_bytes()}
    dynamic, fixed = components("batch", "height", "width"), components(2, 32, 32)
    write("manifest", "dynamic", manifest(files, pipeline(), dynamic, figures="figures.json"))
    write("manifest", "fixed", manifest(files, pipeline(), fixed))
    xl = pipeline(architecture="stable-diffusion-xl", settings={"time_ids": 6, "force_zeros_for_empty_prompt": True})
    write("manifest", "xl", manifest(files, xl, dynamic, figures="figures.json", tuning={"tf32": True}))
    steering = {"kind": "controlnet", "scale_factor": 8, "latent_channels": 4, "cross_attention_dim": 32}
    control = manifest({"empty": b""}, steering, {})
    write("manifest", "controlnet", control)

    small = {"empty": b"", "scheduler_config.json": b"{}"}
    packed = archive({"bundle.yaml": sealed(manifest(small, pipeline(text_encoders=[]), {})), **small})
    write("packed", "plain", packed)
    write("packed", "compressed", zstandard.compress(packed))
    nested = {"controlnet/bundle.yaml": sealed(control)}
    outer = sealed(manifest({**nested, **small}, pipeline(text_encoders=[], controlnets=["controlnet"]), {}))
    write("packed", "nested", archive({"bundle.yaml": outer, **nested, "controlnet/empty": b"", **small}))


def configurations():
    tiny = ROOT / "crates/kiln-compile/src/synth/tiny"
    index = (ROOT / "models/shapes/model_index.json").read_text()
    texts = {name: (tiny / f"{name}.json").read_text() for name in ["text_encoder", "unet", "vae"]}
    write("checkpoint", "all", f"=== model_index.json\n{index}" + "".join(
        f"\n=== {name}/config.json\n{text}" for name, text in texts.items()))
    weights = {"weight_map": {"decoder.conv_in.bias": "diffusion_pytorch_model.safetensors"}}
    write("checkpoint", "index", "=== vae/diffusion_pytorch_model.safetensors.index.json\n" + json.dumps(weights))
    for name, text in texts.items():
        write("network", name, text)


def png(text=""):
    """A PNG file of four pixels, with what a web UI says of it."""
    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    body = chunk(b"IHDR", struct.pack(">IIBBBBB", 2, 2, 8, 2, 0, 0, 0))
    if text:
        body += chunk(b"tEXt", b"parameters\0" + text.encode("latin-1"))
        body += chunk(b"zTXt", b"parameters\0\0" + zlib.compress(text.encode("latin-1")))
        body += chunk(b"iTXt", b"parameters\0\0\0\0\0" + text.encode())
    return b"\x89PNG\r\n\x1a\n" + body + chunk(b"IDAT", zlib.compress((b"\0" + bytes(6)) * 2)) + chunk(b"IEND", b"")


INFOTEXT = """a red circle, "quoted" <lora:a:0.5>
second line
Negative prompt: blue
Steps: 20, Sampler: DPM++ 2M Karras, CFG scale: 7, Seed: 5, Size: 64x64, Lora hashes: "a: 01, b: 02", \
Denoising strength: 0.5, Hires upscale: 2, Version: kiln"""


def field(number, data):
    """A field of a gRPC message."""
    return bytes([number << 3 | 2, len(data)]) + data


def server():
    """Requests to `kiln serve`."""
    picture = base64.b64encode(png()).decode()
    drawing = {
        "guidance_scale": 7.5, "guidance_rescale": 0.5, "eta": 0, "clip_skip": 1, "scheduler": "ddim",
        "negative_prompt": "blue", "seed": 18446744073709551615, "loras": {"a": 0.5},
    }
    openai = {
        "prompt": "a red circle", "model": "m", "n": 2, "size": "64x64", "steps": 3, "response_format": "url",
        "output_format": "jpeg", "output_compression": 50, "stream": True, "partial_images": 2, "user": "u",
        "quality": "hd", "style": "vivid", "moderation": "low", "background": "opaque", **drawing,
    }
    write("server_openai", "generation", "generations\n" + json.dumps(openai))
    edit = {"image": [picture], "mask": f"data:image/png;base64,{picture}", "strength": 0.5, "input_fidelity": "low"}
    write("server_openai", "edit", "edits\n" + json.dumps({**openai, **edit}))
    write("server_openai", "variation", "variations\n" + json.dumps({"image": picture, "loras": [{"name": "a"}]}))
    parameters = {"num_inference_steps": 3, "width": 64, "target_size": {"width": 64, "height": 64}, **drawing}
    write("server_hf", "text", json.dumps({"inputs": "a circle", "parameters": parameters, "options": {}}))
    changed = {"prompt": "a circle", "strength": 0.5}
    write("server_hf", "picture", json.dumps({"inputs": picture, "parameters": changed}))
    hires = {"scale": 2, "strength": 0.5, "steps": 3, "upscaler": "pixels"}
    job = {"prompt": "x", "model": "m", "n": 2, "width": 64, "height": 64, "steps": 3, **drawing}
    write("server_jobs", "text", json.dumps({**job, "hires": hires}))
    write("server_jobs", "picture", json.dumps({**job, "init_image": picture, "mask": picture, "strength": 0.5}))
    unit = {"enabled": True, "model": "c", "module": "none", "image": picture, "weight": 1, "guidance_end": "0.5"}
    call = {
        "prompt": "a <lora:a:0.5> cat", "negative_prompt": "", "seed": -1, "subseed": "7", "subseed_strength": 0.1,
        "sampler_name": "DPM++ 2M Karras", "scheduler": "Automatic", "batch_size": 2, "n_iter": 1, "steps": "3",
        "cfg_scale": 7, "width": 64, "height": 64, "eta": 1, "clip_skip": 2, "styles": [], "send_images": "true",
        "override_settings": {"CLIP_stop_at_last_layers": 2, "samples_format": "jpg", "randn_source": "NV"},
        "alwayson_scripts": {"ControlNet": {"args": [unit]}},
    }
    hr = {"enable_hr": True, "hr_scale": 2, "hr_upscaler": "Latent", "hr_second_pass_steps": 2, "hr_resize_x": 0}
    write("server_webui", "txt2img", "txt2img\n" + json.dumps({**call, **hr}))
    init = {"init_images": [picture], "mask": picture, "mask_blur": 1, "inpainting_fill": 0, "resize_mode": 1}
    write("server_webui", "img2img", "img2img\n" + json.dumps({**call, **init, "denoising_strength": 0.5}))
    options = {"sd_model_checkpoint": "m", "eta_ddim": 0.5, "tiling": False}
    write("server_webui", "options", "options\n" + json.dumps(options))
    made = base64.b64encode(png(INFOTEXT)).decode()
    write("server_webui", "png-info", "png-info\n" + json.dumps({"image": made}))
    part = '--b\r\nContent-Disposition: form-data; name="{}"{}\r\n\r\n{}\r\n'
    form = part.format("prompt", "", "x") + part.format("n", "", "2") + part.format("loras[a]", "", "0.5")
    file = part.format("image[]", '; filename="a.png"\r\nContent-Type: image/png', "{}").encode().split(b"{}")
    write("server_forms", "edit", b"b\n" + form.encode() + file[0] + png() + file[1] + b"--b--\r\n")
    hf = part.format("inputs", "", "x") + part.format("parameters", "", '{"seed": 1}')
    write("server_forms", "hf", "b\n" + hf + "--b--\r\n")
    oip(picture)


def oip(picture):
    """Requests of the Open Inference Protocol, as JSON, with tensors behind it, and as messages."""
    def tensor(name, datatype, shape, **more):
        return {"name": name, "datatype": datatype, "shape": shape, **more}

    inputs = [
        tensor("prompt", "BYTES", [2], data=["a", "b"]), tensor("seed", "INT64", [2], data=[1, 2]),
        tensor("guidance_scale", "FP32", [1], data=[7.5]), tensor("init_image", "BYTES", [1], data=[picture]),
        tensor("mask", "UINT8", [1, 2, 3], data=[[[0, 0, 0], [255, 255, 255]]]),
    ]
    outputs = [{"name": "images", "parameters": {"binary_data": True}}, {"name": "png"}]
    message = {"id": "1", "inputs": inputs, "outputs": outputs, "parameters": {"steps": 3, "timeout": 1000}}
    write("server_oip", "json", "\n" + json.dumps(message))
    raw = struct.pack("<I", 1) + b"x" + struct.pack("<q", 7)
    binary = [
        tensor("prompt", "BYTES", [1], parameters={"binary_data_size": 5}),
        tensor("seed", "INT64", [1], parameters={"binary_data_size": 8}),
    ]
    text = json.dumps({"inputs": binary, "parameters": {"binary_data_output": True}})
    write("server_oip", "binary", f"{len(text)}\n{text}".encode() + raw)
    prompt = field(1, b"prompt") + field(2, b"BYTES") + field(3, b"\x01")
    seed = field(1, b"seed") + field(2, b"INT64") + field(3, b"\x01")
    steps = field(1, b"steps") + field(2, bytes([0x10, 3]))
    head = field(1, b"m") + field(3, b"id") + field(4, steps)
    packed = head + field(5, prompt) + field(5, seed) + field(6, field(1, b"images"))
    packed += field(7, raw[:5]) + field(7, raw[5:])
    typed = head + field(5, prompt + field(5, field(8, b"x"))) + field(5, seed + field(5, field(3, b"\x07")))
    write("server_grpc", "raw", b"\0" + packed)
    write("server_grpc", "typed", b"\0" + typed)
    write("server_grpc", "ready", b"\1" + field(1, b"m") + field(2, b"1"))
    framed = [struct.pack(">BI", 0, len(one)) + one for one in (packed, typed)]
    small = gzip.compress(typed, mtime=0)
    framed.append(struct.pack(">BI", 1, len(small)) + small)
    write("server_grpc", "stream", b"\7" + b"".join(framed))


def infotexts():
    write("infotext", "text", INFOTEXT)
    write("infotext", "file", png(INFOTEXT))



originals()
adapters()
pictures()
bundles()
configurations()
server()
infotexts()
