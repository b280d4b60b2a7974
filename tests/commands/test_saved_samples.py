"""samples.npz holds the data's own values, type and layout, and its own run takes it back."""

from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any, ClassVar

import numpy as np
import pytest
import torch

from scoresde.commands.examples import given_examples
from scoresde.commands.saved_samples import sample_values
from scoresde.data import Quantized, Standardized
from scoresde.data.columns import NO_NAMES

ARRAY = {"_target_": "scoresde.data.array", "path": None, "test_path": None, "label_key": "y", "levels": None}


@dataclass
class Trained:
    """What of a run these functions read."""

    codec: Any
    shape: tuple[int, ...]
    config: dict[str, Any]
    run: ClassVar = SimpleNamespace(path="r")
    names: ClassVar = NO_NAMES


@pytest.mark.parametrize("levels", [17, 65536])
@pytest.mark.parametrize("data", ["array", "last", "folder"])
@pytest.mark.parametrize("shape", [(1, 4, 6), (2, 4, 6), (3, 4, 6), (2, 3, 4, 5), (6,)], ids=str)
def test_levels_come_back_and_are_scored_by_their_own_run(
    levels: int, data: str, shape: tuple[int, ...], tmp_path: Any
) -> None:
    node = {**ARRAY, "channels_last": data == "last"}
    node = node if data != "folder" else {"_target_": "scoresde.data.image_folder"}
    trained: Any = Trained(Quantized(levels=levels), shape, {"data": node, "model": {}})
    k = torch.randint(levels, (30, *shape), generator=torch.Generator().manual_seed(0))
    k[0], k[1] = 0, levels - 1
    x = sample_values(trained.codec.encode(k), trained)
    assert x.dtype == (np.uint8 if levels <= 256 else np.uint16) and (x.min(), x.max()) == (0, levels - 1)

    np.savez(tmp_path / "samples.npz", x=x)
    again = {**ARRAY, "path": str(tmp_path / "samples.npz"), "channels_last": False}
    assert torch.equal(given_examples(again, trained, None, []).x, k)


def test_continuous_values_keep_their_precision() -> None:
    x = torch.randn(9, 3, 4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) + 1e6
    trained: Any = Trained(Standardized.fit(x), (3, 4, 4), {"data": {**ARRAY, "channels_last": True}})
    values = sample_values(trained.codec.encode(x), trained)
    assert values.dtype == np.float64
    np.testing.assert_allclose(values, x.movedim(1, -1).numpy(), rtol=1e-12)
