"""The engine of per-sample steps on equations with closed forms, and what it asks of denoisers."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from closed_forms import mixture
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from scoresde import VPSDE, Composed, Denoiser, Epsilon, Guided, NetworkDenoiser, ProbabilityFlowODE
from scoresde.integrate.adaptive import Integral, integrate
from scoresde.integrate.methods import Field, State
from scoresde.integrate.torchdiffeq_backend import adaptive_method

METHODS = ["dopri5", "dopri8", "bosh3", "fehlberg2", "adaptive_heun"]


def coefficients(z: Tensor) -> Tensor:
    return z[None]


@pytest.mark.parametrize("method", METHODS)
def test_tableaus_satisfy_the_order_conditions(method: str) -> None:
    pair = adaptive_method(method)
    nodes = torch.tensor([0.0, *pair.nodes], dtype=torch.float64)
    weights, error = (torch.tensor(values, dtype=torch.float64) for values in (pair.weights, pair.error))
    for row, node in zip(pair.rows, pair.nodes, strict=True):
        assert sum(row) == pytest.approx(node, abs=1e-12)
    for power in range(int(pair.order)):
        assert float(weights @ nodes**power) == pytest.approx(1 / (power + 1), abs=1e-12)
    for power in range(int(pair.order) - 1):
        assert float(error @ nodes**power) == pytest.approx(0, abs=1e-12)
    assert float(error @ nodes ** (pair.order - 1)) != pytest.approx(0, abs=1e-7)
    assert pair.first_same_as_last == (method in ("dopri5", "dopri8", "bosh3"))


RATES = torch.tensor([0.1, 1.0, 3.0, 10.0], dtype=torch.float64)


def spiral(rates: Tensor) -> Field:
    """y' = rate (y₂, −y₁), q' = rate y₁: a rotation and an integral along it."""

    def rate(at: Tensor, state: State) -> State:
        y, _ = state
        turned = torch.stack([y[:, 1], -y[:, 0]], 1)
        return rates[:, None] * turned, rates * y[:, 0]

    return Field(coefficients, rate, lambda index: spiral(rates[index]))


def exact_spiral(angle: Tensor) -> State:
    return torch.stack([angle.cos(), -angle.sin()], 1), angle.sin()


def start() -> State:
    return torch.tensor([[1.0, 0.0]] * 4, dtype=torch.float64), torch.zeros(4, dtype=torch.float64)


@pytest.mark.parametrize("method", METHODS)
def test_parts_of_any_shape_follow_the_closed_form_each_sample_at_its_own_pace(method: str) -> None:
    tolerance = {"dopri5": 1e-8, "dopri8": 1e-8, "bosh3": 1e-6}.get(method, 1e-5)
    slack = 3000 if method == "fehlberg2" else 300  # its estimate is 1/512 of an Euler step's error
    found = integrate(spiral(RATES), start(), 0.0, 1.0, adaptive_method(method), rtol=tolerance, atol=tolerance)
    for part, exact in zip(found.state, exact_spiral(RATES), strict=True):
        torch.testing.assert_close(part, exact, rtol=0, atol=slack * tolerance)
    assert bool((found.nfe.diff() > 0).all())
    assert torch.equal(found.nfe, 1 + len(adaptive_method(method).nodes) * (found.accepted + found.rejected))

    back = integrate(spiral(RATES), found.state, 1.0, 0.0, adaptive_method(method), rtol=tolerance, atol=tolerance)
    for part, exact in zip(back.state, start(), strict=True):
        torch.testing.assert_close(part, exact, rtol=0, atol=2 * slack * tolerance)


def test_only_controlled_parts_decide() -> None:
    """q' = 20 cos(20 z) next to y' = 0: y alone needs no steps."""

    def rate(at: Tensor, state: State) -> State:
        return torch.zeros_like(state[0]), 20 * torch.cos(20 * at[0])

    def solve(*controlled: int) -> Integral:
        pair, options = adaptive_method("dopri5"), {"rtol": 1e-6, "atol": 1e-6}
        return integrate(Field(coefficients, rate), start(), 0.0, 1.0, pair, controlled=controlled, **options)

    blind, seeing, both = solve(0), solve(1), solve(0, 1)
    assert int(blind.accepted[0]) <= 4
    assert abs(float(seeing.state[1][0]) - math.sin(20)) < 1e-5 < abs(float(blind.state[1][0]) - math.sin(20))
    assert torch.equal(seeing.nfe, both.nfe)


def test_the_host_waits_once_per_attempt() -> None:
    waits: list[str] = []

    class Watching(TorchFunctionMode):
        def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            if getattr(func, "__name__", "") in (
                "tolist",
                "item",
                "nonzero",
                "__bool__",
                "__float__",
                "__int__",
                "cpu",
            ):
                waits.append(func.__name__)
            return func(*args, **(kwargs or {}))

    with Watching():
        found = integrate(spiral(RATES), start(), 0.0, 1.0, adaptive_method("dopri5"), rtol=1e-4, atol=1e-4)
    assert len(waits) == int((found.accepted + found.rejected).max())


class Selectable(Denoiser):
    """Treats rows alike; `whole` makes it say that it does not know."""

    def __init__(self, *, whole: bool) -> None:
        super().__init__()
        self.inner, self.sde, self.whole = mixture(VPSDE()), VPSDE(), whole
        self.rows: list[int] = []

    def forward(self, x: Tensor, t: Tensor, **cond: Any) -> Tensor:
        self.rows.append(len(x))
        return self.inner(x, t)

    def select(self, index: Tensor, batch: int) -> Denoiser | None:
        return None if self.whole else self


def test_dropping_finished_samples_equals_ignoring_them() -> None:
    x = torch.randn(40, 2, dtype=torch.float64)
    whole, dropping = Selectable(whole=True), Selectable(whole=False)
    solver = ProbabilityFlowODE(rtol=1e-5, atol=1e-5)
    for backward in (False, True):
        expected, found = (solver.solution(denoiser, x, backward=backward) for denoiser in (whole, dropping))
        torch.testing.assert_close(found.x, expected.x, rtol=1e-12, atol=1e-12)
        for column, other in zip(found[1:], expected[1:], strict=True):
            assert torch.equal(column, other)
    assert set(whole.rows) == {40} and min(dropping.rows) < 10
    assert sum(dropping.rows) < 0.85 * sum(whole.rows)


class Labelled(nn.Module):
    """A network whose stiffness is its label, so that samples finish in the order of their labels."""

    def forward(self, x: Tensor, c_noise: Tensor, label: Tensor | None = None, shift: Tensor | float = 0.0) -> Tensor:
        if label is None:
            return 0.1 * x
        assert label.shape == x.shape[:1]
        return torch.tanh(label.to(x)[:, None] * x + shift)


LABELS = torch.tensor([0, 9, 1, 20, 2, 0, 5, 1])


def labelled(index: slice) -> list[Denoiser]:
    model = NetworkDenoiser(Labelled(), VPSDE(), Epsilon())
    shift = torch.linspace(-1, 1, 8, dtype=torch.float64)[:, None][index]
    given = model.given(label=LABELS[index])
    other = model.given(label=LABELS.flip(0)[index])
    return [
        given,
        model.given(label=LABELS[index], shift=shift),
        model.given(shift=0.3).given(label=LABELS[index]),
        Guided(given, model.given(label=None), 1.5),
        Composed(model, [given, other], [0.5, 0.3]),
    ]


@pytest.mark.parametrize("kind", range(5))
def test_conditions_per_sample_stay_with_their_samples(kind: int) -> None:
    x = torch.randn(8, 2, dtype=torch.float64)
    solver = ProbabilityFlowODE(rtol=1e-5, atol=1e-5)
    together = solver.solution(labelled(slice(None))[kind], x)
    assert len(set(together.nfe.tolist())) > 2
    for k in range(8):
        alone = solver.solution(labelled(slice(k, k + 1))[kind], x[k : k + 1])
        torch.testing.assert_close(together.x[k : k + 1], alone.x, rtol=1e-12, atol=1e-12)
        assert together.nfe[k] == alone.nfe[0]


def test_denoisers_that_may_hold_something_per_sample_are_not_split() -> None:
    model, index = NetworkDenoiser(Labelled(), VPSDE(), Epsilon()), torch.tensor([1, 4])
    unknown = mixture_that_holds_rows()
    assert model.select(index, 8) is model
    assert unknown.select(index, 8) is None
    assert unknown.given(label=LABELS).select(index, 8) is None
    assert model.given(prompts=["a"] * 8).select(index, 8) is None
    assert Guided(model, unknown, 2.0).select(index, 8) is None
    assert Composed(model, [unknown], [1.0]).select(index, 8) is None
    part = model.given(label=LABELS, scale=2.0, table=torch.zeros(3)).select(index, 8)
    assert part is not None
    assert part.cond["label"].tolist() == [9, 2] and part.cond["scale"] == 2.0 and len(part.cond["table"]) == 3  # type: ignore[union-attr,operator,index,arg-type]


def mixture_that_holds_rows() -> Denoiser:
    class Holds(Denoiser):
        sde = VPSDE()

        def forward(self, x: Tensor, t: Tensor, **cond: Any) -> Tensor:
            return x

    return Holds()
