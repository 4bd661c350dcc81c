"""The scheduler configurations that schedules are tried on, and a plain diffusers run to hold them against."""

from __future__ import annotations

import inspect
import logging
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from graphopt.program.schedule import Schedule


@dataclass(frozen=True)
class Case:
    """One scheduler, set up one way: as it is to be read, or as it is to be refused."""

    scheduler: str  # the class's name without "Scheduler"
    steps: int | None = 20
    config: Mapping[str, Any] = field(default_factory=dict)
    options: Mapping[str, Any] = field(default_factory=dict)  # of Schedule.from_diffusers
    double: bool = False  # compared in float64, where diffusers' own rounding in float32 is above the tolerance
    live: int | None = None  # the tensors that must live, where the minimum is known
    refusal: str = ""  # a part of the reason, for what cannot be read

    @property
    def title(self) -> str:
        given = {**self.config, **self.options}
        parts = [f"{key}={_short(value)}" for key, value in given.items()]
        if self.double:
            parts.append("float64")
        return f"{self.scheduler}-{self.steps}" + (f"({', '.join(parts)})" if parts else "")

    def build(self) -> Any:
        from diffusers import schedulers

        return getattr(schedulers, self.scheduler + "Scheduler")(**self.config)

    def read(self) -> Schedule:
        with quiet():
            return Schedule.from_diffusers(self.build(), self.steps, **self.options)


def _short(value: Any) -> str:
    return f"[{len(value)}]" if isinstance(value, list) else str(value)


@contextmanager
def quiet() -> Iterator[None]:
    """Without diffusers' advice on options that a case sets on purpose."""
    logger = logging.getLogger("diffusers")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


def trajectory(case: Case, model: Callable[[Any, Any], Any], sample: Any, generator: Any) -> list[Any]:
    """Every sample that diffusers' own scheduler returns, driven as its pipelines drive it."""
    options = dict(case.options)
    with quiet():
        scheduler = case.build()
        begin = options.pop("begin_index", 0)
        of_setup = inspect.signature(scheduler.set_timesteps).parameters
        setup = {key: options.pop(key) for key in list(options) if key in of_setup}
        if not {"timesteps", "sigmas"} & set(setup):
            setup["num_inference_steps"] = case.steps
        scheduler.set_timesteps(**setup)
        if begin and hasattr(scheduler, "set_begin_index"):
            scheduler.set_begin_index(begin)
        times = scheduler.timesteps[begin:]
        of_step = inspect.signature(scheduler.step).parameters
        samples = []
        for index, time in enumerate(times):
            if "generator" in of_step:
                options["generator"] = generator
            if "prev_timestep" in of_step:
                options["prev_timestep"] = times[index + 1] if index + 1 < len(times) else None
            scaled = scheduler.scale_model_input(sample, time) if hasattr(scheduler, "scale_model_input") else sample
            sample = scheduler.step(model(scaled, time), time, sample, return_dict=False, **options)[0]
            samples.append(sample)
    return samples


def tanh_net(sample: Any, time: Any) -> Any:
    """A small net that is nonlinear, depends on the time and mixes neighbouring places; for torch and numpy."""
    import numpy as np

    if isinstance(sample, np.ndarray):
        return np.tanh(sample * 0.7 + 0.3 * float(np.sin(float(time) * 0.01))) + np.roll(sample, 1, axis=-1) * 0.05
    import torch

    return torch.tanh(sample * 0.7 + 0.3 * float(np.sin(float(time) * 0.01))) + torch.roll(sample, 1, dims=-1) * 0.05


FLOW = {"prediction_type": "flow_prediction", "use_flow_sigmas": True, "flow_shift": 3.0}
ZERO_SNR = {"prediction_type": "v_prediction", "rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}
STABLE_DIFFUSION = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "steps_offset": 1}

