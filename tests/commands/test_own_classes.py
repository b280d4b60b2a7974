"""A user's own guidance, variance, grid and task: one class and one YAML each, found with --config-dir."""

import csv
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import yaml
from command_line import command, inside

from scoresde.cli import sample_main, train_main
from scoresde.commands.load import load_run
from scoresde.denoiser import NetworkDenoiser

MODULE = '''
from dataclasses import dataclass

import torch

from scoresde import Guided, NetworkDenoiser
from scoresde.commands import Guidance, ModelTask, SolverGrid, Task, Variance
from scoresde.covariance import HessianDiagonal
from scoresde.losses import Loss


@dataclass(frozen=True, kw_only=True)
class Away(Guidance):
    """Away from another class."""

    label: int
    scale: float = 1.5

    def __call__(self, trained):
        other = trained.given(torch.tensor(self.label))
        return lambda label: Guided(trained.given(label), other, self.scale)


@dataclass(frozen=True, kw_only=True)
class Probes(Variance):
    count: int = 2

    def __call__(self, trained):
        return HessianDiagonal(trained.denoiser, self.count, trained.data_range)


@dataclass(frozen=True, kw_only=True)
class Twice(SolverGrid):
    def __call__(self, solver, trained):
        return type(solver)(steps=2 * solver.steps)


@dataclass(frozen=True, kw_only=True)
class Halved(Loss):
    loss: Loss

    def __call__(self, denoiser, x0, *, generator=None, **cond):
        return 0.5 * self.loss(denoiser, x0, generator=generator, **cond)


@dataclass(frozen=True, kw_only=True)
class TrainHalved(ModelTask):
    scale: float = 1.0

    def model(self, net, sde, parameterization):
        return NetworkDenoiser(net, sde, parameterization)

    def loss(self, loss):
        return Halved(loss=loss)


class Count(Task):
    def __call__(self, config):
        print(f"the configuration has {len(config)} keys")
        return {}
'''
OPTIONS = {
    "guidance/away": {"_target_": "own_classes.Away", "label": 7, "scale": 1.5},
    "guidance/lacking": {"_target_": "own_classes.Away"},
    "guidance/unknown": {"_target_": "own_classes.Away", "label": 7, "lable": 3},
    "guidance/wrong": {"_target_": "own_classes.Probes", "count": 2},
    "guidance/earlier": {"kind": "cfg", "scale": 2.0},
    "guidance/nowhere": {"_target_": "own_classes.Nothing"},
    "variance/probes": {"_target_": "own_classes.Probes", "count": 2},
    "grid/twice": {"_target_": "own_classes.Twice"},
    "task/halved": {"_target_": "own_classes.TrainHalved", "scale": 1.0},
    "task/count": {"_target_": "own_classes.Count"},
    "task/wrong": {"_target_": "own_classes.Probes"},
}
TINY = ["logger=csv", "trainer.steps=3", "trainer.sample_every=null", "batch_size=16", "model=mlp", "model.width=8",
        "trainer.warmup=0", "optimizer.lr=0.1"]  # fmt: skip
SAMPLE = ["--config-dir", "conf", "run=runs/digits", "num_samples=2", "solver=ddpm", "solver.steps=3", "out=o"]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("work")
    with inside(folder):
        command(train_main, *TINY, "conditional=true", "run=runs/digits")
    return folder


