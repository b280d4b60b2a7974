"""What all losses have in common."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from scoresde.checks import check_choice, check_flags, check_numbers
from scoresde.denoiser import CONDITIONS, without
from scoresde.losses.times import with_signal
from scoresde.sde import SDE


class Loss(ABC):
    """What `Trainer` minimises, one value per example.

    One that is a `DrawsTimes` lets errors name the noise level; what a `KeepsState` learns on the way is saved.
    """

    @abstractmethod
    def __call__(self, *args: Any, **kwargs: Any) -> Tensor:
        """loss(module, x0, generator=..., **cond): of one batch x0 (B, *) at random times -> (B,)."""

    @property
    def dequantize(self) -> bool:
        """Whether levels are to be spread over their cells, and not to stay at the centres."""
        return True


@runtime_checkable
class DrawsTimes(Protocol):
    """A loss whose random times can be drawn once more."""

    def draw(self, sde: SDE, x0: Tensor, generator: torch.Generator | None = None) -> tuple[Tensor, Tensor]:
        """Random times (B,) and noise (B, *) for a batch."""
        ...


@runtime_checkable
class KeepsState(Protocol):
    """A loss that learns something of its own on the way, like `VLBLoss`."""

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state: dict[str, Any]) -> None: ...


@dataclass(frozen=True, kw_only=True)
class SampledLoss(Loss):
    """A loss at one random time per example, for models whose labels and conditions may be dropped at random.

    Args:
        sampling: How the uniforms u of a batch are drawn. "independent"; "stratified": one per cell of width 1/B;
            "antithetic": one draw shifted by multiples of 1/B (arXiv:2107.00630, App. I.1). Each u alone is uniform.
        label_dropout: Probability of replacing a label by −1 (no label), for classifier-free guidance.
        condition_dropout, image_dropout, sequence_dropout: The same of a condition vector, of an image and of a
            sequence, see `scoresde.denoiser.without`. Each is dropped by itself, independently of the others.
        joint_dropout: Probability of dropping all conditions at once, before that.

    A condition with the rate r is dropped with probability j + (1 − j) r, and all of them with j + (1 − j) Π r.
    """

    sampling: str = "stratified"
    label_dropout: float = 0.0
    condition_dropout: float = 0.0
    image_dropout: float = 0.0
    sequence_dropout: float = 0.0
    joint_dropout: float = 0.0

    def __post_init__(self) -> None:
        check_flags(self)
        check_choice(self, "sampling", self.sampling, ("independent", "stratified", "antithetic"))
        rates = ("label", "condition", "image", "sequence", "joint")
        check_numbers(self, *(f"0 <= {name}_dropout < 1" for name in rates))

    @abstractmethod
    def times(self, sde: SDE, u: Tensor) -> Tensor:
        """The times that uniforms u stand for, (B,) -> (B,)."""

    def draw(self, sde: SDE, x0: Tensor, generator: torch.Generator | None = None) -> tuple[Tensor, Tensor]:
        """Random times (B,) and noise (B, *) for a batch."""
        u = self.uniforms(x0, generator)
        noise = standard_normal(x0, generator)
        return with_signal(sde, self.times(sde, u)), noise

    def uniforms(self, x0: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """The uniforms u of a batch, (B,), in x0's dtype."""
        batch = x0.shape[0]
        cells = torch.arange(batch, device=x0.device, dtype=x0.dtype)
        if self.sampling == "antithetic":
            u = (torch.rand(1, generator=generator, device=x0.device, dtype=x0.dtype) + cells / batch) % 1
        else:
            u = torch.rand(batch, generator=generator, device=x0.device, dtype=x0.dtype)
            if self.sampling == "stratified":
                u = (cells + u) / batch
        if self.sampling != "independent":  # which example gets which cell must not depend on its position
            u = u[torch.randperm(batch, generator=generator, device=x0.device)]
        return u

    def drop_conditions(
        self, cond: dict[str, Any], x0: Tensor, generator: torch.Generator | None = None
    ) -> dict[str, Any]:
        """The conditions of a batch with some dropped, see `scoresde.denoiser.without`."""
        rates = {key: getattr(self, f"{key}_dropout") for key in CONDITIONS if cond.get(key) is not None}
        if not any(rates.values()) and (self.joint_dropout == 0 or not rates):
            return cond

        def drawn(rate: float) -> Tensor:
            return torch.rand(x0.shape[0], generator=generator, device=x0.device) < rate

        dropped, every = dict(cond), drawn(self.joint_dropout) if self.joint_dropout > 0 else None
        for key, rate in rates.items():
            rows = drawn(rate) if rate > 0 else None
            rows = every if rows is None else rows if every is None else rows | every
            dropped[key] = cond[key] if rows is None else without(key, cond[key], rows)
        return dropped


def standard_normal(x: Tensor, generator: torch.Generator | None) -> Tensor:
    """ε ~ N(0, I) for x, (B, *)."""
    return torch.randn(x.shape, generator=generator, device=x.device, dtype=x.dtype)


def check_functions(loss: Loss, *names: str) -> None:
    """Raise ValueError unless the attributes of these names can be called."""
    for name in names:
        if not callable(value := getattr(loss, name)):
            raise ValueError(f"{type(loss).__name__} needs {name} to be a function, got {value!r}.")


@torch.no_grad()
def check_law(loss: object, sde: SDE, device: torch.device, batch: int = 256) -> None:
    """Raise ValueError unless a loss draws times in [0, 1], with weights >= 0 that are finite and not all 0.

    Args:
        loss: Tried if it is a `DrawsTimes`, and its `weighting` if it has one.
        sde: The process that is trained on.
        device: Where.
        batch: Examples in one: a loss that pairs them needs two, and says so.
    """
    if not isinstance(loss, DrawsTimes):
        return
    name = type(loss).__name__
    if batch < 2:
        loss.draw(sde, torch.zeros(batch, 1, device=device), torch.Generator(device).manual_seed(0))
    t, _ = loss.draw(sde, torch.zeros(256, 1, device=device), torch.Generator(device).manual_seed(0))
    if not bool(((t >= 0) & (t <= 1)).all()):
        raise ValueError(f"{name} needs a law of times in [0, 1], got times from {t.min():.4g} to {t.max():.4g}.")
    if (weighting := getattr(loss, "weighting", None)) is not None:
        weights = weighting(sde, t)
        if not bool((weights.isfinite() & (weights >= 0)).all() and (weights > 0).any()):
            raise ValueError(
                f"{name} needs a weighting that is finite, not negative and somewhere positive, "
                f"got weights from {weights.min():.4g} to {weights.max():.4g}."
            )
