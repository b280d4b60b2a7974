"""A run from elsewhere: its configuration names little, is of bounded size, and nothing in it acts."""

from __future__ import annotations

import os
import shutil
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

import scoresde
from scoresde.commands import allowed
from scoresde.commands.build import ConfigError
from scoresde.commands.identity import differences
from scoresde.commands.load import load_run, newest_run
from scoresde.commands.plain_yaml import plain_yaml
from scoresde.commands.saved_config import read_config
from scoresde.denoiser import Denoiser
from scoresde.losses import Loss
from scoresde.models import MLP
from scoresde.parameterization import Parameterization
from scoresde.sde import SDE
from scoresde.training import CheckpointError, RunDirectory, load_checkpoint, save_checkpoint

SAVED = Path(__file__).parent.parent / "data" / "runs"
CONF = Path(__file__).parent.parent.parent / "conf"
ACTING = (
    "scoresde.load", "scoresde.commands.load.load_run", "scoresde.commands.load.newest_run",
    "scoresde.training.save_checkpoint", "scoresde.training.checkpoint.load_checkpoint",
    "scoresde.files.write_atomically", "scoresde.commands.train.train", "scoresde.commands.sample.sample",
    "scoresde.commands.build.build", "scoresde.interop.load_score_sde", "scoresde.training.RunDirectory",
    "scoresde.training.WandbLogger", "scoresde.commands.tables.GrowingTable", "scoresde.data.arrays.read_arrays",
    "scoresde.data.arrays.np.load", "scoresde.fitting.Calibration.load", "scoresde.solvers.CalibratedMultistep",
    "scoresde.commands.Autoguidance", "scoresde.commands.LikelihoodReport", "scoresde.log_prob", "scoresde.__version__",
    "scoresde._import_module", "scoresde.VPSDE.__class__", "torch.load", "torch.hub.load", "torch.optim.os.system",
    "torch.optim.lr_scheduler.LambdaLR", "os.system", "subprocess.Popen", "builtins.eval", "pathlib.Path.touch",
    "importlib.import_module", "", ".", "scoresde", "scoresde.", 3, None, ["os.system"], {"a": "b"},
)  # fmt: skip
PLACES = (
    ("task",), ("sde",), ("parameterization",), ("model",), ("loss",), ("data",), ("optimizer",), ("trainer",),
    ("loss", "weighting"), ("loss", "time"), ("sde", "betas"), ("model", "fourier_features"), ("data", "path"),
    ("extra",), ("head", "net"),
)  # fmt: skip


@pytest.fixture
def run(tmp_path: Path) -> Path:
    shutil.copytree(SAVED / "digits", tmp_path / "run")
    return tmp_path / "run"


def rewrite(run: Path, *keys: str, value: Any) -> None:
    """Put a value into the configuration of a run."""
    node = config = plain_yaml((run / "config.yaml").read_text())
    for key in keys[:-1]:
        node = node.setdefault(key, {})
    node[keys[-1]] = value
    (run / "config.yaml").write_text(yaml.dump(config, Dumper=getattr(yaml, "CSafeDumper", yaml.SafeDumper)))


@pytest.mark.parametrize("name", ACTING, ids=str)
def test_no_place_takes_a_name_that_acts(run: Path, name: Any) -> None:
    bad = {"_target_": name}
    for number, place in enumerate(PLACES):
        shutil.copy(SAVED / "digits" / "config.yaml", run)
        rewrite(run, *place, value=(bad, bad, [{**bad, "_partial_": True}], {"inner": bad})[number % 4])
        with pytest.raises(ConfigError, match="_target_|must be an? "):
            load_run(run)


def test_all_that_training_can_be_asked_for_may_be_loaded() -> None:
    unkept = ("own", "auto", "none", "inpaint", "super_resolution", "deblur", "colourisation", "imputation")
    for path in CONF.glob("*/*.yaml"):
        place, node = path.parent.name, yaml.safe_load(path.read_text())
        if place in (*allowed.PLACES, "optimizer") and "_target_" in node and path.stem not in unkept:
            allowed.check_saved({place: node}, [])