@pytest.fixture(autouse=True)
def own(work: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A module and a folder of options beside the runs."""
    Path("own_classes.py").write_text(MODULE)
    for name, node in OPTIONS.items():
        path = Path("conf", f"{name}.yaml")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(yaml.safe_dump(node))
    monkeypatch.syspath_prepend(str(work))
    yield
    sys.modules.pop("own_classes", None)


def drawn(*options: str) -> np.ndarray:
    command(sample_main, *SAMPLE, *options)
    return np.asarray(np.load("o/samples.npz")["x"])


def test_a_guidance() -> None:
    plain = drawn("label=3")
    assert (plain == drawn("label=3", "guidance=away", "guidance.scale=1")).all()
    assert (plain != drawn("label=3", "guidance=away", "guidance.scale=20")).any()
    drawn("label=[3,1]", "guidance=away")
    assert np.load("o/samples.npz")["y"].tolist() == [3, 1]


def test_a_variance() -> None:
    optimal = "solver.variance=optimal"
    own = drawn(optimal, "variance=probes")
    assert (own == drawn(optimal, "variance=hessian", "variance.probes=2", "variance.isotropic=false")).all()
    assert (own != drawn()).any()


def test_a_grid() -> None:
    assert (drawn("grid=twice") == drawn("solver.steps=6")).all()


def test_a_task(capsys: pytest.CaptureFixture[str]) -> None:
    losses = []
    for name, task in (("plain", "denoiser"), ("own", "halved")):
        command(train_main, "--config-dir", "conf", *TINY, f"run=runs/{name}", f"task={task}")
        with Path("runs", name, "metrics.csv").open(newline="") as file:
            losses.append(float(next(csv.DictReader(file))["loss"]))
    assert losses[1] == pytest.approx(losses[0] / 2, rel=0.1)
    assert yaml.safe_load(Path("runs/own/config.yaml").read_text())["task"]["_target_"] == "own_classes.TrainHalved"
    assert isinstance(load_run("runs/own", extensions=["own_classes"]).model, NetworkDenoiser)
    with pytest.raises(SystemExit, match=r"names 'own_classes.TrainHalved', .* extensions=\[own_classes\]"):
        command(sample_main, "run=runs/own", "num_samples=2")
    command(sample_main, "run=runs/own", "num_samples=2", "solver.steps=2", "extensions=[own_classes]")
    command(train_main, "--config-dir", "conf", "task=count")
    assert "the configuration has" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["guidance=lacking"], "guidance.label has no default: Away needs it"),
        (["guidance=unknown"], r"guidance.lable is no argument of Away: did you mean guidance.label\?"),
        (["guidance=wrong"], r"guidance=\.\.\. must be a Guidance, got Probes"),
        (["guidance=earlier"], r"got options without a class \(kind, scale\): name one with _target_"),
        (["guidance=nowhere"], r"guidance._target_ names 'own_classes.Nothing', which does not exist"),
        (["guidance=away", "guidance.scale=abc"], "guidance.scale needs a number, got 'abc'"),
        (["guidance=away", "guidance.scal=2"], r"guidance has no key 'scal': did you mean guidance.scale\?"),
        (["guidance.kind=CFG"], "guidance.kind=CFG: guidance has no key 'kind': write guidance=cfg "),
        (["solver=ddim", "guidance.kind=CFG"], "guidance.kind=CFG: .* write guidance=cfg "),
        (["guidance.kind=best"], "write guidance=NAME, one of .*autoguidance, away, cfg, .*, none"),
        (["+guidance.kind=CFG"], "guidance.kind is no argument of NoGuidance."),
        (["guidance=null"], "guidance=null names no option of guidance: there is .*autoguidance, away, cfg, .*, none"),
        (["guidance=cfg", "guidance.interval=3"], r"guidance.interval needs \[number, number\], or null, got 3"),
        (["~guidance"], "~guidance removes guidance, which sample.py needs"),
        (["variance=analytc"], "Could not find 'variance/analytc': there is analytic, .*, probes, sn"),
        (["variance.kind=analytic"], "variance.kind=analytic: .* write variance=analytic"),
        (["variance._target_=scoresde.commands.NoGuidance"], r"variance=\.\.\. must be a Variance, got NoGuidance"),
        (["solver._target_=scoresde.VPSDE"], r"solver=\.\.\. must be a Solver, got VPSDE"),
        (["grid._target_=scoresde.DDIM"], r"grid=\.\.\. must be a SolverGrid, got DDIM"),
    ],
    ids=str,
)  # fmt: skip
def test_sampling_mistakes_get_one_sentence(options: list[str], message: str) -> None:
    with pytest.raises(SystemExit, match=message) as stopped:
        command(sample_main, *SAMPLE, *options)
    assert "\n" not in str(stopped.value.code)
    assert not Path("o").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["task=wrong"], r"task=\.\.\. must be a Task, got Probes"),
        (["task=nonsense"], "Could not find 'task/nonsense': there is classifier, .*count, .*denoiser"),
        (["task=halved", "+task.factor=3"], "task.factor is no argument of TrainHalved."),
        (["task=halved", "task.scale=abc"], "task.scale needs a number, got 'abc'"),
        (["task=halved", "variance_output=learned_range"], "variance_output=learned_range needs task=denoiser"),
        (["task=null"], "task=null names no option of task"),
        (["head=foo"], "head=foo needs another task"),
        *(([f"{group}._target_=scoresde.DDIM"], rf"{group}=\.\.\. must be an? {kind}, got DDIM") for group, kind in {
            "sde": "SDE", "parameterization": "Parameterization", "model": "Module", "loss": "Loss", "data": "Dataset",
            "optimizer": "Optimizer", "trainer": "Trainer", "logger": "Logger", "task": "Task"}.items()),
    ],
    ids=str,
)  # fmt: skip
def test_training_mistakes_get_one_sentence(options: list[str], message: str) -> None:
    with pytest.raises(SystemExit, match=message) as stopped:
        command(train_main, "--config-dir", "conf", *TINY, "run=runs/new", *options)
    assert "\n" not in str(stopped.value.code)
    assert not Path("runs/new").exists()


def test_a_recipe_of_an_earlier_version_is_told_what_to_write() -> None:
    Path("conf/experiment").mkdir()
    Path("conf/experiment/mine.yaml").write_text("# @package _global_\ntask: classifier\n")
    with pytest.raises(SystemExit, match=r"task: classifier names no class: write override /task: classifier"):
        command(train_main, "--config-dir", "conf", "experiment=mine", "run=runs/new")
