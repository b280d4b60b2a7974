"""Damaged files of a run: each is refused in a sentence or replaced with a word, unless nothing depends on the change.

    python tests/campaigns/damage.py --count 1000 --seed 0
    python tests/campaigns/damage.py --only "codec.pt swap"          trials with this in their names, all that are drawn

A trial damages one file of a small run and runs a command that reads it, in a process of its own, forked when all is
imported. Prints counts by file and by kind of damage, and every miss; exits with 1 if there is one.
"""

# ruff: noqa: E402  torch reads the number of threads when it is imported

from __future__ import annotations

import csv
import io
import json
import os
import random
import re
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    tests = Path(__file__).resolve().parents[1]
    sys.path[:0] = [str(tests.parent), str(tests)]
for _name, _value in (("OMP_NUM_THREADS", "1"), ("OMP_WAIT_POLICY", "PASSIVE"), ("WANDB_MODE", "offline")):
    os.environ.setdefault(_name, _value)

import numpy as np
import torch
import yaml
from campaigns.options import main, start, warm_up

MISSES = ("silent", "wrong", "traceback", "many lines", "hangs")
SECONDS = 60  # after which a trial hangs
MAKE = (
    "experiment=array", "logger=csv", "trainer.progress=false", "batch_size=16", "model.width=8", "model.depth=1",
    "trainer.decay=constant", "trainer.warmup=0", "trainer.log_every=1", "trainer.checkpoint_every=2",
    "trainer.snapshot_every=2",
)  # fmt: skip
HEAD = (
    "experiment=digits_npr", "logger=csv", "trainer.progress=false", "batch_size=16", "model=mlp", "model.width=8",
    "model.depth=1", "trainer.decay=constant", "trainer.warmup=0", "trainer.log_every=1", "trainer.checkpoint_every=2",
)  # fmt: skip
RUNS = {"a": ("seed=0", "data.path=x.npy"), "b": ("seed=1", "data.path=x.npy"), "c": ("seed=0", "data.path=z.npy")}
DRAW = ("num_samples=4", "solver=ddim", "solver.steps=2", "out=o")
FIT = ("grid=optimised", "grid.reference_paths=8", "grid.reference_steps=4", "grid.iterations=2", "grid.batch=4")
TABLE = ("num_samples=4", "solver=ddpm", "solver.steps=2", "solver.variance=optimal", "out=o")
SCORE = (
    "num_samples=0", "likelihood=hutchinson", "likelihood.rtol=1e-1", "likelihood.atol=1e-1", "likelihood.batch_size=2",
)  # fmt: skip
USES: dict[str, tuple[str, tuple[str, ...]]] = {  # name -> command line, of the run "a"
    "sample": ("sample", ("run=a", *DRAW)),
    "go on": ("train", (*MAKE, *RUNS["a"], "run=a", "trainer.steps=6")),
    "sample the snapshot": ("sample", ("run=a/checkpoints/step_00000002.pt", *DRAW)),
    "start from it": (
        "train",
        (*MAKE, *RUNS["b"], "run=new", "trainer.steps=2", "init=a/checkpoints/step_00000002.pt"),
    ),
    "sample with the fit": ("sample", ("run=a", *DRAW, *FIT)),
    "sample with the table": ("sample", ("run=a", *TABLE, "variance=analytic", "variance.levels=5")),
    "sample with the head": ("sample", ("run=a", *TABLE, "variance=npr")),
    "train the head": ("train", (*HEAD, "of=a", "trainer.steps=6")),
    "score": ("sample", ("run=a", *SCORE, "likelihood.num_examples=6")),
}
FILES = {  # file of the run -> commands that read it
    "checkpoints/last.pt": ("sample", "go on"),
    "checkpoints/step_00000002.pt": ("sample the snapshot", "start from it"),
    "codec.pt": ("sample", "go on"),
    "config.yaml": ("sample", "go on"),
    "metrics.csv": ("go on",),
    "samples/likelihood.csv": ("score",),
    "samples/likelihood.json": ("score",),
    "grids/*.pt": ("sample with the fit",),
    "variance.pt": ("sample with the table",),
    "variance_npr/checkpoints/last.pt": ("sample with the head", "train the head"),
    "variance_npr/config.yaml": ("sample with the head", "train the head"),
    "variance_npr/metrics.csv": ("train the head",),
}


