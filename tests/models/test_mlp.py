"""The MLP for vectors and toys."""

from __future__ import annotations

import pytest
import torch

from scoresde.models import MLP


def test_starts_at_zero_and_keeps_any_event_shape() -> None:
    for shape in ((2,), (3, 5), (1, 4, 4), (7,)):
        net = MLP(shape=shape, width=16, depth=2)
        x = torch.randn(6, *shape)
        assert torch.equal(net(x, 0.3), torch.zeros_like(x))


def test_out_channels_replace_the_first_axis_and_leave_the_rest() -> None:
    torch.manual_seed(0)
    for shape, out_shape in (((2,), (4,)), ((3, 5), (6, 5)), ((1, 4, 4), (2, 4, 4))):
        net = MLP(shape=shape, out_channels=out_shape[0], width=16, depth=2)
        torch.nn.init.normal_(net.output.weight)
        assert net(torch.randn(6, *shape), 0.3).shape == (6, *out_shape)
        names = {key: value.shape for key, value in MLP(shape=shape, width=16, depth=2).state_dict().items()}
        changed = {key for key, value in net.state_dict().items() if names[key] != value.shape}
        assert changed == {"output.weight", "output.bias"} and len(names) == len(net.state_dict())
    with pytest.raises(ValueError, match="MLP needs out_channels >= 1"):
        MLP(out_channels=0)


def test_learns_a_function_of_state_time_and_label() -> None:
    torch.manual_seed(0)
    net = MLP(shape=(2,), width=64, depth=3, num_classes=2)
    optimizer = torch.optim.Adam(net.parameters(), lr=3e-3)

    def target(x: torch.Tensor, c: torch.Tensor, label: torch.Tensor) -> torch.Tensor:
        return torch.sin(2 * x + c[:, None]) * (1 - 2 * label[:, None])

    for _ in range(400):
        x, c, label = torch.randn(256, 2), 4 * torch.rand(256) - 2, torch.randint(2, (256,))
        loss = (net(x, c, label=label) - target(x, c, label)).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss < 0.03  # the target has variance 0.5


def test_conditions_change_the_output_and_none_is_null() -> None:
    torch.manual_seed(0)
    net = MLP(width=16, depth=2, num_classes=3, condition_dim=4, condition_width=8, condition_optional=True)
    for parameter in net.parameters():  # away from the silent start
        torch.nn.init.normal_(parameter, std=0.3)
    x = torch.randn(5, 2)
    plain = net(x, 0.1)
    torch.testing.assert_close(net(x, 0.1, label=torch.tensor(-1), condition=torch.full((4,), torch.nan)), plain)
    assert (net(x, 0.1, label=torch.tensor(1)) - plain).abs().max() > 1e-3
    assert (net(x, 0.1, condition=torch.ones(5, 4)) - plain).abs().max() > 1e-3


# PyTorch itself scripts the decompositions of forward-mode derivatives
@pytest.mark.filterwarnings("ignore:.*torch.jit.script.*:DeprecationWarning")
def test_function_transforms_work() -> None:
    net = MLP(width=16, depth=2, num_classes=3).double()
    for parameter in net.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    x = torch.randn(5, 2, dtype=torch.float64)
    batched = torch.func.vmap(lambda x: net(x[None], 0.1)[0])(x)
    torch.testing.assert_close(batched, net(x, 0.1))
    jacobian = torch.func.vmap(torch.func.jacrev(lambda x: net(x[None], 0.1)[0]))(x)
    forward = torch.func.vmap(torch.func.jacfwd(lambda x: net(x[None], 0.1)[0]))(x)
    torch.testing.assert_close(jacobian, forward)


def test_errors_name_what_is_wrong() -> None:
    with pytest.raises(ValueError, match="MLP needs depth >= 1, a whole number, got depth=0"):
        MLP(depth=0)
    with pytest.raises(ValueError, match=r"shape=\(2,\) needs x of shape"):
        MLP()(torch.zeros(4, 3), 0.0)
