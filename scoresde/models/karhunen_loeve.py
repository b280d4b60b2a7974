"""The Karhunen-Loève transform of training data: directions in which they are uncorrelated, and their variances."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

DENSE_LIMIT = 1024  # entries of an event up to which directions are any, and not products of one per axis
VARIANCE_FLOOR = 1e-7  # of the largest variance: what float32 can tell from none
SHRINKAGES = (0.0, 1e-4, 3e-4, 1e-3, 3e-3, 0.01, 0.03, 0.1, 0.2, 0.35, 0.5, 0.7, 0.85, 1.0)


class Expansion(NamedTuple):
    """x = mean + Σ_k √variance_k z_k v_k with uncorrelated z_k.

        v_k of an event (C, *axes) is a product of a column of `factors` per axis, after the channels of each such mode
        are mixed by `mix`. Without axes `mix` holds the directions themselves.

    Attributes:
        mean: (C, *axes); an event of up to 1,024 entries is one axis of channels, (D,).
        factors: One orthogonal matrix (n, n) per axis but the first, columns are directions.
        mix: (C, C, *axes), orthogonal for each mode; mix[i, k] of channel i in direction k.
        variance: (C, *axes).
    """

    mean: Tensor
    factors: tuple[Tensor, ...]
    mix: Tensor
    variance: Tensor


def karhunen_loeve(x: Tensor) -> Expansion:
    """Mean, directions and variances of training data (N, C, *axes), float64.

    Directions of an axis are the eigenvectors of the covariance along it, averaged over all else; the channels of a
    mode are mixed by the eigenvectors of their own covariance. Of up to 1,024 entries the covariance Σ is then freed of
    the structure, as far as the number of examples allows,

        Σ = W ((1 − ρ) S + ρ I) W,      W² the variances of the structure, S the covariance after W⁻¹

    with the ρ that gives held-out examples the largest Gaussian likelihood. A vector has no structure but its entries.
    """
    x = x.double()
    mean = x.mean(0)
    x = x - mean
    if x[0].numel() > DENSE_LIMIT:
        factors, mix, variance = _structure(x)
        return Expansion(mean, factors, mix, _floored(variance))
    vectors, variance = _unstructured(x)
    return Expansion(mean.flatten(), (), vectors, _floored(variance))


def rotate(x: Tensor, factors: tuple[Tensor, ...], mix: Tensor) -> Tensor:
    """Coordinates of x (B, C, *axes) along the directions, in the same shape."""
    for axis, factor in enumerate(factors, start=2):
        x = torch.movedim(torch.movedim(x, axis, -1) @ factor, -1, axis)
    return x @ mix if mix.ndim == 2 else torch.einsum("ik...,bi...->bk...", mix, x)


def rotate_back(x: Tensor, factors: tuple[Tensor, ...], mix: Tensor) -> Tensor:
    """What has these coordinates; the inverse of `rotate`, and its transpose."""
    x = x @ mix.mT if mix.ndim == 2 else torch.einsum("ik...,bk...->bi...", mix, x)
    for axis, factor in enumerate(factors, start=2):
        x = torch.movedim(torch.movedim(x, axis, -1) @ factor.mT, -1, axis)
    return x


def _structure(x: Tensor) -> tuple[tuple[Tensor, ...], Tensor, Tensor]:
    """(factors, mix, variance) of centred data."""
    if x.ndim == 2:  # the entries of a vector, as they are
        return (), torch.eye(x.shape[1], dtype=x.dtype, device=x.device), x.square().mean(0)
    factors = []
    for axis in range(2, x.ndim):
        lines = x.movedim(axis, -1).flatten(0, -2)
        factors.append(torch.linalg.eigh(lines.mT @ lines / len(lines)).eigenvectors)
    channels, axes = x.shape[1], x.shape[2:]
    plain = torch.eye(channels, dtype=x.dtype, device=x.device)
    plain = plain.reshape(channels, channels, *[1] * len(axes)).expand(channels, channels, *axes)
    modes = rotate(x, tuple(factors), plain).flatten(2)
    covariance = torch.einsum("bim,bkm->mik", modes, modes) / len(x)
    variance, vectors = torch.linalg.eigh(covariance)
    shape = (channels, *axes)
    return tuple(factors), vectors.permute(1, 2, 0).reshape(channels, *shape), variance.mT.reshape(shape)


def _unstructured(x: Tensor) -> tuple[Tensor, Tensor]:
    """(directions, variances) of centred data of few entries."""
    factors, mix, variance = _structure(x)
    std = _floored(variance).sqrt()
    white = (rotate(x, factors, mix) / std).flatten(1)
    shrinkage = _shrinkage(white)
    covariance = (1 - shrinkage) * (white.mT @ white / len(white))
    covariance.diagonal().add_(shrinkage)
    flat = std.flatten()
    identity = torch.eye(flat.numel(), dtype=x.dtype, device=x.device).reshape(-1, *x.shape[1:])
    basis = rotate(identity, factors, mix).flatten(1)  # row i: coordinates of entry i
    scaled = basis * flat
    variance, vectors = torch.linalg.eigh(scaled @ covariance @ scaled.mT)
    return vectors, variance


def _shrinkage(white: Tensor) -> float:
    """The ρ of `karhunen_loeve`, from five folds."""
    folds = min(5, len(white))
    if folds < 2:
        return 1.0
    loss = torch.zeros(len(SHRINKAGES), dtype=white.dtype)
    for fold in range(folds):
        held = torch.zeros(len(white), dtype=torch.bool, device=white.device)
        held[fold::folds] = True
        train, test = white[~held], white[held]
        eigenvalues, vectors = torch.linalg.eigh(train.mT @ train / len(train))
        power = (test @ vectors).square().mean(0)
        for index, shrinkage in enumerate(SHRINKAGES):
            variance = _floored((1 - shrinkage) * eigenvalues + shrinkage)
            loss[index] += float((power / variance + variance.log()).sum())
    return SHRINKAGES[int(loss.argmin())]


def _floored(variance: Tensor) -> Tensor:
    return variance.clamp_min(VARIANCE_FLOOR * float(variance.max()) or math.ulp(0.0))
