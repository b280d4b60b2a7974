"""The command lines as a person uses them: small runs from start to pictures, and one sentence for every mistake."""

import json
import os
import pickle
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from command_line import command, inside
from PIL import Image

import scoresde
from scoresde.cli import sample_main, train_main

CHECKOUT = Path(__file__).resolve().parents[2]
TINY = [
    "logger=csv",
    "model.width=8",
    "model.num_res_blocks=1",
    "trainer.steps=4",
    "trainer.precision=float32",
    "batch_size=16",
]

PC = ["solver=pc", "solver.steps=3"]


def sentence(capsys: pytest.CaptureFixture[str], main: Any, *arguments: str) -> str:
    """The one line with which a command gives up."""
    with pytest.raises(SystemExit) as stopped:
        command(main, *arguments)
    assert isinstance(stopped.value.code, str), "must exit with a message, hence status 1"
    assert "\n" not in stopped.value.code
    assert "Traceback" not in capsys.readouterr().err
    return stopped.value.code


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with three small runs: digits without and with labels, a classifier, an embedding."""
    folder = tmp_path_factory.mktemp("work")
    with inside(folder):
        command(train_main, *TINY, "run=runs/plain", "trainer.sample_every=4")
        command(train_main, *TINY, "run=runs/labelled", "conditional=true")
        command(train_main, *TINY, "run=runs/classifier", "experiment=digits_classifier", "trainer.steps=4")
        command(train_main, *TINY, "run=runs/embedding", "experiment=digits_embedding", "trainer.steps=4")
    return folder


def test_a_run_has_its_files(work: Path) -> None:
    run = work / "runs/plain"
    config = yaml.safe_load((run / "config.yaml").read_text())
    assert config["model"]["channels"] == 1
    assert config["model"]["image_size"] == 8
    assert 0.3 < config["parameterization"]["sigma_data"] < 1
    assert len((run / "metrics.csv").read_text().splitlines()) >= 2
    with Image.open(run / "samples/step_00000004.png") as picture:
        assert picture.size[0] > 300
    denoiser = scoresde.load(run)
    assert denoiser(torch.randn(2, 1, 8, 8), torch.tensor(0.5)).shape == (2, 1, 8, 8)


def test_sampling_with_the_ode_writes_pictures_arrays_and_bits_per_dim(
    work: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command(sample_main, "run=runs/plain", "solver=ode", "num_samples=10", "likelihood.num_examples=6",
            "solver.rtol=1e-2", "solver.atol=1e-2", "likelihood.rtol=1e-2", "likelihood.atol=1e-2")  # fmt: skip

    out = work / "runs/plain/samples"
    arrays = np.load(out / "samples.npz")
    assert arrays["x"].dtype == np.uint8
    assert arrays["x"].shape == (10, 8, 8)
    assert set(np.unique(arrays["x"])) <= set(range(17))
    metrics = json.loads((out / "metrics.json").read_text())
    assert metrics["num_samples"] == 10
    assert metrics["nfe"] > 10
    assert 0 < metrics["bits_per_dim"] < 20
    assert 0 < metrics["bits_per_dim_std_error"] < 2
    assert "bits/dim" in capsys.readouterr().out
    with Image.open(out / "samples.png") as picture:
        assert picture.size[0] > 200


def test_a_sample_depends_on_its_seed_and_number_only(work: Path) -> None:
    for name, options in {"a": ["num_samples=5", "batch_size=5"], "b": ["num_samples=3", "batch_size=2"]}.items():
        command(sample_main, "run=runs/plain", "solver=ddpm", "solver.steps=5", f"out={name}", *options)
    first, second = (np.load(work / name / "samples.npz")["x"] for name in "ab")
    np.testing.assert_array_equal(first[:3], second)

    command(sample_main, "run=runs/plain", "solver=ddpm", "solver.steps=5", "out=c", "num_samples=5", "seed=1")
    assert (np.load(work / "c/samples.npz")["x"] != first).any()


def test_newest_denoiser_is_the_default_run(work: Path) -> None:
    now = time.time()
    for age, name in enumerate(("classifier", "embedding", "labelled", "plain")):
        os.utime(work / "runs" / name / "checkpoints/last.pt", (now - age, now - age))
    command(sample_main, "num_samples=2", "solver.steps=2", "out=o")
    assert json.loads((work / "o/metrics.json").read_text())["run"].endswith("labelled")


@pytest.mark.parametrize(
    "options",
    [
        ["run=runs/labelled", "label=3", "guidance=cfg", "guidance.scale=2"],
        ["run=runs/labelled", "label=3", "guidance=cfgpp", "solver=ddim", "solver.steps=3"],
        ["run=runs/labelled", "label=3", "guidance=apg", "guidance.norm=2"],
        ["run=runs/labelled", "label=3", "guidance=negative", "guidance.negative=8", "guidance.rescale=0.5"],
        ["run=runs/labelled", "label=3", "guidance=cfg_cosine", "guidance.scale.data=4"],
        ["run=runs/labelled", "label=[1,7]"],
        ["run=runs/plain", "label=3", "guidance=classifier"],
        ["run=runs/plain", "label=3", "guidance=classifier", "guidance.classifier=runs/classifier", *PC],
        ["run=runs/plain", "label=3", "guidance=classifier", "guidance.form=mean", "solver=ddpm", "solver.steps=3"],
        ["run=runs/plain", "label=3", "guidance=embedding"],
        ["run=runs/plain", "label=3", "guidance=embedding", "guidance.form=mean", "solver=ddpm", "solver.steps=3"],
        ["run=runs/plain", "guidance=embedding", "guidance.through=x0", "guidance.text=three"],
        ["run=runs/labelled", "guidance=autoguidance", "guidance.reference=runs/labelled"],
        ["run=runs/plain", "solver=sde", "solver.steps=3"],
    ],
    ids=str,
)  # fmt: skip
def test_conditional_sampling_runs_and_records_labels(options: list[str], work: Path) -> None:
    steps = [] if any("solver" in option for option in options) else ["solver.steps=3"]
    command(sample_main, *options, *steps, "num_samples=4", "out=o")
    arrays = np.load(work / "o/samples.npz")
    expected = {"label=3": [3, 3, 3, 3], "label=[1,7]": [1, 7, 1, 7]}.get(options[1])
    if expected:
        assert arrays["y"].tolist() == expected


def test_guidance_is_said_to_be_of_the_samples(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    scored = ["likelihood=elbo", "likelihood.num_examples=2", "likelihood.samples=2"]
    command(sample_main, "run=runs/labelled", "guidance=cfg", "solver.steps=2", "num_samples=2", "out=o", *scored)
    assert "the likelihood is that of the model without it" in capsys.readouterr().out


def test_same_command_again_says_that_it_is_done(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = (work / "runs/plain/checkpoints/last.pt").read_bytes()
    command(train_main, *TINY, "run=runs/plain", "trainer.sample_every=4")
    assert "already trained" in capsys.readouterr().out
    assert (work / "runs/plain/checkpoints/last.pt").read_bytes() == before


def test_run_name_follows_from_the_configuration(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    toy = ["experiment=toy", "trainer.steps=2", "logger=csv", "batch_size=8", "data.size=100"]
    command(train_main, *toy)
    command(train_main, *toy)
    command(train_main, *toy, "seed=1")
    assert len(list((tmp_path / "runs").iterdir())) == 2


def test_vectors_come_back_in_their_own_units(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    np.save("x.npy", 1000 + 50 * np.random.default_rng(0).normal(size=(400, 3)))
    command(
        train_main, "experiment=array", "data.path=x.npy", "trainer.steps=150", "logger=csv", "run=r", "model.width=32"
    )
    command(sample_main, "run=r", "solver=ode", "num_samples=300", "likelihood.num_examples=20")
    x = np.load("r/samples/samples.npz")["x"]
    assert x.shape == (300, 3)
    assert abs(x.mean() - 1000) < 15
    assert 35 < x.std() < 70
    entropy = 3 * (0.5 * np.log(2 * np.pi * np.e) + np.log(50))
    assert abs(json.loads(Path("r/samples/metrics.json").read_text())["log_prob_nats"] + entropy) < 1.5


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["sde=nonsense"], "Could not find 'sde/nonsense'"),
        (["trainer.stpes=3"], r"trainer has no key 'stpes': did you mean trainer.steps\?"),
        (["trainer.steps=many"], "needs a whole number, or null, got 'many'"),
        (["trainer.steps=0"], "trainer.steps: Trainer needs steps >= 1"),
        (["sde.beta_min=30"], "needs 0 < beta_min < beta_max"),
        (["batch_size=0"], "batch_size needs to be a whole number of at least 1, got 0"),
        (["batch_size=0"], "batch_size needs to be a whole number of at least 1, got 0"),
        (["data=toy", "model=ncsnpp"], "needs series .* use model=mlp"),
        (["data=mnist", "data.path=nowhere"], "nowhere"),
        (["data=cifar10"], "data.path"),
        (["data=image_folder", "data.path=."], "no image|empty|found"),
        (["model.width=-8"], "width"),
        (["model._target_=os.system"], "model._target_ names 'os.system'"),
        (["experiment=toy", "conditional=true", "data.name=checkerboard"], "has no labels"),
        (["device=gpu9"], "device=gpu9 cannot be used here"),
        (["run=file"], "file"),
    ],
    ids=str,
)
def test_training_mistakes_get_one_sentence(
    options: list[str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("mine")
    said = sentence(capsys, train_main, "logger=csv", *options)
    assert re.search(message, said), said
    assert (tmp_path / "file").read_text() == "mine"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["run=runs/nowhere"], "there is no run at runs/nowhere"),
        (["run=runs/classifier"], "is the run of a classifier"),
        (["run=runs/plain", "label=3"], "trained without labels.*conditional=true"),
        (["run=runs/plain", "label=3", "guidance=cfg"], "trained without labels"),
        (["run=runs/labelled", "label=10"], r"label needs whole numbers in 0\.\.9, got 10"),
        (
            ["run=runs/labelled", "label=three"],
            r"label needs whole numbers in 0\.\.9, got 'three'",
        ),
        (["run=runs/plain", "label=12", "guidance=classifier"], r"0\.\.9"),
        (["run=runs/plain", "guidance=classifier"], "add label=3"),
        (["run=runs/plain", "label=3", "guidance=classifier", "guidance.form=mean"], "use guidance.form=score"),
        (["run=runs/embedding"], "is the run of an embedding: name the run of a denoiser"),
        (["run=runs/plain", "guidance=embedding"], "add label=3"),
        (["run=runs/plain", "label=10", "guidance=embedding"], r"0\.\.9, the classes of"),
        (["run=runs/plain", "guidance=embedding", "guidance.text=thre"], "is no caption that .*did you mean three"),
        (
            ["run=runs/plain", "label=3", "guidance=embedding", "guidance.embedding=runs/plain"],
            "run of an embedding of",
        ),
        (["run=runs/plain", "guidance=autoguidance"], r"guidance\.reference"),
        (["run=runs/labelled", "guidance=cfgpp"], "a rule of the steps of solver=ddim .* got a ExponentialAdams: add"),
        (["run=runs/labelled", "guidance=negative", "guidance.negative=12"], r"0\.\.9, got 12"),
        (["run=runs/plain", "guidance=negative", "guidance.negative=1"], "guidance=negative needs a model of classes"),
        (["run=runs/labelled", "guidance=cfg", "guidance.rescale=2"], "guidance needs 0 <= rescale <= 1"),
        (["run=runs/labelled", "guidance=cfg_power", "guidance.scale.power=0"], "guidance.scale.power: .* 0 < power"),
        (["run=runs/plain", "num_samples=-1"], "num_samples needs to be a whole number of at least 0, got -1"),
        (["run=runs/plain", "num_samples=0"], "num_samples=0 leaves nothing to do: add likelihood=hutchinson"),
        (["run=runs/plain", "solver.steps=0"], "solver.steps: ExponentialAdams needs 1 <= steps"),
        (["run=runs/plain", "solver=nonsense"], "Could not find 'solver/nonsense'"),
        (["run=runs/plain", "solver=ode", "solver.method=newton"], "needs a method: adaptive adams"),
        (["run=runs/plain", "solver=ddim", "grid=karras", "solver.t_end=0"], "needs noise at both ends"),
        (["run=runs/plain", "out=file/inside"], "cannot make the folder"),
    ],
    ids=str,
)
def test_sampling_mistakes_get_one_sentence(
    options: list[str], message: str, work: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (work / "file").write_text("mine")
    said = sentence(capsys, sample_main, *options)
    assert re.search(message, said), said
    assert (work / "file").read_text() == "mine"


def test_no_run_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    assert "no run found under runs/" in sentence(capsys, sample_main)


class Bomb:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, ("exploded",)


@pytest.mark.parametrize("damage", ["truncated", "flipped", "pickle", "missing", "empty"])
def test_damaged_checkpoints_are_refused_and_left_alone(
    damage: str, work: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = work / "runs/plain/checkpoints/last.pt"
    content = path.read_bytes()
    if damage == "truncated":
        path.write_bytes(content[: len(content) // 2])
    elif damage == "flipped":
        middle = len(content) // 2
        path.write_bytes(content[:middle] + bytes([content[middle] ^ 4]) + content[middle + 1 :])
    elif damage == "pickle":
        path.write_bytes(pickle.dumps(Bomb()))
    elif damage == "empty":
        path.write_bytes(b"")
    else:
        path.unlink()
    left = path.read_bytes() if path.exists() else None

    said = sentence(capsys, sample_main, "run=runs/plain")
    assert "last.pt" in said or "has no checkpoint" in said
    if damage != "missing":
        assert "last.pt" in sentence(capsys, train_main, *TINY, "run=runs/plain", "trainer.sample_every=4")
    assert (path.read_bytes() if path.exists() else None) == left
    assert not (work / "exploded").exists()


def test_configuration_of_a_run_cannot_run_code(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = work / "runs/plain/config.yaml"
    text = path.read_text()
    path.write_text(text.replace("_target_: scoresde.VPSDE", "_target_: os.mkdir"))
    assert "sde._target_ names 'os.mkdir'" in sentence(capsys, sample_main, "run=runs/plain")
    path.write_text("sde: !!python/object/apply:os.mkdir [exploded]\n")
    assert "not readable YAML" in sentence(capsys, sample_main, "run=runs/plain")
    assert not (work / "exploded").exists()


def test_help_is_quick_and_lists_every_group() -> None:
    for script in ("train.py", "sample.py"):
        start = time.perf_counter()
        shown = subprocess.run([sys.executable, str(CHECKOUT / script), "--help"], capture_output=True, text=True)
        assert time.perf_counter() - start < 10  # 0.15 s on an idle machine; an import of torch alone takes longer
        groups = {path.name for path in (CHECKOUT / "conf").iterdir() if path.is_dir() and any(path.glob("*.yaml"))}
        assert all(f"  {group} " in shown.stdout for group in groups)
    loaded = subprocess.run(
        [sys.executable, "-c", "import sys; sys.argv = ['train.py', '--help']; import scoresde.cli as c; "
         "c.train_main(); print('torch' in sys.modules)"], capture_output=True, text=True, cwd=CHECKOUT,
    )  # fmt: skip
    assert loaded.stdout.strip().endswith("False")
