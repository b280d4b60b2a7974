"""A flow's own pairs, what training on them does, how straight paths are, and runs that know their flow alone."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from scoresde import (
    DDIM,
    DDPM,
    VPSDE,
    Denoiser,
    EulerMaruyama,
    GaussianDenoiser,
    ProbabilityFlowODE,
    StraightSDE,
    load,
)
from scoresde.commands import ELBO, FlowLikelihood
from scoresde.commands.build import ConfigError
from scoresde.commands.load import load_run
from scoresde.commands.paired import check_flow_only
from scoresde.commands.reflow import PAIRS_FILE, bend
from scoresde.commands.train import train
from scoresde.diagnostics import straightness
from scoresde.losses import FlowLoss, reflow_pairs

PATH, STD = StraightSDE(), 0.4


class Line(Denoiser):
    """The straight flow from N(0, 1) to N(0, STD²): x0 = STD x_1, x_t = ((1 − t) STD + t) x_1."""

    sde = PATH

    def forward(self, x: Tensor, t: Tensor, **cond: Any) -> Tensor:
        width = (1 - t) * STD + t
        return STD * x / (width if t.ndim == 0 else width[:, None])


# Straightness and pairs


def test_straightness_is_that_of_the_paths_in_closed_form() -> None:
    x = torch.randn(7, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    t = torch.linspace(0, 1, 200_001, dtype=torch.float64)
    width = torch.hypot((1 - t) * STD, t)  # x_t = width x_1 for centred Gaussian data
    rate = (t - (1 - t) * STD**2) / width
    expected = float(torch.trapezoid((rate - (1 - STD)).square(), t)) * x.square().sum(1)
    errors = [
        (straightness(GaussianDenoiser(PATH, 0.0, STD), x, steps=n) / expected - 1).abs().max() for n in (50, 100)
    ]
    assert float(errors[1]) < 2e-3 and math.log2(errors[0] / errors[1]) == pytest.approx(2, abs=0.3)
    torch.testing.assert_close(straightness(Line(), x), torch.zeros(7).double(), rtol=0, atol=1e-12)


def test_pairs_follow_the_flow_and_are_functions_of_seed_and_index() -> None:
    denoiser = GaussianDenoiser(PATH, 1.5, STD)
    pairs = reflow_pairs(denoiser, (2,), 9, solver=ProbabilityFlowODE(rtol=1e-6, atol=1e-6), seed=3)
    torch.testing.assert_close(pairs.x0, 1.5 + STD * pairs.noise, rtol=0, atol=1e-4)
    again = reflow_pairs(denoiser, (2,), 5, solver=ProbabilityFlowODE(rtol=1e-6, atol=1e-6), seed=3, batch_size=2)
    assert torch.equal(again.noise, pairs.noise[:5])
    torch.testing.assert_close(again.x0, pairs.x0[:5], rtol=0, atol=1e-6)
    assert not torch.equal(reflow_pairs(denoiser, (2,), 2, seed=4).noise, pairs.noise[:2])
    one_step = DDIM(steps=1, denoise=False)(Line(), pairs.noise)  # of the flow that learned them all
    torch.testing.assert_close(one_step, pairs.x0 - 1.5, rtol=0, atol=1e-4)

    losses = [FlowLoss()(Line(), pairs.x0 - 1.5, noise=noise) for noise in (pairs.noise, pairs.noise.roll(1, 0))]
    assert float(losses[0].max()) < 1e-6 and float(losses[1].mean()) > 0.1  # pairs of others are no pairs


@pytest.mark.parametrize(
    ("model", "options", "words"),
    [
        (GaussianDenoiser(VPSDE(), 0.0, 1.0), {}, r"alpha\(1\) is not 0 on VPSDE: use a model on StraightSDE"),
        (Line(), {"solver": DDPM()}, "reflow_pairs needs a deterministic solver, got DDPM: it adds noise"),
        (Line(), {"count": 0}, "reflow_pairs needs count >= 1, a whole number, got count=0"),
    ],
)
def test_pairs_without_sense_are_refused(model: Denoiser, options: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        reflow_pairs(model, (2,), **{"count": 3, **options})


# Runs


COMMON: dict[str, Any] = {
    "optimizer": {"_target_": "torch.optim.Adam", "_partial_": True, "lr": 0.01},
    "trainer": {"_target_": "scoresde.Trainer", "steps": 60, "progress": False, "ema_decay": 0.9, "log_every": None},
    "logger": {"_target_": "scoresde.training.CSVLogger", "_partial_": True}, "batch_size": 128, "seed": 0,
    "device": "cpu", "extensions": [],
}  # fmt: skip


def toy_config(run: Path, **changes: Any) -> dict[str, Any]:
    return {
        **COMMON, "task": {"_target_": "scoresde.commands.TrainDenoiser"}, "conditional": True, "run": str(run),
        "sde": {"_target_": "scoresde.StraightSDE"},
        "parameterization": {"_target_": "scoresde.Velocity", "sigma_data": None},
        "model": {"_target_": "scoresde.MLP", "shape": None, "width": 32, "depth": 1, "num_classes": None},
        "loss": {"_target_": "scoresde.losses.FlowLoss"},
        "data": {"_target_": "scoresde.data.toy", "name": "moons", "size": 500}, **changes,
    }  # fmt: skip


def reflow_config(run: Path, of: Path | None, **changes: Any) -> dict[str, Any]:
    task = {
        "_target_": "scoresde.commands.TrainReflow",
        "of": None if of is None else str(of),
        "pairs": 300,
        "rtol": 0.01,
    }
    loss = {"_target_": "scoresde.losses.FlowLoss", "label_dropout": 0.1}
    return {**COMMON, "task": task, "loss": loss, "run": str(run), **changes}


def test_reflow_of_a_run_is_a_run_whose_paths_are_straighter(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flow, straight = tmp_path / "flow", tmp_path / "straight"
    train(toy_config(flow))
    before = load_run(flow)
    assert train(reflow_config(straight, flow))["step"] == 60
    after = load_run(straight)
    data = before.data()
    assert bend(after, data) < 0.5 * bend(before, data) and after.classes == before.classes == 2
    said = capsys.readouterr().out
    assert (
        "making 300 pairs" in said
        and f"straightness, relative to the length of the paths: {bend(before, data):.3g}" in said
    )

    assert train(reflow_config(straight, flow))["step"] == 60  # found again, with the pairs that there are
    assert "making" not in capsys.readouterr().out and (flow / PAIRS_FILE).is_file()
    label, x = torch.tensor([0, 1, 1]), torch.randn(3, 2)
    assert bool(DDIM(steps=1)(load(straight).given(label=label), x).isfinite().all())

    check_flow_only(before, DDPM(), ELBO())
    check_flow_only(after, DDIM(), FlowLikelihood())
    with pytest.raises(ConfigError, match=r"straight was trained with task=reflow: .* not their score, which EulerMar"):
        check_flow_only(after, EulerMaruyama(), None)
    with pytest.raises(ConfigError, match=r"not their score, which bounds need: use likelihood=exact"):
        check_flow_only(after, None, ELBO())
    after.config["task"]["_target_"] = "scoresde.commands.TrainDenoiser"
    after.config["loss"]["coupling"] = "optimal_transport"
    with pytest.raises(ConfigError, match=r"was trained with loss.coupling=optimal_transport"):
        check_flow_only(after, DDIM(eta=1.0), None)


def test_what_cannot_be_trained_is_refused_before_there_is_a_run(tmp_path: Path) -> None:
    run, vp = tmp_path / "run", tmp_path / "vp"
    train(toy_config(vp, sde={"_target_": "scoresde.VPSDE"}, trainer={**COMMON["trainer"], "steps": 1}))
    cases: list[tuple[dict[str, Any], str]] = [
        (reflow_config(run, None), "task=reflow needs of=runs/"),
        (reflow_config(run, vp), "needs a denoiser whose process ends without signal, and .*vp is on VPSDE"),
        (reflow_config(run, vp, sde={"_target_": "scoresde.VPSDE"}), "reflow takes sde from the run"),
        (toy_config(run, parameterization={"_target_": "scoresde.Epsilon"}),
         "parameterization=epsilon says nothing about the data .* use parameterization=velocity, v, data or edm"),
        (toy_config(run, parameterization={"_target_": "scoresde.Score"}), "parameterization=score says nothing"),
        (toy_config(run, batch_size=1, loss={"_target_": "scoresde.losses.FlowLoss", "coupling": "optimal_transport"}),
         "coupling=optimal_transport needs batches of at least 2 examples, got batch_size=1"),
    ]  # fmt: skip
    for config, words in cases:
        with pytest.raises(ValueError, match=words):
            train(config)
        assert not run.exists()
