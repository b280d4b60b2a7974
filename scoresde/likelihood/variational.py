"""Variational dequantisation: a flow that learns where in its cell a level should be put."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from scoresde.checks import check_sizes, check_whole
from scoresde.likelihood.cells import Cells
from scoresde.likelihood.dequantization import Dequantized, checked_levels, uniforms
from scoresde.sde import SDE

SMALLEST_BIN = 1e-3
SMALLEST_SLOPE = 1e-3


class VariationalDequantization(nn.Module):
    """A conditional normalising flow on the cells of discrete data, for events of any shape.

        x = lo + (k + u) w,   u = f_L(... f_1(v; k) ...; k),   v ~ U(0, 1)^d
        log q(x | k) = −Σ_l log |∂f_l| − d log w
        log P(k) ≥ E_q [log p(x) − log q(x | k)],  with equality for q(x | k) ∝ p(x) on the cell

    Every f_l maps entries of (0, 1) to (0, 1) by monotone rational-quadratic splines. Those of f_1 depend on the levels
    alone; each later layer leaves every other entry (a checkerboard, in turn its two colours) as it is, and the splines
    of the rest depend on those entries and the levels. The networks are convolutional for events (C, H, W), and
    multilayer perceptrons otherwise. The flow starts as the identity: u is uniform. Train it with `DequantizationLoss`.

    Args:
        shape: Event shape of the data.
        levels, value_range: See `Cells`.
        width: Hidden features of the networks.
        depth: Residual blocks of each network.
        layers: Number of f_l, at least 1; 1 treats the entries as independent given k.
        bins: Pieces of every spline.

    References:
        Ho et al., "Flow++", 2019, arXiv:1902.00275.
        Hoogeboom et al., "Learning Discrete Distributions by Dequantization", 2020, arXiv:2001.11235.
        Durkan et al., "Neural Spline Flows", 2019, arXiv:1906.04032.
    """

    colour: Tensor

    def __init__(
        self,
        *,
        shape: Sequence[int],
        levels: int = 256,
        value_range: tuple[float, float] = (-1.0, 1.0),
        width: int = 64,
        depth: int = 2,
        layers: int = 4,
        bins: int = 8,
    ) -> None:
        super().__init__()
        self.shape, self.bins = check_sizes(self, "shape", shape), bins
        self.cells = Cells(levels=levels, value_range=value_range)
        sizes = {"width": width, "depth": depth, "layers": layers, "bins": bins}
        check_whole(self, "width >= 1", "depth >= 0", "layers >= 1", "2 <= bins < 1000", **sizes)
        self.networks = nn.ModuleList(_Network(self.shape, 3, 3 * bins + 1, width, depth) for _ in range(layers))
        self.register_buffer("colour", _checkerboard(self.shape), persistent=False)

    def forward(
        self,
        k: Tensor,
        sde: SDE,
        *,
        generator: torch.Generator | None = None,
        u: Tensor | None = None,
        dtype: torch.dtype = torch.float32,
    ) -> Dequantized:
        """Draw x, differentiable in the parameters, for k (B, *shape), integers in 0..levels−1; u replaces v."""
        k = checked_levels("VariationalDequantization", k, self.cells)
        u, log_det = self.transform(k, uniforms(k, generator, u))
        log_q = -log_det - k[0].numel() * math.log(self.cells.width)
        return Dequantized(self.cells.inside(k, u, dtype), log_q, None)

    def transform(self, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """The flow itself: u and log |∂u/∂v|.

        Args:
            k: Levels, (B, *shape).
            v: Uniform on (0, 1), (B, *shape).
        Returns:
            u, in (0, 1), (B, *shape), and the log-determinant, float64, (B,).
        Raises:
            ValueError: If the events have another shape.
        """
        if k.shape[1:] != self.shape:
            raise ValueError(
                f"VariationalDequantization was built for events of shape {self.shape}, got {tuple(k.shape[1:])}: "
                f"build it with the shape of the data."
            )
        dtype = next(self.parameters()).dtype
        u, level = v.to(dtype), (2 * (k + 0.5) / self.cells.levels - 1).to(dtype)
        log_det = torch.zeros(len(k), dtype=torch.float64, device=k.device)
        for index, network in enumerate(self.networks):
            kept = (self.colour == index % 2) & (index > 0)
            seen = kept.to(dtype).expand_as(u)
            raw = network(torch.stack([level, (2 * u - 1) * seen, seen], 1))
            moved, log_slope = _spline(u, raw.to(dtype))
            u = torch.where(kept, u, moved)
            log_det = log_det + torch.where(kept, 0.0, log_slope.double()).flatten(1).sum(1)
        return u, log_det


def _spline(u: Tensor, raw: Tensor) -> tuple[Tensor, Tensor]:
    """Monotone rational-quadratic map of [0, 1] onto itself, and the log of its derivative (Durkan et al. 2019, §3.1).

    With θ the position in the bin of u, s = height/width of the bin, a and b the derivatives at its ends:

        f(u)  = y + height (s θ² + a θ(1−θ)) / D,           D = s + (a + b − 2s) θ(1−θ)
        f′(u) = s² (b θ² + 2s θ(1−θ) + a (1−θ)²) / D²

    Args:
        u: In [0, 1], any shape.
        raw: Widths, heights and derivatives before normalisation, (*u.shape, 3 bins + 1); 0 is the identity.
    """
    bins = raw.shape[-1] // 3
    shared = 1 - SMALLEST_BIN * bins
    widths = SMALLEST_BIN + shared * raw[..., :bins].softmax(-1)
    heights = SMALLEST_BIN + shared * raw[..., bins : 2 * bins].softmax(-1)
    # softplus shifted so that 0 gives a derivative of 1
    slopes = SMALLEST_SLOPE + F.softplus(raw[..., 2 * bins :] + math.log(math.expm1(1 - SMALLEST_SLOPE)))
    left = F.pad(widths.cumsum(-1)[..., :-1], (1, 0))
    bottom = F.pad(heights.cumsum(-1)[..., :-1], (1, 0))
    bin_index = (u[..., None] >= left[..., 1:]).sum(-1, keepdim=True)

    def of_bin(values: Tensor) -> Tensor:
        return values.gather(-1, bin_index)[..., 0]

    width, height = of_bin(widths), of_bin(heights)
    a, b = of_bin(slopes[..., :-1]), of_bin(slopes[..., 1:])
    s = height / width
    theta = ((u - of_bin(left)) / width).clamp(0, 1)
    cross = theta * (1 - theta)
    denominator = s + (a + b - 2 * s) * cross
    value = of_bin(bottom) + height * (s * theta.square() + a * cross) / denominator
    top = b * theta.square() + 2 * s * cross + a * (1 - theta).square()
    return value, 2 * s.log() + top.log() - 2 * denominator.log()


def _checkerboard(shape: tuple[int, ...]) -> Tensor:
    """The sum of each entry's indices modulo 2, (*shape)."""
    axes = torch.meshgrid(*(torch.arange(size) for size in shape), indexing="ij")
    return torch.stack(axes).sum(0) % 2


