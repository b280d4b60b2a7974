"""Attacks by runs and files from elsewhere: nothing is executed, no other file is touched, memory stays small.

    python tests/campaigns/attacks.py --count 1000 --seed 0
    python tests/campaigns/attacks.py --only "links in a run"

Every attack runs in a process of its own, forked when all is imported, in a folder with copies of two good runs and a
folder `outside` with a file of the user's. Prints counts by kind and every miss; exits with 1 if there is one.
"""

# ruff: noqa: E402  torch reads the number of threads when it is imported

from __future__ import annotations

import argparse
import contextlib
import os
import random
import resource
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import NamedTuple

os.environ |= {"OMP_NUM_THREADS": "1", "WANDB_MODE": "offline"}
sys.path[:0] = [str(Path(__file__).parents[2]), str(Path(__file__).parents[1])]

from campaigns.attack_files import attacks
from campaigns.attack_kinds import TOY, Attack, command

from scoresde.cli import train_main
from scoresde.commands.load import load_run

MEMORY = 300  # MB above the start
SECONDS = 30
LEARNED = Path(__file__).parents[1] / "data" / "runs" / "learned"


class Outcome(NamedTuple):
    """What an attack did."""

    attack: Attack
    said: str
    misses: list[str]
    megabytes: int


def campaign(count: int, seed: int, only: str = "", without: tuple[str, ...] = ()) -> list[Outcome]:
    """Carry out `count` attacks, drawn with a seed, of those with `only` in their kind and name, and not `without`."""
    chosen = [attack for attack in attacks() if only in f"{attack.kind}: {attack.name}" and attack.kind not in without]
    random.Random(seed).shuffle(chosen)
    with tempfile.TemporaryDirectory(prefix="attacks-") as name:
        good = Path(name, "good")
        (good / "outside").mkdir(parents=True)
        (good / "outside" / "mine").write_text("precious\n")
        shutil.copytree(LEARNED, good / "learned")
        for well in (lambda: command(train_main, *TOY), lambda: load_run("run"), lambda: load_run("learned")):
            status, said, _ = _in_child(good, well, 10 * SECONDS)
            assert status == 0, f"without an attack: {said}"
        return [_tried(attack, good, Path(name, "place")) for attack in chosen[:count]]


def _tried(attack: Attack, good: Path, place: Path) -> Outcome:
    shutil.rmtree(place, ignore_errors=True)
    shutil.copytree(good, place)
    status, said, megabytes = _in_child(place, attack.act)
    misses = [] if status in (0, 1) else [f"ended by signal or time: {status}"]
    if (place / "ran").exists() or (place / "run" / "ran").exists():
        misses.append("executed")
    outside = {path.name: path.read_bytes() for path in (place / "outside").glob("*") if path.is_file()}
    if outside != {"mine": b"precious\n"} or len(list((place / "outside").iterdir())) != 1:
        misses.append("touched a file outside")
    if megabytes > MEMORY:
        misses.append(f"{megabytes} MB")
    if attack.refusal and status == 0:
        misses.append("not refused")
    return Outcome(attack, said, misses, megabytes)


def _in_child(place: Path, act: object, seconds: float = SECONDS) -> tuple[int, str, int]:
    """(exit status or minus the signal, the last words, MB above the start) of a process that acts in a folder."""
    words = place.parent / "words"
    child = os.fork()
    if child == 0:
        status = 1
        with contextlib.suppress(BaseException):
            status = _act(place, act, words)
        os._exit(status)
    deadline, ended = time.monotonic() + seconds, 0
    while not ended and time.monotonic() < deadline:
        time.sleep(0.005)
        ended, code, _ = os.wait4(child, os.WNOHANG)
    if not ended:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        return -99, "no end", 0
    text = words.read_text() if words.exists() else "0 "
    words.unlink(missing_ok=True)
    megabytes, _, said = text.partition(" ")
    return os.waitstatus_to_exitcode(code), said, int(megabytes)


def _act(place: Path, act: object, words: Path) -> int:
    os.chdir(place)
    sys.path.insert(0, str(place))
    with open(os.devnull, "w") as nothing:
        os.dup2(nothing.fileno(), 1)
        os.dup2(nothing.fileno(), 2)
    Path("/proc/self/clear_refs").write_text("5")  # the peak counts from here
    start, status, said = _peak(), 0, "accepted"
    try:
        assert callable(act)
        act()
    except SystemExit as error:
        status, said = int(error.code not in (0, None)), str(error.code)
    except BaseException as error:
        status, said = 1, f"{type(error).__name__}: {error}"
    words.write_text(f"{_peak() - start} {said}")
    return status


def _peak() -> int:
    """MB that this process has held at most."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) // 1024
    except OSError:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024


def report(outcomes: list[Outcome]) -> bool:
    """Print the table and the misses; whether there is none."""
    kinds = Counter(outcome.attack.kind for outcome in outcomes)
    print(f"{'kind':36}{'attacks':>8}{'refused':>9}{'misses':>8}{'MB':>6}")
    for kind, number in kinds.items():
        of_kind = [outcome for outcome in outcomes if outcome.attack.kind == kind]
        refused = sum(outcome.said != "accepted" for outcome in of_kind)
        missed = sum(bool(outcome.misses) for outcome in of_kind)
        print(f"{kind:36}{number:8}{refused:9}{missed:8}{max(outcome.megabytes for outcome in of_kind):6}")
    for outcome in outcomes:
        if outcome.misses:
            print(
                f"MISS {outcome.attack.kind}: {outcome.attack.name}: {', '.join(outcome.misses)}; {outcome.said[:200]}"
            )
    return not any(outcome.misses for outcome in outcomes)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", default="", help="attacks with this text in kind and name")
    parser.add_argument("--verbose", action="store_true")
    given = parser.parse_args()
    found = campaign(given.count, given.seed, given.only)
    if given.verbose:
        print("\n".join(f"{outcome.attack.kind}: {outcome.attack.name}: {outcome.said[:150]}" for outcome in found))
    sys.exit(0 if report(found) else 1)