def flipped(content: bytes, rng: random.Random) -> bytes:
    at = rng.randrange(len(content))
    return content[:at] + bytes([content[at] ^ (1 << rng.randrange(8))]) + content[at + 1 :]


def zeroed(content: bytes, rng: random.Random) -> bytes:
    size = min(len(content), rng.choice([1, 16, 512, 4096]))
    at = rng.randrange(len(content) - size + 1)
    return content[:at] + bytes(size) + content[at + size :]


KINDS: dict[str, Callable[[bytes, random.Random], bytes]] = {
    "flip": flipped,
    "truncate": lambda content, rng: content[: rng.randrange(1, len(content))],
    "zero": zeroed,
    "empty": lambda content, rng: b"",
    "append": lambda content, rng: content + rng.choice([b"\0", b"x", b"\n1,2,3\n", rng.randbytes(200)]),
    "comment": lambda content, rng: content + b"# a comment\n",
    "digit": lambda content, rng: re.sub(rb"\d\.\d", lambda m: m[0][:2] + b"%d" % (m[0][2] != 49), content, count=1),
}
OF_TEXT = ("comment", "digit")


@dataclass(frozen=True)
class Trial:
    """What is damaged, how (one of KINDS, "swap b", "swap c" or "missing"), and by which command it is read."""

    file: str
    kind: str
    use: str
    seed: int

    def __str__(self) -> str:
        return f"{self.file} {self.kind}, {self.use} (seed {self.seed})"


@dataclass(frozen=True)
class Outcome:
    """What a trial came to: "refused", "fall-back", "harmless" or one of MISSES."""

    trial: Trial
    verdict: str
    said: str


def trials(count: int, seed: int) -> Iterator[Trial]:
    rng = random.Random(seed)
    for number in range(count):
        file = list(FILES)[number % len(FILES)]
        kinds = [kind for kind in KINDS if kind not in OF_TEXT or not file.endswith(".pt")]
        kinds += ["flip", "flip", "truncate", "zero", "swap b", "swap c", "missing"]
        yield Trial(file, rng.choice(kinds), rng.choice(FILES[file]), rng.randrange(2**32))


def harmless(file: str, before: bytes, after: bytes) -> bool:
    """Whether nothing can depend on what changed, told without the package: the same meaning, or numbers for people."""
    if after == before:
        return True
    if file.endswith("metrics.csv") and after.startswith(before) and b"\n" not in after[len(before) :]:
        return True  # a line that was cut off, as a kill leaves it
    try:
        old, new = before.decode(), after.decode()
        if file.endswith(".json"):
            return bool(json.loads(old) == json.loads(new))
        if file.endswith(".yaml"):
            return essence(yaml.safe_load(old)) == essence(yaml.safe_load(new))
        if file.endswith("metrics.csv"):
            rows, others = (list(csv.reader(io.StringIO(text, newline=""))) for text in (old, new))
            same = [row[0] for row in rows] == [row[0] for row in others] and rows[0] == others[0]
            return same and all(len(row) == len(rows[0]) for row in others)
        if file.endswith("likelihood.csv"):
            return old.startswith(new) and new.endswith("\n")  # as an evaluation that was stopped leaves it
    except (ValueError, yaml.YAMLError, csv.Error, LookupError, AttributeError, TypeError):
        pass
    return False


def essence(config: dict[str, Any]) -> dict[str, Any]:
    """A configuration without the place of the data and what only says, saves or lasts."""
    trainer = {key: value for key, value in config["trainer"].items() if not key.endswith("_every")}
    for key in ("steps", "progress", "compile"):
        trainer.pop(key, None)
    data = {key: value for key, value in config["data"].items() if key not in ("path", "test_path")}
    return {**config, "trainer": trainer, "data": data}


