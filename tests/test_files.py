"""Files: regular ones, whole or not at all, and never through a link."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from scoresde.files import inside, open_append, open_regular, try_lock, write_atomically


def test_write_is_whole_and_follows_no_link(tmp_path: Path) -> None:
    mine = tmp_path / "mine"
    mine.write_text("precious")
    (tmp_path / "a.json").symlink_to(mine)
    (tmp_path / "a.json.tmp").symlink_to(mine)  # what the temporary file was once called

    write_atomically(tmp_path / "a.json", b"new", memoryview(b" text"))

    assert mine.read_text() == "precious" and not (tmp_path / "a.json").is_symlink()
    assert (tmp_path / "a.json").read_bytes() == b"new text"
    umask = os.umask(0)
    os.umask(umask)
    assert stat.S_IMODE((tmp_path / "a.json").stat().st_mode) == 0o666 & ~umask


def test_a_failed_write_leaves_what_was_there(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("old")
    with pytest.raises(TypeError):
        write_atomically(tmp_path / "a", b"new", "text")  # type: ignore[arg-type]
    assert [path.name for path in tmp_path.iterdir()] == ["a"] and (tmp_path / "a").read_text() == "old"


def test_leftovers_of_a_killed_write_are_removed_and_nothing_else(tmp_path: Path) -> None:
    others = ("mine.tmp", "last.pt.tmp", "past.pt.0123456789abcdef.tmp", "last.pt.0123456789ABCDEF.tmp")
    for name in (*others, "last.pt.0123456789abcdef.tmp", "last.pt.fedcba9876543210.tmp"):
        (tmp_path / name).touch()
    with open(tmp_path / "last.pt.fedcba9876543210.tmp") as file:
        assert try_lock(file.fileno())  # as another process that is writing it
        write_atomically(tmp_path / "last.pt", b"new")
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {*others, "last.pt", "last.pt.fedcba9876543210.tmp"}


def test_what_is_replaced_can_keep_a_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    last, previous = tmp_path / "last", tmp_path / "previous"

    def contents() -> list[bytes]:
        return [path.read_bytes() for path in (last, previous) if path.exists()]

    write_atomically(last, b"1", keep=previous)
    assert contents() == [b"1"]
    write_atomically(last, b"2", keep=previous)
    assert contents() == [b"2", b"1"]
    previous.unlink()
    os.link(last, previous)  # as after a kill between the two
    write_atomically(last, b"3", keep=previous)
    assert contents() == [b"3", b"2"]
    with pytest.raises(TypeError):
        write_atomically(last, "4", keep=previous)  # type: ignore[arg-type]
    assert contents() == [b"3", b"2"]

    def no_links(*args: object, **options: object) -> None:
        raise PermissionError

    monkeypatch.setattr(os, "link", no_links)
    write_atomically(last, b"5", keep=previous)
    assert contents() == [b"5", b"3"]
    assert len(list(tmp_path.iterdir())) == 2


@pytest.mark.parametrize("name", ["replace", "link"])
def test_at_every_moment_one_of_the_two_is_whole(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    last, previous = tmp_path / "last", tmp_path / "previous"
    write_atomically(last, b"1")
    write_atomically(last, b"2", keep=previous)
    real = getattr(os, name)

    def watched(*args: object, **options: object) -> None:
        real(*args, **options)
        assert last.exists() and previous.exists()

    monkeypatch.setattr(os, name, watched)
    write_atomically(last, b"3", keep=previous)


def test_append_goes_on_and_follows_no_link(tmp_path: Path) -> None:
    for text in ("a\n", "b\n"):
        with open_append(tmp_path / "rows.csv") as file:
            file.write(text)
    assert (tmp_path / "rows.csv").read_bytes() == b"a\nb\n"
    (tmp_path / "link.csv").symlink_to(tmp_path / "rows.csv")
    os.mkfifo(tmp_path / "pipe.csv")
    for name, reason in (("link.csv", "it is a link"), ("pipe.csv", "is a pipe")):
        with pytest.raises(ValueError, match=reason):
            open_append(tmp_path / name)


def test_only_a_link_within_the_folder_that_leads_out_of_it_is_refused(tmp_path: Path) -> None:
    run, elsewhere = tmp_path / "scratch" / "run", tmp_path / "elsewhere"
    (run / "checkpoints").mkdir(parents=True)
    elsewhere.mkdir()
    (tmp_path / "runs").symlink_to(tmp_path / "scratch")
    (run / "samples").symlink_to(elsewhere)
    (run / "dangling").symlink_to(tmp_path / "nothing")
    (run / "latest").symlink_to("checkpoints")
    (run / "loop").symlink_to("loop")

    run = tmp_path / "runs" / "run"  # through a link above it
    for name in ("samples", "samples/deeper/x.png", "checkpoints/../samples", "dangling", "latest/../samples/x"):
        with pytest.raises(ValueError, match=r"nothing is written through .*(samples|dangling): it is a link that lea"):
            inside(run, run / name)
    for path in (run, run / "checkpoints/last.pt", run / "latest/last.pt", run / "new/folder", run / "loop", elsewhere):
        assert inside(run, path) == path


def test_pipes_devices_and_folders_are_not_read(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link").symlink_to("pipe")
    (tmp_path / "file").write_bytes(b"x")
    (tmp_path / "good").symlink_to("file")
    for path, kind in ((tmp_path / "pipe", "a pipe"), (tmp_path / "link", "a pipe"), (tmp_path, "a folder"),
                       (Path("/dev/zero"), "a device")):  # fmt: skip
        with pytest.raises(ValueError, match=f"is {kind}: a regular file is needed"):
            open_regular(path)
    with open_regular(tmp_path / "good") as file:
        assert file.read() == b"x"
    with pytest.raises(FileNotFoundError):
        open_regular(tmp_path / "nothing")
