"""A pipeline with diffusers' names."""

import json
import os
import random
from dataclasses import dataclass, field
from operator import index
from typing import Any, Callable, Optional, Sequence, Union

from . import pictures
from ._kiln import Engine
from ._kiln import compile as compile_checkpoint
from .errors import RequestError

Texts = Union[str, Sequence[str]]

#: More pictures of a prompt than any call draws.
MAX_IMAGES = 256


@dataclass
class PipelineOutput:
    """What a call gives: as diffusers' outputs have them, and what was drawn from which seeds, in which time."""

    images: Any
    nsfw_content_detected: None = None
    seeds: "list[int]" = field(default_factory=list)
    seconds: "dict[str, float]" = field(default_factory=dict)

    def __getitem__(self, index: int) -> Any:
        return (self.images, self.nsfw_content_detected)[index]


def compile(
    checkpoint: Any, *, precision: Any = None, engine_cache: Any = None
) -> str:
    """Makes a bundle of a diffusers folder or a single file for the processor, or finds it in the engine cache, and gives its
    folder. ``precision`` is ``f32``, ``bf16``, ``int8`` or a torch dtype."""
    cache = None if engine_cache is None else os.fspath(engine_cache)
    return compile_checkpoint(os.fspath(checkpoint), "cpu", _precision(precision), cache)


