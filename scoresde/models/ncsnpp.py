"""NCSN++, DDPM++ and DDPM: the U-Nets of score-based generative modelling."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
import torch.utils.checkpoint
from torch import Tensor, nn

from scoresde.models.blocks import AttentionBlock, Combine, ResidualBlock, add_skip
from scoresde.models.embedding import ConditionEmbedding, GaussianFourier, noise_levels, sinusoidal_embedding
from scoresde.models.fourier_features import with_fourier_features
from scoresde.models.layers import conv3x3, group_norm, linear
from scoresde.models.ncsnpp_options import (
    Block,
    Combination,
    Embedding,
    ProgressiveInput,
    ProgressiveOutput,
    check_choice,
    check_sizes,
)
from scoresde.models.resample import ConvDown, ConvUp, Down, Up


class DownLevel(NamedTuple):
    """One resolution on the way down: places in `NCSNpp.all_modules`, or None for no such layer."""

    blocks: list[tuple[int, int | None]]  # residual block, attention
    down: int | None
    pyramid: int | None  # Combine (input_skip) or strided convolution (residual)


class UpLevel(NamedTuple):
    """One resolution on the way up, as `DownLevel`."""

    blocks: list[int]
    attention: int | None
    pyramid: list[int]  # norm and convolution, or transposed convolution (residual, after the first level)
    up: int | None


class NCSNpp(nn.Module):
    """The U-Net of Song et al. with its whole option set, which also gives DDPM++ and DDPM.

        F(x, c_noise):  embed c_noise -> levels down -> block, attention, block -> levels up -> output

    NCSN++ is the default with progressive_input="residual"; DDPM++ is the default with fir=False. Any size
    divisible by 2^(levels − 1) works; `image_size` only decides which levels attend.

    All layers live in one list, `all_modules`, in the order of the forward pass. Without conditions, names,
    shapes and order of the parameters are those of the published checkpoints.

    Args:
        channels: Channels C of the data.
        out_channels: Channels of F; None for C. 2C for `LearnedRange`, which also predicts a variance.
        image_size: Height and width in pixels that `attention_resolutions` refers to.
        width: Channels of the first level; `channel_mults` times this at the others.
        channel_mults: One factor per level; each level halves the resolution.
        num_res_blocks: Residual blocks per level on the way down, one more on the way up.
        attention_resolutions: Image sizes in pixels at which the level attends.
        dropout: Probability of dropping an activation.
        block: "biggan" (resampling inside residual blocks) or "ddpm" (separate resampling layers).
        resample_with_conv: Separate resampling layers have a convolution; only for block="ddpm".
        fir: Resample with a FIR filter instead of nearest neighbour and mean.
        fir_kernel: Its taps.
        progressive_output: "output_skip" sums an image from every level; "residual" hands features on from
            level to level.
        progressive_input: "input_skip" brings the downsampled input into every level; "residual" adds
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
        condition_dim: Accept `condition`, (B, condition_dim); None is zeros.
        concat_channels: Accept `concat`, (B, concat_channels, H, W), appended to x; None is zeros.
        fourier_features: Exponents n of further inputs sin and cos of 2^n π data_scale x, see `FourierFeatures`.
        data_scale: Factor from x to the data: the parameterization's sigma_data.
        checkpoint: Recompute blocks in the backward pass, to save memory.

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
        image_size: int = 32,
        width: int = 128,
        channel_mults: Sequence[int] = (1, 2, 2, 2),
        num_res_blocks: int = 4,
        attention_resolutions: Sequence[int] = (16,),
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
        concat_channels: int = 0,
        fourier_features: Sequence[float] = (),
        data_scale: float = 1.0,
        checkpoint: bool = False,
    ) -> None:
        super().__init__()
        check_choice("block", block, Block)
        check_choice("embedding", embedding, Embedding)
        check_choice("progressive_output", progressive_output, ProgressiveOutput)
        check_choice("progressive_input", progressive_input, ProgressiveInput)
        check_choice("progressive_combine", progressive_combine, Combination)
        check_sizes(channels, image_size, width, tuple(channel_mults), num_res_blocks, num_scales, concat_channels)
        if out_channels is not None and out_channels < 1:
            raise ValueError(
                f"NCSNpp needs out_channels >= 1, or None for the channels of the data, got {out_channels}."
            )
        if not 0 < sigma_min < sigma_max:
            raise ValueError(f"NCSNpp needs 0 < sigma_min < sigma_max, got {sigma_min} and {sigma_max}.")
        if scale_by_sigma and embedding == "fourier":
            raise ValueError("NCSNpp with scale_by_sigma=True needs embedding log_fourier or positional, got fourier.")
        if not time_conditional and (num_classes or condition_dim):
            raise ValueError(
                "NCSNpp adds label and condition to the time embedding, so they need time_conditional=True."
            )
        self.channels = channels
        self.out_channels = channels if out_channels is None else out_channels
        self.width = width
        self.channel_mults = tuple(channel_mults)
        self.progressive_output = progressive_output
        self.progressive_input = progressive_input
        self.skip_rescale = skip_rescale
        self.embedding = embedding
        self.time_conditional = time_conditional
        self.scale_by_sigma = scale_by_sigma
        self.centered = centered
        self.concat_channels = concat_channels
        self.fourier_features, self.data_scale = tuple(float(n) for n in fourier_features), float(data_scale)
        self.checkpoint = checkpoint
        log_sigmas = torch.linspace(math.log(sigma_max), math.log(sigma_min), num_scales, dtype=torch.float64)
        self.register_buffer("sigmas", log_sigmas.exp())
        self.all_modules = nn.ModuleList()

        taps = tuple(fir_kernel) if fir else None
        attended = tuple(attention_resolutions)
        attends = [image_size >> level in attended for level in range(len(self.channel_mults))]
        common: dict[str, Any] = {
            "init_scale": init_scale,
            "skip_rescale": skip_rescale,
            "norm_groups": norm_groups,
        }

        def residual(c_in: int, c_out: int, resample: nn.Module | None = None) -> int:
            return self._add(
                ResidualBlock(c_in, c_out, 4 * width, style=block, resample=resample, dropout=dropout, **common)
            )

        def attention(c: int) -> int:
            return self._add(AttentionBlock(c, **common))

        def change_size(c: int, plain: type[Up | Down], conv: type[ConvUp | ConvDown]) -> int:
            if block == "biggan":
                return residual(c, c, plain(taps))
            return self._add(conv(c, c, taps) if resample_with_conv else plain(taps))

        def norm_conv(c: int, c_out: int, scale: float = init_scale) -> list[int]:
            return [self._add(group_norm(c, norm_groups)), self._add(conv3x3(c, c_out, init_scale=scale))]

        # Embedding of the noise level.
        embed_dim = width if embedding == "positional" else 2 * width
        fourier = None if embedding == "positional" else GaussianFourier(width, fourier_scale)
        self._fourier = None if fourier is None else self._add(fourier)
        dense = [linear(embed_dim, 4 * width), linear(4 * width, 4 * width)] if time_conditional else []
        self._dense = [self._add(layer) for layer in dense]

        # Down.
        c = width
        pyramid_channels = channels * (1 + 2 * len(self.fourier_features)) + concat_channels
        self._pyramid_down = Down(taps)
        self._input = self._add(conv3x3(pyramid_channels, c))
        skips = [c]
        self._down: list[DownLevel] = []
        for level, mult in enumerate(self.channel_mults):
            blocks = []
            for _ in range(num_res_blocks):
                place = residual(c, width * mult)
                c = width * mult
                blocks.append((place, attention(c) if attends[level] else None))
                skips.append(c)
            down = pyramid = None
            if level < len(self.channel_mults) - 1:
                down = change_size(c, Down, ConvDown)
                if progressive_input == "input_skip":
                    pyramid = self._add(Combine(pyramid_channels, c, progressive_combine))
                    c = 2 * c if progressive_combine == "cat" else c
                elif progressive_input == "residual":
                    pyramid = self._add(ConvDown(pyramid_channels, c, taps))
                    pyramid_channels = c
                skips.append(c)
            self._down.append(DownLevel(blocks, down, pyramid))

        # Middle.
        self._middle = [residual(c, c), attention(c), residual(c, c)]

        # Up.
        self._pyramid_up = Up(taps)
        self._up: list[UpLevel] = []
        for level, mult in reversed(list(enumerate(self.channel_mults))):
            places = []
            for _ in range(num_res_blocks + 1):
                places.append(residual(c + skips.pop(), width * mult))
                c = width * mult
            attend = attention(c) if attends[level] else None
            output: list[int] = []
            if progressive_output == "output_skip":
                output = norm_conv(c, self.out_channels)
            elif progressive_output == "residual" and not self._up:
                output = norm_conv(c, c, 1.0)
                pyramid_channels = c
            elif progressive_output == "residual":
                output = [self._add(ConvUp(pyramid_channels, c, taps))]
                pyramid_channels = c
            up = change_size(c, Up, ConvUp) if level > 0 else None
            self._up.append(UpLevel(places, attend, output, up))
        assert not skips

        self._output = [] if progressive_output == "output_skip" else norm_conv(c, self.out_channels)

        self.conditions = ConditionEmbedding("NCSNpp", 4 * width, num_classes, condition_dim)

    def forward(
        self,
        x: Tensor,
        c_noise: Tensor | float,
        *,
        label: Tensor | None = None,
        condition: Tensor | None = None,
        concat: Tensor | None = None,
    ) -> Tensor:
        """Evaluate the network.

        Args:
            x: Shape (B, C, H, W), with H and W divisible by 2^(levels − 1).
            c_noise: Noise level as `embedding` understands it, shape () or (B,).
            label, condition, concat: Conditions, see the class.
        Returns:
            F (B, out_channels, H, W), in the dtype of x.
        """
        self._check_input(x)
        c_noise = noise_levels(c_noise, x)
        embedding = self._embed(x, c_noise, label, condition)
        h = pyramid = self._prepare(x, concat)

        h = self._run(self._input, h)
        skips = [h]
        for down_level in self._down:
            for block, attention in down_level.blocks:
                h = self._run(block, h, embedding)
                h = h if attention is None else self._run(attention, h)
                skips.append(h)
            if down_level.down is not None:
                h = self._run(down_level.down, h, embedding)
                h, pyramid = self._enter_pyramid(down_level, h, pyramid)
                skips.append(h)

        first, attend, second = self._middle
        h = self._run(second, self._run(attend, self._run(first, h, embedding)), embedding)

        image: Tensor | None = None
        for up_level in self._up:
            for place in up_level.blocks:
                h = self._run(place, torch.cat([h, skips.pop()], dim=1), embedding)
            h = h if up_level.attention is None else self._run(up_level.attention, h)
            h, image = self._leave_pyramid(up_level, h, image)
            h = h if up_level.up is None else self._run(up_level.up, h, embedding)

        out = self._head(self._output, h) if image is None or self._output else image
        return self._divide_by_sigma(out.to(x.dtype), c_noise)

    def _add(self, module: nn.Module) -> int:
        self.all_modules.append(module)
        return len(self.all_modules) - 1

    def _run(self, place: int, *args: Tensor | None) -> Tensor:
        module = self.all_modules[place]
        out: Tensor
        if self.checkpoint and torch.is_grad_enabled() and isinstance(module, ResidualBlock | AttentionBlock):
            out = torch.utils.checkpoint.checkpoint(module, *args, use_reentrant=False)
        else:
            out = module(*args)
        return out

    def _embed(self, x: Tensor, c_noise: Tensor, label: Tensor | None, condition: Tensor | None) -> Tensor | None:
        conditions = self.conditions(x, label, condition)
        if not self.time_conditional:
            return None
        if self._fourier is None:
            embedding = sinusoidal_embedding(c_noise, self.width)
        else:
            c = c_noise.log() if self.embedding == "log_fourier" else c_noise
            embedding = self._run(self._fourier, c)
        first, second = self._dense
        embedding = self._run(second, F.silu(self._run(first, embedding.to(x.dtype))))
        return embedding if conditions is None else embedding + conditions

    def _prepare(self, x: Tensor, concat: Tensor | None) -> Tensor:
        x = x if self.centered else 2 * x - 1
        x = with_fourier_features(x, self.fourier_features, self.data_scale) if self.fourier_features else x
        if self.concat_channels == 0 and concat is None:
            return x
        shape = (x.shape[0], self.concat_channels, *x.shape[2:])
        if concat is None:
            return torch.cat([x, x.new_zeros(shape)], dim=1)
        if concat.shape != shape or self.concat_channels == 0:
            raise ValueError(
                f"NCSNpp with concat_channels={self.concat_channels} needs concat of shape {shape} "
                f"for x of shape {tuple(x.shape)}, got {tuple(concat.shape)}."
            )
        return torch.cat([x, concat.to(x.dtype)], dim=1)

    def _enter_pyramid(self, level: DownLevel, h: Tensor, pyramid: Tensor) -> tuple[Tensor, Tensor]:
        """Add the input pyramid to the features; returns both for the next level."""
        if level.pyramid is None:
            return h, pyramid
        if self.progressive_input == "input_skip":
            pyramid = self._pyramid_down(pyramid)
            return self._run(level.pyramid, pyramid, h), pyramid
        pyramid = add_skip(self._run(level.pyramid, pyramid), h, self.skip_rescale)
        return pyramid, pyramid

    def _leave_pyramid(self, level: UpLevel, h: Tensor, image: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Add the features to the output pyramid; returns both for the next level."""
        if self.progressive_output == "none":
            return h, None
        if image is None:
            return h, self._head(level.pyramid, h)
        if self.progressive_output == "output_skip":
            return h, self._pyramid_up(image) + self._head(level.pyramid, h)
        h = add_skip(self._run(level.pyramid[0], image), h, self.skip_rescale)
        return h, h

    def _head(self, places: list[int], h: Tensor) -> Tensor:
        norm, conv = places
        return self._run(conv, F.silu(self._run(norm, h)))

    def _divide_by_sigma(self, out: Tensor, c_noise: Tensor) -> Tensor:
        if not self.scale_by_sigma:
            return out
        sigma = c_noise if self.embedding == "log_fourier" else self.sigmas[c_noise.round().long()]
        sigma = sigma.to(out.dtype)[:, None, None, None]
        if self.out_channels <= self.channels:
            return out / sigma
        return torch.cat([out[:, : self.channels] / sigma, out[:, self.channels :]], dim=1)

    def _check_input(self, x: Tensor) -> None:
        factor = 2 ** (len(self.channel_mults) - 1)
        if x.ndim != 4 or x.shape[1] != self.channels:
            raise ValueError(f"NCSNpp needs x of shape (B, {self.channels}, H, W), got {tuple(x.shape)}.")
        if x.shape[2] % factor or x.shape[3] % factor:
            raise ValueError(
                f"NCSNpp with {len(self.channel_mults)} levels needs height and width divisible by {factor}, "
                f"got {x.shape[2]}x{x.shape[3]}; pad the images or use fewer channel_mults."
            )
