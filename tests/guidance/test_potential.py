"""A learned log p(y | x_t) on another process than its own, and what labels it takes."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from scoresde import EDM, EDMSDE, SDE, VESDE, VPSDE, ClassifierGuided, GaussianMixtureDenoiser, NoisyClassifier
from scoresde import StraightSDE as Straight
from scoresde.guidance import Potential

WEIGHTS, MEANS = torch.tensor([0.3, 0.7]), torch.tensor([[1.0, 0.0], [-1.0, 0.5]])
COVS = torch.full((2, 2), 0.09)


def mixtures(sde: SDE) -> tuple[GaussianMixtureDenoiser, GaussianMixtureDenoiser]:
    """Two components, and the first alone."""
    whole = GaussianMixtureDenoiser(sde, WEIGHTS, MEANS, COVS)
    return whole, GaussianMixtureDenoiser(sde, WEIGHTS[:1], MEANS[:1], COVS[:1])


class Component(Potential):
    """log p(first component | x_t) + const, exact on its own process."""

    noun = "potential"

    def __init__(self, sde: SDE) -> None:
        self.sde = sde
        self.whole, self.part = mixtures(sde)

    def __call__(self, x: Tensor, t: Tensor) -> Tensor:
        return self.part.log_prob(x, t) - self.whole.log_prob(x, t)


@pytest.mark.parametrize("sde", [VPSDE(), VESDE(sigma_max=20.0), EDMSDE(), Straight()], ids=lambda s: type(s).__name__)
@pytest.mark.parametrize("own", [VPSDE(), EDMSDE()], ids=lambda s: type(s).__name__)
def test_on_another_process_it_is_asked_at_equal_ratios(own: SDE, sde: SDE) -> None:
    whole, part = mixtures(sde)
    x, t = torch.randn(5, 2, dtype=torch.float64), torch.linspace(0.1, 0.9, 5, dtype=torch.float64)
    guided = ClassifierGuided(whole, Component(own))
    torch.testing.assert_close(guided(x, t), part(x, t), atol=1e-7, rtol=1e-7)
    one = torch.tensor(0.3, dtype=torch.float64)
    torch.testing.assert_close(guided(x, one), part(x, one), atol=1e-7, rtol=1e-7)


def test_beyond_its_noise_the_shift_has_a_limit_and_below_it_the_clean_gradient() -> None:
    """A classifier of σ/α up to 20 on a process without signal at its end: off by what is known at 20."""
    own = EDMSDE(sigma_min=0.05, sigma_max=20.0)
    whole, part = mixtures(sde := Straight())
    x = torch.randn(6, 2, dtype=torch.float64)
    guided = ClassifierGuided(whole, Component(own))
    for t in (0.99, 0.999, 1.0):
        t = torch.tensor(t, dtype=torch.float64)
        torch.testing.assert_close(guided(x, t), part(x, t), atol=0.1, rtol=0)
    near = Component(sde)(x, torch.tensor(0.01, dtype=torch.float64))
    asked = Component(own).on(sde)(x, torch.tensor(0.01, dtype=torch.float64))
    assert ((asked - near).abs() < 0.5 + 0.1 * near.abs()).all()


def test_another_noise_range_is_one_sentence() -> None:
    whole, _ = mixtures(VPSDE())
    for own in (EDMSDE(sigma_min=0.5), EDMSDE(sigma_max=5.0)):
        with pytest.raises(ValueError, match=r"The potential has seen noise of σ/α from .* train it on .* VPSDE, or"):
            ClassifierGuided(whole, Component(own))
    assert Component(VPSDE()).on(EDMSDE()).on(VPSDE()).sde == VPSDE()


class Logits(nn.Module):
    """Of three classes."""

    def __init__(self) -> None:
        super().__init__()
        self.output = nn.Linear(2, 3)

    def forward(self, x: Tensor, c_noise: Tensor) -> Tensor:
        return self.output(x)  # type: ignore[no-any-return]


def test_labels_that_no_classifier_takes_are_named() -> None:
    classifier, x, t = NoisyClassifier(Logits(), VPSDE(), EDM()), torch.randn(2, 2), torch.tensor(0.5)
    for label in (torch.tensor([-1, 0]), torch.tensor([[0], [1]]), torch.tensor([0.0, 1.0]), 3):
        with pytest.raises(ValueError, match=r"label must be a tensor \(B,\) of whole numbers from 0, got"):
            classifier.log_prob(label)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"label must be in 0\.\.2, the classes of the classifier: 3"):
        classifier.log_prob(torch.tensor([0, 3]))(x, t)
    with pytest.raises(ValueError, match=r"label must be one per sample, of shape \(2,\), got \(3,\)"):
        classifier.log_prob(torch.tensor([0, 1, 2]))(x, t)
