"""CSV and parquet tables: names, conditions, classes, and what is said of files that are not as they should be."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from scoresde.commands.examples import given_examples
from scoresde.commands.saved_samples import samples_csv
from scoresde.data import Column, Transformed, table
from scoresde.data.table_files import read_columns

N = 60
RNG = np.random.default_rng(0)
MASS, AGE = RNG.lognormal(size=N), RNG.integers(1, 90, N)
CITY = RNG.choice(["Ulm", "Bonn", "Köln, Nord"], N)
WARD = RNG.choice([2, 10, 9], N)


def write(path: Path, separator: str = ",", decimal: str = ".", encoding: str = "utf-8") -> Path:
    lines = [separator.join(["mass", "age", "city", "ward"])]
    for mass, age, city, ward in zip(MASS, AGE, CITY, WARD, strict=True):
        lines.append(separator.join([repr(float(mass)).replace(".", decimal), str(age), f'"{city}"', str(ward)]))
    path.write_bytes("\r\n".join(lines).encode(encoding))
    return path


def text(path: Path, *lines: str) -> Path:
    path.write_text("\n".join(lines), encoding="utf-8")
    return path


@pytest.mark.parametrize(
    "separator, decimal, encoding",
    [(",", ".", "utf-8"), (";", ",", "utf-8-sig"), ("\t", ".", "utf-16"), ("|", ".", "utf-8")],
)
def test_numbers_text_and_encodings_are_read(tmp_path: Path, separator: str, decimal: str, encoding: str) -> None:
    found = read_columns(write(tmp_path / "x.csv", separator, decimal, encoding))
    assert list(found) == ["mass", "age", "city", "ward"]
    np.testing.assert_array_equal(found["mass"], MASS)
    np.testing.assert_array_equal(found["age"], AGE)
    assert found["city"].tolist() == CITY.tolist()


def test_columns_conditions_and_classes_have_their_names(tmp_path: Path) -> None:
    data = table(
        write(tmp_path / "own.csv"), condition=["city", "age", "ward"], categories=["ward"], transform={"mass": "log"},
        test_fraction=0,
    )  # fmt: skip
    assert (data.name, data.shape, data.train.x.dtype, data.kind) == ("own", (1,), torch.float64, "table")
    assert isinstance(data.codec, Transformed)
    assert data.names.columns == (Column(name="mass"),)
    assert data.names.conditions == (
        Column(name="city", categories=("Bonn", "Köln, Nord", "Ulm")), Column(name="age"),
        Column(name="ward", categories=("2", "9", "10")),
    )  # fmt: skip
    order = [MASS.tolist().index(value) for value in data.train.x[:, 0].tolist()]
    assert data.train.condition is not None
    city, age, ward = data.train.condition.T.tolist()
    assert age == AGE[order].tolist() and [("2", "9", "10")[int(k)] for k in ward] == [str(w) for w in WARD[order]]
    assert [("Bonn", "Köln, Nord", "Ulm")[int(k)] for k in city] == CITY[order].tolist()

    data = table(tmp_path / "own.csv", columns=["age", "mass"], label="ward")
    assert (data.num_classes, data.names.classes, data.shape) == (3, ("2", "9", "10"), (2,))
    np.testing.assert_allclose(data.codec.decode(data.codec.encode(data.train.x)), data.train.x, rtol=1e-5)


def test_samples_are_written_with_their_names_and_scored_as_they_are(tmp_path: Path) -> None:
    node = {"path": str(write(tmp_path / "x.csv")), "condition": ["city", "age"], "label": "ward"}
    data = table(**node)  # type: ignore[arg-type]
    trained: Any = SimpleNamespace(
        names=data.names, config={"data": node, "model": {"num_classes": 3}}, codec=data.codec, shape=data.shape,
        run=SimpleNamespace(path="r"), takes_gaps=False,
    )  # fmt: skip
    content = samples_csv(data.test.x.numpy(), data.test.condition, data.test.label, trained)
    assert content is not None and content.decode().splitlines()[0] == "mass,city,age,ward"
    (tmp_path / "samples.csv").write_bytes(content)
    again = {"_target_": "scoresde.data.table", "path": str(tmp_path / "samples.csv")}
    found = given_examples(again, trained, None, [])
    assert torch.equal(found.x, data.test.x) and found.reasons == {}
    assert found.condition is not None and found.label is not None
    assert torch.equal(found.condition, data.test.condition) and torch.equal(found.label, data.test.label)

    lines = content.decode().splitlines()
    text(tmp_path / "samples.csv", *lines[:2], "nan" + lines[2][lines[2].index(",") :])
    assert given_examples(again, trained, None, []).reasons == {1: "holds NaN or infinity"}
    text(tmp_path / "samples.csv", lines[0], "1,Bon,3,2")
    with pytest.raises(ValueError, match="'Bon' in column city, row 0 .*categories Bonn, .*did you mean Bonn"):
        given_examples(again, trained, None, [])


@pytest.mark.parametrize(
    "lines, options, message",
    [
        (["a,b", "1,2", "3,red"], {}, r"text in column b \('red' in row 1, counted from 0\).*data.condition=\[b\]"),
        (["a,b", "1,2", "3,", "4,5"], {}, r"1 of 3 rows lack a value .*row 1, counted from 0, column b"),
        (["a,b", "1,2", "3"], {}, r"1 values in row 1 .*2 columns: a, b"),
        (["a,a", "1,2"], {}, "two columns called a"),
        (["a,", "1,2"], {}, "a column without a name"),
        (["a,b"], {}, "a header and no rows"),
        ([""], {}, "is empty"),
        (["a,b", "1,2", "3,4"], {"columns": ["A1"]}, "has no column A1, there is a, b"),
        (["mass,b", "1,2", "3,4"], {"condition": ["Mas"]}, "has no column Mas.*did you mean mass"),
        (["a,b", "1,2", "3,4"], {"columns": ["a"], "condition": ["a"]}, "the column a twice"),
        (["a,b", "1,2", "3,4"], {"condition": ["a"], "categories": ["b"]}, "categories=b, which is no condition"),
        (["a", "1", "2"], {"label": "a"}, "no column left for x"),
        (["a,b", "1,x", "2,"], {"condition": ["b"]}, "no category in column b, row 1"),
        (["a,b", "1,1", "2,"], {"condition": ["b"]}, r"lacks 1 values in the condition b \(first: row 1\)"),
        (["a,b", "1,1", "-2,3"], {"transform": "log"}, r"log in column a: row 1 \(counted from 0\) has -2, and 0 rows"),
        (["a,b", "1,1"], {}, "1 example is too little"),
        (["a,b", "1,1"], {"columns": "a"}, "columns to be names of columns"),
        (["a,b", "1,1"], {"separator": "semi"}, "separator to be one letter, or comma, semicolon, tab, bar"),
        (["a,b", "1,1"], {"transform": {"c": "log"}}, "no column c, which data.transform names, among a, b"),
    ],
)
def test_what_is_wrong_with_a_table_is_one_sentence(
    tmp_path: Path, lines: list[str], options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        table(text(tmp_path / "x.csv", *lines), **options)
    assert "\n" not in str(caught.value)


def test_what_is_odd_is_said(tmp_path: Path) -> None:
    rows = [f"{k},{k * k},same,7" for k in range(9)]
    with pytest.warns(UserWarning, match="column c of .* has one category, same, which tells a model nothing"):
        table(text(tmp_path / "x.csv", "a,b,c,d", *rows), columns=["a", "b"], condition=["c"])
    with pytest.warns(UserWarning, match=r"1 of 2 columns are constant in the training data \(first: d\)"):
        table(tmp_path / "x.csv", columns=["b", "d"])
    with pytest.warns(UserWarning, match="column without a name in .* holds row numbers, and is left out"):
        data = table(text(tmp_path / "x.csv", ",b", *(row[:-7] for row in rows)))
    assert data.names.columns == (Column(name="b"),)
    with pytest.warns(UserWarning, match="has no header: its columns are called 0 to 1"):
        data = table(text(tmp_path / "x.csv", *(row[:-7] for row in rows)), test_fraction=0)
    assert len(data.train) == 9


def test_bytes_that_are_no_text_are_refused(tmp_path: Path) -> None:
    (tmp_path / "x.csv").write_bytes("größe,b\n1,2\n".encode("latin-1"))
    with pytest.raises(ValueError, match=r"not text in UTF-8 \(byte 2\): save it as CSV in UTF-8"):
        table(tmp_path / "x.csv")


def test_a_second_file_is_the_test_split_with_the_same_columns_and_categories(tmp_path: Path) -> None:
    write(tmp_path / "x.csv")
    text(tmp_path / "test.csv", "ward,city,mass,age", "10,Ulm,1.5,3", "2,Bonn,2.5,4")
    data = table(tmp_path / "x.csv", tmp_path / "test.csv", condition=["city"], label="ward")
    assert data.test.x.tolist() == [[1.5, 3], [2.5, 4]]
    assert data.test.condition is not None and data.test.condition.tolist() == [[2], [0]]
    assert data.test.label is not None and data.test.label.tolist() == [2, 0]
    text(tmp_path / "test.csv", "ward,mass,age", "10,1.5,3")
    with pytest.raises(ValueError, match="test.csv has no column city"):
        table(tmp_path / "x.csv", tmp_path / "test.csv", condition=["city"])


def test_parquet_is_read_as_csv_is(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow", reason="pyarrow is not installed")
    parquet = pytest.importorskip("pyarrow.parquet", reason="pyarrow is not installed")
    columns = {"mass": MASS, "age": AGE, "city": CITY.tolist(), "ward": WARD}
    parquet.write_table(pyarrow.table(columns), tmp_path / "x.parquet")
    options: dict[str, Any] = {"condition": ["city"], "label": "ward"}
    one, other = table(tmp_path / "x.parquet", **options), table(write(tmp_path / "x.csv"), **options)
    assert torch.equal(one.train.x, other.train.x) and one.names == other.names
    parquet.write_table(pyarrow.table({**columns, "age": [None, *AGE.tolist()[1:]]}), tmp_path / "x.parquet")
    with pytest.raises(ValueError, match="1 of 60 rows lack a value .*row 0, counted from 0, column age"):
        table(tmp_path / "x.parquet", **options)
    (tmp_path / "x.parquet").write_bytes(b"PAR1 nothing PAR1")
    with pytest.raises(ValueError, match="not a readable parquet file"):
        table(tmp_path / "x.parquet")
