"""`sample.py task=...`: closed forms in the data's own units, files of observations, streams, and what is refused."""

from __future__ import annotations

import csv
import json
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from command_line import command, inside
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf
from PIL import Image

from scoresde.cli import config_dir, sample_main, train_main
from scoresde.commands import Inpaint, NoGuidance
from scoresde.commands.build import ConfigError
from scoresde.commands.inverse_problems import HIDDEN
from scoresde.commands.load import load_run
from scoresde.commands.observations import Observations, own_values
from scoresde.commands.packaged import packaged
from scoresde.commands.posterior import of_observations
from scoresde.commands.posterior_results import errors
from scoresde.commands.sample import sample
from scoresde.data import Standardized
from scoresde.inverse import DownSample, Grayscale, Mask, Measurement

MLP = ["logger=csv", "trainer.progress=false", "model=mlp", "model.width=8", "model.depth=1", "batch_size=32"]
SHORT = [*MLP, "trainer.steps=1", "trainer.warmup=0", "trainer.sample_every=null", "optimizer.lr=1e-12"]
MIX = np.array([[3.0, 0.0, 0.0], [2.0, 1.0, 0.0], [-0.5, 0.1, 0.2]])
CENTRE = np.array([170.0, 70.0, 3.0])


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Gaussian table, whose best linear denoiser is exact and is all that an untrained network gives; pictures."""
    folder, rng = tmp_path_factory.mktemp("work"), np.random.default_rng(0)
    with inside(folder):
        x = rng.standard_normal((4000, 3)) @ MIX.T + CENTRE
        np.savetxt("t.csv", x, delimiter=",", header="height,weight,ratio", comments="")
        command(train_main, *SHORT, "data=table", "data.path=t.csv", "model.wiener=edm", "run=runs/table")
        grey, colours = rng.integers(0, 16, (60, 1, 4, 4)), rng.integers(0, 16, (60, 3, 4, 4))
        np.savez("p.npz", x=grey.astype("u1"))
        np.save("c.npy", colours.astype("u1"))
        command(train_main, *SHORT, "data=array", "data.path=p.npz", "data.levels=16", "run=runs/grey")
        command(train_main, *SHORT, "data=array", "data.path=c.npy", "data.levels=16", "run=runs/colours")
    return folder


@pytest.fixture
def here(runs: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(runs)
    return runs


@cache
def composed() -> dict[str, Any]:
    with initialize_config_dir(str(config_dir()), version_base="1.3"):
        config = OmegaConf.to_container(compose("sample", ["out=o"]), resolve=True)
    assert isinstance(config, dict)
    return config


def drawn(run: str, task: str, **options: Any) -> Any:
    """As `sample.py run=runs/RUN task=TASK task.key=...` with task_key=..., without the second that Hydra takes."""
    config = {**composed(), "run": f"runs/{run}", "task": packaged("task", task)}
    for key, value in options.items():
        group, inner = key.split("_", 1) if key.startswith(("task_", "solver_", "method_")) else (key, "")
        if inner:
            config[group] = {**config[group], inner: value}
        else:
            config[key] = packaged(key, value) if isinstance(value, str) and key != "condition" else value
    sample(config)
    return np.load("o/posterior.npz")


def test_missing_values_of_a_table_have_their_conditional_law_in_its_own_units(here: Path) -> None:
    rows = np.array([[172.0, np.nan, 3.1], [np.nan, 71.0, np.nan], [171.0, 72.0, np.nan]])
    with open("holes.csv", "w") as file:
        file.write("ratio,height,weight\n")  # by name, in any order
        for h, w, r in rows:
            file.write(",".join("" if np.isnan(v) else repr(v) for v in map(float, (r, h, w))) + "\n")
    found = drawn("table", "imputation", task_path="holes.csv", num_samples=400, solver_steps=25)
    data = load_run("runs/table").data().train.x.double().numpy()
    mean, cov = data.mean(0), np.cov(data.T)
    with open("o/posterior.csv") as file:
        table = list(csv.DictReader(file))
    assert [(row["row"], row["column"]) for row in table] == [
        ("0", "weight"), ("1", "height"), ("1", "ratio"), ("2", "ratio"),
    ]  # fmt: skip
    for j, row in enumerate(rows):
        u, k = np.isnan(row), ~np.isnan(row)
        gain = cov[np.ix_(u, k)] @ np.linalg.inv(cov[np.ix_(k, k)])
        expected = mean[u] + gain @ (row[k] - mean[k])
        std = np.sqrt(np.diag(cov[np.ix_(u, u)] - gain @ cov[np.ix_(k, u)]))
        np.testing.assert_allclose(found["mean"][j][u], expected, atol=0.25 * std.max())
        np.testing.assert_allclose(found["std"][j][u], std, rtol=0.12)
        np.testing.assert_allclose(found["samples"][j][:, k], np.tile(row[k], (400, 1)), rtol=1e-6)
        said = [float(r["mean"]) for r in table if r["row"] == str(j)]
        np.testing.assert_allclose(said, found["mean"][j][u], rtol=1e-4)
    np.testing.assert_array_equal(np.isnan(found["observation"]), np.isnan(rows))


def test_a_sample_is_a_function_of_seed_observation_and_number(here: Path) -> None:
    few = partial(drawn, "grey", "inpaint", task_mask="random", task_hidden=0.3, solver_steps=3)
    whole = few(task_num_observations=3, num_samples=4)
    parts = few(task_num_observations=2, batch_size=3, num_samples=5)
    np.testing.assert_array_equal(whole["samples"][:2], parts["samples"][:, :4])
    np.testing.assert_array_equal(whole["mask"][:2], parts["mask"])
    assert not np.array_equal(whole["samples"][0], whole["samples"][1])
    assert whole["samples"].shape == (3, 4, 1, 4, 4) and whole["mean"].shape == whole["truth"].shape == (3, 1, 4, 4)
    assert (~whole["mask"]).sum() == 3 * 5 and np.isnan(whole["observation"][~whole["mask"]]).all()
    seen = np.abs(whole["observation"] - whole["truth"])[whole["mask"]]  # noise of 0.05 is 0.4 levels of 2/16
    assert 0.2 < seen.std() < 0.6
    metrics = json.loads(Path("o/metrics.json").read_text())
    assert {"rmse", "std", "task", "method", "nfe"} <= set(metrics) and metrics["num_observations"] == 2
    with Image.open("o/posterior.png") as picture:
        assert picture.width > 400
    other = few(task_num_observations=2, num_samples=4, seed=1)
    assert not np.array_equal(other["samples"][0], whole["samples"][0])


def test_observations_of_a_file_are_in_the_units_of_the_data(here: Path) -> None:
    """An exact measurement comes back from the mean of the samples."""
    exact = partial(drawn, method="ddrm", method_steps=4, task_noise=0.0, num_samples=2)
    coarse = np.array([[3.0, 12.5], [0.5, 7.25]])
    np.save("y.npy", coarse)
    found = exact("grey", "super_resolution", task_factor=2, task_path="y.npy")
    np.testing.assert_allclose(found["observation"], coarse[None, None], atol=1e-5)
    blocks = found["mean"][0].reshape(2, 2, 2, 2).mean((1, 3))
    np.testing.assert_allclose(blocks, coarse, atol=1e-4)
    grey = np.random.default_rng(0).uniform(3, 12, (2, 4, 4))
    np.save("g.npy", grey)
    found = exact("colours", "colourisation", task_path="g.npy")
    assert found["samples"].shape == (2, 2, 3, 4, 4)
    np.testing.assert_allclose(found["mean"].mean(1), grey, atol=1e-4)
    np.testing.assert_allclose(found["observation"], grey[:, None], atol=1e-4)
    blurred = exact("grey", "deblur", task_path="p.npz", task_num_observations=1)
    assert blurred["samples"].shape == (1, 2, 1, 4, 4)


def test_truth_from_a_file_is_measured(here: Path) -> None:
    truth = np.load("p.npz")["x"][:2]
    np.save("truth.npy", truth)
    two = partial(drawn, "grey", "inpaint", solver_steps=2, num_samples=2)
    found = two(task_path="truth.npy", task_given="truth")
    np.testing.assert_array_equal(found["truth"].round(), truth)
    np.save("mask.npy", np.eye(4))
    by_file = two(task_mask="mask.npy")
    np.testing.assert_array_equal(by_file["mask"], np.tile(np.eye(4, dtype=bool), (4, 1, 1, 1)))


@pytest.mark.parametrize("mask", HIDDEN[:-1])
def test_masks_hide_what_they_say(mask: str) -> None:
    operator = Inpaint(mask=mask).operator((1, 4, 6), [0], None)
    seen = torch.ones(4, 6)
    part: dict[str, Any] = {
        "center": (slice(1, 3), slice(1, 5)), "left": (slice(None), slice(0, 3)), "right": (slice(None), slice(3, 6)),
        "top": (slice(0, 2),), "bottom": (slice(2, 4),),
    }  # fmt: skip
    seen[part[mask]] = 0
    assert torch.equal(operator(torch.ones(1, 1, 4, 6))[0, 0], seen)


def test_coverage_is_that_of_the_nominal_level_for_few_samples() -> None:
    """A truth exchangeable with its samples lies in the interval in 90 % of cases, for 19 samples as for 199."""
    for count in (19, 199):
        draws = torch.randn(4000, count + 1, 1, generator=torch.Generator().manual_seed(0))
        mask = Measurement(Mask(torch.tensor([0])), torch.zeros(4000, 1), 0.0)
        seen = Observations(
            measurement=mask, truth=draws[:, 0], index=torch.arange(4000), label=None, beside={}, name=""
        )
        assert errors(draws[:, 1:], seen)["coverage90"] == pytest.approx(0.9, abs=0.015)


@pytest.mark.parametrize(
    ("run", "task", "options", "sentence"),
    [
        ("grey", "inpaint", {"num_samples": 0}, r"task=\.\.\. draws num_samples samples for every observation, got 0"),
        ("grey", "inpaint", {"neighbours": 3}, "neighbours=... is of neighbours of the model's own samples"),
        ("grey", "inpaint", {"likelihood": "elbo"}, "likelihood=... is of the model, and task="),
        ("grey", "inpaint", {"diagnostics": "default"}, "diagnostics=... are of the model"),
        (
            "grey",
            "inpaint",
            {"data": {"_target_": "scoresde.data.digits"}},
            "data=... is of examples whose likelihood",
        ),
        ("grey", "colourisation", {}, r"needs data with colours, got events of shape \(1, 4, 4\)"),
        ("grey", "super_resolution", {"task_factor": 3}, "multiples of factor=3"),
        ("grey", "inpaint", {"task_noise": -1}, "task needs 0 <= noise < inf, got noise=-1"),
        (
            "grey",
            "inpaint",
            {"task_mask": "middle"},
            "task needs mask center, left, right, top, bottom, random or a .npy",
        ),
        ("grey", "inpaint", {"task_mask": "y3.npy"}, "task.mask=y3.npy does not exist"),
        (
            "grey",
            "inpaint",
            {"task_mask": "bad.npy"},
            r"needs 0 and 1 of shape \(1, 4, 4\) or \(4, 4\), got float64 of",
        ),
        ("grey", "inpaint", {"task_path": "y3.npy"}, "y3.npy does not exist"),
        (
            "grey",
            "inpaint",
            {"task_path": "bad.npy"},
            r"observations of shape \(N, 1, 4, 4\), one or several, got \(3, 5",
        ),
        ("grey", "deblur", {"task_path": "nan.npy"}, "needs finite values, but row 0 holds others"),
        ("grey", "deblur", {"task_path": "far.npy"}, r"needs values in 0\.\.15, the levels of"),
        ("grey", "inpaint", {"task_num_observations": 99}, "num_observations=99, but there are only 6 test"),
        (
            "grey",
            "inpaint",
            {"method": "ddrm", "solver": "heun"},
            "solver=... has no effect on method=DDRM, which is a",
        ),
        ("table", "inpaint", {"task_mask": "left"}, "task.mask=left needs series, images or volumes"),
        ("table", "deblur", {}, "task=deblur needs series, images or volumes"),
    ],
)
def test_what_makes_no_sense_is_refused(
    here: Path, run: str, task: str, options: dict[str, Any], sentence: str
) -> None:
    for name, values in (("bad", np.full((3, 5), 0.5)), ("nan", np.full((4, 4), np.nan)), ("far", np.full((4, 4), 99))):
        np.save(f"{name}.npy", values)
    with pytest.raises((ValueError, OSError), match=sentence) as refused:
        drawn(run, task, **options)
    assert "\n" not in str(refused.value)


def test_a_task_of_training_is_no_measurement(here: Path) -> None:
    with pytest.raises(SystemExit, match="task=... must be an InverseProblem, got TrainDenoiser"):
        command(sample_main, "run=runs/grey", "task=denoiser")


def test_scalings_that_differ_between_channels_do_not_mix() -> None:
    codec = Standardized(mean=torch.tensor([[1.0], [2.0]]), std=torch.tensor([[3.0], [4.0]]), shape=(2, 4))
    x = torch.randn(5, 2, 4)
    down, grey = DownSample((2, 4), 2), Grayscale((2, 4))
    own = own_values(down(x), down, codec)
    assert own is not None and torch.allclose(own.float(), down(codec.decode(x)), atol=1e-5)
    assert own_values(grey(x), grey, codec) is None


def test_a_model_of_classes_needs_one_or_must_do_without(here: Path) -> None:
    """A label is of an observation, in turn; without one it is the model without a label that is conditioned."""
    trained = load_run("runs/grey")
    mask = Measurement(Mask(torch.ones(1, 4, 4)), torch.zeros(3, 1, 4, 4), 0.0)
    seen = Observations(measurement=mask, truth=None, index=torch.arange(3), label=None, beside={}, name="")
    labelled = replace(trained, config={**trained.config, "model": {**trained.config["model"], "num_classes": 3}})
    labelled = replace(labelled, config={**labelled.config, "loss": {"label_dropout": 0.0}})
    asked: dict[str, Any] = {"label": [2, 0], "condition": None}
    found = of_observations(asked, labelled, NoGuidance(), seen)
    assert found.label is not None and found.label.tolist() == [2, 0, 2]
    with pytest.raises(ConfigError, match="a model of classes, needs label=...: without one the class is unknown"):
        of_observations(asked | {"label": None}, labelled, NoGuidance(), seen)
    dropout = replace(labelled, config={**labelled.config, "loss": {"label_dropout": 0.1}})
    assert of_observations(asked | {"label": None}, dropout, NoGuidance(), seen).label is None
    with pytest.raises(ConfigError, match="label=2 needs a model of classes"):
        of_observations(asked | {"label": 2}, trained, NoGuidance(), seen)
