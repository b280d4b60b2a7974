"""An encoder of noisy images, for guidance by embeddings."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from scoresde.checks import check_whole
from scoresde.models.classifier import Classifier


class ImageEncoder(nn.Module):
    """Noise-conditional features of images: `Classifier` with features in place of logits.

    Args:
        features: Number of features D.
        channels, image_size, width, channel_mults, num_res_blocks, attention_resolutions, dropout, fir, fourier_scale:
            As for `Classifier`.

    References:
        Nichol et al., "GLIDE", 2022, arXiv:2112.10741, §2.4 (noised CLIP models).
    """

    def __init__(
        self, *, features: int = 64, channels: int = 3, image_size: int = 32, width: int = 32,
        channel_mults: Sequence[int] = (1, 2, 2), num_res_blocks: int = 1, attention_resolutions: Sequence[int] = (),
        dropout: float = 0.1, fir: bool = False, fourier_scale: float = 1.0,
    ) -> None:  # fmt: skip
        check_whole("ImageEncoder", "1 <= features <= 65536", features=features)
        super().__init__()
        self.features = features
        self.net = Classifier(
            num_classes=features, channels=channels, image_size=image_size, width=width, channel_mults=channel_mults,
            num_res_blocks=num_res_blocks, attention_resolutions=attention_resolutions, dropout=dropout, fir=fir,
            fourier_scale=fourier_scale,
        )  # fmt: skip

    def forward(self, x: Tensor, c_noise: Tensor | float) -> Tensor:
        """Features (B, D) of noisy images x (B, channels, H, W) at noise levels c_noise, () or (B,)."""
        return self.net(x, c_noise)  # type: ignore[no-any-return]
