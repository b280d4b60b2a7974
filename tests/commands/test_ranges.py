"""Every option of every YAML with values of other kinds: used where that makes sense, else named in one sentence.

`MAY` lists what makes sense. Whatever it does not list must be refused, in one sentence that names the option, when the
object is built or, for functions that wait for more arguments, when it is first used.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from scoresde import VPSDE, Denoiser, DenoisingLoss, GaussianDenoiser, StepSolver, Trainer
from scoresde.commands import SolverGrid
from scoresde.commands.build import build, find_target
from scoresde.commands.optimizer import build_optimizer
from scoresde.inverse import Mask, Measurement
from scoresde.losses.loss import check_law

CONF = Path(__file__).parents[2] / "conf"
WRONG = (math.nan, math.inf, -math.inf, -1, 0, 0.5, 1e300, "abc", [], [0.5], [1, 0], [math.nan, 1.0], True, None, {})
FLAG = (True,)
MAY: dict[str, dict[str, tuple[Any, ...]]] = {
    "solver": {
        "t_end": (0, 0.5, None), "eta": (0, 0.5), "clip_denoised": (None,), "clip_last_noise": (0.5, 1e300, None),
        "denoise": FLAG, "exact": FLAG, "extrapolate": FLAG, "corrector": (*FLAG, None), "lower_order_final": FLAG,
        "adaptive": FLAG, "per_sample": FLAG, "order": (None,), "sigma_data": (0.5,), "steps": (None,), "seed": (None,),
        "rho": (0.5,), "s_churn": (0, 0.5, 1e300), "s_min": (0,), "s_max": (math.inf,), "snr": (0.5,),
        "max_ratio": (math.inf, 0.5), "rtol": (0.5,), "atol": (0.5,), "corrector_order": (0,), "tau": (0, 0.5),
        "r": (0.5,), "coupling": (0.5,), "scale": (0.5,), "power": (0.5,), "end": (0, 0.5),
    },
    "grid": {
        "rho": (0.5,), "power": (0.5,), "scale": (0.5,), "end": (0, 0.5),
        "levels": (None,), "iterations": (0,), "refit": FLAG, "gaussian_start": FLAG,
    },
    "sde": {
        "t_min": (0.5, None), "betas": ([0.5],), "end": (0.5,), "s": (0, 0.5), "max_beta": (0.5,), "rho": (0.5,),
        "sigma_min": (0.5,), "sigma_max": (0.5,), "beta_min": (0.5,), "beta_max": (0.5,),
        "logsnr_min": (-1, 0, 0.5), "logsnr_max": (-1, 0, 0.5), "learn_ends": FLAG,
    },
    "parameterization": {"sigma_data": (0.5,), "label_scale": (0.5,), "scale_input": FLAG},
    "model": {
        "out_channels": (None,), "num_classes": (None,), "condition_dim": (None,), "norm_groups": (None,),
        "dropout": (0, 0.5, None),
        "width": (None,), "channel_mults": (None,), "num_res_blocks": (None,),
        "sigma_min": (0.5,), "sigma_max": (0.5,), "fourier_scale": (0.5,), "init_scale": (0, 0.5),
        "data_scale": (0.5,), "concat_channels": (0, None), "attention_resolutions": ([], None), "depth": (0, None),
        "fir_kernel": ([1, 0],), "fourier_features": ([], [0.5], [1, 0]), "resample_with_conv": FLAG,
        "checkpoint": FLAG, "centered": FLAG, "time_conditional": FLAG, "skip_rescale": FLAG,
        "scale_by_sigma": FLAG, "fir": FLAG, "condition_mean": ([0.5], None), "condition_std": ([0.5], None),
        "condition_categories": (None,), "condition_width": (0, None), "condition_optional": (*FLAG, None),
        "wiener": (None,), "image": (None,), "sequence": (None,),
    },
    "data": {
        "size": (None,), "noise": (0, 0.5, None), "seed": (0,), "test_fraction": (0, 0.5), "flip": FLAG,
        "crop": (0, 0.5),
        "label_key": ("abc", None), "num_classes": (None,), "standardize": FLAG, "channels_last": FLAG,
        "test_path": ("abc", None), "levels": (None,), "splits": (*FLAG, None),
        "transform": (None, {}), "circular": (None, {}), "columns": (None,), "condition": (None,),
        "dim": (), "prior_variance": (0.5,), "noise_variance": (0.5,), "test_size": (0,),
        "categories": (None,), "label": ("abc", None), "separator": (None,), "missing": (None,), "key": ("abc", None),
        "vocabulary": (None,), "image_categories": (None,), "image_path": ("abc", None), "image_size": (None,),
        "image_channels": (None,),
    },
    "optimizer": {"lr": (0.5,), "eps": (0, 0.5), "weight_decay": (0, 0.5), "fused": (*FLAG, None)},
    "trainer": {
        "warmup": (0,), "clip": (math.inf, -math.inf, -1, 0.5, 1e300, None), "ema_decay": (0, 0.5, None),
        "log_every": (0, 0.5, None), "sample_every": (0, 0.5, None), "checkpoint_every": (0, 0.5, None),
        "snapshot_every": (0, 0.5, None), "minutes": (None,),
        "ema_ramp": FLAG, "channels_last": FLAG, "compile": FLAG, "progress": FLAG,
    },
    "likelihood": {
        "t_start": (0.5, None), "rtol": (0.5,), "atol": (0.5,), "steps": (None,), "repeat": (0, 0.5),
        "dequantization": (None,), "decoder_variance": (0.5, 1e300, None), "draws": (None,),
    },
    "guidance": {
        "rows": (None,), "path": (None,),
        "scale": (-1, 0, 0.5), "interval": (None,), "reference": ("abc",), "classifier": ("abc", None),
        "rescale": (0, 0.5), "eta": (-1, 0, 0.5), "norm": (0.5, None, 1e300), "negative": (0, "abc"),
        "noise": (-1, 0, 0.5), "data": (-1, 0, 0.5), "power": (0.5,), "text": ("abc", None), "embedding": ("abc", None),
    },
    "method": {
        "t_end": (0, 0.5, None), "denoise": FLAG, "eta": (0, 0.5), "eta_b": (0, 0.5), "langevin_rate": (0.5,),
        "iterations": (None,), "tolerance": (0, 0.5), "as_published": FLAG, "t_stop": (0, 0.5),
        "threshold": (0, 0.5), "independent": FLAG,
        "clip_denoised": (None,), "clip_last_noise": (0.5, 1e300, None), "scale": (0.5,), "power": (0.5,),
        "end": (0, 0.5),
        "std": (0.5,), "strength": (0, 0.5, 1e300), "zeta": (0, 0.5, 1e300),
    },
    "task": {"noise": (0, 0.5, 1e300), "hidden": (0.5,), "num_observations": (None,), "std": (0.5,)},
    "variance": {"levels": (None,), "corrected": FLAG, "isotropic": FLAG, "seed": (0,), "probes": (None,)},
    "diagnostics": {"num_examples": (None,), "probes": (None,), "tolerance": (0.5,), "exact": (0,), "solver": (None,)},
    "loss": {
        "label_dropout": (0, 0.5), "condition_dropout": (0, 0.5), "image_dropout": (0, 0.5),
        "sequence_dropout": (0, 0.5), "joint_dropout": (0, 0.5),
        "sigma_data": (0.5,), "mean": (-1, 0, 0.5), "std": (0, 0.5), "power": (-1, 0, 0.5),
        "low": (0, 0.5), "high": (math.inf, 0.5, 1e300), "weight": (0, 0.5), "vlb_weight": (0, 0.5), "probes": (None,),
        "resampling": (None,), "uniform": (0.5,), "relative": FLAG, "prior": FLAG, "steps": (None,),
        "shift": (0.5, None), "scale": (-1, 0, 0.5),
    },
}  # fmt: skip
THINNED = 6  # every sixth value for every option, another sixth for the next; 1 takes half a minute
DENOISER = GaussianDenoiser(VPSDE(), 0.0, 1.0)
X = torch.tensor([[0.3, -0.2], [0.1, 0.4]])
MEASUREMENT = Measurement(Mask(torch.tensor([1, 0])), torch.tensor([[0.5, 0.0]]), 0.0)
NET = list(torch.nn.Linear(1, 1).parameters())
RUN: dict[str, Any] = {
    "denoiser": torch.nn.Linear(1, 1), "loss": DenoisingLoss(), "optimizer": torch.optim.SGD(NET, lr=1.0),
    "batch": lambda step: (X, {}),
}  # fmt: skip


def use_solver(solver: Any) -> None:
    """In few steps; solvers without steps have checked everything when they are built."""
    if isinstance(solver, StepSolver):
        replace(solver, steps=min(solver.steps, 3))(DENOISER, X)


def use_grid(grid: Any) -> None:
    if not isinstance(grid, SolverGrid):
        grid(DENOISER.sde, 3, 1e-3)


def use_sde(sde: Any) -> None:
    t = torch.tensor([sde.t_min, 0.5, 0.999 if sde.ends_silent else 1.0], dtype=torch.float64)
    assert torch.stack([sde.alpha(t), sde.sigma(t), sde.logsnr(t), sde.f(t), sde.g(t)]).isfinite().all()


def use_loss(loss: Any) -> None:
    check_law(loss, DENOISER.sde, X.device)


def use_method(method: Any) -> None:
    """A denoiser of p(x0 | y) when it is asked, a solver as a solver."""
    if issubclass(method.func, Denoiser):
        method(DENOISER, MEASUREMENT)(X, 0.5)
    else:
        made = method(measurement=MEASUREMENT)
        made(DENOISER, X) if made.steps <= 3 else made.plan(DENOISER)


USE: dict[str, Callable[[Any], None]] = {
    "solver": use_solver, "grid": use_grid, "sde": use_sde, "loss": use_loss, "method": use_method,
}  # fmt: skip
FILLED: dict[str, Any] = {  # in place of null, as data do
    "sigma_data": 1.0, "levels": 4, "value_range": [-1.0, 1.0], "shape": [1, 2, 2], "channels": 1, "image_size": 4,
    "channel_mults": [1], "num_res_blocks": 1, "attention_resolutions": [], "fir": False, "progressive_input": "none",
    "data_scale": 1.0, "size": 4, "condition_dim": 1,
}  # fmt: skip
NARROW = {"width": 8, "norm_groups": 4}


def node_of(group: str, name: str) -> dict[str, Any]:
    node = yaml.safe_load((CONF / group / f"{name}.yaml").read_text(encoding="utf-8")) or {}
    for part in ("defaults", "unet", "mlp"):  # the last two of model=auto: nodes of their own
        node.pop(part, None)
    if group == "data" and "path" in node:
        node["path"] = "nowhere"  # found missing after the options are looked at
    return filled(node) if group in ("parameterization", "loss", "model") else node


def filled(node: dict[str, Any]) -> dict[str, Any]:
    nested = {key: filled(value) if isinstance(value, dict) else value for key, value in node.items()}
    suited = {key: FILLED.get(key) if value is None else value for key, value in nested.items()}
    classes = {"num_classes": 3} if str(node.get("_target_")).endswith("Classifier") else {}
    return {**suited, **{key: value for key, value in {**NARROW, **classes}.items() if key in suited}}


def options(node: dict[str, Any], before: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """The place of every option in a node, nested ones too."""
    for key, value in node.items():
        if key not in ("_target_", "_partial_", "defaults", "path"):
            yield (*before, key)
            if isinstance(value, dict):
                yield from options(value, (*before, key))


def with_value(node: dict[str, Any], place: tuple[str, ...], value: Any) -> dict[str, Any]:
    whole = inner = copy.deepcopy(node)
    for key in place[:-1]:
        inner = inner[key]
    inner[place[-1]] = value
    return whole


def from_config(node: Any) -> Any:
    target = str(node["_target_"])
    if target.startswith("torch.optim."):
        return build_optimizer(node, (), NET)
    return build(node, "group", (), **(RUN if target == "scoresde.Trainer" else {}))


def from_python(node: Any) -> Any:
    """The same calls without the checks that configurations go through."""
    if not isinstance(node, dict):
        return node
    arguments = {key: from_python(value) for key, value in node.items() if key not in ("_target_", "_partial_")}
    if "_target_" not in node:
        return arguments
    target = find_target(node["_target_"], "group")
    call = partial(target, **arguments, **(RUN if target is Trainer else {}))
    return call if node.get("_partial_") else call()


PARTS = ("default", "exact", "report", "none")  # likelihoods made of others
OWN = ("data", "own")  # a run's own data, with the checks of `build` alone
CASES = [(group, file.stem) for group in MAY for file in sorted((CONF / group).glob("*.yaml"))]
OF_TRAINING = ("classifier", "denoiser", "dequantization", "reflow", "variance_head")  # tasks with values of others
CASES = [case for case in CASES if case[0] != "task" or case[1] not in OF_TRAINING]
CASES = [case for case in CASES if case[0] != "likelihood" or case[1] not in PARTS]
CALLS = [(from_config, *case) for case in CASES] + [
    (from_python, *case) for case in CASES if case != OWN and case[0] != "optimizer"
]


@pytest.mark.parametrize(("make", "group", "name"), CALLS)
def test_every_option_has_a_range(make: Callable[[Any], Any], group: str, name: str) -> None:
    node = node_of(group, name)
    torch.manual_seed(0)
    for index, place in enumerate(options(node)):
        allowed = [repr(value) for value in MAY[group].get(place[-1], ())]
        if make is from_python and ("True" in allowed or place[-1] == "importance"):
            allowed.append("0")
        for value in WRONG[index % THINNED :: THINNED]:
            said = f"{group}={name} {group}.{'.'.join(place)}={value!r}"
            try:
                USE.get(group, str)(make(with_value(node, place, value)))
            except FileNotFoundError:
                assert group == "data" and repr(value) in allowed, f"{said} is accepted"
            except (ValueError, TypeError) as error:
                sentence = str(error)
                assert place[-1] in sentence and "\n" not in sentence, f"{said}: {sentence}"
            else:
                assert repr(value) in allowed, f"{said} is accepted"
