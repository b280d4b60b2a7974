"""`grid=optimised` and `grid=calibrated` of `sample.py`: fitted on first use, read on the second."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from command_line import command, inside

from scoresde.cli import sample_main, train_main
from scoresde.commands.load import load_run
from scoresde.fitting import OptimisedGrid
from scoresde.fitting.calibrated import Calibration
from scoresde.training import load_checkpoint, save_checkpoint

TINY = ["logger=csv", "model.width=8", "trainer.steps=3", "trainer.precision=float32", "batch_size=16"]
FIT = ["grid.reference_paths=8", "grid.reference_steps=6", "grid.iterations=2", "grid.batch=4"]
RUN = ["run=runs/toy", "num_samples=6", "likelihood.num_examples=0"]


def sample(*arguments: str) -> dict[str, Any]:
    """Draw samples into `o`; what metrics.json says."""
    command(sample_main, *RUN, "out=o", *arguments)
    metrics: dict[str, Any] = json.loads(Path("o/metrics.json").read_text())
    return metrics


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with two small runs: points in the plane, and digits with labels."""
    folder = tmp_path_factory.mktemp("work")
    with inside(folder):
        command(train_main, "experiment=toy", "data.size=64", *TINY, "run=runs/toy")
        command(train_main, *TINY, "model.num_res_blocks=1", "conditional=true", "run=runs/labelled")
    return folder


def fits() -> dict[str, int]:
    """The fits of the run, and when they were written."""
    return {path.name: path.stat().st_mtime_ns for path in Path("runs/toy/grids").iterdir()}


