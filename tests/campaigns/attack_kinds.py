"""Attacks that try to have something executed: by names in configurations, by YAML, by pickles."""

from __future__ import annotations

import builtins
import hashlib
import io
import os
import pickle
import shutil
import struct
import subprocess
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import yaml

import scoresde
from scoresde.commands import TrainVarianceHead
from scoresde.commands.load import load_run
from scoresde.data import cifar10
from scoresde.fitting import Calibration
from scoresde.interop import load_score_sde
from scoresde.training import load_checkpoint

TOY = (
    "experiment=toy",
    "data.size=200",
    "batch_size=32",
    "model.width=16",
    "model.depth=1",
    "logger=csv",
    "trainer.progress=false",
    "trainer.sample_every=null",
    "trainer.snapshot_every=10",
    "trainer.steps=20",
    "run=run",
)
DRAW = ("run=run", "num_samples=2", "solver=ddim", "solver.steps=2")
VP = {
    "training": {"sde": "vpsde", "continuous": True},
    "data": {"image_size": 8, "centered": True},
    "model": {"name": "ddpm", "nf": 8, "ch_mult": [1], "num_res_blocks": 1, "attn_resolutions": []},
}


class Attack(NamedTuple):
    """One attack: `act` is run in a folder with good runs `run` and `learned`, a folder `outside`, and nothing else.

    Args:
        kind, name: For the table.
        act: Prepares and carries out; raises or exits when it is refused.
        refusal: Whether it must be refused, and not only do no harm.
    """

    kind: str
    name: str
    act: Callable[[], Any]
    refusal: bool = True


def command(main: Callable[[], Any], *options: str) -> None:
    import sys

    sys.argv = [main.__name__.replace("_main", ".py"), *options]
    main()


RAN = ["touch", "ran"]
FUNCTIONS: dict[str, dict[str, Any]] = {
    "os.system": {"command": "touch ran"},
    "os.mkdir": {"path": "ran"},
    "subprocess.Popen": {"args": RAN},
    "subprocess.run": {"args": RAN},
    "subprocess.check_call": {"popenargs": RAN},
    "posix.system": {"command": "touch ran"},
    "builtins.eval": {"source": "open('ran','w')"},
    "builtins.exec": {"source": "open('ran','w')"},
    "builtins.open": {"file": "ran", "mode": "w"},
    "io.open": {"file": "ran", "mode": "w"},
    "shutil.rmtree": {"path": "outside"},
    "pathlib.Path.touch": {"self": "ran"},
    "importlib.import_module": {"name": "antigravity"},
    "runpy.run_path": {"path_name": "run/x.py"},
    "torch.load": {"f": "run/evil.pt", "weights_only": False},
    "torch.save": {"obj": 1, "f": "ran"},
    "torch.hub.load": {"repo_or_dir": "a/b", "model": "c"},
    "numpy.load": {"file": "run/evil.npy", "allow_pickle": True},
    "numpy.save": {"file": "ran", "arr": 1},
    "pickle.load": {"file": "run/evil.pt"},
    "scoresde.load": {"path": "run", "extensions": ["subprocess"]},
    "scoresde.commands.load.load_run": {"path": "run", "extensions": ["os"]},
    "scoresde.commands.load.newest_run": {"makes": None, "root": ".", "extensions": ["os"]},
    "scoresde.training.save_checkpoint": {"path": "outside/mine", "state": {"a": "b"}},
    "scoresde.training.checkpoint.write_atomically": {"path": "outside/mine"},
    "scoresde.files.write_atomically": {"path": "outside/mine"},
    "scoresde.files.open_append": {"path": "ran"},
    "scoresde.files.remove_leftovers": {"folder": "outside"},
    "scoresde.commands.train.train": {"config": {}},
    "scoresde.commands.sample.sample": {"config": {}},
    "scoresde.commands.build.build": {"node": {"_target_": "os.mkdir", "path": "ran"}, "extensions": ["os"]},
    "scoresde.training.WandbLogger": {"run": "run"},
    "scoresde.commands.looks.save_image": {"path": "ran"},
    "scoresde.fitting.calibrated.save_fit": {"path": "outside/mine", "fit": 1},
    "scoresde.solvers.CalibratedMultistep": {"calibration": "run/evil.pt"},
    "scoresde.interop.load_score_sde": {"path_or_state_dict": "run/evil.pt", "config": {}},
    "scoresde.data.arrays.np.load": {"file": "run/evil.npy"},
    "scoresde.cli.os.system": {"command": "touch ran"},
    "scoresde._import_module": {"name": "os"},
    "torch.optim.lr_scheduler.LambdaLR": {},
}
PLACES = (
    ("task",),
    ("sde",),
    ("parameterization",),
    ("model",),
    ("loss",),
    ("data",),
    ("optimizer",),
    ("trainer",),
    ("own",),
    ("loss", "weighting"),
    ("loss", "time"),
    ("sde", "beta_min"),
    ("model", "fourier_scale"),
    ("data", "name"),
)