def made(folder: Path) -> None:
    """Three runs with all their files: b has another seed than a, c other data."""
    rng = np.random.default_rng(0)
    np.save(folder / "x.npy", rng.normal(size=(60, 2)).astype("f4"))
    np.save(folder / "z.npy", rng.normal(size=(60, 2)).astype("f4"))
    for name, more in RUNS.items():
        for command, arguments in (
            ("train", (*MAKE, *more, f"run={name}", "trainer.steps=4")),
            ("train", (*HEAD, f"of={name}", "trainer.steps=4")),
            *(
                ("sample", (f"run={name}", *USES[use][1][1:]))
                for use in ("sample with the fit", "sample with the table")
            ),
            ("sample", (f"run={name}", *SCORE, "likelihood.num_examples=4")),
        ):
            code, said = waited(start(command, arguments, folder), folder)
            if code != 0:
                raise RuntimeError(f"{command} {' '.join(arguments)}: {said}")
    shutil.rmtree(folder / "o")


def waited(process: int, folder: Path) -> tuple[int | None, str]:
    """Exit code of a process that `start` made, None if it hangs, and what it said."""
    since = time.monotonic()
    while not (found := os.waitpid(process, os.WNOHANG))[0]:
        if time.monotonic() - since > SECONDS:
            os.killpg(process, 9)
            os.waitpid(process, 0)
            return None, ""
        time.sleep(0.004)
    return os.waitstatus_to_exitcode(found[1]), (folder / "said").read_text(encoding="utf-8", errors="replace")


def results(folder: Path) -> dict[str, Any]:
    """What a command made, without what differs between two runs of it: times."""
    found: dict[str, Any] = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if name == "o/samples.npz":
            found[name] = np.load(path)["x"].tobytes()
        elif path.name == "likelihood.csv":
            found[name] = path.read_text(encoding="utf-8", errors="replace")
        elif path.name == "metrics.json":
            found[name] = {key: value for key, value in json.loads(path.read_text()).items() if "second" not in key}
        elif path.name == "last.pt":
            try:
                state = torch.load(path, weights_only=True)
                found[name] = (state["step"], [value.numpy().tobytes() for value in state["model"].values()])
            except Exception:
                found[name] = "damaged"
    return found


def judged(trial: Trial, code: int | None, said: str, same: bool, words: str, unimportant: bool) -> Outcome:
    """Compare with what an undamaged run gave: `same` results, and other `words`."""
    lines = [line for line in re.split(r"[\r\n]", said) if line.strip()]
    last = lines[-1] if lines else ""
    if code is None:
        return Outcome(trial, "hangs", last)
    if "Traceback (most recent call last)" in said or code not in (0, 1):
        return Outcome(trial, "traceback", f"exit {code}: {last}")
    if code == 1:
        whole = re.match(r"(train|sample)\.py: .+", last) and len(last) < 1200
        return Outcome(trial, "refused" if whole else "many lines", last)
    word = next((line for line in lines if shape(line) not in words), "")
    if unimportant:
        return Outcome(trial, "harmless" if same or word else "wrong", word)
    if word:
        return Outcome(trial, "fall-back", word)
    return Outcome(trial, "silent" if same else "wrong", last)


def shape(line: str) -> str:
    """A line without its numbers."""
    return re.sub(r"[-+.\d]+(e[-+]?\d+)?", "0", line)


def damaged(path: Path, trial: Trial, source: Path) -> bool:
    """Damage a file; returns whether that matters to nobody."""
    before = path.read_bytes()
    if trial.kind == "missing":
        path.unlink()
        return False
    if trial.kind.startswith("swap"):
        other = source / trial.kind[-1] / path.relative_to(path.parents[len(Path(trial.file).parts) - 1])
        path.write_bytes(other.read_bytes())
    else:
        path.write_bytes(KINDS[trial.kind](before, random.Random(trial.seed)))
    return harmless(trial.file, before, path.read_bytes())


