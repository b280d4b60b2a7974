"""Bayes' rule with densities of denoisers, against posteriors that are known."""

import math

import pytest
import torch
from torch import Tensor

from scoresde import EDM, MLP, VPSDE, Denoiser, GaussianDenoiser, NetworkDenoiser
from scoresde.diagnostics import classification
from scoresde.likelihood import class_posterior

SDE = VPSDE(beta_max=40.0, t_min=1e-4)  # ends with noise alone
MEANS, STDS = torch.tensor([[0.6, 0.0], [-0.5, 0.4], [0.0, -0.3]]).double(), torch.tensor([0.5, 0.8, 0.4]).double()
PARTS: list[Denoiser] = [GaussianDenoiser(SDE, m, s) for m, s in zip(MEANS, STDS, strict=True)]
PRIOR = [1.0, 2.0, 1.0]


def exact(x: Tensor, prior: list[float]) -> Tensor:
    """log p(y | x) from the normal densities themselves."""
    log_joint = torch.distributions.Normal(MEANS, STDS[:, None]).log_prob(x[:, None]).sum(2)
    return (log_joint + torch.tensor(prior).double().log()).log_softmax(1)


def test_by_the_flow_it_is_exact() -> None:
    x = torch.randn(2, 2, dtype=torch.float64)
    found = class_posterior(PARTS, x, prior=PRIOR, divergence="exact", method="rk4", steps=20)
    torch.testing.assert_close(found.log_prob, exact(x, PRIOR), rtol=0, atol=2e-3)
    assert not found.std_error.any() and found.nfe.tolist() == [3 * 4 * 20] * 2


def test_by_the_bound_it_is_within_its_error() -> None:
    """The bound of an exact score is tight, so that only the draws are left."""
    x = torch.randn(40, 2, dtype=torch.float64)
    found = class_posterior(PARTS, x, prior=PRIOR, by="elbo", samples=128)
    difference = found.log_joint - found.log_joint.mean(1, keepdim=True)
    expected = exact(x, PRIOR) - exact(x, PRIOR).mean(1, keepdim=True)
    scores = (difference - expected) / found.std_error
    assert float(found.std_error.mean()) < 0.5
    assert 0.8 < float(scores.square().mean().sqrt()) < 1.25 and float(scores.mean(0).abs().max()) < 0.6
    again = class_posterior(PARTS, x, prior=PRIOR, by="elbo", samples=128)
    other = class_posterior(PARTS, x, prior=PRIOR, by="elbo", samples=128, seed=1)
    assert torch.equal(found.log_prob, again.log_prob) and not torch.equal(found.log_prob, other.log_prob)


def test_classes_of_a_network_share_calls_and_noise() -> None:
    torch.manual_seed(0)
    net = MLP(shape=(2,), num_classes=3, width=8, depth=1)
    for parameter in net.parameters():
        torch.nn.init.normal_(parameter, std=0.4)
    model, calls = NetworkDenoiser(net, VPSDE(), EDM(sigma_data=1.0)), []
    net.register_forward_pre_hook(lambda net, arguments: calls.append(len(arguments[0])))
    classes = [model.given(label=torch.tensor(k)) for k in (0, 2, 2)]
    found = class_posterior(classes, torch.randn(5, 2), by="elbo", samples=4)
    assert calls == [15] * 4 and found.nfe.tolist() == [12] * 5
    torch.testing.assert_close(found.log_joint[:, 1], found.log_joint[:, 2])
    assert (found.log_joint[:, 0] != found.log_joint[:, 1]).all()


def test_confusion_and_calibration() -> None:
    """Labels drawn from the probabilities themselves are calibrated; sharper probabilities are not."""
    generator = torch.Generator().manual_seed(0)
    log_prob = 2 * torch.randn(4000, 3, generator=generator).double()
    log_prob = log_prob.log_softmax(1)
    label = torch.multinomial(log_prob.exp(), 1, generator=generator).squeeze(1)
    found, sharp = classification(log_prob, label), classification(3 * log_prob, label)
    assert found.ece < 0.03 and sharp.ece > 0.1 and sharp.nats > found.nats
    assert found.accuracy == pytest.approx(float(log_prob.exp().amax(1).mean()), abs=3 * found.accuracy_std_error)
    assert found.confusion.sum(1).tolist() == torch.bincount(label).tolist()
    assert float(found.confusion.diag().sum()) / 4000 == found.accuracy
    assert int(found.counts.sum()) == 4000 and int(found.counts[:3].sum()) == 0  # confidence is 1/3 or more
    by_hand = classification(torch.tensor([[0.9, 0.1], [0.8, 0.2], [0.3, 0.7]]).log(), torch.tensor([0, 1, 1]), bins=2)
    assert by_hand.confusion.tolist() == [[1, 0], [1, 1]] and by_hand.accuracy == pytest.approx(2 / 3)
    assert by_hand.ece == pytest.approx(abs(2 / 3 - 0.8))
    assert by_hand.nats == pytest.approx(-(math.log(0.9) + math.log(0.2) + math.log(0.7)) / 3)


def test_bad_arguments_are_named() -> None:
    x = torch.randn(3, 2)
    for arguments, words in (
        ({"by": "magic"}, "needs by ode or elbo"), ({"samples": 1}, "samples >= 2"),
        ({"prior": [1.0]}, "a prior of 3 weights"), ({"prior": [1.0, -1.0, 1.0]}, "not negative"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=words):
            class_posterior(PARTS, x, **arguments)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="by elbo has no use for probes"):
        class_posterior(PARTS, x, by="elbo", probes=2)
    with pytest.raises(ValueError, match="two classes or more, got 1"):
        class_posterior(PARTS[:1], x)
    with pytest.raises(ValueError, match="same SDE"):
        class_posterior([PARTS[0], GaussianDenoiser(VPSDE(), 0.0, 1.0)], x)
    with pytest.raises(ValueError, match=r"labels in 0\.\.2, got 0 to 5"):
        classification(torch.zeros(2, 3), torch.tensor([0, 5]))
