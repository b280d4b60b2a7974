"""Diagnostics of a run: the numbers are those of Python, the picture is there, and mistakes get one sentence."""

import builtins
import json
import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from command_line import command, inside
from PIL import Image

from scoresde.cli import sample_main, train_main
from scoresde.commands.build import build_as
from scoresde.commands.diagnostics import MEASURES, _cell_optimum, _Test
from scoresde.commands.interfaces import Diagnostics
from scoresde.commands.load import TrainedModel, load_run
from scoresde.diagnostics import asymmetry_by_noise, fokker_planck_by_noise, loss_by_noise, marginal_gap
from scoresde.noise import stream_generator

TINY = ["logger=csv", "trainer.warmup=0", "trainer.steps=30", "batch_size=32", "trainer.ema_decay=0.5"]
FAST = {"bins": 3, "num_examples": 20, "jacobian_examples": 4, "probes": 2, "gap_samples": 10, "steps": 4}


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with small runs of digits with labels and of points in the plane."""
    folder = tmp_path_factory.mktemp("work")
    with inside(folder):
        command(train_main, *TINY, "run=runs/labelled", "conditional=true", "model.width=8", "model.num_res_blocks=1",
                "trainer.steps=8")  # fmt: skip
        command(train_main, *TINY, "run=runs/plain", "data=toy", "data.size=400", "model=mlp", "model.width=16")
        command(train_main, *TINY, "run=runs/classifier", "experiment=digits_classifier", "model.width=8",
                "model.num_res_blocks=1", "trainer.steps=2")  # fmt: skip
    return folder


def run(path: str = "runs/plain", **options: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """What `DenoiserDiagnostics` return and what they write."""
    node = {"_target_": "scoresde.commands.DenoiserDiagnostics", **FAST, **options}
    diagnostics = build_as(Diagnostics, node, "diagnostics")
    returned = diagnostics(load_run(path), seed=3, batch_size=8, out=Path("o/in"))
    return returned, json.loads(Path("o/in/diagnostics.json").read_text())


def batches(trained: TrainedModel, count: int) -> list[Any]:
    """Test examples as the command takes them, in batches of 8."""
    split = trained.data().test
    rows = torch.randperm(len(split), generator=stream_generator(3, "order"))[:count]
    x = trained.codec.encode(split.x[rows], generator=stream_generator(3, "dequantization"))
    labels = (
        [{}] * 9
        if split.label is None or trained.classes is None
        else [{"label": part} for part in split.label[rows].split(8)]
    )
    return list(zip(x.split(8), labels, strict=False))


def seeded(number: int) -> torch.Generator:
    return stream_generator(3, "diagnostic", number)


@pytest.mark.parametrize("path", ["runs/plain", "runs/labelled"])
def test_the_numbers_are_those_of_python(path: str, work: Path) -> None:
    returned, written = run(path)
    trained = load_run(path)
    model: Any = trained.model

    loss = loss_by_noise(model, batches(trained, 20), bins=3, generator=seeded(0))
    assert written["logsnr_edges"] == pytest.approx(loss.loss.edges.tolist())
    assert written["loss"]["value"] == pytest.approx(loss.loss.value.tolist())
    assert written["loss"]["total_nats"] == pytest.approx(sum(written["loss"]["nats"])) == pytest.approx(loss.total)
    assert returned["diagnostics"]["diffusion_nats"] == written["loss"]["total_nats"]
    few = batches(trained, 4)
    for number, (kind, measure) in enumerate(
        {"fokker_planck": fokker_planck_by_noise, "asymmetry": asymmetry_by_noise}.items()
    ):
        curve = measure(model, few, bins=3, probes=2, generator=seeded(2 + number))
        assert written[kind]["value"] == pytest.approx(curve.value.tolist(), rel=1e-4)
        assert returned["diagnostics"][f"{kind}_max"] == max(written[kind]["value"])
    cond = {} if path == "runs/plain" else {"label": torch.cat([part[1]["label"] for part in batches(trained, 10)])}
    gap = marginal_gap(
        model, trained.shape, samples=10, steps=4, levels=4, batch_size=8, cond=cond, generator=seeded(4)
    )
    assert written["gap"]["sliced"] == pytest.approx(gap.sliced.tolist(), rel=1e-4)
    assert set(MEASURES) <= set(written) and "sliced_floor" in written["gap"]


def test_a_summary_a_picture_and_the_units(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _, written = run("runs/labelled")
    said = capsys.readouterr().out
    bits = written["loss"]["total_nats"] / (64 * math.log(2))
    assert f"the diffusion term of the bound is {bits:.3f} ±" in said and "bits/dim on 20 test examples" in said
    for words in ("half of it between log-SNR", "best linear denoiser has", "Fokker-Planck:", "asymmetry:",
                  "two halves of the SDE's", "wrote o/in/diagnostics."):  # fmt: skip
        assert words in said
    assert "memorising_optimum" not in written["loss"], "it would know no labels"


def test_the_picture(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("matplotlib", reason="needs matplotlib: pip install 'scoresde[plot]'")
    run("runs/labelled")
    assert "wrote o/in/diagnostics.png" in capsys.readouterr().out
    with Image.open("o/in/diagnostics.png") as picture:
        assert min(picture.size) > 800
        assert len(set(picture.convert("L").resize((64, 64)).tobytes())) > 10

    total = run("runs/plain", which="loss")[1]["loss"]["total_nats"]
    assert re.search(rf"is {total:.3f} ± [0-9.]+ nats on", capsys.readouterr().out)


def test_references_enclose_the_optimum(work: Path) -> None:
    loss = run(bins=12, num_examples=None, which="loss")[1]["loss"]
    pairs = list(zip(loss["memorising_optimum"], loss["linear_optimum"], strict=True))
    assert loss["num_examples"] == len(load_run("runs/plain").data().test)
    assert all(low <= high * 1.1 for low, high in pairs)
    assert pairs[-1] == (pytest.approx(0, abs=0.3), pytest.approx(1, abs=1e-3))
    assert pairs[0][1] < 1e-2


def test_levels_have_a_cell_that_no_denoiser_sees_into(work: Path) -> None:
    """At high SNR a uniform cell looks flat: the loss tends to 1, from below the SNR of the cell as SNR w²/12."""
    trained = load_run("runs/labelled")
    test = _Test(trained, 0, 8)
    edges = torch.tensor([-4.0, -3.9, 13.0, 13.8], dtype=torch.float64)
    optimum = _cell_optimum(trained.model.sde, test, edges)
    low, high = trained.codec.value_range  # type: ignore[union-attr]
    width = (high - low) / trained.codec.levels  # type: ignore[union-attr]
    assert optimum[0].item() == pytest.approx(math.exp(-3.95) * width**2 / 12, rel=0.01)
    assert optimum[2].item() == pytest.approx(1, abs=0.04)


def test_which_chooses(work: Path) -> None:
    written = run(which="asymmetry")[1]
    assert set(MEASURES) & set(written) == {"asymmetry"}
    written = run(which=["gap", "loss"])[1]
    assert set(MEASURES) & set(written) == {"gap", "loss"}


def test_without_matplotlib_the_numbers_are_still_written(
    work: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    real = builtins.__import__

    def refusing(name: str, *rest: Any, **more: Any) -> Any:
        if name.split(".")[0] == "matplotlib":
            raise ImportError(name)
        return real(name, *rest, **more)

    monkeypatch.setattr(builtins, "__import__", refusing)
    assert run(which="loss")[1]["loss"]
    assert "needs matplotlib: pip install 'scoresde[plot]'" in capsys.readouterr().out
    assert not Path("o/in/diagnostics.png").exists()


def test_diagnostics_of_one_s_own_are_one_class_and_one_yaml(work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (work / "my_diagnostics.py").write_text(
        "from scoresde.commands import Diagnostics\n"
        "class Weights(Diagnostics):\n"
        "    def __init__(self, *, power: float): self.power = power\n"
        "    def __call__(self, trained, *, seed, batch_size, out):\n"
        "        total = sum(float(p.abs().pow(self.power).sum()) for p in trained.net.parameters())\n"
        "        return {'weights': total, 'batch_size': batch_size}\n"
    )
    monkeypatch.syspath_prepend(str(work))
    Path("myconf/diagnostics").mkdir(parents=True)
    Path("myconf/diagnostics/mine.yaml").write_text("_target_: my_diagnostics.Weights\npower: 2.0\n")
    Path("myconf/diagnostics/short.yaml").write_text("_target_: my_diagnostics.Weights\n")
    own = ["--config-dir", "myconf", "run=runs/plain", "num_samples=0", "out=o"]
    command(sample_main, *own, "diagnostics=mine", "diagnostics.power=1", "batch_size=5")
    total = sum(float(p.abs().sum()) for p in load_run("runs/plain").net.parameters())
    found = json.loads(Path("o/metrics.json").read_text())
    assert found["weights"] == pytest.approx(total) and found["batch_size"] == 5
    with pytest.raises(SystemExit, match="diagnostics.power has no default"):
        command(sample_main, *own, "diagnostics=short")


def test_bayes_classification(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    short = ["num_samples=0", "out=o", "likelihood=none", "diagnostics=classification", "diagnostics.num_examples=6"]
    command(sample_main, "run=runs/labelled", *short, "diagnostics.samples=2", "diagnostics.prior=counts")
    assert re.search(r"classification by elbo of 6 test examples: [\d.]+ ± [\d.]+ % right", capsys.readouterr().out)
    found, report = (json.loads(Path(f"o/{name}.json").read_text()) for name in ("metrics", "classification"))
    arrays = np.load("o/classification.npz")
    trained = load_run("runs/labelled")
    test = trained.data().test
    assert test.label is not None and arrays["label"].tolist() == test.label[arrays["index"]].tolist()
    taken = arrays["log_prob"].argmax(1)
    assert found["classification"]["accuracy"] == report["accuracy"] == np.mean(taken == arrays["label"])
    assert np.asarray(report["confusion"]).sum() == 6 and arrays["log_prob"].shape == (6, 10)
    Image.open("o/classification.png").verify()
    with pytest.raises(SystemExit, match="diagnostics=classification needs a model of two classes or more"):
        command(sample_main, "run=runs/plain", *short)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            ["diagnostics.kind=nonsense"],
            "diagnostics.kind=nonsense: .*write diagnostics=NAME, one of calibration, classification, default",
        ),
        (["diagnostics=nonsense"], "Could not find 'diagnostics/nonsense'"),
        (["diagnostics=default", "diagnostics.bin=3"], "diagnostics.bin=3"),
        (["diagnostics=default", "diagnostics.which=[los]"], r"all, or some of \[loss, .*got \['los'\]"),
        (["diagnostics=default", "diagnostics._target_=scoresde.commands.ELBO"], "must be a Diagnostics, got ELBO"),
    ],
    ids=str,
)
def test_a_mistyped_option_gets_one_sentence(options: list[str], message: str, work: Path) -> None:
    with pytest.raises(SystemExit) as stopped:
        command(sample_main, "run=runs/plain", "num_samples=0", "out=o", *options)
    said = str(stopped.value.code)
    assert re.search(message, said) and "\n" not in said, said
    assert not Path("o").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"bins": 0}, "diagnostics needs bins >= 1, a whole number, got bins=0"),
        ({"probes": 1}, "diagnostics needs probes >= 2, a whole number, or null, got probes=1"),
        ({"gap_samples": None}, "diagnostics.gap_samples needs a whole number, got null"),
        ({"num_examples": True}, "diagnostics.num_examples needs a whole number"),
        ({"which": "some"}, r"needs to be all, or some of \[loss, fokker_planck, asymmetry, gap\], got 'some'"),
        ({"which": []}, "needs to be all, or some of"),
        ({"path": "runs/classifier"}, "runs/classifier is the run of a classifier"),
    ],
    ids=str,
)
def test_mistakes_get_one_sentence(options: dict[str, Any], message: str, work: Path) -> None:
    with pytest.raises(ValueError) as error:
        run(**options)
    assert re.search(message, str(error.value))
    assert not Path("o").exists()
