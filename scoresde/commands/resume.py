"""The run directory of a training command: which one, whether it may be gone on with, and what is said about it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from scoresde.commands.build import ConfigError
from scoresde.commands.identity import PLACES, differences, identity
from scoresde.commands.origin import Origin, check_data, keep_codec, read_codec
from scoresde.commands.saved_config import read_config
from scoresde.data.fingerprint import change
from scoresde.files import write_atomically
from scoresde.training import RunDirectory, Trainer, learning_rate_factor
from scoresde.training.length import duration


def run_path(config: Mapping[str, Any], origin: Origin) -> Path:
    """The run directory: `run`, or a name made from configuration and data, so that the same command finds it again.

    A run that an earlier version named differently is found by what it is. What is new is announced if there are runs
    beside it that only the configuration or the data tell apart.
    """
    if config["run"] is not None:
        return Path(config["run"])
    data = origin.data or {}
    said = json.dumps([origin.config, *(data[part]["hash"] for part in ("train", "test"))], sort_keys=True)
    names = [str(config[key]["_target_"]).rpartition(".")[2].lower() for key in ("data", "sde", "model")]
    path = Path("runs") / "-".join([*names, hashlib.sha256(said.encode()).hexdigest()[:8]])
    if path.exists():
        return path
    beside = dict(_beside(path, config, origin))
    same = [run for run, differs in beside.items() if not differs]
    if same:
        return max(same, key=lambda run: (_steps(run) == config["trainer"].get("steps"), _time(run))).path
    trained = [run for run in beside if run.has_checkpoint]
    if trained:
        near = min(trained, key=lambda run: (len(beside[run]), -_time(run)))
        more = f" and {len(beside[near]) - 1} more" if len(beside[near]) > 1 else ""
        print(
            f"{path} is a new run and starts at step 0. The nearest one beside it is {near.path}: {beside[near][0]}"
            f"{more}. To go on with that one repeat its options; to start from its weights add init={near.path}."
        )
    return path


def _beside(path: Path, config: Mapping[str, Any], origin: Origin) -> Iterator[tuple[RunDirectory, list[str]]]:
    """Runs whose names differ from a path in the hash alone, each with its differences in words."""
    for run in map(RunDirectory, sorted(path.parent.glob(f"{path.name[:-8]}????????"))):
        try:
            theirs = read_config(run)
        except (ConfigError, OSError):
            continue
        found = [str(difference) for difference in differences(identity(theirs), origin.config)]
        said = read_codec(run) or {}
        if said.get("data") and origin.data:
            changed = change(said["data"], origin.data)
            found = [f"the data differ, now there are {changed}", *found] if changed else found
        else:  # an earlier version knew data by their place
            was, now = ({key: (node["data"] or {}).get(key) for key in PLACES} for node in (theirs, config))
            found += [str(difference) for difference in differences(was, now, key="data")]
        yield run, found


def _steps(run: RunDirectory) -> Any:
    return (read_config(run).get("trainer") or {}).get("steps")


def _time(run: RunDirectory) -> int:
    return run.checkpoint.stat().st_mtime_ns if run.has_checkpoint else 0


def take_up(path: Path, saved: dict[str, Any], origin: Origin) -> RunDirectory:
    """The run directory, new or with the same configuration, whatever names an earlier version had for it.

    Raises:
        ValueError: If it belongs to a run with another configuration, with the first key that differs.
        CheckpointError: If that is because its data were others.
    """
    run = RunDirectory(path)
    if not run.config.is_file():
        return RunDirectory.create(path, yaml.safe_dump(saved, sort_keys=False))
    for difference in differences(identity(read_config(run)), origin.config):
        check_data((read_codec(run) or {}).get("data"), origin.data, path)
        raise ValueError(
            f"{path} belongs to a run with another configuration: {difference}; use the same options to continue it, "
            f"or another run directory."
        )
    return RunDirectory.create(path, run.config_text)


def bring_up_to_date(run: RunDirectory, saved: Mapping[str, Any], origin: Origin, trainer: Trainer) -> None:
    """Keep codec.pt, and in config.yaml the places of files and the length of the run; say where it starts.

    The length is that of the command, unless nothing is left to do.
    """
    keep_codec(run, origin)
    before, now = read_config(run), dict(saved)
    was, of_command = (_length(config["trainer"]) for config in (before, now))
    if trainer.length.finished(trainer.step):
        now["trainer"] = before["trainer"]
    elif trainer.step > 0 and was != of_command:
        print(f"{run.path} was set up for {was} and goes on to {of_command}: {_rate(saved, trainer)}.")
    elif trainer.step == 0 and "init" in now:
        print(f"{run.path} starts from the averaged weights of {now['init']['path']}.")
    if any(differences(before, now)):
        write_atomically(run.config, yaml.safe_dump(now, sort_keys=False).encode())


def _length(node: Mapping[str, Any]) -> str:
    minutes = node.get("minutes")
    return f"{node.get('steps')} steps" if minutes is None else duration(minutes)


def _rate(saved: Mapping[str, Any], trainer: Trainer) -> str:
    """What the learning rate of a run of another length does."""
    options = {key: saved["trainer"][key] for key in ("warmup", "decay") if key in saved["trainer"]}
    decay = options.get("decay", "constant")
    if decay == "constant":
        return "its learning rate does not depend on that"
    if trainer.length.steps is None:
        return f"from here its learning rate is that of a {decay} decay over the whole"
    factor = learning_rate_factor(trainer.step, steps=trainer.steps, **options)
    return (
        f"from here its learning rate is that of a {decay} decay over {trainer.steps} steps, {factor:.3g} of the full "
        f"one at step {trainer.step}"
    )
