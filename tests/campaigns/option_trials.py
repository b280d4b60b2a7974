"""Commands that work, and the bad options that are tried on each: all keys of all options, with values of all kinds."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import yaml
from campaigns.legal_options import legal
from hydra.core.override_parser.overrides_parser import OverridesParser

from scoresde.cli import config_dir

LONG = "x" * 3000
VALUES = (
    "abc", "null", "true", "false", "[]", "{}", "[1]", "[0.5]", "[1,2,3]", "[null]", "[abc,1]", "[[1,2],[3,4]]",
    "{a:1}", "0.5", "-0.5", "-1", "0", "1", "1.5", "99", "nan", "inf", "-inf", ".inf", "1e30", "-1e30", "1e-30",
    "100000000000000000000", "''", LONG, "'1'", "'0.5'", "'null'", "yes", "no", "on", "off", "n", "'False'", "'true'",
    "[nan,1]", "[1,0]", "[-1,2]", "?", "???",
)  # fmt: skip
STRUCTURES = (
    "foo=1", "+foo=1", "++foo=1", "+foo.bar=1", "+condition=0.5", "~foo", "+conditonal=true", "++num_sample=3", "sed=1",
    "+experiment.foo=1", "foo", "=3", "seed=[", "seed={", "seed=${foo}", "seed=${sed}", "--nonsense", "-x",
    "sovler=ddim", "modle=mlp", "slover.steps=3", "+group=none", "experiment=digits_vmd", "experiment=toyy",
    "+sde.kind=vp", "+solver=ddim", "++solver=x", "+data=nonsense", "+grid.kind=karras", "seed.a=1", "+seed.a=1",
)  # fmt: skip
MLP = ("model=mlp", "model.width=8", "model.depth=1")
TOY = ("data=toy", "data.size=64", *MLP)
UNET = ("model.width=8", "model.channel_mults=[1]", "model.num_res_blocks=1")
SHORT = (
    "logger=csv", "trainer.progress=false", "trainer.steps=1", "trainer.warmup=0", "trainer.sample_every=null",
    "batch_size=4",
)  # fmt: skip
RUNS = {  # made when a trial needs them
    "toy": TOY,
    "flow": (*TOY, "sde=straight", "parameterization=velocity", "loss=flow"),
    "pairs": ("data=simulator", "data.size=64", "data.test_size=8", "loss.condition_dropout=0.1", *MLP),
    "digits": ("data=digits", *MLP),
    "labelled": ("data=digits", *MLP, "conditional=true"),
    "classifier": ("experiment=digits_classifier", *UNET),
    "embedding": ("experiment=digits_embedding", *UNET),
    "npr": ("experiment=digits_npr", "of=digits"),
    "sn": ("experiment=digits_sn", "of=digits"),
    "dequantization": ("experiment=digits_dequantization", "of=digits", "model.width=8"),
}
EMBEDDED = {"classifier": "classifier", "image_encoder": "embedding", "embedding": "embedding"}  # by model or task
POSED = ("none", "inpaint", "imputation", "super_resolution", "deblur", "colourisation")  # the last needs colours
TRAINED = ("npr", "sn", "dequantization")  # in the folder of the run that they are for
FILES = {
    "array": "x.npy",
    "table": "x.csv",
    "series": "series.npy",
    "volume": "volume.npy",
    "image_folder": "pictures",
    "cifar10": "cifar-10-batches-py",
    "mnist": "mnist",
    "pairs": "pairs.npz",
}


@dataclass(frozen=True)
class Base:
    """A command that works, and the keys whose values are tried on it.

    Args:
        name: Of the option that it is about: "solver=ddim", or "train", "sample" for the keys of no group.
        needs: Names in RUNS.
    """

    name: str
    command: str
    arguments: tuple[str, ...]
    needs: tuple[str, ...] = ()
    keys: dict[str, Any] = field(default_factory=dict)

    @property
    def group(self) -> str:
        return self.name.partition("=")[0]


@dataclass(frozen=True)
class Trial:
    """An option more on a base; `allowed`: whether it may be accepted."""

    kind: str
    base: Base
    option: str
    allowed: bool

    def __str__(self) -> str:
        option = self.option if len(self.option) < 200 else self.option[:60] + "..."
        return f"{self.base.name}: {option}"


def flat(node: Any, prefix: str = "") -> dict[str, Any]:
    """The keys of an option with their defaults, without those that Hydra and `build` read."""
    found: dict[str, Any] = {}
    for key, value in (node or {}).items():
        if key in ("defaults", "hydra", "_target_", "_partial_"):
            continue
        if isinstance(value, dict):
            found |= flat(value, f"{prefix}{key}.")
        else:
            found[prefix + key] = value
    return found


def keys_of(group: str, option: str) -> dict[str, Any]:
    """The keys of an option, with those of the options that it is made from."""
    node = yaml.safe_load((config_dir() / group / f"{option}.yaml").read_text(encoding="utf-8")) or {}
    found: dict[str, Any] = {}
    for part in node.get("defaults", []) if group != "experiment" else []:
        if isinstance(part, str) and part != "_self_":
            found |= keys_of(group, part)
        elif isinstance(part, dict):
            ((place, name),) = part.items()
            found |= {f"{place.partition('@')[2]}.{key}": value for key, value in keys_of(group, name).items()}
    return found | flat(node)


def options_of(group: str) -> list[str]:
    return sorted(path.stem for path in (config_dir() / group).glob("*.yaml"))


def training(group: str, option: str) -> Base:
    """A training of one step with an option of a group."""
    chosen, needs = (f"{group}={option}",), ()
    more: tuple[str, ...] = TOY
    if group == "sde":
        more = (*TOY, "loss=discrete") if option.startswith("ddpm") else TOY
        more = ("data=digits", *MLP, "loss=vdm", "parameterization=epsilon") if option == "vdm" else more
    elif group == "loss":
        more = ("data=digits", *MLP)
        if option in ("hybrid", "vlb", "simple_learned"):
            more += ("sde=ddpm_cosine", "parameterization=epsilon", "variance_output=learned_range")
        more += ("sde=ddpm",) if option == "discrete" else ("sde=vdm",) if option == "vdm" else ()
    elif group == "model":
        more = ("data=digits", "loss=simple", *UNET)
        more += ("model.norm_groups=4",) if option == "ddpm" else ()
        if option == "mlp":
            more = ("data=digits", "model.width=8", "model.depth=1")
        elif option in EMBEDDED:
            chosen, more = (f"experiment=digits_{EMBEDDED[option]}",), UNET
    elif group == "data":
        more = MLP if option in ("array", "table", "pairs", "simulator") else ("loss=simple", *UNET)
        if option in ("toy", "simulator"):
            more = ("data.size=64", *MLP)
        if option in FILES:
            more += (f"data.path={FILES[option]}",)
        if option == "image_folder":
            more += ("data.size=8",)
    elif group == "task" and option in EMBEDDED:
        chosen, more = (f"experiment=digits_{option}",), UNET
    elif group == "experiment":
        more = EXPERIMENTS.get(option, ("model.width=8",))
    if option in ("second_moment", "variance_head") or (group, option[7:]) in [
        ("experiment", name) for name in TRAINED
    ]:
        kind = option[7:] if group == "experiment" else "npr"
        chosen, more, needs = (f"experiment=digits_{kind}",), ("of=digits",), ("digits",)
    if option.endswith("reflow"):
        experiment = option if group == "experiment" else "toy_reflow"
        chosen, more, needs = (f"experiment={experiment}",), ("of=flow", "task.pairs=64", "task.rtol=0.1"), ("flow",)
    if option == "dequantization":
        chosen, more, needs = ("experiment=digits_dequantization",), ("of=digits", "model.width=8"), ("digits",)
    last = ("run=new",) if not needs else ()
    last += ("logger=wandb",) if (group, option) == ("logger", "wandb") else ()
    short = tuple(argument for argument in SHORT if group != "logger" or not argument.startswith("logger"))
    return Base(f"{group}={option}", "train", (*chosen, *short, *more, *last), needs, keys_of(group, option))


EXPERIMENTS = {
    "toy": ("data.size=64", "model.width=8", "model.depth=1"),
    "array": ("data.path=x.npy", "model.width=8", "model.depth=1"),
    "table": ("data.path=x.npy", "model.width=8", "model.depth=1"),
    **{
        kind: (f"data.path={kind}.npy", "budget=null", "model.width=8", "model.channel_mults=[1]")
        for kind in ("series", "volume")
    },
    **dict.fromkeys(("sbi_two_moons", "sbi_linear_gaussian"), ("data.size=64", "model.width=8", "model.depth=1")),
    "digits_classifier": UNET,
    "digits_embedding": UNET,
    "digits_likelihood": UNET,
    "digits_vdm": UNET,
    "mnist": (f"data.path={FILES['mnist']}", "budget=null", *UNET),
    "photos": (f"data.path={FILES['image_folder']}", "data.size=8", "budget=null", *UNET),
    **{
        path.stem: ("data.path=cifar-10-batches-py", *UNET)
        for path in (config_dir() / "experiment").glob("cifar10_*.yaml")
    },
}


def sampling(group: str, option: str) -> Base:
    """A sampling of two, or a likelihood of two rows, with an option of a group."""
    chosen, keys = f"{group}={option}", keys_of(group, option)
    run, needs, more = "toy", ["toy"], ["num_samples=2", "likelihood=none"]
    if group == "solver":
        more += ["solver.steps=4"] if keys.get("steps") is not None else []
    else:
        more += ["solver=ddim", "solver.steps=2"]
    if group == "grid":
        more += [f"grid.{key}=4" for key in ("reference_paths", "iterations", "batch") if key in keys]
        more += ["grid.reference_steps=8"] if "reference_steps" in keys else []
        more += ["solver=ddpm", "grid.samples=8"] if option == "optimal" else []
    elif group == "guidance":
        run, needs = "labelled", ["labelled", *([option] if option in ("classifier", "embedding") else [])]
        other = {
            "autoguidance": ["guidance.reference=labelled"], "classifier": ["guidance.classifier=classifier"],
            "embedding": ["guidance.embedding=embedding"], "negative": ["guidance.negative=1"],
        }  # fmt: skip
        more += ["label=3", *other.get(option, [])]
        if option == "observations":
            run, needs = "pairs", ["pairs"]
            more = [*more[:-1], "guidance.rows=[[0.1,0.2]]", "guidance.samples=5", "condition=none"]
    elif group == "variance":
        run, needs = "digits", ["digits", *([option] if option in TRAINED else [])]
        more += [] if option == "none" else ["solver=ddpm", "solver.variance=optimal"]
        more += ["variance.samples=8"] if "samples" in keys else []
    elif group == "likelihood":
        run, needs = "digits", ["digits"]
        more = ["num_samples=0", "likelihood.num_examples=2"]
        more += ["likelihood.steps=3"] if option == "vlb" else ["likelihood.vlb.steps=3"] if option == "report" else []
        more += ["solver=ode"] if option == "default" else []
        more = ["num_samples=2", "solver.steps=2"] if option == "none" else more
    elif group in ("task", "method"):
        run, needs, more = "digits", ["digits"], ["num_samples=2", *(["task=inpaint"] if group == "method" else [])]
        more += ["task.num_observations=1"] if (group, option) != ("task", "none") else []
        more += ["solver.steps=2"] if group == "task" or "steps" not in {key.rpartition(".")[2] for key in keys} else []
        more += [f"method.{key}=2" for key in keys if key.rpartition(".")[2] == "steps"] if group == "method" else []
    elif group == "diagnostics":
        more = ["likelihood=none"]
        run, needs = ("pairs", ["pairs"]) if option == "calibration" else (run, needs)
        small = {
            "draws": 3,
            "exact_draws": 10,
            "bins": 3,
            "num_examples": 4,
            "jacobian_examples": 2,
            "probes": 2,
            "gap_samples": 8,
            "steps": 3,
        }
        more += [f"diagnostics.{key}={value}" for key, value in small.items() if key in keys]
        more += ["num_samples=0"] if keys else ["num_samples=2", "solver.steps=2"]
        run, needs = ("labelled", ["labelled"]) if option == "classification" else (run, needs)
        more += ["diagnostics.samples=2"] if "samples" in keys else []
    return Base(chosen, "sample", (f"run={run}", chosen, "out=o", *more), tuple(needs), keys)


def groups_of(command: str) -> list[str]:
    defaults = yaml.safe_load((config_dir() / f"{command}.yaml").read_text(encoding="utf-8"))["defaults"]
    names = [next(iter(part)).removeprefix("optional ") for part in defaults if isinstance(part, dict)]
    return [name for name in names if not name.startswith("override") and (command, name) != ("sample", "data")]


def bases() -> list[Base]:
    """One command for every option of every group, and one for the keys of no group."""
    own = {
        command: flat(yaml.safe_load((config_dir() / f"{command}.yaml").read_text(encoding="utf-8")))
        for command in ("train", "sample")
    }
    shared = {key: value for key, value in own["sample"].items() if key.startswith("likelihood.")}
    rest = {key: value for key, value in own["sample"].items() if key not in shared}
    ode = ("run=toy", "out=o", "num_samples=2", "solver=ode", "likelihood.num_examples=2")
    labelled = ("run=labelled", "out=o", "num_samples=2", "solver=ddim", "solver.steps=2")
    found = [
        Base("train", "train", (*TOY, *SHORT, "run=new"), (), own["train"]),
        Base("sample", "sample", labelled, ("labelled",), rest),
        Base("sample.likelihood", "sample", ode, ("toy",), shared),
    ]
    groups = [(group, option) for group in groups_of("train") for option in options_of(group)]
    of_sample = [("data", "own"), *(("task", option) for option in POSED)]  # options of sample.py alone
    found += [training(*pair) for pair in groups if pair not in of_sample]
    pairs = [(group, option) for group in groups_of("sample") for option in options_of(group)]
    found += [sampling(*pair) for pair in pairs if pair[0] != "task" or pair[1] in POSED[:-1]]
    return found


@cache
def parsed(option: str) -> Any:
    return OverridesParser.create().parse_override(option).value()


def path_of(base: Base, key: str) -> str:
    """The key as the command line has it."""
    return key if "=" not in base.name or base.group == "experiment" else f"{base.group}.{key}"


def rule_name(base: Base, key: str) -> str:
    """The key as LEGAL has it: that of an experiment under the option that the experiment chooses."""
    if base.group != "experiment":
        return f"{base.name}.{key}"
    group, _, rest = key.partition(".")
    return f"{group}=ANY.{rest}" if rest else f"train.{group}"


def legal_here(base: Base, key: str, text: str) -> bool:
    try:
        value = parsed(f"k={text}")
    except Exception:
        return False
    if isinstance(value, str) and value.startswith("?"):
        return False
    return legal(rule_name(base, key), value)


def swapped(word: str) -> str:
    """A word with two letters in the other order, or one more."""
    for place in range(len(word) // 2, len(word) - 1):
        if word[place] != word[place + 1]:
            return word[:place] + word[place + 1] + word[place] + word[place + 2 :]
    return word + "x"


def trials() -> Iterator[Trial]:
    for base in bases():
        for key in base.keys:
            path = path_of(base, key)
            for text in VALUES:
                yield Trial("value", base, f"{path}={text}", legal_here(base, key, text))
            wrong = ".".join([*path.split(".")[:-1], swapped(path.split(".")[-1])])
            yield Trial("misspelt key", base, f"{wrong}=1", False)
            yield Trial("new key", base, f"+{wrong}=1", False)
            yield Trial("new key", base, f"++{wrong}=1", False)
            yield Trial("key left out", base, f"~{path}", True)
        if "=" not in base.name:
            yield from (Trial("structure", base, option, False) for option in STRUCTURES)
            continue
        group, option = base.name.split("=")
        for text in (f"{group}=nonsense", f"{group}={swapped(option)}x", f"{swapped(group)}={option}",
                     f"{group}=[{option},{option}]", f"{group}=''", f"{group}={LONG}", f"{group}=../{group}/{option}",
                     f"{group}/{option}={option}"):  # fmt: skip
            several = group == "experiment" and text.startswith("experiment=[")
            yield Trial("option", base, text, "../" in text or several)
        if group == "experiment":
            continue
        yield Trial("option", base, f"~{group}", group == "diagnostics")
        yield Trial("option", base, f"{group}=null", False)
        for text in (f"+{group}.new=1", f"++{group}.new.deep=1", f"+{group}.kind=none", f"{group}.kind={option}",
                     f"+{group}.{option}.a=1", f"{group}._target_=abc", f"{group}._target_=os.system",
                     f"{group}._target_=null", f"{group}._target_=scoresde.Nothing",
                     f"{group}._target_=scoresde.VPSDE" if group != "sde" else f"{group}._target_=scoresde.DDIM",
                     f"++{group}._partial_=abc", f"~{group}._target_"):  # fmt: skip
            yield Trial("class", base, text, False)
