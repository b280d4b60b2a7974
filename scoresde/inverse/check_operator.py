"""Whether an operator keeps its promises."""

from __future__ import annotations

import torch
from torch import Tensor

from scoresde.inverse.operators import KnowsSingularValues, LinearOperator, Operator


def check_operator(operator: Operator, *, batch: int = 2, rtol: float = 1e-8, seed: int = 0) -> None:
    """Raise one sentence that says what is wrong with an operator, or return in silence.

    Checked with random x, y in float64, in this order:

        forward          (B, *shape) -> (B, *measured), finite, row by row
        linear           A(a x + b x') = a A x + b A x'
        adjoint          ⟨A x, y⟩ = ⟨x, Aᵀ y⟩, the dot-product test
        pseudo-inverse   A A⁺ A x = A x,   A⁺ A A⁺ y = A⁺ y,   A⁺ A and A A⁺ symmetric
        singular values  V Vᵀ x = x,  ‖Vᵀ x‖ = ‖x‖,  A x = U (s ∘ Vᵀ x),  Uᵀ A x = s ∘ Vᵀ x

    Of an operator that is not linear the first alone.

    Args:
        operator: What is checked.
        batch: Rows of x: as many as an operator has that holds something per sample.
        rtol: Largest relative error of each identity.
        seed: Of x and y.
    Raises:
        AssertionError: If something fails; the message names the identity and both values.
        TypeError: If it is no operator.
    """
    if not isinstance(operator, Operator):
        raise TypeError(f"check_operator needs an instance of a subclass of Operator, got {operator!r}.")
    device = next((buffer.device for buffer in operator.buffers()), torch.device("cpu"))
    draw = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=draw, dtype=torch.float64).to(device)

    with torch.no_grad():
        x, other = normal(batch, *operator.shape), normal(batch, *operator.shape)
        seen = _check_forward(operator, x, other, rtol)
        if isinstance(operator, LinearOperator):
            y, z = normal(*seen.shape), normal(*seen.shape)
            _check_linear(operator, x, other, rtol)
            _check_adjoint(operator, x, y, rtol)
            _check_pseudo_inverse(operator, x, other, y, z, rtol)
        if isinstance(operator, KnowsSingularValues):
            _check_singular_values(operator, x, rtol)


def _check_forward(operator: Operator, x: Tensor, other: Tensor, rtol: float) -> Tensor:
    seen = operator(x)
    if not isinstance(seen, Tensor) or seen.ndim < 2 or len(seen) != len(x) or not bool(seen.isfinite().all()):
        got = f"shape {tuple(seen.shape)}" if isinstance(seen, Tensor) else f"a {type(seen).__name__}"
        raise _failure(operator, f"A(x) must be finite and of shape (B, *measured) for x {tuple(x.shape)}, got {got}")
    mixed = torch.cat([x[:1], other[1:]])
    _compare(operator, "the first row of A(x) depends on the other rows: it", operator(mixed)[:1], seen[:1], rtol)
    return seen


def _check_linear(operator: LinearOperator, x: Tensor, other: Tensor, rtol: float) -> None:
    whole, parts = operator(1.7 * x - 0.6 * other), 1.7 * operator(x) - 0.6 * operator(other)
    _compare(operator, "A is not linear: A(a x + b x')", whole, parts, rtol)


def _check_adjoint(operator: LinearOperator, x: Tensor, y: Tensor, rtol: float) -> None:
    back = operator.adjoint(y)
    if back.shape != x.shape:
        raise _failure(operator, f"Aᵀ y must have the shape of events {tuple(x.shape)}, got {tuple(back.shape)}")
    left, right = (operator(x) * y).flatten(1).sum(1), (x * back).flatten(1).sum(1)
    scale = operator(x).norm() * y.norm() + x.norm() * back.norm()
    if not bool(((left - right).abs() <= rtol * scale).all()):
        raise _failure(
            operator,
            f"the adjoint fails the dot-product test: ⟨A x, y⟩ = {float(left[0]):.6g} but ⟨x, Aᵀ y⟩ = "
            f"{float(right[0]):.6g}; drop adjoint and let it be derived",
        )


def _check_pseudo_inverse(
    operator: LinearOperator, x: Tensor, other: Tensor, y: Tensor, z: Tensor, rtol: float
) -> None:  # fmt: skip
    seen, back = operator(x), operator.pseudo_inverse(y)
    if back.shape != x.shape:
        raise _failure(operator, f"A⁺ y must have the shape of events {tuple(x.shape)}, got {tuple(back.shape)}")
    _compare(operator, "the pseudo-inverse is wrong: A A⁺ A x", operator(operator.pseudo_inverse(seen)), seen, rtol)
    again = operator.pseudo_inverse(operator(back))
    _compare(operator, "the pseudo-inverse is wrong: A⁺ A A⁺ y", again, back, rtol)
    pairs = (
        (
            "⟨x', A⁺ A x⟩ = ⟨A⁺ A x', x⟩",
            other,
            operator.pseudo_inverse(seen),
            operator.pseudo_inverse(operator(other)),
            x,
        ),
        ("⟨z, A A⁺ y⟩ = ⟨A A⁺ z, y⟩", z, operator(back), operator(operator.pseudo_inverse(z)), y),
    )
    for what, a, b, c, d in pairs:
        left, right = (a * b).sum(), (c * d).sum()
        if not bool((left - right).abs() <= rtol * (a.norm() * b.norm() + c.norm() * d.norm())):
            raise _failure(
                operator,
                f"the pseudo-inverse is wrong: {what} fails, {float(left):.6g} and {float(right):.6g}; drop "
                f"pseudo_inverse and let it be derived",
            )


def _check_singular_values(operator: KnowsSingularValues, x: Tensor, rtol: float) -> None:
    s, c = operator.singular_values(x), operator.event_coordinates(x)
    if s.ndim != 2 or c.shape != (len(x), x[0].numel()) or s.shape[1] != c.shape[1] or bool((s < 0).any()):
        raise _failure(
            operator,
            f"singular_values must be (1, d) and not negative and event_coordinates (B, d) with d = {x[0].numel()}, "
            f"got {tuple(s.shape)} and {tuple(c.shape)}",
        )
    _compare(operator, "V is not orthogonal: V Vᵀ x", operator.event(c), x, rtol)
    _compare(operator, "V is not orthogonal: ‖Vᵀ x‖", c.norm(dim=1), x.flatten(1).norm(dim=1), rtol)
    seen = operator(x)
    _compare(operator, "the singular values are wrong: U (s ∘ Vᵀ x)", operator.measurement(s * c), seen, rtol)
    _compare(operator, "the singular values are wrong: Uᵀ A x", operator.measurement_coordinates(seen), s * c, rtol)


def _compare(operator: Operator, what: str, got: Tensor, expected: Tensor, rtol: float) -> None:
    error = (got - expected).norm() if got.shape == expected.shape else torch.tensor(torch.inf)
    if not bool(error <= rtol * expected.norm()):
        relative = float(error / expected.norm())
        raise _failure(operator, f"{what} is off by {relative:.2g} of its size")


def _failure(operator: Operator, message: str) -> AssertionError:
    return AssertionError(f"{type(operator).__name__}: {message}.")
