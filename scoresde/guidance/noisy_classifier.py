"""A classifier of noisy data."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn

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
        alpha, sigma = self.sde.alpha(t.double()), self.sde.sigma(t.double())
        dtype = next(self.net.parameters()).dtype
        c_in = expand(self.parameterization.c_in(alpha, sigma), x)
        c_noise = self.parameterization.c_noise(alpha, sigma).to(dtype).expand(x.shape[0])
        return self.net((c_in * x).to(dtype), c_noise).to(x.dtype)

    @property
    def num_classes(self) -> int:
        """Number of classes."""
        return int(self.net.output.out_features)  # type: ignore[union-attr,arg-type]

    def log_prob(self, label: Tensor) -> Callable[[Tensor, Tensor], Tensor]:
        """log p(label | x_t) as a function of (x, t), for `ClassifierGuided`; label (B,) int64."""

        def log_prob(x: Tensor, t: Tensor) -> Tensor:
            return self(x, t).log_softmax(1).gather(1, label[:, None]).squeeze(1)

        return log_prob
