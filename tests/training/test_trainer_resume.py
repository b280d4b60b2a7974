from __future__ import annotations

import csv
import errno
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from scoresde.denoiser import NetworkDenoiser
from scoresde.interop import score_sde_keys
from scoresde.models import NCSNpp
from scoresde.parameterization import EDM
from scoresde.sde import VPSDE
from scoresde.training import (
    CheckpointError,
    Interrupted,
    RunDirectory,
    Trainer,
    load_checkpoint,
    load_weights,
    save_checkpoint,
)

Make = Callable[..., Trainer]
TIMINGS = ("examples_per_second", "seconds")


def tensors(state: Any, key: str = "") -> dict[str, Any]:
    """All leaves of nested containers by their path."""
    if isinstance(state, dict):
        return {path: leaf for name, item in state.items() for path, leaf in tensors(item, f"{key}.{name}").items()}
    if isinstance(state, (list, tuple)):
        return {path: leaf for i, item in enumerate(state) for path, leaf in tensors(item, f"{key}.{i}").items()}
    return {key: state}


def assert_same_bits(ours: Path, theirs: Path) -> None:
    first, second = tensors(load_checkpoint(ours)), tensors(load_checkpoint(theirs))
    assert first.keys() == second.keys()
    for key, value in first.items():
        same = torch.equal(value, second[key]) if isinstance(value, Tensor) else value == second[key]
        assert same, key


def metrics(run: RunDirectory) -> list[dict[str, str]]:
    with run.metrics.open() as file:
        return [{k: v for k, v in row.items() if k not in TIMINGS} for row in csv.DictReader(file)]


class Stop:
    """A preview that sends this process a signal at one step."""

    def __init__(self, step: int, signum: int) -> None:
        self.step, self.signum = step, signum

    def __call__(self, denoiser: nn.Module, step: int) -> None:
        if step == self.step:
            os.kill(os.getpid(), self.signum)


@pytest.mark.parametrize(
    "options",
    [
        {"warmup": 3, "decay": "cosine"},
        {"accumulate": 3, "seed": 7},
        {"precision": "bfloat16", "channels_last": True},
    ],
    ids=str,
)
def test_a_stopped_and_resumed_run_equals_an_uninterrupted_one(
    make_trainer: Make, tmp_path: Path, options: dict[str, Any]
) -> None:
    whole, parts = (RunDirectory.create(tmp_path / name, "seed: 0\n") for name in ("whole", "parts"))
    options = {**options, "steps": 11, "log_every": 3, "sample_every": 1}
    make_trainer(run=whole, **options).fit()
    for stop in (
        1,
        4,
        7,
    ):  # each signal ends the step after it: 2, 5, 8, none of them a multiple of log_every
        with pytest.raises(Interrupted) as stopped:
            make_trainer(run=parts, preview=Stop(stop, signal.SIGINT), **options).fit()
        assert stopped.value.code == 130
        assert load_checkpoint(parts.last)["step"] == stop + 1
    final = make_trainer(run=parts, **options).fit()

    assert_same_bits(parts.last, whole.last)
    assert metrics(parts) == metrics(whole)
    assert final["loss"] == float(metrics(whole)[-1]["loss"])


def test_a_run_from_before_the_layers_had_names_goes_on(make_trainer: Make, tmp_path: Path) -> None:
    """Checkpoints then had the published names, `net.all_modules.4.Conv_0.weight`; the optimizer has no names."""

    def trainer(run: RunDirectory, width: int = 4, **options: Any) -> Trainer:
        torch.manual_seed(0)
        net = NCSNpp(channels=1, image_size=4, width=width, channel_mults=(1, 2), num_res_blocks=1, num_classes=2)
        denoiser = NetworkDenoiser(net, VPSDE(), EDM())
        return make_trainer(denoiser=denoiser, run=run, **{"steps": 5, "sample_every": 1} | options)

    whole, parts = (RunDirectory.create(tmp_path / name, "seed: 0\n") for name in ("whole", "parts"))
    trainer(whole).fit()
    with pytest.raises(Interrupted):
        trainer(parts, preview=Stop(1, signal.SIGINT)).fit()
    state = load_checkpoint(parts.last)
    net = trainer(whole).denoiser.net
    earlier = {f"net.{ours}": f"net.{published}" for ours, published in score_sde_keys(net).items()}  # type: ignore[arg-type]
    state["model"] = {earlier[name]: value for name, value in state["model"].items()}
    state["ema"]["params"] = {earlier[name]: value for name, value in state["ema"]["params"].items()}
    assert "net.all_modules.3.Conv_0.weight" in state["ema"]["params"]
    save_checkpoint(parts.last, state)

    with pytest.raises(CheckpointError, match=r"another model: 'net.embed.dense.0.weight' is \(16, 4\) there and"):
        trainer(parts, width=8).fit()
    trainer(parts).fit()
    assert_same_bits(parts.last, whole.last)
    loaded = trainer(whole).denoiser
    load_weights(loaded, state)
    weights = state["ema"]["params"]
    assert all(torch.equal(p, weights[earlier[name]]) for name, p in loaded.named_parameters())


