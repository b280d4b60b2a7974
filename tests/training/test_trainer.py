from __future__ import annotations

import csv
import math
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from scoresde.analytic import GaussianDenoiser
from scoresde.denoiser import NetworkDenoiser
from scoresde.losses import DenoisingLoss, edm_weighting
from scoresde.parameterization import EDM
from scoresde.sde import VPSDE
from scoresde.training import EMA, CheckpointError, RunDirectory, Trainer, TrainingError, learning_rate_factor
from scoresde.training.meter import Meter

REFERENCE = np.load(Path(__file__).parents[1] / "data" / "ema_optim.npz")
Make = Callable[..., Trainer]


class Spy:
    """A logger that keeps what it is told, and a copy of the weights at every row."""

    def __init__(self) -> None:
        self.rows: list[dict[str, float]] = []
        self.weights: list[Tensor] = []
        self.images: list[tuple[int, Path]] = []
        self.watched: nn.Module | None = None

    def start(self, step: int) -> None:
        pass

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        self.rows.append({"step": step, **metrics})
        if self.watched is not None:
            self.weights.append(nn.utils.parameters_to_vector(self.watched.parameters()).detach().clone())

    def image(self, step: int, path: Path) -> None:
        self.images.append((step, path))

    def close(self) -> None:
        self.closed = True


class LeastSquares(nn.Module):
    def __init__(self, w: Tensor) -> None:
        super().__init__()
        self.w = nn.Parameter(w.clone())


@pytest.mark.parametrize("accumulate", [1, 2])
def test_adam_with_warmup_and_clipping_is_that_of_the_reference(accumulate: int) -> None:
    a, b, iterates = (torch.from_numpy(REFERENCE[f"opt_{name}"]) for name in ("A", "b", "w"))
    module, spy = LeastSquares(iterates[0]), Spy()
    spy.watched = module

    def loss(module: LeastSquares, x0: Tensor, *, generator: torch.Generator, b: Tensor) -> Tensor:
        return 6 * (x0 @ module.w - b).square()  # its mean over the six rows is the reference's sum

    def batch(index: int) -> tuple[Tensor, dict[str, Any]]:
        rows = slice(None) if accumulate == 1 else slice(3 * (index % 2), 3 * (index % 2) + 3)
        return a[rows], {"b": b[rows]}

    optimizer = torch.optim.Adam(module.parameters(), lr=2e-4)
    options: dict[str, Any] = {"steps": 12, "warmup": 5, "log_every": 1, "accumulate": accumulate}
    Trainer(denoiser=module, loss=loss, optimizer=optimizer, batch=batch, logger=spy, progress=False, **options).fit()

    torch.testing.assert_close(torch.stack(spy.weights), iterates[1:], rtol=0, atol=1e-13)
    assert [row["lr"] for row in spy.rows] == pytest.approx(REFERENCE["opt_lr"], abs=1e-18)
    assert [row["grad_norm"] for row in spy.rows] == pytest.approx(REFERENCE["opt_gradnorm"], rel=1e-6)


@pytest.mark.parametrize("clip, largest", [(0.1, 0.1), (None, 191.5), (-1.0, 191.5)])
def test_clip_bounds_the_gradient_and_none_or_negative_turns_it_off(clip: float | None, largest: float) -> None:
    a, b, w = (torch.from_numpy(REFERENCE[f"opt_{name}"]) for name in ("A", "b", "w"))
    module = LeastSquares(w[0])
    Trainer(
        denoiser=module,
        loss=lambda module, x0, generator: 6 * (x0 @ module.w - b).square(),
        optimizer=torch.optim.SGD(module.parameters(), lr=1.0),
        batch=lambda index: (a, {}),
        steps=1,
        clip=clip,
        progress=False,
    ).fit()
    assert (module.w - w[0]).norm().item() == pytest.approx(largest, rel=1e-4)


def test_learning_rate_factor() -> None:
    assert [learning_rate_factor(k, steps=100, warmup=4) for k in range(6)] == [0, 0.25, 0.5, 0.75, 1, 1]
    linear = [learning_rate_factor(k, steps=10, warmup=2, decay="linear") for k in (2, 6, 9)]
    assert linear == pytest.approx([1, 0.5, 0.125])
    cosine = [learning_rate_factor(k, steps=10, decay="cosine") for k in (0, 5, 9)]
    assert cosine == pytest.approx([1, 0.5, 0.5 * (1 + math.cos(0.9 * math.pi))])
    assert learning_rate_factor(3, steps=3, warmup=3) == 1.0


def test_the_global_random_state_is_left_alone(make_trainer: Make) -> None:
    torch.manual_seed(5)
    before = torch.get_rng_state()
    make_trainer(steps=2).fit()
    assert torch.equal(torch.get_rng_state(), before)


