"""What a person sees of something that takes long, on a terminal and elsewhere."""

from __future__ import annotations

import io
import os
import pty
import sys

import pytest

from scoresde import progress
from scoresde.progress import Progress, rate_words


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The time in seconds, to be moved by the test."""
    now = [100.0]
    monkeypatch.setattr(progress, "perf_counter", lambda: now[0])
    return now


def lines(clock: list[float], seconds: float, calls: int, capsys: pytest.CaptureFixture[str]) -> list[str]:
    with Progress("sampling", calls, "calls") as shown:
        for _ in range(calls):
            clock[0] += seconds / calls
            shown.advance()
    return capsys.readouterr().err.splitlines()


def test_lines_at_every_tenth_with_the_time_that_is_left(
    clock: list[float], capsys: pytest.CaptureFixture[str]
) -> None:
    found = lines(clock, 250, 1000, capsys)
    assert found[0] == "sampling: 100 of 1,000 calls, 03:45 left"
    assert found[-1] == "sampling: 1,000 of 1,000 calls, in 04:10"
    assert len(found) == 10


def test_a_line_every_half_minute_of_what_takes_hours(clock: list[float], capsys: pytest.CaptureFixture[str]) -> None:
    found = lines(clock, 600, 6000, capsys)
    assert len(found) == 10 + 10  # tenths of a minute each, and one between each two of them
    assert len(lines(clock, 36_000, 3600, capsys)) < 150


@pytest.mark.parametrize(("seconds", "count"), [(2.9, 0), (3.5, 2), (6.0, 3)])
def test_what_is_quick_says_little_or_nothing(
    clock: list[float], capsys: pytest.CaptureFixture[str], seconds: float, count: int
) -> None:
    assert len(lines(clock, seconds, 100, capsys)) == count


def test_what_was_done_before_does_not_count_in_the_time_left(
    clock: list[float], capsys: pytest.CaptureFixture[str]
) -> None:
    with Progress("likelihood", 100, "examples", done=50) as shown:
        clock[0] += 10
        shown.advance(10, "60 of 100, 1.2 nats")
    assert capsys.readouterr().err == "likelihood: 60 of 100, 1.2 nats, 00:40 left\n"


def test_a_bar_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    reader, writer = pty.openpty()
    with os.fdopen(writer, "w") as terminal:
        monkeypatch.setattr(sys, "stderr", terminal)
        monkeypatch.setattr(progress, "REFRESH", 0.0)
        with Progress("sampling", 50, "calls") as shown:
            shown.to(20)
            terminal.flush()
            shown_text = os.read(reader, 100_000).decode()
    os.close(reader)
    assert "sampling, 20 of 50 calls:  40%|" in shown_text
    assert "\n" not in shown_text  # it leaves nothing behind


def test_streams_that_are_closed_or_missing_stop_nothing(clock: list[float], monkeypatch: pytest.MonkeyPatch) -> None:
    closed = io.StringIO()
    closed.close()
    for stream in (closed, None):
        monkeypatch.setattr(sys, "stderr", stream)
        with Progress("sampling", 10, "calls") as shown:
            clock[0] += 100
            shown.advance(5)
        assert shown.done == 5


@pytest.mark.parametrize(
    ("rate", "words"),
    [(0.0, "0.0"), (0.043, "0.043"), (0.5, "0.5"), (1.26, "1.3"), (9.94, "9.9"), (9.96, "10"), (640.4, "640")],
)
def test_rates_below_ten_have_a_decimal(rate: float, words: str) -> None:
    assert rate_words(rate) == words
