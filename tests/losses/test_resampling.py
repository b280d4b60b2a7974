"""Loss-second-moment resampling: its formula, unbiasedness, variance, and resuming a run."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from closed_forms import MEAN, STD
from torch import Tensor, nn

from scoresde import DiscreteVPSDE, Epsilon, GaussianDenoiser, NetworkDenoiser, linear_betas
from scoresde.losses.resampling import LossSecondMoment
from scoresde.losses.vlb_loss import VLBLoss
from scoresde.training import Interrupted, RunDirectory, Trainer, load_checkpoint
from scoresde.training.checkpoint import CheckpointError


def published(place: Tensor, losses: Tensor, terms: int, history: int) -> tuple[Tensor, Tensor]:
    """The last losses of every term, kept one by one, and the probabilities of Improved DDPM's sampler."""
    kept: list[list[float]] = [[] for _ in range(terms)]
    for k, loss in zip(place.tolist(), losses.tolist(), strict=True):
        kept[k] = [*kept[k], loss][-history:]
    if any(len(row) < history for row in kept):
        return torch.tensor([sum(row) for row in kept]), torch.full((terms,), 1 / terms, dtype=torch.float64)
    weights = torch.tensor(kept, dtype=torch.float64).square().mean(1).sqrt()
    weights = weights / weights.sum()
    return torch.tensor([sum(row) for row in kept]), weights * (1 - 0.001) + 0.001 / terms


@pytest.mark.parametrize("history", [1, 3, 10])
@pytest.mark.parametrize("batch", [1, 7, 64])
def test_probabilities_follow_the_last_losses_of_every_term(history: int, batch: int) -> None:
    generator, terms = torch.Generator().manual_seed(5), 5
    place = torch.randint(0, terms, (15 * 64,), generator=generator)
    losses = torch.rand(15 * 64, generator=generator) * (1 + place) ** 2
    law = LossSecondMoment(history=history)
    for start in range(0, len(place), batch):
        assert torch.equal(law.probabilities(terms), published(place[:start], losses[:start], terms, history)[1]) or (
            law.counts.min() >= history
        )
        law.record(place[start : start + batch], losses[start : start + batch])
        law.update()
    sums, expected = published(place, losses, terms, history)
    torch.testing.assert_close(law.losses.sum(1), sums.double(), rtol=1e-6, atol=0)
    torch.testing.assert_close(law.probabilities(terms), expected, rtol=1e-7, atol=0)
    assert law.counts.tolist() == torch.bincount(place).tolist()


def test_uniform_until_every_term_has_its_history() -> None:
    law, losses = LossSecondMoment(history=2), torch.tensor([5.0, 1.0, 5.0])
    assert law.probabilities(2).tolist() == [0.5, 0.5]
    law.record(torch.tensor([0, 1, 0]), losses)
    law.update()
    assert law.probabilities(2).tolist() == [0.5, 0.5]
    law.record(torch.tensor([1]), torch.tensor([1.0]))
    assert law.probabilities(2).tolist() == [0.5, 0.5]  # not before it is settled
    law.update()
    assert law.probabilities(2).tolist() == pytest.approx([0.999 * 5 / 6 + 0.0005, 0.999 / 6 + 0.0005])


def test_places_follow_the_probabilities_and_weights_are_their_inverse() -> None:
    law = LossSecondMoment(history=1, uniform=0.1)
    law.probabilities(4)
    law.record(torch.arange(4), torch.tensor([1.0, 0.0, 3.0, 6.0]))
    law.update()
    p = law.probabilities(4)
    assert p.tolist() == pytest.approx([0.9 * share + 0.025 for share in (0.1, 0.0, 0.3, 0.6)])
    u = (torch.arange(40_000, dtype=torch.float64) + 0.5) / 40_000
    place, weight = law.draw(u, 4)
    torch.testing.assert_close(torch.bincount(place) / 40_000, p.float(), rtol=0, atol=1e-4)
    torch.testing.assert_close(weight, 1 / (4 * p[place]))
    ends, _ = law.draw(torch.tensor([0.0, 1.0]), 4)
    assert ends.tolist() == [0, 3]


def trained_law(loss: VLBLoss, denoiser: GaussianDenoiser, x0: Tensor, generator: torch.Generator) -> None:
    """Enough losses for every term to have its history."""
    denoiser.train()
    for _ in range(30):
        loss(denoiser, x0, generator=generator)
    denoiser.eval()


def test_the_estimate_stays_unbiased_and_its_variance_falls() -> None:
    sde = DiscreteVPSDE(linear_betas(50, 2e-3, 0.2))
    denoiser, generator = GaussianDenoiser(sde, 0.0, 0.5), torch.Generator().manual_seed(0)
    x0 = 0.5 * torch.randn(4000, 4, dtype=torch.float64, generator=generator)
    options: dict[str, Any] = {
        "objective": "vlb", "variance": "large", "steps": 50, "sampling": "independent", "levels": 64,
        "value_range": (-2.0, 2.0),
    }  # fmt: skip
    uniform, learned = VLBLoss(**options), VLBLoss(**options, resampling=LossSecondMoment())
    trained_law(learned, denoiser, x0[:400], generator)
    assert learned.resampling is not None
    p = learned.resampling.probabilities(50)
    assert float(p.max()) > 5 / 50

    values = {
        key: torch.cat([loss(denoiser, x0, generator=generator) for _ in range(8)])
        for key, loss in {"uniform": uniform, "learned": learned}.items()
    }
    spread = {key: float(value.std()) for key, value in values.items()}
    n = len(values["uniform"])
    difference = float(values["learned"].mean() - values["uniform"].mean())
    assert abs(difference) < 4 * (spread["learned"] ** 2 + spread["uniform"] ** 2) ** 0.5 / n**0.5
    assert spread["learned"] ** 2 < 0.2 * spread["uniform"] ** 2


