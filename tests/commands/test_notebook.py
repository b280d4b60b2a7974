"""`fit` and `load_run`: what a notebook gets is what the commands write."""

from __future__ import annotations

import csv
import gc
from pathlib import Path

import numpy as np
import pytest
import torch
from command_line import command

import scoresde
from scoresde.cli import sample_main
from scoresde.cli.on_arrays import recipe
from scoresde.commands import TrainedRun

SMALL = ["trainer.steps=2", "batch_size=16", "model=mlp", "model.width=8", "model.depth=1", "trainer.progress=false"]


@pytest.fixture(scope="module")
def table() -> TrainedRun:
    """Two columns of scales 1e-3 and 1e4, classes, and a condition."""
    generator = np.random.default_rng(0)
    x = generator.standard_normal((60, 2)) * [1e-3, 1e4] + [0, 5e4]
    label = np.arange(60) % 3
    return scoresde.fit(x, generator.uniform(1, 2, 60), label, None, overrides=SMALL)


def rows_of(path: Path, column: str) -> list[float]:
    with path.open(newline="") as file:
        return [float(row[column]) for row in csv.DictReader(file)]


def test_samples_are_those_of_the_command(table: TrainedRun, tmp_path: Path) -> None:
    command(
        sample_main, f"run={table.path}", "num_samples=5", "seed=3", "solver=heun", "solver.steps=3", "label=[2,0]",
        "condition=[1.5]", f"out={tmp_path}", "likelihood=none",
    )  # fmt: skip
    written = np.load(tmp_path / "samples.npz")
    drawn = table.sample(5, condition=1.5, label=[2, 0], solver=scoresde.Heun(steps=3), seed=3)
    assert drawn.shape == (5, 2) and drawn.dtype == written["x"].dtype
    np.testing.assert_array_equal(drawn, written["x"])
    parts = table.sample(
        5, condition=torch.tensor([[1.5]]), label=np.array([2, 0]), solver="heun", seed=3, batch_size=2
    )
    assert parts.shape == (5, 2) and np.isfinite(parts).all()
    assert abs(drawn[:, 1].mean() - 5e4) < 5e4 and abs(drawn[:, 0]).max() < 1  # the data's own units


def test_log_p_is_that_of_the_command(table: TrainedRun, tmp_path: Path) -> None:
    """In nats and the data's own units, so that another unit of a column moves it by its logarithm."""
    stored = np.load(table.path / "data.npz")
    x, condition = stored["x"][:6], stored["condition"][:6]
    np.savez(tmp_path / "x.npz", x=x, condition=condition, y=stored["y"][:6])
    command(
        sample_main, f"run={table.path}", "num_samples=0", "likelihood=exact", "likelihood.rtol=1e-2", "seed=2",
        "data=array", f"data.path={tmp_path / 'x.npz'}", f"out={tmp_path}",
    )  # fmt: skip
    likelihood = scoresde.commands.FlowLikelihood(divergence="exact", rtol=1e-2)
    options = {"condition": condition, "label": stored["y"][:6], "likelihood": likelihood, "seed": 2}
    found = table.log_prob(x, **options)
    assert found.shape == (6,) and found.dtype == np.float64
    np.testing.assert_allclose(found, rows_of(tmp_path / "likelihood.csv", "nats"), rtol=1e-12)
    points = table.codec.encode(torch.tensor(x)).float()
    cond = {"condition": torch.tensor(condition)[:, None], "label": torch.tensor(stored["y"][:6])}
    inner = scoresde.log_prob(table.denoiser.given(**cond), points, divergence="exact", rtol=1e-4, atol=1e-4).log_prob
    std = table.trained.data().train.x.std(0, unbiased=False)
    np.testing.assert_allclose(found - inner.double().numpy(), -std.log().sum(), atol=0.05)
    np.testing.assert_array_equal(table.log_prob(torch.tensor(x), **{**options, "batch_size": 4})[:4], found[:4])


