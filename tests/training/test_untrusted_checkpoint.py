"""A checkpoint with a right checksum whose content is made up is refused in one sentence."""

from __future__ import annotations

import hashlib
import io
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from scoresde.training import CheckpointError, load_checkpoint, load_weights
from scoresde.training.optimizer_state import check_optimizer_state


def signed(path: Path, archive: bytes) -> Path:
    """The archive with the comment that its checksum makes."""
    content = archive[:-2] + struct.pack("<H", 71)
    path.write_bytes(content + b"sha256:" + hashlib.sha256(content).hexdigest().encode())
    return path


def saved(value: Any) -> bytes:
    buffer = io.BytesIO()
    torch.save(value, buffer)
    return buffer.getvalue()


def repacked(archive: bytes, change: Callable[[str, bytes], bytes], compression: int = zipfile.ZIP_STORED) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(archive)) as before, zipfile.ZipFile(buffer, "w", compression) as after:
        for name in before.namelist():
            after.writestr(name, change(name, before.read(name)))
    return buffer.getvalue()


class Asks:
    """Reduces to a call of a function."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.call = function, arguments

    def __reduce__(self) -> Any:
        return self.call


@pytest.mark.parametrize(
    "value",
    [
        torch.eye(3).to_sparse(), nn.Linear(2, 2),
        nn.Parameter(torch.ones(2)), torch.zeros(2, device="meta"), Asks(bytearray, 10**11), Asks(print, "x"),
        Asks(torch.zeros, 10**11), Asks(__import__, "antigravity"), {1, 2}, torch.float32, torch.Size([3]),
    ],
    ids=lambda value: type(value).__name__,
)  # fmt: skip
def test_nothing_but_plain_tensors_and_values_is_made(tmp_path: Path, value: Any) -> None:
    path = signed(tmp_path / "a.pt", saved({"model": value}))
    with pytest.raises(CheckpointError, match="is refused: it holds objects that could run code"):
        load_checkpoint(path)


def test_members_are_no_larger_than_the_file_and_as_large_as_they_say(tmp_path: Path) -> None:
    def replaced(tensor: Tensor, old: bytes, new: bytes) -> bytes:
        archive = saved({"w": tensor})
        assert old in archive
        return repacked(archive, lambda name, content: content.replace(old, new) if name.endswith("pkl") else content)

    zeros = saved({"w": torch.zeros(1000, 1000)})
    wrong = {
        "deflated": repacked(zeros, lambda name, content: content, zipfile.ZIP_DEFLATED),
        "short": repacked(zeros, lambda name, content: content[:100] if name.endswith("data/0") else content),
        "expanded": saved({"w": torch.zeros(1).expand(10**12)}),
        "larger": replaced(torch.zeros(9), b"K\x09\x85", b"K\x0a\x85"),
        "negative": replaced(torch.zeros(9), b"K\x09\x85", b"J\xff\xff\xff\xff\x85"),
        "outside": replaced(torch.zeros(9), b"QK\x00K\x09", b"QK\x01K\x09"),
        "storage": replaced(torch.zeros(9), b"cpuq\x06K\x09", b"cpuq\x06K\x08"),
        "memo": replaced(torch.zeros(9), b"}q\x00X", b"}r\xff\xff\xff\x7fX"),
    }
    for name, archive in wrong.items():
        with pytest.raises(CheckpointError, match="is damaged"):
            load_checkpoint(signed(tmp_path / f"{name}.pt", archive))


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (torch.tensor([1.0, torch.nan]), "'bias' with NaN or infinity"),
        (torch.tensor([1.0, torch.inf]), "'bias' with NaN or infinity"),
        (torch.ones(2, dtype=torch.int64), "'bias' as torch.int64, where torch.float32 is needed"),
        (torch.ones(2, dtype=torch.bool), "'bias' as torch.bool"),
        (torch.ones(2, dtype=torch.complex64), "'bias' as torch.complex64"),
        (torch.ones(3), r"'bias' is \(3,\) there and \(2,\) here"),
        (3.0, "'bias' is nothing there"),
        (None, "'bias' is nothing there"),
    ],
    ids=str,
)
def test_weights_are_finite_and_of_their_kind(value: Any, message: str) -> None:
    state = {"model": {**nn.Linear(2, 2).state_dict(), "bias": value}, "ema": {"params": {}, "buffers": {}}}
    for ema in (True, False):
        with pytest.raises(CheckpointError, match=message):
            load_weights(nn.Linear(2, 2), state, ema=ema)


def test_wider_weights_are_taken() -> None:
    module = nn.Linear(2, 2)
    load_weights(module, {"model": {k: v.double() for k, v in module.state_dict().items()}}, ema=False)
    assert module.weight.dtype == torch.float32


@pytest.mark.parametrize("ema", [None, {}, {"params": None, "buffers": {}}, {"params": {}}, 3], ids=str)
def test_weights_that_are_none_get_a_sentence(ema: Any) -> None:
    with pytest.raises(CheckpointError, match="checkpoint"):
        load_weights(nn.Linear(2, 2), {"model": nn.Linear(2, 2).state_dict(), "ema": ema})


def stepped(kind: type[torch.optim.Optimizer], **options: Any) -> tuple[torch.optim.Optimizer, dict[str, Any]]:
    module = nn.Linear(3, 2)
    optimizer = kind(module.parameters(), **options)
    module(torch.ones(3)).sum().backward()
    optimizer.step()
    return optimizer, optimizer.state_dict()


def with_moment(state: dict[str, Any], name: str, value: Any) -> dict[str, Any]:
    return {**state, "state": {**state["state"], 0: {**state["state"][0], name: value}}}


@pytest.mark.parametrize(
    "kind", ["Adam", "AdamW", "SGD", "RMSprop", "Adagrad", "NAdam", "RAdam", "Adamax", "Adadelta", "Rprop", "ASGD"]
)
def test_what_an_optimizer_saves_is_taken_back(kind: str) -> None:
    optimizer, state = stepped(getattr(torch.optim, kind), **({"momentum": 0.9} if kind == "SGD" else {}))
    check_optimizer_state(optimizer, state)
    state["param_groups"][0]["lr"] = 0.123
    check_optimizer_state(optimizer, state)


@pytest.mark.parametrize(
    ("name", "value"),
    [("exp_avg", torch.zeros(2)), ("exp_avg", torch.zeros(())), ("exp_avg_sq", torch.zeros(3, 2)),
     ("exp_avg", torch.zeros(2, 3, dtype=torch.int32)), ("exp_avg", torch.zeros(2, 3, dtype=torch.complex64)),
     ("exp_avg", torch.full((2, 3), torch.nan)), ("step", torch.ones(2)), ("step", torch.tensor(torch.inf)),
     ("exp_avg", [0.0] * 6), ("exp_avg", 3), ("exp_avg_sq", None), ("max_exp_avg_sq", torch.zeros(1)),
     ("more", "text")],
    ids=str,
)  # fmt: skip
def test_moments_have_the_shapes_of_parameters(name: str, value: Tensor) -> None:
    optimizer, state = stepped(torch.optim.AdamW, fused=True)
    with pytest.raises(ValueError, match=f"its optimizer has .*{name}|its optimizer has a "):
        check_optimizer_state(optimizer, with_moment(state, name, value))


def test_an_optimizer_of_something_else_is_refused() -> None:
    optimizer, state = stepped(torch.optim.AdamW)
    group = state["param_groups"][0]
    wrong: Any
    for wrong in (
        None, {}, {"state": {}, "param_groups": []}, {**state, "state": {7: state["state"][0]}},
        {**state, "state": {"0": state["state"][0]}}, {**state, "state": {0: {"exp_avg": torch.zeros(2, 3)}}},
        *({**state, "param_groups": [{**group, key: value}]} for key, value in {
            "params": [0], "lr": "abc", "betas": 0.9, "eps": float("nan"), "amsgrad": 3, "weight_decay": [1]}.items()),
    ):  # fmt: skip
        with pytest.raises(ValueError, match="its optimizer"):
            check_optimizer_state(optimizer, wrong)