def test_every_micro_batch_and_seed_has_its_own_noise_and_dropout(make_trainer: Make) -> None:
    draws: list[float] = []

    def loss(denoiser: Any, x0: Tensor, *, generator: torch.Generator) -> Tensor:
        draws.extend([torch.rand(()).item(), torch.rand((), generator=generator).item()])
        return DenoisingLoss()(denoiser, x0, generator=generator)

    for seed in (0, 1):
        make_trainer(steps=4, accumulate=2, seed=seed, loss=loss).fit()
    assert len(set(draws)) == len(draws) == 2 * 4 * 2 * 2


def test_accumulated_batches_are_one_large_batch() -> None:
    """With dropout and random times away, two halves give the gradient of the whole."""
    torch.manual_seed(0)
    x = torch.randn(8, 3, dtype=torch.float64)
    start, results = nn.Linear(3, 1, dtype=torch.float64), []
    for accumulate in (1, 4):
        module = nn.Linear(3, 1, dtype=torch.float64)
        module.load_state_dict(start.state_dict())
        size = 8 // accumulate
        Trainer(
            denoiser=module,
            loss=lambda module, x0, generator: module(x0).square()[:, 0],
            optimizer=torch.optim.SGD(module.parameters(), lr=0.1),
            batch=lambda index, size=size: (x[(index * size) % 8 :][:size], {}),  # type: ignore[misc]
            steps=3,
            accumulate=accumulate,
            progress=False,
        ).fit()
        results.append(nn.utils.parameters_to_vector(module.parameters()))
    torch.testing.assert_close(results[0], results[1], rtol=1e-13, atol=1e-13)


def test_a_small_network_learns_the_exact_denoiser() -> None:
    """For N(mean, std²) data the best denoiser is known; averaged weights come within 0.06 of it (rms)."""
    sde, mean, std = VPSDE(), torch.tensor([0.8, -0.4]), torch.tensor([0.3, 0.6])

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.Sequential(nn.Linear(3, 48), nn.SiLU(), nn.Linear(48, 48), nn.SiLU(), nn.Linear(48, 2))

        def forward(self, x: Tensor, c_noise: Tensor) -> Tensor:
            return self.layers(torch.cat([x, c_noise[:, None]], 1))  # type: ignore[no-any-return]

    def batch(index: int) -> tuple[Tensor, dict[str, Any]]:
        return mean + std * torch.randn(256, 2, generator=torch.Generator().manual_seed(index)), {}

    with torch.random.fork_rng([]):
        torch.manual_seed(0)
        denoiser = NetworkDenoiser(Net(), sde, EDM(sigma_data=0.8))
    optimizer = torch.optim.AdamW(denoiser.parameters(), lr=5e-3)
    loss = DenoisingLoss(weighting=partial(edm_weighting, sigma_data=0.8))
    trainer = Trainer(
        denoiser=denoiser, loss=loss, optimizer=optimizer, batch=batch, steps=600, decay="cosine",
        ema_decay=0.99, progress=False,
    )  # fmt: skip
    metrics = trainer.fit()

    t = torch.linspace(0.02, 1.0, 512)
    x = sde.perturb(batch(10**6)[0].repeat(2, 1), t, torch.randn(512, 2, generator=torch.Generator().manual_seed(1)))
    with torch.no_grad(), trainer.ema.applied(denoiser):
        error = (denoiser(x, t) - GaussianDenoiser(sde, mean, std)(x, t)).square().mean().sqrt()
    assert error < 0.06  # the data's own spread is 0.47
    assert metrics["step"] == 600
    assert metrics["examples_per_second"] > 0


@pytest.mark.parametrize("options", [{"precision": "bfloat16"}, {"channels_last": True}, {"accumulate": 2}], ids=str)
def test_options_train_to_nearly_the_same_loss(make_trainer: Make, options: dict[str, Any]) -> None:
    plain = make_trainer(steps=30, log_every=30).fit()
    other = make_trainer(steps=30, log_every=30, **options).fit()
    assert other["loss"] == pytest.approx(plain["loss"], rel=0.02 if "accumulate" not in options else 0.2)


def test_bfloat16_reaches_the_network_but_neither_weights_nor_loss(make_trainer: Make) -> None:
    seen: dict[str, torch.dtype] = {}
    trainer = make_trainer(steps=1, precision="bfloat16")
    net: Any = trainer.denoiser.net
    net.head.register_forward_hook(lambda module, args, output: seen.update(head=output.dtype))
    plain = DenoisingLoss()

    def loss(*args: Any, **kwargs: Any) -> Tensor:
        seen["loss"] = (value := plain(*args, **kwargs)).dtype
        return value

    trainer._update.loss = loss
    trainer.fit()
    assert seen == {"head": torch.bfloat16, "loss": torch.float32}
    assert {p.dtype for p in trainer.denoiser.parameters()} == {torch.float32}


