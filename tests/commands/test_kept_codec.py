"""A run goes on in the scaling that it began with, whatever a later version would fit."""

from pathlib import Path

import torch

from scoresde.commands.origin import CODEC_FILE, Origin, with_codec_of
from scoresde.data import Dataset, Split, Standardized, codec_state
from scoresde.data.fingerprint import fingerprint
from scoresde.training import save_checkpoint


def test_the_codec_of_an_earlier_version_is_kept(tmp_path: Path) -> None:
    x = torch.randn(30, 2, 5, generator=torch.Generator().manual_seed(0))
    split = Split(x=x)
    data = Dataset(name="own", train=split, test=split, codec=Standardized.fit(x))
    origin = Origin(config={}, data=fingerprint(data), codec=codec_state(data.codec), shape=[2, 5])
    assert with_codec_of(tmp_path, data, origin) == (data, origin)

    earlier = codec_state(Standardized(mean=x.mean(), std=x.std(), shape=(2, 5)))
    for kept in (origin.data, None):  # the first versions kept no fingerprint
        save_checkpoint(tmp_path / CODEC_FILE, {"codec": earlier, "shape": [2, 5], "data": kept})
        found, its = with_codec_of(tmp_path, data, origin)
        assert isinstance(found.codec, Standardized) and found.codec.std.shape == ()
        assert its.codec["std"] == x.std() and its.data == origin.data

    for other in ({"shape": [10]}, {"data": {}}, {"codec": {"codec": "standardized"}}):
        save_checkpoint(tmp_path / CODEC_FILE, {"codec": earlier, "shape": [2, 5], "data": origin.data, **other})
        assert with_codec_of(tmp_path, data, origin) == (data, origin)
