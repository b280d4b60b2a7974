"""Bayes' rule for classes, from a generative model of each."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from scoresde.checks import check_choice, check_list, check_whole
from scoresde.denoiser import Denoiser, check_signal
from scoresde.denoiser.inference_mode import differentiates
from scoresde.guidance.branches import ask_all, require_same_sde
from scoresde.likelihood.elbo import ForwardPath, cell_std_error, stratified_uniforms
from scoresde.likelihood.flow_density import log_prob
from scoresde.noise.streams import stream_generator
from scoresde.sde.levels import Level


class ClassPosterior(NamedTuple):
    """Result of `class_posterior`, for B examples and K classes.

    Attributes:
        log_prob: log p(y | x), (B, K).
        log_joint: log p(x | y) + log p(y), (B, K); by the bound up to a number for each x.
        std_error: Of log_joint less its mean over the classes, (B, K), from random times and noises; 0 for an exact
            trace, and NaN for probes, which the classes share.
        nfe: Rows of network calls for each example, (B,).
    """

    log_prob: Tensor
    log_joint: Tensor
    std_error: Tensor
    nfe: Tensor


def class_posterior(
    denoisers: Sequence[Denoiser],
    x: Tensor,
    *,
    prior: Sequence[float] | None = None,
    by: str = "ode",
    samples: int = 32,
    seed: int = 0,
    **options: Any,
) -> ClassPosterior:
    """p(y | x) ∝ p(y) p(x | y) with the density that a denoiser of each class has.

        by="ode"   log p(x | y) of the probability flow, by `log_prob`: exact up to its tolerance. All classes have the
                   same probes, so that most of their error is in common
        by="elbo"  log p(x | y) ≥ c(x) − ½ ∫ E‖ε − ε̂_y(α x + σ ε)‖² d logsnr, at the same times and noises for all
                   classes (Li et al. 2023, eq. 6, with the weights of the bound); all classes in one network call

        class_posterior([model.given(label=torch.tensor(k)) for k in range(10)], x)

    With guided denoisers, "ode" is about the density of the guided flow.

    Args:
        denoisers: One of each class, on the same SDE.
        x: Data in the model's own scaling, (B, *).
        prior: p(y), normalised here; None: uniform.
        by: "ode" or "elbo".
        samples: Draws of (time, noise) for each example, for "elbo"; two or more.
        seed: Of all random numbers.
        options: Of `log_prob`, for "ode".

    References:
        Li et al., "Your Diffusion Model is Secretly a Zero-Shot Classifier", 2023, arXiv:2303.16203.
    """
    check_choice("class_posterior", "by", by, ("ode", "elbo"))
    check_whole("class_posterior", "samples >= 2", samples=samples)
    if len(denoisers) < 2:
        raise ValueError(f"class_posterior needs a denoiser for each of two classes or more, got {len(denoisers)}.")
    require_same_sde("class_posterior", *denoisers)
    log_prior = _log_prior(prior, len(denoisers)).to(x)
    if by == "ode":
        found = [log_prob(denoiser, x, seeds=seed, **options) for denoiser in denoisers]
        log_joint = torch.stack([one.log_prob for one in found], 1) + log_prior
        exact = options.get("divergence") == "exact"
        std_error = torch.full_like(log_joint, 0.0 if exact else torch.nan)
        nfe = torch.stack([one.nfe for one in found]).sum(0)
    else:
        if options:
            raise TypeError(f"class_posterior by elbo has no use for {next(iter(options))}: leave it out.")
        bound, std_error = _bounds(denoisers, x, samples, seed)
        log_joint = bound + log_prior
        nfe = torch.full((len(x),), samples * len(denoisers), device=x.device)
    return ClassPosterior(log_joint.log_softmax(1), log_joint, std_error, nfe)


@differentiates
@torch.no_grad()
def _bounds(denoisers: Sequence[Denoiser], x: Tensor, samples: int, seed: int) -> tuple[Tensor, Tensor]:
    """−½ ∫ E‖ε − ε̂‖² d logsnr of every class, and the standard error of its difference to their mean; (B, K)."""
    for denoiser in denoisers:
        check_signal(denoiser)
    path, generator = (
        ForwardPath(denoisers[0].sde, x, None, "decoder"),
        stream_generator(seed, "class", device=x.device),
    )
    rows = []
    for u in stratified_uniforms(samples, len(x), "stratified", generator, x.device):
        z = torch.randn(x.shape, generator=generator, dtype=x.dtype, device=x.device)
        t = path.time(u)
        noisy = path.at(t, z)
        answers = ask_all(denoisers, lambda one: one.v_at, noisy, Level.at(path.sde, t, noisy), {})
        weight = 0.5 * path.range * path.clock.rate(t)
        rows.append(torch.stack([-weight * path.error(t, z, v).double() for v in answers], 1))
    draws = torch.stack(rows)
    differences = draws - draws.mean(2, keepdim=True)
    errors = torch.stack([cell_std_error(each)[0] for each in differences.unbind(2)], 1)
    return draws.mean(0).to(x.dtype), errors.to(x.dtype)


def _log_prior(prior: Sequence[float] | None, classes: int) -> Tensor:
    weights = torch.tensor(check_list("class_posterior", "prior", [1.0] * classes if prior is None else prior))
    if len(weights) != classes or not bool((weights >= 0).all()) or not bool(weights.sum() > 0):
        raise ValueError(f"class_posterior needs a prior of {classes} weights that are not negative, got {prior!r}.")
    return (weights.double() / weights.double().sum()).log()
