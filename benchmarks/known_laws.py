"""Log-likelihoods of the default recipes against laws that are known.

    python benchmarks/known_laws.py [--laws table series-rbf ...] [--rows 5000] [--json OUT] [-- OPTIONS OF train.py]

For every law: draws --rows examples, trains `experiment=table`, `series` or `volume` by the command line with its
defaults, scores --held examples that training has not seen by `sample.py likelihood=...`, and prints

    gap      mean of true log p less mean of the model's, nats per entry
    row      correlation of the two over examples
    auc      of telling planted anomalies from other examples by the model's log p
    std      largest relative error of a standard deviation of the samples, and largest error of a correlation between
             entries, of those of as many true examples in brackets

Columns of a table are compared in the data's own units.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from laws import LAWS, Array, Law


def run(name: str, *arguments: str, cwd: Path) -> str:
    """One command line."""
    code = f"from scoresde.cli import {name}_main; {name}_main()"
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, cwd=cwd)
    if done.returncode:
        raise SystemExit(f"{name} {' '.join(arguments)} failed:\n{done.stdout[-2000:]}{done.stderr[-2000:]}")
    return done.stdout + done.stderr


def save(path: Path, x: Array, condition: Array | None) -> None:
    np.savez(path, **{"x": x} | ({} if condition is None else {"condition": condition}))


def scores(path: Path, cwd: Path, likelihood: str, more: list[str]) -> Array:
    """log p in nats of every row of a file."""
    arguments = ["run=run", "num_samples=0", f"likelihood={likelihood}", "data=array", f"data.path={path}", *more]
    run("sample", *arguments, "likelihood.resume=false", f"likelihood.csv={path}.csv", cwd=cwd)
    rows = np.genfromtxt(f"{path}.csv", delimiter=",", names=True)
    return np.asarray(rows["nats"], dtype=float)


def auc(usual: Array, anomalous: Array) -> float:
    """Probability that an anomaly has the smaller log p."""
    return float((anomalous[:, None] < usual[None]).mean())


def moments(x: Array) -> tuple[Array, Array]:
    flat = x.reshape(len(x), -1)[:, :: max(1, x[0].size // 64)]
    return flat.std(0), np.corrcoef(flat.T)


def judged(law: Law, where: Path, args: argparse.Namespace) -> dict[str, Any]:
    rng = np.random.default_rng(args.seed)
    shown = law.draw(args.rows, rng)
    held = law.draw(args.held, rng)
    save(where / "train.npz", shown[0], shown[2])
    save(where / "held.npz", held[0], held[2])
    began = time.perf_counter()
    options = [f"experiment={law.experiment}", "data.path=train.npz", "logger=csv", "run=run", *args.options]
    said = run("train", *options, cwd=where)
    seconds = time.perf_counter() - began
    found, true, entries = scores(where / "held.npz", where, args.likelihood, args.scoring), held[1], held[0][0].size
    result = {
        "rows": args.rows, "entries": entries, "seconds": round(seconds), "true": true.mean() / entries,
        "found": found.mean() / entries, "gap": (true.mean() - found.mean()) / entries,
        "row": float(np.corrcoef(true, found)[0, 1]), "command": "python train.py " + " ".join(options),
        "said": [line for line in said.splitlines() if "parameters" in line],
    }  # fmt: skip
    if law.spoil is not None:
        anomalies = law.spoil(held[0], rng)
        save(where / "spoiled.npz", anomalies, held[2])
        result["auc"] = auc(found, scores(where / "spoiled.npz", where, args.likelihood, args.scoring))
    if held[2] is None:
        run("sample", "run=run", f"num_samples={args.held}", "likelihood=none", "out=drawn", cwd=where)
        drawn = np.load(where / "drawn" / "samples.npz")["x"]
        fresh = law.draw(20 * args.held, rng)[0] if entries < 1000 else law.draw(2000, rng)[0]
        std, correlation = moments(fresh)
        for name, x in (("samples", drawn), ("truth", held[0])):
            errors = moments(np.asarray(x, dtype=float))
            result[name] = [float(abs(errors[0] / std - 1).max()), float(abs(errors[1] - correlation).max())]
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--laws", nargs="*", default=list(LAWS), choices=list(LAWS))
    parser.add_argument("--rows", type=int, default=5000, help="training examples, a tenth of which is the test split")
    parser.add_argument("--held", type=int, default=256)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--likelihood", default="hutchinson")
    parser.add_argument("--scoring", nargs="*", default=["likelihood.probes=4"], help="more options of sample.py")
    parser.add_argument("--json", type=Path)
    parser.add_argument("options", nargs="*", help="more options of train.py")
    args = parser.parse_args()
    results = {}
    print(f"{'law':16} {'true':>8} {'found':>8} {'gap':>7} {'row':>6} {'auc':>6}  std, correlation     seconds")
    for name in args.laws:
        with tempfile.TemporaryDirectory() as folder:
            results[name] = result = judged(LAWS[name](), Path(folder), args)
        samples = "{:.3f} {:.3f} ({:.3f} {:.3f})".format(*result.get("samples", [0, 0]), *result.get("truth", [0, 0]))
        numbers = f"{result['true']:8.3f} {result['found']:8.3f} {result['gap']:7.4f} {result['row']:6.3f}"
        print(f"{name:16} {numbers} {result.get('auc', np.nan):6.3f}  {samples} {result['seconds']:6}", flush=True)
        if args.json is not None:
            args.json.write_text(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
