"""Images and sequences as conditions, with labels and numbers beside them, from data to samples and likelihoods."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from command_line import command, inside
from PIL import Image

from scoresde import load_run
from scoresde.cli import sample_main, train_main
from scoresde.commands.build import ConfigError
from scoresde.commands.cautions import rarely_without_all
from scoresde.commands.conditions import choose_conditions
from scoresde.commands.fill import fill
from scoresde.commands.free_guidance import ClassifierFreeGuidance
from scoresde.commands.guidance import NoGuidance
from scoresde.commands.load import load_run as load_trained
from scoresde.data import array

SHORT = ["logger=csv", "trainer.progress=false", "data=array", "model=mlp", "model.width=8", "model.depth=1",
         "batch_size=32", "trainer.warmup=0", "trainer.ema_decay=0", "optimizer.lr=0.1"]  # fmt: skip
STEPS = "trainer.steps=4"
DROP = ["conditional=true", "loss.condition_dropout=0.2", "loss.image_dropout=0.2", "loss.sequence_dropout=0.2"]
FEW = ["num_samples=4", "solver.steps=2", "likelihood=none", "out=o"]
WORDS = ["zero", "one", "two"]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """x given everything at once, which one run can do without; x given an image and tokens, which another cannot."""
    folder, rng = tmp_path_factory.mktemp("work"), np.random.default_rng(0)
    with inside(folder):
        x, y = rng.standard_normal((60, 1, 2, 2)).astype("f4"), np.arange(60) % 3
        image = 100 + 7 * rng.standard_normal((60, 2, 4, 4))
        arrays = {"x": x, "y": y, "condition": rng.uniform(1, 2, (60, 2)), "image": image}
        np.savez("all.npz", **arrays, sequence=np.array([WORDS[k] for k in y]))
        np.savez("two.npz", x=x, image=np.uint8(image), sequence=np.array([[k, 2, -1] for k in y]))
        command(train_main, *SHORT, *DROP, STEPS, "data.path=all.npz", "run=runs/all")
        command(train_main, *SHORT, STEPS, "data.path=two.npz", "run=runs/two")
    return folder


@pytest.fixture
def here(runs: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(runs)
    return runs


def drawn(*options: str) -> Any:
    command(sample_main, *FEW, *options)
    return np.load("o/samples.npz")


def test_a_run_knows_its_conditions_and_goes_on_with_them(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = load_trained("runs/all")
    model, train = run.config["model"], run.data().train
    assert train.image is not None and train.image.dtype == torch.float32
    assert model["image"].items() >= {"channels": 2, "optional": True}.items()
    np.testing.assert_allclose(model["image"]["mean"], train.image.mean((0, 2, 3)), rtol=1e-4)
    np.testing.assert_allclose(model["image"]["std"], train.image.movedim(1, 0).flatten(1).std(1), rtol=1e-2)
    assert model["sequence"] == {"vocabulary": 7, "optional": True}  # e n o r t w z
    assert run.conditions == run.optional == ("label", "condition", "image", "sequence")
    assert load_trained("runs/two").optional == ()
    capsys.readouterr()
    command(train_main, *SHORT, *DROP, "trainer.steps=5", "data.path=all.npz", "run=runs/all")
    assert "goes on to 5 steps" in capsys.readouterr().out
    plain = yaml.safe_load(Path("runs/two/config.yaml").read_text())["model"]
    assert plain["sequence"] == {"vocabulary": 3, "optional": False} and plain["condition_dim"] is None


def test_samples_have_the_conditions_of_the_test_split_or_those_asked_for(here: Path) -> None:
    trained = load_trained("runs/all")
    test, found = trained.data().test, drawn("run=runs/all")
    for key, value in {"y": test.label, **test.given}.items():
        assert value is not None
        np.testing.assert_array_equal(found[key], value[:4])
    assert Path("o/conditions.png").is_file()
    np.savez("wanted.npz", image=found["image"][:2], condition=found["condition"][:2])
    wanted = [f"{key}.path=wanted.npz" for key in ("image", "condition")]
    asked = drawn("run=runs/all", "label=1", *wanted, "sequence=[two,zero]")
    assert asked["y"].tolist() == [1] * 4
    np.testing.assert_array_equal(asked["image"], found["image"][[0, 1, 0, 1]])
    letters = trained.names.letters
    assert letters is not None
    assert ["".join(letters[k] for k in row if k >= 0) for row in asked["sequence"]] == ["two", "zero"] * 2
    run = load_run("runs/all")
    again = run.sample(
        4, label=1, condition=found["condition"][:2], image=found["image"][:2], sequence=["two", "zero"],
        solver=solver_of(2),
    )  # fmt: skip
    np.testing.assert_array_equal(again, asked["x"])  # and each of them changes the samples:
    given = {"label": 1, "condition": found["condition"][0], "image": found["image"][0], "sequence": "two"}
    for change in ({"label": 2}, {"sequence": "one"}, {"image": "none"}, {"condition": "none"}):
        assert (run.sample(1, **{**given, **change}, solver=solver_of(2)) != asked["x"][:1]).any(), change


def solver_of(steps: int) -> Any:
    from scoresde.commands.build import build
    from scoresde.commands.packaged import packaged

    return build(packaged("solver", "exponential_adams") | {"steps": steps}, "solver")


def test_guidance_drops_all_conditions(here: Path) -> None:
    run = load_trained("runs/all")
    test, x, t = run.data().test, torch.ones(3, 1, 2, 2), torch.tensor(0.5)
    cond = {key: value[:3] for key, value in test.given.items()}
    assert test.label is not None
    one, free = run.denoiser(x, t, label=test.label[:3], **cond), run.denoiser(x, t)
    assert (one - free).abs().max() > 1e-3
    for scale, expected in ((0.0, free), (1.0, one), (3.0, free + 3 * (one - free))):
        guided = ClassifierFreeGuidance(scale=scale)(run)(test.label[:3]).given(**cond)
        torch.testing.assert_close(guided(x, t), expected)
    drawn("run=runs/all", "guidance=cfg")
    with pytest.raises(SystemExit, match="guidance=cfg needs .*, image_dropout or sequence_dropout"):
        drawn("run=runs/two", "guidance=cfg")


def test_a_density_is_given_all_conditions(here: Path) -> None:
    with np.load("two.npz") as stored:
        arrays = {key: stored[key][:3] for key in stored}
    np.savez("three.npz", **arrays)
    np.savez("bare.npz", x=arrays["x"], image=arrays["image"])
    score = ["run=runs/two", "num_samples=0", "likelihood=elbo", "likelihood.resume=false", "data=array"]
    found = []
    for words in (["data.path=three.npz"], ["data.path=bare.npz", "sequence=[[0,2],[1,2],[2,2]]"]):
        command(sample_main, *FEW[2:], *score, *words)
        rows = Path("o/likelihood.csv").read_text().splitlines()[1:]
        found.append([float(row.split(",")[1]) for row in rows])
    assert found[0] == found[1]
    run, given = load_run("runs/two"), {key: arrays[key] for key in ("image", "sequence")}
    np.testing.assert_allclose(run.log_prob(arrays["x"], **given, likelihood="elbo"), found[0], rtol=1e-6)
    moved = run.log_prob(arrays["x"], **{**given, "sequence": [2, 2]}, likelihood="elbo")
    assert (moved != found[0]).any()
    for x, image, sequence, words in (
        (arrays["x"], None, [1], "have no image, but the density of runs/two is that of x given an image"),
        (arrays["x"], arrays["image"], [[1], [2]], "sequence has 2 rows for 3"),
        (
            arrays["x"],
            arrays["image"][:, :1],
            [1],
            r"shape \(1, 4, 4\), but runs/two was .* 2 channels",
        ),
    ):
        with pytest.raises(ConfigError, match=words):
            run.log_prob(x, image=image, sequence=sequence, likelihood="elbo")


@pytest.mark.parametrize(
    ("run", "option", "words"),
    [
        ("two", {"image": "none"}, "image=none needs a model that was trained without its image .* loss.image_dropout"),
        ("two", {"image": {"path": "gone.npy"}}, "image.path needs a file, and gone.npy does not exist"),
        ("two", {"image": {"file": "a.npy"}}, "image needs image.path=FILE, got the keys file"),
        ("two", {"image": 3}, "image needs image.path=FILE, .* got 3"),
        ("two", {"image": {"path": "grey.png"}}, "grey.png has pictures, and runs/two .* 2 channels: give a .npy"),
        ("two", {"image": {"path": "flat.npy"}}, r"one image per example: .* got \(5,\)"),
        ("two", {"image": {"path": "one.npy"}}, r"images of shape \(1, 4, 4\), but .* images of 2 channels on 2 axes"),
        ("two", {"sequence": [1, 7]}, "needs whole numbers in 0..2, those of runs/two, got values from 1 to 7"),
        ("two", {"sequence": "two"}, r"sequence needs sequence=\[3,1,2\], a list of such rows"),
        ("two", {"sequence": [0.5, 1]}, "runs/two was trained with tokens that are whole numbers"),
        ("two", {"sequence": []}, "sequence needs"),
        ("two", {"label": 1}, "label=1 needs a model of classes"),
        ("two", {"condition": 1}, "condition=... needs a model with a condition"),
        ("all", {"sequence": "five"}, "the letter 'f' in 'five', which the training .* have not: there is enortwz"),
        ("all", {"label": 3}, "label needs whole numbers in 0..2"),
    ],
)  # fmt: skip
def test_what_is_no_condition_is_said_in_one_sentence(here: Path, run: str, option: Any, words: str) -> None:
    Image.fromarray(np.zeros((4, 4), np.uint8)).save("grey.png")
    np.save("flat.npy", np.zeros(5))
    np.save("one.npy", np.zeros((3, 1, 4, 4)))
    with pytest.raises(ConfigError, match=words) as error:
        choose_conditions({"label": None, "num_samples": 4, **option}, load_trained(f"runs/{run}"), NoGuidance())
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("arrays", "options", "words"),
    [
        ({"image": np.zeros((9, 1, 4, 4))}, {}, r"one image per example: 20 of shape \(channels, height, width\), got"),
        ({"image": np.full((20, 1, 4, 4), np.nan)}, {}, r"20 of 20 images hold NaN or infinity \(first at index 0\)"),
        ({"image": np.array(["a"] * 20)}, {}, "real numbers in image, got <U1"),
        ({"x": np.zeros((20, 3)), "image": np.zeros((20, 1, 4, 4))}, {}, "on a grid .* call the images condition"),
        ({"sequence": np.full((20, 3), -1)}, {}, "20 of 20 sequences have no token .* a token of its own"),
        ({"sequence": np.full((20, 3), -2)}, {}, "tokens that are whole numbers from 0, with -1 for padding"),
        ({"sequence": np.zeros((7, 3), int)}, {}, "one sequence per example: 20"),
        ({"sequence": np.array(["ab"] * 19 + [""])}, {}, r"1 of 20 sequences have no token \(first at index 19\)"),
        ({"sequence": np.full((20, 3, 2), np.inf)}, {}, "20 of 20 sequences hold infinity"),
        ({"sequence": np.ones((20, 3), int)}, {"vocabulary": 1}, "whole numbers in 0..0 in sequence"),
        ({"image": np.full((20, 1, 2, 2), 5)}, {"image_categories": 5}, "whole numbers in 0..4 in image"),
        ({}, {"vocabulary": 4}, "no use for data.vocabulary=4: it holds no sequence of whole numbers"),
    ],
)  # fmt: skip
def test_arrays_that_are_no_conditions_are_named(
    tmp_path: Path, arrays: dict[str, Any], options: dict[str, Any], words: str
) -> None:
    np.savez(tmp_path / "mine.npz", **{"x": np.random.default_rng(0).standard_normal((20, 1, 4, 4)), **arrays})
    with pytest.raises(ValueError, match=words):
        array(tmp_path / "mine.npz", **options)


@pytest.mark.parametrize(
    ("key", "loss", "model", "words"),
    [
        ("none", {"image_dropout": 0.1}, {}, "loss.image_dropout=0.1 has nothing to drop: data=mine has no images"),
        ("none", {}, {"sequence": {"vocabulary": 3}}, "model.sequence is of data with sequence, and .* none"),
        (
            "image", {"joint_dropout": 0.1}, {"image": {"optional": False}},
            "loss.joint_dropout=0.1 needs a network that can do without its image: model.image.optional=true",
        ),
        ("image", {}, {"image": 3}, "model.image needs keys with values, or null, got 3"),
    ],
)  # fmt: skip
def test_options_of_conditions_have_to_suit_the_data(
    tmp_path: Path, key: str, loss: dict[str, Any], model: dict[str, Any], words: str
) -> None:
    rng = np.random.default_rng(0)
    np.savez(tmp_path / "mine.npz", x=rng.standard_normal((20, 1, 4, 4)), **{key: rng.standard_normal((20, 1, 2, 2))})
    data = array(tmp_path / "mine.npz")
    with pytest.raises(ConfigError, match=words):
        fill(
            {"model": {"_target_": "scoresde.MLP", "image": None, "sequence": None, **model}, "loss": loss,
             "parameterization": {}}, data, labelled=False,
        )  # fmt: skip


def test_arrays_and_dropouts_that_are_probably_not_meant_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    x, image = np.random.default_rng(0).standard_normal((2, 20, 1, 4, 4))
    np.savez("mine.npz", x=x, images=image)
    with pytest.warns(UserWarning, match="mine.npz holds images, which is not read: call it image if"):
        array("mine.npz")
    np.savez("mine.npz", x=x, image=image, sequence=np.ones((20, 2), int))
    loss, data = {"image_dropout": 0.1, "sequence_dropout": 0.1}, array("mine.npz")
    said = "image and sequence are dropped independently, together in 1 % of the examples"
    assert next(rarely_without_all(loss, data, labelled=False)).startswith(said)
    assert not [*rarely_without_all({**loss, "joint_dropout": 0.1}, data, labelled=False)]
