"""The covariance of a trained run: a table made once, and heads trained, kept and loaded."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from scoresde import DDPM
from scoresde.commands import ProbedVariance, TableVariance, TrainedVariance, Variance
from scoresde.commands.build import ConfigError
from scoresde.commands.load import TrainedModel, load_run, newest_run
from scoresde.commands.train import train
from scoresde.commands.variance import VARIANCE_FILE, moments_of
from scoresde.covariance import VarianceHead
from scoresde.denoiser import Denoiser
from scoresde.training import load_checkpoint

TRAINER: dict[str, Any] = {
    "_target_": "scoresde.Trainer", "steps": 3, "progress": False, "ema_decay": 0.5, "log_every": None,
}  # fmt: skip
COMMON: dict[str, Any] = {
    "optimizer": {"_target_": "torch.optim.Adam", "_partial_": True, "lr": 0.01}, "trainer": TRAINER,
    "logger": {"_target_": "scoresde.training.CSVLogger", "_partial_": True}, "batch_size": 64, "seed": 0,
    "device": "cpu", "extensions": [],
}  # fmt: skip


@pytest.fixture
def trained(tmp_path: Path) -> TrainedModel:
    train({
        **COMMON, "task": {"_target_": "scoresde.commands.TrainDenoiser"}, "conditional": False,
        "run": str(tmp_path / "runs" / "toy"),
        "sde": {"_target_": "scoresde.VPSDE"}, "parameterization": {"_target_": "scoresde.EDM", "sigma_data": None},
        "model": {"_target_": "scoresde.MLP", "shape": None, "width": 16, "depth": 1, "num_classes": None},
        "loss": {"_target_": "scoresde.DenoisingLoss"}, "data": {"_target_": "scoresde.data.toy", "name": "moons"},
    })  # fmt: skip
    return load_run(tmp_path / "runs" / "toy")


def head_config(trained: TrainedModel, **changes: Any) -> dict[str, Any]:
    loss = {"_target_": "scoresde.SecondMomentLoss"}
    task = {"_target_": "scoresde.commands.TrainVarianceHead", "of": str(trained.run.path), "head": "npr", **changes}
    return {**COMMON, "run": None, "task": task, "model": None, "loss": loss}


def test_the_table_is_made_once_and_made_again_when_it_no_longer_fits(
    trained: TrainedModel, capsys: pytest.CaptureFixture[str]
) -> None:
    calls = 0

    def count(*args: Any) -> None:
        nonlocal calls
        calls += 1

    trained.model.net.register_forward_pre_hook(count)
    first = moments_of(trained, samples=100, levels=7, batch_size=40)
    assert calls == 7 * 3 and first.samples == 100 and (trained.run.path / VARIANCE_FILE).is_file()
    assert "from 100 examples, once: kept in" in capsys.readouterr().out
    for enough in (100, 30):
        again = moments_of(trained, samples=enough, levels=7)
        assert torch.equal(first.value, again.value) and again.samples == 100 and calls == 21
    state = load_checkpoint(trained.run.path / VARIANCE_FILE)
    assert (state["seed"], state["samples"], state["step"]) == (0, 100, trained.step)
    assert torch.equal(state["std_error"], first.std_error) and bool((first.std_error > 0).all())
    for changes in ({"samples": 120}, {"seed": 1}, {"levels": 5}):
        before = calls
        moments_of(trained, **{"samples": 100, "levels": 7, **changes})
        assert calls > before


@pytest.mark.parametrize(
    "variance",
    [TableVariance(samples=50, levels=9), TableVariance(samples=50, levels=9, corrected=True), ProbedVariance()],
    ids=str,
)
def test_a_run_can_be_sampled_with_the_optimal_variance(trained: TrainedModel, variance: Variance) -> None:
    denoiser = variance(trained)
    x = torch.randn(5, 2)
    y = DDPM(variance="optimal", steps=4)(denoiser, x)
    assert y.shape == x.shape and bool(y.isfinite().all())


@pytest.mark.parametrize("kind", ["npr", "sn"])
def test_a_head_is_trained_kept_and_loaded(trained: TrainedModel, kind: str) -> None:
    with pytest.raises(ConfigError, match=rf"has no {kind} head: train one for it first"):
        TrainedVariance(head=kind)(trained)
    assert train(head_config(trained, head=kind))["step"] == 3
    before = load_run(trained.run.path).model
    x, t = torch.randn(5, 2), torch.tensor(0.5)
    head = TrainedVariance(head=kind)(load_run(trained.run.path))
    assert isinstance(head, VarianceHead) and head.kind == kind
    torch.testing.assert_close(head(x, t), before(x, t), rtol=0, atol=0)
    assert bool((head.net.output.weight != 0).any()) and head.net.shape == (4,)
    assert DDPM(variance="optimal", steps=3)(head, x).shape == x.shape
    # the head's folder is not taken for a denoiser's run
    assert newest_run(Denoiser, trained.run.path.parent).path == trained.run.path


def test_a_head_of_other_weights_is_refused(trained: TrainedModel) -> None:
    train(head_config(trained))
    object.__setattr__(trained, "step", 99)
    with pytest.raises(ConfigError, match=r"was trained for step 3 of .*, which is at step 99: remove"):
        TrainedVariance(head="npr")(trained)
    with pytest.raises(ValueError, match=r"TrainedVariance needs head npr or sn, got 'best'"):
        TrainedVariance(head="best")(trained)
