"""`diagnostics=calibration` and `guidance=observations` on a small run of simulations."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from command_line import command, inside
from PIL import Image

from scoresde.cli import sample_main, train_main
from scoresde.commands.drawing import draw
from scoresde.commands.load import load_run
from scoresde.diagnostics import posterior_calibration
from scoresde.inverse import ProductPosterior
from scoresde.noise import stream_generator
from scoresde.solvers import ExponentialAdams

TINY = ["logger=csv", "trainer.warmup=0", "trainer.steps=20", "batch_size=128", "trainer.ema_decay=0.5",
        "model.width=16", "model.depth=1", "trainer.progress=false", "optimizer.lr=1e-2"]  # fmt: skip
SMALL = ["num_samples=0", "diagnostics=calibration", "diagnostics.num_examples=20", "diagnostics.draws=9", "out=o",
         "diagnostics.exact_draws=100", "diagnostics.exact=2"]  # fmt: skip


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("work")
    with inside(folder):
        linear = ["experiment=sbi_linear_gaussian", "data.size=500", "data.test_size=30", "data.simulator.dim=2"]
        command(train_main, *TINY, *linear, "run=runs/linear")
        command(train_main, *TINY, "data=toy", "data.size=50", "batch_size=8", "model=mlp", "trainer.steps=1",
                "run=runs/plain")  # fmt: skip
    return folder


def test_calibration_is_that_of_what_it_writes(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command(sample_main, "run=runs/linear", *SMALL, "batch_size=64")
    said, found = capsys.readouterr().out, json.loads(Path("o/metrics.json").read_text())["calibration"]
    stored = np.load("o/calibration.npz")
    assert stored["samples"].shape == (9, 20, 2) and stored["truth"].shape == (20, 2) == stored["condition"].shape
    again = posterior_calibration(stored["samples"], stored["truth"], generator=stream_generator(0, "diagnostic", 5))
    assert np.array_equal(stored["ranks"], again.ranks) and found["rank_p"] == pytest.approx(again.uniformity.p)
    assert found["tarp_p"] == pytest.approx(again.tarp_p)
    assert found["coverage90"] == pytest.approx(float(again.coverage.mean[17]))
    assert 0 <= found["c2st"] <= 1 and found["exact_pairs"] == 2
    assert f"ranks p = {found['rank_p']:.2g}" in said and "against exact draws at 2 pairs" in said
    with Image.open("o/calibration.png") as picture:
        assert min(picture.size) > 400

    command(sample_main, "run=runs/linear", *SMALL, "batch_size=7", "diagnostics.exact=0")
    np.testing.assert_allclose(np.load("o/calibration.npz")["samples"], stored["samples"], rtol=1e-4, atol=1e-5)
    assert "against exact" not in capsys.readouterr().out


def test_the_other_solver_is_used(work: Path) -> None:
    command(sample_main, "run=runs/linear", *SMALL, "diagnostics.exact=0",
            "diagnostics.solver={_target_: scoresde.DDIM, steps: 2}")  # fmt: skip
    one = np.load("o/calibration.npz")["samples"]
    command(sample_main, "run=runs/linear", *SMALL, "diagnostics.exact=0")
    assert np.abs(np.load("o/calibration.npz")["samples"] - one).max() > 1e-3


def test_one_observation_is_a_condition_and_several_are_one_product(work: Path) -> None:
    drawn = ["run=runs/linear", "num_samples=20", "solver.steps=5"]
    command(sample_main, *drawn, "out=a", "guidance=observations", "guidance.rows=[[0.5,0.3]]", "condition=none")
    command(sample_main, *drawn, "out=b", "condition=[0.5,0.3]")
    np.save("x.npy", np.float32([[0.5, 0.3], [0.1, 0.2], [0.4, 0.4]]))
    several = ["guidance=observations", "guidance.path=x.npy", "guidance.samples=50", "condition=none"]
    command(sample_main, *drawn, "out=c", *several)
    alone, condition, many = (np.load(f"{name}/samples.npz")["x"] for name in "abc")
    np.testing.assert_allclose(alone, condition, rtol=1e-4, atol=1e-5)

    trained = load_run("runs/linear")
    product = ProductPosterior.of(
        trained.denoiser, torch.from_numpy(np.load("x.npy")).double(), (2,), samples=50,
        generator=stream_generator(0, "observations"),
    )  # fmt: skip
    x = draw(product, ExponentialAdams(steps=5), (2,), 0, range(20), torch.device("cpu"))
    np.testing.assert_allclose(trained.codec.decode(x), many, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["run=runs/plain", *SMALL], "runs/plain is given no condition and no label"),
        (["run=runs/linear", *SMALL, "diagnostics.draws=0"], "diagnostics needs 1 <= draws"),
        (["run=runs/linear", *SMALL, "diagnostics.solver=ddim"], "diagnostics.solver needs a solver, as"),
        (["run=runs/linear", "guidance=observations", "condition=none"], "needs guidance.rows="),
        (["run=runs/linear", "guidance=observations", "guidance.rows=[1,2]"], "one list for each observation"),
        (
            ["run=runs/linear", "guidance=observations", "guidance.rows=[[1]]", "condition=none"],
            "needs 2 values per row",
        ),
        (["run=runs/linear", "guidance=observations", "guidance.rows=[[1,2]]"], "bound already, .*condition=none"),
        (["run=runs/plain", "guidance=observations", "guidance.rows=[[1,2]]"], "runs/plain was not"),
    ],
    ids=str,
)
def test_mistakes_get_one_sentence(options: list[str], message: str, work: Path) -> None:
    with pytest.raises(SystemExit) as stopped:
        command(sample_main, *options)
    said = str(stopped.value.code)
    assert re.search(message, said) and "\n" not in said, said
