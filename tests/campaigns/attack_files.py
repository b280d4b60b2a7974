"""Attacks on files and memory: by links, sizes, pipes, states of optimizers and weights."""

from __future__ import annotations

import gzip
import io
import os
import pickle
import shutil
import struct
import subprocess
import zipfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from campaigns.attack_kinds import (
    DRAW,
    TOY,
    VP,
    Attack,
    Calls,
    batches,
    command,
    edit,
    names,
    pickles,
    sign,
    texts,
    torch_bytes,
)

import scoresde
from scoresde.cli import sample_main, train_main
from scoresde.data import array, image_folder, mnist
from scoresde.fitting import Calibration
from scoresde.interop import load_score_sde
from scoresde.training import load_checkpoint, save_checkpoint


def attacks() -> Iterator[Attack]:
    for kind in (names, texts, pickles, links, sizes, pipes, states):
        yield from kind()


COMMANDS: dict[str, tuple[Any, ...]] = {
    "resume": (train_main, *TOY),
    "sample": (sample_main, *DRAW),
    "likelihood": (sample_main, *DRAW[:1], "num_samples=0", "likelihood=elbo", "likelihood.num_examples=4"),
    "variance": (
        sample_main,
        *DRAW,
        "solver=ddpm",
        "solver.variance=optimal",
        "variance=analytic",
        "variance.samples=16",
    ),
    "diagnostics": (
        sample_main,
        "run=run",
        "num_samples=0",
        "diagnostics=default",
        "diagnostics.bins=2",
        "diagnostics.num_examples=4",
        "diagnostics.which=[loss]",
    ),
    "head": (train_main, "experiment=digits_npr", "of=run", "logger=csv", "trainer.steps=2", "batch_size=8"),
}
LINKS = {
    "samples": ("sample", "likelihood", "diagnostics", "resume"),
    "checkpoints": ("resume",),
    "variance_npr": ("head",),
    "metrics.csv": ("resume",),
    "checkpoints/last.pt": ("resume",),
    "codec.pt": ("resume",),
    "variance.pt": ("variance",),
    "samples/metrics.json": ("sample",),
    "samples/samples.npz": ("sample",),
    "samples/samples.png": ("sample",),
    "samples/likelihood.csv": ("likelihood",),
    "samples/likelihood.json": ("likelihood",),
    "samples/diagnostics.json": ("diagnostics",),
    "samples/metrics.json.tmp": ("sample",),
    "metrics.csv.tmp": ("resume",),
    "checkpoints/last.pt.tmp": ("resume",),
    "config.yaml.tmp": ("resume",),
    "lock": ("resume",),
    "wandb": ("resume",),
}


def links() -> Iterator[Attack]:
    for link, jobs in LINKS.items():
        for job in jobs:
            for target in ("outside", "outside/mine"):

                def act(link: str = link, job: str = job, target: str = target) -> None:
                    path = Path("run", link)
                    if path.is_dir():
                        shutil.rmtree(path)
                    path.unlink(missing_ok=True)
                    path.parent.mkdir(exist_ok=True)
                    path.symlink_to(Path(target).resolve())
                    if link == "checkpoints/last.pt":  # the run goes on from a snapshot
                        edit("run", "trainer", "steps", value=20)
                    command(*COMMANDS[job])

                yield Attack("links in a run", f"{link} -> {target}, {job}", act, refusal=False)


