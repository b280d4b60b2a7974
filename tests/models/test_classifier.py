"""The noise-conditional classifier."""

from __future__ import annotations

import pytest
import torch

from scoresde.models import Classifier


def test_learns_to_tell_noisy_patterns_apart() -> None:
    torch.manual_seed(0)
    net = Classifier(num_classes=3, channels=1, image_size=8, width=16, channel_mults=(1, 2), dropout=0.0)
    patterns = torch.randn(3, 1, 8, 8).sign()
    optimizer = torch.optim.Adam(net.parameters(), lr=3e-3)
    for _ in range(60):
        label, sigma = torch.randint(3, (64,)), torch.rand(64) + 0.05
        x = patterns[label] + sigma[:, None, None, None] * torch.randn(64, 1, 8, 8)
        logits = net(x, sigma.log() / 4)
        loss = torch.nn.functional.cross_entropy(logits, label)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert (logits.argmax(1) == label).float().mean() > 0.9


@pytest.mark.parametrize("fir", [False, True])
def test_gradients_for_guidance_reach_each_sample_alone(fir: bool) -> None:
    torch.manual_seed(0)
    net = Classifier(
        num_classes=4,
        channels=2,
        image_size=8,
        width=8,
        channel_mults=(1, 2),
        attention_resolutions=[4],
        fir=fir,
    ).eval()
    for parameter in net.parameters():  # away from the silent start
        torch.nn.init.normal_(parameter, std=0.2)
    x = torch.randn(3, 2, 8, 8, requires_grad=True)
    (gradient,) = torch.autograd.grad(net(x, 0.2).log_softmax(1)[1, 2], x)
    assert gradient[1].abs().max() > 0
    assert gradient[[0, 2]].abs().max() == 0
    assert (net(x, 0.2) - net(x, 1.0)).abs().max() > 1e-4


def test_errors_name_what_is_wrong() -> None:
    with pytest.raises(ValueError, match="3 stages needs image_size divisible by 4, got 6"):
        Classifier(image_size=6)
    with pytest.raises(ValueError, match="Classifier needs num_classes >= 1, a whole number, got num_classes=0"):
        Classifier(num_classes=0)
    with pytest.raises(ValueError, match=r"needs x of shape \(B, 3, H, W\)"):
        Classifier()(torch.zeros(1, 1, 32, 32), 0.0)