class Pipeline:
    """Text to image, image to image and inpainting, with the names and defaults of diffusers' pipelines."""

    def __init__(self, bundle: Any, *, device: Optional[str] = None, threads: Optional[int] = None) -> None:
        self._threads = threads
        self._engine = Engine(os.fspath(bundle), device, threads, _onnxruntime())
        self._controlnets: "list[str]" = []
        self._embeddings: "list[tuple[str, Optional[str]]]" = []
        self._memory: "dict[str, Any]" = {}
        self._loras: "dict[str, tuple[str, float]]" = {}
        self._interrupt = False

    @classmethod
    def from_pretrained(
        cls,
        path: Any,
        *,
        torch_dtype: Any = None,
        precision: Any = None,
        device: Optional[str] = None,
        threads: Optional[int] = None,
        engine_cache: Any = None,
        use_safetensors: bool = True,
        safety_checker: None = None,
        **unknown: Any,
    ) -> "Pipeline":
        """Opens a bundle, or a checkpoint, which is compiled once and then found in the engine cache.

        On a processor half precision is computed in f32 unless ``precision`` asks for less: results are then those of f32."""
        if unknown:
            raise RequestError(f"from_pretrained takes no {', '.join(sorted(unknown))}")
        if not use_safetensors or safety_checker is not None:
            raise RequestError("weights are read from safetensors, and there is no safety checker")
        folder = os.fspath(path)
        if not os.path.isfile(os.path.join(folder, "bundle.yaml")):
            dtype = None if _precision(torch_dtype) == "f16" else torch_dtype
            folder = compile(folder, precision=precision or dtype, engine_cache=engine_cache)
        return cls(folder, device=device, threads=threads)

    def to(self, device: Any) -> "Pipeline":
        """The bundle's engines are for one kind of device: that of another kind is refused."""
        kind = str(device).partition(":")[0]
        if kind not in ("cpu", "cuda"):
            raise RequestError(f"device: '{device}' is none; expected cpu or cuda")
        self._engine = Engine(self._engine.path, str(device), self._threads, _onnxruntime())
        for bundle in self._controlnets:
            self._engine.add_controlnet(bundle)
        for file, token in self._embeddings:
            self._engine.add_embedding(file, token)
        if self._memory:
            self._engine.set_memory(json.dumps(self._memory))
        if self._loras:
            self._set_loras(self._loras)
        return self

    @property
    def notices(self) -> "list[str]":
        """What took the place of something better when the pipeline was opened, and why."""
        return self._engine.notices

    def __call__(
        self,
        prompt: Texts,
        height: Optional[int] = None,
        width: Optional[int] = None,
        num_inference_steps: Optional[int] = None,
        guidance_scale: Optional[float] = None,
        negative_prompt: Optional[Texts] = None,
        num_images_per_prompt: int = 1,
        eta: float = 0.0,
        generator: Any = None,
        *,
        seed: Optional[int] = None,
        image: Any = None,
        mask_image: Any = None,
        strength: Optional[float] = None,
        control_image: Any = None,
        controlnet_conditioning_scale: Union[float, Sequence[float], None] = None,
        control_guidance_start: float = 0.0,
        control_guidance_end: float = 1.0,
        guidance_rescale: float = 0.0,
        clip_skip: Optional[int] = None,
        output_type: str = "pil",
        return_dict: bool = True,
        callback_on_step_end: Optional[Callable[..., Any]] = None,
        callback_on_step_end_tensor_inputs: Sequence[str] = ("latents",),
        scheduler: Optional[str] = None,
        prompt_syntax: str = "plain",
        **more: Any,
    ) -> Any:
        """Draws. Arguments are diffusers', and besides ``seed``, ``scheduler``, ``prompt_syntax`` and further fields of kiln's
        requests, such as ``approximations={"deep_every": 2}``.

        ``generator`` is a torch generator that was seeded and has drawn nothing, a number, or a list of either; without it and
        ``seed`` the picture is another one each time. ``callback_on_step_end(pipe, step, timestep, values)`` is called after
        each step; ``values["latents"]`` is a copy, and ``pipe._interrupt = True`` ends the steps."""
        if output_type not in ("pil", "np", "bytes"):
            raise RequestError(f"output_type: '{output_type}' is not pil, np or bytes")
        if not 1 <= num_images_per_prompt <= MAX_IMAGES:
            raise RequestError(f"num_images_per_prompt: {num_images_per_prompt} is not a number from 1 to {MAX_IMAGES}")
        repeated = lambda texts: [text for text in texts for _ in range(num_images_per_prompt)]
        prompts = repeated(_texts(prompt, "prompt"))
        negative = [] if negative_prompt is None else _texts(negative_prompt, "negative_prompt")
        seeds, kind = _seeds(seed, generator)
        request = {
            "prompts": prompts,
            "negative_prompts": negative if len(negative) == 1 else repeated(negative),
            "prompt_syntax": prompt_syntax,
            "seeds": seeds,
            "generator": kind,
            "steps": num_inference_steps,
            "guidance_scale": guidance_scale,
            "guidance_rescale": guidance_rescale,
            "eta": eta,
            "height": height,
            "width": width,
            "clip_skip": clip_skip or 0,
            "scheduler": scheduler,
            **more,
        }
        if image is None and (mask_image is not None or strength is not None):
            raise RequestError("mask_image and strength need an image")
        init = None if image is None else pictures.read(image, "image")
        mask = None if mask_image is None else pictures.read(mask_image, "mask_image", gray=True)
        controls = _controls(control_image, controlnet_conditioning_scale, control_guidance_start, control_guidance_end)
        drawn, seconds, _ = self._engine.generate(
            json.dumps(request), init, mask, strength, controls, self._on_step(callback_on_step_end))
        names = ("start", "steps", "decode")
        output = PipelineOutput(pictures.write(drawn, output_type), seeds=seeds, seconds=dict(zip(names, seconds)))
        return output if return_dict else (output.images, None)

    def _on_step(self, callback: Optional[Callable[..., Any]]) -> Optional[Callable[..., bool]]:
        self._interrupt = False
        if callback is None:
            return None

        def on_step(step: int, timestep: Optional[float], latents: "tuple[list[int], bytes]") -> bool:
            callback(self, step - 1, timestep, {"latents": _array(*latents)})
            return not self._interrupt

        return on_step

    def plan(self, prompt: Texts, budget: Optional[int] = None, **request: Any) -> "dict[str, Any]":
        """The fastest way to draw within so many bytes: peak, seconds, and how memory is spent for it."""
        asked = json.dumps({"prompts": _texts(prompt, "prompt"), **request})
        plan: "dict[str, Any]" = json.loads(self._engine.plan(asked, budget))
        return plan

    def enable_model_cpu_offload(self, *_: Any, **__: Any) -> None:
        """One component is loaded at a time."""
        self._set_memory(offload="model")

    def enable_sequential_cpu_offload(self, *_: Any, **__: Any) -> None:
        """One segment of one component is loaded at a time."""
        self._set_memory(offload="sequential")

    def enable_vae_tiling(self, tile: Optional[int] = None) -> None:
        """Large pictures are decoded and encoded in overlapping tiles."""
        self._set_memory(vae_tiling={"tile": tile})

    def disable_vae_tiling(self) -> None:
        """Pictures are decoded as a whole."""
        self._set_memory(vae_tiling=None)

    def enable_vae_slicing(self) -> None:
        """Pictures are decoded one by one, as they always are."""

    def disable_vae_slicing(self) -> None:
        """Pictures are decoded one by one all the same."""

    def enable_attention_slicing(self, slice_size: Any = "auto") -> None:
        """Attention never has its scores in memory, which takes less than slices do."""

    def disable_attention_slicing(self) -> None:
        """As :meth:`enable_attention_slicing`."""

    def enable_xformers_memory_efficient_attention(self, *_: Any, **__: Any) -> None:
        """As :meth:`enable_attention_slicing`."""

    def load_lora_weights(self, path: Any, *, weight_name: Optional[str] = None, adapter_name: str = "default") -> "list[str]":
        """Adds a LoRA, a file or a folder, and gives what of it does not fit."""
        file = os.fspath(path) if weight_name is None else os.path.join(os.fspath(path), weight_name)
        return self._set_loras({**self._loras, adapter_name: (file, 1.0)})

    def set_adapters(self, names: Texts, weights: Union[float, Sequence[float], None] = None) -> None:
        """Sets the weights of LoRAs by the names that they were added with; the others' are 0."""
        names = _texts(names, "names")
        unknown = [name for name in names if name not in self._loras]
        if unknown:
            raise RequestError(f"no LoRA is called '{unknown[0]}'; there are: {', '.join(self._loras) or 'none'}")
        if weights is None or isinstance(weights, (int, float)):
            weights = [1.0 if weights is None else float(weights)] * len(names)
        each = [float(weight) for weight in weights]
        if len(each) != len(names):
            raise RequestError(f"{len(each)} weights for {len(names)} LoRAs")
        of = dict(zip(names, each))
        self._set_loras({name: (path, of.get(name, 0.0)) for name, (path, _) in self._loras.items()})

    def unload_lora_weights(self) -> None:
        """Draws with the bundle's own weights again."""
        self._set_loras({})

    def load_textual_inversion(self, path: Any, token: Optional[str] = None) -> str:
        """Adds a textual inversion, and gives the token that prompts name it by."""
        word = self._engine.add_embedding(os.fspath(path), token)
        self._embeddings.append((os.fspath(path), token))
        return word

    def add_controlnet(self, bundle: Any) -> None:
        """Adds a ControlNet's bundle; calls then take ``control_image``."""
        self._engine.add_controlnet(os.fspath(bundle))
        self._controlnets.append(os.fspath(bundle))

    def maybe_free_model_hooks(self) -> None:
        """Gives back all engines; the next call loads them again."""
        self._engine.release()

    def _set_memory(self, **options: Any) -> None:
        memory = {**self._memory, **options}
        self._engine.set_memory(json.dumps(memory))
        self._memory = memory

    def _set_loras(self, loras: "dict[str, tuple[str, float]]") -> "list[str]":
        left_out = self._engine.set_loras([lora for lora in loras.values() if lora[1] != 0.0])
        self._loras = loras
        return left_out


