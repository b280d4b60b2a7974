"""Several independent observations of one θ: p(θ | x_1, ..., x_n) from denoisers that know one observation each."""

from __future__ import annotations

import copy
from abc import abstractmethod
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from scoresde.checks import check_whole
from scoresde.denoiser import Denoiser
from scoresde.sde.clock import last_signal, nearest_signal
from scoresde.sde.levels import Level
from scoresde.solvers import ExponentialAdams, Solver

PriorScore = Callable[[Tensor], Tensor]  # θ (B, *) -> ∇ log p(θ) (B, *)
SMALL = 1e-9  # of the largest variance of a prior: less counts as this


class _Observations(Denoiser):
    """Denoisers of θ given x_1, ..., x_n one by one, and of the prior, asked together.

    Args:
        prior: Denoiser of p(θ).
        parts: Denoisers of p(θ | x_j), on the same SDE, as `model.given(condition=x_j)`.
    """

    def __init__(self, prior: Denoiser, parts: Sequence[Denoiser]) -> None:
        super().__init__()
        if not parts:
            raise ValueError(f"{type(self).__name__} needs one denoiser or more, each given one observation, got none.")
        for part in (*parts, prior):
            if part.sde != parts[0].sde:
                raise ValueError(
                    f"{type(self).__name__} combines denoisers at equal (α, σ): they need the same SDE, got "
                    f"{parts[0].sde} and {part.sde}."
                )
        self.sde, self.count = parts[0].sde, len(parts)
        self.prior, self.parts = prior, nn.ModuleList(parts)

    def _means(self, x: Tensor, level: Level, cond: dict[str, Any]) -> tuple[Tensor, Tensor]:
        """x̂0 of the prior (B, *) and of the parts (n, B, *)."""
        if isinstance(self.prior, Batched):  # which asks for the parts too
            together = self.prior.together(x, level, cond)
            return together[0], together[1:]
        parts = [part.x0(x, level, **cond) for part in self.parts if isinstance(part, Denoiser)]
        return self.prior.x0(x, level, **cond), torch.stack(parts)

    @abstractmethod
    def x0(self, x: Tensor, level: Level, **cond: Any) -> Tensor: ...

    def select(self, index: Tensor, batch: int) -> Denoiser | None:
        if isinstance(self.prior, Batched):
            return self if self.prior.select(index, batch) is self.prior else None
        chosen = [part.select(index, batch) for part in (self.prior, *self.parts) if isinstance(part, Denoiser)]
        known = [part for part in chosen if part is not None]
        if len(known) < len(chosen):
            return None
        other = copy.copy(self)
        other._modules = {**self._modules, "prior": known[0], "parts": nn.ModuleList(known[1:])}
        return other


class Batched(Denoiser):
    """One conditional model with several observations, asked in a single call of n + 1 times the batch.

    As a denoiser it is the prior: the model with no condition. `parts` are those of the observations.

    Args:
        denoiser: Takes `condition`, (B, C), and a row of NaN as none: trained with `condition_dropout`.
        observations: (n, C), in the units that the model takes.
    """

    observations: Tensor

    def __init__(self, denoiser: Denoiser, observations: Tensor) -> None:
        super().__init__()
        observations = torch.as_tensor(observations)
        observations = observations if observations.is_floating_point() else observations.double()
        if observations.ndim != 2 or observations.numel() == 0 or not bool(torch.isfinite(observations).all()):
            raise ValueError(
                f"Observations need to be finite and of shape (n, C), one row each, got {tuple(observations.shape)}."
            )
        self.sde, self.denoiser = denoiser.sde, denoiser
        self.register_buffer("observations", observations)

    @property
    def parts(self) -> list[Denoiser]:
        return [self.denoiser.given(condition=row) for row in self.observations]

    @property
    def rows(self) -> Tensor:
        """NaN for the prior, then the observations, (n + 1, C)."""
        return torch.cat([torch.full_like(self.observations[:1], float("nan")), self.observations])

    def x0(self, x: Tensor, level: Level, **cond: Any) -> Tensor:
        return self.denoiser.x0(x, level, **{**cond, "condition": None})

    def together(self, x: Tensor, level: Level, cond: dict[str, Any]) -> Tensor:
        """x̂0 of the prior and of every observation, (n + 1, B, *)."""
        if cond:
            raise ValueError(
                f"The observations are bound already, and no other condition can be added, got {', '.join(cond)}: "
                f"leave it out (condition=none on the command line)."
            )
        rows, batch = self.rows.to(x.device), len(x)
        many = x.repeat(len(rows), *[1] * (x.ndim - 1))
        at = level if level.time.ndim == 0 else Level.at(self.sde, level.time.repeat(len(rows)), many)
        means = self.denoiser.x0(many, at, condition=rows.repeat_interleave(batch, 0))
        return means.reshape(len(rows), *x.shape)

    def select(self, index: Tensor, batch: int) -> Denoiser | None:
        return self if self.denoiser.select(index, batch) is self.denoiser else None


