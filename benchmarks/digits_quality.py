"""How good are sampled digits? Judged by classifiers that took no part in training or guidance.

    python benchmarks/digits_quality.py runs/*/samples/samples.npz [--json OUT]

For each file of `sample.py` (key x, and y if labelled), three small convolutional classifiers, trained here on the 897
training digits, give:

    frechet       Fréchet distance between their 64 features on the samples and on the 900 test digits, divided by
                  that of 450 training digits to the test digits: 1 is as good as real ones. The range for real
                  digits drawn with replacement is printed too: the luck of the draw in 450 samples
    nearer train  share of samples nearer to a training digit than to any test digit: about ½ without memorising
    as asked      share of samples that the classifiers take for the digit asked for
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from scoresde.data import digits

DATA = digits()


def scaled(levels: Tensor) -> Tensor:
    return levels.float() / 8 - 1


def classifier(seed: int, features: int = 64) -> nn.Sequential:
    """A small convolutional network trained on the training digits; the last layer but one gives the features."""
    torch.manual_seed(seed)
    net = nn.Sequential(
        nn.Conv2d(1, 32, 3, padding=1), nn.ReLU(), nn.Conv2d(32, 64, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(64, 64, 3, padding=1), nn.ReLU(), nn.Flatten(),
        nn.Linear(1024, features), nn.ReLU(), nn.Linear(features, 10),
    )  # fmt: skip
    optimizer = torch.optim.Adam(net.parameters(), 2e-3)
    x, label = scaled(DATA.train.x), DATA.train.label
    assert label is not None
    for _ in range(25):
        for rows in torch.randperm(len(x)).split(64):
            optimizer.zero_grad()
            nn.functional.cross_entropy(net(x[rows]), label[rows]).backward()
            optimizer.step()
    return net.eval().requires_grad_(False)


def frechet(a: Tensor, b: Tensor) -> float:
    """‖μ_a − μ_b‖² + tr(C_a + C_b − 2 (C_a^½ C_b C_a^½)^½) of two sets of features."""
    a, b = a.double(), b.double()
    cov_a, cov_b = torch.cov(a.T), torch.cov(b.T)
    values, vectors = torch.linalg.eigh(cov_a)
    root = (vectors * values.clamp_min(0).sqrt()) @ vectors.T
    cross = torch.linalg.eigvalsh(root @ cov_b @ root).clamp_min(0).sqrt().sum()
    return float((a.mean(0) - b.mean(0)).square().sum() + cov_a.trace() + cov_b.trace() - 2 * cross)


class Judge:
    """One classifier, with the distances of real digits that its own are measured in."""

    def __init__(self, seed: int) -> None:
        self.net = classifier(seed)
        self.test = self.features(DATA.test.x)
        train = self.features(DATA.train.x)
        generator = torch.Generator().manual_seed(0)
        subsets = [train[torch.randperm(len(train), generator=generator)[:450]] for _ in range(8)]
        draws = [train[torch.randint(len(train), (450,), generator=generator)] for _ in range(20)]
        self.unit = float(np.mean([frechet(subset, self.test) for subset in subsets]))
        self.real = [frechet(draw, self.test) / self.unit for draw in draws]

    def features(self, levels: Tensor) -> Tensor:
        return self.net[:-1](scaled(levels))

    def distance(self, levels: Tensor) -> float:
        return frechet(self.features(levels), self.test) / self.unit


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="+", type=Path)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()

    judges = [Judge(seed) for seed in range(3)]
    real = np.concatenate([judge.real for judge in judges])
    print(f"real digits, 450 drawn with replacement: frechet {real.mean():.2f} ({real.min():.2f} to {real.max():.2f})")
    results = []
    for path in arguments.files:
        with np.load(path) as arrays:
            pixels, asked = arrays["x"], arrays.get("y")
        levels = torch.from_numpy(pixels.astype(np.int64))[:, None]
        flat = scaled(levels).flatten(1)
        nearest = [torch.cdist(flat, scaled(split.x).flatten(1)).amin(1) for split in (DATA.train, DATA.test)]
        row = {
            "file": str(path),
            "samples": len(levels),
            "frechet": float(np.mean([judge.distance(levels) for judge in judges])),
            "nearer_train": float((nearest[0] < nearest[1]).float().mean()),
        }
        text = f"{path}: {len(levels)} samples, frechet {row['frechet']:.2f}, nearer train {row['nearer_train']:.0%}"
        if asked is not None:
            taken = torch.stack([judge.net(scaled(levels)) for judge in judges]).mean(0).argmax(1)
            row["as_asked"] = float((taken == torch.from_numpy(asked)).float().mean())
            text += f", as asked {row['as_asked']:.1%}"
        print(text)
        results.append(row)
    if arguments.json:
        arguments.json.write_text(json.dumps({"real": real.tolist(), "results": results}, indent=2) + "\n")


if __name__ == "__main__":
    main()