def test_nothing_public_of_these_kinds_is_forgotten() -> None:
    kinds = {"sde": (SDE, "sde"), "parameterization": (Parameterization, "parameterization"), "loss": (Loss, "losses")}
    for place, (kind, package) in kinds.items():
        module = getattr(scoresde, package, None) or sys.modules[f"scoresde.{package}"]
        classes = {name for name in module.__all__ if isinstance(value := getattr(module, name), type)
                   and issubclass(value, kind) and value is not kind}  # fmt: skip
        assert classes == set(allowed.PLACES[place][package].split())


def test_a_module_of_the_users_own_is_trusted_with_what_is_its_own(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "mine.py").write_text(
        "import os, subprocess\nfrom os import system\nfrom subprocess import Popen\nfrom scoresde import VPSDE, load\n"
        "class Mine(VPSDE): pass\n_hidden = Mine\nclass Other: pass\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    rewrite(run, "sde", value={"_target_": "mine.Mine"})
    assert type(scoresde.load(run, extensions=["mine"]).sde).__name__ == "Mine"
    with pytest.raises(ConfigError, match=r"sde._target_ names 'mine.Mine', .* extensions=\[mine\]"):
        scoresde.load(run)
    for name in ("os.system", "system", "Popen", "subprocess.Popen", "VPSDE", "load", "_hidden", "Other", "Mine.alpha"):
        rewrite(run, "sde", value={"_target_": f"mine.{name}"})
        with pytest.raises(ConfigError, match=r"_target_ names|must be an SDE"):
            scoresde.load(run, extensions=["mine"])
    rewrite(run, "sde", value={"_target_": "scoresde.load", "path": "x"})
    with pytest.raises(ConfigError, match="which a saved run may not have|may not call"):
        scoresde.load(run, extensions=["mine", "scoresde"])
    sys.modules.pop("mine", None)


def test_a_configuration_is_compared_without_importing_what_it_names(run: Path, tmp_path: Path) -> None:
    (tmp_path / "trap.py").write_text(f"open({str(tmp_path / 'sprung')!r}, 'w')")
    sys.path.insert(0, str(tmp_path))
    try:
        rewrite(run, "sde", value={"_target_": "trap.Trap"})
        config = yaml.safe_load((run / "config.yaml").read_text())
        theirs, ours = read_config(RunDirectory(run)), {**config, "sde": {"_target_": "scoresde.VPSDE"}}
        assert "sde._target_" in {difference.key for difference in differences(theirs, ours)}
        with pytest.raises(ConfigError):
            load_run(run)
    finally:
        sys.path.remove(str(tmp_path))
    assert not (tmp_path / "sprung").exists()


@pytest.mark.parametrize(
    ("keys", "value", "message"),
    [
        (("model", "width"), 2**30, "model.width=1073741824 is beyond 1048576"),
        (("model", "width"), 2**13, "describes a larger model than the checkpoint"),
        (("model", "num_res_blocks"), 2**20, "describes a larger model than the checkpoint"),
        (("model", "attention_resolutions"), [8] * 10, "the checkpoint is of another model"),
        (("model", "width"), -4, "model|width"),
        (("model", "width"), "wide", "model.width needs a whole number"),
        (("model", "_args_"), [1], "model._args_ is no argument that a saved run may give"),
        (("model", "_partial_"), "yes", "model._partial_ is no argument"),
        (("sde", "beta_min"), {"a": 1}, "beta_min"),
        (("sde",), {"_target_": "scoresde.DiscreteVPSDE",
                    "betas": {"_target_": "scoresde.linear_betas", "steps": 10**9}}, "steps=1000000000 is beyond"),
        (("task",), {"_target_": "scoresde.commands.TrainVarianceHead", "head": "npr"}, "makes no model of data"),
    ],
    ids=str,
)  # fmt: skip
def test_arguments_are_plain_and_small(run: Path, keys: tuple[str, ...], value: Any, message: str) -> None:
    rewrite(run, *keys, value=value)
    start = time.perf_counter()
    with pytest.raises((ValueError, CheckpointError), match=message):
        load_run(run)
    assert time.perf_counter() - start < 5


def test_an_auxiliary_run_is_trusted_no_more(tmp_path: Path) -> None:
    shutil.copytree(SAVED / "learned", tmp_path / "run")
    trained = load_run(tmp_path / "run")
    head = scoresde.commands.TrainVarianceHead(head="npr")
    head.load(trained)
    good = (tmp_path / "run" / "variance_npr" / "config.yaml").read_text()
    for name in ("scoresde.load", "os.system", "scoresde.data.array", "scoresde.commands.TrainDenoiser"):
        rewrite(tmp_path / "run" / "variance_npr", "head", "net", value={"_target_": name, "path": "x"})
        with pytest.raises(ConfigError, match="head.net._target_ names"):
            head.load(trained)
    (tmp_path / "run" / "variance_npr" / "config.yaml").write_text(good)
    values: tuple[Any, ...] = (
        None,
        [],
        {"net": 3},
        {"net": {"_target_": "scoresde.MLP", "shape": [2**19], "width": 64}},
    )
    for value in values:
        rewrite(tmp_path / "run" / "variance_npr", "head", value=value)
        with pytest.raises((ConfigError, CheckpointError), match="config.yaml|step None"):
            head.load(trained)


BOMBS = {
    "aliases": "a: &0 [x]\n" + "".join(f"b{i}: &{i} [{','.join([f'*{i - 1}'] * 9)}]\n" for i in range(1, 20)),
    "merges": "a: &0 {k: v}\n" + "".join(f"b{i}: &{i} {{<<: [{','.join([f'*{i - 1}'] * 9)}]}}\n" for i in range(1, 20)),
    "chain": "a0: &0 x\n" + "".join(f"a{i}: &{i} [*{i - 1}]\n" for i in range(1, 200)),
    "itself": "a: &a [*a]", "depth": "[" * 3000 + "]" * 3000, "open": "[" * 10**5,
    "blocks": "- " * 3000 + "x", "size": "a: " + "x" * 2**21,
    "values": "[" + "1," * 300_000 + "1]", "number": "a: " + "1" * 6000, "date": "a: 2001-01-01",
    "binary": "a: !!binary aGk=",
    "code": "a: !!python/object/apply:os.system [x]", "key": "1: 2", "set": "a: !!set {x}", "nothing": "a: *b",
}  # fmt: skip


@pytest.mark.parametrize("text", BOMBS.values(), ids=list(BOMBS))
def test_yaml_of_a_run_is_small_and_plain(run: Path, text: str) -> None:
    (run / "config.yaml").write_text(text)
    start = time.perf_counter()
    with pytest.raises(ConfigError, match=r"config.yaml (is not readable YAML|is larger|has |holds )"):
        load_run(run)
    assert time.perf_counter() - start < 3


def test_aliases_that_a_saved_configuration_has_are_read() -> None:
    ends = [-1.0, 1.0]
    config = {"loss": {"value_range": ends}, "model": {"value_range": ends}}
    assert "*id001" in yaml.safe_dump(config) and plain_yaml(yaml.safe_dump(config)) == config


def test_a_pipe_in_place_of_a_configuration_is_no_run(run: Path) -> None:
    (run / "config.yaml").unlink()
    os.mkfifo(run / "config.yaml")
    with pytest.raises(FileNotFoundError, match="has no config.yaml"):
        load_run(run)


def test_a_run_that_cannot_be_read_does_not_block_the_others(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for number, text in enumerate(("a: [", "loss: {_target_: os.system}", "\x00", "task: nothing")):
        shutil.copytree(run, run.parent / f"broken{number}")
        (run.parent / f"broken{number}" / "config.yaml").write_text(text)
        os.utime(run.parent / f"broken{number}" / "checkpoints" / "last.pt", (4e9, 4e9))
    assert newest_run(Denoiser, run.parent).path == run
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 4 and all("broken" in line and "is passed over: " in line for line in said)


@pytest.mark.parametrize(
    "changes",
    [{"shape": [1, 8, 9]}, {"shape": [10**9] * 3}, {"shape": "abc"}, {"shape": None}, {"shape": [1.0, 8, 8]},
     {"codec": None}, {"codec": {}}, {"codec": {"codec": "quantized", "levels": 1e9, "value_range": [0, 1]}},
     {"codec": {"codec": "standardized", "mean": torch.zeros(3), "std": torch.ones(3), "shape": [1, 8, 8]}}],
    ids=str,
)  # fmt: skip
def test_a_codec_of_another_model_is_refused(run: Path, changes: Mapping[str, Any]) -> None:
    save_checkpoint(run / "codec.pt", {**load_checkpoint(run / "codec.pt"), **changes})
    with pytest.raises(CheckpointError, match="codec|does not say what it was made from"):
        load_run(run)


def test_the_count_of_parameters_is_put_away_again() -> None:
    MLP(shape=(4000,), width=400)