class _Network(nn.Module):
    """(B, features, *shape) -> (B, *shape, outputs), 0 at first: convolutional for (C, H, W), else dense."""

    def __init__(self, shape: tuple[int, ...], features: int, outputs: int, width: int, depth: int) -> None:
        super().__init__()
        self.places = shape[1:] if len(shape) == 3 else ()  # each has its own features, the rest share one vector
        entries = shape[0] if self.places else math.prod(shape)

        def layer(inputs: int, outputs: int, size: int = 1) -> nn.Linear | nn.Conv2d:
            return nn.Conv2d(inputs, outputs, size, padding=size // 2) if self.places else nn.Linear(inputs, outputs)

        self.input = layer(features * entries, width, 3)
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.SiLU(), layer(width, width, 3), nn.SiLU(), layer(width, width)) for _ in range(depth)
        )
        self.output = layer(width, outputs * entries)
        for parameter in self.output.parameters():  # the flow starts as the identity
            nn.init.zeros_(parameter)

    def forward(self, z: Tensor) -> Tensor:
        h = self.input(z.flatten(1, -1 - len(self.places)))
        for block in self.blocks:
            h = h + block(h)
        out: Tensor = self.output(F.silu(h))
        events = z.shape[2 : z.ndim - len(self.places)]
        return out.unflatten(1, (*events, -1)).movedim(1 + len(events), -1)