def campaign(count: int, seed: int, only: str = "", jobs: int = 2, verbose: bool = False) -> list[Outcome]:
    """Run `count` trials drawn with a seed, those with `only` in their names."""
    chosen = [trial for trial in trials(count, seed) if only in str(trial)]
    outcomes: list[Outcome] = []
    with tempfile.TemporaryDirectory(prefix="damage-") as name:
        top = Path(name)
        source = top / "source"
        source.mkdir()
        warm_up(source)
        made(source)
        whole: dict[str, tuple[dict[str, Any], str]] = {}
        for use in dict.fromkeys(trial.use for trial in chosen):
            folder = copied(source, top / "whole")
            code, said = waited(start(USES[use][0], USES[use][1], folder), folder)
            if code != 0:
                raise RuntimeError(f"{use}: {said}")
            whole[use] = results(folder), "\n".join(shape(line) for line in re.split(r"[\r\n]", said))
            shutil.rmtree(folder)
        running: dict[int, tuple[Trial, Path, bool, float]] = {}
        waiting = list(enumerate(chosen))[::-1]
        while waiting or running:
            while waiting and len(running) < jobs:
                number, trial = waiting.pop()
                folder = copied(source, top / str(number))
                (path,) = (folder / "a").glob(trial.file)
                unimportant = damaged(path, trial, source)
                command, arguments = USES[trial.use]
                running[start(command, arguments, folder)] = (trial, folder, unimportant, time.monotonic())
            for process, (trial, folder, unimportant, since) in list(running.items()):
                done, status = os.waitpid(process, os.WNOHANG)
                late = not done and time.monotonic() - since > SECONDS
                if late:
                    os.killpg(process, 9)
                    os.waitpid(process, 0)
                if not done and not late:
                    continue
                del running[process]
                said = (folder / "said").read_text(encoding="utf-8", errors="replace")
                before, words = whole[trial.use]
                outcome = judged(
                    trial, None if late else os.waitstatus_to_exitcode(status), said, results(folder) == before, words,
                    unimportant,
                )  # fmt: skip
                outcomes.append(outcome)
                shutil.rmtree(folder, ignore_errors=True)
                if verbose or outcome.verdict in MISSES:
                    print(f"{outcome.verdict:10} {trial}\n           {outcome.said[:300]}", flush=True)
            time.sleep(0.004)
    return outcomes


def copied(source: Path, folder: Path) -> Path:
    """A folder with the data and the run a, as new as the original."""
    folder.mkdir()
    for name in ("x.npy", "z.npy"):
        (folder / name).symlink_to(source / name)
    shutil.copytree(source / "a", folder / "a")
    return folder


def report(outcomes: Sequence[Outcome]) -> bool:
    """Print counts by file and by kind; returns whether all is well."""
    verdicts = ("refused", "fall-back", "harmless", *MISSES)
    tables: Mapping[str, Callable[[Outcome], str]] = {
        "file": lambda outcome: outcome.trial.file, "damage": lambda outcome: outcome.trial.kind,
    }  # fmt: skip
    for title, key in tables.items():
        counts = Counter((key(outcome), outcome.verdict) for outcome in outcomes)
        print(f"{title:34}" + "".join(f"{verdict:>11}" for verdict in verdicts))
        for name in sorted({key(outcome) for outcome in outcomes}):
            print(f"{name:34}" + "".join(f"{counts[name, verdict]:11}" for verdict in verdicts))
    total = Counter(outcome.verdict for outcome in outcomes)
    print(f"{'all':34}" + "".join(f"{total[verdict]:11}" for verdict in verdicts))
    return not any(total[verdict] for verdict in MISSES)


if __name__ == "__main__":
    sys.exit(main(__doc__, 1000, campaign, report))
