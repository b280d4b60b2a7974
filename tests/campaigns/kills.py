"""Kills of trainings, evaluations and fits: the same command again ends with the files of a run that was never killed.

    python tests/campaigns/kills.py --count 100 --seed 0

A trial runs a small command in a process of its own, forked when all is imported, and kills it at a random moment, at
a random call that changes files, or with a signal that asks it to stop; up to three times, then it lets it end. Prints
counts by kind and every miss; exits with 1 if there is one.
"""

# ruff: noqa: E402  torch reads the number of threads when it is imported

from __future__ import annotations

import argparse
import csv
import json
import os
import random
import re
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    sys.path[:0] = [str(Path(__file__).resolve().parents[2])]
for _name, _value in (("OMP_NUM_THREADS", "1"), ("OMP_WAIT_POLICY", "PASSIVE"), ("WANDB_MODE", "offline")):
    os.environ.setdefault(_name, _value)

import hydra  # noqa: F401  imported here for all processes that are forked
import numpy as np
import torch

from scoresde import cli
from scoresde.commands import sample, train  # noqa: F401
from scoresde.training import RunDirectory, load_checkpoint

TIMINGS = ("examples_per_second", "seconds")
CALLS = ("replace", "link", "unlink", "fsync", "mkdir", "rmdir", "rename", "ftruncate")  # of os; what changes files
STOPS = ("SIGTERM", "SIGINT", "SIGHUP", "SIGUSR1", "SIGXCPU")
TRAIN = ("logger=csv", "trainer.log_every=2", "trainer.checkpoint_every=3", "run=run", "trainer.progress=false")
TOY = ("experiment=toy", "data.size=60", "batch_size=8", "model.width=16", "model.depth=1")
FIT = ("grid.reference_paths=8", "grid.reference_steps=4", "grid.iterations=3", "grid.batch=4")
DRAW = ("run=run", "num_samples=4", "out=out", "solver.steps=2")


@dataclass(frozen=True)
class Job:
    """A command that is killed.

    Args:
        main: Its entry point.
        arguments: Its options.
        on: Whether it works on a copy of the trained run, in its folder, or on that itself.
        stops: Signals after which it saves.
    """

    main: Callable[[], None]
    arguments: tuple[str, ...]
    on: str = ""
    stops: tuple[str, ...] = ()


JOBS = {
    "training of points": Job(cli.train_main, (*TOY, *TRAIN, "trainer.steps=40"), stops=STOPS),
    "training of images": Job(
        cli.train_main,
        ("data=digits", "model=mlp", "model.width=16", "batch_size=8", *TRAIN, "trainer.steps=13",
         "trainer.sample_every=3", "trainer.snapshot_every=6"), stops=STOPS,
    ),
    "training of a head": Job(
        cli.train_main,
        ("experiment=digits_npr", "of=run", *[option for option in TRAIN if option != "run=run"], "batch_size=8",
         "trainer.steps=20"), on="copy", stops=STOPS,
    ),
    "evaluation": Job(
        cli.sample_main,
        ("run=../trained", "num_samples=4", "solver.steps=2", "out=out", "likelihood=elbo", "likelihood.samples=2",
         "likelihood.num_examples=24", "likelihood.split=train", "likelihood.batch_size=2"),
    ),
    "fit of a grid": Job(cli.sample_main, (*DRAW, "solver=ddim", "grid=optimised", *FIT), on="copy"),
    "fit of a solver": Job(cli.sample_main, (*DRAW, "solver.steps=3", "grid=calibrated", *FIT), on="copy"),
    "fit of a variance": Job(
        cli.sample_main,
        (*DRAW, "solver=ddpm", "solver.variance=optimal", "variance=analytic", "variance.samples=40",
         "variance.levels=5"), on="copy",
    ),
}  # fmt: skip


@dataclass
class Outcome:
    """Of a trial: its job, how it was killed, and what is wrong."""

    job: str
    kills: list[str] = field(default_factory=list)
    misses: list[str] = field(default_factory=list)


