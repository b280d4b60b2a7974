"""Guidance by embeddings against gradients in closed form, and the contrastive loss against CLIP's."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from scoresde import DDPM, EDM, EDMSDE, VPSDE, DenoisingLoss, GaussianDenoiser, StraightSDE, lognormal_times
from scoresde.guidance import EmbeddingGuided, EmbeddingPair, EmbeddingPotential
from scoresde.guidance.embedding import similarity
from scoresde.losses import ContrastiveLoss
from scoresde.losses.contrastive_loss import contrast
from scoresde.models import ImageEncoder, TextEncoder
from scoresde.solvers import MeanShift

SDE = VPSDE()
PRIOR = GaussianDenoiser(SDE, 0.3, 0.8)
T = torch.tensor(0.4, dtype=torch.float64)
MATRIX = torch.tensor([[1.0, 0.5], [-0.3, 2.0], [0.4, 0.1]], dtype=torch.float64)
TARGET = torch.tensor([3.0, -1.0, 0.5], dtype=torch.float64)


class Flat(nn.Module):
    """Features linear in x: enough for a closed form."""

    def __init__(self) -> None:
        super().__init__()
        self.matrix = nn.Parameter(MATRIX.clone())

    def forward(self, x: Tensor, c_noise: Tensor) -> Tensor:
        return x @ self.matrix.T


def pair(captions: Any = ("zero", "one")) -> EmbeddingPair:
    torch.manual_seed(0)
    return EmbeddingPair(Flat(), TextEncoder(features=3, width=8), SDE, EDM(sigma_data=0.8), captions).double()


def gradient_of_cosine(x: Tensor, target: Tensor) -> Tensor:
    """∇ₓ ⟨g/‖g‖, h/‖h‖⟩ = Mᵀ (h − g⟨g, h⟩)/‖Mx‖ with g, h of length 1."""
    length = (x @ MATRIX.T).norm(dim=1, keepdim=True)
    g, h = x @ MATRIX.T / length, target / target.norm(dim=-1, keepdim=True)
    return ((h - g * (g * h).sum(1, keepdim=True)) / length) @ MATRIX


@pytest.mark.parametrize("target", [TARGET, torch.stack([TARGET, -TARGET, TARGET.flip(0)])], ids=["one", "each"])
def test_the_score_moves_by_the_gradient_of_the_cosine(target: Tensor) -> None:
    x = torch.randn(3, 2, dtype=torch.float64)
    alpha, sigma = SDE.alpha(T), SDE.sigma(T)

    seen = EmbeddingGuided(PRIOR, lambda x, t: x @ MATRIX.T, target, 7.0)
    torch.testing.assert_close(seen.score(x, T), PRIOR.score(x, T) + 7.0 * gradient_of_cosine(x, target))

    through = EmbeddingGuided(PRIOR, lambda x0: x0 @ MATRIX.T, target, 7.0, clean=True)
    slope = alpha * 0.8**2 / (alpha**2 * 0.8**2 + sigma**2)  # ∂x̂0/∂x
    expected = PRIOR.score(x, T) + 7.0 * slope * gradient_of_cosine(PRIOR(x, T), target)
    torch.testing.assert_close(through.score(x, T), expected)


def test_a_pair_knows_its_process_and_gives_unit_features() -> None:
    both, x = pair(), torch.randn(3, 2, dtype=torch.float64)
    torch.testing.assert_close(both(x, T).norm(dim=1), torch.ones(3, dtype=torch.float64))
    torch.testing.assert_close(both.of_texts([" One "]), both.of_classes()[1:])
    target = both.of_classes()[1]
    guided = EmbeddingGuided(PRIOR, both, target, 7.0)
    torch.testing.assert_close(guided(x, T), EmbeddingGuided(PRIOR, lambda x, t: both(x, t), target, 7.0)(x, T))
    torch.testing.assert_close(similarity(both(x, T), target), both(x, T) @ target)
    other = EDMSDE()
    elsewhere = EmbeddingGuided(PRIOR.on(other), both, target, 7.0)  # at equal σ/α
    t = other.time(SDE.logsnr(T))
    torch.testing.assert_close(elsewhere(x / SDE.alpha(T), t), guided(x, T), rtol=1e-6, atol=1e-6)
    with torch.inference_mode():
        assert EmbeddingGuided(PRIOR, both, target)(x, T).isfinite().all()


def test_it_goes_into_every_kind_of_solver_from_no_signal_too() -> None:
    both, x = pair(), torch.randn(3, 2, dtype=torch.float64)
    target = both.of_classes()[[0, 1, 1]]
    assert MeanShift(solver=DDPM(steps=4), log_prob=EmbeddingPotential(both, target))(PRIOR, x).isfinite().all()
    for sde in (SDE, StraightSDE()):
        assert DDPM(steps=4)(EmbeddingGuided(PRIOR.on(sde), both, target), x).isfinite().all()


def test_contrastive_loss_is_clips_where_no_label_repeats() -> None:
    logits = torch.randn(5, 5, dtype=torch.float64)
    rows, columns = logits.log_softmax(1).diag(), logits.log_softmax(0).diag()  # Radford et al. 2021, Fig. 3
    torch.testing.assert_close(contrast(logits, torch.arange(5)), -0.5 * (rows + columns))

    label = torch.tensor([0, 1, 0])
    log_p, log_q = torch.randn(3, 3).double().log_softmax(1), None
    for each, log_q in ((log_p, log_p.log_softmax(0)),):
        expected = -0.5 * (0.5 * (each[0, 0] + each[0, 2]) + 0.5 * (log_q[0, 0] + log_q[2, 0]))
        torch.testing.assert_close(contrast(each, label)[0], expected)


def test_training_tells_captions_of_classes_apart() -> None:
    """Two Gaussians; the text encoder has two names for each."""
    torch.manual_seed(0)
    means = torch.tensor([[1.0, 0.0], [-1.0, 0.5]])
    net = nn.Sequential(nn.Linear(3, 32), nn.SiLU(), nn.Linear(32, 4))

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = net

        def forward(self, x: Tensor, c_noise: Tensor) -> Tensor:
            return net(torch.cat([x, c_noise[:, None]], 1))  # type: ignore[no-any-return]

    both = EmbeddingPair(Net(), TextEncoder(features=4, width=16), SDE, EDM(sigma_data=1.0), [["left", "0"], ["right"]])
    loss = ContrastiveLoss(noise=DenoisingLoss(time=lognormal_times))
    optimizer = torch.optim.Adam(both.parameters(), 1e-2)
    for step in range(60):
        label = torch.randint(0, 2, (64,))
        x0 = means[label] + 0.3 * torch.randn(64, 2)
        optimizer.zero_grad()
        values = loss(both, x0, label=label, generator=torch.Generator().manual_seed(step))
        assert values.shape == (64,)
        values.mean().backward()
        optimizer.step()

    label = torch.arange(200) % 2
    x = SDE.perturb(means[label] + 0.3 * torch.randn(200, 2), torch.tensor(0.1), torch.randn(200, 2))
    taken = both(x, torch.tensor(0.1)) @ both.of_texts(["LEFT", "right", "0"]).T
    assert (taken[:, :2].argmax(1) == label).float().mean() > 0.9
    assert (taken[:, 1:].argmax(1) == 1 - label).float().mean() > 0.9


def test_texts_are_told_apart_by_the_order_of_their_bytes() -> None:
    encoder = TextEncoder(features=3, width=8, length=8)
    rows = encoder.tokens(["ab", "BA", "ab "])
    features = encoder(rows)
    assert not torch.allclose(features[0], features[1]) and torch.equal(features[0], features[2])
    assert ImageEncoder(features=3, channels=1, image_size=8, width=8, channel_mults=(1,))(
        torch.randn(2, 1, 8, 8), 0.1
    ).shape == (2, 3)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: EmbeddingGuided(PRIOR, pair(), torch.zeros(3)), "finite and not 0, which has no direction"),
        (
            lambda: EmbeddingGuided(PRIOR, pair(), torch.arange(3)),
            r"target of features, \(D,\) or \(B, D\), got torch.i",
        ),
        (
            lambda: EmbeddingGuided(PRIOR, pair(), torch.ones(4))(torch.ones(2, 2), T),
            r"\(2, 3\) and a target of \(4,\)",
        ),
        (lambda: EmbeddingGuided(PRIOR, pair(), torch.ones(5, 3))(torch.ones(2, 2), T), r"and a target of \(5, 3\)"),
        (lambda: EmbeddingGuided(PRIOR, pair(), torch.ones(3), float("nan")), "scale"),
        (lambda: pair().of_texts([""]), "texts of 1 to 32 bytes, got ''"),
        (lambda: pair().of_texts(["x" * 33]), "texts of 1 to 32 bytes"),
        (lambda: pair([]), "one text per class"),
        (lambda: pair(["one", ["two", 2]]), "one text per class"),
        (lambda: pair(["one", ["two", "One"]]), "tell classes apart, and 'One' stands for two"),
        (lambda: ImageEncoder(features=0), "features"),
        (lambda: TextEncoder(length=0), "length"),
    ],
)
def test_bad_input_is_named(call: Any, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        call()


def test_normalised_features_of_the_helper() -> None:
    g, h = torch.randn(4, 3), torch.randn(3)
    torch.testing.assert_close(similarity(g, h), F.cosine_similarity(g, h[None], dim=1))
