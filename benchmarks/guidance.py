"""Class-conditional digits over the scale, for every rule of guidance: do classifiers that took no part agree?

    python benchmarks/guidance.py --run runs/labelled [--worse runs/less_trained] [--samples 250] [--json OUT]

The run is a model of the digits with classes (python train.py conditional=true); --worse is another one of the same
data, smaller or less trained, for autoguidance. For every rule and scale, the same starts and labels, the ten digits in
turn:

    agree      share of samples that three classifiers of another architecture, trained here on the clean training
               digits, take for the digit that was asked for; beside it that of the test digits
    frechet    class by class, the Fréchet distance between the classifiers' 12 features on samples and on test digits,
               averaged over classes, and divided by that of as many training digits: 1 is as good as real ones. Both
               are larger for fewer samples
    contrast   standard deviation of the pixels, divided by that of the test digits

Scale 0 is the model without a label and scale 1 with it, whatever the rule. CFG++ has another scale, per step of DDIM.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from digits_quality import DATA, classifier, frechet, scaled
from torch import Tensor

from scoresde import DDIM, Denoiser, ExponentialAdams, Guided, Solver
from scoresde.commands.load import TrainedModel, load_run
from scoresde.guidance import APG, CFGPP, CosineScale
from scoresde.pictures.canvas import Canvas, png

FEATURES = 12
SCALES = (1.5, 2.0, 3.0, 5.0)
RENOISED = (0.4, 0.7, 1.0, 1.5)
SHOWN = 6  # digits of every setting in the picture
Make = Callable[[float], Denoiser]


def rules(trained: TrainedModel, worse: Denoiser | None, label: Tensor) -> dict[str, tuple[Make, Any]]:
    """A denoiser for every scale, and the scales, by the rule's name."""
    model = trained.denoiser
    good, free, other = model.given(label=label), model.given(label=None), model.given(label=(label + 1) % 10)
    found: dict[str, tuple[Make, Any]] = {
        "plain": (lambda s: Guided(good, free, s), (0.0, 1.0)),
        "cfg": (lambda s: Guided(good, free, s), SCALES),
        "cfg, rescale=0.7": (lambda s: Guided(good, free, s, rescale=0.7), SCALES),
        "cfg, interval=[0.2,3]": (lambda s: Guided(good, free, s, interval=(0.2, 3.0)), SCALES),
        "cfg, cosine": (lambda s: Guided(good, free, CosineScale(noise=1.0, data=s)), SCALES),
        "apg": (lambda s: APG(good, free, s, eta=0.0, norm=2.0), SCALES),
        "negative: next digit": (lambda s: Guided(good, other, s), SCALES),
        "cfg++": (lambda s: CFGPP(good, free, s), RENOISED),
    }
    if worse is not None:
        bad = worse.given(label=label)
        found["autoguidance"] = (lambda s: Guided(good, bad, s), SCALES)
    return found


class Judges:
    """Three classifiers, and what they say of samples."""

    def __init__(self, per_class: int) -> None:
        self.nets = [classifier(seed, FEATURES) for seed in range(10, 13)]
        self.per_class = per_class
        x, label = DATA.test.x, DATA.test.label
        assert label is not None and DATA.train.label is not None
        self.accuracy = float((self.classes(x) == label).float().mean())
        self.test = [[net[:-1](scaled(x[label == k])) for k in range(10)] for net in self.nets]
        order = torch.randperm(len(DATA.train), generator=torch.Generator().manual_seed(0))
        rows = [order[DATA.train.label[order] == k][:per_class] for k in range(10)]
        chosen = torch.cat(rows)
        self.unit = 1.0
        self.unit = self.distance(DATA.train.x[chosen], DATA.train.label[chosen])

    def classes(self, levels: Tensor) -> Tensor:
        return torch.stack([net(scaled(levels)).softmax(1) for net in self.nets]).mean(0).argmax(1)

    def distance(self, levels: Tensor, label: Tensor) -> float:
        values = [
            frechet(net[:-1](scaled(levels[label == k])), test[k])
            for net, test in zip(self.nets, self.test, strict=True)
            for k in range(10)
        ]
        return sum(values) / len(values) / self.unit


