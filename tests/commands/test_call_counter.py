"""Sampling says how many calls are done of how many to do, and is right."""

from __future__ import annotations

import itertools
import re
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from scoresde import progress
from scoresde.commands.call_counter import CallCounter, CountedExamples
from scoresde.commands.drawing import draw
from scoresde.denoiser import Denoiser, NetworkDenoiser
from scoresde.guidance import Guided
from scoresde.parameterization import EDM
from scoresde.sde import SDE, VPSDE, StraightSDE
from scoresde.solvers import DDIM, AdaptiveSDE, DPMSolver, Heun, PredictorCorrector, ProbabilityFlowODE, Solver


class Small(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.scale, self.calls = nn.Parameter(torch.tensor(0.1)), 0

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        self.calls += 1
        return self.scale * torch.tanh(x)


@pytest.fixture(autouse=True)
def every_call(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if every call took long."""
    for name in ("QUIET", "GAP", "EVERY", "REFRESH"):
        monkeypatch.setattr(progress, name, 0.0)


def lines_of(
    solver: Solver, sde: SDE, batches: list[int], capsys: pytest.CaptureFixture[str], *, guided: bool = False
) -> tuple[list[str], int]:
    """What was said, and the calls that were made."""
    net = Small()
    model: Denoiser = NetworkDenoiser(net, sde, EDM())
    asked = Guided(model, NetworkDenoiser(net, sde, EDM()), 2.0) if guided else model
    trained: Any = SimpleNamespace(net=net, model=model, denoiser=model)
    with CallCounter(trained, solver, batches) as counter:
        for n in batches:
            before = net.calls
            draw(asked, solver, (3,), 0, range(n), torch.device("cpu"), [counter.step])
            assert counter.finish() == net.calls - before
    return capsys.readouterr().err.splitlines(), net.calls


def counts(line: str) -> tuple[int, int]:
    words = line.removeprefix("sampling: ").replace(",", "").split()
    assert words[1] == "of" and words[3] == "calls"
    return int(words[0]), int(words[2])


@pytest.mark.parametrize(
    "solver",
    [DDIM(steps=7), Heun(steps=5), DPMSolver(steps=4), PredictorCorrector(steps=6)],
    ids=lambda solver: type(solver).__name__,
)
@pytest.mark.parametrize("sde", [VPSDE(), StraightSDE()], ids=lambda sde: type(sde).__name__)
@pytest.mark.parametrize("guided", [False, True], ids=["plain", "guided"])
def test_calls_done_of_calls_to_do(solver: Solver, sde: SDE, guided: bool, capsys: pytest.CaptureFixture[str]) -> None:
    if isinstance(solver, PredictorCorrector) and isinstance(sde, StraightSDE):
        sde = VPSDE(beta_max=10.0)
    found, calls = lines_of(solver, sde, [2, 2, 1], capsys, guided=guided)
    said = [counts(line) for line in found]
    assert said[-1] == (calls, calls)
    assert [done for done, _ in said] == sorted(done for done, _ in said)
    late = [total for done, total in said if done > calls // 3 // 2]  # half of the first batch
    assert set(late) == {calls}
    if not guided:
        assert {total for _, total in said} == {calls}  # known before the first call


def test_a_batch_whose_guidance_is_not_known_beforehand_is_right_after_a_step(
    capsys: pytest.CaptureFixture[str],
) -> None:
    found, calls = lines_of(DDIM(steps=10), VPSDE(), [4], capsys, guided=True)
    assert {total for done, total in map(counts, found) if done > 2} == {calls} == {22}


@pytest.mark.parametrize(
    "solver",
    [ProbabilityFlowODE(rtol=1e-2, atol=1e-2), AdaptiveSDE(rtol=0.1, atol=0.1)],
    ids=lambda solver: type(solver).__name__,
)
def test_solvers_that_choose_their_steps_say_how_much_of_the_way_is_done(
    solver: Solver, capsys: pytest.CaptureFixture[str]
) -> None:
    found, calls = lines_of(solver, VPSDE(), [3, 3], capsys)
    shares = [int(line.split(" calls, ")[1].split(" %")[0]) for line in found]
    assert found[-1].startswith(f"sampling: {calls} calls, 100 % of the way from noise to data, in ")
    assert shares == sorted(shares)
    assert len({share for share in shares if share < 50}) > 3 and len({share for share in shares if share > 50}) > 3


def test_likelihoods_count_calls_inside_a_batch(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = itertools.count(0, 100)
    monkeypatch.setattr(progress, "perf_counter", lambda: next(clock))
    net = Small()
    with CountedExamples(net, 10) as counter:
        net(torch.zeros(1, 3), torch.zeros(1))
        counter.finish(4, "2 nats")
        net(torch.zeros(1, 3), torch.zeros(1))
        net(torch.zeros(1, 3), torch.zeros(1))
    assert [re.sub(r", \d+:\d+ left", "", line) for line in capsys.readouterr().err.splitlines()] == [
        "likelihood: 0 of 10 examples, calls for the next ones: 1",
        "likelihood: 4 of 10 examples, 2 nats",
        "likelihood: 4 of 10 examples, 2 nats, calls for the next ones: 1",
        "likelihood: 4 of 10 examples, 2 nats, calls for the next ones: 2",
    ]


def test_likelihoods_of_the_flow_say_how_much_of_the_way_is_done(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = itertools.count(0, 100)
    monkeypatch.setattr(progress, "perf_counter", lambda: next(clock))
    net = Small()
    with CountedExamples(net, 8, batch=4, ends=(3.0, -2.0)) as counter:
        for batch in range(2):
            for label in (-2.0, 0.5, 3.0):
                net(torch.zeros(4, 3), torch.full((4,), label))
            net(torch.zeros(1, 3), torch.full((1,), 0.5))  # three of them have arrived
            counter.finish(4 * batch + 4, "2 nats")
    lines = capsys.readouterr().err.splitlines()
    assert [line.split(", ")[1].split()[-1] for line in lines[:4]] == ["1", "2", "3", "4"]
    ways = [int(line.split(" % of")[0].split()[-1]) for line in lines if "their way" in line]
    assert ways == [0, 50, 100, 100] * 2
    assert lines[-1].startswith("likelihood: 8 of 8 examples, 2 nats, in ")