def _seed(given: Any, name: str) -> int:
    try:
        seed = index(given.initial_seed() if hasattr(given, "initial_seed") else given)
    except TypeError:
        seed = -1
    if not 0 <= seed < 1 << 64:
        raise RequestError(f"{name}: {given!r} is not a number from 0 to {(1 << 64) - 1}")
    return seed


def _texts(texts: Texts, name: str) -> "list[str]":
    every = [texts] if isinstance(texts, str) else texts
    if not isinstance(every, (list, tuple)) or not all(isinstance(one, str) for one in every):
        raise RequestError(f"{name}: expected a text or a list of texts, not {type(texts).__name__}")
    return list(every)


def _precision(dtype: Any) -> Optional[str]:
    if dtype is None:
        return None
    names = {"float32": "f32", "float16": "f16", "half": "f16", "bfloat16": "bf16"}
    name = str(dtype).rpartition(".")[2]
    return names.get(name, name)


def _seeds(seed: Optional[int], generator: Any) -> "tuple[list[int], str]":
    if seed is not None and generator is not None:
        raise RequestError("seed and generator: one of them")
    given = generator if generator is not None else seed
    if given is None:
        return [random.SystemRandom().getrandbits(63)], "cpu"
    every = list(given) if isinstance(given, (list, tuple)) else [given]
    kinds = {str(getattr(one, "device", "cpu")).partition(":")[0] for one in every}
    if len(kinds) != 1:
        raise RequestError("generator: all are to be of one device")
    seeds = [_seed(one, "seed" if generator is None else "generator") for one in every]
    return seeds, kinds.pop()


def _controls(image: Any, scale: Any, start: float, end: float) -> "list[tuple[Any, Optional[float], float, float]]":
    if image is None:
        return []
    images = image if isinstance(image, list) else [image]
    scales = list(scale) if isinstance(scale, (list, tuple)) else [scale] * len(images)
    if len(scales) != len(images):
        raise RequestError(f"controlnet_conditioning_scale: {len(scales)} numbers for {len(images)} pictures")
    read = [pictures.read(one, f"control_image[{i}]") for i, one in enumerate(images)]
    return [(picture, factor, start, end) for picture, factor in zip(read, scales)]


def _array(shape: "list[int]", data: bytes) -> Any:
    try:
        import numpy
    except ImportError:
        return memoryview(data).cast("f", shape)
    return numpy.frombuffer(data, numpy.float32).reshape(shape).copy()


def _onnxruntime() -> Optional[str]:
    """The folder of the package ``onnxruntime``, whose library kiln runs on; it is not imported."""
    from importlib.util import find_spec

    if os.environ.get("KILN_ONNXRUNTIME"):
        return None
    spec = find_spec("onnxruntime")
    folder = spec and spec.origin and os.path.join(os.path.dirname(spec.origin), "capi")
    return folder if folder and os.path.isdir(folder) else None