@pytest.mark.parametrize(
    ("kind", "solver", "written", "made", "nfe"),
    [
        ("optimised", ["solver=dpmpp_2m"], r"DPMSolverPP2M-3steps-\w{8}-at3\.pt", OptimisedGrid, 4),
        ("optimised", ["solver=ddim", "grid.gaussian_start=false"], r"DDIM-3steps-\w{8}-at3\.pt", OptimisedGrid, 4),
        ("calibrated", ["solver=ddim"], r"calibrated-3steps-\w{8}-at3\.pt", Calibration, 4),
    ],
)
def test_a_fit_is_made_once(
    kind: str, solver: list[str], written: str, made: Any, nfe: int, work: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = [*solver, "solver.steps=3", f"grid={kind}", *FIT]
    metrics = sample(*options)
    assert metrics["nfe"] == nfe
    assert metrics["solver"] == ("CalibratedMultistep" if kind == "calibrated" else written.split("-")[0])
    said = capsys.readouterr().out
    assert "fitted to 8 reference paths (64 network calls for them)" in said
    assert re.search(r"rms [\d.e+-]+ \([\d.e+-]+\); runs/toy/grids/", said)
    first, x = fits(), np.load("o/samples.npz")["x"]
    (file,) = first
    assert re.fullmatch(written, file)
    record = made.load(Path("runs/toy/grids") / file).record
    assert record["rms"] <= record["rms_before"]
    assert (record["paths"], record["iterations"], record["batch"]) == (8, 2, 4)

    sample(*options)
    assert "fitted to" not in capsys.readouterr().out
    assert fits() == first, "the file is read, not written again"
    np.testing.assert_array_equal(np.load("o/samples.npz")["x"], x)

    sample(*options, "grid.refit=true")
    assert "fitted to 8 reference paths" in capsys.readouterr().out
    again = fits()
    assert again.keys() == first.keys()
    assert again != first
    np.testing.assert_array_equal(np.load("o/samples.npz")["x"], x)


def test_other_options_are_other_fits(work: Path) -> None:
    options = ["solver=dpmpp_2m", "grid=optimised", *FIT]
    for change in (["solver.steps=3"], ["solver.steps=2"], ["solver.steps=3", "grid.iterations=1"],
                   ["solver.steps=3", "solver.t_end=1e-3"], ["solver.steps=3", "solver=ddim"]):  # fmt: skip
        before = len(fits()) if Path("runs/toy/grids").exists() else 0
        sample(*options, *change)
        assert len(fits()) == before + 1, change
    before = len(fits())
    for steps in (2, 3):
        sample("solver=ddim", f"solver.steps={steps}", "grid=calibrated", *FIT)
    assert len(fits()) == before + 2
    sample("solver=dpmpp_2m", "solver.steps=3", "grid=calibrated", *FIT)
    assert len(fits()) == before + 2, "a calibration does not depend on the solver"


def test_the_fitted_times_are_used(work: Path) -> None:
    sample("solver=ddim", "solver.steps=3")
    own = np.load("o/samples.npz")["x"]
    sample("solver=ddim", "solver.steps=3", "grid=karras")
    karras = np.load("o/samples.npz")["x"]
    sample("solver=ddim", "solver.steps=3", "grid=optimised", *FIT)
    fitted = np.load("o/samples.npz")["x"]
    assert (own != karras).any()
    assert (own != fitted).any()
    assert (karras != fitted).any()


@pytest.mark.parametrize("guidance", [["label=3", "guidance=cfg", "guidance.scale=2"], ["label=[1,7]"]], ids=str)
@pytest.mark.parametrize("kind", ["optimised", "calibrated"])
def test_conditional_runs_are_fitted_without_labels(kind: str, guidance: list[str], work: Path) -> None:
    options = ["solver=dpmpp_2m", "solver.steps=2", f"grid={kind}", *FIT]
    metrics = sample("run=runs/labelled", *options, *guidance)
    assert metrics["nfe"] == 3
    assert len(list(Path("runs/labelled/grids").iterdir())) == 1
    expected = [3] * 6 if len(guidance) > 1 else [1, 7] * 3
    assert np.load("o/samples.npz")["y"].tolist() == expected


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["solver=ode", "grid=optimised"], r"grid=\.\.\. needs a solver with steps, got ProbabilityFlowODE"),
        (["solver=ode", "grid=calibrated"], r"grid=\.\.\. needs a solver with steps, got ProbabilityFlowODE"),
        (["solver=ode", "grid=karras"], r"grid=\.\.\. needs a solver with steps"),
        (["solver=ddpm", "grid=optimised", *FIT], "optimise_grid needs a deterministic solver .* got DDPM"),
        (["solver=ddim", "grid=optimised", *FIT, "grid.reference_paths=1"], "reference_paths >= 2, .*=1"),
        (["solver=ddim", "grid=optimised", *FIT, "grid.reference_paths=many"], "reference_paths needs a whole number"),
        (["solver=ddim", "grid=optimised", *FIT, "grid.iterations=-1"], "iterations >= 0.* got iterations=-1"),
        (["solver=ddim", "grid=optimised", *FIT, "grid.batch=0"], "batch >= 1.* got batch=0"),
        (["solver=ddim", "grid=optimised", *FIT, "grid.reference_steps=0"], "reference_steps >= 1, .*=0"),
        (["solver=ddim", "grid=nonsense"], "Could not find 'grid/nonsense'"),
        (["solver=ddim", "grid=optimised", "grid.kind=magic"], "grid.kind=magic: .* write grid=NAME, one of balanced"),
        (["solver=ddim", "grid=optimised", "grid.kind=calibrated"], "grid.kind=calibrated: .* write grid=calibrated"),
        (["solver=ddim", "grid=optimised", "grid.pilots=3"], "write grid.reference_paths=3"),
        (["solver=ddim", "grid=optimised", "grid.pathz=3"], "grid has no key 'pathz'"),
        (["solver=ddim", "grid._target_=scoresde.DDIM"], "grid=... must be a SolverGrid, got DDIM"),
        (["solver=ddim", "grid=optimised", "grid.refit=3"], "grid.refit needs true or false, got 3"),
    ],
    ids=str,
)  # fmt: skip
def test_mistakes_get_one_sentence(
    options: list[str], message: str, work: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stopped:
        sample("solver.steps=3" if "solver=ode" not in options else "seed=0", *options)
    said = stopped.value.code
    assert isinstance(said, str), "must exit with a message, hence status 1"
    assert "\n" not in said
    assert re.search(message, said), said
    assert "Traceback" not in capsys.readouterr().err
    assert not Path("runs/toy/grids").exists(), "nothing half made is kept"


def test_a_fit_that_is_damaged_or_of_other_weights_is_made_again(
    work: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["solver=ddim", "solver.steps=2", "grid=optimised", *FIT]
    sample(*options)
    (path,) = Path("runs/toy/grids").iterdir()
    whole = path.read_bytes()
    other = {**load_checkpoint(path), "fitted_to": "those of another run"}
    for change, words in (
        (lambda: path.write_bytes(whole[:100]), "is damaged, or of an earlier version: it is fitted again"),
        (lambda: path.write_bytes(whole[:300] + b"x" + whole[301:]), "is damaged, or of an earlier version"),
        (lambda: save_checkpoint(path, other), "was fitted to other weights: it is fitted again"),
    ):
        change()
        capsys.readouterr()
        sample(*options)
        assert f"{path} {words}" in capsys.readouterr().out
        assert load_checkpoint(path)["fitted_to"] == load_run("runs/toy").weights
    sample(*options)
    assert "fitted" not in capsys.readouterr().out
