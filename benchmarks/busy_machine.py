"""Images per second of the default training, alone and beside another busy process, by how its threads wait.

    python benchmarks/busy_machine.py [--rounds 2] [--seconds 15] [--settings default,spin 3 ms] [--json OUT]

Each run is the command line itself, `python train.py sde=vp model=ncsnpp`, stopped after so many seconds of training.
Rounds alternate over all settings and neighbours and the table shows medians, so that other work hits all alike; the
load of the machine before each round is in the JSON. The neighbours:

    loop        one process that runs Python on one core
    matmul      one process of two threads that multiply matrices and wait as torch does by itself
    training    the same training a second time, with the same setting: both rates are measured

A neighbour's column "keeps" is its speed beside the training, over its speed alone.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
TORCH = {"GOMP_SPINCOUNT": "300000"}  # what GNU OpenMP does when nothing is set: threads spin for about 3 ms
SETTINGS: dict[str, dict[str, str]] = {
    "default": {},  # what the command line chooses
    "torch's own": TORCH,
    "passive": {"OMP_WAIT_POLICY": "PASSIVE"},
    "spin 100 µs": {"GOMP_SPINCOUNT": "10000"},
    "one thread": {"OMP_NUM_THREADS": "1"},
}
NEIGHBOURS = ("quiet", "loop", "matmul", "training")
LOOP = "n = 0\nwhile True:\n    n += 1\n    if n % 100_000 == 0: print(n, flush=True)"
MATMUL = (
    "import torch; torch.set_num_threads(2); a, n = torch.randn(500, 500), 0\n"
    "while True:\n    a @ a; n += 1\n    if n % 20 == 0: print(n, flush=True)"
)
THREADING = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME")


class Process:
    """A process of its own that is ended on leaving, with a count of what it has done."""

    def __init__(self, command: list[str], env: dict[str, str], folder: Path) -> None:
        clean = {key: value for key, value in os.environ.items() if key not in THREADING}
        self.output = folder / "output.txt"
        with self.output.open("w") as output:
            self._process = subprocess.Popen(
                command, cwd=folder, env={**clean, "PYTHONPATH": str(ROOT), **env}, stdout=output, stderr=output
            )

    def count(self) -> float:
        lines = self.output.read_text().split()
        return float(lines[-1]) if lines else 0.0

    def check(self) -> None:
        if self._process.poll() is not None:
            raise RuntimeError(f"a process ended early: {self.output.read_text()[-2000:]}")

    def stop(self) -> None:
        self._process.send_signal(signal.SIGKILL)
        self._process.wait()


class Training(Process):
    """The default training; counts the images of its logged steps."""

    def __init__(self, env: dict[str, str], folder: Path) -> None:
        options = ("sde=vp", "model=ncsnpp", "logger=csv", "trainer.log_every=1", "trainer.sample_every=null", "run=r")
        super().__init__([sys.executable, str(ROOT / "train.py"), *options], env, folder)
        self._metrics = folder / "r" / "metrics.csv"

    def count(self) -> float:
        if not self._metrics.is_file():
            return 0.0
        with self._metrics.open() as file:
            return 64.0 * sum(1 for _ in csv.DictReader(file))


def rates(processes: list[Process], seconds: float) -> list[float]:
    """Counts per second of each, once all have begun and run for a moment."""
    while not all(process.count() > 64 for process in processes):
        time.sleep(0.2)
        for process in processes:
            process.check()
    before, began = [], time.perf_counter()
    for process in processes:
        before.append(process.count())
    time.sleep(seconds)
    after = [process.count() for process in processes]
    took = time.perf_counter() - began
    return [(b - a) / took for a, b in zip(before, after, strict=True)]


def run(setting: str, neighbour: str, seconds: float) -> list[float]:
    """Rate of the training with a setting, and of its neighbour; "none" as setting: of the neighbour alone."""
    with tempfile.TemporaryDirectory() as name:
        processes: list[Process] = []

        def folder() -> Path:
            path = Path(name) / str(len(processes))
            path.mkdir()
            return path

        try:
            if setting != "none":
                processes.append(Training(SETTINGS[setting], folder()))
            if neighbour == "training":
                processes.append(Training(SETTINGS[setting], folder()))
            elif neighbour != "quiet":
                code = {"loop": LOOP, "matmul": MATMUL}[neighbour]
                processes.append(Process([sys.executable, "-c", code], TORCH, folder()))
            return rates(processes, seconds)
        finally:
            for process in processes:
                process.stop()


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=2, help="rounds (default: %(default)s)")
    parser.add_argument("--seconds", type=float, default=15, help="seconds of training a run (default: %(default)s)")
    parser.add_argument("--settings", default=",".join(SETTINGS), help="which of: %(default)s")
    parser.add_argument("--neighbours", default=",".join(NEIGHBOURS), help="which of: %(default)s")
    parser.add_argument("--json", type=Path, help="write the numbers here")
    args = parser.parse_args(argv)
    settings, neighbours = args.settings.split(","), args.neighbours.split(",")

    rows: list[dict[str, Any]] = []
    alone: dict[str, list[float]] = {}
    for number in range(args.rounds):
        load = os.getloadavg()[0] if hasattr(os, "getloadavg") else None
        for neighbour in neighbours:
            if neighbour in ("loop", "matmul"):
                alone.setdefault(neighbour, []).extend(run("none", neighbour, min(args.seconds, 5)))
            for setting in settings:
                rate, *other = run(setting, neighbour, args.seconds)
                rows.append({"round": number, "load": load, "setting": setting, "neighbour": neighbour,
                             "images_per_second": rate, "neighbour_rate": other[0] if other else None})  # fmt: skip
                print(f"round {number + 1}, load {load}: {setting}, {neighbour}: {rate:.0f}", file=sys.stderr)

    print(f"images per second, medians of {args.rounds} rounds; in brackets, what the neighbour keeps of its own speed")
    print(f"{'':14}" + "".join(f"{neighbour:>18}" for neighbour in neighbours))
    for setting in settings:
        cells = []
        for neighbour in neighbours:
            own = [row for row in rows if (row["setting"], row["neighbour"]) == (setting, neighbour)]
            rate = statistics.median(row["images_per_second"] for row in own)
            if neighbour in alone:
                kept = statistics.median(row["neighbour_rate"] for row in own) / statistics.median(alone[neighbour])
                cells.append(f"{rate:.0f} ({kept:.0%})")
            else:
                second = [row["neighbour_rate"] for row in own if row["neighbour_rate"] is not None]
                cells.append(f"{rate:.0f}" + (f" and {statistics.median(second):.0f}" if second else ""))
        print(f"{setting:14}" + "".join(f"{cell:>18}" for cell in cells))
    if args.json is not None:
        args.json.write_text(json.dumps({"cores": os.cpu_count(), "alone": alone, "results": rows}, indent=2) + "\n")


if __name__ == "__main__":
    main()