def npy(shape: Any, descr: str, content: bytes = b"") -> bytes:
    buffer = io.BytesIO()
    header = {"descr": descr, "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(buffer, header)  # type: ignore[no-untyped-call]
    return buffer.getvalue() + content


def packed(path: str | Path, **members: bytes) -> str | Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        for name, content in members.items():
            file.writestr(f"{name}.npy", content)
    return path


def zeros(name: str) -> str:
    """A small .npz file that holds half a gigabyte of zeros, made by a process of its own."""
    code = (
        "import sys, zipfile\nfrom numpy.lib import format\n"
        "with zipfile.ZipFile('a.npz', 'w', zipfile.ZIP_DEFLATED) as f, f.open(sys.argv[1] + '.npy', 'w') as m:\n"
        "    format.write_array_header_1_0(m, {'descr': '<f8', 'fortran_order': False, 'shape': (2**26,)})\n"
        "    [m.write(bytes(2**20)) for _ in range(512)]\n"
    )
    subprocess.run(["python", "-c", code, name], check=True)
    return "a.npz"


def written(path: str, content: bytes) -> str:
    Path(path).parent.mkdir(exist_ok=True)
    Path(path).write_bytes(content)
    return path


def sizes() -> Iterator[Attack]:
    def deflated() -> None:
        with zipfile.ZipFile(io.BytesIO(torch_bytes({"w": torch.zeros(10)}))) as old:
            buffer = io.BytesIO()
            with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as new:
                for name in old.namelist():
                    new.writestr(name, bytes(2**27) if name.endswith("data/0") else old.read(name))
        sign("run/checkpoints/last.pt", buffer.getvalue())
        scoresde.load("run/checkpoints/last.pt")

    def expanded() -> None:
        sign("run/checkpoints/last.pt", torch_bytes({"w": torch.zeros(1).expand(10**12)}))
        scoresde.load("run/checkpoints/last.pt")

    def config(*keys: str, value: Any) -> None:
        edit("run", *keys, value=value)
        scoresde.load("run")

    huge = {"_target_": "scoresde.linear_betas", "steps": 10**9}
    yield from (
        Attack("memory", name, act)
        for name, act in {
            "npz, x": lambda: array(zeros("x")),
            "npz, one array": lambda: array(zeros("a")),
            "npy header": lambda: array(written("a.npy", npy((10**12,), "<f8"))),
            "npy of nothing": lambda: array(written("a.npy", npy((10**15,), "|V0"))),
            "npz header": lambda: array(packed("a.npz", x=npy((10**10,), "<f8"))),
            "idx": lambda: mnist(str(Path(written("m/train-images-idx3-ubyte", b"\0\0\x08\x01" + b"\x7f" * 4)).parent)),
            "idx.gz": lambda: scoresde.data.handwritten.read_idx(
                Path(written("a.gz", gzip.compress(b"\0\0\x08\x01" + (2**27).to_bytes(4, "big") + bytes(2**20))))
            ),
            "cifar ndarray": lambda: batches(pickle.dumps({"data": Calls(np.ndarray, (10**7, 3072)), "labels": 0})),
            "cifar memo": lambda: batches(b"\x80\x02}r\xff\xff\xff\x7f."),
            "cifar bytearray": lambda: batches(b"\x80\x05}\x96" + (10**10).to_bytes(8, "little") + b"."),
            "cifar void": lambda: batches(pickle.dumps({"data": Calls(np.dtype, "V1000000000"), "labels": 0})),
            "cifar large": lambda: batches(bytes(2**26 + 1)),
            "picture": lambda: image_folder(
                str(
                    Path(
                        written(
                            "p/a.bmp",
                            b"BM"
                            + struct.pack("<IHHIIiiHHIIiiII", 60, 0, 0, 54, 40, 30000, 30000, 1, 24, 0, 0, 0, 0, 0, 0),
                        )
                    ).parent
                )
            ),
            "checkpoint deflated": deflated,
            "checkpoint expanded": expanded,
            "width": partial(config, "model", "width", value=2**18),
            "depth": partial(config, "model", "depth", value=2**20),
            "betas": partial(config, "sde", value={"_target_": "scoresde.DiscreteVPSDE", "betas": huge}),
            "shape": partial(config, "model", "shape", value=[2**20, 2**20]),
        }.items()
    )


def pipes() -> Iterator[Attack]:
    def place(path: str) -> str:
        Path(path).parent.mkdir(exist_ok=True)
        Path(path).unlink(missing_ok=True)
        os.mkfifo(path)
        return path

    yield from (
        Attack("pipes", name, act)
        for name, act in {
            "config.yaml": lambda: scoresde.load(Path(place("run/config.yaml")).parent),
            "last.pt": lambda: scoresde.load(place("run/checkpoints/last.pt")),
            "npz": lambda: array(place("a.npz")),
            "npy": lambda: array(place("a.npy")),
            "idx": lambda: scoresde.data.handwritten.read_idx(Path(place("a"))),
            "cifar": lambda: (batches(b""), 0)[1],
            "picture": lambda: image_folder(str(Path(place("p/a.png")).parent)),
            "pth": lambda: load_score_sde(place("a.pth"), VP),
            "safetensors": lambda: load_score_sde(place("a.safetensors"), VP),
            "fit": lambda: Calibration.load(place("fit.pt")),
        }.items()
    )


def states() -> Iterator[Attack]:
    def resumed(change: Callable[[dict[str, Any]], Any]) -> None:
        path = "run/checkpoints/last.pt"
        state = load_checkpoint(path)
        change(state)
        state["step"] = 10
        save_checkpoint(path, state)
        for other in Path("run/checkpoints").glob("*"):
            if other.name != "last.pt":
                other.unlink()
        command(train_main, *TOY)

    def moments(name: str, value: Any) -> Callable[[dict[str, Any]], Any]:
        return lambda state: [moment.update({name: value}) for moment in state["optimizer"]["state"].values()]

    for number, (name, value) in enumerate(
        [
            ("exp_avg", torch.zeros(2)),
            ("exp_avg", torch.zeros(())),
            ("exp_avg_sq", torch.zeros(1)),
            ("step", torch.ones(9)),
            ("exp_avg", torch.zeros(2, dtype=torch.int64)),
            ("exp_avg", 3),
            ("exp_avg_sq", None),
            ("exp_avg", "text"),
        ]
    ):
        yield Attack("optimizer states", f"{name} {number}", partial(resumed, moments(name, value)))

    def weights(value: Any) -> None:
        path = "run/checkpoints/last.pt"
        state = load_checkpoint(path)
        name = max(state["ema"]["params"], key=lambda key: state["ema"]["params"][key].numel())
        state["ema"]["params"][name] = value(state["ema"]["params"][name])
        save_checkpoint(path, state)
        scoresde.load("run")

    for label, change in {
        "NaN": lambda w: w * torch.nan,
        "infinity": lambda w: w / 0,
        "integers": lambda w: w.long(),
        "flags": lambda w: w > 0,
        "complex": lambda w: w.to(torch.complex64),
        "smaller": lambda w: w[:1],
        "none": lambda w: None,
    }.items():
        yield Attack("weights", label, partial(weights, change))