_DETERMINISTIC = [
    Case("DDIM", config={"clip_sample": False}, live=1),
    Case("DDIM", config={"clip_sample": False, **STABLE_DIFFUSION, "set_alpha_to_one": False}, live=1),
    Case("DDIM", config={"clip_sample": False, **ZERO_SNR}, live=1),
    Case("DDIM", config={"clip_sample": False, "prediction_type": "sample"}, live=1),
    Case("DDIMInverse", config={"clip_sample": False}, live=1),
    Case("DDIMParallel", config={"clip_sample": False}, live=1),
    Case("CogVideoXDDIM", live=1),
    Case("DPMSolverMultistep", config={"solver_order": 1}, live=1),
    Case("DPMSolverMultistep", live=2),
    Case("DPMSolverMultistep", config={"solver_order": 3}, live=3),
    Case("DPMSolverMultistep", config={"algorithm_type": "dpmsolver", "final_sigmas_type": "sigma_min"}, live=2),
    Case("DPMSolverMultistep", config={"use_karras_sigmas": True}, live=2),
    Case("DPMSolverMultistep", config={"use_exponential_sigmas": True}, live=2),
    Case("DPMSolverMultistep", config={"use_lu_lambdas": True}, live=2),
    Case("DPMSolverMultistep", config={"solver_type": "heun", "prediction_type": "v_prediction"}, live=2),
    Case("DPMSolverMultistep", config=FLOW, live=2),
    Case("DPMSolverMultistep", config={"euler_at_final": True}, live=2),
    Case("DPMSolverMultistepInverse", live=2),
    Case("DPMSolverSinglestep", config={"solver_order": 1}, live=1),
    Case("DPMSolverSinglestep", live=2),
    Case("DPMSolverSinglestep", config={"solver_order": 3}, live=2),
    Case("DPMSolverSinglestep", config=FLOW, live=2),
    Case("UniPCMultistep", config={"solver_order": 1}),
    Case("UniPCMultistep", live=3),
    Case("UniPCMultistep", config={"solver_order": 3}, live=4),
    Case("UniPCMultistep", config={"solver_type": "bh1", "final_sigmas_type": "sigma_min"}, live=3),
    Case("UniPCMultistep", config=FLOW, live=3),
    Case("UniPCMultistep", config={"predict_x0": False, "final_sigmas_type": "sigma_min"}, live=3),
    Case("UniPCMultistep", config={"disable_corrector": [0, 1, 2]}),
    Case("EulerDiscrete", live=1),
    Case("EulerDiscrete", config={"prediction_type": "v_prediction", "timestep_spacing": "trailing"}, live=1),
    Case("EulerDiscrete", config={"use_karras_sigmas": True}, live=1),
    Case("EulerDiscrete", config={"use_beta_sigmas": True}, live=1),
    Case("EulerDiscrete", config={"timestep_type": "continuous", "prediction_type": "v_prediction"}, live=1),
    Case("EulerDiscrete", config={"interpolation_type": "log_linear"}, live=1),
    Case("HeunDiscrete", live=2),
    Case("HeunDiscrete", config={"use_karras_sigmas": True, "prediction_type": "v_prediction"}, live=2),
    Case("HeunDiscrete", config={"clip_sample": True}),
    Case("KDPM2Discrete", live=2),
    Case("KDPM2Discrete", config={"use_karras_sigmas": True}, live=2),
    Case("LMSDiscrete", live=4),
    Case("LMSDiscrete", config={"use_karras_sigmas": True}, live=4),
    Case("DEISMultistep", config={"solver_order": 1}, live=1),
    Case("DEISMultistep", live=2),
    Case("DEISMultistep", config={"solver_order": 3}, live=3),
    Case("DEISMultistep", config=FLOW, live=2),
    Case("PNDM", live=5),
    Case("PNDM", config={"skip_prk_steps": True, **STABLE_DIFFUSION}, live=4),
    Case("IPNDM", live=4),
    Case("EDMEuler", live=1),
    Case("EDMEuler", config={"prediction_type": "v_prediction", "sigma_schedule": "exponential"}, live=1),
    Case("EDMDPMSolverMultistep", live=2),
    Case("EDMDPMSolverMultistep", config={"solver_order": 3}, live=3),
    Case("FlowMatchEulerDiscrete", live=1),
    Case("FlowMatchEulerDiscrete", config={"shift": 3.0}, live=1),
    Case("FlowMatchEulerDiscrete", config={"use_dynamic_shifting": True}, options={"mu": 0.5}, live=1),
    Case("FlowMatchEulerDiscrete", config={"use_dynamic_shifting": True}, options={"mu": 1.15}, live=1),
    Case("FlowMatchEulerDiscrete", steps=None, options={"sigmas": [1.0, 0.75, 0.5, 0.25]}, live=1),
    Case("FlowMatchHeunDiscrete", live=2),
    Case("FlowMapEulerDiscrete", live=1),
    Case("MiniMaxH3", live=1),
]

_STOCHASTIC = [
    Case("DDIM", config={"clip_sample": False}, options={"eta": 1.0}, live=1),
    Case("DDIM", config={"clip_sample": False}, options={"eta": 0.5}, live=1),
    Case("DDPM", config={"clip_sample": False}, live=1),
    Case("DDPM", config={"clip_sample": False, "variance_type": "fixed_large"}, live=1),
    Case("DDPM", config={"clip_sample": False, "prediction_type": "v_prediction"}, live=1),
    Case("DDPMParallel", config={"clip_sample": False}, live=1),
    Case("UnCLIP", config={"clip_sample": False}, live=1),
    Case("DPMSolverMultistep", config={"algorithm_type": "sde-dpmsolver++"}, live=2),
    Case("DPMSolverMultistep", config={"algorithm_type": "sde-dpmsolver++", "use_karras_sigmas": True}, live=2),
    Case("DPMSolverMultistep", config={"algorithm_type": "sde-dpmsolver", "final_sigmas_type": "sigma_min"}, live=2),
    Case("DPMSolverSinglestep", config={"algorithm_type": "sde-dpmsolver++"}),
    Case("EulerDiscrete", options={"s_churn": 5.0, "s_noise": 1.003}, live=1),
    Case("EulerAncestralDiscrete", live=1),
    Case("EulerAncestralDiscrete", config={"prediction_type": "v_prediction"}, live=1),
    Case("KDPM2AncestralDiscrete", live=2),
    Case("LCM", steps=4, live=1),
    Case("LCM", steps=8, options={"original_inference_steps": 40}, live=1),
    Case("TCD", steps=4, live=1),
    Case("TCD", steps=8, options={"eta": 0.7}, live=1),
    Case("CMStochasticIterative", steps=4, config={"clip_denoised": False}, live=1),
    Case("ConsistencyDecoder", steps=2),
    Case("EDMEuler", options={"s_churn": 5.0}, live=1),
    Case("FlowMatchEulerDiscrete", config={"stochastic_sampling": True}, live=1),
    Case("FlowMatchLCM", steps=4, live=1),
    Case("LTXEulerAncestralRF"),
    Case("SASolver", live=3),
]

