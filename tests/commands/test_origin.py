"""A run knows itself: its configuration, its data, its codec, wherever they lie, and how far it goes."""

import csv
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from command_line import command, inside
from hydra._internal.hydra import Hydra
from hydra.types import RunMode

import scoresde
from scoresde.cli import sample_main, train_main
from scoresde.commands.identity import differences
from scoresde.commands.load import load_run
from scoresde.commands.variance import moments_of
from scoresde.training import RunDirectory, load_checkpoint, save_checkpoint

SAVED = Path(__file__).parents[1] / "data/runs"
MLP = ["logger=csv", "trainer.progress=false", "experiment=array", "batch_size=32", "model.width=8", "model.depth=1"]
SHORT = [*MLP, "trainer.steps=4", "trainer.snapshot_every=2", "trainer.log_every=1", "trainer.decay=constant"]


def points(seed: int = 0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {"x": rng.standard_normal((100, 2)).astype("f4"), "y": rng.integers(3, size=100)}


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three runs: a and b of one file with other seeds, c like a on other data."""
    folder = tmp_path_factory.mktemp("work")
    with inside(folder):
        Path("runs").mkdir()
        np.savez("runs/x.npz", **points())
        np.savez("runs/z.npz", **points(1))
        for name, more in (("a", []), ("b", ["seed=1"]), ("c", ["data.path=runs/z.npz"])):
            command(train_main, *SHORT, "data.path=runs/x.npz", *more, f"run=runs/{name}")
    return folder


@pytest.fixture(autouse=True)
def composed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Hydra composes all twice to find out in which mode it runs."""
    monkeypatch.setattr(Hydra, "get_mode", lambda *_, **__: RunMode.RUN)


@pytest.fixture
def here(work: Path) -> Path:
    """The runs as the current folder; the data of their configurations are those of the copy."""
    for config in Path("runs").glob("*/config.yaml"):
        text = yaml.safe_load(config.read_text())
        text["data"]["path"] = str(work / "runs" / Path(text["data"]["path"]).name)
        config.write_text(yaml.safe_dump(text, sort_keys=False))
    return work


def cut(run: str, step: int = 2) -> Path:
    """The run as it was when it had been stopped at a step."""
    checkpoints = Path(run) / "checkpoints"
    (checkpoints / "last.pt").unlink()
    for path in checkpoints.glob("*.pt"):
        if path.name == f"step_{step:08d}.pt":
            shutil.copy(path, checkpoints / "last.pt")
        else:
            path.unlink()
    return Path(run)


def sentence(main: Any, *arguments: str) -> str:
    with pytest.raises(SystemExit) as stopped:
        command(main, *arguments)
    assert isinstance(stopped.value.code, str) and "\n" not in stopped.value.code
    return stopped.value.code


def weights(run: str) -> torch.Tensor:
    return torch.cat([value.flatten() for value in load_checkpoint(f"{run}/checkpoints/last.pt")["model"].values()])


CHANGES: dict[str, tuple[Callable[[dict[str, np.ndarray]], dict[str, Any]], str]] = {
    "units": (lambda d: {**d, "x": 10 * d["x"] + 50}, r"90 training examples of mean 50\.1 and std .*, where there"),
    "count": (lambda d: {k: v[:80] for k, v in d.items()}, r"72 training examples .*, where there were 90 of mean"),
    "order": (lambda d: {k: v[::-1] for k, v in d.items()}, "training examples of (the same count|mean)|90 training"),
    "labels": (lambda d: {**d, "y": (d["y"] + 1) % 3}, "same count, mean and std as before, but other values, labels"),
    "shape": (lambda d: {**d, "x": np.repeat(d["x"], 2, 1)}, r"events of shape \(4,\), where .* of shape \(2,\)"),
}


@pytest.mark.parametrize("kind", CHANGES)
def test_data_that_changed_are_refused_on_resuming_and_in_evaluation(here: Path, kind: str) -> None:
    change, words = CHANGES[kind]
    np.savez("runs/x.npz", **change(points()))
    same = [*SHORT, "data.path=runs/x.npz", f"run={cut('runs/a')}"]
    before = (here / "runs/a/config.yaml").read_text()
    said = sentence(train_main, *same)
    assert "the data differ from those that runs/a" in said and "name another run directory with run=..." in said
    assert re.search(words, said), said
    assert (here / "runs/a/config.yaml").read_text() == before
    if kind != "shape":
        assert "the data differ" in sentence(sample_main, "run=runs/a", "num_samples=0", "likelihood=hutchinson")
    command(sample_main, "run=runs/a", "num_samples=2", "solver.steps=2")  # which needs no data


def test_another_runs_checkpoint_is_refused(here: Path) -> None:
    shutil.copy("runs/b/checkpoints/last.pt", "runs/a/checkpoints/last.pt")
    words = "runs/a/checkpoints/last.pt was trained with another configuration than this run has: seed is 1 there and 0"
    assert words in sentence(train_main, *SHORT, "data.path=runs/x.npz", "run=runs/a")
    assert words in sentence(sample_main, "run=runs/a")
    shutil.copy("runs/b/checkpoints/last.pt", "runs/a/checkpoints/step_00000002.pt")
    assert "seed is 1 there" in sentence(sample_main, "run=runs/a/checkpoints/step_00000002.pt")
    shutil.copy("runs/c/checkpoints/last.pt", "runs/a/checkpoints/last.pt")
    assert "the data differ" in sentence(train_main, *SHORT, "data.path=runs/x.npz", "run=runs/a")
    assert "codec.pt and runs/a/checkpoints/last.pt are not of one run" in sentence(sample_main, "run=runs/a")


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("beta_max: 20.0", "beta_max: 10.0", "sde.beta_max is 20.0 there and 10.0 here"),
        ("seed: 0", "seed: 0\nmore: 1", "more is absent there and 1 here"),
        ("levels: null", "lewels: null", "data.lewels is absent there and null here"),
        ("scoresde.VPSDE", "scoresde.SubVPSDE", "sde._target_ is scoresde.VPSDE there and scoresde.SubVPSDE here"),
        ("accumulate: 1", "accumulate: 2", "trainer.accumulate is 1 there and 2 here"),
    ],
)
def test_a_configuration_that_was_edited_is_refused_by_name(here: Path, old: str, new: str, words: str) -> None:
    path = Path("runs/a/config.yaml")
    assert old in path.read_text()
    path.write_text(path.read_text().replace(old, new, 1))
    with pytest.raises(scoresde.training.CheckpointError, match="One of the two was changed") as refused:
        load_run("runs/a")
    assert words in str(refused.value)


