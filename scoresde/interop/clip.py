"""CLIP models of open_clip as encoders for guidance."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from scoresde.checks import check_list, check_pair, check_whole

CLIP_MEAN, CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
EXTRA = "open_clip is not installed: pip install scoresde[clip]"


class ClipEncoder(nn.Module):
    """A CLIP model as encoder of clean images, for `EmbeddingGuided(denoiser, encoder, target, clean=True)`.

        encoder = ClipEncoder.open_clip("ViT-B-32", "laion2b_s34b_b79k")
        target = encoder.of_texts(["a photograph of a lighthouse"])[0]

    Images go from the model's units to CLIP's by steps that gradients pass: to [0, 1], grey ones to three channels,
    a bicubic resize with antialiasing to a square, and a normalisation per channel.

    Args:
        model: With `encode_image` (B, 3, S, S) -> (B, D) and `encode_text` tokens -> (N, D), as those of open_clip.
        tokenizer: Called with a list of texts -> the tokens that `encode_text` takes.
        image_size: S.
        mean, std: Of the normalisation, one number per channel.
        value_range: What black and white are in the model's units.

    References:
        Radford et al., "Learning Transferable Visual Models From Natural Language Supervision", 2021, arXiv:2103.00020.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        model: nn.Module,
        tokenizer: Callable[[list[str]], Tensor],
        *,
        image_size: int = 224,
        mean: Sequence[float] = CLIP_MEAN,
        std: Sequence[float] = CLIP_STD,
        value_range: tuple[float, float] = (-1.0, 1.0),
    ) -> None:
        super().__init__()
        check_whole(self, "1 <= image_size <= 65536", image_size=image_size)
        self.value_range = check_pair(self, "value_range", value_range, "-inf < low < high < inf")
        self.clip: Any = model.eval().requires_grad_(False)
        self.tokenizer, self.image_size = tokenizer, image_size
        for name, value in {"mean": mean, "std": std}.items():
            numbers = check_list(self, name, value)
            if len(numbers) != 3 or (name == "std" and min(numbers) <= 0):
                raise ValueError(f"ClipEncoder needs {name} to be three numbers, of std positive ones, got {value!r}.")
            self.register_buffer(name, torch.tensor(numbers).reshape(3, 1, 1), persistent=False)

    @classmethod
    def open_clip(cls, name: str, pretrained: str | None = None, **options: Any) -> ClipEncoder:
        """A model of open_clip by its name, with weights of open_clip's by theirs or from a file.

        Args:
            name, pretrained: As for `open_clip.create_model`; without `pretrained` the weights are random.
            options: Of the constructor; image_size, mean and std are the model's own.
        Raises:
            ImportError: If open_clip is not installed.
        """
        try:
            import open_clip
        except ImportError as error:
            raise ImportError(EXTRA) from error
        model, _, _ = open_clip.create_model_and_transforms(name, pretrained=pretrained)
        own = open_clip.get_model_preprocess_cfg(model)
        size = own["size"]
        size = size if isinstance(size, int) else max(size)
        known = {"image_size": size, "mean": own["mean"], "std": own["std"]}
        return cls(model, open_clip.get_tokenizer(name), **{**known, **options})

    def forward(self, x0: Tensor) -> Tensor:
        """Features (B, D) of images x0 (B, 1 or 3, H, W) in the model's units."""
        return self.clip.encode_image(self.pixels(x0)).to(x0.dtype)  # type: ignore[no-any-return]

    def pixels(self, x0: Tensor) -> Tensor:
        """What CLIP sees of images x0 (B, 1 or 3, H, W), (B, 3, S, S) in its weights' dtype."""
        if x0.ndim != 4 or x0.shape[1] not in (1, 3):
            raise ValueError(f"ClipEncoder needs images (B, 1 or 3, H, W), got {tuple(x0.shape)}.")
        low, high = self.value_range
        size = (self.image_size, self.image_size)
        x = ((x0 - low) / (high - low)).expand(-1, 3, -1, -1)
        x = F.interpolate(x, size, mode="bicubic", antialias=True, align_corners=False)
        x = (x - self.mean.to(x)) / self.std.to(x)
        return x.to(next(self.clip.parameters()).dtype)

    @torch.no_grad()
    def of_texts(self, texts: Sequence[str]) -> Tensor:
        """Features (N, D) of texts."""
        if isinstance(texts, str) or not texts or not all(isinstance(text, str) and text for text in texts):
            raise ValueError(f"ClipEncoder.of_texts needs a list of texts, got {texts!r}.")
        device = next(self.clip.parameters()).device
        return self.clip.encode_text(self.tokenizer(list(texts)).to(device))  # type: ignore[no-any-return]