def test_only_training_teaches_and_the_law_of_a_batch_can_be_drawn_again(monkeypatch: pytest.MonkeyPatch) -> None:
    sde = DiscreteVPSDE(linear_betas(4, 0.1, 0.5))
    denoiser, x0 = GaussianDenoiser(sde, MEAN, STD), torch.randn(60, 2)
    law = LossSecondMoment(history=2)
    loss = VLBLoss(objective="vlb", variance="small", steps=4, resampling=law)
    loss(denoiser.eval(), x0)
    assert loss.state_dict()["counts"].sum() == 0
    loss(denoiser.train(), x0)
    batch = []
    monkeypatch.setattr(VLBLoss, "at", lambda self, denoiser, x0, t, noise: batch.append(t) or x0[:, 0])
    loss(denoiser, x0, generator=torch.Generator().manual_seed(2))
    assert torch.equal(loss.draw(sde, x0, torch.Generator().manual_seed(2))[0], batch[0])  # for an error message
    law.update()
    assert not torch.equal(loss.draw(sde, x0, torch.Generator().manual_seed(2))[0], batch[0])


class SmallNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 2)

    def forward(self, x: Tensor, c_noise: Tensor, **cond: Any) -> Tensor:
        return self.layer(torch.cat([x, c_noise[:, None]], 1))


def train(run: RunDirectory, resampling: LossSecondMoment | None, stop: int | None = None) -> VLBLoss:
    torch.manual_seed(0)
    denoiser = NetworkDenoiser(SmallNet(), DiscreteVPSDE(linear_betas(6, 0.01, 0.3)), Epsilon())

    def interrupt(denoiser: nn.Module, step: int) -> None:
        if step == stop:
            os.kill(os.getpid(), signal.SIGINT)

    def batch(index: int) -> tuple[Tensor, dict[str, Any]]:
        return torch.randn(16, 2, generator=torch.Generator().manual_seed(index)), {}

    loss = VLBLoss(objective="vlb", variance="large", steps=6, resampling=resampling)
    Trainer(
        denoiser=denoiser, loss=loss, optimizer=torch.optim.Adam(denoiser.parameters(), lr=1e-2), batch=batch, run=run,
        preview=interrupt, sample_every=1, steps=24, log_every=5, progress=False,
    ).fit()  # fmt: skip
    return loss


def test_a_stopped_run_goes_on_with_the_same_law_bit_for_bit(tmp_path: Path) -> None:
    whole, parts = (RunDirectory.create(tmp_path / name, "seed: 0\n") for name in ("whole", "parts"))
    laws = [LossSecondMoment(history=3) for _ in range(4)]
    train(whole, laws[0])
    for law, stop in zip(laws[1:3], (2, 13), strict=True):
        with pytest.raises(Interrupted):
            train(parts, law, stop)
    train(parts, laws[3])

    first, second = load_checkpoint(whole.last), load_checkpoint(parts.last)
    assert int(first["loss"]["counts"].sum()) == 24 * 16 and int(first["loss"]["counts"].min()) > 3
    for key in ("model", "loss", "ema"):
        for name, value in first[key].items():
            if isinstance(value, Tensor):
                assert torch.equal(value, second[key][name]), (key, name)
    assert float(laws[0].probabilities(6).std()) > 0.01
    assert torch.equal(laws[0].probabilities(6), laws[3].probabilities(6))


def test_a_state_of_another_history_or_chain_is_refused(tmp_path: Path) -> None:
    law = LossSecondMoment(history=3)
    law.probabilities(6)
    with pytest.raises(ValueError, match="history=2 needs the state of one like it, got losses of shape \\(6, 3\\)"):
        LossSecondMoment(history=2).load_state_dict(law.state_dict())
    with pytest.raises(ValueError, match="losses of 6 terms and was asked about 7: use one for each chain"):
        law.probabilities(7)
    run = RunDirectory.create(tmp_path, "seed: 0\n")
    with pytest.raises(Interrupted):
        train(run, LossSecondMoment(history=3), 2)
    with pytest.raises(CheckpointError, match="history=2 needs the state"):
        train(run, LossSecondMoment(history=2))


@pytest.mark.parametrize(("history", "uniform"), [(0, 0.1), (10, 0.0), (10, 1.1)])
def test_wrong_arguments_are_named(history: int, uniform: float) -> None:
    with pytest.raises(ValueError, match="LossSecondMoment needs .* got (history|uniform)="):
        LossSecondMoment(history=history, uniform=uniform)
