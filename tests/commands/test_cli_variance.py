"""The optimal reverse variance from the command line: tables, heads, grids, and one sentence for every mistake."""

import json
import os
import re
import shutil
import signal
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from command_line import command, inside
from torch import Tensor

from scoresde.cli import sample_main, train_main
from scoresde.commands import ProbedVariance, TableVariance, TrainedVariance, Variance
from scoresde.commands.load import load_run
from scoresde.commands.sample import asks_for_covariance
from scoresde.commands.variance import VARIANCE_FILE, moments_of
from scoresde.fitting.optimal_grid import optimal_grid
from scoresde.guidance import Guided
from scoresde.losses import SecondMomentLoss
from scoresde.noise import per_sample_noise, stream_generator, stream_seed
from scoresde.sde import uniform_grid
from scoresde.solvers import DDIM, DDPM, Langevin, PredictorCorrector, Solver
from scoresde.training import InUse

FAST = ["logger=csv", "trainer.warmup=0", "trainer.ema_decay=0.5", "optimizer.lr=0.01"]
TINY = [*FAST, "model.width=8", "model.num_res_blocks=1", "trainer.steps=8", "batch_size=16"]
HEAD = [*FAST, "trainer.steps=6", "batch_size=8"]
SAMPLES = ["num_samples=3", "solver.steps=4", "out=o"]
TABLE = {"samples": 20, "levels": 6}
OPTIMAL = ["solver=ddpm", "solver.variance=optimal", *SAMPLES]
ANALYTIC = ["variance=analytic", "variance.samples=20", "variance.levels=6"]


