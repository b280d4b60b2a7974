"""How good MNIST digits are after 1, 3 and 10 minutes of training on one CPU core.

    OMP_NUM_THREADS=1 taskset -c 0 python benchmarks/mnist_minutes.py /folder/of/mnist [--minutes 1 3 10] [--json OUT]
                                                                      [--runs FOLDER] [override ...]

Each row is `python train.py experiment=mnist budget=...` and `python sample.py num_samples=1000` with their defaults,
in a fresh folder; overrides of train.py come last. The judge is a small convolutional classifier, trained here on the
60,000 training digits. Its 64 features on the samples and on the 10,000 test digits give the Fréchet distance, printed
beside its floor: the mean of that of 1,000 training digits. Judges compare by the ratio of the two.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from digits_quality import frechet
from torch import Tensor, nn

from scoresde.data import Dataset, mnist

SAMPLES = 1000


def scaled(levels: Tensor) -> Tensor:
    return levels.float() / 127.5 - 1


def classifier(data: Dataset, epochs: int = 3, batch: int = 128) -> nn.Sequential:
    """A convolutional network of 0.2 M parameters with 64 features before its last layer."""
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(1, 16, 3, stride=2, padding=1), nn.ReLU(), nn.Conv2d(16, 32, 3, stride=2, padding=1), nn.ReLU(),
        nn.Conv2d(32, 64, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(3136, 64), nn.ReLU(), nn.Linear(64, 10),
    )  # fmt: skip
    optimizer = torch.optim.Adam(net.parameters(), 2e-3)
    steps = epochs * (len(data.train) // batch)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - step / steps)
    x, label = data.train.x, data.train.label
    assert label is not None
    for _ in range(epochs):
        for rows in torch.randperm(len(x))[: len(x) // batch * batch].split(batch):
            optimizer.zero_grad()
            nn.functional.cross_entropy(net(scaled(x[rows])), label[rows]).backward()
            optimizer.step()
            schedule.step()
    return net.eval().requires_grad_(False)


class Judge:
    """The classifier, its features of the test digits, and the distance of real digits."""

    def __init__(self, data: Dataset) -> None:
        self.net = classifier(data)
        self.test = self.features(data.test.x)
        right = self.net(scaled(data.test.x)).argmax(1) == data.test.label
        self.accuracy = float(right.float().mean())
        order = torch.randperm(len(data.train), generator=torch.Generator().manual_seed(0))[: 8 * SAMPLES]
        self.floor = float(np.mean([self.distance(data.train.x[rows]) for rows in order.split(SAMPLES)]))

    def features(self, levels: Tensor) -> Tensor:
        return torch.cat([self.net[:-1](scaled(part)) for part in levels.split(1000)])

    def distance(self, levels: Tensor) -> float:
        return frechet(self.features(levels), self.test)


def command(name: str, *arguments: str) -> str:
    """Run train.py or sample.py; returns what it prints."""
    code = f"import sys; from scoresde.cli import {name}_main; sys.argv[0] = '{name}.py'; {name}_main()"
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(done.stdout + done.stderr)
    return done.stdout


def measured(judge: Judge, path: Path, minutes: float, overrides: list[str]) -> dict[str, float | str]:
    """Train, sample and judge, in the present folder."""
    run = f"mnist-{minutes:g}min"
    began = time.perf_counter()
    said = command(
        "train", "experiment=mnist", f"data.path={path}", f"budget={minutes:g}min", f"run={run}", "logger=csv",
        "trainer.progress=false", "trainer.sample_every=null", *overrides,
    )  # fmt: skip
    trained = time.perf_counter() - began
    command("sample", f"run={run}", f"num_samples={SAMPLES}", "likelihood=none")
    with np.load(f"{run}/samples/samples.npz") as arrays:
        x = torch.from_numpy(arrays["x"].astype(np.int64)).reshape(SAMPLES, 1, 28, 28)
    distance = judge.distance(x)
    last = Path(f"{run}/metrics.csv").read_text().splitlines()
    steps = float(dict(zip(last[0].split(","), last[-1].split(","), strict=True))["step"])
    return {
        "minutes": minutes, "seconds": trained, "steps": steps, "frechet": distance, "floors": distance / judge.floor,
        "model": next(line for line in said.splitlines() if line.startswith("model=auto")),
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("path", type=Path)
    parser.add_argument("overrides", nargs="*", default=[])
    parser.add_argument("--minutes", type=float, nargs="+", default=[1, 3, 10])
    parser.add_argument("--runs", type=Path)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_intermixed_args()
    path, out = arguments.path.resolve(), arguments.json and arguments.json.resolve()
    data = mnist(path)
    judge = Judge(data)
    print(f"judge: {judge.accuracy:.1%} right, floor {judge.floor:.3f} for {SAMPLES} training digits", flush=True)
    os.chdir(arguments.runs or tempfile.mkdtemp(prefix="mnist_minutes_"))
    rows = []
    for minutes in arguments.minutes:
        row = measured(judge, path, minutes, arguments.overrides)
        rows.append(row)
        print(
            f"{minutes:g} min: {row['steps']:.0f} steps in {row['seconds']:.0f} s, frechet {row['frechet']:.3g}, "
            f"{row['floors']:.2f} floors; {row['model']}",
            flush=True,
        )
    if out:
        out.write_text(json.dumps({"floor": judge.floor, "accuracy": judge.accuracy, "rows": rows}, indent=2) + "\n")


if __name__ == "__main__":
    main()