def test_a_crash_goes_back_to_the_last_checkpoint(make_trainer: Make, tmp_path: Path) -> None:
    whole, parts = (RunDirectory.create(tmp_path / name, "seed: 0\n") for name in ("whole", "parts"))
    options: dict[str, Any] = {"steps": 9, "log_every": 2, "checkpoint_every": 3, "sample_every": 1}

    def crash(denoiser: nn.Module, step: int) -> None:
        if step == 5:
            raise RuntimeError("power cut")

    make_trainer(run=whole, **options).fit()
    with pytest.raises(RuntimeError, match="power cut"):
        make_trainer(run=parts, preview=crash, **options).fit()
    assert load_checkpoint(parts.last)["step"] == 3
    assert [row["step"] for row in metrics(parts)] == ["2", "4"]
    make_trainer(run=parts, **options).fit()
    assert_same_bits(parts.last, whole.last)
    assert metrics(parts) == metrics(whole)


def test_snapshots_are_kept_and_can_be_started_from(make_trainer: Make, tmp_path: Path) -> None:
    run = RunDirectory.create(tmp_path, "seed: 0\n")
    make_trainer(run=run, steps=7, snapshot_every=3).fit()
    assert [path.name for path in run.snapshots] == [
        "step_00000003.pt",
        "step_00000006.pt",
        "step_00000007.pt",
    ]
    run.snapshot(7).unlink()
    run.last.rename(tmp_path / "before.pt")
    make_trainer(run=run, steps=7, snapshot_every=3).fit()
    assert_same_bits(run.last, tmp_path / "before.pt")


@pytest.mark.parametrize("cut_off", [5, 10])
def test_what_a_kill_cut_off_after_the_checkpoint_is_made_again(
    cut_off: int, make_trainer: Make, tmp_path: Path
) -> None:
    """last.pt of a step is there, its snapshot and its picture are not."""
    whole, parts = (RunDirectory.create(tmp_path / name, "seed: 0\n") for name in ("whole", "parts"))
    options: dict[str, Any] = {
        "steps": 10, "log_every": 2, "checkpoint_every": 5, "snapshot_every": 5, "sample_every": 5,
    }  # fmt: skip
    drawn: list[int] = []

    class Picture:
        def __init__(self, run: RunDirectory) -> None:
            self.run = run

        def path(self, step: int) -> Path:
            return self.run.samples / f"{step}.png"

        def __call__(self, denoiser: nn.Module, step: int) -> Path:
            assert not denoiser.training
            drawn.append(step)
            value = sum(float(parameter.sum()) for parameter in denoiser.parameters())
            self.path(step).write_text(repr(value))
            return self.path(step)

    make_trainer(run=whole, preview=Picture(whole), **options).fit()
    make_trainer(run=parts, preview=Picture(parts), **options).fit()
    if cut_off == 5:
        for path in (parts.last, parts.snapshot(10), Picture(parts).path(10)):
            path.unlink()
        parts.previous.rename(parts.last)
    parts.snapshot(cut_off).unlink()
    Picture(parts).path(cut_off).unlink()
    drawn.clear()
    make_trainer(run=parts, preview=Picture(parts), **options).fit()
    assert drawn == [5, 10] if cut_off == 5 else drawn == [10]
    for step in (5, 10):
        assert_same_bits(parts.snapshot(step), whole.snapshot(step))
        assert Picture(parts).path(step).read_text() == Picture(whole).path(step).read_text()
    assert_same_bits(parts.previous, whole.previous)
    assert metrics(parts) == metrics(whole)
    drawn.clear()
    make_trainer(run=parts, preview=Picture(parts), **options).fit()
    assert not drawn