def sentence(main: Any, *arguments: str) -> str:
    with pytest.raises(SystemExit) as stopped:
        command(main, *arguments)
    assert isinstance(stopped.value.code, str) and "\n" not in stopped.value.code
    return stopped.value.code


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with two small runs of digits: one without labels that has both heads, and one with labels."""
    folder = tmp_path_factory.mktemp("work")
    with inside(folder):
        command(train_main, *TINY, "run=runs/labelled", "conditional=true")
        command(train_main, *TINY, "run=runs/plain")
        for kind in ("npr", "sn"):
            command(train_main, *HEAD, f"experiment=digits_{kind}", "of=runs/plain")
    return folder


def drawn(run: str, solver: Solver, denoiser: Any) -> np.ndarray[Any, Any]:
    """The first three samples of seed 0, without the command line."""
    trained = load_run(run)
    latents = [denoiser.sde.prior_sample((1, 8, 8), generator=stream_generator(0, "latent", k)) for k in range(3)]
    x = torch.stack(latents)
    y = solver(denoiser, x, noise=per_sample_noise(x, [stream_seed(0, "noise", k) for k in range(3)]))
    return trained.codec.decode(y)[:, 0].numpy()


def written() -> np.ndarray[Any, Any]:
    return np.asarray(np.load("o/samples.npz")["x"])


@pytest.mark.parametrize(
    ("kind", "options", "same", "other"),
    [
        ("analytic", TABLE, TableVariance(**TABLE), TableVariance(**TABLE, corrected=True)),
        ("corrected", TABLE, TableVariance(**TABLE, corrected=True), TableVariance(**TABLE)),
        ("hessian", {"probes": 2, "isotropic": False}, ProbedVariance(probes=2, isotropic=False),
         ProbedVariance(isotropic=False)),
        ("hessian", {}, ProbedVariance(), ProbedVariance(isotropic=False)),
        ("npr", {}, TrainedVariance(head="npr"), TrainedVariance(head="sn")),
        ("sn", {}, TrainedVariance(head="sn"), TrainedVariance(head="npr")),
    ],
    ids=str,
)  # fmt: skip
def test_every_kind_gives_what_python_gives(
    kind: str, options: dict[str, Any], same: Variance, other: Variance, work: Path
) -> None:
    given = [f"variance.{key}={value}" for key, value in options.items()]
    command(sample_main, "run=runs/plain", *OPTIMAL, f"variance={kind}", *given)

    denoiser = same(load_run("runs/plain"))
    expected = drawn("runs/plain", DDPM(variance="optimal", steps=4), denoiser)
    np.testing.assert_array_equal(written(), expected)
    wrong = other(load_run("runs/plain"))
    assert (drawn("runs/plain", DDPM(variance="optimal", steps=4), wrong) != expected).any()
    assert (drawn("runs/plain", DDPM(steps=4), denoiser) != expected).any()
    metrics = json.loads(Path("o/metrics.json").read_text())
    assert metrics["variance"] == type(same).__name__ and metrics["nfe"] == 5


def test_ddim_and_its_clipping_are_reached(work: Path) -> None:
    options = ["solver.eta=0.5", "solver.clip_denoised=[-1,1]", "solver.clip_last_noise=2"]
    command(sample_main, "run=runs/plain", "solver=ddim", "solver.variance=optimal", *SAMPLES, *ANALYTIC, *options,
            "grid=uniform")  # fmt: skip

    solver = DDIM(variance="optimal", steps=4, grid=uniform_grid, eta=0.5, clip_denoised=(-1, 1), clip_last_noise=2)
    denoiser = TableVariance(**TABLE)(load_run("runs/plain"))
    np.testing.assert_array_equal(written(), drawn("runs/plain", solver, denoiser))


def test_the_covariance_goes_around_guidance(work: Path) -> None:
    guided = ["label=3", "guidance=cfg", "guidance.scale=4"]
    command(sample_main, "run=runs/labelled", *OPTIMAL, *ANALYTIC, *guided)

    trained = load_run("runs/labelled")
    model, label = trained.model, torch.full((3,), 3)
    spread = TableVariance(**TABLE)(trained)
    around = spread.around(Guided(model.given(label=label), model.given(label=None), 4))  # type: ignore[operator]
    solver = DDPM(variance="optimal", steps=4)
    np.testing.assert_array_equal(written(), drawn("runs/labelled", solver, around))
    assert (written() != drawn("runs/labelled", solver, spread.around(model.given(label=label)))).any()  # type: ignore[operator]


@pytest.mark.parametrize("kind", ["hessian", "npr"])
def test_a_model_of_classes_has_a_covariance(kind: str, work: Path) -> None:
    if kind == "npr":
        command(train_main, *HEAD, "experiment=digits_npr", "of=runs/labelled")
    command(sample_main, "run=runs/labelled", *OPTIMAL, f"variance={kind}", "label=[1,7]")
    assert np.load("o/samples.npz")["y"].tolist() == [1, 7, 1]


def test_the_table_is_made_once_and_shared_with_the_grid(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    grid = ["grid=optimal", "grid.samples=20", "grid.levels=6"]
    said = "estimating the variance of runs/plain"
    file = work / "runs/plain" / VARIANCE_FILE
    command(sample_main, "run=runs/plain", *OPTIMAL, *ANALYTIC)
    assert said in capsys.readouterr().out
    before = file.read_bytes(), file.stat().st_mtime_ns
    for options in (ANALYTIC, ["variance=corrected", *ANALYTIC[1:]], [*ANALYTIC, *grid]):
        command(sample_main, "run=runs/plain", *OPTIMAL, *options)
        assert said not in capsys.readouterr().out
    command(sample_main, "run=runs/plain", "solver=ddpm", *SAMPLES, *grid)
    assert said not in capsys.readouterr().out
    assert (file.read_bytes(), file.stat().st_mtime_ns) == before
    command(sample_main, "run=runs/plain", *OPTIMAL, *ANALYTIC, "variance.samples=30")
    assert f"{said} from 30 examples" in capsys.readouterr().out


def test_a_damaged_table_is_made_again_by_one_process_at_a_time(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    trained = load_run("runs/plain")
    path = trained.run.path / "variance.pt"
    first = moments_of(trained, samples=20, levels=4)
    whole = path.read_bytes()
    path.write_bytes(whole[:300] + b"x" + whole[301:])
    caught: list[InUse] = []

    def another() -> None:
        try:
            moments_of(trained, samples=20, levels=4)
        except InUse as error:
            caught.append(error)

    with trained.run.locked():
        thread = threading.Thread(target=another)
        thread.start()
        thread.join()
        again = moments_of(trained, samples=20, levels=4)
    assert f"the run {trained.run.path} is in use by process" in str(caught[0])
    assert f"{path} is damaged: it is made again." in capsys.readouterr().out
    assert path.read_bytes() == whole
    assert all(torch.equal(value, again.state()[key]) for key, value in first.state().items() if torch.is_tensor(value))


@pytest.mark.parametrize("variance", ["optimal", "large"])
def test_the_optimal_grid_is_that_of_the_run_s_own_table(variance: str, work: Path) -> None:
    options = ["grid=optimal", "grid.samples=20", "grid.levels=9", f"grid.variance={variance}"]
    command(sample_main, "run=runs/plain", "solver=ddpm", *SAMPLES, *options)

    trained = load_run("runs/plain")
    table = moments_of(trained, samples=20, levels=9)
    times = optimal_grid(trained.model.sde, 4, trained.model.sde.t_min, moments=table, variance=variance)
    solver = DDPM(steps=4, grid=lambda sde, steps, t_end: times)
    np.testing.assert_array_equal(written(), drawn("runs/plain", solver, trained.model))
    assert (written() != drawn("runs/plain", DDPM(steps=4), trained.model)).any()


def test_a_table_needs_no_more_data_than_there_are(work: Path) -> None:
    options = ["data=toy", "data.size=100", "model=mlp", "model.width=8", "logger=csv", "trainer.steps=2"]
    command(train_main, *options, "batch_size=16", "run=runs/toy")
    command(sample_main, "run=runs/toy", *OPTIMAL, "variance=analytic", "variance.samples=300", "variance.levels=3")
    assert moments_of(load_run("runs/toy"), samples=300, levels=3).samples == 300


def test_a_head_belongs_to_the_newest_denoiser_unless_one_is_named(
    work: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    now = 2_000_000_000
    os.utime("runs/labelled/checkpoints/last.pt", (now, now))
    command(train_main, *HEAD, "experiment=digits_sn", "model=ncsnpp", "model.width=16", "model.num_res_blocks=1")
    config = yaml.safe_load(Path("runs/labelled/variance_sn/config.yaml").read_text())
    net = config["head"]["net"]
    assert config["task"] == {"_target_": "scoresde.commands.TrainVarianceHead", "head": "sn"}
    assert config["head"]["kind"] == "sn"
    assert (net["channels"], net["width"], net["image_size"], net["num_classes"]) == (2, 16, 8, None)
    assert (
        "python sample.py run=runs/labelled solver=ddpm solver.variance=optimal variance=sn" in capsys.readouterr().out
    )
    command(sample_main, "run=runs/labelled", *OPTIMAL, "variance=sn")

    before = Path("runs/plain/variance_npr/checkpoints/last.pt").read_bytes()
    command(train_main, *HEAD, "experiment=digits_npr", "of=runs/plain")
    assert "already trained to step 6 of 6" in capsys.readouterr().out
    assert Path("runs/plain/variance_npr/checkpoints/last.pt").read_bytes() == before


def test_an_interrupted_head_goes_on_bit_for_bit(work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    head = Path("runs/plain/variance_npr")
    whole = torch.load(head / "checkpoints/last.pt", weights_only=True)
    shutil.rmtree(head)
    at, calls = SecondMomentLoss.at, []

    def interrupting(*arguments: Any) -> Tensor:
        calls.append(1)
        if len(calls) == 3:
            os.kill(os.getpid(), signal.SIGINT)
        return at(*arguments)

    monkeypatch.setattr(SecondMomentLoss, "at", interrupting)
    again = [*HEAD, "experiment=digits_npr", "of=runs/plain"]
    with pytest.raises(SystemExit) as stopped:
        command(train_main, *again)
    assert stopped.value.code == 130
    assert torch.load(head / "checkpoints/last.pt", weights_only=True)["step"] == 3
    command(train_main, *again)

    state = torch.load(head / "checkpoints/last.pt", weights_only=True)
    assert state["step"] == 6 and len(calls) == 6
    for key, value in whole["model"].items():
        assert torch.equal(value, state["model"][key]), key
    trained = load_run("runs/plain").model.state_dict()
    assert all(torch.equal(value, state["model"][f"denoiser.{key}"]) for key, value in trained.items())


def test_a_predictor_may_ask_for_the_covariance() -> None:
    assert asks_for_covariance(PredictorCorrector(predictor=DDPM(variance="optimal"), corrector=Langevin()))
    assert not asks_for_covariance(PredictorCorrector(predictor=DDPM(), corrector=Langevin()))


def test_options_of_heads_do_not_rename_other_runs(work: Path) -> None:
    assert not {"of", "head"} & set(yaml.safe_load(Path("runs/plain/config.yaml").read_text()))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (OPTIMAL, "solver.variance=optimal needs a covariance: add variance=analytic, corrected, hessian, npr"),
        (["solver=ddpm", "variance=analytic"], "needs solver=ddpm .* got a DDPM with variance=small"),
        (["solver=heun", "variance=hessian"], r"\(ProbedVariance\) needs .* got a Heun with no variance to choose"),
        (["solver=ddpm", "solver.variance=learned", *SAMPLES], "variance='learned' needs a network that predicts it"),
        (["solver=ddpm", "solver.variance=best"], "variance small, large, optimal or learned, got 'best'"),
        ([*OPTIMAL, "variance=best"], "Could not find 'variance/best'"),
        ([*OPTIMAL, *ANALYTIC, "variance.samples=2"], "TableVariance needs samples >= 3, .*, got samples=2"),
        ([*OPTIMAL, *ANALYTIC, "variance.levels=many"], "variance.levels needs a whole number, or null, got 'many'"),
        ([*OPTIMAL, "variance=hessian", "variance.probes=0"], "ProbedVariance needs probes >= 1"),
        ([*OPTIMAL, "variance=npr", "run=runs/labelled"],
         "no npr head: .* python train.py experiment=digits_npr of=runs/labelled"),
        (["solver=ddpm", *SAMPLES, "grid=optimal", "grid.levels=3", "grid.samples=20"],
         r"grid=optimal .* at most 2 steps on 3 noise levels, got steps=4"),
        (["solver=ddpm", *SAMPLES, "grid=optimal", "grid.variance=best", "grid.samples=20", "grid.levels=6"],
         "OptimalGrid needs variance optimal, small or large, got 'best'"),
        (["solver=ode", "grid=optimal"], "needs a solver with steps"),
        (["run=runs/plain/variance_npr", *SAMPLES], "variance_npr"),
    ],
    ids=str,
)  # fmt: skip
def test_sampling_mistakes_get_one_sentence(options: list[str], message: str, work: Path) -> None:
    run = [] if any(option.startswith("run=") for option in options) else ["run=runs/plain"]
    said = sentence(sample_main, *run, *options)
    assert re.search(message, said), said
    assert not Path("o").exists()


def test_a_classifier_has_no_variance(work: Path) -> None:
    command(train_main, *TINY, "experiment=digits_classifier", "run=runs/classifier")
    said = sentence(train_main, "logger=csv", "experiment=digits_npr", "of=runs/classifier")
    assert "runs/classifier is the run of a classifier: name the run of a denoiser" in said


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["of=runs/plain"], "of=runs/plain needs another task: start from experiment=digits_npr"),
        (["task=inpaint"], "names Inpaint, which is of sample.py: train with task=denoiser before"),
        (["head=npr"], "head=npr needs another task: start from experiment=digits_npr"),
        (
            ["task=variance"],
            "Could not find 'task/variance': there is classifier, .*, variance_head",
        ),
        (["task=variance_head", "head=npr"], "takes sde and parameterization and data from its run: leave out sde="),
        (["experiment=digits_npr", "sde=ve"], "takes sde from its run: leave out sde=..., name the run with of="),
        (
            ["experiment=digits_npr", "sde.beta_min=1"],
            "sde has no key 'beta_min', which belongs to another",
        ),
        (["experiment=digits_npr", "run=runs/mine"], "takes run from its run"),
        (["experiment=digits_npr", "conditional=true"], "leave out conditional="),
        (["experiment=digits_npr", "head=best"], "needs head=npr or head=sn, got head=best"),
        (
            ["experiment=digits_npr", "loss=edm", "loss.weighting.sigma_data=0.5"],
            "loss=... must be a SecondMomentLoss, got DenoisingLoss",
        ),
        (["experiment=digits_npr", "of=runs/nowhere"], "there is no run at runs/nowhere"),
        (["experiment=digits_npr", "of=runs/plain"], "belongs to a run with another configuration"),
        (["loss=second_moment"], "SecondMomentLoss trains a VarianceHead"),
    ],
    ids=str,
)
def test_training_mistakes_get_one_sentence(options: list[str], message: str, work: Path) -> None:
    said = sentence(train_main, "logger=csv", "trainer.steps=3", *options)
    assert re.search(message, said), said
