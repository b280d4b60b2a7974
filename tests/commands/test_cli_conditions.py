"""Conditions of a run from training to samples and likelihoods: by number, by name, from files, and never left out."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from command_line import command, inside

from scoresde import DDIM, VPSDE, Denoiser, GaussianDenoiser
from scoresde.cli import sample_main, train_main
from scoresde.commands.condition_rows import rows_of
from scoresde.commands.conditions import Conditions, choose_labels, class_number
from scoresde.commands.diagnostics import DenoiserDiagnostics
from scoresde.commands.drawing import conditioned
from scoresde.commands.free_guidance import ClassifierFreeGuidance
from scoresde.commands.guidance import NoGuidance
from scoresde.commands.interfaces import Variance
from scoresde.commands.load import TrainedModel, load_run
from scoresde.commands.reflow import bend
from scoresde.commands.solver_grid import CalibratedTimes, OptimalGrid, OptimisedTimes
from scoresde.commands.variance import ProbedVariance, TableVariance
from scoresde.data import Column, Names
from scoresde.fitting import optimise_grid, reference_paths

MLP = ["logger=csv", "trainer.progress=false", "experiment=array", "model.width=8", "model.depth=1", "batch_size=32"]
SHORT = [*MLP, "trainer.steps=5", "trainer.warmup=0", "trainer.ema_decay=0", "optimizer.lr=0.1", "data.path=c.npz"]
FEW = ["num_samples=5", "solver.steps=2", "likelihood=none", "out=o"]
KIND = ("cat", "dog")
NAMES = Names(classes=("ape", "bee", "cow"), conditions=(Column(name="mass"), Column(name="kind", categories=KIND)))


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """x given two numbers: a run that always has them, and one that was trained without now and then."""
    folder, rng = tmp_path_factory.mktemp("work"), np.random.default_rng(0)
    with inside(folder):
        c = rng.uniform(1, 2, (100, 2)) * [1.0, 1e5]
        np.savez("c.npz", x=rng.standard_normal((100, 2)).astype("f4"), condition=c.astype("f4"))
        command(train_main, *SHORT, "run=runs/c")
        command(train_main, *SHORT, "run=runs/free", "loss.condition_dropout=0.5", "sde=straight")
    return folder


@pytest.fixture
def here(runs: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(runs)
    return runs


def drawn(*options: str) -> Any:
    command(sample_main, *FEW, *options)
    return np.load("o/samples.npz")


def test_the_network_knows_the_units_of_the_training_conditions(here: Path) -> None:
    model = yaml.safe_load(Path("runs/c/config.yaml").read_text())["model"]
    train = load_run("runs/c").data().train.condition
    assert train is not None
    np.testing.assert_allclose(model["condition_mean"], train.double().mean(0), rtol=1e-3)
    np.testing.assert_allclose(model["condition_std"], train.double().std(0), rtol=1e-2)
    assert model["condition_optional"] is False


def test_samples_have_the_conditions_of_the_test_split_in_its_order(here: Path) -> None:
    test = load_run("runs/c").data().test.condition
    assert test is not None
    found = drawn("run=runs/c", "num_samples=12")
    np.testing.assert_array_equal(found["condition"], test[torch.arange(12) % 10])


def test_a_condition_on_the_command_line_is_for_all_or_in_turn(here: Path) -> None:
    one = drawn("run=runs/c", "condition=[1.5,2e5]")
    assert one["condition"].tolist() == [[1.5, 2e5]] * 5
    np.save("rows.npy", [[1.5, 2e5], [1.0, 1e5]])
    listed, read = drawn("run=runs/c", "condition=[[1.5,2e5],[1,1e5]]"), drawn("run=runs/c", "condition.path=rows.npy")
    np.testing.assert_array_equal(listed["x"], read["x"])
    np.testing.assert_array_equal(listed["x"][::2], one["x"][::2])  # sample k depends on its own condition
    assert (listed["x"][1::2] != one["x"][1::2]).any()


def test_without_it_only_where_it_was_trained(here: Path) -> None:
    free = drawn("run=runs/free", "condition=none")
    assert "condition" not in free
    with pytest.raises(SystemExit, match=r"condition=none needs a model that .* loss.condition_dropout"):
        drawn("run=runs/c", "condition=none")


def test_guidance_goes_away_from_the_model_without_the_condition(here: Path) -> None:
    run, x, c = load_run("runs/free"), torch.ones(2, 2), torch.tensor([[1.5, 2e5], [1.0, 1e5]])
    one, free = run.denoiser(x, 0.5, condition=c), run.denoiser(x, 0.5)
    assert (one - free).abs().min() > 1e-3
    for scale, expected in ((0.0, free), (1.0, one), (3.0, free + 3 * (one - free))):
        steering = ClassifierFreeGuidance(scale=scale)(run)
        guided = conditioned(steering, Conditions(None, c), range(2), x.device)
        torch.testing.assert_close(guided(x, torch.tensor(0.5)), expected)
    with pytest.raises(ValueError, match=r"guidance=cfg needs .* loss.condition_dropout=0.1"):
        ClassifierFreeGuidance()(load_run("runs/c"))


def test_density_of_a_file_is_given_its_conditions_or_those_of_the_command(here: Path) -> None:
    x = np.random.default_rng(1).standard_normal((3, 2)).astype("f4")
    np.savez("with.npz", x=x, condition=np.full((3, 2), (1.5, 2e5), "f4"))
    np.save("bare.npy", x)
    score = ["run=runs/c", "num_samples=0", "likelihood=exact", "likelihood.resume=false", "data=array"]
    found = []
    for name, more in (("with.npz", []), ("bare.npy", ["condition=[1.5,2e5]"]), ("bare.npy", ["condition=[1,2e5]"])):
        command(sample_main, *FEW[2:], *score, f"data.path={name}", *more)
        found.append(json.loads(Path("o/metrics.json").read_text())["log_prob_nats"])
    assert found[0] == found[1] != found[2]
    for more, words in (
        ([], "bare.npy have no conditions, but the density of runs/c is that of x given a condition of 2 numbers"),
        (["condition=[[1,2],[1,2]]"], "condition has 2 rows for 3"),
    ):
        with pytest.raises(SystemExit, match=words):
            command(sample_main, *FEW[2:], *score, "data.path=bare.npy", *more)


FIT: dict[str, Any] = {"reference_paths": 8, "reference_steps": 3, "iterations": 1, "batch": 4}
ASK: dict[str, Callable[[TrainedModel], Any]] = {
    "calibrated": lambda run: CalibratedTimes(**FIT)(DDIM(steps=3), run),
    "optimised": lambda run: OptimisedTimes(**FIT)(DDIM(steps=3), run),
    "optimal": lambda run: OptimalGrid(samples=20, levels=5)(DDIM(steps=3), run),
    "diagnostics": lambda run: DenoiserDiagnostics(
        bins=2, num_examples=8, jacobian_examples=2, probes=2, gap_samples=4, steps=3
    )(run, seed=0, batch_size=4, out=Path("o")),
    "bend": lambda run: bend(run, run.data()),
}


@pytest.mark.parametrize("name", ASK)
def test_all_that_asks_the_model_gives_it_its_conditions(name: str, here: Path) -> None:
    """The network of this run refuses to be called without."""
    ASK[name](load_run("runs/c"))


@pytest.mark.parametrize(
    "variance", [TableVariance(samples=20, levels=5), ProbedVariance()], ids=lambda v: type(v).__name__
)
def test_covariances_are_given_the_conditions_of_the_samples(variance: Variance, here: Path) -> None:
    run, c = load_run("runs/c"), torch.tensor([[1.5, 2e5], [1.0, 1e5]])
    denoiser = variance(run).around(run.denoiser.given(condition=c))
    x = torch.ones(2, 2)
    mean, _ = denoiser.mean_and_covariance(x, torch.tensor(0.5))
    torch.testing.assert_close(mean, run.denoiser(x, 0.5, condition=c))


def test_the_paths_of_a_fit_keep_their_conditions() -> None:
    """Data at c exactly: fine runs end there, and the solver that is fitted to them errs by no mean of other paths."""

    class Shifted(Denoiser):
        sde, law = VPSDE(), GaussianDenoiser(VPSDE(), 0.0, 0.5)

        def forward(self, x: torch.Tensor, t: torch.Tensor, *, condition: torch.Tensor) -> torch.Tensor:
            return condition + self.law(x - self.sde.alpha(t) * condition, t)

    cond = {"condition": 10 * torch.arange(40.0)[:, None].expand(40, 2)}
    paths = reference_paths(Shifted(), (2,), 40, steps=60, batch=7, cond=cond)
    assert (paths.end - cond["condition"]).std() == pytest.approx(0.5, abs=0.15)
    assert optimise_grid(Shifted(), DDIM(steps=10), paths, iterations=1, batch=4).record["rms"] < 0.01


def test_what_is_trained_for_the_model_gives_it_its_conditions(here: Path) -> None:
    short = ["logger=csv", "trainer.progress=false", "trainer.steps=2", "batch_size=16"]
    command(train_main, "experiment=digits_npr", "of=runs/c", "model=mlp", "model.width=8", "model.depth=1", *short)
    drawn("run=runs/c", "solver=ddpm", "solver.variance=optimal", "variance=npr", "solver.steps=2")
    command(train_main, "experiment=toy_reflow", "of=runs/free", "task.pairs=16", "run=runs/straight", *short)
    assert drawn("run=runs/straight", "solver=ddim")["condition"].shape == (5, 2)


def test_pictures_of_a_training_have_the_conditions_of_test_examples(here: Path) -> None:
    rng = np.random.default_rng(0)
    np.savez("i.npz", x=rng.integers(0, 4, (80, 1, 8, 8)), y=rng.integers(2, size=80), condition=rng.random((80, 1)))
    command(train_main, "data=array", "data.path=i.npz", "data.levels=4", "conditional=true", "model.width=8",
            "model.num_res_blocks=1", "logger=csv", "trainer.steps=2", "trainer.sample_every=2", "batch_size=16",
            "run=runs/i")  # fmt: skip
    assert len(list(Path("runs/i/samples").glob("*.png"))) == 1
    both = drawn("run=runs/i")
    test = load_run("runs/i").data().test
    assert test.label is not None and test.condition is not None
    np.testing.assert_array_equal(both["y"], test.label[:5])  # of the same examples
    np.testing.assert_array_equal(both["condition"], test.condition[:5])


def test_a_mistaken_condition_gets_one_sentence(here: Path) -> None:
    for options, words in (
        (["condition.mass=3"], "condition.mass is no column of the condition: there is column 0, column 1"),
        (["num_samples=0", "condition=[1,2]", "diagnostics=default"], "condition is of samples"),
    ):
        with pytest.raises(SystemExit, match=words):
            command(sample_main, *FEW, "run=runs/c", *options)


def test_conditions_are_needed_when_the_data_are_gone(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Path("c.npz").rename("gone.npz")
    try:
        with pytest.raises(SystemExit, match=r"draws nothing without a condition, .*: give condition=\[\.\.\.\]"):
            drawn("run=runs/c")
        assert drawn("run=runs/c", "condition=[1,2e5]")["x"].shape == (5, 2)
    finally:
        Path("gone.npz").rename("c.npz")


def test_dropout_needs_something_to_drop(here: Path) -> None:
    np.save("bare2.npy", np.zeros((50, 2), "f4") + np.arange(50)[:, None])
    for options, words in (
        (["data.path=bare2.npy"], "loss.condition_dropout=0.5 has nothing to drop: data=bare2 has no conditions"),
        (["model.condition_optional=false"], "needs a network that can do without its condition"),
    ):
        with pytest.raises(SystemExit, match=words):
            command(train_main, *SHORT, "loss.condition_dropout=0.5", "run=runs/no", *options)


@pytest.fixture
def named() -> TrainedModel:
    """A run with named classes, the second without example, and a number and a category as condition."""
    model = {"num_classes": 3, "condition_dim": 2, "condition_categories": [0, 2]}
    run: Any = type("Run", (), {"path": "r"})
    net: Any = torch.nn.Identity()
    return TrainedModel(
        run=run, config={"model": model}, model=net, net=net, codec=None, shape=(2,), step=0,  # type: ignore[arg-type]
        names=NAMES, class_counts=[3, 0, 2],
    )  # fmt: skip


@pytest.mark.parametrize(
    "asked", [[3.2, "dog"], [[3.2, "dog"]], {"kind": "dog", "mass": 3.2}, {"path": "n.csv"}, {"path": "p.csv"}], ids=str
)
def test_categories_and_columns_go_by_name(asked: Any, named: TrainedModel, here: Path) -> None:
    Path("n.csv").write_text("kind, other, mass\ndog, x, 3.2\n")
    Path("p.csv").write_text("3.2,dog\n")
    assert rows_of(asked, named).tolist() == [[3.2, 1.0]]


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        ([3.2, "doggy"], r"condition kind has no category 'doggy': did you mean dog\?"),
        ([3.2, "xyz"], "condition kind has no category 'xyz': there is cat, dog"),
        ({"mass": 3, "knd": "dog"}, r"condition.knd is no column of the condition: did you mean kind\?"),
        ({"mass": 3}, "condition needs every column, and kind is missing"),
        ([1.5], r"condition needs 2 values per row for r, got 1: one row is \[mass, kind\]"),
        ([[1, "dog"], [3]], "condition needs 2 values per row"),
        (["abc", "dog"], "condition mass needs a finite number, got 'abc'"),
        ([float("nan"), "dog"], "condition mass needs a finite number"),
        ({"path": "nowhere.npy"}, "condition.path needs .* nowhere.npy does not exist"),
    ],
)
def test_names_that_are_not_known_list_the_nearest(asked: Any, words: str, named: TrainedModel) -> None:
    with pytest.raises(ValueError, match=words):
        rows_of(asked, named)


def test_classes_go_by_name_and_those_without_examples_are_never_drawn(named: TrainedModel) -> None:
    def labels(asked: Any) -> list[int]:
        chosen = choose_labels(asked, 4, named, NoGuidance())
        assert chosen is not None
        return chosen.tolist()

    assert labels(None) == [0, 2, 0, 2]
    assert labels(["cow", "ape"]) == [2, 0, 2, 0] and labels(2) == [2] * 4
    for wrong, words in (("bee", "label=bee had no example"), (1, "label=1 had no example"), (3, r"in 0\.\.2"),
                         ("cw", r"label=cw is no class of r: did you mean cow\?")):  # fmt: skip
        with pytest.raises(ValueError, match=words):
            labels(wrong)


def test_numbers_are_names_where_the_names_are_numbers(named: TrainedModel) -> None:
    tens = replace(named, names=Names(classes=("10", "20", "30")))
    assert class_number(30, tens) == 2
    with pytest.raises(ValueError, match=r"label=2 is no class of r"):
        class_number(2, tens)
