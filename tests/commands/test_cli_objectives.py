"""Training for likelihood from the command line: learned schedules, learned variances, dequantisation."""

import csv
import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from command_line import command, inside

from scoresde.cli import sample_main, train_main
from scoresde.commands.auxiliary import load_dequantization
from scoresde.commands.batches import Batches
from scoresde.commands.load import load_run
from scoresde.commands.train import parameter_groups
from scoresde.commands.variance import moments_of
from scoresde.covariance import LearnedRange
from scoresde.losses import VDMLoss
from scoresde.sde import LearnedVPSDE

TINY = ["logger=csv", "model.width=8", "model.num_res_blocks=1", "trainer.steps=4", "batch_size=16",
        "trainer.sample_every=null", "trainer.warmup=0"]  # fmt: skip
LEARNED = ["sde=ddpm_cosine", "parameterization=epsilon", "variance_output=learned_range", "sde.betas.steps=20"]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a VDM, a learned variance, and a run with a dequantisation, all of digits and small."""
    folder = tmp_path_factory.mktemp("work")
    with inside(folder):
        command(train_main, *TINY, "experiment=digits_vdm", "run=runs/vdm")
        command(train_main, *TINY, *LEARNED, "loss=hybrid", "loss.steps=20", "run=runs/hybrid")
        command(train_main, *TINY, "experiment=digits_likelihood", "run=runs/likelihood")
        command(
            train_main, "experiment=digits_dequantization", "of=runs/likelihood", "logger=csv", "model.width=8",
            "model.layers=2", "trainer.steps=3", "batch_size=16",
        )  # fmt: skip
    return folder


def likelihood(out: str) -> dict[str, Any]:
    return dict(json.loads(Path(out, "metrics.json").read_text()))


def config_of(run: str) -> dict[str, Any]:
    return dict(yaml.safe_load(Path(run, "config.yaml").read_text()))


def test_a_vdm_knows_the_levels_and_its_schedule_moves(work: Path) -> None:
    config, trained = config_of("runs/vdm"), load_run("runs/vdm")
    assert config["loss"]["decoder"]["levels"] == 17
    assert config["model"]["fourier_features"] == pytest.approx([math.log2(17) - 1, math.log2(17)])
    assert config["model"]["data_scale"] == config["parameterization"]["sigma_data"]
    sde = trained.model.sde
    assert isinstance(sde, LearnedVPSDE) and float(sde.gamma_0) != pytest.approx(-7.9, abs=1e-6)
    assert not trained.dequantize


def test_a_vdm_is_sampled_and_its_elbo_is_that_of_the_loss(work: Path) -> None:
    command(
        sample_main, "run=runs/vdm", "num_samples=3", "solver.steps=3", "likelihood=elbo", "likelihood.samples=32",
        "likelihood.decoder=categorical", "likelihood.num_examples=40", "out=o",
    )  # fmt: skip
    assert np.load("o/samples.npz")["x"].shape == (3, 8, 8)
    with Path("o/likelihood.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    ours = np.array([float(row["bits_per_dim"]) for row in rows])
    assert len(ours) == 40

    trained = load_run("runs/vdm")
    data = trained.codec.encode(torch.from_numpy(_images()[[int(row["index"]) for row in rows]]), dequantize=False)
    loss = VDMLoss(decoder=_decoder(17))
    with torch.no_grad():
        draws = torch.stack([loss(trained.model, data, generator=torch.Generator().manual_seed(k)) for k in range(40)])
    error = math.hypot(float(draws.mean(1).std()) / 40**0.5, 0.01)
    assert abs(ours.mean() - draws.mean().item()) < 3 * error


def test_the_learned_variance_is_kept_and_drawn_with(work: Path) -> None:
    trained = load_run("runs/hybrid")
    assert isinstance(trained.model, LearnedRange) and trained.model.steps == 20
    assert config_of("runs/hybrid")["model"]["out_channels"] == 2
    command(
        sample_main, "run=runs/hybrid", "num_samples=2", "solver=ddpm", "solver.variance=learned", "solver.steps=4",
        "likelihood=vlb", "likelihood.variance=learned", "likelihood.steps=20", "likelihood.draws=4",
        "likelihood.num_examples=6", "out=o",
    )  # fmt: skip
    assert np.load("o/samples.npz")["x"].shape == (2, 8, 8)
    assert math.isfinite(likelihood("o")["bits_per_dim"])


def test_a_dequantization_belongs_to_its_run(work: Path) -> None:
    trained = load_run("runs/likelihood")
    module = load_dequantization(trained)
    assert module.shape == (1, 8, 8) and module.cells.levels == 17
    fast = ["likelihood.num_examples=4", "likelihood.rtol=1e-2", "likelihood.atol=1e-2", "num_samples=0", "solver=ode"]
    values = {}
    for kind in ("uniform", "variational"):
        command(sample_main, "run=runs/likelihood", *fast, f"likelihood.dequantization={kind}", f"out={kind}")
        values[kind] = likelihood(kind)["bits_per_dim"]
    assert values["uniform"] != values["variational"]
    assert abs(values["uniform"] - values["variational"]) < 1


@pytest.mark.parametrize(("run", "own"), [("vdm", "truncated_normal"), ("likelihood", "uniform")])
def test_levels_are_dequantized_as_the_model_knows_them(work: Path, run: str, own: str) -> None:
    fast = ["likelihood.num_examples=3", "likelihood.rtol=1e-2", "likelihood.atol=1e-2", "num_samples=0", "solver=ode"]
    values = {}
    for kind in ("null", "uniform", "truncated_normal"):
        command(sample_main, f"run=runs/{run}", *fast, f"likelihood.dequantization={kind}", f"out=o_{kind}")
        values[kind] = likelihood(f"o_{kind}")["bits_per_dim"]
    assert values["null"] == values[own]
    assert values["uniform"] != values["truncated_normal"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["experiment=digits_dequantization", "of=runs/nowhere"], "runs/nowhere"),
        (
            ["experiment=digits_dequantization", "of=runs/likelihood", "loss=edm"],
            "loss=... must be a DequantizationLoss, got DenoisingLoss",
        ),
        (["experiment=digits_dequantization", "of=runs/likelihood", "+model.net=3"], "model"),
        (["variance_output=learned"], "variance_output fixed or learned_range, got 'learned'"),
        (["variance_output=learned_range", "model=classifier", "task=classifier"], "needs task=denoiser"),
        (["experiment=toy", "+model.fourier_features=levels"], "needs data with levels, but data="),
        (["loss=hybrid"], "variance='learned' needs a network that predicts it"),
    ],
)
def test_mistakes_get_one_sentence(work: Path, arguments: list[str], message: str) -> None:
    with pytest.raises(SystemExit, match=message) as stopped:
        command(train_main, "logger=csv", "trainer.steps=1", *arguments)
    assert "\n" not in str(stopped.value.code)


def test_no_likelihood_without_its_dequantization(work: Path) -> None:
    with pytest.raises(SystemExit, match=r"runs/vdm has no variational dequantization: train one for it first"):
        command(sample_main, "run=runs/vdm", "num_samples=0", "solver=ode", "likelihood.dequantization=variational")


def test_what_is_fitted_to_a_vdm_sees_the_centres_too(work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trained = load_run("runs/vdm")
    centres = moments_of(trained, samples=20, levels=4).value
    Path("runs/vdm/variance.pt").unlink()
    spread = moments_of(replace(trained, dequantize=True), samples=20, levels=4).value
    assert float((centres - spread).abs().max()) > 1e-5

    asked = []

    def batches(*args: Any, **options: Any) -> Batches:
        asked.append(options["dequantize"])
        return Batches(*args, **options)

    monkeypatch.setattr("scoresde.commands.train.Batches", batches)
    small = ["logger=csv", "trainer.steps=1", "trainer.warmup=0", "batch_size=8"]
    command(train_main, "experiment=digits_npr", "of=runs/vdm", *small)
    command(train_main, "experiment=digits_npr", "of=runs/likelihood", *small)
    assert asked == [False, True]


def test_a_schedule_gets_no_weight_decay() -> None:
    class Model(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net, self.sde = torch.nn.Linear(2, 2), LearnedVPSDE()

    network, schedule = parameter_groups(Model())
    assert "weight_decay" not in network and schedule["weight_decay"] == 0
    assert len(network["params"]) == 2
    assert len(schedule["params"]) == len(list(LearnedVPSDE().parameters()))
    assert len(parameter_groups(torch.nn.Linear(2, 2))) == 1


def _images() -> np.ndarray[Any, Any]:
    from scoresde.data import digits

    return digits().test.x.numpy()


def _decoder(levels: int) -> Any:
    from scoresde.likelihood import CategoricalDecoder

    return CategoricalDecoder(levels=levels)
