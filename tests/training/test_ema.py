from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from scoresde.training import EMA

REFERENCE = np.load(Path(__file__).parents[1] / "data" / "ema_optim.npz")


class Point(nn.Module):
    count: torch.Tensor

    def __init__(self, value: torch.Tensor) -> None:
        super().__init__()
        self.frozen = nn.Parameter(torch.ones(2), requires_grad=False)
        self.value = nn.Parameter(value.clone())
        self.register_buffer("count", torch.zeros((), dtype=torch.int64))


@pytest.mark.parametrize("decay", ["0.999", "0.9999", "0.5"])
def test_average_is_that_of_the_reference(decay: str) -> None:
    params, shadows = (torch.from_numpy(REFERENCE[f"{name}_{decay}"]) for name in ("params", "shadow"))
    module = Point(params[0])
    ema = EMA(module, float(decay))
    for value, shadow in zip(params[1:], shadows[1:], strict=True):
        module.value.data.copy_(value)
        ema.update(module)
        torch.testing.assert_close(ema.shadow_params[0], shadow, rtol=1e-14, atol=1e-14)


def test_without_ramp_it_is_a_geometric_mean() -> None:
    module = Point(torch.zeros(3))
    ema = EMA(module, 0.9, ramp=False)
    module.value.data.fill_(1.0)
    for _ in range(5):
        ema.update(module)
    torch.testing.assert_close(ema.shadow_params[0], torch.full((3,), 1 - 0.9**5))


def test_buffers_are_copied_and_frozen_parameters_left_out() -> None:
    module = Point(torch.zeros(3))
    ema = EMA(module, 0.9)
    module.count += 7
    ema.update(module)
    assert len(ema.shadow_params) == 1
    assert list(ema.state_dict()["params"]) == ["value"]
    assert int(ema.state_dict()["buffers"]["count"]) == 7


def test_applied_swaps_weights_and_restores_them_even_after_an_error() -> None:
    module = Point(torch.zeros(3))
    ema = EMA(module, 0.5, ramp=False)
    module.value.data.fill_(1.0)
    ema.update(module)
    module.count += 1
    with pytest.raises(RuntimeError, match="inside"), ema.applied(module):
        assert module.value.tolist() == [0.5] * 3
        assert int(module.count) == 0
        raise RuntimeError("inside")
    assert module.value.tolist() == [1.0] * 3
    assert int(module.count) == 1


@pytest.mark.parametrize("as_list", [False, True])
def test_state_goes_round_and_also_comes_from_the_references_list(as_list: bool) -> None:
    module = Point(torch.zeros(3))
    ema, other = EMA(module, 0.9), EMA(Point(torch.ones(3)), 0.9)
    module.value.data.fill_(2.0)
    ema.update(module)
    state = ema.state_dict()
    if as_list:
        state = {"decay": 0.9, "num_updates": 1, "shadow_params": ema.shadow_params}
    other.load_state_dict(state)
    module.value.data.fill_(5.0)
    for average in (ema, other):
        average.update(module)
    assert torch.equal(ema.shadow_params[0], other.shadow_params[0])


def test_another_module_and_a_wrong_decay_are_refused() -> None:
    state = EMA(Point(torch.zeros(4))).state_dict()
    with pytest.raises(ValueError, match="names or shapes of parameters differ"):
        EMA(Point(torch.zeros(3))).load_state_dict(state)
    with pytest.raises(ValueError, match="0 <= decay < 1, got 1"):
        EMA(Point(torch.zeros(3)), decay=1.0)
