"""`data.missing=mask`: what is missing adds nothing to the loss, and the likelihood is that of what is observed."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from scoresde import MLP, VESDE, VPSDE, Denoiser, DenoisingLoss, StraightSDE
from scoresde.commands.batches import Batches
from scoresde.commands.build import ConfigError
from scoresde.commands.fill import fill
from scoresde.commands.flow_likelihood import FlowLikelihood
from scoresde.commands.interfaces import StoredBatch
from scoresde.commands.variance import NoVariance
from scoresde.data import Dataset, Standardized, Transformed, array, table
from scoresde.denoiser import MissingEntries, NetworkDenoiser
from scoresde.parameterization import Velocity
from scoresde.sde import SDE
from scoresde.sde.levels import Level

COVARIANCE = torch.tensor([[1.0, 0.8, 0.3], [0.8, 1.0, -0.1], [0.3, -0.1, 0.5]], dtype=torch.float64)


class GaussianWithGaps(Denoiser):
    """E[x0 | observed part of x_t] of N(0, COVARIANCE), row by row, from the marginal of what is observed."""

    def __init__(self, sde: SDE) -> None:
        super().__init__()
        self.sde = sde

    def x0(self, x: Tensor, level: Level, **cond: Any) -> Tensor:
        alpha, sigma = (torch.as_tensor(value).reshape(-1).expand(len(x)) for value in (level.alpha, level.sigma))
        rows = []
        for row, gaps, a, s in zip(x, cond["concat"] != 0, alpha, sigma, strict=True):
            assert bool((row[gaps] == 0).all())  # nothing of the gaps is seen
            own = COVARIANCE[~gaps][:, ~gaps].to(x)
            out = torch.full_like(row, torch.nan)
            out[~gaps] = a * own @ torch.linalg.solve(a**2 * own + s**2 * torch.eye(len(own)).to(x), row[~gaps])
            rows.append(out)
        return torch.stack(rows)

    def select(self, index: Tensor, batch: int) -> Denoiser:
        return self


@pytest.mark.parametrize("sde", [VPSDE(), VESDE(sigma_max=200.0)], ids=lambda sde: type(sde).__name__)
def test_the_likelihood_is_that_of_the_observed_part(sde: SDE) -> None:
    codec = Standardized(mean=torch.tensor([5.0, 0.0, -1.0]), std=torch.tensor([2.0, 1.0, 0.1]))
    x = torch.tensor([[6.0, 1.0, -1.1], [6.0, torch.nan, -1.1], [torch.nan, 0.5, torch.nan], [4.0, -2.0, torch.nan]])
    trained: Any = SimpleNamespace(codec=codec, denoiser=MissingEntries(GaussianWithGaps(sde)))
    batch = StoredBatch(x, {"concat": x.isnan().float()}, [0, 1, 2, 3])
    scores = FlowLikelihood(divergence="exact", rtol=1e-6, atol=1e-6).prepare(trained, NoVariance())(batch)
    scale = torch.diag(codec.std.double())
    for row, value in zip(x.double(), scores.nats.tolist(), strict=True):
        seen = ~row.isnan()
        law = torch.distributions.MultivariateNormal(
            codec.mean.double()[seen], (scale @ COVARIANCE @ scale)[seen][:, seen]
        )  # fmt: skip
        assert value == pytest.approx(law.log_prob(row[seen]).item(), abs=5e-3)


@pytest.mark.parametrize("sde", [VPSDE(), VESDE(), StraightSDE()], ids=lambda sde: type(sde).__name__)
def test_gaps_add_nothing_to_the_loss_and_are_not_seen(sde: SDE) -> None:
    torch.manual_seed(0)
    net = MLP(shape=(3,), width=16, depth=1, concat_channels=3)
    torch.nn.init.normal_(net.output.weight)
    inner = NetworkDenoiser(net, sde, Velocity())
    denoiser, loss = MissingEntries(inner), DenoisingLoss()
    x0, gaps = torch.randn(8, 3), torch.rand(8, 3) < 0.5
    x0, t, noise = x0.masked_fill(gaps, 0.0), torch.rand(8) * 0.9 + 0.05, torch.randn(8, 3)
    found = loss.at(denoiser, x0, t, noise, concat=gaps.float())
    alpha, sigma = (value(t)[:, None] for value in (sde.alpha, sde.sigma))
    seen = (alpha * x0 + sigma * noise).masked_fill(gaps, 0.0)
    if not sde.ends_silent:
        error = (inner.eps(seen, t, concat=gaps.float()) - noise).square().masked_fill(gaps, 0.0)
        torch.testing.assert_close(found, error.mean(1) * loss.weighting(sde, t), rtol=1e-4, atol=1e-5)
    other = noise + 3 * torch.randn(8, 3) * gaps  # another noise at the gaps
    torch.testing.assert_close(loss.at(denoiser, x0, t, other, concat=gaps.float()), found, rtol=1e-4, atol=1e-5)
    assert torch.equal(denoiser(x0, 0.3), denoiser(x0, 0.3, concat=torch.zeros(8, 3)))


def gappy(path: Path, shape: tuple[int, ...] = (200, 3)) -> np.ndarray:
    rng = np.random.default_rng(0)
    x = rng.lognormal(size=shape)
    x[rng.random(shape) < 0.3] = np.nan
    x[np.isnan(x).reshape(len(x), -1).all(1)] = 1.0
    np.save(path, x)
    return x


@pytest.mark.parametrize("transform", [None, "log", "asinh", "quantile"])
@pytest.mark.parametrize("shape", [(200, 3), (200, 2, 6)], ids=str)
def test_scalings_and_batches_are_of_what_is_observed(tmp_path: Path, transform: str, shape: tuple[int, ...]) -> None:
    gappy(tmp_path / "x.npy", shape)
    data = array(tmp_path / "x.npy", missing="mask", transform=transform)
    z = data.codec.encode(data.train.x)
    assert torch.equal(z.isnan(), data.train.x.isnan())
    channels = z.transpose(0, 1).flatten(1).double()
    torch.testing.assert_close(channels.nanmean(1), torch.zeros(shape[1]).double(), rtol=0, atol=1e-4)
    torch.testing.assert_close(channels.square().nanmean(1), torch.ones(shape[1]).double(), rtol=1e-4, atol=0)
    x, cond = Batches(data, 50, 0, labelled=False)(0)
    assert x.isfinite().all() and bool((x[cond["concat"] == 1] == 0).all()) and 0.2 < cond["concat"].mean() < 0.4

    whole, total = data.train.x.nan_to_num(1.0)[:5], torch.zeros(5).double()
    for flat in range(int(np.prod(shape[1:]))):
        only = torch.full_like(whole.flatten(1), torch.nan)
        only[:, flat] = whole.flatten(1)[:, flat]
        total += data.codec.log_jacobian(only.reshape(whole.shape))
    torch.testing.assert_close(total, data.codec.log_jacobian(whole))


def test_what_does_not_go_with_gaps_is_refused(tmp_path: Path) -> None:
    gappy(tmp_path / "x.npy")
    with pytest.raises(ValueError, match="rows hold NaN"):
        array(tmp_path / "x.npy")
    for options, message in (
        ({"levels": 3}, "no use for missing=mask"), ({"circular": {"0": 3.0}}, "no gaps in circular columns"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=message):
            array(tmp_path / "x.npy", missing="mask", **options)  # type: ignore[arg-type]
    x = np.load(tmp_path / "x.npy")
    x[:, 1] = np.nan
    np.save(tmp_path / "y.npy", x)
    with pytest.raises(ValueError, match="NaN or infinity|column 1 of the training data has no value"):
        array(tmp_path / "y.npy", missing="mask")
    (tmp_path / "x.csv").write_text("a,b\n1,2\n,3\n4,\n5,6\n")
    with pytest.raises(ValueError, match=r"2 of 4 rows lack a value .*data.missing=mask"):
        table(tmp_path / "x.csv")
    data = table(tmp_path / "x.csv", missing="mask", test_fraction=0)
    assert data.missing and isinstance(data.codec, Standardized) and not isinstance(data.codec, Transformed)
    assert sorted(data.codec.mean.tolist()) == pytest.approx([10 / 3, 11 / 3])
    with pytest.raises(ConfigError, match="needs a network with concat_channels"):
        filled(data, {"_target_": "scoresde.models.Classifier", "channels": 1})
    with pytest.raises(ConfigError, match="needs model.wiener=none"):
        filled(data, {"_target_": "scoresde.MLP", "concat_channels": None, "wiener": "edm"})
    assert filled(data, {"_target_": "scoresde.MLP", "concat_channels": None})["concat_channels"] == 2


def filled(data: Dataset, model: dict[str, Any]) -> Any:
    config = {
        "model": model, "parameterization": {"_target_": "scoresde.Velocity"},
        "loss": {"_target_": "scoresde.DenoisingLoss"}, "task": {"_target_": "scoresde.commands.TrainDenoiser"},
    }  # fmt: skip
    return fill(config, data, labelled=False)["model"]
