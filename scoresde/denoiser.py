"""The one object that solvers, likelihoods and losses consume: E[x0 | x_t = x]."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from scoresde.parameterization import Parameterization
from scoresde.sde import SDE, expand

__all__ = ["Denoiser", "NetworkDenoiser"]


class Denoiser(nn.Module, ABC):
    """The posterior mean of the data, and the score and velocity that follow from it.

        x̂0       = E[x0 | x_t = x]
        ε̂        = (x − α x̂0) / σ
        score    = ∇ log p_t(x) = −ε̂ / σ                            (Tweedie's formula)
        velocity = f x − ½ g² score                                 (probability-flow ODE, Song et al. 2021, eq. 13)

    A subclass writes `forward` and has an `sde`. Conditions are keyword tensors that `forward` receives.

    References:
        Song et al., "Score-Based Generative Modeling through SDEs", 2021, arXiv:2011.13456.
    """

    sde: SDE

    @abstractmethod
    def forward(self, x: Tensor, t: Tensor, **cond: Any) -> Tensor:
        """E[x0 | x_t = x]: x (B, *), t () or (B,) -> (B, *), in x's dtype."""

    def eps(self, x: Tensor, t: Tensor, **cond: Any) -> Tensor:
        """E[ε | x_t = x], shape (B, *)."""
        x0_hat = self(x, t, **cond)
        return (x - expand(self.sde.alpha(t), x) * x0_hat) / expand(self.sde.sigma(t), x)

    def score(self, x: Tensor, t: Tensor, **cond: Any) -> Tensor:
        """∇ log p_t(x), shape (B, *)."""
        return -self.eps(x, t, **cond) / expand(self.sde.sigma(t), x)

    def velocity(self, x: Tensor, t: Tensor, **cond: Any) -> Tensor:
        """dx/dt of the probability-flow ODE, shape (B, *)."""
        return self.sde.drift(x, t) - 0.5 * expand(self.sde.g(t).square(), x) * self.score(x, t, **cond)

    def given(self, **cond: Any) -> Denoiser:
        """The same denoiser with conditions bound; parameters are shared.

        Bound conditions stay: the same condition passed to a later call is ignored, so that
        `Guided(model, model.given(label=None), 2.0)` can be called with labels.
        """
        return _Given(self, cond)

    def mean_and_covariance(self, x: Tensor, t: Tensor, **cond: Any) -> tuple[Tensor, Tensor]:
        """x̂0 (B, *) and the diagonal of Cov[x0 | x_t = x], which broadcasts against x.

        For denoisers with a method `covariance_diag(x, t, **cond)`; one that gets both from one call overrides this.

        Raises:
            TypeError: If the denoiser knows no covariance.
        """
        covariance_diag = getattr(self, "covariance_diag", None)
        if covariance_diag is None:
            raise TypeError(
                "The covariance of x0 was asked of a denoiser that knows only x̂0: wrap it in AnalyticVariance, "
                "HessianDiagonal or a trained VarianceHead of scoresde.covariance."
            )
        return self(x, t, **cond), covariance_diag(x, t, **cond)

    def tabulate(self, times: Sequence[Tensor]) -> Denoiser:
        """This denoiser, prepared for calls with exactly these time tensors (the objects, not only their values).

        Whatever depends on t alone may be computed here once for a whole run; other times still work.
        """
        return self

    def select(self, index: Tensor, batch: int) -> Denoiser | None:
        """The same denoiser for some rows of a batch, or None if it may hold something per sample that it cannot split.

        Adaptive solvers ask, to go on without the samples that have arrived. A subclass that treats every row alike
        returns itself.

        Args:
            index: Rows to keep, (b,).
            batch: Size of the whole batch.
        """
        return None


class _Given(Denoiser):
    def __init__(self, denoiser: Denoiser, cond: dict[str, Any]) -> None:
        super().__init__()
        self.denoiser, self.sde, self.cond = denoiser, denoiser.sde, cond

    def forward(self, x: Tensor, t: Tensor, **cond: Any) -> Tensor:
        return self.denoiser(x, t, **{**cond, **self.cond})

    def eps(self, x: Tensor, t: Tensor, **cond: Any) -> Tensor:
        return self.denoiser.eps(x, t, **{**cond, **self.cond})

    def mean_and_covariance(self, x: Tensor, t: Tensor, **cond: Any) -> tuple[Tensor, Tensor]:
        return self.denoiser.mean_and_covariance(x, t, **{**cond, **self.cond})

    @property
    def covariance_diag(self) -> Callable[..., Tensor]:
        return self._bound("covariance_diag")

    @property
    def covariance(self) -> Callable[..., Tensor]:
        return self._bound("covariance")

    @property
    def mean_and_range(self) -> Callable[..., tuple[Tensor, Tensor]]:
        return self._bound("mean_and_range")

    def _bound(self, name: str) -> Callable[..., Any]:
        """A method that only some denoisers have, with the conditions bound."""
        method = getattr(self.denoiser, name)
        return lambda x, t, **cond: method(x, t, **{**cond, **self.cond})

    def tabulate(self, times: Sequence[Tensor]) -> Denoiser:
        return _Given(self.denoiser.tabulate(times), self.cond)

    def select(self, index: Tensor, batch: int) -> Denoiser | None:
        """Conditions whose leading size is the batch are one per sample; numbers and other tensors are shared."""
        inner = self.denoiser.select(index, batch)
        if inner is None or not all(isinstance(c, Tensor | int | float | str | None) for c in self.cond.values()):
            return None
        return _Given(inner, {key: _rows_of(value, index, batch) for key, value in self.cond.items()})


def _rows_of(value: Any, index: Tensor, batch: int) -> Any:
    if not isinstance(value, Tensor) or value.shape[:1] != (batch,):
        return value
    return value[index.to(value.device)]


class NetworkDenoiser(Denoiser):
    """A network F and a parameterization as a denoiser: x̂0 = c_skip x + c_out F(c_in x, c_noise).

    Coefficients are computed in float64 and applied in x's dtype; the network runs in its own parameters' dtype.

    Args:
        net: Called as net(x, c_noise, **cond) with c_noise (B,); returns the shape of x.
        sde: The process that the network was trained on.
        parameterization: What the network predicts.
    """

    def __init__(self, net: nn.Module, sde: SDE, parameterization: Parameterization) -> None:
        super().__init__()
        self.net, self.sde, self.parameterization = net, sde, parameterization

    def forward(self, x: Tensor, t: Tensor, **cond: Any) -> Tensor:
        return self.at(self._coefficients(t, x), x, cond)

    def eps(self, x: Tensor, t: Tensor, **cond: Any) -> Tensor:
        return self.eps_at(self._coefficients(t, x), x, cond)

    @torch.no_grad()
    def tabulate(self, times: Sequence[Tensor]) -> Denoiser:
        """With the coefficients at these times computed at once, so that a call costs little more than the network."""
        table = self._coefficients(torch.stack([time.detach() for time in times]).cpu(), None)
        numbers = [column.tolist() for column in table[:-1]]
        labels = table.c_noise.to(times[0].device, self._dtype()).unbind()
        rows = [_Coefficients(*row) for row in zip(*numbers, labels, strict=True)]
        return _Tabulated(self, tuple(times), rows)

    def select(self, index: Tensor, batch: int) -> Denoiser:
        return self

    def at(self, row: _Coefficients, x: Tensor, cond: dict[str, Any]) -> Tensor:
        """x̂0 with given coefficients."""
        return row.x0_skip * x + row.x0_out * self._network(row, x, cond)

    def eps_at(self, row: _Coefficients, x: Tensor, cond: dict[str, Any]) -> Tensor:
        """ε̂ with given coefficients."""
        return row.eps_skip * x + row.eps_out * self._network(row, x, cond)

    def _coefficients(self, t: Tensor, x: Tensor | None) -> _Coefficients:
        wide = t.double()
        alpha, sigma = self.sde.alpha(wide), self.sde.sigma(wide)
        c_skip, c_out = self.parameterization.skip_out(alpha, sigma)
        row = _Coefficients(
            c_skip,
            c_out,
            # (x − α x̂0)/σ with the coefficients combined first: exact for ε-networks, no cancellation as σ → 0
            (1 - alpha * c_skip) / sigma,
            -alpha * c_out / sigma,
            self.parameterization.c_in(alpha, sigma),
            self.parameterization.c_noise(alpha, sigma),
        )
        return row if x is None else _Coefficients._make([*(expand(value, x) for value in row[:-1]), row.c_noise])

    def _dtype(self) -> torch.dtype | None:
        parameter = next(self.net.parameters(), None)
        return None if parameter is None else parameter.dtype

    def _network(self, row: _Coefficients, x: Tensor, cond: dict[str, Any]) -> Tensor:
        dtype = self._dtype() or x.dtype
        output = self.net((row.c_in * x).to(dtype), row.c_noise.to(dtype).expand(x.shape[0]), **cond)
        if output.shape != x.shape:
            raise ValueError(
                f"{type(self.net).__name__} must return the shape of its input {tuple(x.shape)}, "
                f"got {tuple(output.shape)}: build the network for this data."
            )
        return output.to(x.dtype)


class _Coefficients(NamedTuple):
    """Of x and of the network in x̂0 and in ε̂, of x in the network's input, and its noise label."""

    x0_skip: Any
    x0_out: Any
    eps_skip: Any
    eps_out: Any
    c_in: Any
    c_noise: Tensor


class _Tabulated(Denoiser):
    """A network denoiser with coefficients for times known by identity, which needs no look at their values."""

    def __init__(self, denoiser: NetworkDenoiser, times: tuple[Tensor, ...], rows: list[_Coefficients]) -> None:
        super().__init__()
        self.denoiser, self.sde = denoiser, denoiser.sde
        self.times = times  # kept alive, so that no other tensor gets their identities
        self.rows = {id(time): row for time, row in zip(times, rows, strict=True)}

    def forward(self, x: Tensor, t: Tensor, **cond: Any) -> Tensor:
        row = self.rows.get(id(t))
        return self.denoiser(x, t, **cond) if row is None else self.denoiser.at(row, x, cond)

    def eps(self, x: Tensor, t: Tensor, **cond: Any) -> Tensor:
        row = self.rows.get(id(t))
        return self.denoiser.eps(x, t, **cond) if row is None else self.denoiser.eps_at(row, x, cond)
