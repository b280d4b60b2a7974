"""One picture of posteriors of digits for each method of scoresde.inverse, as docs/inverse.md shows them.

    python train.py data=digits budget=10min run=runs/digits
    python benchmarks/inverse_figures.py runs/digits --out docs/inverse

Each is what `python sample.py run=RUN task=inpaint task.mask=left method=METHOD ...` writes as posterior.png.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

HALF = ("task=inpaint", "task.mask=left")
COARSE = ("task=super_resolution", "task.factor=2")
FIGURES: dict[str, tuple[str, ...]] = {
    "mmps": HALF,
    "tmpd": (*HALF, "solver=ddpm", "solver.steps=50"),
    "pigdm": COARSE,
    "diffpir": ("task=deblur",),
    "dps": (*HALF, "method.steps=200"),
    "replacement": (*HALF, "method.solver.steps=100"),
    "ilvr": (*COARSE, "task.noise=0", "method.solver.steps=100"),
    "repaint": (*HALF, "method.steps=50", "method.jump=5", "method.resamplings=3"),
    "ddrm": COARSE,
    "daps": ("task=deblur", "method.steps=25", "method.ode_steps=2"),
    "tds": ("task=super_resolution", "task.factor=4", "method.steps=20", "method.particles=32"),
}
SAMPLE = Path(__file__).parents[1] / "sample.py"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", help="run of data=digits")
    parser.add_argument("--out", type=Path, default=Path("docs/inverse"))
    parser.add_argument("--methods", default=",".join(FIGURES), help="some of them: mmps,ddrm")
    parser.add_argument("--samples", type=int, default=6)
    parser.add_argument("--observations", type=int, default=3)
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    for method in options.methods.split(","):
        if method not in FIGURES:
            sys.exit(f"inverse_figures.py: {method} has no figure: there is {', '.join(FIGURES)}.")
        with tempfile.TemporaryDirectory() as folder:
            command = [
                sys.executable, str(SAMPLE), f"run={options.run}", f"method={method}", *FIGURES[method],
                f"out={folder}", f"num_samples={options.samples}", f"task.num_observations={options.observations}",
            ]  # fmt: skip
            print(" ".join(["python sample.py", *command[2:-3]]), flush=True)
            subprocess.run(command, check=True)
            shutil.copy(Path(folder) / "posterior.png", options.out / f"{method}.png")


if __name__ == "__main__":
    main()