def edit(run: str, *keys: str, value: Any) -> None:
    path = Path(run, "config.yaml")
    node = config = yaml.safe_load(path.read_text())
    for key in keys[:-1]:
        node = node.setdefault(key, {})
    node[keys[-1]] = value
    path.write_text(yaml.safe_dump(config, sort_keys=False))


def names() -> Iterator[Attack]:
    """Targets of a configuration: every function in three places, plain, partial, in lists, in an auxiliary run."""
    for number, (function, arguments) in enumerate(FUNCTIONS.items()):
        node = {"_target_": function, **arguments}
        for turn in range(3):
            place = PLACES[(number + 5 * turn) % len(PLACES)]
            shaped = (node, [node, {"a": [node]}], {**node, "_partial_": True})[turn]

            def act(place: tuple[str, ...] = place, shaped: Any = shaped) -> None:
                edit("run", *place, value=shaped)
                scoresde.load("run")

            yield Attack("names in a configuration", f"{function} as {'.'.join(place)} {turn}", act)
    for function in ("os.system", "scoresde.load", "subprocess.Popen", "scoresde.training.save_checkpoint"):

        def auxiliary(function: str = function) -> None:
            edit("learned/variance_npr", "head", "net", value={"_target_": function, **FUNCTIONS[function]})
            TrainVarianceHead(head="npr").load(load_run("learned"))

        yield Attack("names in an auxiliary run", function, auxiliary)
    for imported in ("os.system", "system", "Popen", "load", "_hidden", "json.os.system"):

        def own(name: str = imported) -> None:
            Path("mine.py").write_text(
                "import os, json\nfrom os import system\nfrom subprocess import Popen\n"
                "from scoresde import load\n_hidden = os.mkdir\n"
            )
            edit("run", "loss", value={"_target_": f"mine.{name}", "command": "touch ran", "args": RAN, "path": "ran"})
            scoresde.load("run", extensions=["mine"])

        yield Attack("names that an extension imported", imported, own)


def texts() -> Iterator[Attack]:
    def bomb(inner: str, first: str) -> str:
        return f"a: &0 {first}\n" + "".join(f"b{i}: &{i} {inner % ','.join([f'*{i - 1}'] * 9)}\n" for i in range(1, 40))

    for name, text in {
        "aliases": bomb("[%s]", "[x]"),
        "merges": bomb("{<<: [%s]}", "{k: v}"),
        "deep": "[" * 10**5,
        "dashes": "- " * 10**5,
        "large": "a: " + "x" * 10**8,
        "many": "[" + "1," * 10**6 + "1]",
        "itself": "a: &a [*a]",
        "number": "a: " + "9" * 10**5,
        "chain": "a: &0 [x]\n" + "".join(f"b{i}: &{i} [*{i - 1}]\n" for i in range(1, 5000)),
        "apply": "a: !!python/object/apply:os.mkdir [ran]",
        "new": "a: !!python/object/new:os.mkdir [ran]",
        "name": "a: !!python/name:os.system",
        "module": "a: !!python/module:antigravity",
        "binary": "\x00" * 100,
    }.items():

        def act(text: str = text) -> None:
            Path("run/config.yaml").write_text(text)
            scoresde.load("run")

        yield Attack("YAML", name, act)


