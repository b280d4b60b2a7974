"""Bad options for every key of every option: each is refused in one sentence that names it, or is legal after all.

    python tests/campaigns/options.py --count 5000 --seed 0
    python tests/campaigns/options.py --only solver=ddim          trials with this in them, all of them

A trial is a tiny training or sampling with one option more, in a process of its own, forked when all is imported.
Prints counts by kind of option and every miss; exits with 1 if there is one. `--verbose` prints every trial.
"""

# ruff: noqa: E402  torch reads the number of threads when it is imported

from __future__ import annotations

import argparse
import contextlib
import gc
import io
import os
import pickle
import random
import re
import shutil
import struct
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    tests = Path(__file__).resolve().parents[1]
    sys.path[:0] = [str(tests.parent), str(tests)]
for _name, _value in (("OMP_NUM_THREADS", "1"), ("OMP_WAIT_POLICY", "PASSIVE"), ("WANDB_MODE", "offline")):
    os.environ.setdefault(_name, _value)

import numpy as np
from campaigns.option_trials import FILES, RUNS, SHORT, TOY, TRAINED, Trial, trials
from hydra._internal.hydra import Hydra
from hydra.types import RunMode
from PIL import Image

import scoresde.commands.sample
import scoresde.commands.train  # noqa: F401
from scoresde.cli import sample_main, train_main

SECONDS = 60  # after which a trial hangs


@dataclass(frozen=True)
class Outcome:
    """What a trial came to: "refused", "unnamed", "accepted", "nonsense", "traceback", "hangs" or "many lines"."""

    trial: Trial
    verdict: str
    said: str


MISSES = ("nonsense", "traceback", "hangs", "many lines")


