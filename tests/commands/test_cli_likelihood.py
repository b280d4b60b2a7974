"""Likelihoods from the command line: tables that grow and resume, files of the user's, and one sentence per mistake."""

import csv
import io
import json
import math
import re
import sys
import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from command_line import command, inside

from scoresde.cli import sample_main, train_main
from scoresde.commands import likelihood as likelihood_command
from scoresde.commands.build import ConfigError, build_as
from scoresde.commands.flow_likelihood import FlowLikelihood
from scoresde.commands.interfaces import Likelihood, Scorer, Scores, StoredBatch
from scoresde.commands.likelihood_words import Unit, print_summary
from scoresde.commands.load import load_run
from scoresde.commands.tables import GrowingTable
from scoresde.data import digits
from scoresde.likelihood import Cells, DiscretizedGaussian, log_prob
from scoresde.likelihood.elbo import elbo
from scoresde.noise import stream_seed
from scoresde.training import InUse

TINY = ["logger=csv", "trainer.steps=4", "trainer.precision=float32", "batch_size=16"]
SMALL = ["num_samples=0", "out=o"]
LOOSE = ["likelihood.rtol=0.1", "likelihood.atol=0.1"]
MINE = ["data=array", "data.path=my.npy"]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with two small runs: digits, and points on the plane."""
    folder = tmp_path_factory.mktemp("work")
    with inside(folder):
        command(train_main, *TINY, "model.width=8", "model.num_res_blocks=1", "run=runs/digits")
        command(
            train_main, *TINY, "experiment=toy", "trainer.steps=4", "data.size=60", "model.width=16", "run=runs/toy"
        )
    return folder


def score(run: str, *options: str) -> list[dict[str, str]]:
    """The rows of o/likelihood.csv after a command."""
    command(sample_main, f"run=runs/{run}", *SMALL, *options)
    return table(Path("o/likelihood.csv"))


def table(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def column(rows: list[dict[str, str]], name: str) -> np.ndarray[Any, Any]:
    return np.array([float(row[name] or "nan") for row in rows])


def metrics() -> dict[str, Any]:
    return dict(json.loads(Path("o/metrics.json").read_text()))


def sentence(*arguments: str) -> str:
    with pytest.raises(SystemExit) as stopped:
        command(sample_main, *arguments)
    assert isinstance(stopped.value.code, str) and "\n" not in stopped.value.code
    return stopped.value.code


def around_scores(monkeypatch: pytest.MonkeyPatch, change: Callable[[Scorer, StoredBatch], Scores]) -> None:
    """Let `change` answer for the scores of the probability flow."""
    prepare = FlowLikelihood.prepare
    monkeypatch.setattr(FlowLikelihood, "prepare", lambda *arguments: partial(change, prepare(*arguments)))


def test_exact_values_are_those_of_python_in_the_data_s_own_units(work: Path) -> None:
    rows = score("toy", "likelihood=exact", "likelihood.num_examples=4", "likelihood.rtol=1e-4", "likelihood.atol=1e-4")

    trained = load_run("runs/toy")
    data = likelihood_command.own_examples(trained, "test", 0)
    index = [int(row["index"]) for row in rows]
    assert index == data.index[:4].tolist() and list(rows[0]) == [
        "index", "label", "nats", "std_error", "solver_error", "draws", "nfe", "status", "check"
    ]  # fmt: skip
    x = trained.codec.encode(data.x[:4])
    result = log_prob(trained.model, x, divergence="exact", rtol=1e-4, atol=1e-4)  # type: ignore[arg-type]
    np.testing.assert_allclose(column(rows, "nats"), result.log_prob.double() - trained.codec.log_det, atol=1e-4)  # type: ignore[union-attr]
    assert column(rows, "std_error").tolist() == [0, 0, 0, 0] and metrics()["log_prob_nats"] == pytest.approx(
        column(rows, "nats").mean()
    )


def test_bits_per_dim_are_of_the_levels(work: Path) -> None:
    rows = score("digits", "likelihood=hutchinson", "likelihood.num_examples=5", "likelihood.repeat=1", *LOOSE)
    nats, bits = column(rows, "nats"), column(rows, "bits_per_dim")
    np.testing.assert_allclose(bits, -nats / (64 * math.log(2)))
    assert (bits > 0).all() and (bits < 20).all()
    found = metrics()
    assert found["bits_per_dim"] == pytest.approx(bits.mean())
    assert found["bits_per_dim_std_error"] == pytest.approx(bits.std(ddof=1) / math.sqrt(5))
    own = np.sqrt(np.square(column(rows, "std_error")).sum()) / 5 / (64 * math.log(2))
    assert found["bits_per_dim_estimator_error"] == pytest.approx(own)


def test_examples_with_one_draw_have_the_error_of_one(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = score("digits", "likelihood=hutchinson", "likelihood.num_examples=12", "likelihood.repeat=0.4", *LOOSE)
    errors, draws = column(rows, "std_error"), column(rows, "draws")
    assert set(draws) == {1, 2} and np.array_equal(np.isnan(errors), draws == 1)
    per_draw = 2 * np.square(errors[draws == 2]).mean()
    expected = math.sqrt(np.square(errors[draws == 2]).sum() + per_draw * (draws == 1).sum()) / 12 / (64 * math.log(2))
    assert metrics()["bits_per_dim_estimator_error"] == pytest.approx(expected)
    assert "likelihood_draws" not in metrics()
    said = capsys.readouterr().out
    assert f"the estimator's part of it: ± {expected:.4f}" in said and "not the model's own error" in said

    score("digits", "likelihood=hutchinson", "likelihood.num_examples=3", "likelihood.repeat=0", *LOOSE)
    assert metrics()["bits_per_dim_estimator_error"] is None
    assert "the estimator's part of it: unknown" in capsys.readouterr().out


def test_a_value_depends_on_neither_batch_nor_resumption(work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    options = ["likelihood=hutchinson", "likelihood.num_examples=7", "likelihood.repeat=0.4", *LOOSE]
    whole = score("digits", *options, "likelihood.batch_size=7")
    assert {row["std_error"] == "" for row in whole} == {True, False}
    Path("o/likelihood.csv").unlink()

    calls = []

    def stopping(score: Scorer, batch: StoredBatch) -> Scores:
        calls.append(len(batch.seeds))
        if len(calls) == 3:
            raise KeyboardInterrupt
        return score(batch)

    around_scores(monkeypatch, stopping)
    again = [*options, "likelihood.batch_size=2"]
    with pytest.raises(SystemExit) as stopped:
        command(sample_main, "run=runs/digits", *SMALL, *again)
    assert stopped.value.code == 130 and len(table(Path("o/likelihood.csv"))) == 4
    text = Path("o/likelihood.csv").read_text()
    Path("o/likelihood.csv").write_text(text[:-9])  # a line that a power cut left unfinished
    parts = score("digits", *again)

    assert calls[3:] == [2, 2]
    assert [row["index"] for row in parts] == [row["index"] for row in whole]
    np.testing.assert_allclose(column(parts, "nats"), column(whole, "nats"), atol=2e-3)
    np.testing.assert_allclose(column(parts, "std_error"), column(whole, "std_error"), atol=2e-3)
    assert column(parts, "nfe").tolist() == column(whole, "nfe").tolist()


def test_a_bound_goes_on_with_whole_batches_and_more_examples(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["likelihood=elbo", "likelihood.samples=4", "likelihood.batch_size=3"]
    whole = score("digits", *options, "likelihood.num_examples=8")
    whole_text = Path("o/likelihood.csv").read_text()
    Path("o/likelihood.csv").unlink()
    score("digits", *options, "likelihood.num_examples=4")
    capsys.readouterr()
    score("digits", *options, "likelihood.num_examples=8")
    assert "has 3 of 8 rows already" in capsys.readouterr().out
    assert Path("o/likelihood.csv").read_text() == whole_text
    terms = column(whole, "prior") + column(whole, "diffusion") + column(whole, "reconstruction")
    np.testing.assert_allclose(terms, -column(whole, "nats"), rtol=1e-5)


def test_another_evaluation_is_set_aside_and_replaced_on_request(work: Path) -> None:
    options = ["likelihood=elbo", "likelihood.samples=2", "likelihood.num_examples=3"]
    score("digits", *options)
    first = Path("o/likelihood.csv").read_bytes()
    score("digits", *options, "seed=1")
    assert Path("o/likelihood-1.csv").read_bytes() == first != Path("o/likelihood.csv").read_bytes()
    assert json.loads(Path("o/likelihood-1.json").read_text())["seed"] == 0
    score("digits", *options, "likelihood.resume=false")
    assert Path("o/likelihood.csv").read_bytes() == first and not Path("o/likelihood-2.csv").exists()
    before = Path("o/likelihood.csv").stat().st_mtime_ns
    score("digits", *options)
    assert Path("o/likelihood.csv").stat().st_mtime_ns == before
    assert "form dsm" in sentence("run=runs/digits", *SMALL, *options, "likelihood.form=best")
    assert Path("o/likelihood.csv").read_bytes() == first
    score("digits", *options, "likelihood.csv=o/other.csv", "seed=1")
    assert len(table(Path("o/other.csv"))) == 3


def test_bounds_of_levels_have_a_decoder_over_them(work: Path) -> None:
    rows = score(
        "digits", "likelihood=elbo", "likelihood.t_start=0.02", "likelihood.samples=4", "likelihood.num_examples=3"
    )
    trained = load_run("runs/digits")
    examples = likelihood_command.own_examples(trained, None, 0)
    seed = stream_seed(0, "example", int(examples.index[0]))
    decoder = DiscretizedGaussian(levels=17, value_range=(-1, 1))
    x = Cells(levels=17).centre(examples.x[:3])
    expected = elbo(trained.model, x, samples=4, t_start=0.02, decoder=decoder,  # type: ignore[arg-type]
                    generator=torch.Generator().manual_seed(seed))  # fmt: skip
    np.testing.assert_allclose(column(rows, "nats"), expected.log_prob, rtol=1e-4)
    assert (column(rows, "nats") < 0).all()


def test_a_bound_of_continuous_data_is_in_their_own_units(work: Path) -> None:
    rows = score("toy", "likelihood=elbo", "likelihood.samples=4", "likelihood.num_examples=3")
    trained = load_run("runs/toy")
    examples = likelihood_command.own_examples(trained, None, 0)
    seed = stream_seed(0, "example", int(examples.index[0]))
    x = trained.codec.encode(examples.x[:3])
    expected = elbo(trained.model, x, samples=4, generator=torch.Generator().manual_seed(seed))  # type: ignore[arg-type]
    np.testing.assert_allclose(column(rows, "nats"), expected.log_prob.double() - trained.codec.log_det, rtol=1e-4)  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("options", "law"),
    [
        (["likelihood=vlb", "likelihood.steps=5", "likelihood.variance=large"], "chain of 5 steps"),
        (
            ["likelihood=vlb", "likelihood.steps=5", "likelihood.variance=optimal", "variance=hessian"],
            "chain of 5 steps",
        ),
        (["likelihood=elbo", "likelihood.form=ssm"], "reverse SDE"),
        (["likelihood=hutchinson", "likelihood.dequantization=truncated_normal", *LOOSE], "probability-flow ODE"),
        (["likelihood=hutchinson", "likelihood.samples=2", "likelihood.importance=true", *LOOSE], "probability-flow"),
    ],
    ids=str,
)
def test_every_kind_says_what_it_is_about(
    options: list[str], law: str, work: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = score("digits", *options, "likelihood.num_examples=3")
    said = capsys.readouterr().out
    assert law in said and re.search(r"bits/dim \d+\.\d+ ± \d+\.\d+ \(standard error over 3 test images", said)
    assert len(rows) == 3 and (column(rows, "bits_per_dim") > 0).all()


def test_a_report_puts_three_laws_side_by_side(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    part = ["likelihood.ode.rtol=0.1", "likelihood.ode.atol=0.1", "likelihood.vlb.steps=4", "likelihood.num_examples=3"]
    rows = score("toy", "likelihood=report", *part)
    said = capsys.readouterr().out
    for words in ("probability-flow ODE", "upper bound of −log p_SDE", "chain of 4 steps: upper bound of −log p_chain"):
        assert words in said
    for name, key in (("ODE", "nats"), ("SDE bound", "sde_nats"), ("VLB", "chain_nats")):
        line = next(line for line in said.splitlines() if line.startswith(f"{name} "))
        assert float(line[len(name) :].split()[0]) == pytest.approx(-column(rows, key).mean(), abs=1e-3)


def test_rows_of_a_file_are_scored_in_order_and_bad_ones_are_named(
    work: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    x = digits().test.x[:6, 0].numpy().astype(float)
    x[1, 0, 0], x[2, 3, 3], x[4, 1, 1] = np.nan, 99, 0.5
    x[3] = np.random.default_rng(0).integers(0, 17, (8, 8))
    np.save("my.npy", x)
    rows = score("digits", "likelihood=hutchinson", *LOOSE, *MINE)

    assert [row["index"] for row in rows] == ["0", "1", "2", "3", "4", "5"]
    assert [row["status"] == "ok" for row in rows] == [True, False, False, True, False, True]
    assert rows[1]["status"] == "holds NaN or infinity" and rows[1]["nats"] == ""
    assert "outside 0..16" in rows[2]["status"] and "not integers" in rows[4]["status"]
    said = capsys.readouterr().out
    assert "failed: 1 of 6 rows, the first is row 2: holds values outside 0..16" in said
    assert "least likely: row " in said and metrics()["likelihood_failed"] == 3
    assert metrics()["likelihood_lowest"] == [int(row["index"]) for row in sorted(
        (row for row in rows if row["nats"]), key=lambda row: float(row["nats"]))]  # fmt: skip

    np.save("clean.npy", x[[0, 3, 5]].astype(np.uint8))
    clean = score("digits", "likelihood=hutchinson", *LOOSE, "data=array", "data.path=clean.npy")
    np.testing.assert_allclose(column(clean, "nats")[0], column(rows, "nats")[0], atol=2e-3)


def test_the_run_s_own_codec_is_used_for_a_file(work: Path) -> None:
    trained = load_run("runs/toy")
    x = 3 * np.random.default_rng(0).standard_normal((4, 2)).astype(np.float32)  # another scale than the training data
    x[1, 1] = np.inf
    np.savez("my.npz", x=x, y=np.array([0, 1, 1, 0]))
    rows = score("toy", "likelihood=exact", "data=array", "data.path=my.npz", *LOOSE)
    good = [0, 2, 3]
    result = log_prob(trained.model, trained.codec.encode(torch.from_numpy(x[good])), divergence="exact", rtol=0.1,
                      atol=0.1)  # type: ignore[arg-type]  # fmt: skip
    expected = result.log_prob.double() - trained.codec.log_det  # type: ignore[union-attr]
    np.testing.assert_allclose(column(rows, "nats")[good], expected, atol=1e-4)
    assert [row["label"] for row in rows] == ["0", "1", "1", "0"] and "infinity" in rows[1]["status"]


def test_a_row_whose_integration_fails_does_not_stop_the_others(work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(score: Scorer, batch: StoredBatch) -> Scores:
        if bool((batch.x[:, 0] > 1e3).any()):
            raise FloatingPointError("log_prob stopped: the denoiser returned NaN")
        return score(batch)

    around_scores(monkeypatch, failing)
    np.save("my.npy", np.array([[0.1, 0.2], [1e4, 0.0], [0.5, -0.5]]))
    rows = score("toy", "likelihood=hutchinson", *MINE, *LOOSE)
    assert [row["status"] for row in rows] == ["ok", "log_prob stopped: the denoiser returned NaN", "ok"]


def test_data_in_other_units_and_undeclared_levels_are_warned_about(
    work: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    np.save("my.npy", 500 + np.random.default_rng(0).standard_normal((4, 2)))
    score("toy", "likelihood=elbo", *MINE)
    assert re.search(
        r"warning: .* of its standard deviations typically: are they in the same units\?", capsys.readouterr().out
    )
    np.save("my.npy", np.random.default_rng(0).integers(0, 3, (64, 2)).astype(float))
    score("toy", "likelihood=elbo", *MINE)
    assert "only 3 different numbers, so their density has no upper limit" in capsys.readouterr().out


def test_bits_per_dim_below_zero_name_their_cause(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    trained = load_run("runs/digits")
    row = {"index": "0", "nats": "3.0", "bits_per_dim": "-0.1", "std_error": "", "solver_error": "", "nfe": "9",
           "status": "ok"}  # fmt: skip
    found = print_summary([row, row], Unit.of(trained), FlowLikelihood(), "test images", 1.0, False)
    assert "bits/dim below 0" in capsys.readouterr().out
    assert found["bits_per_dim"] < 0 and found["bits_per_dim_estimator_error"] is None


def test_which_solver_and_options_evaluate_a_likelihood(work: Path) -> None:
    fast = ["solver.steps=2", "num_samples=2", "likelihood.num_examples=2", "out=o"]
    command(sample_main, "run=runs/toy", *fast)
    assert not Path("o/likelihood.csv").exists()
    command(sample_main, "run=runs/toy", "likelihood=elbo", *fast)
    assert len(table(Path("o/likelihood.csv"))) == 2 and metrics()["num_samples"] == 2
    for off in ("likelihood=none", "likelihood.num_examples=0"):
        command(sample_main, "run=runs/toy", "solver=ode", "solver.rtol=0.1", "solver.atol=0.1", off, "out=p",
                "num_samples=2")  # fmt: skip
        assert not Path("p/likelihood.csv").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["likelihood=exact", *MINE], r"data.path to it; my.npy does not exist"),
        (["likelihood=exact", "data=array", "data.path=float.npy"],
         r"none of the 3 .*float.npy can be scored .* values that are not integers"),
        (["likelihood=exact", "data=array", "data.path=wide.npy"], r"outside 0\.\.16.*values from \d+ to \d+"),
        (["likelihood=exact", "data=array", "data.path=shape.npy"], r"events of shape \(7,\).*\(1, 8, 8\)"),
        (["data=array", "data.path=wide.npy", "data.levels=256"], "have 256 levels, but runs/digits was trained on 17"),
        (["data=toy"], "continuous values, but runs/digits was trained on 17 levels"),
        (["run=runs/toy", "data=array", "data.path=wide.npy", "data.levels=256"], "drop data.levels"),
        (["run=runs/toy", "data=array", "data.path=nan.npy"], "none of the 3 .* holds NaN or infinity"),
        (["data=array", "data.path=text.npy"], "needs real numbers"),
        (["likelihood=exat"], "Could not find 'likelihood/exat'"),
        (["likelihood.kind=exact"], "likelihood.kind=exact: .*write likelihood=exact"),
        (["likelihood.prob=2"], "likelihood.prob=2"),
        (["likelihood=exact", "likelihood._target_=scoresde.DDIM"], "likelihood=... must be a Likelihood, got DDIM"),
        (["likelihood=report", "likelihood.ode=null"], "likelihood.ode needs a Likelihood, got null"),
        (["likelihood=hutchinson", "likelihood.method=rk5"], "adams, dopri5, .*, rk4, got 'rk5'"),
        (["likelihood=hutchinson", "likelihood.probes=two"], "likelihood.probes needs a whole number, got 'two'"),
        (["likelihood=hutchinson", "likelihood.probes=null"], "likelihood.probes needs a whole number, got null"),
        (["likelihood=exact", "likelihood.probes=8"], "likelihood=exact has no probes, got probes=8"),
        (["likelihood=hutchinson", "likelihood.probe=cauchy"], "rademacher.* got 'cauchy'"),
        (["likelihood=hutchinson", "likelihood.when=never"], "likelihood needs when always or ode, got 'never'"),
        (["likelihood=hutchinson", "likelihood.t_start=early"], "t_start needs a number, or null, got 'early'"),
        (["likelihood=elbo", "likelihood.samples=0"], "likelihood needs samples >= 1, a whole number, got samples=0"),
        (["likelihood=vlb", "likelihood.decoder_variance=[1]"], r"a number or text, or null, got \[1\]"),
        (["likelihood=vlb", "likelihood.steps=1"], "2 <= steps <= 1000000, a whole number, got steps=1"),
        (["likelihood=exact", "likelihood.split=val"], "likelihood needs split test, train or all, got 'val'"),
        (["likelihood=exact", "likelihood.batch_size=0"], "batch_size >= 1, a whole number, got batch_size=0"),
        (["likelihood=exact", "likelihood.num_examples=few"], "num_examples needs a whole number, or null, got 'few'"),
        (["likelihood=exact", "likelihood.dequantization=best"], "truncated_normal or variational, got 'best'"),
        (["likelihood=exact", "likelihood.dequantization=variational"], "digits_dequantization of=runs/digits"),
        (["likelihood=elbo", "likelihood.decoder=best"], "discretized or categorical, got 'best'"),
        (["likelihood=vlb", "likelihood.variance=optimal"], "needs a covariance: add variance=analytic, "),
        (["likelihood=vlb", "likelihood.variance=learned"], "variance='learned' needs"),
        (["likelihood=exact", "likelihood.csv=values.txt"], r"ends in \.csv, got values\.txt"),
        (["likelihood=exact", "likelihood.t_start=0", "likelihood.num_examples=2"], "t_start|noise|σ"),
        (["likelihood=hutchinson", "likelihood.repeat=2"], "likelihood needs 0 <= repeat <= 1, got repeat=2"),
        (["likelihood=report", "likelihood.vlb.steps=many"], "steps needs a whole number, got 'many'"),
        (["likelihood.probes=8"], "likelihood.probes=8 has no effect: .*solver=ode or data=.* likelihood.when=always"),
        (["run=runs/toy", "likelihood=elbo", "likelihood.decoder=categorical"], "decoder=categorical is of l"),
        (["likelihood=elbo", "label=3"], "label=3 is of samples, and num_samples=0 draws none"),
        ([], "num_samples=0 leaves nothing to do"),
    ],
    ids=str,
)  # fmt: skip
def test_mistakes_get_one_sentence(options: list[str], message: str, work: Path) -> None:
    rng = np.random.default_rng(0)
    np.save("float.npy", rng.random((3, 8, 8)))
    np.save("wide.npy", rng.integers(100, 256, (3, 8, 8)))
    np.save("shape.npy", rng.integers(0, 17, (3, 7)))
    np.save("nan.npy", np.full((3, 2), np.nan))
    np.save("text.npy", np.array([["a", "b"]]))
    run = [] if any(option.startswith("run=") for option in options) else ["run=runs/digits"]
    said = sentence(*run, *SMALL, *options)
    assert re.search(message, said), said
    assert not Path("o").exists()


def test_files_are_written_before_anything_is_said_of_them(work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Console(io.StringIO):
        def write(self, text: str) -> int:
            for words, key in (
                ("network calls each", "nfe"),
                ("standard error over", "likelihood_kind"),
                ("loss", "diagnostics"),
            ):
                if words in text and key not in seen:
                    seen[key] = key in metrics()
            return len(text)

    seen: dict[str, bool] = {}
    monkeypatch.setattr(sys, "stdout", Console())
    Path("o").mkdir()
    Path("o/metrics.json").write_text("{}")
    command(
        sample_main, "run=runs/toy", "num_samples=2", "out=o", "solver.steps=2", "likelihood=elbo",
        "likelihood.num_examples=3", "diagnostics=default", "diagnostics.which=loss", "diagnostics.bins=2",
        "diagnostics.num_examples=8",
    )  # fmt: skip
    assert seen == {"nfe": True, "likelihood_kind": True, "diagnostics": True}


COLUMNS = ["a", "status"]


def rows_of(path: Path, **options: Any) -> list[str]:
    with GrowingTable(path, COLUMNS, {"seed": 0}, **options) as again:
        return [row["a"] for row in again.rows]


def test_a_table_reads_back_what_it_wrote(tmp_path: Path) -> None:
    path = tmp_path / "deep/t.csv"
    with GrowingTable(path, COLUMNS, {"seed": 0}) as first:
        first.append([{"a": 0.1, "status": 'said "no", twice'}, {"status": "x\ny"}])
    with GrowingTable(path, COLUMNS, {"seed": 0}) as again:
        assert again.rows == first.rows == [{"a": "0.1", "status": 'said "no", twice'}, {"a": "", "status": "x\ny"}]
        again.append([{"a": 2.0}])
    assert rows_of(path) == ["0.1", "", "2.0"]
    whole = path.read_text()
    for damaged, aside in (
        (whole[:-1], None),
        (whole[:-3] + "\n4.0,ok\n", "t-1.csv"),
        (whole.replace("2.0", "3.0"), "t-1.csv"),
        (whole.replace("\n2.0", "\n\n2.0"), "t-1.csv"),
    ):  # cut off within the last line; a line too short, then another; a number changed; a line added
        path.write_text(damaged)
        with GrowingTable(path, COLUMNS, {"seed": 0}) as again:
            assert [row["a"] for row in again.rows] == ["0.1", ""]
            assert "was cut off or changed after row 2" in again.trouble
            assert again.aside == (None if aside is None else path.with_name(aside))
    with GrowingTable(path, COLUMNS, {"seed": 0}) as again:
        again.append([{"a": 2.0}])
    assert path.read_text() == whole and path.with_name("t-1.csv").read_text() == damaged
    path.with_name("t-1.csv").unlink()
    for damaged in (whole.replace("0.1", "0.2"), whole.replace("\n", "\r\n"), "\ufeff" + whole, "x", ""):
        path.write_bytes(damaged.encode())
        assert rows_of(path) == []
    path.unlink()
    with GrowingTable(path, COLUMNS, {"seed": 0}) as again:
        assert "t.csv is missing" in again.trouble
    path.write_text(whole)
    with GrowingTable(path, COLUMNS, {"seed": 0}) as again:
        assert again.trouble == ""
    path.with_suffix(".json").unlink()
    with GrowingTable(path, COLUMNS, {"seed": 0}) as other:
        assert other.aside == tmp_path / "deep/t-1.csv"
    with pytest.raises(ValueError, match=r"ends in \.csv"):
        GrowingTable(tmp_path / "t.txt", COLUMNS, {})


@pytest.mark.parametrize(
    "touch",
    [
        lambda text: b"\xef\xbb\xbf" + text.encode(),
        lambda text: text.replace(",", ";").replace(".", ",").encode(),
        lambda text: text.replace("\n", "\r\n").encode(),
        lambda text: text.replace("\n", "\r").encode(),
        lambda text: text.encode("utf-16"),
        lambda text: text.replace("3.5", "#REF!").encode(),
    ],
    ids=["byte-order mark", "semicolons", "ends of lines", "old ends of lines", "UTF-16", "a broken cell"],
)
def test_a_table_that_another_program_changed_is_set_aside(touch: Callable[[str], bytes], tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    with GrowingTable(path, COLUMNS, {"seed": 0}) as first:
        first.append([{"a": a, "status": "ok"} for a in (1, 2, 3.5, 4)])
    changed = touch(path.read_text())
    path.write_bytes(changed)
    with GrowingTable(path, COLUMNS, {"seed": 0}) as again:
        again.append([{"a": 3, "status": "ok"}])
        assert again.aside == tmp_path / "t-1.csv"
    assert (tmp_path / "t-1.csv").read_bytes() == changed
    assert rows_of(path)[-1] == "3" and not list(tmp_path.glob("*.lock"))


def test_one_process_has_a_table_and_what_is_not_ours_is_never_replaced(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("a,status\n1,mine\n")
    with GrowingTable(tmp_path / "t.csv", COLUMNS, {"seed": 0}, resume=False) as first:
        first.append([{"a": 1.0}])
        caught: list[Exception] = []

        def other() -> None:
            try:
                rows_of(tmp_path / "t.csv")
            except InUse as error:
                caught.append(error)

        thread = threading.Thread(target=other)
        thread.start()
        thread.join()
    assert "t.csv is in use by process" in str(caught[0])
    assert (tmp_path / "t-1.csv").read_text() == "a,status\n1,mine\n"
    with pytest.raises(InterruptedError), GrowingTable(tmp_path / "new/t.csv", COLUMNS, {}):
        raise InterruptedError
    assert not (tmp_path / "new").exists()


OWN = ["--config-dir", "myconf"]
MINE_PY = """
import torch
from dataclasses import dataclass
from scoresde.commands import Likelihood, Scores