def draw(denoiser: Denoiser, solver: Solver, start: Tensor, batch: int) -> Tensor:
    """Samples from rows of a start; the denoiser's labels are chosen with them."""
    parts = []
    for rows in torch.arange(len(start)).split(batch):
        part = denoiser.select(rows, len(start))
        assert part is not None
        parts.append(solver(part, start[rows]))
    return torch.cat(parts)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, required=True)
    parser.add_argument("--worse", type=Path)
    parser.add_argument("--samples", type=int, default=250)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--batch", type=int, default=50)
    parser.add_argument("--rules", default="", help="some of them, with ; in between (default: all)")
    parser.add_argument("--scales", default="", help="in place of a rule's own ones: 1.5,2")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--out", type=Path, help="a picture")
    args = parser.parse_args()

    trained = load_run(args.run)
    trained.model.to(memory_format=torch.channels_last)
    worse = None if args.worse is None else load_run(args.worse).denoiser
    judges = Judges(args.samples // 10)
    label = torch.arange(args.samples) % 10
    start = trained.denoiser.sde.prior_sample(
        (args.samples, *trained.shape), generator=torch.Generator().manual_seed(0)
    )
    real = float(scaled(DATA.test.x).std())
    print(f"test digits: {judges.accuracy:.1%} as labelled; {args.samples} samples, {args.steps} steps")
    print(f"{'rule':<24}{'scale':>6}{'agree':>8}{'frechet':>9}{'contrast':>10}")
    results, shown = [], {}
    chosen = rules(trained, worse, label)
    for name in [name for name in args.rules.split(";") if name] or chosen:
        make, scales = chosen[name]
        scales = tuple(map(float, args.scales.split(","))) if args.scales else scales
        for scale in scales:
            solver: Solver = DDIM(steps=args.steps) if name == "cfg++" else ExponentialAdams(steps=args.steps)
            began = time.process_time()
            x = draw(make(scale), solver, start, args.batch)
            levels = trained.codec.decode(x)
            agree = float((judges.classes(levels) == label).float().mean())
            row = {
                "rule": name, "scale": scale, "agree": agree,
                "agree_std_error": math.sqrt(max(agree * (1 - agree), 1e-9) / len(x)),
                "frechet": judges.distance(levels, label), "contrast": float(scaled(levels).std()) / real,
                "cpu_seconds": round(time.process_time() - began, 1),
            }  # fmt: skip
            print(f"{name:<24}{scale:>6g}{agree:>8.1%}{row['frechet']:>9.2f}{row['contrast']:>10.2f}", flush=True)
            results.append(row)
            shown[name, scale] = levels[:SHOWN, 0]
    if args.json:
        about = {"run": str(args.run), "samples": args.samples, "steps": args.steps, "test_accuracy": judges.accuracy}
        args.json.write_text(json.dumps({**about, "results": results}, indent=2) + "\n")
    if args.out:
        args.out.write_bytes(picture(shown))


def picture(shown: dict[tuple[str, float], Tensor]) -> bytes:
    """A row for every rule, the first digits for every scale."""
    names, size = list(dict.fromkeys(name for name, _ in shown)), 3
    wide = SHOWN * (8 * size + 2) + 14
    canvas = Canvas(180 + 4 * wide, 10 + len(names) * (8 * size + 22))
    for place, name in enumerate(names):
        top = 8 + place * (8 * size + 22)
        canvas.text(8, top + 20, name, size=12, room=165)
        for column, scale in enumerate(scale for rule, scale in shown if rule == name):
            left = 180 + column * wide
            canvas.text(left, top, f"scale {scale:g}", size=10)
            for k, levels in enumerate(shown[name, scale]):
                grey = (255 - levels * 255 // 16).to(torch.uint8).clamp(0, 255)
                big = grey.repeat_interleave(2 * size, 0).repeat_interleave(2 * size, 1)
                canvas.paste(big[..., None].expand(-1, -1, 3).numpy(), left + k * (8 * size + 2), top + 15)
    return png(canvas.image())


if __name__ == "__main__":
    main()
