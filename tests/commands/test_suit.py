"""`model=auto`: which network for which data, device and time."""

from __future__ import annotations

import itertools
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from command_line import command
from torch.utils.flop_counter import FlopCounterMode

from scoresde import MLP, NCSNpp
from scoresde.cli import config_dir, train_main
from scoresde.commands import AutoModel
from scoresde.commands.build import ConfigError
from scoresde.commands.cost import PASSES, Cost, mlp_cost, unet_cost
from scoresde.commands.suit import AUTO, Choice, Means, suit
from scoresde.data import digits

UNET, PERCEPTRON = (yaml.safe_load((config_dir() / "model" / f"{name}.yaml").read_text()) for name in ("ncsnpp", "mlp"))
SHAPES = [(1, 8, 8), (1, 28, 28), (3, 32, 32), (3, 64, 64), (3, 128, 128), (1, 31, 31), (1, 16, 32), (3, 128),
          (1, 16, 16, 16), (5,), (256,)]  # fmt: skip


def picked(shape: Sequence[int], minutes: float = 10, device: str = "cpu", n: int = 5000, **fixed: Any) -> Choice:
    return AutoModel(**fixed)(shape, Means(minutes, device, n), UNET, PERCEPTRON)


def counted(net: torch.nn.Module, shape: Sequence[int]) -> Cost:
    """Parameters and operations of a network as PyTorch counts them."""
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        net(torch.zeros(1, *shape), torch.zeros(1))
    trained = sum(p.numel() for p in net.parameters() if p.requires_grad)
    return Cost(trained, PASSES * counter.get_total_flops())