def test_a_run_is_loaded_by_its_folder(table: TrainedRun) -> None:
    again = scoresde.load_run(table.path)
    assert repr(again) == f"TrainedRun('{table.path}', shape=(2,), step=2)"
    assert again.config == table.config and again.names == table.names
    assert isinstance(again.denoiser, scoresde.Denoiser)
    np.testing.assert_array_equal(again.sample(2, condition=1.5), table.sample(2, condition=[1.5]))


def test_a_temporary_run_goes_with_its_model() -> None:
    model = scoresde.fit(np.random.default_rng(0).standard_normal(40), budget=None, overrides=SMALL)
    folder = model.path.parent
    assert folder.is_dir() and model.sample(3).shape == (3, 1)
    del model
    gc.collect()
    assert not folder.exists()


def test_levels_and_pictures(tmp_path: Path) -> None:
    """uint8 holds levels, with the channels where pictures have them; their log p is a probability of levels."""
    x = np.random.default_rng(0).integers(0, 256, (20, 4, 4, 3)).astype(np.uint8)
    model = scoresde.fit(x, budget=None, run=tmp_path / "run", overrides=SMALL)
    assert model.path == tmp_path / "run" and (tmp_path / "run" / "data.npz").is_file()
    drawn = model.sample(2, solver=scoresde.DDIM(steps=2))
    assert drawn.shape == (2, 4, 4, 3) and drawn.dtype == np.uint8
    found = model.log_prob(x[:2], likelihood=scoresde.commands.FlowLikelihood(method="rk4", steps=2))
    assert found.shape == (2,) and (found < 0).all()
    with pytest.raises(ValueError, match="holds other data than these: choose another run"):
        scoresde.fit(x + 1, budget=None, run=tmp_path / "run", overrides=SMALL)


@pytest.mark.parametrize(
    "shape, kind", [((5, 2), "table"), ((5,), "table"), ((5, 1, 8), "series"), ((5, 1, 8, 8), "image"),
                    ((5, 1, 4, 4, 4), "volume")],
)  # fmt: skip
def test_the_recipe_is_that_of_the_experiment(shape: tuple[int, ...], kind: str) -> None:
    config = recipe({"x": np.zeros(shape, np.float32)}, ["model.width=24"])
    assert config["data"]["_target_"] == "scoresde.data.array" and config["logger"]["_target_"].endswith("CSVLogger")
    assert config["model"]["width"] == 24


def test_what_does_not_fit_is_said_in_one_sentence(table: TrainedRun) -> None:
    x = np.load(table.path / "data.npz")["x"][:3].copy()
    for call, sentence in (
        (lambda: scoresde.fit(np.array(["a", "b"])), "fit needs x to be numbers, got <U1"),
        (lambda: scoresde.fit(x, np.zeros(2)), r"fit needs one condition per example, 3, got \(2,\)"),
        (lambda: scoresde.fit(x, budget="0min"), "budget needs a time longer than 0"),
        (lambda: scoresde.fit(x, overrides=["modle=mlp"]), "modle"),
        (lambda: table.sample(2, condition=[[1.5, 2.0]]), "condition needs 1 value per row"),
        (lambda: table.sample(2, condition=1.5, solver="huen"), "solver=huen is not there: did you mean heun"),
        (lambda: table.sample(0), "n >= 1"),
        (lambda: table.log_prob(x), "the density of .* is that of x given a condition"),
        (lambda: table.log_prob(x, condition=1.5, label=[0, 1]), "label has 2 values for 3 examples"),
        (lambda: table.log_prob(x, condition=1.5, label=7), "label"),
        (lambda: table.log_prob(x[:, :1], condition=1.5), "events of shape"),
        (lambda: table.log_prob([["a"]], condition=1.5), "needs real numbers"),
        (lambda: table.log_prob([[0.0, 5e4], [np.nan, 0.0]], condition=1.5), "cannot score row 1, which holds NaN"),
    ):  # fmt: skip
        with pytest.raises(Exception, match=sentence):
            call()
    with pytest.raises(FileNotFoundError, match="no run at"):
        scoresde.load_run("nowhere")
