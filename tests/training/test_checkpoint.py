from __future__ import annotations

import errno
import os
import pickle
import resource
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from scoresde.training import CheckpointError, load_checkpoint, load_weights, save_checkpoint

STATE = {
    "format": 1,
    "step": 3,
    "model": {"w": torch.arange(6.0).reshape(2, 3), "n": torch.tensor(4)},
    "optimizer": {
        "state": {0: {"m": torch.ones(2)}},
        "groups": [{"lr": 0.1, "betas": (0.9, 0.999), "fused": None}],
    },
}


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    save_checkpoint(tmp_path / "last.pt", STATE)
    return tmp_path / "last.pt"


def test_round_trip_and_plain_torch_load(checkpoint: Path) -> None:
    for state in (load_checkpoint(checkpoint), torch.load(checkpoint, weights_only=True)):
        assert torch.equal(state["model"]["w"], STATE["model"]["w"])  # type: ignore[index]
        assert state["optimizer"]["groups"] == STATE["optimizer"]["groups"]  # type: ignore[index]
        assert state["step"] == 3
    assert [path.name for path in checkpoint.parent.iterdir()] == ["last.pt"]


def test_a_view_is_saved_without_the_tensor_behind_it(tmp_path: Path) -> None:
    save_checkpoint(tmp_path / "view.pt", {"row": torch.zeros(1000, 1000)[0]})
    assert (tmp_path / "view.pt").stat().st_size < 10_000


def test_every_flipped_bit_is_noticed(checkpoint: Path) -> None:
    content = bytearray(checkpoint.read_bytes())
    for position in range(0, len(content), 13):
        content[position] ^= 1 << (position % 8)
        checkpoint.write_bytes(content)
        with pytest.raises(CheckpointError, match=r"is (damaged|refused)"):
            load_checkpoint(checkpoint)
        content[position] ^= 1 << (position % 8)
    for position in range(len(content) - 100, len(content)):  # the archive's end and the checksum itself
        content[position] ^= 4
        checkpoint.write_bytes(content)
        with pytest.raises(CheckpointError, match="is damaged"):
            load_checkpoint(checkpoint)
        content[position] ^= 4


@pytest.mark.parametrize("fraction", [0.0, 0.3, 0.95, 0.999])
def test_a_truncated_file_is_noticed(checkpoint: Path, fraction: float) -> None:
    content = checkpoint.read_bytes()
    checkpoint.write_bytes(content[: int(fraction * len(content))])
    with pytest.raises(CheckpointError, match=r"last\.pt is damaged: it is incomplete or its checksum"):
        load_checkpoint(checkpoint)


class Payload:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "bare pickle"])
def test_a_pickle_with_code_is_refused_and_does_not_run(tmp_path: Path, legacy: bool) -> None:
    path, trace = tmp_path / "evil.pt", tmp_path / "ran"
    if legacy:
        path.write_bytes(pickle.dumps({"model": Payload(trace)}))
    else:
        torch.save({"model": Payload(trace)}, path)
    with pytest.raises(CheckpointError, match="is refused: it holds objects that could run code"):
        load_checkpoint(path)
    assert not trace.exists()


def test_missing_file_and_newer_format_and_plain_files(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no checkpoint at .*nothing\.pt: train first"):
        load_checkpoint(tmp_path / "nothing.pt")
    save_checkpoint(tmp_path / "new.pt", {"format": 2})
    with pytest.raises(CheckpointError, match=r"has format 2.*update scoresde"):
        load_checkpoint(tmp_path / "new.pt")
    (tmp_path / "text.pt").write_text("hello")
    torch.save({"format": 1}, tmp_path / "unsigned.pt")
    for name in ("text.pt", "unsigned.pt"):
        with pytest.raises(CheckpointError, match="is damaged"):
            load_checkpoint(tmp_path / name)


@pytest.mark.parametrize(
    "state, key",
    [
        ({"optimizer": {"groups": [{"lr": np.float64(0.1)}]}}, r"float64 at 'optimizer\.groups\[0\]\.lr'"),
        ({"path": Path("x")}, "Path at 'path'"),
        ({"model": {"f": print}}, r"builtin_function_or_method at 'model\.f'"),
        ({"model": {(1, 2): 0}}, r"type str or int, got \(1, 2\) under 'model'"),
    ],
)
def test_only_tensors_and_plain_values_are_saved(tmp_path: Path, state: dict[str, Any], key: str) -> None:
    with pytest.raises(TypeError, match=key):
        save_checkpoint(tmp_path / "last.pt", state)
    assert not list(tmp_path.iterdir())


def test_full_disk_leaves_the_file_before_untouched(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = checkpoint.read_bytes()

    def full(fd: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(CheckpointError, match=r"cannot save .*last\.pt: No space left on device; earlier files"):
        save_checkpoint(checkpoint, {"step": 4})
    assert checkpoint.read_bytes() == before
    assert [path.name for path in checkpoint.parent.iterdir()] == ["last.pt"]


def test_a_write_cut_short_by_the_system_leaves_nothing(checkpoint: Path) -> None:
    before = checkpoint.read_bytes()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, hard))  # Python ignores SIGXFSZ: writing fails with EFBIG
    try:
        with pytest.raises(CheckpointError, match=r"cannot save .*File too large"):
            save_checkpoint(checkpoint, {"w": torch.zeros(100_000)})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert checkpoint.read_bytes() == before
    assert [path.name for path in checkpoint.parent.iterdir()] == ["last.pt"]


def test_a_missing_folder_gives_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"cannot save .*No such file or directory"):
        save_checkpoint(tmp_path / "gone" / "last.pt", {"step": 1})


def test_load_weights_takes_the_average_or_the_latest_and_names_a_mismatch() -> None:
    state = {
        "model": {"weight": torch.full((1, 2), 1.0), "bias": torch.ones(1)},
        "ema": {"params": {"weight": torch.full((1, 2), 2.0)}, "buffers": {}},
    }
    module = nn.Linear(2, 1)
    load_weights(module, state)
    assert module.weight.tolist() == [[2.0, 2.0]]
    assert module.bias.tolist() == [1.0]
    load_weights(module, state, ema=False)
    assert module.weight.tolist() == [[1.0, 1.0]]
    with pytest.raises(CheckpointError, match=r"another model: 'weight' is \(1, 2\) there and \(1, 3\) here"):
        load_weights(nn.Linear(3, 1), state)
    with pytest.raises(CheckpointError, match=r"'bias' is \(1,\) there and nothing here"):
        load_weights(nn.Linear(2, 1, bias=False), state)
    with pytest.raises(CheckpointError, match="holds step, but not the weights"):
        load_weights(module, {"step": 1})