def test_a_picture_that_cannot_be_written_does_not_end_training(
    make_trainer: Make, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(denoiser: nn.Module, step: int) -> Path:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    trainer = make_trainer(run=RunDirectory.create(tmp_path, "seed: 0\n"), preview=full, sample_every=4)
    assert trainer.fit()["step"] == 8
    assert "cannot write the picture of step 4 (No space left on device): training goes on." in capsys.readouterr().out


def damage(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("trouble", ["damaged", "missing"])
def test_the_previous_checkpoint_is_used_where_the_last_is_damaged(
    trouble: str, make_trainer: Make, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole, parts = (RunDirectory.create(tmp_path / name, "seed: 0\n") for name in ("whole", "parts"))
    options = {"steps": 9, "checkpoint_every": 3, "snapshot_every": 4}
    for run in (whole, parts):
        make_trainer(run=run, **options).fit()
    assert load_checkpoint(parts.previous)["step"] == 6
    parts.snapshot(9).unlink()
    damage(parts.last) if trouble == "damaged" else parts.last.unlink()
    bad = parts.last.read_bytes() if trouble == "damaged" else b""
    capsys.readouterr()
    assert parts.newest_state()[1]["step"] == 8  # a snapshot, which is newer than previous.pt
    damage(parts.snapshot(8))
    make_trainer(run=parts, **options).fit()
    assert_same_bits(parts.last, whole.last)
    assert metrics(parts) == metrics(whole)
    said = capsys.readouterr().out
    assert f"{parts.last} is {trouble}: {parts.previous} is used instead, the state after step 6." in said
    if trouble == "damaged":
        assert (parts.checkpoints / "last-1.pt").read_bytes() == bad
    for path in (parts.last, parts.previous, *parts.snapshots):
        damage(path)
    with pytest.raises(CheckpointError, match=r"last\.pt is damaged"):
        make_trainer(run=parts, **options).fit()


def test_a_state_that_a_signal_saved_does_not_become_the_previous_one(make_trainer: Make, tmp_path: Path) -> None:
    run = RunDirectory.create(tmp_path, "seed: 0\n")
    options = {"steps": 8, "checkpoint_every": 2, "sample_every": 1}
    with pytest.raises(Interrupted):
        make_trainer(run=run, preview=Stop(4, signal.SIGTERM), **options).fit()
    assert [load_checkpoint(path)["step"] for path in (run.last, run.previous)] == [5, 4]
    with pytest.raises(Interrupted):
        make_trainer(run=run, preview=Stop(6, signal.SIGTERM), **options).fit()
    assert [load_checkpoint(path)["step"] for path in (run.last, run.previous)] == [7, 6]
    make_trainer(run=run, **options).fit()
    assert [load_checkpoint(path)["step"] for path in (run.last, run.previous)] == [8, 6]


def test_a_finished_run_says_so(make_trainer: Make, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = RunDirectory.create(tmp_path, "seed: 0\n")
    make_trainer(run=run).fit()
    capsys.readouterr()
    assert make_trainer(run=run).fit() == {"step": 8.0}
    assert capsys.readouterr().out == "already trained to step 8 of 8: nothing left to do.\n"


def test_a_checkpoint_of_another_model_seed_or_optimizer_is_refused(make_trainer: Make, tmp_path: Path) -> None:
    run = RunDirectory.create(tmp_path, "seed: 0\n")
    make_trainer(run=run, steps=2).fit()
    with pytest.raises(CheckpointError, match=r"'net\.head\.weight' is \(4, 1, 3, 3\) there and \(5, 1, 3, 3\) here"):
        make_trainer(run=run, width=5).fit()
    with pytest.raises(CheckpointError, match="of a run with seed 0, got seed 1"):
        make_trainer(run=run, seed=1).fit()
    trainer = make_trainer(run=run)
    trainer.optimizer.add_param_group({"params": [nn.Parameter(torch.zeros(1))]})
    with pytest.raises(CheckpointError, match="is of another model or optimizer"):
        trainer.fit()


@pytest.fixture
def python_answers_interrupts() -> Iterator[None]:
    """Also where a shell that started the tests in the background told them to ignore SIGINT."""
    inherited = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, inherited)


@pytest.mark.usefixtures("python_answers_interrupts")
def test_handlers_are_restored_and_a_second_interrupt_acts_at_once(make_trainer: Make) -> None:
    before = [signal.getsignal(signum) for signum in (signal.SIGINT, signal.SIGTERM)]

    def twice(denoiser: nn.Module, step: int) -> None:
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(0)
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(1)

    with pytest.raises(KeyboardInterrupt):
        make_trainer(sample_every=2, preview=twice).fit()
    assert [signal.getsignal(signum) for signum in (signal.SIGINT, signal.SIGTERM)] == before


@pytest.mark.parametrize("name", ["SIGTERM", "SIGHUP", "SIGUSR1", "SIGXCPU"])
def test_signals_that_ask_to_stop_may_come_again_while_the_state_is_saved(
    name: str, make_trainer: Make, tmp_path: Path
) -> None:
    signum = getattr(signal, name)
    run = RunDirectory.create(tmp_path, "seed: 0\n")

    def thrice(denoiser: nn.Module, step: int) -> None:
        for again in (signum, signum, signal.SIGTERM):
            os.kill(os.getpid(), again)
            time.sleep(0)

    before = signal.signal(signum, signal.SIG_DFL)
    try:
        with pytest.raises(Interrupted) as stopped:
            make_trainer(run=run, sample_every=2, preview=thrice).fit()
        assert signal.getsignal(signum) is signal.SIG_DFL
    finally:
        signal.signal(signum, before)
    assert stopped.value.code == 128 + signum
    assert load_checkpoint(run.last)["step"] == 3


@pytest.mark.parametrize("handler", [signal.SIG_IGN, lambda signum, frame: None], ids=["nohup", "the user's own"])
def test_signals_that_are_answered_or_ignored_already_are_left_alone(handler: Any, make_trainer: Make) -> None:
    before = signal.signal(signal.SIGHUP, handler)
    try:
        kill = Stop(2, signal.SIGHUP)
        assert make_trainer(sample_every=1, preview=kill).fit()["step"] == 8
        assert signal.getsignal(signal.SIGHUP) is handler
    finally:
        signal.signal(signal.SIGHUP, before)


def test_training_in_another_thread_needs_no_signals(make_trainer: Make) -> None:
    results: list[dict[str, float]] = []
    thread = threading.Thread(target=lambda: results.append(make_trainer().fit()))
    thread.start()
    thread.join()
    assert results[0]["step"] == 8


SCRIPT = """
import sys, time, torch
from conftest import images, small_denoiser
from scoresde.losses import DenoisingLoss
from scoresde.training import RunDirectory, Trainer

torch.set_num_threads(1)

def batch(index):
    time.sleep(float(sys.argv[2]))
    return images(index)

denoiser = small_denoiser()
Trainer(
    denoiser=denoiser, loss=DenoisingLoss(), optimizer=torch.optim.AdamW(denoiser.parameters(), lr=1e-2),
    batch=batch, run=RunDirectory.create(sys.argv[1], "seed: 0"), steps=60, log_every=1, progress=False,
).fit()
"""


@pytest.mark.timeout(120)
def test_sigterm_in_a_process_then_the_same_command_again(make_trainer: Make, tmp_path: Path) -> None:
    whole, parts = RunDirectory.create(tmp_path / "whole", "seed: 0"), RunDirectory(tmp_path / "parts")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        make_trainer(run=whole, steps=60, log_every=1).fit()
    finally:
        torch.set_num_threads(threads)
    paths = [str(Path(__file__).parent), str(Path(__file__).parents[2]), *sys.path]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(paths)}

    def command(seconds: str) -> list[str]:
        return [sys.executable, "-c", SCRIPT, str(parts.path), seconds]

    process = subprocess.Popen(command("0.05"), env=environment, stdout=subprocess.PIPE, text=True)
    while not parts.metrics.is_file() and process.poll() is None:
        time.sleep(0.01)
    process.send_signal(signal.SIGTERM)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 143
    step = load_checkpoint(parts.last)["step"]
    assert 0 < step < 60
    assert output == (
        f"stopped by SIGTERM after step {step} of 60; the state is saved in {parts.last}: "
        f"run the same command again to go on.\n"
    )

    again = subprocess.run(command("0"), env=environment, capture_output=True, text=True, timeout=60)
    assert again.returncode == 0, again.stderr
    assert again.stdout == f"going on from step {step} of 60 ({parts.last}).\n"
    assert_same_bits(parts.last, whole.last)
    assert metrics(parts) == metrics(whole)
