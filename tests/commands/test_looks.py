"""Pictures of runs: while they train, of their samples, and of those whose data have gone."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from command_line import command, inside
from PIL import Image

from scoresde.cli import sample_main, train_main
from scoresde.commands.looks import of_each_class, shown, spread, stored_values
from scoresde.data import Column, Names, Quantized, Split, Standardized
from scoresde.pictures import picture

SMALL = ["logger=csv", "model=mlp", "model.width=8", "model.depth=1", "trainer.steps=6", "trainer.warmup=0",
         "trainer.log_every=2", "trainer.sample_every=3", "trainer.progress=false", "batch_size=16"]  # fmt: skip


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with a small run of a table."""
    folder = tmp_path_factory.mktemp("looks")
    np.save(folder / "table.npy", np.random.default_rng(0).normal(size=(60, 3)))
    with inside(folder):
        command(train_main, *SMALL, "data=array", "data.path=table.npy", "run=run")
        yield folder


def test_a_table_has_previews_and_a_loss_curve(work: Path) -> None:
    for name in ("samples/step_00000003.png", "samples/step_00000006.png", "loss.png"):
        with Image.open(work / "run" / name) as picture:
            assert picture.width > 500, name


def test_samples_have_data_beside_them_or_a_sentence(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command(sample_main, "run=run", "num_samples=20", "solver.steps=2", "out=beside")
    assert "samples alone" not in capsys.readouterr().out
    (work / "table.npy").rename(work / "elsewhere.npy")
    command(sample_main, "run=run", "num_samples=20", "solver.steps=2", "neighbours=2", "out=alone")
    said = capsys.readouterr().out
    (work / "elsewhere.npy").rename(work / "table.npy")
    assert said.count("the pictures show samples alone, as their data cannot be read: ") == 1
    assert said.count("neighbours are those among the data: none are looked for.") == 1
    with Image.open(work / "beside/samples.png") as beside, Image.open(work / "alone/samples.png") as alone:
        assert beside.width == 2 * alone.width and beside.height == alone.height


def test_names_of_columns_and_classes_are_shown() -> None:
    names = Names(columns=(Column(name="mass"), Column(name="kind", categories=("a", "b"))), classes=("x", "y"))
    codec = Standardized(mean=torch.zeros(2), std=torch.ones(2))
    split = Split(x=torch.zeros(30, 2), label=torch.arange(30) % 2)
    look = shown(codec, np.zeros((4, 2)), names=names, split=split, labels=torch.arange(4) % 2)
    assert (look.name(0), look.categories, look.class_name(1)) == ("mass", {1: ("a", "b")}, "y")
    assert look.data is not None and len(look.data) == 30
    wide = shown(codec, np.zeros((4, 2, 5)), names=names)
    assert (wide.kind, wide.names, wide.data) == ("series", None, None)


def test_conditions_are_columns_of_tables_and_written_below_images() -> None:
    names = Names(conditions=(Column(name="age"), Column(name="kind", categories=("a", "b"))))
    codec = Standardized(mean=torch.zeros(2), std=torch.ones(2))
    condition = torch.tensor([[1.5, 1.0], [20.0, 0.0]])
    split = Split(x=torch.zeros(3, 2), condition=torch.tensor([[7.0, 0.0], [8.0, 1.0], [9.0, 1.0]]))
    table = shown(codec, np.zeros((2, 2)), names=names, split=split, condition=condition)
    assert [table.name(k) for k in range(4)] == ["x0", "x1", "age", "kind"] and table.categories == {3: ("a", "b")}
    assert table.columns[:, 2].tolist() == [1.5, 20.0] and np.asarray(table.data)[:, 2].tolist() == [7.0, 8.0, 9.0]
    images = replace(split, x=torch.zeros(3, 1, 4, 4))
    seen = shown(codec, np.zeros((2, 1, 4, 4)), names=names, split=images, condition=condition)
    assert (seen.captions, seen.data_captions) == (["1.5, b", "20, a"], ["7, a", "8, b"])
    alone = picture(shown(codec, np.zeros((2, 1, 4, 4)), names=names, split=images))
    assert picture(seen).height == alone.height + 14


def test_levels_are_shown_as_bytes_whatever_their_number() -> None:
    levels = torch.tensor([0, 8, 16]).reshape(3, 1, 1, 1)
    assert stored_values(Quantized(levels=17), levels).ravel().tolist() == [0, 128, 255]
    deep = stored_values(Quantized(levels=65536), torch.tensor([0, 65535, 32768]).reshape(3, 1, 1, 1))
    assert deep.ravel().tolist() == [0, 255, 128]


def test_rows_beside_samples_are_from_everywhere_and_of_every_class() -> None:
    rows = spread(1000, 10)
    assert rows.tolist() == [*range(0, 1000, 100)]
    label = torch.zeros(1000, dtype=torch.long)
    label[501:503] = 1
    chosen = of_each_class(label, rows)
    assert (label[chosen] == 1).sum() == 2 and len(chosen.unique()) == len(chosen)
