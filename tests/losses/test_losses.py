from __future__ import annotations

import math
from functools import partial
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
import torch
from closed_forms import MEAN, SDES, STD, name
from torch import Tensor, nn

from scoresde import (
    EDM,
    EDMSDE,
    MLP,
    SDE,
    VESDE,
    VPSDE,
    Denoiser,
    DenoisingLoss,
    GaussianDenoiser,
    NetworkDenoiser,
    discrete_times,
    edm_weighting,
    likelihood_weighting,
    lognormal_times,
    simple_weighting,
    snr_weighting,
    uniform_times,
)
from scoresde.commands.train import fit
from scoresde.losses.loss import check_law

TIMES = torch.tensor([1e-3, 0.05, 0.4, 0.9], dtype=torch.float64)


def kolmogorov(values: Tensor, cdf: Any) -> float:
    """√n times the Kolmogorov-Smirnov distance; above 1.95 with probability 0.001 under the law."""
    ordered, n = values.double().sort().values, len(values)
    expected, ranks = cdf(ordered), torch.arange(n + 1, dtype=torch.float64) / n
    return float(torch.maximum(ranks[1:] - expected, expected - ranks[:-1]).max()) * n**0.5


# The weighted loss


@pytest.mark.parametrize("sde", SDES, ids=name)
def test_loss_is_the_weighted_eps_error_of_every_example(sde: SDE) -> None:
    denoiser = GaussianDenoiser(sde, MEAN, STD)
    x0, noise = torch.randn(4, 2, 3, dtype=torch.float64), torch.randn(4, 2, 3, dtype=torch.float64)
    x = sde.alpha(TIMES)[:, None, None] * x0 + sde.sigma(TIMES)[:, None, None] * noise
    squares = (denoiser.eps(x, TIMES) - noise).square()
    weight = (sde.g(TIMES) / sde.sigma(TIMES)).square()

    mean = DenoisingLoss(weighting=likelihood_weighting).at(denoiser, x0, TIMES, noise)
    half = DenoisingLoss(reduction="half_sum").at(denoiser, x0, TIMES, noise)
    torch.testing.assert_close(mean, weight * squares.mean((1, 2)), rtol=1e-10, atol=0)
    torch.testing.assert_close(half, 0.5 * squares.sum((1, 2)), rtol=1e-10, atol=0)


def test_the_exact_denoiser_is_the_minimiser() -> None:
    """dL/da = 0 at the truth, for ε̂ + a u and any direction u: the loss measures E[ε | x_t]."""
    sde = VPSDE()

    class Bent(Denoiser):
        def __init__(self, bend: float) -> None:
            super().__init__()
            self.sde, self.exact, self.bend = sde, GaussianDenoiser(sde, MEAN, STD), bend

        def forward(self, x: Tensor, t: Tensor, **cond: Any) -> Tensor:
            return self.exact(x, t) + self.bend * torch.sin(x)

    x0 = MEAN + STD * torch.randn(100_000, 1, dtype=torch.float64)
    t, noise = DenoisingLoss().draw(sde, x0, torch.Generator().manual_seed(1))
    loss = [DenoisingLoss(weighting=partial(snr_weighting, power=0)).at(Bent(b), x0, t, noise) for b in (-0.1, 0, 0.1)]
    slope = loss[2] - loss[0]
    assert abs(float(slope.mean())) < 4 * float(slope.std()) / len(x0) ** 0.5
    assert float(loss[1].mean()) < min(float(loss[0].mean()), float(loss[2].mean()))


@pytest.mark.parametrize(
    "power, low, high", [(0.0, 0.0, float("inf")), (1.0, 1.0, float("inf")), (1.0, 0.0, 5.0), (0.5, 0.0, 9.0)]
)
def test_snr_weightings_are_clamped_powers_of_the_snr_on_the_data_error(power: float, low: float, high: float) -> None:
    sde = VPSDE()
    denoiser = GaussianDenoiser(sde, MEAN, STD)
    x0, noise = torch.randn(4, 3, dtype=torch.float64), torch.randn(4, 3, dtype=torch.float64)
    snr = (sde.alpha(TIMES) / sde.sigma(TIMES)).square()

    loss = DenoisingLoss(weighting=partial(snr_weighting, power=power, low=low, high=high))
    data_error = (denoiser(sde.perturb(x0, TIMES, noise), TIMES) - x0).square().mean(1)
    torch.testing.assert_close(
        loss.at(denoiser, x0, TIMES, noise), snr.clamp(low, high) ** power * data_error, rtol=1e-9, atol=0
    )


def test_snr_to_the_first_power_is_the_simple_loss() -> None:
    for sde in SDES:
        torch.testing.assert_close(snr_weighting(sde, TIMES), simple_weighting(sde, TIMES))


