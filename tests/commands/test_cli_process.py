"""`sample.py sde=...`: a run on the times of another process."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from command_line import command, inside

from scoresde import DDIM, StraightSDE, load, uniform_grid
from scoresde.cli import sample_main, train_main
from scoresde.commands.drawing import draw
from scoresde.commands.load import load_run

TINY = ("experiment=toy", "data.size=64", "batch_size=8", "model.width=8", "trainer.steps=3", "logger=csv")
FEW = ("solver=ddim", "solver.steps=4", "num_samples=4", "out=out")


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("work")
    with inside(folder):
        command(train_main, *TINY, "run=runs/vp")
        command(train_main, *TINY, "run=runs/learned", "sde=vdm", "sde.learn_ends=false")
    return folder


def sampled(*arguments: str) -> tuple[np.ndarray[Any, Any], dict[str, Any]]:
    command(sample_main, *FEW, *arguments)
    return np.load("out/samples.npz")["x"], json.loads(Path("out/metrics.json").read_text())


def test_a_run_is_sampled_and_scored_on_another_process(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with inside(runs):
        options = ("run=runs/vp", "likelihood=exact", "likelihood.num_examples=2")
        x, metrics = sampled(*options, "sde=straight", "grid=uniform")
        assert "on StraightSDE, 4 samples" in capsys.readouterr().out and metrics["sde"] == "StraightSDE"
        on, codec = load("runs/vp").on(StraightSDE()), load_run("runs/vp").codec
        by_hand = draw(on, DDIM(steps=4, grid=uniform_grid), (2,), 0, range(4), torch.device("cpu"))
        np.testing.assert_allclose(x, codec.decode(by_hand).numpy(), rtol=1e-5, atol=1e-5)
        own, without = sampled(*options, "grid=uniform")
        assert "sde" not in without and not np.allclose(x, own)
        assert metrics["log_prob_nats"] == pytest.approx(
            without["log_prob_nats"], abs=0.1
        )  # rows of the other process are not reused
        assert metrics["log_prob_nats"] != without["log_prob_nats"]


@pytest.mark.parametrize(
    "options",
    [
        ("run=runs/learned", "sde=straight"),
        ("run=runs/vp", "sde=vdm"),
        ("run=runs/vp", "sde=straight", "solver=ddpm", "solver.variance=optimal", "variance=hessian"),
        ("run=runs/vp", "sde=ve", "solver=ddpm", "solver.variance=optimal", "variance=analytic", "variance.samples=8"),
    ],
    ids=" ".join,
)
def test_learned_processes_and_covariances_go_along(runs: Path, options: tuple[str, ...]) -> None:
    with inside(runs):
        assert np.isfinite(sampled(*options)[0]).all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("sde=strait",), r"sde=strait.* did you mean sde=straight|straight"),
        (("sde=straight", "sde.tmin=0.1"), "sde.tmin"),
        (("sde=straight", "sde.t_min=2"), r"sde.t_min.* 0 < t_min < 1"),
        (
            ("sde=ve", "likelihood=vlb", "likelihood.variance=optimal", "variance=hessian"),
            "likelihood=vlb with a variance=... is of the run's own process: leave out sde=",
        ),
    ],
)
def test_what_cannot_be_is_said(runs: Path, options: tuple[str, ...], message: str) -> None:
    with inside(runs), pytest.raises(SystemExit, match=message) as stopped:
        command(sample_main, *FEW, "run=runs/vp", *options)
    assert "\n" not in str(stopped.value.code)
