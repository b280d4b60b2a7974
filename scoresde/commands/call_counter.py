"""How many calls of a network a command has made, and how far that brings it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from scoresde.commands.load import TrainedModel
from scoresde.covariance import LearnedRange
from scoresde.denoiser import Denoiser, NetworkDenoiser
from scoresde.progress import Progress
from scoresde.sde import SDE
from scoresde.sde.levels import Level
from scoresde.solvers import Solver, StepSolver
from scoresde.solvers.base import Step

FORESEEN = 5000  # steps up to which a run without a network is worth its time


class CallCounter:
    """Counts the calls of a network, and shows how far it is: calls done of calls to do.

    A solver with steps says where it is by `step`; for others the noise label that the network is called with says how
    much of the way from noise to data is done.

    Args:
        trained: Whose network it is.
        solver: What calls it.
        batches: Numbers of samples, batch by batch.
    """

    def __init__(self, trained: TrainedModel, solver: Solver, batches: Sequence[int]) -> None:
        sde = trained.denoiser.sde
        self.calls = 0  # of the batch in hand
        self.batches = list(batches)
        self._finished = self._before = 0  # batches, and their calls
        self._asked = questions(solver, sde) if isinstance(solver, StepSolver) else None
        self._per_batch = float(self._asked[-1]) if self._asked else 0.0  # 0: not known
        self._by_steps = isinstance(solver, StepSolver)
        self._ends = None if self._by_steps else labels_of_ends(trained.model, sde, solver.end(sde))
        self._way = 0.0
        self._progress = Progress("sampling")
        self._hook = trained.net.register_forward_pre_hook(self._count)

    def step(self, step: Step, of: int) -> None:
        """The batch in hand has been through a step of so many."""
        if step.index == 0:
            return
        asked, all_asked = (step.index, of) if self._asked is None else (self._asked[step.index - 1], self._asked[-1])
        self._per_batch = self.calls * all_asked / asked if asked else self._per_batch
        self._show()

    def finish(self) -> int:
        """The batch in hand is done; returns its calls."""
        calls, self.calls, self._way = self.calls, 0, 0.0
        self._before += calls
        self._finished += 1
        if self._by_steps:
            self._per_batch = self._before / self._finished
        self._show()
        return calls

    def __enter__(self) -> CallCounter:
        return self

    def __exit__(self, *error: object) -> None:
        self._hook.remove()
        self._progress.close()

    def _count(self, net: nn.Module, arguments: tuple[Any, ...]) -> None:
        self.calls += 1
        if self._progress.due:
            if self._ends is not None:
                way = share_of(arguments[1], *self._ends, self.batches[self._finished])
                self._way = max(self._way, way)
            self._show()

    def _show(self) -> None:
        calls = self._before + self.calls
        if self._per_batch:
            total = max(round(self._per_batch * len(self.batches)), calls)
            self._progress.to(calls / total, f"{calls:,} of {total:,} calls")
            return
        in_hand = self._way * self.batches[self._finished] if self._finished < len(self.batches) else 0.0
        share = (sum(self.batches[: self._finished]) + in_hand) / sum(self.batches)
        self._progress.to(share, f"{calls:,} calls, {100 * share:.0f} % of the way from noise to data")


class CountedExamples:
    """Shows how many examples are done, and in a batch that takes long the calls of a network for it.

    Args:
        net: What is called.
        total: Number of examples.
        done: How many were done before.
        batch: Examples at a time.
        ends: Noise labels at both ends of the way that a batch goes once, from data to noise; None: there is none.
    """

    def __init__(
        self, net: nn.Module, total: int, done: int = 0, *, batch: int = 1, ends: tuple[float, float] | None = None
    ) -> None:
        self.total, self.calls, self._result = total, 0, ""
        self._batch, self._ends, self._way = batch, ends, 0.0
        self._done = done
        self._progress = Progress("likelihood", total, "examples", done=done)
        self._hook = net.register_forward_pre_hook(self._count)

    def finish(self, done: int, result: str) -> None:
        """So many examples are done in all, and this is what is known from them."""
        self.calls, self._way, self._result = 0, 0.0, f", {result}"
        self._done = done
        self._progress.to(done, self._words(done))

    def __enter__(self) -> CountedExamples:
        return self

    def __exit__(self, *error: object) -> None:
        self._hook.remove()
        self._progress.close()

    def _count(self, net: nn.Module, arguments: tuple[Any, ...]) -> None:
        self.calls += 1
        if not self._progress.due:
            return
        words = f"{self._words(self._done)}, calls for the next ones: {self.calls:,}"
        if self._ends is not None:
            noisy, clean = self._ends
            self._way = max(self._way, share_of(arguments[1], clean, noisy, min(self._batch, self.total - self._done)))
            words += f", {100 * self._way:.0f} % of their way"
        ahead = self._way * min(self._batch, self.total - self._done)
        self._progress.to(self._done + min(ahead, 0.99 * (self.total - self._done)), words)

    def _words(self, done: int) -> str:
        return f"{done:,} of {self.total:,} examples{self._result}"


@contextmanager
def calls_counted(net: nn.Module, progress: Progress) -> Iterator[None]:
    """Inside the `with` block every call of a network advances the progress by one."""
    hook = net.register_forward_pre_hook(lambda net, arguments: progress.advance())
    try:
        yield
    finally:
        hook.remove()


def share_of(label: Tensor, start: float, end: float, batch: int) -> float:
    """How much of its way a batch has gone, by its noise labels; samples that have arrived are no longer in it."""
    try:
        gone = (float(label.detach().double().mean()) - start) / (end - start)
    except RuntimeError:  # inside torch.func, where no number can be read
        return 0.0
    left = min(len(label) / batch, 1.0)
    return 1 - left * (1 - min(max(gone, 0.0), 1.0))


def labels_of_ends(model: nn.Module, sde: SDE, t_end: float) -> tuple[float, float] | None:
    """The noise labels of a model's network at t = 1 and at t_end of a process."""
    kinds = (NetworkDenoiser, LearnedRange)
    rule = next((part.parameterization for part in model.modules() if isinstance(part, kinds)), None)
    if rule is None:
        return None
    t = torch.tensor([1.0, max(t_end, sde.t_min)], dtype=torch.float64)
    noisy, clean = rule.c_noise(sde.alpha(t), sde.sigma(t)).tolist()
    return None if noisy == clean else (noisy, clean)


@torch.no_grad()
def questions(solver: StepSolver, sde: SDE) -> list[int] | None:
    """How often a solver asks its denoiser, after each of its steps: found by a run that asks no network.

    None where that would take long, or where the solver needs more than a denoiser.
    """
    if solver.steps > FORESEEN:
        return None
    nobody, x = _Nobody(sde), torch.ones(1, 1)
    found = []
    try:
        for _ in solver.trajectory(nobody, x, noise=lambda t, s: torch.zeros_like(x)):
            found.append(nobody.asked)
    except Exception:  # it asks for what only some denoisers know
        return None
    return found[1:] if len(found) > 1 and found[-1] > 0 else None


class _Nobody(Denoiser):
    """Data that are 0, and how often they were asked for."""

    def __init__(self, sde: SDE) -> None:
        super().__init__()
        self.sde, self.asked = sde, 0

    def x0(self, x: Tensor, level: Level, **cond: Any) -> Tensor:
        self.asked += 1
        return torch.zeros_like(x)

    def covariance_diag(self, x: Tensor, t: Tensor, **cond: Any) -> Tensor:
        return torch.zeros_like(x)