@pytest.mark.parametrize(
    ("old", "new"),
    [("seed: 0", "seed: 0   # mine\n"), ("path: ", "path: /elsewhere"), ("log_every: 1", "log_every: 7")],
)
def test_edits_that_mean_the_same_are_not(here: Path, old: str, new: str) -> None:
    path = Path("runs/a/config.yaml")
    path.write_text(path.read_text().replace(old, new, 1))
    assert load_run("runs/a").step == 4


def test_a_damaged_codec_is_replaced_by_that_of_the_checkpoint(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = Path("runs/a/codec.pt")
    whole, codec = path.read_bytes(), load_run("runs/a").codec
    for damage in (whole[:50], b"", whole[:80] + b"\0" * 8 + whole[88:], whole + b"x"):
        path.write_bytes(damage)
        capsys.readouterr()
        assert torch.equal(load_run("runs/a").codec.mean, codec.mean)
        assert "codec.pt is missing or damaged: the codec is that of" in capsys.readouterr().out
    command(train_main, *SHORT, "data.path=runs/x.npz", "run=runs/a")
    assert "codec.pt was damaged or is of another run: it is written again" in capsys.readouterr().out
    path.unlink()
    command(train_main, *SHORT, "data.path=runs/x.npz", "run=runs/a")
    assert "codec.pt is missing: it is written again" in capsys.readouterr().out
    shutil.copy("runs/c/codec.pt", path)
    assert "are not of one run" in sentence(sample_main, "run=runs/a")
    command(train_main, *SHORT, "data.path=runs/x.npz", "run=runs/a")
    assert load_checkpoint(path)["data"] == load_checkpoint("runs/b/codec.pt")["data"]


def test_where_the_data_lie_is_not_part_of_a_run(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cut("runs/a").rename("elsewhere")
    Path("runs/x.npz").rename("moved.npz")
    command(sample_main, "run=elsewhere", "num_samples=2", "solver.steps=2")
    evaluate = [
        "run=elsewhere",
        "num_samples=0",
        "likelihood=hutchinson",
        "likelihood.rtol=1e-2",
        "likelihood.atol=1e-2",
    ]
    said = sentence(sample_main, *evaluate)
    assert "runs/x.npz does not exist: give their new place with data=own data.path=..." in said
    command(sample_main, *evaluate, "data=own", "data.path=moved.npz")
    assert len(Path("elsewhere/samples/likelihood.csv").read_text().splitlines()) == 1 + 10
    assert "the data differ" in sentence(sample_main, *evaluate, "data=own", "data.path=runs/z.npz")
    assert "data=own needs data.path" in sentence(sample_main, *evaluate, "data=own")

    command(train_main, *SHORT, "data.path=moved.npz", "run=elsewhere")
    assert "going on from step 2 of 4" in capsys.readouterr().out
    assert torch.equal(weights("elsewhere"), weights_of_whole(here))
    assert yaml.safe_load(Path("elsewhere/config.yaml").read_text())["data"]["path"] == str(here / "moved.npz")
    command(sample_main, *evaluate)


def weights_of_whole(here: Path) -> torch.Tensor:
    """Those of a run like a, trained without a stop."""
    command(train_main, *SHORT, "data.path=moved.npz", "run=whole")
    return weights("whole")


LONGER = ["trainer.steps=6", "trainer.log_every=4", "trainer.snapshot_every=null"]


def test_a_finished_run_goes_on_to_more_steps_as_if_it_had_never_ended(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    same = [*SHORT, "data.path=runs/x.npz"]
    command(train_main, *same, *LONGER, "run=straight")
    command(train_main, *same, *LONGER, "run=runs/a")
    said = capsys.readouterr().out
    assert "runs/a was set up for 4 steps and goes on to 6 steps: its learning rate does not depend on that" in said
    assert torch.equal(weights("runs/a"), weights("straight"))
    assert yaml.safe_load(Path("runs/a/config.yaml").read_text()) == yaml.safe_load(
        Path("straight/config.yaml").read_text()
    )
    command(train_main, *same, "run=runs/a")  # the command of before
    assert "already trained to step 6 of 4: nothing left to do" in capsys.readouterr().out
    assert yaml.safe_load(Path("runs/a/config.yaml").read_text())["trainer"]["steps"] == 6
    assert load_run("runs/a").step == 6


def test_a_row_of_metrics_is_the_mean_since_the_row_before_whatever_the_period_was(here: Path) -> None:
    same = [*SHORT, "data.path=runs/x.npz", "trainer.steps=6"]
    command(train_main, *same, "trainer.log_every=1", "run=each")
    command(train_main, *same, "trainer.steps=3", "trainer.log_every=5", "run=rare")
    command(train_main, *same, "trainer.log_every=5", "run=rare")
    each, rare = (
        {
            int(row["step"]): float(row["loss"])
            for row in csv.DictReader(Path(name, "metrics.csv").read_text().split("\n"))
        }
        for name in ("each", "rare")
    )
    assert list(rare) == [3, 5, 6]
    assert rare[5] == pytest.approx((each[4] + each[5]) / 2, rel=1e-5)


def test_a_decay_goes_on_as_that_of_the_new_length(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    same = [*SHORT, "data.path=runs/x.npz", "trainer.decay=cosine", "trainer.warmup=2", "run=cosine"]
    command(train_main, *same)
    command(train_main, *same, "trainer.steps=8")
    said = capsys.readouterr().out
    assert (
        "set up for 4 steps and goes on to 8 steps: from here its learning rate is that of a cosine decay over 8"
        in said
    )
    assert "0.75 of the full one at step 4" in said  # (1 + cos(π 2/6)) / 2
    rates = [float(row["lr"]) for row in csv.DictReader(Path("cosine/metrics.csv").read_text().split("\n"))]
    assert rates[4] == pytest.approx(0.75 * 1e-3)


def test_without_a_name_the_same_command_finds_its_run_and_another_one_says_what_is_beside_it(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    same = [*SHORT, "data.path=runs/x.npz"]

    def trained(*more: str) -> str:
        command(train_main, *same, *more)
        return capsys.readouterr().out

    assert "is a new run" not in trained("trainer.steps=2")
    (only,) = Path("runs").glob("array-vpsde-mlp-????????")
    assert "goes on to 3" in trained("trainer.steps=3", "trainer.log_every=2", "trainer.checkpoint_every=1")
    shutil.copy("runs/x.npz", "same.npz")
    assert "goes on to 4" in trained("data.path=same.npz")
    assert [only] == list(Path("runs").glob("array-vpsde-mlp-????????"))

    said = trained("optimizer.lr=0.5", "seed=2")
    assert (
        f"is a new run and starts at step 0. The nearest one beside it is {only}: seed is 0 there and 2 here and 1 more"
        in said
    )
    assert f"add init={only}" in said
    said = trained("data.path=runs/z.npz")
    assert f"beside it is {only}: the data differ, now there are 90 training examples of mean" in said


def test_a_run_that_an_earlier_version_named_is_found_by_any_length(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, steps in (("a", 4), ("b", 5)):
        shutil.rmtree(f"runs/{name}") if name == "b" else None
        shutil.copytree("runs/a", old := Path(f"runs/array-vpsde-mlp-0000000{steps}"))
        config = yaml.safe_load((old / "config.yaml").read_text())
        config["trainer"]["steps"] = steps
        (old / "config.yaml").write_text(yaml.safe_dump(config))  # another order of keys
        save_checkpoint(old / "codec.pt", {k: v for k, v in load_checkpoint(old / "codec.pt").items() if k != "data"})
        without = {k: v for k, v in load_checkpoint(old / "checkpoints/last.pt").items() if k != "origin"}
        save_checkpoint(old / "checkpoints/last.pt", without)
    command(train_main, *SHORT, "data.path=runs/x.npz")
    assert "array-vpsde-mlp-00000004" in capsys.readouterr().out
    command(train_main, *SHORT, "data.path=runs/x.npz", "trainer.steps=5")
    assert "runs/array-vpsde-mlp-00000005: 478 parameters" in capsys.readouterr().out
    assert (
        load_checkpoint("runs/array-vpsde-mlp-00000005/checkpoints/last.pt")["origin"]["data"]["train"]["count"] == 90
    )


def test_training_starts_from_the_weights_of_another_run(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    new = [*SHORT, "data.path=runs/z.npz", "init=runs/a", "optimizer.lr=1e-12", "trainer.ema_decay=0", "run=warm"]
    command(train_main, *new)
    assert "warm starts from the averaged weights of" in capsys.readouterr().out
    averaged, warm = load_run("runs/a"), load_run("warm")
    for name, value in averaged.model.state_dict().items():
        torch.testing.assert_close(warm.model.state_dict()[name], value, rtol=0, atol=1e-6)
    assert warm.step == 4 and warm.config["init"]["path"] == str(here / "runs/a")

    cut("warm")
    Path("runs/a").rename("runs/gone")
    command(train_main, *new)
    assert "going on from step 2 of 4" in capsys.readouterr().out
    assert "init=runs/a needs a run directory or a checkpoint" in sentence(train_main, *new[:-1], "run=other")
    Path("runs/b").rename("runs/a")  # other weights at the same place
    assert "init.weights is" in sentence(train_main, *new)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["init=runs/a", "model.width=16"], r"init=runs/a cannot be .* 'net.*' is \(4,\) there and \(8,\) here"),
        (["init=5"], "init(=| needs ).*5"),
        (["init=runs/x.npz"], "init=runs/x.npz cannot be started from"),
        (["init=runs"], "is not a run directory: it has no config.yaml"),
    ],
)
def test_weights_that_cannot_be_started_from_are_refused(here: Path, options: list[str], words: str) -> None:
    assert re.search(words, sentence(train_main, *SHORT, "data.path=runs/x.npz", "run=new", *options))
    assert not Path("new").exists()


def test_a_run_of_an_earlier_version_is_taken_up_and_knows_itself_then(here: Path) -> None:
    shutil.copytree(SAVED / "digits", "runs/digits")
    command(
        train_main, "logger=csv", "trainer.sample_every=null", "trainer.warmup=0", "seed=3", "optimizer.lr=0.01",
        "run=runs/digits", "conditional=true", "model.width=4", "model.num_res_blocks=1", "model.channel_mults=[1]",
        "trainer.steps=6",
    )  # fmt: skip
    state = load_checkpoint(RunDirectory("runs/digits").last)
    assert state["step"] == 6 and state["origin"]["data"]["train"]["count"] == 897
    assert load_checkpoint("runs/digits/codec.pt")["data"] == state["origin"]["data"]
    assert load_run("runs/digits").step == 6


def test_what_is_trained_for_a_run_knows_itself_too(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    head = ["experiment=digits_npr", "logger=csv", "trainer.progress=false", "trainer.decay=constant", "batch_size=16",
            "model=mlp", "model.width=8", "model.depth=1", "trainer.log_every=1"]  # fmt: skip
    draw = ["num_samples=2", "solver=ddpm", "solver.steps=2", "solver.variance=optimal", "variance=npr"]
    for name in ("a", "b"):
        command(train_main, *head, f"of=runs/{name}", "trainer.steps=2")
    command(train_main, *head, "of=runs/a", "trainer.steps=3")
    assert "variance_npr was set up for 2 steps and goes on to 3" in capsys.readouterr().out
    command(sample_main, "run=runs/a", *draw)
    shutil.copy("runs/b/variance_npr/checkpoints/last.pt", "runs/a/variance_npr/checkpoints/last.pt")
    assert "was trained for other weights than those of this run" in sentence(sample_main, "run=runs/a", *draw)
    shutil.rmtree("runs/a/variance_npr")
    shutil.copytree("runs/b/variance_npr", "runs/a/variance_npr")  # all of it is of another run
    assert "was trained for other weights than those of this run" in sentence(sample_main, "run=runs/a", *draw)


def test_a_table_of_the_variance_is_that_of_the_runs_weights(here: Path) -> None:
    first, other = load_run("runs/a"), load_run("runs/b")
    made = {name: moments_of(run, samples=9, levels=5).state() for name, run in (("a", first), ("b", other))}
    shutil.copy("runs/b/variance.pt", "runs/a/variance.pt")
    again = moments_of(first, samples=9, levels=5).state()
    assert torch.equal(again["value"], made["a"]["value"]) and not torch.equal(again["value"], made["b"]["value"])


def test_rows_of_metrics_that_were_lost_are_missed(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, same = Path("runs/a/metrics.csv"), [*SHORT, "data.path=runs/x.npz", "run=runs/a"]
    lines = path.read_text().splitlines(keepends=True)
    for content, words in (
        (lines[:3], "has no rows from step 3 to 4"),
        ([*lines[:4], "9" + lines[4][1:]], "has no rows from step 4 to 4"),
        ([*lines[:3], "1" + lines[3][1:], lines[4]], "has been changed by another program"),
    ):
        shutil.rmtree("runs/a")
        shutil.copytree("runs/b", "runs/a")
        command(train_main, *same, "seed=1")
        assert "metrics.csv" not in capsys.readouterr().out
        path.write_text("".join(content))
        command(train_main, *same, "seed=1", "trainer.steps=5")
        assert words in capsys.readouterr().out
    path.unlink()
    command(train_main, *same, "seed=1", "trainer.steps=6")
    assert "has no rows from step 1 to 5" in capsys.readouterr().out


def test_an_option_that_an_earlier_version_did_not_have_is_at_its_default() -> None:
    old: dict[str, Any] = {"loss": {"_target_": "scoresde.DenoisingLoss", "reduction": "mean"}}
    new: dict[str, Any] = {
        "loss": {**old["loss"], "_target_": "scoresde.losses.DenoisingLoss", "condition_dropout": 0.0}
    }
    assert not list(differences(old, new)) and not list(differences(new, old))
    new["loss"]["condition_dropout"] = 0.1
    assert [str(found) for found in differences(old, new)] == ["loss.condition_dropout is absent there and 0.1 here"]
