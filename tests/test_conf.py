"""Every configuration file composes, builds, and lists exactly the arguments of what it names."""

import importlib
import inspect
from collections.abc import Iterator
from functools import partial
from itertools import zip_longest
from pathlib import Path
from typing import Any

import pytest
import yaml
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from scoresde.cli import config_dir
from scoresde.commands import (
    DenoiserDiagnostics,
    Diagnostics,
    Guidance,
    InverseProblem,
    Likelihood,
    NoTask,
    SolverGrid,
    Task,
    Variance,
)
from scoresde.commands.build import ConfigError, build, build_as, find_target
from scoresde.commands.likelihood import SHARED, EvaluationOptions
from scoresde.data import Dataset
from scoresde.losses import Loss
from scoresde.parameterization import Parameterization
from scoresde.sde import SDE, BalancedGrid
from scoresde.solvers import Solver

ROOT = config_dir()
FILES = sorted(path for path in ROOT.rglob("*.yaml") if path.parent != ROOT)
EXPERIMENTS = sorted(path.stem for path in (ROOT / "experiment").glob("*.yaml"))
KINDS: dict[str, type] = {  # groups whose options are built without the run, or given it when they are called
    "sde": SDE, "solver": Solver, "parameterization": Parameterization, "loss": Loss, "guidance": Guidance,
    "variance": Variance, "grid": SolverGrid, "task": Task, "likelihood": Likelihood, "diagnostics": Diagnostics,
}  # fmt: skip
POSED = ("none", "inpaint", "imputation", "super_resolution", "deblur", "colourisation")  # tasks of sample.py
BUILT = set(KINDS) - {"loss", "likelihood"}  # losses need what the data decide, likelihoods have a test of their own
# arguments that the commands supply, or that only Python can
SUPPLIED = {
    "AdamW": {"params", "amsgrad", "maximize", "foreach", "capturable", "differentiable"},
    "Adam": {"params", "amsgrad", "maximize", "foreach", "capturable", "differentiable", "decoupled_weight_decay"},
    "Trainer": {"denoiser", "loss", "optimizer", "batch", "run", "logger", "preview", "seed", "device", "origin"},
    "er_sde_scale": {"ratio"},
    "CSVLogger": {"run"},
    "csv_and_wandb": {"run"},
}


