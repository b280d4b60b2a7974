"""What is legal for every key of every option, by hand: the first pattern that fits "group=option.key" counts.

Written from the papers and the docstrings, not from the code, so that the two can differ. `REFUSED` are values.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from fnmatch import fnmatch
from typing import Any

Rule = Callable[[Any], bool]


def null(value: Any) -> bool:
    return value is None


def flag(value: Any) -> bool:
    return isinstance(value, bool)


def anything(value: Any) -> bool:
    return True


def nothing(value: Any) -> bool:
    return False


def text(value: Any) -> bool:
    return isinstance(value, str) and 0 < len(value) < 100


def whole(low: int = 0, high: float = 1e9) -> Rule:
    return lambda value: isinstance(value, int) and not isinstance(value, bool) and low <= value <= high


def number(
    low: float = -math.inf, high: float = math.inf, *, above: float = -math.inf, below: float = math.inf
) -> Rule:
    """A finite number in [low, high], above one and below another."""

    def legal(value: Any) -> bool:
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            return False
        return low <= value <= high and above < value < below

    return legal


def infinite(value: Any) -> bool:
    return value == math.inf


def one(*names: str) -> Rule:
    return lambda value: value in names


def either(*rules: Rule) -> Rule:
    return lambda value: any(rule(value) for rule in rules)


def many(rule: Rule, low: int = 0, high: float = math.inf) -> Rule:
    return lambda value: isinstance(value, list) and low <= len(value) <= high and all(rule(item) for item in value)


def rising(value: Any) -> bool:
    return many(number(), 2, 2)(value) and value[0] < value[1]


positive, count, share = number(above=0), whole(1), number(0, 1)
LEGAL: dict[str, Rule] = {
    # train.yaml and sample.yaml
    "train.of": either(null, text),
    "train.head": either(null, one("npr", "sn")),
    "*.variance_output": one("fixed", "learned_range"),
    "train.conditional": flag,
    "train.budget": either(null, number(above=0, below=1e6), lambda value: value in ("90s", "10min", "2h")),
    "*.batch_size": count,
    "train.run": either(null, text),
    "train.init": either(null, text),
    "sample.run": either(null, text),
    "sample.out": either(null, text),
    "*.device": either(null, one("cpu")),
    "*.extensions": many(nothing),
    "sample.num_samples": whole(),
    "sample.trajectory": either(null, whole(2, 1001)),
    "sample.neighbours": either(null, whole(1, 1001)),
    "sample.condition": null,  # none of the trials' runs has one
    "sample.image": null,
    "sample.sequence": null,
    "sample.label": either(null, whole(0, 9), many(whole(0, 9), 1)),
    "train.seed": whole(0, 2**64),
    "sample.seed": whole(0, 2**64),
    # of every likelihood
    "*likelihood*.when": one("ode", "always"),
    "*likelihood*.num_examples": either(null, whole()),
    "*likelihood*.split": either(null, one("test", "train", "all")),
    "*likelihood*.seed": either(null, whole(0, 2**64)),
    "*likelihood*.csv": either(null, text),
    "*likelihood*.resume": flag,
    # sde
    "sde=*.t_min": either(null, number(above=0, below=1)),
    "sde=*.beta_min": number(above=0, below=20),
    "sde=*.beta_max": number(above=0.1),
    "sde=*.sigma_min": number(above=0, below=50),
    "sde=*.sigma_max": number(above=0.002),
    "sde=*.rho": positive,
    "sde=*.s": number(0, 1e6),
    "sde=*.logsnr_min": number(high=13),
    "sde=*.logsnr_max": number(low=-5),
    "sde=*.betas.betas.steps": whole(3),
    "sde=*.betas.betas.start": number(above=0, below=1),
    "sde=*.betas.betas.end": number(above=0, below=1),
    "sde=*.betas.start": number(above=0, below=1),
    "sde=*.betas.end": number(above=0, below=1),
    "sde=*.betas.s": number(0, 1e6),
    "sde=*.betas.max_beta": number(above=0, below=1),
    "sde=*.betas.steps": whole(2),
    "sde=*.schedule": one("network", "linear"),
    "sde=*.learn_ends": flag,
    "*.sigma_data": either(null, positive),
    "parameterization=velocity.label": one("time", "data_time"),
    "parameterization=velocity.label_scale": positive,
    "parameterization=velocity.scale_input": flag,
    # models
    "model=*.features": whole(1, 65536),
    "model=*.num_classes": either(null, count),
    "model=*.condition_dim": either(null, count),
    "model=auto.depth": either(null, count),
    "model=auto.dropout": either(null, number(0, below=1)),
    "model=*.condition_mean": either(null, many(number(), 1)),
    "model=*.condition_std": either(null, many(positive, 1)),
    "model=*.condition_categories": either(null, many(whole(), 1)),
    "model=*.condition_width": either(null, whole()),
    "model=*.condition_optional": either(null, flag),
    "model=*.image": null,
    "model=*.sequence": null,
    "model=*.patch": whole(1, 64),
    "model=*.channels": either(null, count),
    "model=*.image_size": either(null, count),
    "model=*.out_channels": either(null, count),
    "model=*.shape": either(null, many(count, 1)),
    "model=*.channel_mults": either(null, many(count, 1)),
    "model=*.num_res_blocks": either(null, count),
    "model=*.attention_resolutions": either(null, many(count)),
    "model=*.width": either(null, count),
    "model=*.depth": count,
    "model=*.layers": count,
    "model=*.bins": count,
    "model=*.levels": either(null, whole(2)),
    "model=*.value_range": either(null, rising),
    "model=*.dropout": number(0, below=1),
    "model=*.fir": either(null, flag),
    "model=*.fir_kernel": many(number(), 1),
    "model=*.block": one("biggan", "ddpm"),
    "model=*.progressive_output": one("none", "output_skip", "residual"),
    "model=*.progressive_input": either(null, one("none", "input_skip", "residual")),
    "model=*.progressive_combine": one("sum", "cat"),
    "model=*.embedding": one("positional", "fourier", "log_fourier"),
    "model=*.fourier_scale": positive,
    "model=*.init_scale": number(0),
    "model=*.num_scales": count,
    "model=*.sigma_*": positive,
    "model=*.norm_groups": either(null, count),
    "model=*.concat_channels": either(null, whole()),
    "model=*.fourier_features": either(one("levels"), many(number())),
    "model=*.data_scale": either(null, positive),
    "model=*.checkpoint": flag,
    "model=*.wiener": either(null, one("none", "edm", "epsilon", "data")),
    "model=*.centered": flag,
    "model=*.scale_by_sigma": flag,
    "model=*.resample_with_conv": flag,
    "model=*.skip_rescale": flag,
    "model=*.time_conditional": flag,
    "sde=*.width": count,
    # losses
    "loss=*.weighting.power": number(),
    "loss=*.weighting.low": number(0),
    "loss=*.weighting.high": either(positive, infinite),
    "loss=*.time.mean": number(),
    "loss=*.time.std": positive,
    "loss=*.time.steps": count,
    "loss=*.time.scale": number(-1, 1.75),
    "loss=*.time.shift": either(null, number(1e-6, 1e6)),
    "loss=*.time.size": either(null, count),
    "loss=*.time.base_size": count,
    "loss=*.time.base.mean": number(),
    "loss=*.time.base.std": positive,
    "loss=*.coupling": one("independent", "optimal_transport"),
    "loss=*.sampling": one("independent", "stratified", "antithetic"),
    "loss=*.reduction": one("mean", "half_sum"),
    "loss=*.label_dropout": share,
    "loss=*.condition_dropout": share,
    "loss=*.image_dropout": share,
    "loss=*.sequence_dropout": share,
    "loss=*.joint_dropout": share,
    "loss=*.relative": flag,
    "loss=*.weight": number(0),
    "loss=*.order2": one("trace", "jacobian", "both"),
    "loss=*.probes": either(null, count),
    "loss=*.probe": one("rademacher", "gaussian"),
    "loss=*.objective": one("simple", "hybrid", "vlb"),
    "loss=*.variance": one("learned", "small", "large"),
    "loss=vdm.steps": either(null, count),
    "loss=*.steps": count,
    "loss=*.vlb_weight": number(0),
    "loss=*.levels": either(null, whole(2)),
    "loss=*.decoder.levels": either(null, whole(2)),
    "loss=*.value_range": either(null, rising),
    "loss=*.cdf": one("exact", "tanh"),
    "loss=*.prior": flag,
    "loss=*.resampling": null,
    "loss=*.resampling.history": count,
    "loss=*.resampling.uniform": share,
    "loss=*.clock": one("own", "logsnr"),
    # data
    "data=*.path": either(null, text),
    "data=*.test_path": either(null, text),
    "data=*.image_path": either(null, text),
    "data=image_folder.image_size": null,  # without image_path
    "data=image_folder.image_channels": null,
    "data=*.standardize": flag,
    "data=*.test_fraction": number(0, below=1),
    "data=*.seed": whole(0, 2**64),
    "data=*.label_key": either(null, text),
    "data=image_folder.levels": either(null, whole(2, 2**16)),
    "data=image_folder.splits": either(null, flag),
    "data=*.levels": either(null, whole(2)),
    "data=table.columns": either(null, lambda value: value in (["a"], ["b"], ["a", "b"])),
    "data=table.condition": either(null, lambda value: value in (["a"], ["b"])),
    "data=table.categories": null,
    "data=table.label": either(null, one("a", "b")),
    "data=table.separator": either(null, one("comma", "semicolon", "tab", "bar", ",", ";", "\t", "|", "x")),
    "data=*.missing": either(null, one("mask")),
    "data=array.key": either(null, text),
    "data=*.transform": either(null, one("log", "asinh", "quantile", "none"), lambda value: value == {}),
    "data=*.circular": either(null, lambda value: value == {}),
    "data=*.num_classes": either(null, count),
    "data=array.vocabulary": either(null, count),
    "data=array.image_categories": either(null, count),
    "data=*.channels_last": flag,
    "data=*.flip": flag,
    "data=*.crop": number(0, below=1),
    "data=image_folder.size": either(null, count),
    "data=image_folder.channels": one(1, 3),  # type: ignore[arg-type]
    "data=toy.name": one("moons", "checkerboard", "spirals", "eight_gaussians", "swiss_roll"),
    "data=toy.size": whole(2),
    "data=ANY.size": either(null, count),  # of experiment=photos
    "data=simulator.size": whole(2),
    "data=simulator.test_size": whole(),
    "data=*.simulator.dim": count,
    "data=*.simulator.*_variance": positive,
    "data=toy.noise": either(null, number(0)),
    # optimizer, trainer, logger, task
    "optimizer=*.lr": positive,
    "optimizer=*.betas": many(number(0, below=1), 2, 2),
    "optimizer=*.eps": number(0),
    "optimizer=*.weight_decay": number(0),
    "optimizer=*.fused": either(null, flag),
    "trainer=*.steps": either(null, count),
    "trainer=*.minutes": either(null, number(above=0, below=1e6)),
    "trainer=*.warmup": whole(),
    "trainer=*.decay": one("constant", "cosine", "linear"),
    "trainer=*.clip": either(null, positive),
    "trainer=*.accumulate": count,
    "trainer=*.ema_decay": either(null, number(0, below=1)),
    "trainer=*.ema_ramp": flag,
    "trainer=*.precision": one("float32", "bfloat16"),
    "trainer=*.channels_last": flag,
    "trainer=*.compile": flag,
    "trainer=*.progress": flag,
    "trainer=*.*_every": either(null, whole(), number(above=0, below=1)),
    "logger=*.loggers": many(nothing),
    "logger=*.project": text,
    "logger=*.entity": either(null, text),
    "logger=*.name": either(null, text),
    "logger=*.tags": many(text),
    "logger=*.timeout": positive,
    "task=*.captions": either(null, many(either(text, many(text, 1)), 10, 10)),
    "task=*.text_*": whole(1, 65536),
    "task=*.of": either(null, text),
    "task=*.head": one("npr", "sn"),
    "task=*.steps": either(null, count),
    "task=*.pairs": count,
    "task=*.path": either(null, text),
    "task=*.given": one("observation", "truth"),
    "task=*.noise": number(0),
    "task=*.num_observations": either(null, count),
    "task=*.mask": text,
    "task=*.hidden": number(above=0, below=1),
    "task=*.factor": whole(2),
    "task=*.kernel": one("average", "bicubic"),
    "task=*.std": number(above=0, high=1000),
    "task=*.boundary": one("reflect", "periodic"),
    "task=*.rtol": number(above=0, below=1),
    # solvers
    "solver=pc.order": one("corrector_first", "predictor_first"),
    "solver=exponential_adams.order": either(null, whole(1, 4)),
    "solver=deis.order": whole(1, 4),
    "solver=lms.order": whole(1, 4),
    "solver=ipndm.order": whole(1, 4),
    "solver=dpm_multistep.order": whole(2, 3),
    "solver=*.order": whole(1, 3),
    "solver=sa_solver.*_order": whole(1, 4),
    "solver=ode.steps": either(null, count),
    "solver=*.steps": count,
    "solver=*.rtol": number(above=0, below=1),
    "solver=*.atol": number(above=0),
    "solver=*.t_end": either(null, number(0, below=1)),
    "solver=*.denoise": flag,
    "parameterization=*.label": one("time", "data_time"),
    "parameterization=*.label_scale": positive,
    "parameterization=*.scale_input": flag,
    "solver=*.grid.rho": positive,
    "solver=*.grid.scale": positive,
    "solver=*.grid.power": positive,
    "solver=*.grid.end": number(0),
    "solver=*.grid.length": whole(20),
    "solver=*.grid.spacing": one("uniform", "quadratic", "even", "even_1"),
    "solver=*.snr": positive,
    "solver=*.inner_steps": count,
    "solver=*.max_ratio": positive,
    "solver=*.eta": number(0),
    "solver=*.variance": one("small", "large", "optimal", "learned"),
    "solver=*.clip_denoised": either(null, rising),
    "solver=*.clip_last_noise": either(null, number(0)),
    "solver=*.prediction": one("eps", "data", "flow", "v"),
    "solver=*.corrector": either(null, flag),
    "solver=*.clock": one("own", "logsnr", "ratio", "time", "flow", "sigma"),
    "solver=*.exact": flag,
    "solver=*.extrapolate": flag,
    "solver=*.lower_order_final": flag,
    "solver=*.r": number(above=0, high=1),
    "solver=heun.s_churn": number(0),
    "solver=heun.s_min": number(0),
    "solver=heun.s_max": either(number(0), infinite),
    "solver=heun.s_noise": number(0),
    "solver=runge_kutta.method": one("euler", "midpoint", "heun", "rk4"),
    "solver=*.method": one(
        "dopri5", "dopri8", "bosh3", "fehlberg2", "adaptive_heun", "adams", "srk", "euler", "milstein"
    ),
    "solver=*.per_sample": flag,
    "solver=*.adaptive": flag,
    "solver=*.seed": either(null, whole(0, 2**64)),
    "solver=*.coupling": number(above=0, high=1),
    "solver=*.tau": number(0),
    "solver=*.interval": many(either(number(0), infinite), 2, 2),
    "solver=*.variant": one("bh1", "bh2"),
    # the other groups of sample.py
    "grid=*.rho": positive,
    "grid=*.power": positive,
    "grid=*.scale": positive,
    "grid=*.end": number(0),
    "grid=*.variance": one("optimal", "small", "large"),
    "grid=*.gaussian_start": flag,
    "grid=*.refit": flag,
    "grid=*.levels": either(null, whole(2)),
    "grid=*.*": count,
    "method=tds.covariance": one("jacobian", "isotropic"),
    "method=tds.threshold": number(0, 1),
    "method=tds.independent": flag,
    "method=*.particles": count,
    "method=*.root_iterations": count,
    "method=*.rows": count,
    "method=*.steps": count,
    "method=*.iterations": either(null, count),
    "method=*.tolerance": number(0, below=1),
    "method=*.std": positive,
    "method=*.strength": positive,
    "method=*.zeta": number(0),
    "method=*.t_end": either(null, number(0, below=1)),
    "method=*.denoise": flag,
    "method=*.eta": number(0, 1),
    "method=*.eta_b": number(0, 1),
    "method=*.ode_steps": count,
    "method=*.covariance": one("unit", "noise"),  # a trained model knows none
    "method=*.langevin_steps": count,
    "method=*.langevin_rate": number(above=0, below=1),
    "method=*.jump": count,
    "method=*.resamplings": count,
    "method=*.as_published": flag,
    "method=*.t_stop": number(0, below=1),
    "method=*.grid.scale": positive,
    "method=*.grid.power": positive,
    "method=*.grid.end": number(0),
    "method=*.solver.steps": count,
    "method=*.solver.t_end": either(null, number(0, below=1)),
    "method=*.solver.denoise": flag,
    "method=*.solver.variance": one("small", "large", "optimal", "learned"),
    "method=*.solver.clip_denoised": either(null, rising),
    "method=*.solver.clip_last_noise": either(null, number(0)),
    "guidance=*.scale": number(),
    "guidance=*.scale.power": number(above=0, high=1e6),
    "guidance=*.scale.*": number(-1e9, 1e9),
    "guidance=*.rescale": share,
    "guidance=*.eta": number(-1e9, 1e9),
    "guidance=*.norm": either(null, positive),
    "guidance=*.negative": whole(0, 9),
    "guidance=*.interval": either(null, many(number(0), 2, 2)),
    "guidance=observations.rows": either(null, many(many(number(), 1), 1)),
    "guidance=observations.path": either(null, text),
    "guidance=observations.samples": whole(3),
    "guidance=*.reference": text,
    "guidance=*.classifier": either(null, text),
    "guidance=*.embedding": either(null, text),
    "guidance=*.text": null,  # the trials have a label
    "guidance=*.through": one("noisy", "x0"),
    "guidance=*.form": one("score"),  # the steps of the trials draw no noise
    "variance=*.samples": count,
    "variance=*.levels": either(null, whole(2)),
    "variance=*.corrected": flag,
    "variance=*.seed": whole(0, 2**64),
    "variance=*.probes": either(null, count),
    "variance=*.isotropic": flag,
    "variance=*.head": one("npr", "sn"),
    "likelihood=*.form": one("dsm", "ssm"),
    "likelihood=*.sampling": one("stratified", "antithetic"),
    "likelihood=*.t_start": either(null, number(above=0, below=1)),
    "likelihood=*.decoder": one("discretized", "categorical"),
    "likelihood=*.decoder_variance": either(null, positive, one("posterior")),
    "likelihood=*.variance": one("small", "large", "optimal", "learned"),
    "likelihood=*.divergence": one("exact", "hutchinson", "hutch++"),
    "likelihood=*.probes": count,
    "likelihood=*.probe": one("rademacher", "gaussian", "orthogonal"),
    "likelihood=*.method": one("adams", "dopri5", "dopri8", "bosh3", "fehlberg2", "adaptive_heun"),
    "likelihood=*.rtol": number(above=0, below=1),
    "likelihood=*.atol": number(above=0),
    "likelihood=*ode.steps": either(null, count),
    "likelihood=vlb.steps": count,
    "likelihood=*vlb.steps": count,
    "likelihood=*.steps": either(null, count),
    "likelihood=*.below": one("density", "decoder"),
    "likelihood=*.dequantization": either(null, one("uniform", "truncated_normal", "variational")),
    "likelihood=*.samples": count,
    "likelihood=*.importance": flag,
    "likelihood=*.repeat": share,
    "likelihood=*.draws": either(null, count),
    "diagnostics=*.which": either(
        one("all", "loss", "fokker_planck", "asymmetry", "gap"),
        many(one("loss", "fokker_planck", "asymmetry", "gap"), 1),
    ),
    "diagnostics=classification.by": one("elbo", "ode"),
    "diagnostics=classification.prior": one("uniform", "counts"),
    "diagnostics=classification.num_examples": either(null, whole(2)),
    "diagnostics=classification.samples": whole(2),
    "diagnostics=classification.probes": count,
    "diagnostics=classification.tolerance": number(above=0, below=1),
    "diagnostics=*.bins": count,
    "diagnostics=*.solver": null,
    "diagnostics=*.exact": whole(),
    "diagnostics=*.exact_draws": whole(10),
    "diagnostics=calibration.num_examples": either(null, whole(2)),
    "diagnostics=*.num_examples": either(null, count),
    "diagnostics=*.probes": either(null, whole(2)),
    "diagnostics=*.*": count,
}


def legal(name: str, value: Any) -> bool:
    """Whether a value is one that the key may have; `name` as in LEGAL.

    Raises:
        LookupError: If no pattern fits the key: write one.
    """
    for pattern, rule in LEGAL.items():
        if fnmatch(name, pattern):
            return rule(value)
    raise LookupError(f"{name} has no rule in LEGAL")