_CLIPPED = [
    Case("DDIM", live=1),
    Case("DDIM", options={"eta": 0.5}, live=1),
    Case("DDIM", options={"eta": 0.5, "use_clipped_model_output": True}, live=1),
    Case("DDIM", config={"clip_sample_range": 2.5, "prediction_type": "v_prediction"}, live=1),
    Case("DDPM", live=1),
    Case("DDPM", config={"variance_type": "fixed_large"}, live=1),
    Case("DDIMInverse", live=1),
    Case("UnCLIP", live=1),
    Case("LCM", steps=4, config={"clip_sample": True}, live=1),
    Case("CMStochasticIterative", steps=4, live=1),
]

_LENGTHS = [
    Case(
        name,
        steps=steps,
        config={"clip_sample": False} if name in ("DDIM", "DDPM") else {},
        double=(name, steps) == ("HeunDiscrete", 2),  # (x - x0) / sigma at sigma 0.03 costs it 1.1e-5
    )
    for name in (
        "DDIM", "DDPM", "DPMSolverMultistep", "UniPCMultistep", "EulerDiscrete", "EulerAncestralDiscrete",
        "HeunDiscrete", "DEISMultistep", "FlowMatchEulerDiscrete",
    )
    for steps in (1, 2, 3, 5, 10, 50, 100)
]  # fmt: skip

_IMAGE_TO_IMAGE = [
    Case(name, options={"begin_index": 8})
    for name in (
        "DPMSolverMultistep", "UniPCMultistep", "EulerDiscrete", "EulerAncestralDiscrete", "DEISMultistep",
        "FlowMatchEulerDiscrete", "HeunDiscrete",
    )
] + [
    Case("DDIM", config={"clip_sample": False}, options={"begin_index": 13}),
    Case("DPMSolverMultistep", steps=None, options={"timesteps": [999, 845, 730, 587, 443, 310, 193, 116, 53, 13]}),
]  # fmt: skip

_WHOLE_TRAINING_SCHEDULE = [Case("DDPM", steps=1000, config={"clip_sample": False}, live=1)]

READ = [*_DETERMINISTIC, *_STOCHASTIC, *_CLIPPED, *_IMAGE_TO_IMAGE, *_LENGTHS, *_WHOLE_TRAINING_SCHEDULE]

REFUSED = [
    Case("DDIM", config={"thresholding": True, "clip_sample": False}, refusal="dynamic thresholding"),
    Case("DDPM", config={"thresholding": True}, refusal="dynamic thresholding"),
    Case("DPMSolverMultistep", config={"thresholding": True}, refusal="dynamic thresholding"),
    Case("DDPM", config={"variance_type": "learned_range"}, refusal="learned variance"),
    Case("UnCLIP", config={"variance_type": "learned_range"}, refusal="learned variance"),
    Case("UniPCMultistep", config={"solver_order": 3, "solver_type": "bh1"}, refusal="not finite"),
    Case("FlowMatchEulerDiscrete", options={"per_token_timesteps": [1.0]}, refusal="one number a call"),
    Case("PNDM", steps=3, refusal="the scheduler itself fails"),
    Case("DDPMWuerstchen", refusal="foreign signature"),
    Case("RePaint", refusal="foreign step signature"),
    Case("ScoreSdeVe", refusal="foreign step signature"),
    Case("SCM", refusal="foreign step signature"),
    Case("HeliosDMD", refusal="foreign step signature"),
    Case("Helios", refusal="foreign step signature"),
    Case("CogVideoXDPM", refusal="foreign step signature"),
    Case("Piflow", refusal="a policy"),
    Case("KarrasVe", refusal="foreign step signature"),
    Case("DiscreteDDIM", refusal="categories"),
    Case("Amused", config={"mask_token_id": 5}, refusal="categories"),
    Case("VQDiffusion", config={"num_vec_classes": 8}, refusal="categories"),
]
