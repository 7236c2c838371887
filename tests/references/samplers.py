"""The matrix of sampler cases: each class with its options, spacings, sigmas, predictions, orders and starts.

Needs scipy for beta sigmas and LMS.
"""

import inspect
import json

import diffusers
import torch
from diffusers.configuration_utils import FrozenDict

BASE = dict(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")
SPACINGS = ["linspace", "leading", "trailing"]
SIGMAS = ["use_karras_sigmas", "use_exponential_sigmas", "use_beta_sigmas"]
VELOCITY = dict(prediction_type="v_prediction")
SAMPLE = dict(prediction_type="sample")
COSINE = dict(beta_schedule="squaredcos_cap_v2")
DYNAMIC = dict(thresholding=True, dynamic_thresholding_ratio=0.9, sample_max_value=1.5)
ZERO_SNR = dict(rescale_betas_zero_snr=True, prediction_type="v_prediction", timestep_spacing="trailing")
SIGMA_MIN = dict(final_sigmas_type="sigma_min")


OTHERS = {
    "ddim": ("DDIMScheduler", {}),
    "ddpm": ("DDPMScheduler", {}),
    "pndm": ("PNDMScheduler", {}),
    "euler": ("EulerDiscreteScheduler", {}),
    "euler-a": ("EulerAncestralDiscreteScheduler", {}),
    "heun": ("HeunDiscreteScheduler", {}),
    "lms": ("LMSDiscreteScheduler", {}),
    "kdpm2": ("KDPM2DiscreteScheduler", {}),
    "kdpm2-a": ("KDPM2AncestralDiscreteScheduler", {}),
    "dpm++2m": ("DPMSolverMultistepScheduler", dict(algorithm_type="dpmsolver++", solver_order=2)),
    "dpm++2m-sde": ("DPMSolverMultistepScheduler", dict(algorithm_type="sde-dpmsolver++", solver_order=2)),
    "dpm++2s": ("DPMSolverSinglestepScheduler", dict(algorithm_type="dpmsolver++", solver_order=2)),
    "unipc": ("UniPCMultistepScheduler", {}),
    "lcm": ("LCMScheduler", {}),
    "deis": ("DEISMultistepScheduler", dict(algorithm_type="deis", solver_order=2)),
    "sa-solver": ("SASolverScheduler", dict(algorithm_type="data_prediction")),
    "tcd": ("TCDScheduler", {}),
    "edm-euler": ("EDMEulerScheduler", {}),
}


def cases():
    """Configurations and how they are run: steps, first call, eta, options of LCM, and another scheduler's name."""

    def case(name, steps=5, start=0, eta=0.0, shape=None, lcm=None, scheduler=None, base=BASE, **config):
        shape = shape or ((2, 2, 2, 2) if config.get("thresholding") else (1, 2, 2, 2))
        return dict(config={"_class_name": name, **base, **config}, steps=steps, start=start, eta=eta, shape=shape,
                    lcm=lcm or {}, scheduler=scheduler)

    name = "DDIMScheduler"
    for spacing in SPACINGS:
        yield case(name, 7, 3, timestep_spacing=spacing, clip_sample=False, eta=0.5)
    yield case(name, 6, base={})
    yield case(name, 8, 2, **ZERO_SNR, **DYNAMIC)

    name = "DDPMScheduler"
    for spacing in SPACINGS:
        yield case(name, 5, timestep_spacing=spacing, clip_sample=False)
        yield case(name, 7, 3, timestep_spacing=spacing, steps_offset=1)
    for kind in ("fixed_small_log", "fixed_large"):
        yield case(name, variance_type=kind, clip_sample=False)
    for kind in ("learned", "learned_range"):
        yield case(name, 4, variance_type=kind, clip_sample=False, shape=(1, 3, 2, 2))
    for schedule in ("linear", "squaredcos_cap_v2", "laplace", "sigmoid"):
        yield case(name, 4, beta_schedule=schedule, beta_end=0.02)
    for options in (VELOCITY, SAMPLE, ZERO_SNR, DYNAMIC, dict(clip_sample_range=0.5)):
        yield case(name, **options)

    name = "PNDMScheduler"
    for spacing in SPACINGS:
        yield case(name, 6, timestep_spacing=spacing, skip_prk_steps=True, steps_offset=1)
        yield case(name, 7, timestep_spacing=spacing, set_alpha_to_one=True, **VELOCITY)
        yield case(name, 7, 2, timestep_spacing=spacing, skip_prk_steps=True)
    for steps in (1, 2, 3):
        yield case(name, steps, skip_prk_steps=True)
    yield case(name, 4, **COSINE)
    yield case(name, 7, 3)

    for name in ("EulerDiscreteScheduler", "HeunDiscreteScheduler", "LMSDiscreteScheduler", "KDPM2DiscreteScheduler",
                 "KDPM2AncestralDiscreteScheduler"):
        order = getattr(diffusers, name).order
        for spacing in SPACINGS:
            yield case(name, 5, timestep_spacing=spacing, steps_offset=1)
            yield case(name, 6, 2 * order, timestep_spacing=spacing, use_karras_sigmas=True)
        for sigmas in SIGMAS:
            yield case(name, 4, base={}, **{sigmas: True})
        yield case(name, 1)
        yield case(name, 6, **VELOCITY, **({} if "Ancestral" in name else COSINE))
    for name in ("EulerDiscreteScheduler", "HeunDiscreteScheduler", "LMSDiscreteScheduler"):
        yield case(name, 4, **SAMPLE)
    yield case("HeunDiscreteScheduler", 4, beta_schedule="exp")
    yield case("HeunDiscreteScheduler", 4, clip_sample=True, clip_sample_range=0.7)
    name = "EulerDiscreteScheduler"
    for sigmas in SIGMAS:
        yield case(name, 4, sigma_min=0.05, sigma_max=9.5, **{sigmas: True})
    for options in (ZERO_SNR, SIGMA_MIN, dict(interpolation_type="log_linear"), dict(VELOCITY, timestep_type="continuous"),
                    dict(interpolation_type="log_linear", use_karras_sigmas=True), dict(num_train_timesteps=997)):
        yield case(name, 5, **options)
    name = "EulerAncestralDiscreteScheduler"
    for spacing in SPACINGS:
        yield case(name, 5, timestep_spacing=spacing, steps_offset=1)
        yield case(name, 6, 2, timestep_spacing=spacing, **VELOCITY)
    yield case(name, 4, **ZERO_SNR)

    name = "DPMSolverMultistepScheduler"
    for algorithm in ("dpmsolver++", "sde-dpmsolver++", "dpmsolver", "sde-dpmsolver"):
        ending = SIGMA_MIN if algorithm.endswith("dpmsolver") else {}
        for solver in ("midpoint", "heun"):
            for order in (1, 2, 3)[:2 if algorithm == "sde-dpmsolver" else 3]:
                if order > 1 or solver == "midpoint":
                    yield case(name, 6, algorithm_type=algorithm, solver_type=solver, solver_order=order, **ending)
        for prediction in (VELOCITY, SAMPLE):
            yield case(name, 4, algorithm_type=algorithm, **prediction, **ending)
        yield case(name, 4, algorithm_type=algorithm, **DYNAMIC, **ending)
    for sigmas in [*SIGMAS, "use_lu_lambdas"]:
        yield case(name, 6, 2, **{sigmas: True})
        yield case(name, 5, base={}, solver_order=3, **{sigmas: True})
        yield case(name, 5, **COSINE, lambda_min_clipped=-5.1, **{sigmas: True})
    for spacing in SPACINGS:
        yield case(name, 7, 3, timestep_spacing=spacing, steps_offset=1, solver_order=3)
        yield case(name, 5, timestep_spacing=spacing, **COSINE, lambda_min_clipped=-5.1)
    yield case(name, 15, solver_order=3)
    yield case(name, 6, solver_order=3, lower_order_final=False, **SIGMA_MIN)
    yield case(name, 6, solver_order=3, lower_order_final=False, euler_at_final=True, **SIGMA_MIN)
    yield case(name, 3, variance_type="learned_range", shape=(1, 3, 2, 2))
    yield case(name, 5, algorithm_type="deis", solver_type="logrho", **SIGMA_MIN)
    yield case(name, 5, **ZERO_SNR)
    yield case(name, 5, sigma_min=0.05, sigma_max=9.5, use_karras_sigmas=True)

    name = "DPMSolverSinglestepScheduler"
    for algorithm in ("dpmsolver++", "sde-dpmsolver++", "dpmsolver"):
        ending = SIGMA_MIN if algorithm == "dpmsolver" else {}
        for solver in ("midpoint", "heun"):
            for order in (2, 3):
                yield case(name, 6, algorithm_type=algorithm, solver_type=solver, solver_order=order, **ending)
    for steps in (1, 2, 3, 4, 5, 7):
        yield case(name, steps, solver_order=3)
    yield case(name, 5, solver_order=1)
    yield case(name, 6, solver_order=3, **SIGMA_MIN)
    yield case(name, 4, solver_order=2, lower_order_final=True, **SIGMA_MIN)
    for start in (1, 2):
        yield case(name, 7, start, solver_order=3)
    for sigmas in SIGMAS:
        yield case(name, 5, **{sigmas: True})
    for options in (VELOCITY, SAMPLE, DYNAMIC, dict(COSINE, lambda_min_clipped=-5.1)):
        yield case(name, 4, **options)

    name = "UniPCMultistepScheduler"
    for order in (1, 2, 3, 4):
        yield case(name, 6, solver_order=order)
        yield case(name, 6, solver_order=order, solver_type="bh1", **SIGMA_MIN)
    for order in (2, 3):
        yield case(name, 6, solver_order=order, predict_x0=False, **SIGMA_MIN)
        yield case(name, 5, solver_order=order, lower_order_final=False, **SIGMA_MIN)
    for prediction in (VELOCITY, SAMPLE):
        yield case(name, 4, **prediction)
        yield case(name, 4, predict_x0=False, **prediction, **SIGMA_MIN)
    for sigmas in SIGMAS:
        yield case(name, 6, 2, **{sigmas: True})
        yield case(name, 4, base={}, **SIGMA_MIN, **{sigmas: True})
    for spacing in SPACINGS:
        yield case(name, 7, 3, timestep_spacing=spacing, steps_offset=1, solver_order=3)
    for options in (ZERO_SNR, DYNAMIC, COSINE, dict(disable_corrector=[0, 2]), dict(solver_type="midpoint")):
        yield case(name, 5, **options)

    name = "LCMScheduler"
    yield case(name, 4, base={})
    yield case(name, 4, 1, original_inference_steps=30)
    yield case(name, 3, lcm=dict(original_inference_steps=20))
    yield case(name, 4, lcm=dict(strength=0.6))
    for options in (VELOCITY, SAMPLE, DYNAMIC, dict(clip_sample=True), dict(timestep_scaling=3.0), dict(COSINE)):
        yield case(name, 4, **options)

    # Stable Diffusion 1.5's file, one of Stable Diffusion 2.1 and others, each with another scheduler.
    sd15 = dict(clip_sample=False, set_alpha_to_one=False, skip_prk_steps=True, steps_offset=1)
    for scheduler in OTHERS:
        yield case("PNDMScheduler", 5, scheduler=scheduler, **sd15)
    for scheduler in ("ddpm", "euler", "heun", "dpm++2m:karras"):
        yield case("DDIMScheduler", 5, scheduler=scheduler, prediction_type="v_prediction", timestep_spacing="leading",
                   clip_sample=True, steps_offset=0)
        yield case("DDIMScheduler", 5, scheduler=scheduler, base={})
    karras = dict(use_karras_sigmas=True, sigma_min=0.05, sigma_max=9.5, solver_order=3)
    for scheduler in ("dpm++2m", "DPMSolverMultistepScheduler", "heun:beta", "lms", "ddim"):
        yield case("EulerDiscreteScheduler", 5, scheduler=scheduler, **karras)
    for scheduler in ("DPMSolverMultistepScheduler", "DPMSolverSinglestepScheduler", "pndm"):
        yield case("UniPCMultistepScheduler", 6, scheduler=scheduler, solver_order=3, solver_type="bh1", **SIGMA_MIN)
    yield case("UniPCMultistepScheduler", 6, scheduler="dpm++2m", solver_type="heun")

    for name in ("DDIMParallelScheduler", "DDPMParallelScheduler"):
        for spacing in SPACINGS:
            yield case(name, 7, 3, timestep_spacing=spacing, clip_sample=False, steps_offset=1)
        yield case(name, 6, base={})
        yield case(name, 8, 2, **ZERO_SNR, **DYNAMIC)
    yield case("DDIMParallelScheduler", 5, eta=0.7, clip_sample=False)

    name = "DDIMInverseScheduler"
    for spacing in ("leading", "trailing"):
        yield case(name, 6, timestep_spacing=spacing, clip_sample=False)
        yield case(name, 7, timestep_spacing=spacing, clip_sample=False, set_alpha_to_one=False, **VELOCITY)
        yield case(name, 7, timestep_spacing=spacing, steps_offset=1)
    yield case(name, 5, clip_sample=False, set_alpha_to_one=False, **SAMPLE)
    yield case(name, 5, clip_sample=False, set_alpha_to_zero=False, **SAMPLE)
    yield case(name, 5, rescale_betas_zero_snr=True, clip_sample_range=0.8, **VELOCITY)

    name = "DEISMultistepScheduler"
    for order in (1, 2, 3):
        yield case(name, 6, solver_order=order)
        yield case(name, 16, solver_order=order)
        yield case(name, 7, 3, solver_order=order, lower_order_final=False)
    for sigmas in SIGMAS:
        yield case(name, 6, 2, **{sigmas: True})
        yield case(name, 5, base={}, solver_order=3, **{sigmas: True})
    for spacing in SPACINGS:
        yield case(name, 7, 3, timestep_spacing=spacing, steps_offset=1, solver_order=3)
    for options in (VELOCITY, SAMPLE, DYNAMIC, COSINE, dict(algorithm_type="dpmsolver++", solver_type="heun"),
                    dict(use_karras_sigmas=True, sigma_min=0.05, sigma_max=9.5)):
        yield case(name, 5, **options)

    name = "DPMSolverMultistepInverseScheduler"
    for algorithm in ("dpmsolver++", "dpmsolver"):
        for solver in ("midpoint", "heun"):
            for order in (1, 2, 3):
                yield case(name, 6, algorithm_type=algorithm, solver_type=solver, solver_order=order)
    for sigmas in SIGMAS:
        yield case(name, 6, **{sigmas: True})
    for spacing in SPACINGS:
        yield case(name, 7, timestep_spacing=spacing, steps_offset=1, solver_order=3)
        yield case(name, 5, timestep_spacing=spacing, **COSINE, lambda_min_clipped=-5.1)
    yield case(name, 18, num_train_timesteps=20, use_karras_sigmas=True)
    for options in (VELOCITY, SAMPLE, DYNAMIC, dict(euler_at_final=True, lower_order_final=False)):
        yield case(name, 5, **options)
    yield case(name, 16, solver_order=3)

    name = "SASolverScheduler"
    for algorithm in ("data_prediction", "noise_prediction"):
        for predictor, corrector in ((1, 1), (2, 2), (1, 3), (3, 1), (3, 3), (3, 4)):
            yield case(name, 8, algorithm_type=algorithm, predictor_order=predictor, corrector_order=corrector)
        for options in (VELOCITY, SAMPLE, dict(lower_order_final=False), dict(use_karras_sigmas=True)):
            yield case(name, 5, algorithm_type=algorithm, **options)
    for sigmas in SIGMAS:
        yield case(name, 6, 2, **{sigmas: True})
    for spacing in SPACINGS:
        yield case(name, 7, 3, timestep_spacing=spacing, steps_offset=1)
    for options in (DYNAMIC, COSINE, dict(COSINE, lambda_min_clipped=-5.1)):
        yield case(name, 5, **options)

    name = "TCDScheduler"
    yield case(name, 4, base={})
    for eta in (0.0, 0.3, 1.0):
        yield case(name, 4, eta=eta)
        yield case(name, 5, 2, eta=eta, original_inference_steps=30)
    yield case(name, 3, eta=0.3, lcm=dict(original_inference_steps=20))
    yield case(name, 4, eta=0.3, lcm=dict(strength=0.6))
    for options in (VELOCITY, SAMPLE, COSINE, dict(clip_sample=True), dict(VELOCITY, rescale_betas_zero_snr=True)):
        yield case(name, 4, eta=0.3, **options)

    edm = dict(sigma_min=0.01, sigma_max=20.0, sigma_data=1.0, rho=5.0)
    for name in ("EDMEulerScheduler", "EDMDPMSolverMultistepScheduler"):
        for sigmas in ("karras", "exponential"):
            yield case(name, 6, base={}, sigma_schedule=sigmas)
            yield case(name, 5, 2, base={}, sigma_schedule=sigmas, **edm)
        for options in (VELOCITY, SIGMA_MIN, dict(num_train_timesteps=50)):
            yield case(name, 5, base={}, **options)
        yield case(name, 1, base={})
    for algorithm in ("dpmsolver++", "sde-dpmsolver++"):
        for solver in ("midpoint", "heun"):
            for order in (1, 2, 3)[:2 if algorithm.startswith("sde") else 3]:
                options = dict(algorithm_type=algorithm, solver_type=solver, solver_order=order)
                yield case(name, 6, base={}, **options, **SIGMA_MIN)
    yield case(name, 16, base={}, solver_order=3)
    yield case(name, 6, base={}, solver_order=3, lower_order_final=False, euler_at_final=True, **SIGMA_MIN)
    yield case(name, 5, base={}, algorithm_type="deis", solver_type="logrho", **SIGMA_MIN)
    yield case(name, 5, base={}, **DYNAMIC)

    for scheduler in ("deis:karras", "DDIMInverseScheduler", "DDIMParallelScheduler",
                      "DPMSolverMultistepInverseScheduler", "EDMDPMSolverMultistepScheduler"):
        yield case("PNDMScheduler", 5, scheduler=scheduler, **sd15)
    for scheduler in ("dpm++2m", "UniPCMultistepScheduler", "dpm++2s", "euler"):
        options = dict(solver_order=3, algorithm_type="deis", solver_type="logrho")
        yield case("DEISMultistepScheduler", 5, scheduler=scheduler, **options)
    for scheduler in ("euler:karras", "ddim", "EDMDPMSolverMultistepScheduler"):
        yield case("EDMEulerScheduler", 5, scheduler=scheduler, base={}, **edm)


def model(x, t, has_variance):
    """What stands for the UNet; a variance is in channels of its own."""
    epsilon = 0.3 * x + 0.01 * torch.sin(t.float())
    return torch.cat([epsilon, 0.02 + 0.01 * x * x], dim=1) if has_variance else epsilon


def seeded(shape, seed):
    return torch.randn(shape, generator=torch.Generator("cpu").manual_seed(seed))


def for_stable_diffusion(scheduler):
    """What `StableDiffusionPipeline.__init__` does to a scheduler's configuration."""
    if getattr(scheduler.config, "steps_offset", 1) != 1:
        scheduler._internal_dict = FrozenDict({**scheduler.config, "steps_offset": 1})
    if getattr(scheduler.config, "clip_sample", False) is True:
        scheduler._internal_dict = FrozenDict({**scheduler.config, "clip_sample": False})


def with_scheduler(scheduler, name):
    """Another scheduler with what the configuration of one says."""
    name, _, sigmas = name.partition(":")
    other, options = OTHERS.get(name, (name, {}))
    if sigmas:
        options = {**options, **{key: key == f"use_{sigmas}_sigmas" for key in SIGMAS}}
    return getattr(diffusers, other).from_config(scheduler.config, **options)


def add_noise(scheduler, x, noise, t):
    """Latents of the noise that a step at `t` starts from; DDIM's inverse has no method for them."""
    if hasattr(scheduler, "add_noise"):
        return scheduler.add_noise(x, noise, t.repeat(x.shape[0]))
    t = t - scheduler.config.num_train_timesteps // scheduler.num_inference_steps
    alpha = scheduler.alphas_cumprod[t] if t >= 0 else scheduler.initial_alpha_cumprod
    return alpha.sqrt() * x + (1 - alpha).sqrt() * noise


def run(case):
    """Timesteps, noised latents where the run starts, and the latents after each call."""
    config, start = dict(case["config"]), case["start"]
    scheduler = getattr(diffusers, config.pop("_class_name")).from_config(config)
    if case["scheduler"]:
        for_stable_diffusion(scheduler)
        scheduler = with_scheduler(scheduler, case["scheduler"])
    scheduler.set_timesteps(case["steps"], **case["lcm"])
    timesteps = scheduler.timesteps
    if hasattr(scheduler, "set_begin_index"):
        scheduler.set_begin_index(start)
    x, noise = seeded(case["shape"], 0), seeded(case["shape"], 2)
    noised = add_noise(scheduler, x, noise, timesteps[start])
    x = noised if start else x * scheduler.init_noise_sigma
    options = dict(generator=torch.Generator("cpu").manual_seed(1), eta=case["eta"])
    known = inspect.signature(scheduler.step).parameters
    options = {key: value for key, value in options.items() if key in known}
    has_variance = str(config.get("variance_type")).startswith("learned")
    steps = []
    for t in timesteps[start:]:
        x = scheduler.step(model(scheduler.scale_model_input(x, t), t, has_variance), t, x, **options).prev_sample
        assert x.isfinite().all(), case
        steps.append(x)
    return timesteps.float(), noised.float(), torch.stack(steps).float()


def samplers():
    """All cases one after another, and their list."""
    listed = list(cases())
    timesteps, noised, steps = zip(*(run(case) for case in listed))
    tensors = {name: torch.cat([part.flatten() for part in parts])
               for name, parts in dict(timesteps=timesteps, noised=noised, steps=steps).items()}
    listed = [{key: value for key, value in case.items() if value} for case in listed]
    return tensors, {"cases": json.dumps(listed, separators=(",", ":"))}
