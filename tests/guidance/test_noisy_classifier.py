"""The classifier of noisy data, against a Bayes classifier that is known in closed form."""

import pytest
import torch
from torch import Tensor, nn

from scoresde import (
    EDM,
    VPSDE,
    ClassifierGuided,
    ClassifierLoss,
    DenoisingLoss,
    GaussianMixtureDenoiser,
    NoisyClassifier,
    Parameterization,
    StraightSDE,
    Velocity,
    lognormal_times,
)

SDE = VPSDE()
MEANS = torch.tensor([[1.0, 0.0], [-1.0, 0.5]])
MIXTURE = GaussianMixtureDenoiser(SDE, torch.tensor([0.5, 0.5]), MEANS, torch.full((2, 2), 0.09))


class Features(nn.Module):
    """Logits linear in (x, c_noise) products: enough for two Gaussians of equal covariance."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(3, 64), nn.SiLU(), nn.Linear(64, 64), nn.SiLU(), nn.Linear(64, 2))

    def forward(self, x: Tensor, c_noise: Tensor) -> Tensor:
        return self.layers(torch.cat([x, c_noise[:, None]], 1))


def test_log_prob_is_the_normalised_logit_of_the_label() -> None:
    classifier, x, t = NoisyClassifier(Features(), SDE, EDM()), torch.randn(5, 2), torch.rand(5)
    log_p = torch.stack([classifier.log_prob(torch.full((5,), k))(x, t) for k in (0, 1)], 1)
    torch.testing.assert_close(log_p.exp().sum(1), torch.ones(5))
    torch.testing.assert_close(log_p.diff(dim=1), classifier(x, t).diff(dim=1))


def test_loss_is_the_cross_entropy_at_the_drawn_noise() -> None:
    classifier, loss = (
        NoisyClassifier(Features(), SDE, EDM()),
        ClassifierLoss(noise=DenoisingLoss(time=lognormal_times)),
    )
    x0, label = torch.randn(6, 2), torch.tensor([0, 1, 1, 0, 1, 0])

    ours = loss(classifier, x0, label=label, generator=torch.Generator().manual_seed(3))

    t, noise = loss.draw(SDE, x0, torch.Generator().manual_seed(3))
    x = SDE.alpha(t)[:, None] * x0 + SDE.sigma(t)[:, None] * noise
    torch.testing.assert_close(ours, -classifier.log_prob(label)(x, t))


def test_training_approaches_bayes_and_its_guidance_the_component() -> None:
    classifier = NoisyClassifier(Features(), SDE, EDM(sigma_data=1.0))
    loss = ClassifierLoss(noise=DenoisingLoss(time=lognormal_times))
    optimizer = torch.optim.Adam(classifier.parameters(), 5e-3)
    for _ in range(400):
        label = torch.randint(0, 2, (256,))
        x0 = MEANS[label] + 0.3 * torch.randn(256, 2)
        optimizer.zero_grad()
        loss(classifier, x0, label=label).mean().backward()
        optimizer.step()

    component = GaussianMixtureDenoiser(SDE, torch.tensor([1.0]), MEANS[:1], torch.full((1, 2), 0.09))
    t = torch.tensor(0.3)
    x = SDE.perturb(MEANS[torch.randint(0, 2, (500,))] + 0.3 * torch.randn(500, 2), t, torch.randn(500, 2))
    exact = (component.log_prob(x, t) - MIXTURE.log_prob(x, t)).exp() / 2
    ours = classifier.log_prob(torch.zeros(500, dtype=torch.long))(x, t).exp()
    assert (ours - exact).abs().mean().item() < 0.04

    guided = ClassifierGuided(MIXTURE, classifier.log_prob(torch.zeros(500, dtype=torch.long)))
    before = (MIXTURE(x, t) - component(x, t)).square().mean().item()
    after = (guided(x, t) - component(x, t)).square().mean().item()
    assert after < 0.15 * before


def test_classifier_keeps_the_dtype_of_the_data() -> None:
    classifier = NoisyClassifier(Features(), SDE, EDM())
    assert classifier(torch.randn(3, 2, dtype=torch.float64), torch.tensor(0.5)).dtype == torch.float64
    with pytest.raises(ValueError, match=r"expected shape \(\) or \(3,\)"):
        classifier(torch.randn(3, 2), torch.rand(2))


@pytest.mark.parametrize("rule", [EDM(), Velocity(), Velocity(label="data_time", label_scale=1000.0)], ids=str)
def test_where_there_is_no_signal_labels_and_gradients_are_finite(rule: Parameterization) -> None:
    """The loss at t = 1 is that of a classifier of pure noise, and guidance from there on has a limit."""
    sde = StraightSDE()
    classifier, x0, label = NoisyClassifier(Features(), sde, rule), torch.randn(8, 2), torch.arange(8) % 2
    pinned = DenoisingLoss(time=pure_noise)
    value = ClassifierLoss(noise=pinned)(classifier, x0, label=label, generator=torch.Generator().manual_seed(0))
    _, noise = pinned.draw(sde, x0, torch.Generator().manual_seed(0))
    expected = nn.functional.cross_entropy(classifier(noise, torch.ones(8)), label, reduction="none")
    torch.testing.assert_close(value, expected, rtol=1e-4, atol=1e-4)
    guided = ClassifierGuided(MIXTURE.on(sde), classifier.log_prob(label))
    assert guided(x0, torch.ones(())).isfinite().all() and guided.v(x0, torch.rand(8)).isfinite().all()


def pure_noise(sde: StraightSDE, u: Tensor) -> Tensor:
    return torch.ones_like(u)
