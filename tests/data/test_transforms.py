"""Named transforms: densities integrate to 1 in the data's units, for every transform, and values come back."""

import io
import math
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from scoresde import VPSDE, GaussianDenoiser
from scoresde.commands.bounds import averaged
from scoresde.commands.flow_likelihood import FlowLikelihood
from scoresde.commands.interfaces import Scores, StoredBatch
from scoresde.commands.variance import NoVariance
from scoresde.data import Circular, Codec, Transformed, array, codec_from_state, codec_state


def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def normal(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=generator())


def log_prob(codec: Codec, x: Tensor) -> Tensor:
    """Of a model whose density is standard normal in model space, in the data's units."""
    points = codec.points(x).x.double().flatten(2)
    at = -0.5 * points.square().sum(2) - 0.5 * math.log(2 * math.pi) * points.shape[2]
    return at.logsumexp(0) + codec.log_jacobian(x)


DATA: dict[str, tuple[Callable[[], Tensor], dict[int, str], dict[int, float], tuple[float, float]]] = {
    "log": (lambda: (2 * normal(2000, 1) - 7).exp(), {0: "log"}, {}, (1e-12, 10.0)),
    "asinh": (lambda: 1e3 + 5 * normal(2000, 1).mul(2).sinh(), {0: "asinh"}, {}, (-1e5, 1e5)),
    "quantile": (lambda: normal(2000, 1) ** 3, {0: "quantile"}, {}, (-1e3, 1e3)),
    "few values": (lambda: (10 * normal(2000, 1)).round() / 10, {0: "quantile"}, {}, (-20.0, 20.0)),
    "circular": (lambda: (140 + 100 * normal(2000, 1)) % 360, {}, {0: 360.0}, (0.0, 360.0)),
    "one direction": (lambda: (359 + 3 * normal(2000, 1)) % 360, {}, {0: 360.0}, (0.0, 360.0)),
    "all directions": (
        lambda: math.pi * (2 * torch.rand(2000, 1, dtype=torch.float64, generator=generator()) - 1), {},
        {0: 2 * math.pi}, (-math.pi, math.pi),
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", DATA)
def test_densities_in_the_datas_units_integrate_to_one(kind: str) -> None:
    make, transforms, circular, (low, high) = DATA[kind]
    x = make()
    codec = Transformed.fit(x, transforms, circular)
    if kind == "log":  # evenly in log x, as its density has all scales
        grid = torch.linspace(math.log(low), math.log(high), 40_001, dtype=torch.float64).exp()[:, None]
    else:  # evenly in asinh
        ends = (math.asinh(low), math.asinh(high)) if kind in ("asinh", "quantile") else (low, high)
        grid = torch.linspace(*ends, 40_001, dtype=torch.float64)[:, None]
        grid = grid.sinh() if kind in ("asinh", "quantile") else grid
        if kind == "asinh":
            grid = torch.cat([grid, 1e3 + torch.linspace(-300.0, 300.0, 20_001, dtype=torch.float64)[:, None]]).unique(
                dim=0
            )
    total = torch.trapezoid(log_prob(codec, grid).exp(), grid[:, 0]).item()
    assert total == pytest.approx(1, abs=2e-3)

    z = codec.encode(x, generator=torch.Generator().manual_seed(1))
    back = codec.decode(z).double()
    if circular:
        assert ((back >= low) & (back <= high)).all()
        back = x + torch.remainder(back - x + circular[0] / 2, circular[0]) - circular[0] / 2
    torch.testing.assert_close(back, x, rtol=2e-5, atol=1e-4 * float(x.std()))
    assert z.mean().abs() < 0.1 and z.std() == pytest.approx(1, abs=0.05)


def test_the_turns_of_an_angle_are_drawn_as_their_weights_say_and_add_up() -> None:
    x = torch.linspace(0, 359.9, 40, dtype=torch.float64)[:, None]
    codec = Circular.fit(x, {0: 360.0})
    turns = torch.stack([codec.near(x) + k * 360 for k in (-2, -1, 0, 1, 2)])
    torch.testing.assert_close(codec.weight(turns).sum(0), torch.ones_like(x))
    many = x.repeat(4000, 1)
    near = (codec.draw(many, generator()) == codec.near(many)).double().reshape(4000, 40).mean(0)
    assert (near - codec.weight(codec.near(x))[:, 0]).abs().max() < 4.5 * 0.5 / 4000**0.5
    mean, std = codec.moments(x)
    drawn = codec.draw(many, generator())
    torch.testing.assert_close(drawn.mean(0), mean, rtol=0, atol=5 * float(std) / len(many) ** 0.5)
    torch.testing.assert_close(drawn.std(0), std, rtol=0.02, atol=0)


def test_two_circular_columns_beside_others() -> None:
    x = torch.stack([normal(500), 30 * normal(500) % 360, normal(500).exp(), normal(500) % 6.28], 1)
    codec = Transformed.fit(x, {2: "log"}, {1: 360.0, 3: 6.28})
    points, weight = codec.points(x)
    assert points.shape == (9, 500, 4)
    torch.testing.assert_close(weight.sum(0), torch.ones(500).double())
    for point in points:  # they all stand for the same example
        torch.testing.assert_close(codec.decode(point)[:, 2], x[:, 2], rtol=1e-5, atol=0)
        away = (codec.decode(point)[:, 1] - x[:, 1] + 180) % 360 - 180
        assert away.abs().max() < 1e-3


@pytest.mark.parametrize("name", ["log", "asinh", "quantile"])
def test_channels_of_series_and_their_jacobian(name: str) -> None:
    x = torch.stack([normal(60, 8).exp(), 100 * normal(60, 8).exp()], 1)
    codec = Transformed.fit(x, {0: name, 1: name}, {})
    x, step = x[:3], 1e-7 * x[:3]
    after, before = (codec._forward(y, y, None) for y in (x + step, x - step))
    slope = (after - before) / (2 * step) / codec.standardized.std
    torch.testing.assert_close(slope.log().flatten(1).sum(1), codec.log_jacobian(x), rtol=1e-6, atol=1e-5)
    torch.testing.assert_close(codec.decode(codec.encode(x)).double(), x, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", ["circular", "quantile"])
def test_a_codec_with_transforms_survives_a_file(kind: str) -> None:
    make, transforms, circular, _ = DATA[kind]
    codec = Transformed.fit(make(), transforms, circular)
    file = io.BytesIO()
    torch.save(codec_state(codec), file)
    file.seek(0)
    restored = codec_from_state(torch.load(file, weights_only=True))
    assert torch.equal(log_prob(restored, make()), log_prob(codec, make()))


def test_the_flow_of_an_angle() -> None:
    """A model of standard deviation 0.9 in model space: its density on the circle is a sum."""
    make, transforms, circular, _ = DATA["circular"]
    codec = Transformed.fit(make(), transforms, circular)
    denoiser = GaussianDenoiser(VPSDE(), mean=0.0, std=0.9)
    trained: Any = SimpleNamespace(codec=codec, denoiser=denoiser, dequantize=True)
    x = torch.linspace(0, 360, 25, dtype=torch.float64)[:, None]
    batch = StoredBatch(x, {}, list(range(25)))
    flow = FlowLikelihood(divergence="exact", rtol=1e-6, atol=1e-6).prepare(trained, NoVariance())(batch).nats
    assert float(flow[0]) == pytest.approx(float(flow[-1]), abs=1e-4)
    assert torch.trapezoid(flow.exp(), x[:, 0]).item() == pytest.approx(1, abs=2e-3)
    exact = torch.distributions.Normal(0.0, 0.9).log_prob(codec.points(x).x[..., 0].double())
    torch.testing.assert_close(flow, exact.logsumexp(0) + codec.log_jacobian(x), rtol=0, atol=2e-3)


def test_a_bound_over_turns_is_below_the_density_and_reaches_it() -> None:
    """Σ w (log p − log w) is at most log Σ p, with equality for w ∝ p."""
    x = torch.linspace(0, 359, 9, dtype=torch.float64)[:, None]
    points, weight = Transformed.fit(DATA["circular"][0](), {}, {0: 360.0}).points(x)
    nats = torch.distributions.Normal(0.0, 0.9).log_prob(points[..., 0].double())
    scores = [Scores(row, 0 * row, torch.ones(9), {"prior": row}, {}) for row in nats]
    density = nats.logsumexp(0)
    bound = averaged(scores, weight)
    assert (bound.nats <= density).all() and (bound.nats > density - 0.5).all()
    torch.testing.assert_close(averaged(scores, nats.softmax(0)).nats, density)
    torch.testing.assert_close(bound.terms["prior"], (weight * nats).sum(0))


def test_what_a_transform_cannot_take_is_said_with_its_row_and_column(tmp_path: Path) -> None:
    x = np.abs(np.random.default_rng(0).standard_normal((50, 3))) + 0.1
    x[[7, 9], 1] = -2.5, 0.0
    np.save(tmp_path / "x.npy", x)
    with pytest.raises(ValueError, match=r"without a log in column 1: row 7 \(counted from 0\) has -2.5, and 1 rows"):
        array(tmp_path / "x.npy", transform="log")
    data = array(tmp_path / "x.npy", transform={"0": "log", 2: "asinh"})  # type: ignore[dict-item]
    assert isinstance(data.codec, Transformed) and [part.columns for part in data.codec.transforms] == [(0,), (2,)]
    ((rows, reason),) = data.codec.refusals(torch.tensor([[1.0, 1, 1], [-1, 1, 1]]))
    assert rows.tolist() == [False, True] and reason == "holds values without a log in column 0"


@pytest.mark.parametrize(
    "options, message",
    [
        ({"transform": "lg"}, "needs transform to be log, asinh, quantile, none, got 'lg'"),
        ({"transform": {"9": "log"}}, "no column 9, which data.transform names, among 0, 1, 2"),
        ({"transform": {"0": "sqrt"}}, "got 'sqrt'"),
        ({"circular": {"0": 0}}, "needs 0 < period"),
        ({"circular": "0"}, "needs circular to be columns with their periods, as"),
        ({"circular": {"0": 1}, "transform": {"0": "asinh"}}, "no transform of a circular column, got both for 0"),
        ({"circular": {"0": 1}, "levels": 3}, "levels=3 has no use for transform or circular"),
    ],
)
def test_wrong_scalings_are_one_sentence(tmp_path: Path, options: dict[str, Any], message: str) -> None:
    np.save(tmp_path / "x.npy", np.random.default_rng(0).integers(0, 3, (50, 3)))
    with pytest.raises(ValueError, match=message):
        array(tmp_path / "x.npy", **options)
