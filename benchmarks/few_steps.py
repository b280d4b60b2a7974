"""Few-step sampling of a trained model: a figure of samples at 5, 10, 20, 50 calls, and their distance to fine runs.

    python benchmarks/few_steps.py [--run runs/...] [--out docs/few_steps.png] [--json OUT] [--test 200] [--fit 512]

Needs a run of images (the default: the newest). Every column has the same starts; the error of a solver is the rms
distance of its samples to those of 300 steps from the same starts, divided by the data's rms.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from PIL import Image, ImageDraw

from scoresde import DDIM, DPMSolverPP2M, ExponentialAdams, Heun, StepSolver, UniPC, logsnr_grid
from scoresde.commands.load import load_run, newest_run
from scoresde.denoiser import Denoiser
from scoresde.fitting import ReferencePaths, calibrate, reference_paths

NFE = (5, 10, 20, 50)
SOLVERS: dict[str, Callable[[int], StepSolver]] = {
    "DDIM": lambda nfe: DDIM(steps=nfe - 1, grid=logsnr_grid),
    "Heun": lambda nfe: Heun(steps=max((nfe - 1) // 2, 1)),
    "DPM-Solver++(2M)": lambda nfe: DPMSolverPP2M(steps=nfe - 1),
    "UniPC(3)": lambda nfe: UniPC(steps=nfe - 1),
    "ExponentialAdams": lambda nfe: ExponentialAdams(steps=nfe - 1),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path)
    parser.add_argument("--out", type=Path, default=Path("few_steps.png"))
    parser.add_argument("--json", type=Path)
    parser.add_argument("--test", type=int, default=200, help="starts that solvers are compared on (%(default)s)")
    parser.add_argument("--fit", type=int, default=512, help="paths that they are fitted to (%(default)s)")
    parser.add_argument("--iterations", type=int, default=150, help="of the fits (%(default)s)")
    args = parser.parse_args()
    trained = load_run(newest_run(Denoiser).path if args.run is None else args.run)
    denoiser: Any = trained.model
    if trained.config["model"].get("num_classes") is not None:
        denoiser = denoiser.given(label=None)

    def paths(count: int, seed: int, steps: int) -> ReferencePaths:
        generator = torch.Generator().manual_seed(seed)
        return reference_paths(denoiser, trained.shape, count, steps=steps, generator=generator)

    test, references = paths(args.test, 1, 300), paths(args.fit, 2, 60)
    rows, pictures = [], {}
    for name in [*SOLVERS, "calibrated"]:
        for nfe in NFE:
            if name == "calibrated":
                if nfe > 10:
                    continue
                solver: Any = calibrate(denoiser, nfe, references, iterations=args.iterations, batch=32)
            else:
                solver = SOLVERS[name](nfe)
            x = solver(denoiser, test.start)
            error = (x - test.end).flatten(1).square().mean(1).sqrt() / test.rms
            rows.append(
                {
                    "solver": name,
                    "nfe": nfe,
                    "median": float(error.median()),
                    "rms": float(error.square().mean().sqrt()),
                }
            )
            pictures[name, nfe] = x[:24]
            print(f"{name:18} {nfe:3d} calls   median {rows[-1]['median']:.4f}   rms {rows[-1]['rms']:.4f}", flush=True)
    pictures["fine", 0] = test.end[:24]
    draw(pictures, trained.codec, args.out)
    if args.json:
        args.json.write_text(json.dumps({"run": str(trained.run.path), "results": rows}, indent=1) + "\n")


def draw(
    pictures: dict[tuple[str, int], torch.Tensor], codec: Any, out: Path, scale: int = 4, columns: int = 6
) -> None:
    """A row of panels per solver, a column per number of calls; the fine run in the last row."""
    names = list(dict.fromkeys(name for name, _ in pictures))
    first = codec.to_uint8(next(iter(pictures.values())))
    side, gap = first.shape[-1] * scale + 3, 14
    width, height = columns * side + gap, (len(first) // columns) * side + 2 * gap
    sheet = Image.new("RGB", (len(NFE) * width + gap, len(names) * height + gap), "white")
    pen = ImageDraw.Draw(sheet)
    for row, name in enumerate(names):
        for column, nfe in enumerate(NFE if name != "fine" else (0,)):
            if (name, nfe) not in pictures:
                continue
            left, top = gap + column * width, row * height + 2 * gap
            pen.text((left, top - gap), f"{name}, {nfe} calls" if nfe else "300 steps", fill="black")
            for k, pixels in enumerate(codec.to_uint8(pictures[name, nfe])):
                image = Image.fromarray(pixels.permute(1, 2, 0).squeeze(-1).numpy()).resize(
                    (side - 3, side - 3), Image.Resampling.NEAREST
                )
                sheet.paste(image, (left + k % columns * side, top + k // columns * side))
    sheet.save(out)
    print(f"wrote {out}")


if __name__ == "__main__":
    main()