@pytest.mark.parametrize("sde", SDES, ids=name)
@pytest.mark.parametrize("std", [0.5, 1.4])
def test_edm_weighting_starts_every_noise_level_at_unit_loss(sde: SDE, std: float) -> None:
    class Zero(nn.Module):
        def forward(self, x: Tensor, c_noise: Tensor) -> Tensor:
            return torch.zeros_like(x)

    denoiser = NetworkDenoiser(Zero(), sde, EDM(sigma_data=std))
    loss = DenoisingLoss(weighting=partial(edm_weighting, sigma_data=std))
    # the error is linear in (x0, ε), so its mean square is the sum over the two unit directions
    x0, noise = torch.tensor([[std], [0.0]], dtype=torch.float64), torch.tensor([[0.0], [1.0]], dtype=torch.float64)
    for t in TIMES:
        total = loss.at(denoiser, x0, t.expand(2), noise).sum()
        assert float(total) == pytest.approx(1.0, rel=1e-9)


# Laws of time


@pytest.mark.parametrize("sampling", ["independent", "stratified", "antithetic"])
def test_times_are_uniform_whatever_the_sampling(sampling: str) -> None:
    sde, loss, generator = VPSDE(t_min=0.1), DenoisingLoss(sampling=sampling), torch.Generator().manual_seed(0)
    batches = [loss.draw(sde, torch.zeros(50, 1), generator)[0] for _ in range(100)]
    t = torch.cat(batches)
    first = torch.stack(
        [batch[0] for batch in torch.stack([loss.draw(sde, torch.zeros(8, 1), generator)[0] for _ in range(1000)])]
    )

    assert kolmogorov(t, lambda t: (t - 0.1) / 0.9) < 1.95
    assert kolmogorov(first, lambda t: (t - 0.1) / 0.9) < 1.95  # of one place in the batch alone
    if sampling != "independent":  # every cell of width 1/B exactly once
        for batch in batches:
            assert torch.equal(
                ((batch.double() - 0.1) / 0.9 * 50 - 1e-6).ceil().sort().values, torch.arange(1.0, 51).double()
            )
    if sampling == "stratified":  # with a draw of its own in each
        offsets = torch.stack([batch.sort().values for batch in batches]).sub(0.1).div(0.9).mul(50) % 1
        assert float(offsets.std(1).min()) > 0.2
    if sampling == "antithetic":  # one shift of the whole lattice
        gaps = batches[0].sort().values.diff()
        torch.testing.assert_close(gaps, torch.full_like(gaps, 0.9 / 50), rtol=0, atol=1e-6)
        assert len({round(float(batch.min()), 5) for batch in batches}) > 50


def test_discrete_times_are_the_nodes_with_equal_weight() -> None:
    u = (torch.arange(40, dtype=torch.float64) + 0.5) / 40
    t = discrete_times(VPSDE(), u, steps=4)
    assert t.unique(return_counts=True)[0].tolist() == [0.25, 0.5, 0.75, 1.0]
    assert t.unique(return_counts=True)[1].tolist() == [10, 10, 10, 10]
    assert discrete_times(VPSDE(), torch.tensor([0.0, 1.0])).tolist() == pytest.approx([1e-3, 1.0])


def test_lognormal_times_have_the_published_quantiles_of_log_sigma() -> None:
    sde = EDMSDE()
    u = torch.tensor([0.0227501, 0.1586553, 0.5, 0.8413447, 0.9772499], dtype=torch.float64)
    log_ratio = -0.5 * sde.logsnr(lognormal_times(sde, u))
    expected = -1.2 + 1.2 * torch.tensor([-2.0, -1, 0, 1, 2], dtype=torch.float64)
    torch.testing.assert_close(log_ratio, expected, rtol=0, atol=1e-5)

    drawn = lognormal_times(sde, torch.rand(5000, generator=torch.Generator().manual_seed(0)))
    normal = torch.distributions.Normal(torch.tensor(-1.2).double(), torch.tensor(1.2).double())
    assert kolmogorov(-0.5 * sde.logsnr(drawn.double()), normal.cdf) < 1.95
    narrow = VESDE(sigma_min=0.2, sigma_max=0.5)
    assert lognormal_times(narrow, torch.tensor([1e-6, 1 - 1e-6])).tolist() == pytest.approx([1e-5, 1.0])
    assert lognormal_times(sde, torch.rand(3)).dtype == torch.float32


def test_uniform_times_start_at_t_min() -> None:
    assert uniform_times(VPSDE(t_min=0.2), torch.tensor([0.0, 0.5, 1.0])).tolist() == pytest.approx([0.2, 0.6, 1.0])


# Randomness and labels


def test_the_generator_decides_everything() -> None:
    denoiser, x0 = GaussianDenoiser(VPSDE(), MEAN, STD), torch.randn(6, 3)
    first, again, other = (
        DenoisingLoss()(denoiser, x0, generator=torch.Generator().manual_seed(seed)) for seed in (1, 1, 2)
    )
    assert first.shape == (6,) and torch.equal(first, again) and not torch.equal(first, other)