@dataclass(frozen=True, kw_only=True)
class Nearest(Likelihood):
    \"\"\"log N(x0; x̂0, width²) at one noise level.\"\"\"

    width: float
    t: float = 0.5
    columns = ("error",)

    def prepare(self, trained, variance):
        def score(batch):
            x0 = trained.codec.encode(batch.x)
            off = x0 - trained.denoiser(x0, torch.tensor(self.t))
            nats = torch.distributions.Normal(0.0, self.width).log_prob(off).sum(1)
            one = torch.ones_like(nats)
            return Scores(nats, 0 * one, one, {"error": off.square().mean(1)})
        return score


class Seeded(Nearest):
    def __init__(self, seed: int = 0): pass


class Stranger:
    pass
"""


@pytest.fixture
def myconf(work: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of options of a user's, beside a module."""
    (work / "my_likelihoods.py").write_text(MINE_PY)
    monkeypatch.syspath_prepend(str(work))
    folder = work / "myconf/likelihood"
    folder.mkdir(parents=True)
    (folder / "mine.yaml").write_text("_target_: my_likelihoods.Nearest\nwidth: 0.5\nt: 0.5\n")
    (folder / "short.yaml").write_text("_target_: my_likelihoods.Nearest\nt: 0.5\n")
    (folder / "nothing.yaml").write_text("width: 0.5\n")
    (folder / "seeded.yaml").write_text("_target_: my_likelihoods.Seeded\n")
    (folder / "strange.yaml").write_text("_target_: my_likelihoods.Stranger\n")
    return folder