@pytest.mark.parametrize(
    ("shape", "mults", "blocks", "patch", "attends"),
    [((1, 8, 8), (1, 2), 2, 1, (False, False)), ((3, 9, 14), (1, 2, 2), 1, 1, (False, False, True)),
     ((3, 14, 14), (1, 2), 1, 2, (True, False)), ((2, 30), (1, 3), 2, 1, (False, True)),
     ((1, 5, 6, 7), (1, 2), 1, 1, (False, False))],
    ids=str,
)  # fmt: skip
def test_cost_of_a_unet_is_what_pytorch_counts(
    shape: tuple[int, ...], mults: tuple[int, ...], blocks: int, patch: int, attends: tuple[bool, ...]
) -> None:
    sizes = list(shape[1:])
    longest = [-(-max(sizes) // (patch * 2**stage)) for stage in range(len(mults))]
    options: dict[str, Any] = {"width": 8, "channel_mults": mults, "num_res_blocks": blocks, "patch": patch}
    at = [size for size, attending in zip(longest, attends, strict=True) if attending]
    plain: dict[str, Any] = {"fir": False, "embedding": "fourier"}
    net = NCSNpp(channels=shape[0], image_size=sizes, attention_resolutions=at, **plain, **options)
    assert unet_cost(shape[0], sizes, attends=attends, **options) == counted(net, shape)


def test_cost_of_an_mlp_is_what_pytorch_counts() -> None:
    assert mlp_cost(5, width=32, depth=3) == counted(MLP(shape=(5,), width=32, depth=3), (5,))


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("device", ["cpu", "gpu"])
def test_networks_grow_with_time_and_examples_within_their_limits(shape: tuple[int, ...], device: str) -> None:
    growing = [[picked(shape, minutes, device).cost for minutes in (1, 10, 100, 1000)],
               [picked(shape, 600, device, n).cost for n in (100, 300, 3000, 60_000)]]  # fmt: skip
    for costs in growing:
        for less, more in itertools.pairwise(costs):
            assert less.operations <= more.operations
            assert less.parameters <= 1.01 * more.parameters
    for n, cost in zip((100, 300, 3000, 60_000), growing[1], strict=True):
        assert Means(600, device, n).allow(cost) or cost == picked(shape, 1e-3, device, n).cost


@pytest.mark.parametrize("size", [32, 64, 128])
def test_three_hundred_photos_get_a_network_of_ten_minutes(size: int) -> None:
    choice = picked((3, size, size), n=300)
    assert choice.cost.parameters < 1.2e6
    assert Means(10, "cpu", 300).seen(choice.cost) > (30_000 if size < 128 else 10_000), "passes: at least 100, or 30"
    assert choice.node["_target_"] == "scoresde.NCSNpp"
    assert picked((3, size, size), 60, "gpu", 50_000).cost.parameters > 3 * choice.cost.parameters


@pytest.mark.parametrize("entries", [2, 5, 100, 256, 700])
def test_the_mlp_of_vectors_is_wider_than_their_entries(entries: int) -> None:
    assert picked((entries,), n=2000).node["width"] >= max(128, 2 * entries)


@pytest.mark.parametrize(
    ("shape", "fixed", "words"),
    [((5,), {"channel_mults": [1, 2]}, r"model.channel_mults=\[1, 2\] has no use: model=auto picks MLP for .* \(5,\)"),
     ((1, 8, 8), {"depth": 3}, r"model.depth=3 has no use: model=auto picks NCSNpp for examples of shape \(1, 8, 8\)")],
)  # fmt: skip
def test_what_the_network_does_not_have_is_refused(shape: tuple[int, ...], fixed: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        picked(shape, **fixed)


def test_networks_inside_are_left_to_the_choice() -> None:
    config = {"model": {"_target_": AUTO, "unet": UNET, "mlp": PERCEPTRON | {"width": 64}}, "device": "cpu"}
    with pytest.raises(ConfigError, match=r"model.mlp.width=64 is what model=auto chooses: give model.width\."):
        suit(config, digits())
    config["model"] |= {"unet": UNET | {"fir": True}, "mlp": PERCEPTRON}
    assert suit({"batch_size": 4, **config}, digits())["model"]["fir"] is True


def test_what_is_fixed_stays() -> None:
    fixed = {"width": 20, "channel_mults": [1, 3], "num_res_blocks": 3, "attention_resolutions": [14], "dropout": 0.2}
    node = picked((1, 28, 28), **fixed).node
    assert {key: node[key] for key in fixed} == fixed
    assert picked((9,), width=40, depth=2).node == PERCEPTRON | {"width": 40, "depth": 2}


def test_the_choice_is_a_plain_network_in_the_run_which_the_same_command_finds_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """31x31 is no multiple of two, 12x32 not square; the choice is the network that model=ncsnpp would be told."""
    monkeypatch.chdir(tmp_path)
    rng, options = np.random.default_rng(0), ["logger=csv", "trainer.progress=false", "trainer.sample_every=null"]
    for height, width in ((31, 31), (12, 32)):
        np.save("x.npy", rng.integers(0, 256, (12, 1, height, width)).astype("u1"))
        given = ["data=array", "data.path=x.npy", "data.levels=256", "batch_size=2", "model.width=4", *options]
        command(train_main, *given, "trainer.steps=1")
        said = capsys.readouterr().out
        command(train_main, *given, "trainer.steps=2")
        assert "going on from step 1" in capsys.readouterr().out
    assert re.search(
        r"model=auto: NCSNpp, width 4, stages 1 2 2 2, attention at 4: 0.0\d+ M parameters, about 0.18 ", said
    )
    assert len(list(Path("runs").iterdir())) == 2
    for run in Path("runs").iterdir():
        model = yaml.safe_load((run / "config.yaml").read_text())["model"]
        assert model["_target_"] == "scoresde.NCSNpp"
        assert "unet" not in model
    command(train_main, "experiment=toy", "data.size=40", "batch_size=4", "model=auto", "trainer.steps=1", *options)
    assert "model=auto: MLP, width 128, depth 4: 0.3 M parameters, about 0.1 passes over 40 rows in 1 step" in (
        capsys.readouterr().out
    )


def test_digits_have_the_network_that_they_had(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    options = ["logger=csv", "trainer.progress=false", "trainer.sample_every=null", "trainer.steps=1", "batch_size=2"]
    command(train_main, "run=auto", *options)
    command(train_main, "run=named", "model=ncsnpp", *options)
    assert Path("auto/config.yaml").read_text() == Path("named/config.yaml").read_text()


def test_a_budget_that_cannot_give_samples_says_so_before_it_starts(capsys: pytest.CaptureFixture[str]) -> None:
    config = {"model": {"_target_": AUTO, "unet": UNET, "mlp": PERCEPTRON}, "device": "cpu", "batch_size": 4}
    suit({**config, "budget": "6s", "trainer": {"minutes": 0.1, "steps": None}}, digits())
    assert re.search(
        r"in 6 s on cpu\nwarning: 6 s on cpu are about [\d,]+ examples of .* give about 1 min", capsys.readouterr().out
    )
    suit({**config, "budget": "10min"}, digits())
    assert "warning" not in capsys.readouterr().out