class FactorisedPosterior(_Observations):
    """p(θ | x_1, ..., x_n) by a sum of scores, for annealed Langevin dynamics (F-NPSE).

        score_t = (1 − n)(1 − t) ∇ log p(θ) + Σ_j ∇ log p_t(θ | x_j)               (Geffner et al. 2023)
        x̂0      = Σ_j m_j − (n − 1)(1 − t) m_λ − (n − 1) t x/α

    with m the x̂0 of the parts and m_λ that of the prior. At t = 0 it is the posterior's score, at t = 1 that of
    N(0, σ²/n); in between it is that of no diffused density, so that the probability flow and the reverse SDE, which
    start from N(0, σ²), do not end in the posterior: use `AnnealedLangevin` or `PredictorCorrector` with many steps,
    or `ProductPosterior`.

    Args:
        prior: Denoiser of p(θ), whose noised score takes the place of ∇ log p(θ): both ends are the same. Or, as
            published, the function θ -> ∇ log p(θ).
        parts: Denoisers of p(θ | x_j) on one SDE.

    References:
        Geffner, Papamakarios and Mnih, "Compositional Score Modeling for Simulation-Based Inference", 2023,
        arXiv:2209.14249.
    """

    def __init__(self, prior: Denoiser | PriorScore, parts: Sequence[Denoiser]) -> None:
        if isinstance(prior, Denoiser) or not parts:
            super().__init__(prior, parts)  # type: ignore[arg-type]  # which says that there are no parts
            self.prior_score: PriorScore | None = None
        else:
            super().__init__(parts[0], parts)
            self.prior_score = prior
        self.last = last_signal(self.sde)

    @classmethod
    def of(cls, denoiser: Denoiser, observations: Tensor) -> FactorisedPosterior:
        """Of one conditional model that can do without its condition; one network call for all: see `Batched`."""
        batched = Batched(denoiser, observations)
        return cls(batched, batched.parts)

    def x0(self, x: Tensor, level: Level, **cond: Any) -> Tensor:
        x, level = nearest_signal(self.sde, x, level, self.last)
        prior, parts = self._means(x, level, cond)
        more, t = self.count - 1, level.t
        if self.prior_score is not None:
            prior = (x + level.sigma**2 * self.prior_score(x)) / level.alpha
        return parts.sum(0) - more * (1 - t) * prior - more * t / level.alpha * x


