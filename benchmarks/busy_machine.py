"""Images per second of the default training, alone and beside another busy process, by how its threads wait.

    python benchmarks/busy_machine.py [--rounds 5] [--seconds 4] [--settings "default,one thread"] [--json OUT]

Every setting is one process of the command line itself, `python train.py sde=vp model=ncsnpp`. All of them are started
and paused; then they run in turns of a few seconds, for many rounds, so that other work on the machine hits all alike.
The table shows medians, and quartiles in the JSON, with the load of the machine. The neighbours:

    loop        a process that runs Python on one core
    matmul      a process of two threads that multiply matrices and wait as torch does by itself
    training    the same training a second time, with the same setting: both rates are measured

Percentages are what the neighbour keeps of its own speed. Needs a system with SIGSTOP.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
TORCH = {"GOMP_SPINCOUNT": "300000"}  # what GNU OpenMP does when nothing is set: threads spin for about 3 ms
SETTINGS: dict[str, dict[str, str]] = {
    "default": {},  # what the command line chooses
    "torch's own": TORCH,
    "spin 100 µs": {"GOMP_SPINCOUNT": "10000"},
    "spin 10 µs": {"GOMP_SPINCOUNT": "1000"},
    "passive": {"OMP_WAIT_POLICY": "PASSIVE"},
    "one thread": {"OMP_NUM_THREADS": "1"},
}
NEIGHBOURS = ("quiet", "loop", "matmul", "training")
LOOP = "n = 0\nwhile True:\n    n += 1\n    if n % 100_000 == 0: print(n, flush=True)"
MATMUL = (
    "import torch; torch.set_num_threads(2); a, n = torch.randn(500, 500), 0\n"
    "while True:\n    a @ a; n += 1\n    if n % 20 == 0: print(n, flush=True)"
)
THREADING = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME")
BATCH = 64


class Process:
    """A process of its own that can be paused, with a count of what it has done."""

    def __init__(self, command: list[str], env: dict[str, str], folder: Path) -> None:
        folder.mkdir()
        self.log = self.output = folder / "output.txt"
        clean = {key: value for key, value in os.environ.items() if key not in THREADING}
        with self.output.open("w") as output:
            self._process = subprocess.Popen(
                command, cwd=folder, env={**clean, "PYTHONPATH": str(ROOT), **env}, stdout=output, stderr=output
            )

    def start(self) -> None:
        """Wait until it has done something, then pause it."""
        while self.count() == 0:
            time.sleep(0.05)
            if self._process.poll() is not None:
                raise RuntimeError(f"a process ended early: {self.output.read_text()[-2000:]}")
        self.pause()

    def pause(self) -> None:
        self._process.send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        self._process.send_signal(signal.SIGCONT)

    def stop(self) -> None:
        self._process.kill()
        self._process.wait()

    def count(self) -> float:
        """The number in the first column of the last whole line."""
        if not self.log.is_file():
            return 0.0
        with self.log.open("rb") as file:
            file.seek(max(0, self.log.stat().st_size - 500))
            lines = file.read().split(b"\n")[:-1]
        last = lines[-1].split(b",")[0] if lines else b""
        return float(last) if last.isdigit() else 0.0


class Training(Process):
    """The default training."""

    def __init__(self, env: dict[str, str], folder: Path) -> None:
        options = ("sde=vp", "model=ncsnpp", "logger=csv", "run=r", "trainer.steps=1_000_000")
        periods = ("trainer.log_every=1", "trainer.sample_every=null", "trainer.checkpoint_every=null")
        super().__init__([sys.executable, str(ROOT / "train.py"), *options, *periods], env, folder)
        self.log = folder / "r" / "metrics.csv"


class Clock:
    """The rate of one process from the first to the last change of its count."""

    def __init__(self, process: Process) -> None:
        self.process, self.marks = process, [(time.perf_counter(), process.count())]

    def look(self) -> None:
        count = self.process.count()
        if count != self.marks[-1][1]:
            self.marks.append((time.perf_counter(), count))

    @property
    def changes(self) -> int:
        return len(self.marks) - 1

    def rate(self) -> float:
        (first, a), (last, b) = self.marks[1], self.marks[-1]  # the first change began before the clock
        return (b - a) / (last - first)


def turn(processes: list[Process], seconds: float) -> list[float]:
    """Let these run, the others being paused: counts per second of each."""
    for process in processes:
        process.resume()
    clocks = [Clock(process) for process in processes]
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or any(clock.changes < 3 for clock in clocks):
        time.sleep(0.005)
        for clock in clocks:
            clock.look()
    for process in processes:
        process.pause()
    return [clock.rate() for clock in clocks]


def measure(rounds: int, seconds: float, settings: list[str], neighbours: list[str]) -> list[dict[str, Any]]:
    """One row for each round, setting and neighbour; a row with setting "none" is of the neighbour alone."""
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as name, ExitStack() as stack:

        def started(process: Process) -> Process:
            stack.callback(process.stop)
            process.start()
            return process

        own = {key: started(Training(SETTINGS[key], Path(name) / f"{key} 1")) for key in settings}
        beside: dict[tuple[str, str], list[Process]] = {}
        for neighbour in neighbours:
            if neighbour in ("loop", "matmul"):
                code = LOOP if neighbour == "loop" else MATMUL
                other = started(Process([sys.executable, "-c", code], TORCH, Path(name) / neighbour))
                beside |= {(key, neighbour): [other] for key in ("none", *settings)}
            elif neighbour == "training":
                twins = {key: started(Training(SETTINGS[key], Path(name) / f"{key} 2")) for key in settings}
                beside |= {(key, neighbour): [twin] for key, twin in twins.items()}
            else:
                beside |= {(key, neighbour): [] for key in settings}

        for number in range(rounds):
            for (key, neighbour), others in beside.items():
                load = os.getloadavg()[0]
                found = turn([*([own[key]] if key in own else []), *others], seconds)
                images = found.pop(0) * BATCH if key in own else None
                rows.append({"round": number, "load": load, "setting": key, "neighbour": neighbour, "images": images,
                             "other": found[0] if found else None})  # fmt: skip
            print(f"round {number + 1} of {rounds}", file=sys.stderr, flush=True)
    return rows


def table(rows: list[dict[str, Any]]) -> str:
    """Medians by setting and neighbour."""

    def median(column: str, setting: str, neighbour: str) -> float:
        return statistics.median(
            row[column] for row in rows if (row["setting"], row["neighbour"]) == (setting, neighbour)
        )

    def cell(setting: str, neighbour: str) -> str:
        own = f"{median('images', setting, neighbour):.0f}"
        if neighbour == "quiet":
            return own
        other = median("other", setting, neighbour)
        if neighbour == "training":
            return f"{own} and {other * BATCH:.0f}"
        return f"{own} ({other / median('other', 'none', neighbour):.0%})"

    neighbours = list(dict.fromkeys(row["neighbour"] for row in rows))
    settings = [key for key in dict.fromkeys(row["setting"] for row in rows) if key != "none"]
    lines = [f"{'images per second':18}" + "".join(f"{neighbour:>16}" for neighbour in neighbours)]
    lines += [f"{key:18}" + "".join(f"{cell(key, neighbour):>16}" for neighbour in neighbours) for key in settings]
    loads = [row["load"] for row in rows]
    return "\n".join([*lines, f"load of the machine from {min(loads):.1f} to {max(loads):.1f}, this script's included"])


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5, help="turns of each (default: %(default)s)")
    parser.add_argument("--seconds", type=float, default=4, help="seconds of a turn (default: %(default)s)")
    parser.add_argument("--settings", default=",".join(SETTINGS), help="which of: %(default)s")
    parser.add_argument("--neighbours", default=",".join(NEIGHBOURS), help="which of: %(default)s")
    parser.add_argument("--json", type=Path, help="write the numbers here")
    args = parser.parse_args(argv)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that no process is left behind
    rows = measure(args.rounds, args.seconds, args.settings.split(","), args.neighbours.split(","))
    print(table(rows))
    if args.json is not None:
        args.json.write_text(json.dumps({"cores": os.cpu_count(), "rows": rows}, indent=2) + "\n")


if __name__ == "__main__":
    main()
