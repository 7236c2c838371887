"""Makes `scheduler_pictures.safetensors`: what pipelines draw, by the classes that their files name.

    pip install torch==2.15.0 diffusers==0.42.1 transformers==5.24.0 safetensors
    python tests/references/make_schedulers.py            # compares with what is here
    python tests/references/make_schedulers.py --write    # writes

The model is `sd15/`. A case is the class in `model_index.json`, what is changed in `scheduler_config.json` and, where
there is one, the class that `from_config` makes of the pipeline's scheduler.
"""

import argparse
import json
import shutil
import tempfile
from pathlib import Path

import diffusers
import numpy
import torch
from safetensors.numpy import load_file, save_file
from transformers import CLIPTokenizer

HERE = Path(__file__).resolve().parent
FILE = HERE / "scheduler_pictures.safetensors"
DPM = dict(_class_name="DPMSolverMultistepScheduler", algorithm_type="dpmsolver++", solver_order=2)
DEIS = dict(_class_name="DEISMultistepScheduler", algorithm_type="deis", solver_type="logrho", solver_order=2)
EDM = dict(_class_name="EDMEulerScheduler", sigma_data=0.5, sigma_max=80.0, sigma_min=0.002)


def case(index, scheduler=None, **file):
    return dict(index=index, file=file, scheduler=scheduler)


CASES = {
    "index-euler-a": case("EulerAncestralDiscreteScheduler", _class_name="DDIMScheduler"),
    "index-dpm": case("DPMSolverMultistepScheduler", _class_name="EulerDiscreteScheduler"),
    "index-euler": case("EulerDiscreteScheduler", **DPM),
    "index-runs-file-does-not": case("DDIMScheduler", _class_name="UnCLIPScheduler"),
    "old-keys": case("DDIMScheduler", tensor_format="pt", predict_epsilon=True),
    "no-epsilon": case("DDPMScheduler", _class_name="DDPMScheduler", predict_epsilon=False),
    "deis": case("DEISMultistepScheduler", **DEIS),
    "deis-dpm++2m": case("DEISMultistepScheduler", "dpm++2m", **DEIS),
    "index-does-not-run-euler": case("CogVideoXDDIMScheduler", "euler", _class_name="CogVideoXDDIMScheduler"),
    "edm-euler": case("EDMEulerScheduler", **EDM),
    "edm-dpm": case("EDMDPMSolverMultistepScheduler", **dict(EDM, _class_name="EDMDPMSolverMultistepScheduler")),
    "tcd": case("TCDScheduler", _class_name="TCDScheduler"),
    "sa-solver": case("SASolverScheduler", _class_name="SASolverScheduler"),
    "ddim-parallel": case("DDIMParallelScheduler", _class_name="DDIMParallelScheduler"),
    "ddpm-parallel": case("DDPMParallelScheduler", _class_name="DDPMParallelScheduler"),
    "ddim-inverse": case("DDIMInverseScheduler", _class_name="DDIMInverseScheduler"),
    "dpm-inverse": case("DPMSolverMultistepInverseScheduler", _class_name="DPMSolverMultistepInverseScheduler"),
}
OTHERS = {
    "dpm++2m": ("DPMSolverMultistepScheduler", dict(algorithm_type="dpmsolver++", solver_order=2)),
    "euler": ("EulerDiscreteScheduler", {}),
}


def edit(path, **changes):
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def draw(index, file, scheduler):
    """A picture, `[H, W, 3]` from 0 to 255."""
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        shutil.copytree(HERE / "sd15", folder, dirs_exist_ok=True)
        shutil.copytree(HERE / "clip-tokenizer", folder / "tokenizer", dirs_exist_ok=True)
        edit(folder / "model_index.json", scheduler=["diffusers", index])
        edit(folder / "scheduler/scheduler_config.json", **file)
        tokenizer = CLIPTokenizer.from_pretrained(folder / "tokenizer", model_max_length=77)
        pipe = diffusers.DiffusionPipeline.from_pretrained(folder, torch_dtype=torch.float32, tokenizer=tokenizer)
    if scheduler:
        name, options = OTHERS[scheduler]
        pipe.scheduler = getattr(diffusers, name).from_config(pipe.scheduler.config, **options)
    pipe.set_progress_bar_config(disable=True)
    generator = torch.Generator("cpu").manual_seed(7)
    options = dict(num_inference_steps=4, height=64, width=64, generator=generator, output_type="np")
    picture = pipe("a red circle", **options).images[0]
    return numpy.ascontiguousarray((picture * 255).round().astype(numpy.uint8))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true")
    write = parser.parse_args().write
    pictures = {name: draw(**options) for name, options in CASES.items()}
    if write:
        save_file(pictures, FILE, {name: json.dumps(options) for name, options in CASES.items()})
        return
    known = load_file(FILE)
    for name, picture in pictures.items():
        print(f"{name}: largest difference {abs(picture.astype(int) - known[name].astype(int)).max()}")


if __name__ == "__main__":
    main()
