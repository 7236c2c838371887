"""One runtime in a process of its own: runs a piece of work several times, and prints what it took as one JSON object.

    python runtimes.py RUNTIME WORK SIDE CALLS MODELS OUTPUT

WORK is `unet` (a batch of two, as under guidance), `decode` (one picture), `text` (two prompts), `start` (a prompt and
the UNet's first call) or `picture` (a prompt, ten calls of the UNet, decoding). MODELS is the checkpoint for PyTorch,
else a folder of ONNX files. The last output goes to OUTPUT as a NumPy file.
"""
import json
import os
import sys
import time

BEGUN = time.time()  # before what is imported below

import numpy as np

THREADS = int(os.environ.get("OMP_NUM_THREADS", "2"))
STEPS = 10
NETWORKS = {"unet": ["unet"], "decode": ["vae_decoder"], "text": ["text_encoder"],
            "start": ["text_encoder", "unet"], "picture": ["text_encoder", "unet", "vae_decoder"]}


def inputs(network, side):
    """The same for each runtime, by the names that kiln gives them."""
    numbers = np.random.default_rng(7)
    latents = [side // 8, side // 8]
    if network == "unet":
        return {"sample": numbers.standard_normal([2, 4, *latents], dtype=np.float32),
                "timestep": np.array([501.0], np.float32),
                "encoder_hidden_states": numbers.standard_normal([2, 77, 768], dtype=np.float32)}
    if network == "vae_decoder":
        return {"latents": numbers.standard_normal([1, 4, *latents], dtype=np.float32)}
    return {"input_ids": numbers.integers(0, 49000, [2, 77])}


class OnnxRuntime:
    """ONNX Runtime as it is, on a folder of ONNX files."""

    def __init__(self, models):
        import onnxruntime
        self.models, self.runtime, self.version = models, onnxruntime, onnxruntime.__version__

    def load(self, network):
        options = self.runtime.SessionOptions()
        options.intra_op_num_threads = THREADS
        session = self.runtime.InferenceSession(os.path.join(self.models, f"{network}.onnx"), options)
        first = session.get_outputs()[0].name
        return lambda given: session.run([first], by_name(given, [port.name for port in session.get_inputs()]))[0]


class OpenVino:
    """OpenVINO, in the precision that its hint says, or in that of its choice."""

    def __init__(self, models, precision=None):
        import openvino
        self.models, self.core, self.version = models, openvino.Core(), openvino.__version__.split("-")[0]
        self.settings = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_NUM_THREADS": THREADS}
        if precision:
            self.settings["INFERENCE_PRECISION_HINT"] = precision

    def load(self, network):
        model = self.core.compile_model(os.path.join(self.models, f"{network}.onnx"), "CPU", self.settings)
        request = model.create_infer_request()
        return lambda given: np.array(request.infer(given)[model.output(0)])


class Torch:
    """PyTorch, by diffusers' and transformers' classes, whose attention is PyTorch's fused one."""

    def __init__(self, models, dtype="float32"):
        import torch
        torch.set_num_threads(THREADS)
        self.models, self.torch, self.version, self.dtype = models, torch, torch.__version__, getattr(torch, dtype)

    def load(self, network):
        from diffusers import AutoencoderKL, UNet2DConditionModel
        from transformers import CLIPTextModel
        kind, folder = {"unet": (UNet2DConditionModel, "unet"), "vae_decoder": (AutoencoderKL, "vae"),
                        "text_encoder": (CLIPTextModel, "text_encoder")}[network]
        loaded = kind.from_pretrained(os.path.join(self.models, folder), torch_dtype=self.dtype).eval()
        loaded = loaded.to(memory_format=self.torch.channels_last)

        def call(given):
            tensors = {name: self.tensor(value) for name, value in given.items()}
            with self.torch.inference_mode():
                if network == "unet":
                    made = loaded(tensors["sample"], tensors["timestep"], tensors["encoder_hidden_states"]).sample
                elif network == "vae_decoder":
                    made = loaded.decode(tensors["latents"]).sample
                else:
                    made = loaded(**tensors).last_hidden_state
            return made.float().numpy()
        return call

    def tensor(self, value):
        tensor = self.torch.from_numpy(value)
        return tensor.to(self.dtype) if tensor.is_floating_point() else tensor


RUNTIMES = {
    "onnxruntime": OnnxRuntime,
    "onnxruntime-torch-export": OnnxRuntime,
    "openvino-f32": lambda models: OpenVino(models, "f32"),
    "openvino": OpenVino,
    "torch-f32": Torch,
    "torch-bf16": lambda models: Torch(models, "bfloat16"),
}


def by_name(given, names):
    """Inputs by name; exporters other than kiln give others, in the same order."""
    return given if set(names) == set(given) else dict(zip(names, given.values()))


def peak_bytes():
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) * 1024 for line in status if line.startswith("VmHWM"))


def main():
    name, work, side, calls, models, output = sys.argv[1:]
    runtime = RUNTIMES[name](models)
    networks = {network: runtime.load(network) for network in NETWORKS[work]}
    given = {network: inputs(network, int(side)) for network in networks}
    repeats = {"unet": STEPS} if work == "picture" else {}

    def once():
        for network, call in networks.items():
            for _ in range(repeats.get(network, 1)):
                made = call(given[network])
        return made

    if work == "start":
        once()
        seconds = [time.time() - float(os.environ.get("STARTED", BEGUN))]
    else:
        once()
        seconds = []
        for _ in range(int(calls)):
            begun = time.perf_counter()
            made = once()
            seconds.append(time.perf_counter() - begun)
        np.save(output, made)
    print(json.dumps({"seconds": seconds, "peak_bytes": peak_bytes(), "version": runtime.version}))


if __name__ == "__main__":
    main()