def test_channels_last_is_the_layout_of_weights_and_batches(make_trainer: Make) -> None:
    trainer = make_trainer(steps=1, channels_last=True)
    net: Any = trainer.denoiser.net
    assert net.tail.weight.is_contiguous(memory_format=torch.channels_last)
    layouts: list[bool] = []
    net.tail.register_forward_pre_hook(
        lambda module, args: layouts.append(args[0].is_contiguous(memory_format=torch.channels_last))
    )
    trainer.fit()
    assert layouts == [True]


def test_a_network_that_does_not_compile_is_trained_without(
    make_trainer: Make, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(function: Any) -> Any:
        def forward(*args: Any, **kwargs: Any) -> Tensor:
            raise RuntimeError("no compiler\nlong story")

        return forward

    plain, trainer = make_trainer(steps=3), make_trainer(steps=3, compile=True)
    plain.fit()
    monkeypatch.setattr(torch, "compile", broken)
    trainer.fit()
    assert capsys.readouterr().out == "torch.compile failed (no compiler): going on without it.\n"
    for ours, theirs in zip(trainer.denoiser.parameters(), plain.denoiser.parameters(), strict=True):
        assert torch.equal(ours, theirs)


def test_a_compiled_network_is_used_for_updates_only(make_trainer: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []

    def compiled(function: Any) -> Any:
        def forward(*args: Any, **kwargs: Any) -> Any:
            calls.append("compiled")
            return function(*args, **kwargs)

        return forward

    def preview(denoiser: nn.Module, step: int) -> None:
        before = len(calls)
        denoiser(torch.zeros(2, 1, 4, 4), torch.ones(2))
        assert len(calls) == before

    monkeypatch.setattr(torch, "compile", compiled)
    trainer = make_trainer(steps=3, compile=True, sample_every=1, preview=preview)
    trainer.fit()
    assert len(calls) == 3
    assert "forward" not in vars(trainer.denoiser.net)
    assert not any("_orig_mod" in name for name in trainer.denoiser.state_dict())


def test_preview_sees_averaged_weights_in_evaluation_mode(make_trainer: Make, tmp_path: Path) -> None:
    spy = Spy()
    seen: list[bool] = []

    def preview(denoiser: nn.Module, step: int) -> str:
        average = trainer.ema.state_dict()["params"]
        seen.append(all(torch.equal(p, average[name]) for name, p in denoiser.named_parameters()))
        assert not denoiser.training
        return str(tmp_path / f"{step}.png")

    trainer = make_trainer(steps=5, sample_every=2, preview=preview, logger=spy)
    trainer.fit()
    assert seen == [True] * 3
    assert spy.images == [(step, tmp_path / f"{step}.png") for step in (2, 4, 5)]
    assert spy.closed


def test_metrics_are_means_and_the_file_has_fixed_columns(make_trainer: Make, tmp_path: Path) -> None:
    each, run = Spy(), RunDirectory.create(tmp_path, "seed: 0\n")
    make_trainer(steps=8, log_every=1, logger=each).fit()
    final = make_trainer(steps=8, log_every=3, run=run).fit()
    with run.metrics.open() as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == ["step", "loss", "loss_std", "grad_norm", "lr", "examples_per_second", "seconds"]
    assert [row["step"] for row in rows] == ["3", "6", "8"]
    for row, steps in zip(rows, (each.rows[:3], each.rows[3:6], each.rows[6:]), strict=True):
        for name in ("loss", "grad_norm"):
            assert float(row[name]) == pytest.approx(np.mean([step[name] for step in steps]), rel=1e-5)
    assert final == {name: float(value) for name, value in rows[-1].items()}


def test_loss_std_is_the_spread_between_the_examples_of_a_batch() -> None:
    meter = Meter(torch.device("cpu"))
    meter.record(0, torch.tensor([1.0, 3.0]), torch.tensor(1.0))
    meter.record(1, torch.tensor([10.0, 14.0]), torch.tensor(1.0))
    assert meter.means(0.1)["loss_std"] == pytest.approx(((1 + 4) / 2) ** 0.5)


@pytest.mark.parametrize("checks_every_step", [True, False])  # False: as on an accelerator
@pytest.mark.parametrize("source", ["data", "weights", "accumulated"])
def test_a_loss_that_is_not_finite_stops_with_step_and_noise_level(
    make_trainer: Make, tmp_path: Path, source: str, checks_every_step: bool
) -> None:
    run = RunDirectory.create(tmp_path, "seed: 0\n")
    accumulate = 2 if source == "accumulated" else 1

    def batch(index: int) -> tuple[Tensor, dict[str, Any]]:
        x0 = torch.randn(6, 1, 4, 4, generator=torch.Generator().manual_seed(index))
        if index // accumulate == 5 and index % accumulate == accumulate - 1 and source != "weights":
            x0[4] = math.nan if source == "data" else 1e30  # whose square is infinite
        return x0, {}

    options = {"steps": 9, "checkpoint_every": 4, "log_every": 100, "accumulate": accumulate}
    trainer = make_trainer(run=run, batch=batch, **options)
    trainer._update.checks_every_step = checks_every_step
    if source == "weights":
        trainer._update.factor = lambda step: math.nan if step == 4 else 1.0
        expected = 0  # every loss of step 6 is NaN: the first example is named
    else:
        net: Any = trainer.denoiser.net
        net.norm = nn.Identity()  # batch statistics would spread the NaN to all examples
        trainer.optimizer.param_groups[0]["params"] = list(trainer.denoiser.parameters())
        trainer.ema = EMA(trainer.denoiser)
        expected = 4
    with pytest.raises(TrainingError) as stopped:
        trainer.fit()

    index = 5 * accumulate + accumulate - 1 if source != "weights" else 5
    t, _ = DenoisingLoss().draw(VPSDE(), torch.zeros(6, 1, 4, 4), trainer._update._generator(index))
    level = VPSDE().sigma(t[expected].double()) / VPSDE().alpha(t[expected].double())
    assert str(stopped.value) == (
        f"the loss is not finite at step 6, t = {float(t[expected]):.4g}, sigma/alpha = {float(level):.4g}; "
        f"the last good checkpoint is kept in {run.last}; check the data, or lower the learning rate."
    )
    assert torch.load(run.last, weights_only=True)["step"] == 4


def test_a_gradient_that_is_not_finite_stops_before_it_is_applied() -> None:
    module = LeastSquares(torch.zeros(2))
    trainer = Trainer(
        denoiser=module,
        loss=lambda module, x0, generator: (x0 @ module.w).abs().sqrt(),  # 0, with an infinite slope
        optimizer=torch.optim.SGD(module.parameters(), lr=1.0),
        batch=lambda index: (torch.ones(3, 2), {}),
        steps=2,
        progress=False,
    )
    with pytest.raises(TrainingError, match="the gradient is not finite at step 1; no checkpoint had been saved"):
        trainer.fit()
    assert module.w.tolist() == [0, 0]


def test_weights_that_are_not_finite_are_never_saved(make_trainer: Make, tmp_path: Path) -> None:
    run = RunDirectory.create(tmp_path, "seed: 0\n")
    trainer = make_trainer(run=run, steps=2, checkpoint_every=1)
    trainer._update.factor = lambda step: 1.0 if step == 0 else math.inf
    with pytest.raises(TrainingError, match="the weights are not finite after step 2; the last good checkpoint"):
        trainer.fit()
    assert torch.load(run.last, weights_only=True)["step"] == 1


@pytest.mark.parametrize(
    "options, message",
    [
        ({"steps": 0}, "Trainer needs steps >= 1, a whole number, or null, got steps=0"),
        ({"steps": "10"}, "Trainer needs steps >= 1, a whole number, or null, got steps='10'"),
        ({"accumulate": 0}, "Trainer needs accumulate >= 1, a whole number, got accumulate=0"),
        (
            {"log_every": -1},
            "Trainer needs log_every to be a whole number of steps, a share of the training below 1, or null",
        ),
        ({"decay": "step"}, "Trainer needs decay constant, cosine or linear, got 'step'"),
        ({"precision": "float16"}, "Trainer needs precision float32 or bfloat16, got 'float16'"),
        ({"clip": 0}, "clip to be a positive number, or null"),
        ({"ema_decay": 1.5}, "Trainer needs 0 <= ema_decay < 1, got ema_decay=1.5"),
    ],
    ids=str,
)
def test_wrong_options_are_named(make_trainer: Make, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_trainer(**options)


def test_progress_without_a_terminal_is_a_line_for_every_tenth(
    make_trainer: Make, capsys: pytest.CaptureFixture[str]
) -> None:
    make_trainer(steps=40, log_every=1, progress=True).fit()
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 10
    assert lines[0].startswith("step 4 of 40   loss ")
    assert all("images/s" in line and line.endswith("left") for line in lines)


def test_a_disk_that_fills_up_stops_training_and_keeps_the_last_checkpoint(
    make_trainer: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = RunDirectory.create(tmp_path, "seed: 0\n")
    make_trainer(run=run, steps=2).fit()
    before = run.last.read_bytes()
    monkeypatch.setattr("os.replace", lambda *paths: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(CheckpointError, match=r"cannot save .*last\.pt: No space left on device"):
        make_trainer(run=run, steps=4, logger=Spy()).fit()
    assert run.last.read_bytes() == before
