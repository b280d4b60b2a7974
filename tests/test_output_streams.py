"""What cannot be said never decides whether the work is done."""

from __future__ import annotations

import io
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from scoresde import cli
from scoresde.streams import SafeStream

ROOT = Path(__file__).parents[1]
SCRIPT = """
import sys
from scoresde.streams import make_streams_safe
make_streams_safe()
print("2.5 ± 0.1, σ, ψ, −1")
print("x" * 100_000, flush=True)
print("error", file=sys.stderr)
open("done", "w").close()
if len(sys.argv) > 1:
    sys.exit(sys.argv[1])
"""


def run(folder: Path, *arguments: str, **options: Any) -> subprocess.CompletedProcess[bytes]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), **options.pop("env", {})}
    return subprocess.run(
        [sys.executable, "-c", SCRIPT, *arguments], cwd=folder, env=environment, timeout=60, **options
    )


@pytest.mark.parametrize("kind", ["full", "nobody reads", "closed"])
@pytest.mark.parametrize("arguments", [(), ("failed",)], ids=["ends well", "fails"])
def test_streams_that_cannot_be_written(kind: str, arguments: tuple[str, ...], tmp_path: Path) -> None:
    if kind == "closed":
        done = run(tmp_path, *arguments, preexec_fn=lambda: (os.close(1), os.close(2)))
    elif kind == "full":
        with open("/dev/full", "w") as full:
            done = run(tmp_path, *arguments, stdout=full, stderr=full)
    else:
        reader, writer = os.pipe()
        os.close(reader)
        done = run(tmp_path, *arguments, stdout=writer, stderr=writer)
        os.close(writer)
    assert done.returncode == len(arguments)
    assert (tmp_path / "done").is_file()


@pytest.mark.parametrize(
    ("encoding", "line"),
    [
        ("ascii", b"2.5 +/- 0.1, sigma, \\u03c8, -1\n"),
        ("cp1252", b"2.5 \xb1 0.1, sigma, \\u03c8, -1\n"),
        ("utf-8", "2.5 ± 0.1, σ, ψ, −1\n".encode()),
    ],
)
def test_a_console_of_any_encoding(encoding: str, line: bytes) -> None:
    bytes_ = io.BytesIO()
    stream = io.TextIOWrapper(bytes_, encoding=encoding)
    print("2.5 ± 0.1, σ, ψ, −1", file=SafeStream(stream), flush=True)
    assert bytes_.getvalue() == line


def test_a_stream_that_is_closed_or_none_at_all() -> None:
    closed = io.StringIO()
    closed.close()
    for stream in (SafeStream(closed), SafeStream(None), SafeStream(SafeStream(None))):
        print("lost", file=stream, flush=True)
        stream.writelines(["lost\n"])
        assert not stream.isatty()


@pytest.mark.parametrize(
    ("error", "amount"),
    [
        (MemoryError(), ""),
        (MemoryError("Unable to allocate 3.58 TiB for an array with shape (1,)"), " (3.58 TiB more were asked for)"),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 64 bytes."),
         " (64 bytes more were asked for)"),
        (RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0"), " (2.00 GiB more were asked for)"),
    ],
)  # fmt: skip
def test_without_memory_one_sentence_says_what_to_do(error: Exception, amount: str) -> None:
    sentence = cli.explain(error)
    assert sentence is not None
    assert sentence.startswith(f"there is not enough memory{amount}: give a smaller batch_size=")


@pytest.mark.parametrize("what", ["left alone", "another error", "another error that is explained"])
def test_ctrl_c_before_there_is_anything_to_save(
    what: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(config: dict[str, Any]) -> None:
        try:
            signal.raise_signal(signal.SIGINT)
        except KeyboardInterrupt:  # as numpy and torch do while they are imported
            if what == "left alone":
                raise
        raise AttributeError("no attribute 'multiply'") if what == "another error" else ImportError("numpy")

    inherited = signal.signal(signal.SIGINT, signal.default_int_handler)
    monkeypatch.setattr(sys, "argv", ["train.py"])
    with pytest.raises(SystemExit) as stopped:
        cli._main("train", interrupted)
    assert stopped.value.code == 130
    assert signal.signal(signal.SIGINT, inherited) is signal.default_int_handler
    assert capsys.readouterr().err == (
        "\ntrain.py: stopped by Ctrl-C. What had been saved is kept: the same command goes on from there.\n"
    )
