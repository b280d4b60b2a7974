"""Runs that an earlier version saved, in its words: they load, sample and resume as they did."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from command_line import command

from scoresde.cli import sample_main, train_main
from scoresde.commands import TrainedVariance
from scoresde.commands.auxiliary import load_dequantization
from scoresde.commands.load import load_run, newest_run
from scoresde.denoiser import Denoiser
from scoresde.guidance import NoisyClassifier

SAVED = Path(__file__).parents[1] / "data/runs"
TRAIN = [
    "logger=csv", "trainer.sample_every=null", "trainer.warmup=0", "seed=3", "trainer.steps=5", "optimizer.lr=0.01",
]  # fmt: skip


@pytest.fixture(autouse=True)
def saved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(SAVED, tmp_path / "runs")
    monkeypatch.chdir(tmp_path)


def test_their_models_give_what_they_gave() -> None:
    stored = {name: torch.from_numpy(value) for name, value in np.load("runs/outputs.npz").items()}
    x, t, label, k = (stored[name] for name in ("x", "t", "label", "k"))
    digits: Any = load_run("runs/digits").model.double()
    classifier: Any = load_run("runs/classifier").model.double()
    learned: Any = load_run("runs/learned").model.double()
    head = TrainedVariance(head="npr")(load_run("runs/learned")).double()
    dequantization = load_dequantization(load_run("runs/learned")).double()
    with torch.no_grad():
        x0, v = learned.mean_and_range(x, t)
        x_k, log_q, _ = dequantization(k, learned.sde, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
        given = {
            "digits_x0": digits(x, t, label=label), "digits_x0_no_label": digits(x, t, label=None),
            "classifier_log_prob": classifier.log_prob(label)(x, t), "learned_x0": x0, "learned_variance": v,
            "npr_covariance": head.mean_and_covariance(x, t)[1], "dequantized": x_k, "log_q": log_q,
        }  # fmt: skip
    assert given.keys() | {"x", "t", "label", "k"} == stored.keys()
    for name, value in given.items():
        error = float((value - stored[name]).abs().max() / stored[name].abs().max())
        assert error < 1e-6, f"{name}: {error:.1g}"


@pytest.mark.parametrize(
    "options",
    [
        ["run=runs/digits", "label=3", "guidance=cfg", "solver.steps=3"],
        ["run=runs/digits", "label=3", "guidance=classifier", "solver.steps=3"],
        ["run=runs/learned", "solver=ddpm", "solver.steps=3", "solver.variance=optimal", "variance=npr"],
        ["run=runs/learned", "solver=ode", "likelihood.dequantization=variational", "likelihood.num_examples=2"],
    ],
    ids=str,
)
def test_they_are_sampled(options: list[str]) -> None:
    command(sample_main, *options, "num_samples=2", "out=o")
    assert np.load("o/samples.npz")["x"].shape == (2, 8, 8)


@pytest.mark.parametrize(
    "options",
    [
        ["run=runs/digits", "conditional=true", "model.width=4", "model.num_res_blocks=1", "model.channel_mults=[1]"],
        ["run=runs/classifier", "experiment=digits_classifier", "model.width=8", "model.num_res_blocks=1",
         "model.channel_mults=[1]"],
        ["run=runs/learned", "model=mlp", "model.width=16", "model.depth=1", "sde=ddpm_cosine", "sde.betas.steps=20",
         "parameterization=epsilon", "loss=hybrid", "loss.steps=20", "variance_output=learned_range"],
        ["experiment=digits_npr", "of=runs/learned", "model=mlp", "model.width=8", "model.depth=1"],
        ["experiment=digits_dequantization", "of=runs/learned", "model.width=8", "model.layers=2"],
    ],
    ids=str,
)  # fmt: skip
def test_the_command_that_made_them_goes_on_with_them(options: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    command(train_main, *TRAIN, *options)
    assert "already trained to step 5 of 5" in capsys.readouterr().out


def test_a_run_that_an_earlier_version_named_is_found_again(capsys: pytest.CaptureFixture[str]) -> None:
    Path("runs/digits").rename("runs/digits-vpsde-ncsnpp-01234567")
    options = ["conditional=true", "model.width=4", "model.num_res_blocks=1", "model.channel_mults=[1]"]
    command(train_main, *TRAIN, *options)
    assert "already trained to step 5 of 5" in capsys.readouterr().out
    command(train_main, *TRAIN, *options, "seed=4")
    assert len(list(Path("runs").glob("digits-*"))) == 2


def test_another_command_does_not() -> None:
    with pytest.raises(SystemExit, match=r"runs/learned belongs to a run with another configuration"):
        command(train_main, *TRAIN, "run=runs/learned", "model=mlp")


def test_they_are_found_by_what_they_hold() -> None:
    Path("runs/digits/checkpoints/last.pt").touch()
    assert newest_run(Denoiser).path == Path("runs/digits")
    assert newest_run(NoisyClassifier).path == Path("runs/classifier")
    with pytest.raises(SystemExit, match=r"variance_npr is the run of a TrainVarianceHead, .* runs/learned"):
        command(sample_main, "run=runs/learned/variance_npr")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"task": "regressor"}, "config.yaml says task: regressor, which no version knew"),
        ({"sde": {"_target_": "scoresde.OldSDE"}}, "sde._target_ names 'scoresde.OldSDE', which does not exist"),
        ({"task": {"_target_": "scoresde.DDIM"}}, r"task=\.\.\. must be a Task, got DDIM"),
        ({"task": None}, r"task=\.\.\. must be a Task, got None"),
    ],
)
def test_what_no_version_saved_gets_one_sentence(changes: dict[str, Any], message: str) -> None:
    path = Path("runs/digits/config.yaml")
    path.write_text(yaml.safe_dump(yaml.safe_load(path.read_text()) | changes, sort_keys=False))
    with pytest.raises(SystemExit, match=message) as stopped:
        command(sample_main, "run=runs/digits", "num_samples=2")
    assert "\n" not in str(stopped.value.code)
