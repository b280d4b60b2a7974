"""Inpainting digits: are the completions the right digit, and are credible intervals of the missing pixels honest?

    python benchmarks/inpainting.py [--run RUN] [--methods ddrm,mmps] [--json OUT] [--picture OUT.png]

Test digits of 8 × 8 pixels, of which the left half or the 4 × 4 in the middle is missing. The prior is a trained model,
a run of `python train.py experiment=digits` with conditional=false; without --run it is a kernel density of the 897
training digits, of which the exact posterior is known: the row "exact" is what a perfect method gives with that prior.
For each method with each of its solvers:

    as true    share of completions that a classifier, which took no part in anything else, takes for the true digit
    50, 90     share of missing true pixels inside the central credible interval of the samples; ties at random
    error      mean square of the posterior mean's error, missing pixels, data in [−1, 1]
    std        root mean square standard deviation of missing pixels: √error for an honest posterior
    calls      forward calls of the network; those of populations one after the other; s: seconds in all

Coverage is by the rank of the truth among the samples: 0.50 and 0.90 for a calibrated posterior of any number of them.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from PIL import Image
from torch import Tensor, nn

from scoresde import DDIM, DDPM, SDE, VPSDE, Denoiser, PredictorCorrector, expand, inverse
from scoresde.commands.load import load_run
from scoresde.data import digits
from scoresde.inverse import DAPS, DDRM, Mask, Measurement, RePaint, Replacement
from scoresde.noise import per_sample_noise
from scoresde.sde.levels import Level
from scoresde.solvers import AnnealedLangevin, ExponentialAdams

DATA = digits()
SHAPE = (1, 8, 8)
WIDTH = 0.3  # of the kernel: what makes the test digits likeliest
LINE = (
    "{mask:7s} {method:23s} {solver:21s} as true {as_true:.3f}  50: {coverage50:.3f}  90: {coverage90:.3f}  "
    "error {error:.4f}  std {std:.3f} (√error {root:.3f})  calls {calls:4d}  {seconds:.1f} s"
)
Draw = Callable[[Denoiser, Measurement, Tensor, Any], Tensor]


def scaled(levels: Tensor) -> Tensor:
    return levels.float() / 8 - 1


def classifier() -> nn.Module:
    """A perceptron trained on the training digits: it has seen neither the model nor a completion."""
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 128), nn.ReLU(), nn.Dropout(0.3), nn.Linear(128, 10))
    optimizer = torch.optim.Adam(net.parameters(), 1e-2, weight_decay=1e-5)
    x, label = scaled(DATA.train.x), DATA.train.label
    assert label is not None
    for _ in range(150):
        optimizer.zero_grad()
        nn.functional.cross_entropy(net(x), label).backward()
        optimizer.step()
    return net.eval().requires_grad_(False)


class KernelDensity(Denoiser):
    """x0 = a training digit + WIDTH n; exact, and its posterior given a mask too."""

    def __init__(self, sde: SDE) -> None:
        super().__init__()
        self.sde, self.centers = sde, scaled(DATA.train.x).flatten(1)

    def forward(self, x: Tensor, t: Tensor, **cond: Any) -> Tensor:
        alpha, sigma = (expand(value.to(x), x) for value in (self.sde.alpha(t), self.sde.sigma(t)))
        y, variance = x / alpha, (sigma / alpha) ** 2
        total = variance + WIDTH**2
        flat, centers = y.flatten(1), self.centers.to(x)
        distance = centers.square().sum(1) - 2 * flat @ centers.T
        mean = torch.softmax(-0.5 * distance / total.reshape(-1, 1), 1) @ centers
        return (WIDTH**2 * y + variance * mean.reshape(y.shape)) / total  # type: ignore[no-any-return]

    def posterior(self, y: Tensor, mask: Tensor) -> Tensor:
        """One draw of x0 for each row of y (B, *SHAPE), whose entries are exact where mask (*SHAPE) is 1."""
        seen = mask.flatten().bool()
        distance = torch.cdist(y.flatten(1)[:, seen], self.centers[:, seen]).square()
        chosen = torch.multinomial(torch.softmax(-0.5 * distance / WIDTH**2, 1), 1)[:, 0]
        draw = self.centers[chosen] + WIDTH * torch.randn(len(y), len(seen))
        return torch.where(mask.bool(), y, draw.reshape(y.shape))


class Counted(Denoiser):
    """Counts calls."""

    def __init__(self, denoiser: Denoiser) -> None:
        super().__init__()
        self.denoiser, self.sde, self.calls = denoiser, denoiser.sde, 0

    def x0(self, x: Tensor, level: Level, **cond: Any) -> Tensor:
        self.calls += 1
        return self.denoiser.x0(x, level, **cond)


class Candidate(NamedTuple):
    """A method with a solver."""

    method: str
    solver: str
    draw: Draw


def candidates(steps: int, samples: int) -> list[Candidate]:
    """Everything that the library has for a mask without noise, at about the given number of steps."""

    def solver(made: Callable[[Measurement], Any]) -> Draw:
        return lambda denoiser, y, x, noise: made(y)(denoiser, x, noise=noise)

    pc = PredictorCorrector(steps=steps, predictor=DDPM(), corrector=AnnealedLangevin())
    found = [
        Candidate("Replacement (published)", f"DDPM({steps})", solver(
            lambda y: Replacement(measurement=y, solver=DDPM(steps=steps), as_published=True))),
        Candidate("Replacement", f"DDPM({steps})", solver(
            lambda y: Replacement(measurement=y, solver=DDPM(steps=steps)))),
        Candidate("Replacement", f"DDIM({steps})", solver(
            lambda y: Replacement(measurement=y, solver=DDIM(steps=steps)))),
        Candidate("Replacement", f"PC({steps})", solver(lambda y: Replacement(measurement=y, solver=pc))),
        Candidate("RePaint", "jump 5, 4 times", solver(
            lambda y: RePaint(measurement=y, steps=steps, jump=5, resamplings=4))),
        Candidate("DDRM", f"own({steps})", solver(lambda y: DDRM(measurement=y, steps=steps))),
        Candidate("DDRM (η = 0.3)", f"own({steps})", solver(lambda y: DDRM(measurement=y, steps=steps, eta=0.3))),
        Candidate("DAPS (1 call)", f"own({steps})", solver(lambda y: DAPS(measurement=y, steps=steps))),
        Candidate("DAPS (5 calls)", f"own({steps // 5})", solver(
            lambda y: DAPS(measurement=y, steps=steps // 5, ode_steps=5))),
    ]  # fmt: skip
    if "DPS" in inverse.__all__:
        found.append(Candidate("DPS", f"DDPM({5 * steps})", solver(
            lambda y: inverse.DPS(measurement=y, solver=DDPM(), steps=5 * steps))))  # fmt: skip
    options: dict[str, dict[str, Any]] = {"MMPS": {"iterations": 3}, "PiGDM": {"std": 0.7}}
    for name in ("DiffPIR", "PiGDM", "TMPD", "MMPS"):
        for inner in (DDPM(steps=steps), ExponentialAdams(steps=steps)):
            if name in inverse.__all__:
                found.append(Candidate(name, f"{type(inner).__name__}({steps})", conditioned(
                    getattr(inverse, name), inner, **options.get(name, {}))))  # fmt: skip
    if "TwistedSMC" in inverse.__all__:
        many = partial(particles, steps=steps, samples=samples)
        found.append(Candidate("TwistedSMC (isotropic)", "256 particles", many))
    return found


def particles(denoiser: Denoiser, y: Measurement, x: Tensor, noise: Any, *, steps: int, samples: int) -> Tensor:
    """Twisted SMC with a population of 256 for each observation, whose pixels count as read to 0.1."""
    found = []
    for rows in torch.arange(len(x)).split(samples):
        soft = Measurement(y.operator, y.y[rows[:1]], 0.1)
        solver = inverse.TwistedSMC(measurement=soft, steps=steps, particles=256, covariance="isotropic")
        found.append(solver(denoiser, x[rows], noise=per_sample_noise(x[rows], int(rows[0]))))
    return torch.where(y.operator.observed, y.y, torch.cat(found))


def exactly(prior: KernelDensity, mask: Tensor) -> Candidate:
    """What a perfect method gives."""
    return Candidate("exact", "", lambda denoiser, y, x, noise: prior.posterior(y.y, mask))


def conditioned(kind: Callable[..., Denoiser], solver: Any, **options: Any) -> Draw:
    """A denoiser of p(x0 | y) in a solver; the known pixels at the end are y itself."""

    def draw(denoiser: Denoiser, y: Measurement, x: Tensor, noise: Any) -> Tensor:
        found = solver(kind(denoiser, y, **options), x, noise=noise)
        return torch.where(y.operator.observed, y.y, found)

    return draw


def masks() -> dict[str, Tensor]:
    left, center = torch.ones(SHAPE), torch.ones(SHAPE)
    left[..., :4], center[..., 2:6, 2:6] = 0, 0
    return {"left": left, "center": center}


def judged(x: Tensor, truth: Tensor, label: Tensor, mask: Tensor, net: Callable[[Tensor], Tensor]) -> dict[str, float]:
    """Of samples x (J, K, *SHAPE) given truths (J, *SHAPE) in whole grey levels of 1/8."""
    right = (net(x.flatten(0, 1)).argmax(1) == label.repeat_interleave(x.shape[1])).float().mean()
    missing = mask == 0
    samples, true = x[:, :, missing], truth[:, None, missing]
    levels = (8 * (samples + 1)).round().clamp(0, 16) / 8 - 1
    below, equal = (levels < true).sum(1), (levels == true).sum(1)
    place = (below + torch.rand(below.shape) * (equal + 1)) / (x.shape[1] + 1)  # uniform if truth and samples are alike
    distance = (place - 0.5).abs()
    return {
        "as_true": float(right),
        "coverage50": float((distance <= 0.25).float().mean()),
        "coverage90": float((distance <= 0.45).float().mean()),
        "error": float((samples.mean(1) - true[:, 0]).square().mean()),
        "std": float(samples.var(1).mean().sqrt()),
    }


def pictured(rows: Iterable[Tensor], path: Path) -> None:
    """Rows of digits (n, *SHAPE), one below the other, magnified."""
    lines = [torch.cat(list(row.clamp(-1, 1)[:, 0]), 1) for row in rows]
    pixels = (torch.cat(lines) + 1) * 127.5
    large = pixels.repeat_interleave(4, 0).repeat_interleave(4, 1)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(large.round().byte().numpy()).save(path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", help="run directory or checkpoint; without it a kernel density is the prior")
    parser.add_argument("--digits", type=int, default=100)
    parser.add_argument("--samples", type=int, default=19, help="of each digit")
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--masks", default="left,center")
    parser.add_argument("--methods", help="in small letters, as the table has them; all if left out")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--picture", type=Path, help="first digits: truth, observation, then a sample of each method")
    options = parser.parse_args()
    torch.manual_seed(0)
    net, n, k = classifier(), options.digits, options.samples
    chosen = torch.randperm(len(DATA.test.x), generator=torch.Generator().manual_seed(1))[:n]
    truth, label = scaled(DATA.test.x[chosen]), DATA.test.label[chosen]
    prior = KernelDensity(VPSDE()) if options.run is None else load_run(options.run).denoiser
    named = options.run or "kernel density"
    right = float((net(truth).argmax(1) == label).float().mean())
    print(f"prior: {named}; {n} digits, {k} samples each; {right:.3f} of the true digits are taken for what they are")
    results: list[dict[str, Any]] = []
    for name in options.masks.split(","):
        mask = masks()[name]
        y = (truth * mask).repeat_interleave(k, 0)
        measurement, rows = Measurement(Mask(mask), y, 0.0), [truth[:16], (truth * mask)[:16]]
        exact = [exactly(prior, mask)] if isinstance(prior, KernelDensity) else []
        for method, solver, draw in exact + candidates(options.steps, k):
            if options.methods and method.lower() not in options.methods.split(","):
                continue
            counted, began = Counted(prior), time.perf_counter()
            x = prior.sde.prior_sample((n * k, *SHAPE), generator=torch.Generator().manual_seed(2))
            try:
                with torch.no_grad():
                    x = draw(counted, measurement, x, per_sample_noise(x, 3)).reshape(n, k, *SHAPE)
            except FloatingPointError as error:  # it ran away
                print(f"{name:7s} {method:23s} {solver:21s} {str(error).partition('. ')[0]}", flush=True)
                results.append({"mask": name, "method": method, "solver": solver, "refused": str(error)})
                continue
            rows.append(x[:16, 0])
            row = {"mask": name, "method": method, "solver": solver, **judged(x, truth, label, mask, net)}
            results.append({**row, "calls": counted.calls, "seconds": round(time.perf_counter() - began, 1)})
            print(LINE.format(**results[-1], root=row["error"] ** 0.5), flush=True)
        if options.picture is not None:
            pictured(rows, options.picture.with_stem(f"{options.picture.stem}_{name}"))
    if options.json is not None:
        options.json.write_text(json.dumps({"prior": named, "results": results}, indent=1))


if __name__ == "__main__":
    main()