def make_files(folder: Path) -> None:
    """Small data of every kind."""
    numbers = np.random.default_rng(0)
    np.save(folder / "x.npy", numbers.normal(size=(64, 3)).astype("float32"))
    np.savetxt(folder / "x.csv", numbers.integers(1, 9, size=(64, 3)), delimiter=",", header="a,b,c", comments="")
    np.savez(folder / "pairs.npz", theta=numbers.normal(size=(64, 2)), x=numbers.normal(size=(64, 2)))
    np.save(folder / "series.npy", numbers.normal(size=(64, 2, 8)).astype("float32"))
    np.save(folder / "volume.npy", numbers.normal(size=(64, 1, 6, 6, 6)).astype("float32"))
    for name in "ab":
        (folder / "pictures" / name).mkdir(parents=True)
        for k in range(8):
            pixels = numbers.integers(0, 255, (8, 8, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / "pictures" / name / f"{k}.png")
    (folder / "cifar-10-batches-py").mkdir()
    for name in [*(f"data_batch_{k}" for k in range(1, 6)), "test_batch"]:
        batch = {"data": numbers.integers(0, 255, (8, 3072), dtype=np.uint8), "labels": [k % 10 for k in range(8)]}
        (folder / "cifar-10-batches-py" / name).write_bytes(pickle.dumps(batch, protocol=2))
    (folder / "mnist").mkdir()
    for part, n in (("train", 32), ("t10k", 16)):
        pixels = numbers.integers(0, 255, (n, 28, 28), dtype=np.uint8)
        head = struct.pack(">IIII", 2051, n, 28, 28)
        (folder / "mnist" / f"{part}-images-idx3-ubyte").write_bytes(head + pixels.tobytes())
        labels = struct.pack(">II", 2049, n) + bytes(k % 10 for k in range(n))
        (folder / "mnist" / f"{part}-labels-idx1-ubyte").write_bytes(labels)


def start(command: str, arguments: Sequence[str], folder: Path) -> int:
    """A process in which a command line runs in a folder; what it says goes to `said` there."""
    sys.stdout.flush()
    sys.stderr.flush()
    process = os.fork()
    if process:
        return process
    code = 70
    try:
        os.setsid()
        os.chdir(folder)
        said = os.open(folder / "said", os.O_CREAT | os.O_WRONLY | os.O_TRUNC)
        os.dup2(said, 1)
        os.dup2(said, 2)
        sys.stdout = open(1, "w", buffering=1, encoding="utf-8", closefd=False)  # noqa: SIM115
        sys.stderr = open(2, "w", buffering=1, encoding="utf-8", closefd=False)  # noqa: SIM115
        sys.argv = [f"{command}.py", *arguments]
        Hydra.get_mode = lambda *_, **__: RunMode.RUN  # type: ignore[method-assign]  # it composes all twice to find out
        gc.disable()
        try:
            (train_main if command == "train" else sample_main)()
            code = 0
        except SystemExit as stop:
            code = stop.code if isinstance(stop.code, int) else int(stop.code is not None)
            if isinstance(stop.code, str):
                print(stop.code, file=sys.stderr)
        except BaseException:
            code = 1
            traceback.print_exc()
        sys.stdout.flush()
        sys.stderr.flush()
    finally:
        os._exit(code)


def warm_up(source: Path) -> None:
    """Run both commands in this process, so that what they import late is there when it forks."""
    for command, main, arguments in (
        ("train", train_main, (*TOY, *SHORT, "run=warm")),
        ("sample", sample_main, ("run=warm", "num_samples=2", "solver=ddim", "solver.steps=2")),
    ):
        before, argv = Path.cwd(), sys.argv
        os.chdir(source)
        sys.argv = [f"{command}.py", *arguments]
        try:
            with contextlib.redirect_stdout(io.StringIO()):
                main()
        finally:
            sys.argv = argv
            os.chdir(before)


def prepared(folder: Path, source: Path, needs: Sequence[str]) -> Path:
    """A folder for a trial: links to the data, copies of the runs that it needs."""
    folder.mkdir()
    for name in FILES.values():
        (folder / name).symlink_to(source / name)
    for name in needs:
        if name not in TRAINED:
            shutil.copytree(source / name, folder / name)
    return folder


def make_run(name: str, source: Path) -> None:
    of = ("digits",) if name in TRAINED else ()
    for other in of:
        if not (source / other).is_dir():
            make_run(other, source)
    arguments = (*RUNS[name], *SHORT, *(() if of else (f"run={name}",)))
    _, status = os.waitpid(start("train", arguments, source), 0)
    if status:
        raise RuntimeError(f"no run {name}: {(source / 'said').read_text(encoding='utf-8')}")


def judged(trial: Trial, code: int | None, said: str) -> Outcome:
    last = [line for line in said.replace("\r", "\n").splitlines() if line.strip()]
    sentence = last[-1] if last else ""
    if code is None:
        return Outcome(trial, "hangs", sentence)
    if "Traceback (most recent call last)" in said or code not in (0, 1, 2):
        return Outcome(trial, "traceback", f"exit {code}: {sentence}")
    if code == 0:
        return Outcome(trial, "accepted" if trial.allowed else "nonsense", sentence)
    body = sentence.partition(": ")[2]
    if len(sentence) > 1200 or not re.match(r"(train|sample)\.py: ", sentence):
        return Outcome(trial, "many lines", sentence[:200])
    path = trial.option.lstrip("+~").partition("=")[0]
    names = {path, path.rpartition(".")[2]} | ({trial.option} if len(trial.option) < 100 else set())
    if trial.kind in ("new key", "class", "structure") and "." in path:  # the first part that is new is enough
        names |= {path.rpartition(".")[0]} if path.count(".") > 1 or trial.kind == "structure" else set()
    if path.startswith("_") or path == "":
        names = {trial.option}
    named = any(re.search(rf"(?<![\w]){re.escape(name)}(?![\w])", body) for name in names if name)
    return Outcome(trial, "refused" if named else "unnamed", sentence)


def campaign(count: int, seed: int, only: str = "", jobs: int = 2, verbose: bool = False) -> list[Outcome]:
    """Run `count` trials, drawn with a seed, or all with `only` in their names."""
    chosen = [trial for trial in trials() if only in f"{trial.base.name} {trial.option}"]
    random.Random(seed).shuffle(chosen)
    return run(chosen[:count], jobs, verbose)


def run(chosen: Sequence[Trial], jobs: int = 2, verbose: bool = False) -> list[Outcome]:
    """Run trials, so many at a time."""
    outcomes: list[Outcome] = []
    with tempfile.TemporaryDirectory(prefix="options-") as name:
        top = Path(name)
        source = top / "source"
        source.mkdir()
        make_files(source)
        warm_up(source)
        for needed in dict.fromkeys(need for trial in chosen for need in trial.base.needs):
            if not (source / needed).is_dir():
                make_run(needed, source)
        running: dict[int, tuple[Trial, Path, float]] = {}
        waiting = list(enumerate(chosen))[::-1]
        while waiting or running:
            while waiting and len(running) < jobs:
                number, trial = waiting.pop()
                folder = prepared(top / str(number), source, trial.base.needs)
                process = start(trial.base.command, (*trial.base.arguments, trial.option), folder)
                running[process] = (trial, folder, time.monotonic())
            for process, (trial, folder, since) in list(running.items()):
                done, status = os.waitpid(process, os.WNOHANG)
                late = not done and time.monotonic() - since > SECONDS
                if late:
                    os.killpg(process, 9)
                    os.waitpid(process, 0)
                if not done and not late:
                    continue
                del running[process]
                said = (folder / "said").read_text(encoding="utf-8", errors="replace")
                outcome = judged(trial, None if late else os.waitstatus_to_exitcode(status), said)
                outcomes.append(outcome)
                shutil.rmtree(folder, ignore_errors=True)
                if verbose or outcome.verdict in MISSES:
                    print(f"{outcome.verdict:10} {trial}\n           {outcome.said[:300]}", flush=True)
            time.sleep(0.004)
    return outcomes


def report(outcomes: Sequence[Outcome]) -> bool:
    """Print counts by kind and what was not named; returns whether all is well."""
    verdicts = ("refused", "unnamed", "accepted", *MISSES)
    counts = Counter((outcome.trial.kind, outcome.verdict) for outcome in outcomes)
    print(f"{'':14}" + "".join(f"{verdict:>12}" for verdict in verdicts))
    for kind in dict.fromkeys(outcome.trial.kind for outcome in outcomes):
        print(f"{kind:14}" + "".join(f"{counts[kind, verdict]:12}" for verdict in verdicts))
    total = Counter(outcome.verdict for outcome in outcomes)
    print(f"{'all':14}" + "".join(f"{total[verdict]:12}" for verdict in verdicts))
    for outcome in outcomes:
        if outcome.verdict == "unnamed":
            print(f"unnamed    {outcome.trial}\n           {outcome.said[:300]}")
        elif outcome.verdict == "refused" and outcome.trial.allowed and outcome.trial.kind == "value":
            print(f"legal, but {outcome.trial}\n           {outcome.said[:300]}")
    refused = total["refused"] + total["unnamed"]
    share = total["refused"] / refused if refused else 1.0
    print(f"{len(outcomes)} trials, {refused} refused, {share:.1%} of them by name")
    return share >= 0.98 and not any(total[verdict] for verdict in MISSES)


def main(doc: str | None, count: int, campaign: Callable[..., list[Any]], report: Callable[[Any], bool]) -> int:
    """The command line of a campaign; returns its exit status."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=count)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", default="", help="trials with this text in what they try")
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--verbose", action="store_true")
    given = parser.parse_args()
    start_time = time.monotonic()
    found = campaign(given.count, given.seed, given.only, given.jobs, given.verbose)
    well = report(found)
    print(f"{time.monotonic() - start_time:.0f} s")
    return 0 if well else 1


if __name__ == "__main__":
    sys.exit(main(__doc__, 5000, campaign, report))
