"""NCSN++, DDPM++ and DDPM: the U-Nets of score-based generative modelling."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from scoresde.models.embedding import ConditionEmbedding, NoiseEmbedding, noise_levels
from scoresde.models.fourier_features import with_fourier_features
from scoresde.models.image_condition import ImageCondition, image_channels
from scoresde.models.layers import conv3
from scoresde.models.ncsnpp_options import (
    Block,
    Combination,
    Embedding,
    ProgressiveInput,
    ProgressiveOutput,
    check_options,
)
from scoresde.models.resample import cropped, from_patches, padded, to_patches
from scoresde.models.sequence_condition import SequenceCondition, Tokens, tokens_of
from scoresde.models.stages import DownStage, Layers, UpStage
from scoresde.models.wiener import wiener_filter


class NCSNpp(nn.Module):
    """The U-Net of Song et al. with its whole option set, which also gives DDPM++ and DDPM.

        F(x, c_noise):  embed c_noise -> stages down -> block, attention, block -> stages up -> output

    NCSN++ is the default with progressive_input="residual"; DDPM++ is the default with fir=False. It takes series
    (C, L), images (C, H, W) and volumes (C, D, H, W) of any size: what 2^(stages − 1) does not divide is continued by
    its last entries, and the output is cropped. `image_size` says how many axes there are and which stages attend.

    The parameters have the shapes and the order of the published checkpoints, which is that of the forward pass,
    and conditions come last; `scoresde.interop.score_sde_keys` gives their published names.

    Args:
        channels: Channels C of the data.
        out_channels: Channels of F; None for C. 2C for `LearnedRange`, which also predicts a variance.
        image_size: Height and width in pixels, or the size of every axis: [L], [H, W] or [D, H, W].
        width: Channels of the first stage; `channel_mults` times this at the others.
        channel_mults: One factor per stage; each stage halves the resolution.
        num_res_blocks: Residual blocks per stage on the way down, one more on the way up.
        attention_resolutions: Sizes of the longest axis, in patches, at which the stage attends.
        patch: Places along each axis that become channels of one place, to work on fewer places; 1: none.
        dropout: Probability of dropping an activation.
        block: "biggan" (resampling inside residual blocks) or "ddpm" (separate resampling layers).
        resample_with_conv: Separate resampling layers have a convolution; only for block="ddpm".
        fir: Resample with a FIR filter instead of nearest neighbour and mean.
        fir_kernel: Its taps.
        progressive_output: "output_skip" sums an image from every stage; "residual" hands features on from
            stage to stage.
        progressive_input: "input_skip" brings the downsampled input into every stage; "residual" adds
            convolved features of it.
        progressive_combine: How "input_skip" enters: "sum" or "cat".
        skip_rescale: Divide residual sums by √2.
        embedding: "positional": sinusoids of c_noise, a time step up to about 1000. "fourier": random Fourier
            features of c_noise. "log_fourier": of log c_noise, where c_noise is σ.
        fourier_scale: Standard deviation of the random frequencies.
        init_scale: Initial scale of the last layer of every block and of the output; 0 starts with F = 0.
        time_conditional: False ignores c_noise (the blocks keep their unused layers).
        scale_by_sigma: Divide F, its first C channels, by σ: c_noise itself for "log_fourier", sigmas[c_noise] for
            "positional".
        centered: False maps x to 2x − 1 first, for data in [0, 1].
        num_scales, sigma_min, sigma_max: Length and ends of the geometric table `sigmas`, descending.
        norm_groups: Groups of every normalisation; None for min(C/4, 32).
        num_classes: Accept `label`, (B,) integers; −1 or None is the learned "no label".
        condition_dim: Accept `condition`, (B, condition_dim), in the data's own units.
        condition_mean, condition_std, condition_categories, condition_width, condition_optional: See
            `ConditionEmbedding`.
        concat_channels: Accept `concat`, (B, concat_channels, *), appended to x; None is zeros.
        image: Accept `image`, (B, channels, *) of any resolution, appended to x: options of `ImageCondition`, as
            {"channels": 3}.
        sequence: Accept `sequence`, (B, L) or (B, L, dim), which stages with attention attend to: options of
            `SequenceCondition`, as {"vocabulary": 26}.
        fourier_features: Exponents n of further inputs sin and cos of 2^n π data_scale x, see `FourierFeatures`.
        data_scale: Factor from x to the data: the parameterization's sigma_data.
        checkpoint: Recompute blocks in the backward pass, to save memory.
        wiener: What F is, "edm", "epsilon" or "data", for a `WienerFilter` around the network; None or "none": none.

    References:
        Song et al., "Score-Based Generative Modeling through SDEs", 2021, arXiv:2011.13456, App. H.
        Ho et al., "Denoising Diffusion Probabilistic Models", 2020, arXiv:2006.11239.
    """

    sigmas: Tensor

    def __init__(
        self,
        *,
        channels: int = 3,
        out_channels: int | None = None,
        image_size: int | Sequence[int] = 32,
        width: int = 128,
        channel_mults: Sequence[int] = (1, 2, 2, 2),
        num_res_blocks: int = 4,
        attention_resolutions: Sequence[int] = (16,),
        patch: int = 1,
        dropout: float = 0.1,
        block: Block = "biggan",
        resample_with_conv: bool = True,
        fir: bool = True,
        fir_kernel: Sequence[float] = (1, 3, 3, 1),
        progressive_output: ProgressiveOutput = "none",
        progressive_input: ProgressiveInput = "none",
        progressive_combine: Combination = "sum",
        skip_rescale: bool = True,
        embedding: Embedding = "positional",
        fourier_scale: float = 16.0,
        init_scale: float = 0.0,
        time_conditional: bool = True,
        scale_by_sigma: bool = False,
        centered: bool = True,
        num_scales: int = 1000,
        sigma_min: float = 0.01,
        sigma_max: float = 50.0,
        norm_groups: int | None = None,
        num_classes: int | None = None,
        condition_dim: int | None = None,
        condition_mean: Sequence[float] | None = None,
        condition_std: Sequence[float] | None = None,
        condition_categories: Sequence[int] | None = None,
        condition_width: int | None = None,
        condition_optional: bool | None = None,
        concat_channels: int = 0,
        image: Mapping[str, Any] | None = None,
        sequence: Mapping[str, Any] | None = None,
        fourier_features: Sequence[float] = (),
        data_scale: float = 1.0,
        checkpoint: bool = False,
        wiener: str | None = None,
    ) -> None:
        check_options(locals())
        super().__init__()
        mults = tuple(channel_mults)
        sizes = (image_size, image_size) if isinstance(image_size, int) else tuple(image_size)
        self.channels, self.dims = channels, len(sizes)
        self.out_channels = channels if out_channels is None else out_channels
        self.embedding, self.scale_by_sigma, self.centered = embedding, scale_by_sigma, centered
        self.concat_channels, self.patch = concat_channels, patch
        self.fourier_features, self.data_scale = tuple(float(n) for n in fourier_features), float(data_scale)
        log_sigmas = torch.linspace(math.log(sigma_max), math.log(sigma_min), num_scales, dtype=torch.float64)
        self.register_buffer("sigmas", log_sigmas.exp())
        self.image = ImageCondition.of("NCSNpp", self.dims, image)

        layers = Layers(
            dims=self.dims,
            embed_dim=4 * width,
            out_channels=self.out_channels * patch**self.dims,
            style=block,
            taps=tuple(fir_kernel) if fir else None,
            token_width=None if sequence is None else 4 * width,
            resample_with_conv=resample_with_conv,
            dropout=dropout,
            progressive_output=progressive_output,
            progressive_input=progressive_input,
            progressive_combine=progressive_combine,
            init_scale=init_scale,
            skip_rescale=skip_rescale,
            norm_groups=norm_groups,
            checkpoint=checkpoint,
        )
        widths = [width * mult for mult in mults]
        attends = [-(-max(sizes) // (patch * 2**stage)) in tuple(attention_resolutions) for stage in range(len(mults))]
        beside = concat_channels + (0 if self.image is None else self.image.out_channels)
        pyramid_channels = (channels * (1 + 2 * len(self.fourier_features)) + beside) * patch**self.dims

        self.embed = NoiseEmbedding(embedding, width, fourier_scale, time_conditional)
        self.input = conv3(pyramid_channels, width, dims=self.dims)
        self.down = nn.ModuleList()
        skips, c = [width], width
        for stage, c_out in enumerate(widths):
            last = stage == len(widths) - 1
            down = DownStage(layers, c, c_out, num_res_blocks, attends[stage], pyramid_channels, last=last)
            self.down.append(down)
            skips += down.skip_channels
            c, pyramid_channels = down.out_channels, down.pyramid_channels
        self.middle = nn.ModuleList(layers.block(c, c, attend) for attend in (True, False))
        self.up = nn.ModuleList()
        for stage, c_out in reversed(list(enumerate(widths))):
            own = [skips.pop() for _ in range(num_res_blocks + 1)]
            self.up.append(UpStage(layers, c, c_out, own, attends[stage], first=not self.up, last=stage == 0))
            c = c_out
        self.output = None if progressive_output == "output_skip" else layers.head(c, layers.out_channels)
        self.conditions = ConditionEmbedding(
            "NCSNpp", 4 * width, num_classes, condition_dim, condition_mean=condition_mean, condition_std=condition_std,
            condition_categories=condition_categories, condition_width=condition_width,
            condition_optional=condition_optional,
        )  # fmt: skip
        self.sequence = SequenceCondition.of("NCSNpp", 4 * width, sequence)
        self.wiener = wiener_filter((channels, *sizes), wiener, self.data_scale)

    def forward(
        self,
        x: Tensor,
        c_noise: Tensor | float,
        *,
        label: Tensor | None = None,
        condition: Tensor | None = None,
        concat: Tensor | None = None,
        image: Tensor | None = None,
        sequence: Tensor | None = None,
    ) -> Tensor:
        """Evaluate the network.

        Args:
            x: Shape (B, C, *), with as many axes as `image_size` has.
            c_noise: Noise level as `embedding` understands it, shape () or (B,).
            label, condition, concat, image, sequence: Conditions, see the class.
        Returns:
            F (B, out_channels, *), in the dtype of x.
        """
        self._check_input(x)
        c_noise = noise_levels(c_noise, x)
        tokens = tokens_of("NCSNpp", self.sequence, x, sequence)
        embedding = self._embed(x, c_noise, label, condition, tokens)
        beside = self._beside(x, concat, image)
        network = partial(self._network, c_noise=c_noise, embedding=embedding, beside=beside, tokens=tokens)
        return network(x) if self.wiener is None else self.wiener(x, c_noise, network)

    def _network(
        self, x: Tensor, c_noise: Tensor, embedding: Tensor | None, beside: list[Tensor], tokens: Tokens | None
    ) -> Tensor:
        image: Tensor | None = None
        places = padded(self._prepare(x, beside), self.patch * 2 ** (len(self.down) - 1))
        pyramid = to_patches(places, self.patch)
        h = self.input(pyramid)
        skips = [h]
        for stage in self.down:
            h, pyramid = stage(h, pyramid, skips, embedding, tokens)
        for block in self.middle:
            h = block(h, embedding, tokens)
        for stage in self.up:
            h, image = stage(h, image, skips, embedding, tokens)
        if self.output is not None:
            image = self.output(h)
        assert image is not None  # without an output of its own the network has summed one on the way up
        out = cropped(from_patches(image, self.patch), x.shape[2:])
        return self._divide_by_sigma(out.to(x.dtype), c_noise)

    def _embed(
        self, x: Tensor, c_noise: Tensor, label: Tensor | None, condition: Tensor | None, tokens: Tokens | None
    ) -> Tensor | None:
        embedding: Tensor | None = self.embed(c_noise, x.dtype)
        for term in (self.conditions(x, label, condition), None if tokens is None else tokens.pooled):
            embedding = embedding if term is None or embedding is None else embedding + term
        return embedding

    def _beside(self, x: Tensor, concat: Tensor | None, image: Tensor | None) -> list[Tensor]:
        """What is appended to x."""
        beside, shape = [], (x.shape[0], self.concat_channels, *x.shape[2:])
        if concat is not None and (concat.shape != shape or self.concat_channels == 0):
            raise ValueError(
                f"NCSNpp with concat_channels={self.concat_channels} needs concat of shape {shape} "
                f"for x of shape {tuple(x.shape)}, got {tuple(concat.shape)}."
            )
        if self.concat_channels:
            beside.append(x.new_zeros(shape) if concat is None else concat.to(x.dtype))
        channels = image_channels("NCSNpp", self.image, x, image)
        return beside if channels is None else [*beside, channels]

    def _prepare(self, x: Tensor, beside: list[Tensor]) -> Tensor:
        x = x if self.centered else 2 * x - 1
        x = with_fourier_features(x, self.fourier_features, self.data_scale) if self.fourier_features else x
        return torch.cat([x, *beside], dim=1) if beside else x

    def _divide_by_sigma(self, out: Tensor, c_noise: Tensor) -> Tensor:
        if not self.scale_by_sigma:
            return out
        sigma = c_noise if self.embedding == "log_fourier" else self.sigmas[c_noise.round().long()]
        sigma = sigma.to(out.dtype).reshape(-1, *[1] * (out.ndim - 1))
        if self.out_channels <= self.channels:
            return out / sigma
        return torch.cat([out[:, : self.channels] / sigma, out[:, self.channels :]], dim=1)

    def _check_input(self, x: Tensor) -> None:
        if x.ndim != 2 + self.dims or x.shape[1] != self.channels:
            axes = {1: "L", 2: "H, W", 3: "D, H, W"}[self.dims]
            raise ValueError(f"NCSNpp needs x of shape (B, {self.channels}, {axes}), got {tuple(x.shape)}.")
