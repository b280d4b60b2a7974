"""A variance-preserving process whose noise schedule is learned."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from scoresde.checks import check_choice, check_flag, check_numbers, check_whole
from scoresde.sde.base import SDE

SCHEDULES = ("linear", "network")
CELLS = 128  # of the table that starts an inversion of r
REFINEMENTS = 12  # Newton steps inside a cell


class LearnedVPSDE(nn.Module, SDE):
    """Variance-preserving process with a learned schedule γ(t) = −logsnr(t), as in variational diffusion models.

        α_t² = sigmoid(−γ),   σ_t² = sigmoid(γ)                      (Kingma et al. 2021, eq. 2, 3)
        γ(t) = γ_0 + (γ_1 − γ_0) r(t),   r(0) = 0,   r(1) = 1,   r increasing
        f = −½ γ' σ²,   g² = γ' σ²

    γ_0 and γ_1 are parameters; so is r with schedule="network". Everything is computed in float64, whatever the dtype
    of t and of the parameters, and is differentiable by them: a loss whose value is a likelihood, such as `VDMLoss`,
    trains them, other losses can be lowered by moving the ends, and need `learn_ends=False`.

    σ_0² = sigmoid(γ_0) is not 0: data at t = 0 already carry that noise, and t_min only keeps to the convention of the
    other processes.

    Args:
        schedule: "linear": r(t) = t, VDM's choice for CIFAR-10. "network": VDM's `MonotoneNetwork`.
        logsnr_max, logsnr_min: −γ_0 and −γ_1 before training.
        width: Hidden width of the network; VDM has 1024.
        learn_ends: Whether γ_0 and γ_1 are trained.
        t_min: Numerical end of the data side.

    References:
        Kingma et al., "Variational Diffusion Models", 2021, arXiv:2107.00630, App. H.
    """

    prior_std = 1.0

    def __init__(
        self,
        *,
        schedule: str = "network",
        logsnr_max: float = 13.3,
        logsnr_min: float = -5.0,
        width: int = 64,
        learn_ends: bool = True,
        t_min: float = 1e-5,
    ) -> None:
        super().__init__()
        check_choice(self, "schedule", schedule, SCHEDULES)
        ends = {"logsnr_min": logsnr_min, "logsnr_max": logsnr_max}
        check_numbers(self, "-60 < logsnr_min < logsnr_max < 60", "0 < t_min < 1", **ends, t_min=t_min)
        check_whole(self, "width >= 1", width=width)
        check_flag(self, "learn_ends", learn_ends)
        self.t_min, learn_ends = float(t_min), bool(learn_ends)
        self.gamma_0 = nn.Parameter(torch.tensor(-float(logsnr_max)), requires_grad=learn_ends)
        self.gamma_1 = nn.Parameter(torch.tensor(-float(logsnr_min)), requires_grad=learn_ends)
        self.interior = MonotoneNetwork(width) if schedule == "network" else None

    def alpha(self, t: Tensor) -> Tensor:
        return torch.sigmoid(-self._gamma(t)[0]).sqrt().to(t.dtype)

    def sigma(self, t: Tensor) -> Tensor:
        return torch.sigmoid(self._gamma(t)[0]).sqrt().to(t.dtype)

    def f(self, t: Tensor) -> Tensor:
        gamma, rate = self._gamma(t)
        return (-0.5 * rate * torch.sigmoid(gamma)).to(t.dtype)

    def g(self, t: Tensor) -> Tensor:
        gamma, rate = self._gamma(t)
        return (rate * torch.sigmoid(gamma)).sqrt().to(t.dtype)

    def logsnr(self, t: Tensor) -> Tensor:
        return -self._gamma(t)[0].to(t.dtype)

    def time(self, logsnr: Tensor) -> Tensor:
        """Inverse of `logsnr`, differentiable; values outside the process give 0 or 1."""
        wanted = -logsnr.double()
        with torch.no_grad():
            low, high = self._ends(wanted.device)
            r = ((wanted - low) / (high - low)).clamp(0, 1)
            t = r if self.interior is None else self.interior.inverse(r)
        gamma, rate = self._gamma(t)
        newton = t + (wanted - gamma) / rate.detach()  # the last digits, and the gradient of an inverse function
        return newton.clamp(0, 1).to(logsnr.dtype)

    def progress(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """r(t) and r'(t), the shape of t, in float64."""
        wide = t.double()
        return (wide, torch.ones_like(wide)) if self.interior is None else self.interior(wide)

    def extra_repr(self) -> str:
        schedule = SCHEDULES[self.interior is not None]
        return f"schedule={schedule}, gamma_0={self.gamma_0.item():.4g}, gamma_1={self.gamma_1.item():.4g}"

    def _gamma(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """γ(t) and γ'(t) in float64."""
        low, high = self._ends(t.device)
        r, slope = self.progress(t)
        return torch.lerp(low, high, r), (high - low) * slope

    def _ends(self, device: torch.device) -> tuple[Tensor, Tensor]:
        return self.gamma_0.to(device, torch.float64), self.gamma_1.to(device, torch.float64)


class MonotoneNetwork(nn.Module):
    """An increasing function from [0, 1] onto [0, 1]: a line plus sigmoids, normalised.

        r(t) = (h(t) − h(0)) / (h(1) − h(0))                         (Kingma et al. 2021, App. H)
        h(t) = a t + 1/K Σ_k c_k sigmoid(b_k t − d_k),   a, b_k, c_k > 0

    Positive weights are the softplus of parameters. At the start the sigmoids stand evenly over [0, 1], so that r is
    nearly the identity; nothing is drawn at random.

    Args:
        width: Number K of sigmoids.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        steepness = min(2.0 * width, 32.0)
        centres = (torch.arange(width) + 0.5) / width
        self.slope = nn.Parameter(torch.tensor(_inverse_softplus(1.0)))
        self.steepness = nn.Parameter(torch.full((width,), _inverse_softplus(steepness)))
        self.shift = nn.Parameter(steepness * centres)
        self.height = nn.Parameter(torch.full((width,), _inverse_softplus(1.0)))

    def forward(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """r(t) and r'(t) of t in float64, any shape."""
        slope, steepness, shift, height = self._weights(t.device)
        here, falling = torch.sigmoid(steepness * t[..., None] - shift), torch.sigmoid(shift - steepness * t[..., None])
        # sigmoid(x) − sigmoid(y) = sigmoid(x) sigmoid(−y) (1 − e^(y−x)): 0 to the last digit at the ends
        since_0 = here * torch.sigmoid(shift) * -torch.expm1(-steepness * t[..., None])
        until_1 = torch.sigmoid(steepness - shift) * falling * -torch.expm1(-steepness * (1 - t[..., None]))
        below = slope * t + (height * since_0).sum(-1)
        above = slope * (1 - t) + (height * until_1).sum(-1)
        rate = slope + (height * steepness * here * falling).sum(-1)
        return below / (below + above), rate / (below + above)

    @torch.no_grad()
    def inverse(self, r: Tensor) -> Tensor:
        """The t with r(t) = r, for r in [0, 1]: the cell of a table, then Newton's method kept inside its bracket."""
        knots = torch.linspace(0, 1, CELLS + 1, dtype=torch.float64, device=r.device)
        values = self(knots)[0]
        cell = torch.searchsorted(values, r.contiguous(), right=True).clamp(1, CELLS)
        low, high = knots[cell - 1], knots[cell]
        t = torch.lerp(low, high, ((r - values[cell - 1]) / (values[cell] - values[cell - 1])).clamp(0, 1))
        for _ in range(REFINEMENTS):
            value, rate = self(t)
            early = value < r
            low, high = torch.where(early, t, low), torch.where(early, high, t)
            newton = t + (r - value) / rate
            inside = (low <= newton) & (newton <= high)
            t = torch.where(inside, newton, 0.5 * (low + high))
        return t

    def _weights(self, device: torch.device) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """a, b, d and c/K in float64."""
        slope, steepness, shift, height = (
            parameter.to(device, torch.float64) for parameter in (self.slope, self.steepness, self.shift, self.height)
        )
        return F.softplus(slope), F.softplus(steepness), shift, F.softplus(height) / len(height)


def _inverse_softplus(value: float) -> float:
    return math.log(math.expm1(value))
