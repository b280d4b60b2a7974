"""A classifier of noisy data."""

from __future__ import annotations

from torch import Tensor, nn

from scoresde.guidance.potential import Potential
from scoresde.parameterization import Parameterization
from scoresde.sde import SDE, expand


class NoisyClassifier(nn.Module):
    """p(y | x_t) for every noise level, from a network (c_in x, c_noise) -> logits.

    Args:
        net: Returns logits (B, classes).
        sde: Process whose noise it sees.
        parameterization: Gives c_in and c_noise.

    References:
        Dhariwal and Nichol, "Diffusion Models Beat GANs on Image Synthesis", 2021, arXiv:2105.05233, §4.
    """

    def __init__(self, net: nn.Module, sde: SDE, parameterization: Parameterization) -> None:
        super().__init__()
        self.net, self.sde, self.parameterization = net, sde, parameterization

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        """Logits (B, classes) of x (B, *) at t () or (B,), in x's dtype."""
        return noisy_output(self.net, self.sde, self.parameterization, x, t)

    @property
    def num_classes(self) -> int:
        """Number of classes."""
        return int(self.net.output.out_features)  # type: ignore[union-attr,arg-type]

    def log_prob(self, label: Tensor) -> LabelLogProb:
        """log p(label | x_t) as a function of (x, t), for `ClassifierGuided` and `MeanShift`; label (B,) int64.

        Raises:
            ValueError: If the labels are no whole numbers from 0, one per sample.
        """
        return LabelLogProb(self, label)


class LabelLogProb(Potential):
    """log p(label | x_t) of a `NoisyClassifier`.

    Args:
        classifier: Gives logits.
        label: (B,), whole numbers.
    """

    noun = "classifier"

    def __init__(self, classifier: NoisyClassifier, label: Tensor) -> None:
        self.classifier, self.sde, self.label = classifier, classifier.sde, check_label(label)
        self.last = int(label.max()) if len(label) else 0  # read once, not at every call

    def __call__(self, x: Tensor, t: Tensor) -> Tensor:
        logits = self.classifier(x, t)
        if self.last >= logits.shape[1]:
            raise ValueError(f"label must be in 0..{logits.shape[1] - 1}, the classes of the classifier: {self.last}.")
        if self.label.shape != x.shape[:1]:
            raise ValueError(f"label must be one per sample, of shape ({len(x)},), got {tuple(self.label.shape)}.")
        return logits.log_softmax(1).gather(1, self.label[:, None]).squeeze(1)


def check_label(label: Tensor) -> Tensor:
    """Labels (B,) in int64.

    Raises:
        ValueError: If they are something else.
    """
    whole = isinstance(label, Tensor) and not label.is_floating_point() and not label.is_complex()
    if not whole or label.ndim != 1 or bool((label < 0).any()):
        got = f"{label.dtype} of shape {tuple(label.shape)}" if isinstance(label, Tensor) else repr(label)
        low = f" with {int(label.min())}" if whole and label.numel() and int(label.min()) < 0 else ""
        raise ValueError(f"label must be a tensor (B,) of whole numbers from 0, got {got}{low}.")
    return label.long()


def noisy_output(net: nn.Module, sde: SDE, parameterization: Parameterization, x: Tensor, t: Tensor) -> Tensor:
    """net(c_in x, c_noise), (B, K), of x (B, *) at t () or (B,), in x's dtype."""
    alpha, sigma = sde.alpha(t.double()), sde.sigma(t.double())
    dtype = next(net.parameters()).dtype
    c_in = expand(parameterization.c_in(alpha, sigma), x)
    c_noise = parameterization.c_noise(alpha, sigma).to(dtype).expand(x.shape[0])
    return net((c_in * x).to(dtype), c_noise).to(x.dtype)  # type: ignore[no-any-return]
