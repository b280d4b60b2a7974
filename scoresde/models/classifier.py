"""A classifier of noisy images, for classifier guidance."""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from scoresde.checks import check_flag, check_numbers, check_whole
from scoresde.models.blocks import AttentionBlock, ResidualBlock
from scoresde.models.embedding import GaussianFourier, noise_levels
from scoresde.models.layers import conv3, group_norm, linear
from scoresde.models.ncsnpp_options import check_stages
from scoresde.models.resample import Down

WHOLE = ("num_classes >= 1", "channels >= 1", "image_size >= 1", "width >= 1", "num_res_blocks >= 1")


class Classifier(nn.Module):
    """Noise-conditional classifier p(y | x_t): the downsampling half of the U-Net, then a mean over pixels.

        logits = W mean_hw(silu(norm(h))) + b

    Args:
        num_classes: Number of classes K.
        channels: Channels of the images.
        image_size: Height and width in pixels that `attention_resolutions` refers to.
        width: Channels of the first stage; `channel_mults` times this at the others.
        channel_mults: One factor per stage; each stage halves the resolution.
        num_res_blocks: Residual blocks per stage.
        attention_resolutions: Image sizes in pixels at which every block is followed by attention.
        dropout: Probability of dropping an activation.
        fir: Downsample with the FIR filter (1, 3, 3, 1) instead of the mean.
        fourier_scale: Standard deviation of the frequencies that embed c_noise.

    References:
        Song et al., "Score-Based Generative Modeling through SDEs", 2021, arXiv:2011.13456, App. I.
        Dhariwal and Nichol, "Diffusion Models Beat GANs on Image Synthesis", 2021, arXiv:2105.05233.
    """

    def __init__(
        self, *, num_classes: int = 10, channels: int = 3, image_size: int = 32, width: int = 32,
        channel_mults: Sequence[int] = (1, 2, 2), num_res_blocks: int = 1, attention_resolutions: Sequence[int] = (),
        dropout: float = 0.1, fir: bool = False, fourier_scale: float = 1.0,
    ) -> None:  # fmt: skip
        given = {name: value for name, value in locals().items() if name != "self"}
        check_whole("Classifier", *WHOLE, **given)
        check_numbers("Classifier", "0 <= dropout < 1", "0 < fourier_scale <= 1e9", **given)
        check_flag("Classifier", "fir", fir)
        check_stages("Classifier", image_size, channel_mults, attention_resolutions)
        super().__init__()
        mults = tuple(channel_mults)
        self.channels, self.factor, embed_dim = channels, 2 ** (len(mults) - 1), 4 * width
        self.fourier = GaussianFourier(width, fourier_scale)
        self.embed = nn.Sequential(linear(2 * width, embed_dim), nn.SiLU(), linear(embed_dim, embed_dim))
        self.input = conv3(channels, width)
        self.blocks = nn.ModuleList()
        c = width
        for stage, mult in enumerate(mults):
            for _ in range(num_res_blocks):
                self.blocks.append(ResidualBlock(c, width * mult, embed_dim, dropout=dropout))
                c = width * mult
                if image_size >> stage in tuple(attention_resolutions):
                    self.blocks.append(AttentionBlock(c))
            if stage < len(mults) - 1:
                down = Down((1, 3, 3, 1) if fir else None)
                self.blocks.append(ResidualBlock(c, c, embed_dim, resample=down, dropout=dropout))
        self.norm = group_norm(c, None)
        self.output = linear(c, num_classes)

    def forward(self, x: Tensor, c_noise: Tensor | float) -> Tensor:
        """Classify noisy images.

        Args:
            x: Shape (B, channels, H, W), with H and W divisible by 2^(stages − 1).
            c_noise: Noise level, shape () or (B,).
        Returns:
            Logits, shape (B, num_classes), in x's dtype.
        """
        if x.ndim != 4 or x.shape[1] != self.channels or x.shape[2] % self.factor or x.shape[3] % self.factor:
            raise ValueError(
                f"Classifier needs x of shape (B, {self.channels}, H, W) with H and W divisible by "
                f"{self.factor}, got {tuple(x.shape)}."
            )
        embedding = self.embed(self.fourier(noise_levels(c_noise, x)).to(x.dtype))
        h = self.input(x)
        for block in self.blocks:
            h = block(h, embedding) if isinstance(block, ResidualBlock) else block(h)
        return self.output(F.silu(self.norm(h)).mean(dim=(2, 3))).to(x.dtype)