class ProductPosterior(_Observations):
    """p(θ | x_1, ..., x_n) by a product of Gaussians at every noise level (GAUSS); exact if all of them are Gaussian.

        p(θ_0 | θ_t, x_1...x_n) ∝ p(θ_0 | θ_t)^(1−n) Π_j p(θ_0 | θ_t, x_j)
        W_j = α² I + σ² Σ_j⁻¹,   Λ = Σ_j W_j + (1 − n) W_λ
        x̂0  = Λ⁻¹ (Σ_j W_j m_j + (1 − n) W_λ m_λ)                             (Linhart et al. 2024, eq. 12)

    with m_j, m_λ the x̂0 of the parts and of the prior, and W_j the precision of p(θ_0 | θ_t, x_j) times σ² if
    p(θ | x_j) has covariance Σ_j. It is a denoiser like any other: any solver will do, and log p. Where a Σ_j is wider
    than the prior's covariance Σ_λ in some direction, it counts as that of the prior there, which keeps Λ positive.

    Args:
        prior: Denoiser of p(θ).
        parts: Denoisers of p(θ | x_j) on the same SDE.
        prior_cov: Σ_λ, (d, d), of the flattened event.
        covs: Σ_j, (n, d, d), or (d, d) for all.

    References:
        Linhart et al., "Diffusion Posterior Sampling for Simulation-Based Inference in Tall Data Settings", 2024,
        arXiv:2404.07593.
    """

    prior_precision: Tensor
    precisions: Tensor
    variances: Tensor
    axes: Tensor

    def __init__(self, prior: Denoiser, parts: Sequence[Denoiser], prior_cov: Tensor, covs: Tensor) -> None:
        super().__init__(prior, parts)
        prior_cov, covs = (torch.as_tensor(cov).double() for cov in (prior_cov, covs))
        self._set(_precision(prior_cov, "prior_cov"), _precision(covs, "covs"))

    @classmethod
    def of(
        cls, denoiser: Denoiser, observations: Tensor, shape: Sequence[int], *, solver: Solver | None = None,
        samples: int = 500, generator: torch.Generator | None = None,
    ) -> ProductPosterior:  # fmt: skip
        """Of one conditional model that can do without its condition; one network call for all: see `Batched`.

        Σ_j and Σ_λ are those of samples, their inverses without bias.

        Args:
            denoiser, observations: See `Batched`.
            shape: Of an event θ, d entries.
            solver: For these samples; None: `ExponentialAdams()`.
            samples: For each covariance, at least d + 3.
            generator: Of their noise.
        """
        batched, d = Batched(denoiser, observations), int(torch.Size(shape).numel())
        check_whole("ProductPosterior", "least <= samples <= 100000000", samples=samples, least=d + 3)
        rows = batched.rows
        device = None if generator is None else generator.device
        x = denoiser.sde.prior_sample((len(rows) * samples, *shape), generator=generator, device=device)
        given = denoiser.given(condition=rows.repeat_interleave(samples, 0).to(x.device))
        chosen: Solver = ExponentialAdams() if solver is None else solver
        with torch.no_grad():
            x = chosen(given, x).double().reshape(len(rows), samples, d)
        covs = torch.stack([values.T.cov().reshape(d, d) for values in x])
        made = cls(batched, batched.parts, covs[0], covs[1:])
        unbiased = (samples - d - 2) / (samples - 1)
        made._set(unbiased * made.prior_precision, unbiased * torch.linalg.inv(covs[1:]))
        return made

    def _set(self, prior: Tensor, precisions: Tensor) -> None:
        """Precisions Σ_λ⁻¹ and Σ_j⁻¹, these at least as large in every direction, and the axes of Λ."""
        d = len(prior)
        if precisions.shape not in ((self.count, d, d), (d, d)):
            raise ValueError(
                f"ProductPosterior needs covs of shape ({self.count}, {d}, {d}), one for each part, or ({d}, {d}) for "
                f"all, got {tuple(precisions.shape)}."
            )
        gains, directions = torch.linalg.eigh(precisions - prior)
        added = directions * gains.clamp_min(0)[..., None, :] @ directions.mT
        added = added.expand(self.count, d, d)
        variances, axes = torch.linalg.eigh(prior + added.sum(0))
        self.register_buffer("prior_precision", prior)
        self.register_buffer("precisions", prior + added)
        self.register_buffer("variances", variances)  # inverse ones, of the posterior if all are Gaussian
        self.register_buffer("axes", axes)

    def x0(self, x: Tensor, level: Level, **cond: Any) -> Tensor:
        prior, parts = (means.flatten(-x.ndim + 1) for means in self._means(x, level, cond))
        alpha, sigma = (_flat(value) for value in (level.alpha, level.sigma))
        if prior.shape[1] != len(self.axes):
            raise ValueError(f"ProductPosterior of {len(self.axes)} entries got events of {prior.shape[1]}.")
        less, axes = 1 - self.count, self.axes.to(x)
        plain = parts.sum(0) + less * prior
        sharp = torch.einsum("nij,nbj->bi", self.precisions.to(x), parts) + less * prior @ self.prior_precision.to(x)
        whole = alpha**2 * plain + sigma**2 * sharp
        return (whole @ axes / (alpha**2 + sigma**2 * self.variances.to(x)) @ axes.T).reshape(x.shape)


def _precision(cov: Tensor, name: str) -> Tensor:
    square = cov.ndim in (2, 3) and cov.shape[-1] == cov.shape[-2]
    if not square or not bool(torch.isfinite(cov).all()) or not torch.allclose(cov, cov.mT, rtol=1e-6, atol=1e-12):
        raise ValueError(f"ProductPosterior needs {name} to be symmetric and finite, got shape {tuple(cov.shape)}.")
    least, most = torch.linalg.eigvalsh(cov).aminmax()
    if not float(least) > SMALL * float(most):
        raise ValueError(
            f"ProductPosterior needs {name} to be positive definite, got variances from {float(least):g} to "
            f"{float(most):g}."
        )
    return torch.linalg.inv(cov)


def _flat(value: Any) -> Any:
    """α or σ that broadcast against flattened events: a number, or one per sample as (B, 1)."""
    return value.reshape(-1, 1) if isinstance(value, Tensor) and value.ndim else value