class Calls:
    def __init__(self, function: Any, *arguments: Any) -> None:
        self.call = function, arguments

    def __reduce__(self) -> Any:
        return self.call


PAYLOADS: dict[str, tuple[Any, ...]] = {
    "os.mkdir": (os.mkdir, "ran"),
    "os.system": (os.system, "touch ran"),
    "Popen": (subprocess.Popen, RAN),
    "eval": (eval, "open('ran', 'w')"),
    "exec": (builtins.exec, "open('ran', 'w')"),
    "open": (open, "ran", "w"),
    "bytearray": (bytearray, 10**10),
    "torch.load": (torch.load, "run/evil.pt"),
    "getattr": (getattr, os, "mkdir"),
}


def sign(path: str, archive: bytes) -> None:
    content = archive[:-2] + struct.pack("<H", 71)
    Path(path).write_bytes(content + b"sha256:" + hashlib.sha256(content).hexdigest().encode())


def torch_bytes(value: Any, legacy: bool = False) -> bytes:
    buffer = io.BytesIO()
    torch.save(value, buffer, _use_new_zipfile_serialization=not legacy)
    return buffer.getvalue()


def batches(content: bytes) -> None:
    good = pickle.dumps({"data": np.zeros((2, 3072), np.uint8), "labels": [0, 1]})
    Path("cifar").mkdir()
    for name in (*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"):
        Path("cifar", name).write_bytes(content if name == "data_batch_2" else good)
    cifar10("cifar")


def pickles() -> Iterator[Attack]:
    for name, payload in PAYLOADS.items():
        if payload[0] is getattr:
            continue
        evil = {"model": Calls(*payload), "data": Calls(*payload), "labels": [0]}

        def last(evil: Any = evil, path: str = "run/checkpoints/last.pt") -> None:
            sign(path, torch_bytes(evil))
            if path.startswith("learned"):
                TrainVarianceHead(head="npr").load(load_run("learned"))
            else:
                scoresde.load(path)  # itself: from a run, an earlier one would be taken

        def bare(evil: Any = evil) -> None:
            Path("run/checkpoints/last.pt").write_bytes(pickle.dumps(evil))
            shutil.rmtree("run/checkpoints/x", ignore_errors=True)
            load_checkpoint("run/checkpoints/last.pt")

        def fit(evil: Any = evil) -> None:
            Path("fit.pt").write_bytes(torch_bytes(evil))
            Calibration.load("fit.pt")

        def foreign(evil: Any = evil, legacy: bool = False) -> None:
            Path("a.pth").write_bytes(torch_bytes(evil, legacy))
            load_score_sde("a.pth", VP)

        yield Attack("pickles", f"{name} in last.pt", last)
        yield Attack("pickles", f"{name} in a snapshot", partial(last, path="run/checkpoints/step_00000010.pt"))
        yield Attack("pickles", f"{name} in a head", partial(last, path="learned/variance_npr/checkpoints/last.pt"))
        yield Attack("pickles", f"{name} as last.pt", bare)
        yield Attack("pickles", f"{name} in a fit", fit)
        yield Attack("pickles", f"{name} in a foreign checkpoint", foreign)
        yield Attack("pickles", f"{name} in an old foreign checkpoint", partial(foreign, legacy=True))
        yield Attack("pickles", f"{name} in CIFAR", partial(batches, pickle.dumps(evil)))