def test_label_dropout_replaces_that_fraction_of_labels_by_minus_one() -> None:
    seen: list[Tensor] = []

    class Spy(Denoiser):
        sde = VPSDE()

        def forward(self, x: Tensor, t: Tensor, *, label: Tensor, **cond: Any) -> Tensor:
            seen.append(label)
            return x

    label = torch.arange(10_000) % 10
    for dropout in (0.0, 0.2):
        DenoisingLoss(label_dropout=dropout)(
            Spy(), torch.zeros(10_000, 1), generator=torch.Generator().manual_seed(0), label=label
        )
    assert torch.equal(seen[0], label)
    dropped = seen[1] == -1
    assert abs(float(dropped.double().mean()) - 0.2) < 4 * (0.16 / 10_000) ** 0.5
    assert torch.equal(seen[1][~dropped], label[~dropped]) and torch.equal(label, torch.arange(10_000) % 10)


@pytest.mark.parametrize("joint", [0.0, 0.2])
def test_every_condition_is_dropped_by_itself_and_all_of_them_jointly(joint: float) -> None:
    """Each with j + (1 − j) r, any two with j + (1 − j) r r', all with j + (1 − j) Π r; by generator and row alone."""
    seen: list[dict[str, Tensor]] = []

    class Spy(Denoiser):
        sde = VPSDE()

        def forward(self, x: Tensor, t: Tensor, **cond: Any) -> Tensor:
            seen.append(cond)
            return x

    n, x0 = 20_000, torch.zeros(20_000, 1)
    cond = {
        "label": torch.arange(n) % 10, "condition": torch.arange(2 * n).reshape(n, 2),
        "image": (torch.arange(4 * n) % 256).to(torch.uint8).reshape(n, 1, 2, 2),
        "sequence": torch.arange(3 * n).reshape(n, 3),
    }  # fmt: skip
    rates = {"label": 0.5, "condition": 0.3, "image": 0.4, "sequence": 0.2}
    loss = DenoisingLoss(joint_dropout=joint, **{f"{key}_dropout": rate for key, rate in rates.items()})  # type: ignore[arg-type]
    for _ in range(2):
        loss(Spy(), x0, generator=torch.Generator().manual_seed(0), **cond)
    dropped = {
        key: (value.isnan() if value.is_floating_point() else value == -1).reshape(n, -1).all(1)
        for key, value in seen[0].items()
    }
    for key, rows in dropped.items():
        assert torch.equal(seen[0][key][~rows], cond[key][~rows].to(seen[0][key].dtype))
        assert torch.equal(seen[0][key].nan_to_num(-1), seen[1][key].nan_to_num(-1))
    for size in (1, 2, 4):
        for keys in combinations(rates, size):
            expected = joint + (1 - joint) * math.prod(rates[key] for key in keys)
            share = torch.stack([dropped[key] for key in keys]).all(0).double().mean().item()
            assert abs(share - expected) < 4 * (expected * (1 - expected) / n) ** 0.5, keys


@pytest.mark.parametrize(
    "options, words",
    [
        ({"sampling": "sobol"}, "DenoisingLoss needs sampling independent, stratified or antithetic, got 'sobol'"),
        ({"reduction": "sum"}, "DenoisingLoss needs reduction mean or half_sum, got 'sum'"),
        ({"label_dropout": 1.0}, "DenoisingLoss needs 0 <= label_dropout < 1, got label_dropout=1.0"),
    ],
)
def test_wrong_arguments_are_named(options: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        DenoisingLoss(**options)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (
            {"weighting": lambda sde, t: -torch.ones_like(t)},
            "not negative and somewhere positive, got weights from -1 to",
        ),
        ({"weighting": lambda sde, t: torch.zeros_like(t)}, "somewhere positive, got weights from 0 to 0"),
        ({"weighting": lambda sde, t: 1 / (t - t)}, "a weighting that is finite"),
        (
            {"weighting": partial(snr_weighting, high=-1.0)},
            "snr_weighting needs 0 <= low <= high, got low=0.0, high=-1.0",
        ),
        ({"time": lambda sde, u: 2 * u}, r"a law of times in \[0, 1\], got times from"),
        ({"time": partial(discrete_times, steps=0)}, "discrete_times needs 1 <= steps <= 1000000, a whole number, got"),
    ],
)
def test_a_law_without_sense_is_refused_before_there_is_a_run(options: Any, words: str, tmp_path: Path) -> None:
    check_law(DenoisingLoss(), VPSDE(), torch.device("cpu"))
    module, loss = NetworkDenoiser(MLP(width=8, depth=1), VPSDE(), EDM()), DenoisingLoss(**options)
    with pytest.raises(ValueError, match=words):
        nothing: Any = None
        fit(
            {"extensions": []},
            module,
            [],
            loss,
            nothing,
            tmp_path / "run",
            {},
            nothing,
            labelled=False,
            dequantize=True,
        )
    assert not (tmp_path / "run").exists()