def test_a_likelihood_of_one_s_own_is_one_class_and_one_yaml(myconf: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = score("toy", "likelihood=mine", "likelihood.num_examples=3", "likelihood.width=2", *OWN)
    assert (
        list(rows[0]) == ["index", "label", "nats", "std_error", "error", "nfe", "status", "check"] and len(rows) == 3
    )
    expected = -column(rows, "error") * 2 / 8 - 2 * math.log(2 * math.sqrt(2 * math.pi))
    np.testing.assert_allclose(column(rows, "nats"), expected, rtol=1e-5)
    assert "standard error over 3 test examples" in capsys.readouterr().out
    assert metrics()["likelihood_kind"] == "nearest" and metrics()["likelihood_error"] > 0
    part = ["likelihood.ode.rtol=0.1", "likelihood.ode.atol=0.1", "likelihood.vlb.steps=3"]
    beside = score("toy", "likelihood=report", "likelihood@likelihood.elbo=mine", *part,
                   "likelihood.elbo.width=2", "likelihood.num_examples=3", *OWN)  # fmt: skip
    np.testing.assert_allclose(column(beside, "sde_nats"), column(rows, "nats"), rtol=1e-5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["likelihood=short"], "likelihood.width has no default: Nearest needs it"),
        (["likelihood=mine", "likelihood.width=wide"], "likelihood.width needs a number, got 'wide'"),
        (["likelihood=mine", "likelihood.high=2"], "likelihood.high=2"),
        (["likelihood=nothing"], r"likelihood=... must be a Likelihood, got options without a class \(width\)"),
        (["likelihood=seeded"], "likelihood.seed is an option of every likelihood: my_likelihoods.Seeded needs"),
        (["likelihood=strange"], "'my_likelihoods.Stranger', which is none of .*Likelihood"),
        (["likelihood=mine", "likelihood._target_=my_likelihoods.Nearer"], "'my_likelihoods.Nearer', which does not"),
    ],
    ids=str,
)
def test_mistakes_in_one_s_own_get_one_sentence(options: list[str], message: str, myconf: Path) -> None:
    said = sentence("run=runs/toy", *SMALL, *options, *OWN)
    assert re.search(message, said), said


def test_arguments_are_checked_against_their_annotations() -> None:
    node = {"_target_": "scoresde.commands.LikelihoodReport", "elbo": {"_target_": "scoresde.DDIM"}}
    with pytest.raises(ConfigError, match=r"likelihood.elbo needs a Likelihood, got DDIM"):
        build_as(Likelihood, node, "likelihood")
    for key, value, message in (
        ("importance", 1, "true or false, got 1"), ("samples", True, "a whole number, got True"),
        ("steps", 2.5, "a whole number, or null, got 2.5"), ("rtol", None, "a number, got null"),
    ):  # fmt: skip
        with pytest.raises(ConfigError, match=f"likelihood.{key} needs {message}"):
            build_as(Likelihood, {"_target_": "scoresde.commands.FlowLikelihood", key: value}, "likelihood")