def campaign(count: int, seed: int = 0, processes: int = 2, jobs: Sequence[str] = tuple(JOBS)) -> list[Outcome]:
    """Trials of these jobs, in turn, until `count` processes have been killed."""
    root = Path(tempfile.mkdtemp(prefix="kills_")).resolve()
    try:
        references = {name: _reference(root, name) for name in jobs}
        outcomes: list[Outcome] = []
        context = get_context("fork")
        with ProcessPoolExecutor(processes, mp_context=context) as pool:
            first = 0
            while (missing := count - sum(len(outcome.kills) for outcome in outcomes)) > 0:
                numbers = range(first, first + max(processes, missing // 2))
                outcomes += pool.map(partial(_trial, root, references, seed), numbers)
                first = numbers.stop
                if first > 20 * count + 100:
                    raise RuntimeError("commands end before they are killed")
        return outcomes
    finally:
        shutil.rmtree(root, ignore_errors=True)


@dataclass(frozen=True)
class Reference:
    """A command that was never killed: its folder, how long it took, and how many calls changed files."""

    folder: Path
    seconds: float
    calls: int


def _reference(root: Path, name: str) -> Reference:
    if not (root / "trained").exists():
        code, said = _run(root, Job(cli.train_main, (*TOY, *TRAIN, "trainer.steps=6", "run=trained")))
        assert code == 0, said
    folder = root / f"reference-{name.replace(' ', '-')}"
    _prepare(root, folder, JOBS[name])
    start = time.perf_counter()
    code, said = _run(folder, JOBS[name])
    assert code == 0, said
    return Reference(folder, time.perf_counter() - start, int((folder.parent / f"{folder.name}.calls").read_text()))


def _prepare(root: Path, folder: Path, job: Job) -> None:
    folder.mkdir()
    if job.on == "copy":
        shutil.copytree(root / "trained", folder / "run")


def _run(folder: Path, job: Job, at: int = 0, after: float = 0.0, signum: int = 0) -> tuple[int, str]:
    """Exit status, negative for a signal, and output of a command.

    Args:
        folder: Where it runs.
        job: The command.
        at: Number of the call that changes files, counted before and after each, at which it is killed; 0: never.
        after: Seconds after which it gets a signal.
        signum: Which; 0: none.
    """
    log = folder.parent / f"{folder.name}.log"
    child = os.fork()
    if child == 0:
        code = 70
        try:
            code = _child(folder, job, log, at)
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)
    if signum:
        time.sleep(after)
        os.kill(child, signum)
    status = os.waitpid(child, 0)[1]
    return os.waitstatus_to_exitcode(status), log.read_text(errors="replace")


def _child(folder: Path, job: Job, log: Path, at: int) -> int:
    os.chdir(folder)
    opened = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    for number in (1, 2):
        os.dup2(opened, number)
    sys.stdout, sys.stderr = (os.fdopen(number, "w", closefd=False) for number in (1, 2))
    for name in STOPS:
        signal.signal(getattr(signal, name), signal.default_int_handler if name == "SIGINT" else signal.SIG_DFL)
    count = 0

    def counted(real: Callable[..., Any], *args: Any, **options: Any) -> Any:
        nonlocal count
        count += 1
        if count == at:
            os.kill(os.getpid(), signal.SIGKILL)
        result = real(*args, **options)
        count += 1
        if count == at:
            os.kill(os.getpid(), signal.SIGKILL)
        return result

    for name in CALLS:
        setattr(os, name, partial(counted, getattr(os, name)))
    sys.argv = [job.main.__name__.replace("_main", ".py"), *job.arguments]
    try:
        job.main()
    except SystemExit as stop:
        if isinstance(stop.code, str):
            print(stop.code, file=sys.stderr)
        return stop.code if isinstance(stop.code, int) else int(stop.code is not None)
    (folder.parent / f"{folder.name}.calls").write_text(str(count))
    return 0


def _trial(root: Path, references: dict[str, Reference], seed: int, number: int) -> Outcome:
    rng = random.Random(f"{seed} {number}")
    name = list(references)[number % len(references)]
    job, reference, outcome = JOBS[name], references[name], Outcome(name)
    folder = root / f"trial-{number:05}"
    _prepare(root, folder, job)
    saved = 0
    try:
        for _ in range(rng.choice((1, 2, 3))):
            how = rng.choice(("write", "write", "SIGKILL", *(job.stops or ("SIGINT",))))
            if how == "write":
                code, said = _run(folder, job, at=rng.randint(1, reference.calls))
            else:
                moment = reference.seconds * rng.uniform(0.2, 1.0)
                code, said = _run(folder, job, after=moment, signum=getattr(signal, how))
            if code == 0:
                break
            outcome.kills.append(how)
            outcome.misses += _after_a_kill(folder, job, reference, how, code, said, saved)
            saved = _saved(folder, job)
        code, said = _run(folder, job)
        if code != 0:
            outcome.misses.append(f"the same command ended with {code}: {said.strip()[-300:]}")
        outcome.misses += _lost(said, saved, job)
        outcome.misses += list(_differences(reference.folder, folder))
    except Exception as error:
        outcome.misses.append(f"{type(error).__name__}: {error}")
    outcome.misses = [f"trial {number}, {name}, {' then '.join(outcome.kills)}: {miss}" for miss in outcome.misses]
    for path in (folder, *root.glob(f"{folder.name}.*")):
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    return outcome


def _after_a_kill(
    folder: Path, job: Job, reference: Reference, how: str, code: int, said: str, saved: int
) -> Iterator[str]:
    """What is wrong with the files of a command that has just been killed, and with how it ended."""
    expected = [-signal.SIGKILL] if how in ("write", "SIGKILL") else [128 + getattr(signal, how), -getattr(signal, how)]
    if code not in expected or "Traceback" in said:
        yield f"it ended with {code}: {said.strip()[-300:]}"
    yield from _lost(said, saved, job)
    now = _saved(folder, job)
    if now < saved:
        yield f"it had saved step {saved}, and now there is step {now}"
    stopped = re.search(r"after step (\d+) of \d+; the state is saved", said)
    if stopped and int(stopped[1]) != now:
        yield f"it said that it has saved step {stopped[1]}, and there is step {now}"
    if code > 128 and how != "SIGINT" and not stopped:
        yield f"it ended with {code} without a word"
    table = folder / "out" / "likelihood.csv"
    if table.is_file():
        whole = table.read_bytes()
        if not (reference.folder / "out" / "likelihood.csv").read_bytes().startswith(whole[: whole.rfind(b"\n") + 1]):
            yield "its table has other rows"


def _run_of(job: Job) -> str:
    return "run/variance_npr" if "of=run" in job.arguments else "run"


def _saved(folder: Path, job: Job) -> int:
    """The step that a killed training has saved."""
    run = RunDirectory(folder / _run_of(job))
    return int(load_checkpoint(run.last)["step"]) if job.stops and run.last.is_file() else 0


def _lost(said: str, saved: int, job: Job) -> Iterator[str]:
    """Whether a training that goes on does so from what had been saved."""
    if not job.stops or not saved or "nothing left to do" in said:
        return
    began = re.search(r"going on from step (\d+)", said)
    trained = began is not None or "done:" in said or "stopped by SIG" in said
    if trained and (began is None or int(began[1]) != saved):
        yield f"step {saved} was saved, and it went on from {began[1] if began else 0}"


def _differences(expected: Path, found: Path) -> Iterator[str]:
    """Which files differ, timings apart."""
    ours, theirs = (
        {path.relative_to(top).as_posix() for path in top.rglob("*") if path.is_file()} for top in (found, expected)
    )
    if ours != theirs:
        yield f"there are {sorted(ours - theirs)} too many and {sorted(theirs - ours)} too few"
    for name in sorted(ours & theirs):
        if not _equal(_content(expected / name), _content(found / name)):
            yield f"{name} differs"


def _content(path: Path) -> Any:
    if path.suffix == ".pt":
        return load_checkpoint(path)
    if path.name == "metrics.csv":
        with path.open(newline="") as file:
            return [{k: v for k, v in row.items() if k not in TIMINGS} for row in csv.DictReader(file)]
    if path.name == "metrics.json":
        return {key: value for key, value in json.loads(path.read_text()).items() if "seconds" not in key}
    if path.suffix == ".npz":
        with np.load(path) as arrays:
            return {key: torch.as_tensor(arrays[key]) for key in arrays}
    return path.read_bytes()


def _equal(one: Any, other: Any) -> bool:
    if isinstance(one, dict):
        return isinstance(other, dict) and one.keys() == other.keys() and all(_equal(one[k], other[k]) for k in one)
    if isinstance(one, list | tuple):
        return type(one) is type(other) and len(one) == len(other) and all(map(_equal, one, other))
    if isinstance(one, torch.Tensor):
        return torch.equal(one, other)
    return bool(one == other)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    start = time.perf_counter()
    outcomes = campaign(options.count, options.seed)
    kills = Counter((outcome.job, how) for outcome in outcomes for how in outcome.kills)
    ways = sorted({how for _, how in kills})
    print(f"{'':22}" + "".join(f"{way:>9}" for way in ways) + f"{'trials':>9}{'misses':>9}")
    for name in JOBS:
        mine = [outcome for outcome in outcomes if outcome.job == name]
        cells = [kills[name, way] for way in ways] + [len(mine), sum(bool(outcome.misses) for outcome in mine)]
        print(f"{name:22}" + "".join(f"{cell:9}" for cell in cells))
    misses = [miss for outcome in outcomes for miss in outcome.misses]
    print(*misses, sep="\n")
    print(f"{sum(kills.values())} kills in {len(outcomes)} trials, {len(misses)} misses, "
          f"{time.perf_counter() - start:.0f} s")  # fmt: skip
    return int(bool(misses))


if __name__ == "__main__":
    sys.exit(main())
