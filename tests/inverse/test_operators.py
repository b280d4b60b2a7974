"""Every operator against its dense matrix, and what a wrong one is told."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from scoresde.inverse import (
    Blur,
    CompressedSensing,
    Crop,
    DownSample,
    FourierMask,
    Function,
    Grayscale,
    KnowsSingularValues,
    LinearFunction,
    LinearOperator,
    Mask,
    Matrix,
    Operator,
    check_operator,
    decomposed,
)

DRAW = torch.Generator().manual_seed(3)
LOW_RANK = torch.randn(5, 2, generator=DRAW).double() @ torch.randn(2, 6, generator=DRAW).double()
SKEW = torch.randn(3, 5, generator=DRAW)
OPERATORS: list[LinearOperator] = [
    Mask(torch.tensor([[[1, 0, 1], [0, 0, 1]]])),
    Mask(torch.tensor([1, 0, 1]), (2, 2, 3)),
    Crop((2, 4, 5), (1, 2), (3, 2)),
    Crop((7,), (4,), (3,)),
    Blur((2, 4, 6), std=0.8),
    Blur((1, 5), std=2.0, boundary="periodic"),
    Blur((1, 4, 6), kernel=SKEW, boundary="periodic"),
    Blur((1, 3, 3, 4), std=0.5),
    Blur((6,), kernel=[0.25, 0.5, 0.25]),
    DownSample((2, 4, 6), 2),
    DownSample((1, 8, 8), 2, "bicubic"),
    DownSample((9,), 3),
    DownSample((1, 2, 4, 4), 2),
    Grayscale((3, 2, 2)),
    Grayscale((4, 3), [1.0, -2.0, 0.0, 0.5]),
    CompressedSensing((1, 3, 4), 5, seed=1),
    CompressedSensing((4,), 4),
    FourierMask((2, 4, 5), torch.rand(4, 5, generator=DRAW) < 0.4),
    FourierMask((6,), torch.tensor([1, 1, 0, 0, 1, 1])),
    Matrix(LOW_RANK, (2, 3)),
    LinearFunction(lambda x: x[..., 1:] - x[..., :-1], (1, 6)),
]


def name(operator: Operator) -> str:
    return f"{type(operator).__name__}{operator.shape}"


@pytest.mark.parametrize("operator", OPERATORS, ids=name)
def test_operator_is_its_dense_matrix(operator: LinearOperator) -> None:
    check_operator(operator)
    x = torch.randn(3, *operator.shape, dtype=torch.float64)
    columns = [operator(row[None])[0].flatten() for row in torch.eye(x[0].numel()).double().reshape(-1, *x.shape[1:])]
    dense = torch.stack(columns, 1)
    assert torch.allclose(operator.matrix(x), dense, atol=1e-14)
    seen = operator(x)
    y = torch.randn(seen.shape, dtype=torch.float64)
    assert torch.allclose(seen.flatten(1), x.flatten(1) @ dense.T, rtol=1e-11, atol=1e-13)
    assert torch.allclose(operator.adjoint(y).flatten(1), y.flatten(1) @ dense, rtol=1e-11, atol=1e-13)
    inverse = torch.linalg.pinv(dense, rtol=1e-10)
    assert torch.allclose(operator.pseudo_inverse(y).flatten(1), y.flatten(1) @ inverse.T, rtol=1e-8, atol=1e-10)
    assert operator(x.float()).dtype == torch.float32
    with torch.inference_mode():
        assert torch.equal(operator.adjoint(y.clone()), operator.adjoint(y))


@pytest.mark.parametrize("operator", OPERATORS, ids=name)
def test_singular_values_are_those_of_the_dense_matrix(operator: LinearOperator) -> None:
    known = decomposed(operator)
    assert isinstance(known, KnowsSingularValues)
    check_operator(known)
    x = torch.randn(2, *operator.shape, dtype=torch.float64)
    dense = operator.matrix(x)
    true = torch.zeros(x[0].numel(), dtype=torch.float64)
    true[: min(dense.shape)] = torch.linalg.svdvals(dense)
    assert torch.allclose(known.singular_values(x)[0].sort(descending=True).values, true, atol=1e-9)
    y = torch.randn(operator(x).shape, dtype=torch.float64)  # with a part that no event gives
    s = known.singular_values(x)
    assert torch.allclose(known.event(s * known.measurement_coordinates(y)), operator.adjoint(y), atol=1e-10)
    assert torch.equal(known.measurement_coordinates(y)[s.expand(2, -1) == 0], torch.zeros(int((s == 0).sum()) * 2))


def test_blur_is_a_convolution_with_the_stated_edge() -> None:
    x, kernel = torch.randn(2, 1, 5, 6).double(), torch.rand(3, 3).double()
    even = kernel + kernel.flip(0)
    even = even + even.flip(1)
    for boundary, k, pad in (("periodic", kernel, "circular"), ("reflect", even, None)):
        if pad is None:  # mirrored at the edge itself: d c b a | a b c d
            wide = torch.cat([x[..., :1, :], x, x[..., -1:, :]], -2)
            wide = torch.cat([wide[..., :1], wide, wide[..., -1:]], -1)
        else:
            wide = torch.nn.functional.pad(x, (1, 1, 1, 1), mode=pad)
        truth = torch.nn.functional.conv2d(wide, k.flip(0, 1)[None, None])
        assert torch.allclose(Blur((1, 5, 6), kernel=k, boundary=boundary)(x), truth, rtol=1e-12)


def test_formulas_that_people_know() -> None:
    x = torch.randn(2, 3, 4, 4).double()
    down, grey = DownSample((3, 4, 4), 2), Grayscale((3, 4, 4))
    assert torch.allclose(down(x), torch.nn.functional.avg_pool2d(x, 2), rtol=1e-12)
    repeated = down(x).repeat_interleave(2, -1).repeat_interleave(2, -2)
    assert torch.allclose(down.pseudo_inverse(down(x)), repeated, rtol=1e-12)
    bicubic = torch.nn.functional.interpolate(x, scale_factor=0.5, mode="bicubic", antialias=True)
    assert torch.allclose(DownSample((3, 4, 4), 2, "bicubic")(x), bicubic, rtol=1e-10)
    assert torch.allclose(grey(x), x.sum(1, keepdim=True) / math.sqrt(3), rtol=1e-12)
    waves = torch.fft.fftn(x, dim=(-2, -1), norm="ortho")
    everything = FourierMask((3, 4, 4), torch.ones(4, 4))(x)
    assert torch.allclose(torch.complex(everything[:, 0], everything[:, 1]), waves, rtol=1e-12)
    assert torch.equal(CompressedSensing((6,), 2, seed=4).rows, CompressedSensing((6,), 2, seed=4).rows)


def test_a_mask_per_sample_has_its_own_singular_values() -> None:
    masks = torch.tensor([[1, 0, 1], [0, 1, 1]])
    operator = Mask(masks, (3,))
    check_operator(operator, batch=2)
    assert torch.equal(operator.singular_values(torch.zeros(())), masks.float())
    assert torch.equal(operator.select(torch.tensor([1]), 2).observed, masks[1:].bool())


def test_a_function_need_not_be_linear() -> None:
    operator = Function(torch.tanh, (3,))
    check_operator(operator)
    with pytest.raises(AssertionError, match=r"LinearFunction: A is not linear: A\(a x \+ b x'\) is off by"):
        check_operator(LinearFunction(torch.tanh, (3,)))
    with pytest.raises(TypeError, match="decomposed needs a linear operator, got a Function"):
        decomposed(operator)  # type: ignore[arg-type]


class Wrong(Matrix):
    """A matrix with one method replaced."""

    def __init__(self, **methods: Callable[[Tensor], Tensor]) -> None:
        super().__init__(LOW_RANK)
        for method, function in methods.items():
            object.__setattr__(self, method, function)


@pytest.mark.parametrize(
    ("operator", "sentence"),
    [
        (Wrong(adjoint=lambda y: 1.01 * y @ LOW_RANK), "the adjoint fails the dot-product test: ⟨A x, y⟩ ="),
        (Wrong(adjoint=lambda y: y), r"Aᵀ y must have the shape of events \(2, 6\), got \(2, 5\)"),
        (Wrong(pseudo_inverse=lambda y: y @ LOW_RANK), "the pseudo-inverse is wrong: A A⁺ A x is off by"),
        (Function(lambda x: x - x.mean(0), (3,)), r"the first row of A\(x\) depends on the other rows"),
        (Function(lambda x: x.sum(), (3,)), r"A\(x\) must be finite and of shape \(B, \*measured\).*got shape \(\)"),
    ],
)
def test_a_wrong_operator_is_told_in_one_sentence(operator: Operator, sentence: str) -> None:
    with pytest.raises(AssertionError, match=sentence):
        check_operator(operator)


def test_a_pseudo_inverse_that_is_only_a_generalised_one_is_seen() -> None:
    true = torch.linalg.pinv(LOW_RANK, rtol=1e-6)
    null = torch.eye(6).double() - true @ LOW_RANK
    reflexive = true + null @ torch.ones(6, 5).double() @ LOW_RANK @ true  # A G A = A and G A G = G
    with pytest.raises(AssertionError, match="A⁺ A x⟩"):
        check_operator(Wrong(pseudo_inverse=lambda y: y @ reflexive.T))


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda: Mask(torch.tensor([0.5, 1])), "Mask needs 1 where an entry is observed"),
        (lambda: Mask(torch.ones(4), (3,)), r"broadcasts to events of shape \(3,\), got \(4,\)"),
        (lambda: Crop((1, 4, 4), (2, 2), (3, 1)), r"Crop needs a box inside events of 4 × 4, got start=\[2, 2\]"),
        (lambda: Blur((1, 4), std=-1), "Blur needs 0 <= std < inf, got std=-1"),
        (lambda: Blur((1, 4)), "Blur needs either std or kernel"),
        (lambda: Blur((1, 4), kernel=[1, 2]), "kernel of 1 or 1 axes of odd sizes"),
        (lambda: Blur((1, 4), kernel=[1, 2, 3]), "boundary=reflect needs a kernel that is even along every axis"),
        (lambda: Blur((1, 4), std=1, boundary="zero"), "Blur needs boundary periodic or reflect, got 'zero'"),
        (lambda: DownSample((1, 6, 8), 4), r"multiples of factor=4, got shape \(1, 6, 8\)"),
        (lambda: DownSample((8,), 0), "DownSample needs 1 <= factor, a whole number, got factor=0"),
        (lambda: Grayscale((5,)), r"Grayscale needs events \(C, \*\)"),
        (lambda: CompressedSensing((4,), 5), "CompressedSensing needs 1 <= measurements <= 4"),
        (lambda: FourierMask((1, 4, 4), torch.ones(4, 3)), r"0 and 1 of shape \(4, 4\).*of shape \(4, 3\)"),
        (lambda: decomposed(LinearFunction(lambda x: x, (5000,))), "decomposed needs events of at most 4096 entries"),
    ],
)  # fmt: skip
def test_bad_arguments_are_named(make: Callable[[], object], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        make()
    with pytest.raises(TypeError, match="Function needs a function of events, got 3"):
        Function(3, (2,))  # type: ignore[arg-type]
