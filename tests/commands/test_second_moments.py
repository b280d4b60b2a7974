"""Where a network's Wiener filter has its numbers from."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from command_line import command, inside
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

import scoresde
from scoresde.cli import config_dir, train_main
from scoresde.commands.build import ConfigError
from scoresde.commands.fill import fill
from scoresde.commands.load import load_run
from scoresde.commands.second_moments import with_filter
from scoresde.commands.suit import suit
from scoresde.likelihood import log_prob


def test_null_is_the_filter_of_the_parameterization() -> None:
    targets = {"scoresde.EDM": "edm", "scoresde.parameterization.Epsilon": "epsilon", "scoresde.VPrediction": None}
    for target, word in targets.items():
        kept = {} if word is None else {"wiener": word, "data_scale": 0.5}
        assert with_filter({"width": 3, "wiener": None, "data_scale": 0.5}, {"_target_": target}) == {"width": 3} | kept
        assert with_filter({"width": 3, "wiener": "none", "data_scale": 0.5}, {"_target_": target}) == {"width": 3}
    unet = {"fourier_features": [], "data_scale": 0.5}
    assert with_filter({**unet, "wiener": "none"}, {"_target_": "scoresde.EDM"}) == unet == with_filter(unet, {})
    with pytest.raises(ConfigError, match="model.wiener=edm does not suit parameterization=vprediction, which has no"):
        with_filter({"wiener": "edm"}, {"_target_": "scoresde.VPrediction"})
    with pytest.raises(ConfigError, match="=data does not suit parameterization=edm, which has model.wiener=edm"):
        with_filter({"wiener": "data"}, {"_target_": "scoresde.EDM"})


def test_a_run_begins_with_the_best_linear_denoiser_of_its_data(tmp_path: Path) -> None:
    """An unlearned model's likelihood is that of the Gaussian with the data's moments, in the data's units."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((500, 3)) @ rng.standard_normal((3, 3)) * (1e-3, 1.0, 1e4) + (0.0, 5.0, 1e4)
    np.save(tmp_path / "x.npy", x)
    tiny = ("model.width=8", "model.depth=1", "trainer.steps=1", "optimizer.lr=1.0e-9", "logger=csv")
    with inside(tmp_path):
        command(train_main, "experiment=array", "data.path=x.npy", "run=r", *tiny)
    model, train = load_run(tmp_path / "r"), x[:5]
    codec = model.codec
    found = log_prob(model.denoiser, codec.encode(torch.tensor(train)), divergence="exact").log_prob - codec.log_det
    law = torch.distributions.MultivariateNormal(torch.tensor(x.mean(0)), torch.tensor(np.cov(x.T)))
    assert (found - law.log_prob(torch.tensor(train))).abs().max() < 0.25  # a tenth of the examples is left out


@pytest.mark.parametrize("shape", [(5,), (2, 16), (1, 8, 8, 8), (1, 8, 8)])
def test_model_auto_has_the_filter_for_values_of_every_shape(shape: tuple[int, ...], tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.random.default_rng(0).standard_normal((20, *shape)).astype("float32"))
    with initialize_config_dir(str(config_dir()), version_base="1.3"):
        given = [["data=array"], ["data=array", "model.mlp.wiener=none", "model.unet.wiener=none"]]
        configs = [compose("train", [*more, "model=auto", f"data.path={tmp_path}/x.npy"]) for more in given]
    data = scoresde.data.array(tmp_path / "x.npy")
    own, without = (fill(suit(OmegaConf.to_container(c), data), data, labelled=False)["model"] for c in configs)  # type: ignore[arg-type]
    assert own["wiener"] == "edm"
    assert "wiener" not in without


def test_model_auto_has_none_for_pictures() -> None:
    with initialize_config_dir(str(config_dir()), version_base="1.3"):
        config = OmegaConf.to_container(compose("train", ["data=digits", "model=auto"]))
    data = scoresde.data.digits()
    assert "wiener" not in fill(suit(config, data), data, labelled=False)["model"]  # type: ignore[arg-type]