def nodes(value: Any) -> Iterator[dict[str, Any]]:
    if isinstance(value, dict):
        if "_target_" in value:
            yield value
        for inner in value.values():
            yield from nodes(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from nodes(inner)


TARGETS = [
    (path.relative_to(ROOT).as_posix(), node)
    for path in FILES
    for node in nodes(yaml.safe_load(path.read_text()))
    if "defaults" not in node
]


def composed(name: str, *overrides: str) -> dict[str, Any]:
    with initialize_config_dir(str(ROOT), version_base="1.3"):
        config = OmegaConf.to_container(compose(name, list(overrides)), resolve=True)
    assert isinstance(config, dict)
    return config


@pytest.mark.parametrize(("where", "node"), TARGETS, ids=[f"{where}:{node['_target_']}" for where, node in TARGETS])
def test_file_lists_every_argument_and_no_other(where: str, node: dict[str, Any]) -> None:
    target = find_target(node["_target_"], where)
    signature = inspect.signature(target)
    positional = {"sde", "t", "u", "denoiser", "measurement"} if node.get("_partial_") else set()
    if node["_target_"].endswith("_grid"):
        positional = {"sde", "steps", "t_end"}
    outer = {"solver/pc.yaml": "predictor", "solver/reversible.yaml": "solver"}.get(where)
    inner = outer is not None and outer not in node  # the outer solver's loop is used
    inside = {"steps", "grid", "t_end", "denoise"} if inner else set()
    supplied = SUPPLIED.get(node["_target_"].rpartition(".")[2], set()) | positional | inside
    listed = set(node) - {"_target_", "_partial_"}

    assert listed == set(signature.parameters) - supplied
    for name in listed:
        default, value = signature.parameters[name].default, node[name]
        if isinstance(default, bool | str) and value is not None and where.split("/")[0] in ("sde", "data"):
            assert value == default, f"{name} differs from the constructor's default"


@pytest.mark.parametrize(("where", "node"), TARGETS, ids=[f"{where}:{node['_target_']}" for where, node in TARGETS])
def test_targets_are_public_names(where: str, node: dict[str, Any]) -> None:
    home, _, name = node["_target_"].rpartition(".")
    assert home == "torch.optim" or name in importlib.import_module(home).__all__


@pytest.mark.parametrize("path", [path for path in FILES if path.parent.name in BUILT], ids=str)
def test_option_builds_what_its_group_needs(path: Path) -> None:
    group = path.parent.name
    node = yaml.safe_load(path.read_text())
    if group == "task" and path.stem not in POSED:
        node = composed("train", f"task={path.stem}", "head=npr")["task"]
    built = build(node, group, **({"sigma_data": 0.5} if group == "parameterization" else {}))
    kind = (InverseProblem, NoTask) if group == "task" and path.stem in POSED else KINDS[group]
    assert isinstance(built, kind) or (group == "grid" and isinstance(built, partial | BalancedGrid))


def test_every_option_names_a_class() -> None:
    nodes = {path: yaml.safe_load(path.read_text()) or {} for path in FILES if path.parent.name != "experiment"}
    assert not [path for path, node in nodes.items() if "_target_" not in node and "defaults" not in node]
    assert not [path for path, node in nodes.items() if "kind" in node]


@pytest.mark.parametrize("group", KINDS)
def test_a_class_of_the_wrong_kind_is_refused_before_its_arguments(group: str) -> None:
    wrong = "scoresde.DDIM" if group != "solver" else "scoresde.VPSDE"
    with pytest.raises(ConfigError, match=rf"{group}=\.\.\. must be an? {KINDS[group].__name__}, got {wrong[9:]}"):
        build_as(KINDS[group], {"_target_": wrong, "nothing": 3}, group)
    with pytest.raises(ConfigError, match=rf"{group}=\.\.\. must be .* got options without a class \(kind, scale\)"):
        build_as(KINDS[group], {"kind": "cfg", "scale": 2.0}, group)
    with pytest.raises(ConfigError, match=rf"{group}=\.\.\. must be .* got None"):
        build_as(KINDS[group], None, group)


@pytest.mark.parametrize("name", sorted(path.stem for path in (ROOT / "likelihood").glob("*.yaml")))
def test_likelihood_has_its_own_arguments_and_the_shared_ones_with_their_defaults(name: str) -> None:
    whole = composed("sample", f"likelihood={name}")["likelihood"]
    shared = {key: whole.pop(key) for key in SHARED}
    assert EvaluationOptions(**shared) == EvaluationOptions(when="ode" if name == "default" else "always")
    assert isinstance(build_as(Likelihood, whole, "likelihood"), Likelihood)
    for node in nodes(whole):
        target = find_target(node["_target_"], name)
        assert set(node) - {"_target_"} == set(inspect.signature(target).parameters)
    bare = {"_target_": whole["_target_"], **({"divergence": whole["divergence"]} if "divergence" in whole else {})}
    assert build_as(Likelihood, whole, "likelihood") == build_as(Likelihood, bare, "likelihood")


def test_diagnostics_are_those_of_python() -> None:
    shipped = composed("sample", "diagnostics=default")["diagnostics"]
    assert build_as(Diagnostics, shipped, "diagnostics") == DenoiserDiagnostics()


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_experiment_composes_and_says_how_to_run_it(experiment: str) -> None:
    config = composed("train", f"experiment={experiment}")
    needed = {"sde", "parameterization", "model", "data"}
    if "of" in config["task"]:
        own_net = config["task"]["_target_"].endswith("TrainDequantization")
        given = needed & {key for key in config if config[key] is not None}
        assert given == ({"model"} if own_net else set()), "the others are the run's own"
        needed = {"of"}
    assert {"loss", "trainer", "optimizer", *needed} <= set(config)
    assert f"experiment={experiment}" in (ROOT / "experiment" / f"{experiment}.yaml").read_text()


def test_sample_composes_with_every_solver_and_guidance() -> None:
    groups = ("solver", "grid", "variance", "guidance", "likelihood", "diagnostics", "task", "method")
    chosen = [[f"{group}={path.stem}" for path in FILES if path.parent.name == group] for group in groups]
    with initialize_config_dir(str(ROOT), version_base="1.3"):
        for options in zip_longest(*chosen):
            compose("sample", [option for option in options if option is not None])


@pytest.mark.parametrize(
    "target",
    ["os.system", "torch.load", "torch.hub.load", "subprocess.run", "builtins.eval", "scoresde.sde.torch.load",
     "scoresde.commands.build.importlib.import_module", "scoresde.nothing", "torch.optim.lr_scheduler.LambdaLR",
     "eval", 3],
)  # fmt: skip
def test_dangerous_and_unknown_targets_are_refused(target: Any) -> None:
    with pytest.raises(ConfigError, match=r"model\._target_ names"):
        build({"_target_": target}, "model")


def test_dangerous_functions_are_refused_even_where_users_classes_are_welcome() -> None:
    for target in ("os.system", "torch.load", "torch.hub.load", "pathlib.Path"):
        with pytest.raises(ConfigError, match=r"model\._target_ names"):
            build({"_target_": target}, "model", ["*"])


def test_users_class_builds_with_permission_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my_processes.py").write_text(
        "from scoresde import VESDE, SDE\n"
        "import torch\n"
        "class Mine(SDE):\n"
        "    def __init__(self, top: float = 2.0): self.top = top\n"
        "    def alpha(self, t): return torch.ones_like(t)\n"
        "    def sigma(self, t): return self.top * t\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    node = {"_target_": "my_processes.Mine", "top": 3.0}

    assert build(node, "sde", ["*"]).top == 3.0
    assert build(node, "sde", ["my_processes"]).top == 3.0
    with pytest.raises(ConfigError, match=r"allow it with extensions=\[my_processes\]"):
        build(node, "sde")


@pytest.mark.parametrize(
    ("node", "message"),
    [
        ({"_target_": "scoresde.VPSDE", "beta_min": "abc"}, "sde.beta_min needs a number, got 'abc'"),
        ({"_target_": "scoresde.DDIM", "steps": 2.5}, "sde.steps needs a whole number, got 2.5"),
        ({"_target_": "scoresde.DDIM", "denoise": 1}, "sde.denoise needs true or false, got 1"),
        ({"_target_": "scoresde.VPSDE", "beta": 1.0}, r"sde.beta is no argument of VPSDE: did you mean sde.beta_m"),
    ],
)
def test_wrong_arguments_are_named(node: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build(node, "sde")


def test_toy_data_builds() -> None:
    assert isinstance(build(composed("train", "data=toy")["data"], "data"), Dataset)
