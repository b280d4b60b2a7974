"""CLIP models as encoders: a stub with open_clip's interface, and a tiny random open_clip model where installed."""

from __future__ import annotations

import sys
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from scoresde import VPSDE, GaussianDenoiser
from scoresde.guidance import EmbeddingGuided
from scoresde.interop import ClipEncoder


class Stub(nn.Module):
    """With the two methods of open_clip's models."""

    def __init__(self) -> None:
        super().__init__()
        self.image, self.words = nn.Linear(3 * 12 * 12, 5), nn.Embedding(300, 5)

    def encode_image(self, image: Tensor) -> Tensor:
        return self.image(image.flatten(1))  # type: ignore[no-any-return]

    def encode_text(self, tokens: Tensor) -> Tensor:
        return self.words(tokens).mean(1)  # type: ignore[no-any-return]


def tokenizer(texts: list[str]) -> Tensor:
    return torch.tensor([list(text.encode().ljust(8))[:8] for text in texts])


@pytest.fixture
def encoder() -> ClipEncoder:
    torch.manual_seed(0)
    return ClipEncoder(Stub().double(), tokenizer, image_size=12, mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.4))


def test_pixels_are_what_clip_was_trained_on(encoder: ClipEncoder) -> None:
    grey = torch.full((2, 1, 8, 8), 0.6, dtype=torch.float64)  # 0.8 of the way from black to white
    seen = encoder.pixels(grey)
    assert seen.shape == (2, 3, 12, 12)
    expected = (0.8 - torch.tensor([0.5, 0.4, 0.3])) / torch.tensor([0.2, 0.3, 0.4])
    torch.testing.assert_close(seen[0, :, 5, 5], expected.double(), rtol=1e-6, atol=1e-6)


def test_guidance_through_x0_has_the_gradient_of_all_steps(encoder: ClipEncoder) -> None:
    prior, sde, t = GaussianDenoiser(VPSDE(), 0.0, 0.5), VPSDE(), torch.tensor(0.3, dtype=torch.float64)
    target = encoder.of_texts(["a three"])[0]
    guided = EmbeddingGuided(prior, encoder, target, 4.0, clean=True)
    x, way = torch.randn(2, 2, 1, 8, 8, dtype=torch.float64)

    moved = ((guided.score(x, t) - prior.score(x, t)) * way).flatten(1).sum(1)

    def cosine(x: Tensor) -> Tensor:
        return nn.functional.cosine_similarity(encoder(prior(x, t)), target[None], dim=1)

    slope = (cosine(x + 1e-5 * way) - cosine(x - 1e-5 * way)) / 2e-5
    torch.testing.assert_close(moved, 4.0 * slope, rtol=1e-5, atol=1e-7)
    assert guided.sde == sde


def test_a_tiny_random_open_clip_model(monkeypatch: pytest.MonkeyPatch) -> None:
    open_clip = pytest.importorskip("open_clip")
    vision = {"image_size": 32, "layers": 1, "width": 16, "head_width": 8, "patch_size": 8}
    text = {"context_length": 16, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1}
    model = open_clip.CLIP(embed_dim=8, vision_cfg=vision, text_cfg=text)
    encoder = ClipEncoder(model, open_clip.SimpleTokenizer(context_length=16), image_size=32)
    target = encoder.of_texts(["the digit three", "the digit four"])
    guided = EmbeddingGuided(GaussianDenoiser(VPSDE(), 0.0, 0.5), encoder, target, 10.0, clean=True)
    x = torch.randn(2, 3, 16, 16)
    with torch.no_grad():
        assert ((guided(x, torch.tensor(0.5)) - guided.denoiser(x, torch.tensor(0.5))).abs().sum() > 0).item()


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda e: e(torch.randn(2, 2, 8, 8)), r"images \(B, 1 or 3, H, W\), got \(2, 2, 8, 8\)"),
        (lambda e: e(torch.randn(2, 8)), r"got \(2, 8\)"),
        (lambda e: e.of_texts("three"), "a list of texts, got 'three'"),
        (lambda e: ClipEncoder(Stub(), tokenizer, std=(0.1, 0.2)), "std to be three numbers"),
        (lambda e: ClipEncoder(Stub(), tokenizer, image_size=0), "image_size"),
        (lambda e: ClipEncoder(Stub(), tokenizer, value_range=(1, 0)), "value_range"),
    ],
)
def test_bad_input_is_named(call: Any, words: str, encoder: ClipEncoder) -> None:
    with pytest.raises(ValueError, match=words):
        call(encoder)


def test_without_open_clip_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "open_clip", None)
    with pytest.raises(ImportError, match=r"open_clip is not installed: pip install scoresde\[clip\]"):
        ClipEncoder.open_clip("ViT-B-32")
