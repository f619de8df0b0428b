"""What cannot be shown is dropped: it is no error, now or when Python ends."""

from __future__ import annotations

import io
import logging
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import TextIO

import pytest
from trio.testing import MockClock

import trio_ckpt
from tests.hangs import PROGRAM_S
from tests.test_progress_display import FakeTerminal, collect, display
from trio_ckpt.progress import Screen

needs_posix = pytest.mark.skipif(os.name != "posix", reason="descriptors are those of POSIX")


class DeadFile(io.StringIO):
    """A file of the program that fails in an unusual way."""

    def write(self, text: str, /) -> int:
        raise RuntimeError(f"{text!r} has no place to go")


def pipe_without_reader() -> TextIO:
    reader, writer = os.pipe()
    os.close(reader)
    return open(writer, "w", encoding="utf-8")


def terminal_that_is_gone() -> TextIO:
    master, slave = os.openpty()
    os.close(master)
    return open(slave, "w", encoding="utf-8")


def closed_file() -> TextIO:
    file = io.StringIO()
    file.close()
    return file


def full_disk() -> TextIO:
    return open("/dev/full", "w", encoding="utf-8")


DEAD = [
    pytest.param(DeadFile, id="fails in its own way"),
    pytest.param(closed_file, id="closed"),
    pytest.param(pipe_without_reader, id="no reader", marks=needs_posix),
    pytest.param(terminal_that_is_gone, id="no terminal", marks=needs_posix),
    pytest.param(full_disk, id="full disk", marks=needs_posix),
]


@pytest.fixture(params=[*DEAD, pytest.param(lambda: None, id="none")])
def dead(request: pytest.FixtureRequest) -> Iterator[TextIO | None]:
    file: TextIO | None = request.param()
    yield file
    if file is not None:
        with suppress(OSError):
            file.close()


def test_what_cannot_be_shown_is_no_error(dead: TextIO | None) -> None:
    screen = Screen(dead)
    print("a line", file=screen)
    print("\rhalf a line", end="", file=screen, flush=True)
    logging.StreamHandler(screen).emit(logging.makeLogRecord({"msg": "a record"}))
    assert isinstance(screen.isatty(), bool)
    screen.close()


@needs_posix
def test_a_descriptor_that_is_closed_is_no_error() -> None:
    with suppress(OSError), open(os.devnull, "w", encoding="utf-8") as file:
        os.close(file.fileno())
        print("a line", file=Screen(file))


async def test_a_display_that_fails_ends_no_work(
    autojump_clock: MockClock, dead: TextIO | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stderr", dead)
    async with display(None) as run:  # standard error, by default
        await collect(run, pages=30)
        assert run.exit_code == 0


class Unreadable(FakeTerminal):
    """A terminal that cannot be asked what it is."""

    @property
    def encoding(self) -> str:  # type: ignore[override]
        raise LookupError("no such terminal")


async def test_a_display_that_cannot_begin_says_so_in_the_log(
    autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    async with display(Unreadable()) as run:
        await collect(run, pages=3)
    assert "run 'run' is not displayed any more: no such terminal" in caplog.text


def test_what_can_be_shown_is_there_at_once_and_in_order(tmp_path: Path) -> None:
    path = tmp_path / "log"
    with path.open("w", encoding="ascii") as file:
        file.write("printed before\n")
        screen = Screen(file)
        print("a café", file=screen)
        assert path.read_text() == "printed before\na caf\\xe9\n"
    text = io.StringIO()
    print("a café", file=Screen(text))
    assert text.getvalue() == "a café\n"


@needs_posix
def test_a_line_is_one_write(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """So that what several processes say to one terminal is not mixed up within lines."""
    written = list[bytes]()
    write = os.write
    with (tmp_path / "log").open("w") as file:
        screen = Screen(file)
        monkeypatch.setattr(os, "write", lambda fd, data: written.append(data) or write(fd, data))
        print("one", "line", file=screen)
        monkeypatch.undo()
    assert written == [b"one line\n"]


def test_the_file_stays_open() -> None:
    file = io.StringIO()
    Screen(file).close()
    print("goes on", file=Screen(file))
    assert file.getvalue() == "goes on\n"


PROGRAM = """
import logging, sys
from trio_ckpt.progress import Screen

sys.stderr = Screen(sys.stderr)
logging.basicConfig()
for _ in range(100):
    print("a line", file=sys.stderr)
    print("half a line", end="", file=sys.stderr)
    logging.warning("a record")
sys.exit(3)
"""


@needs_posix
@pytest.mark.parametrize("redirected", ["2>&-", "2>/dev/full", "2>/dev/null"])
def test_the_exit_code_is_that_of_the_program(redirected: str) -> None:
    """Python flushes standard error at its end; a flush that fails would make it 120."""
    words = ["sh", "-c", f'exec "$@" {redirected}', "sh", sys.executable, "-c", PROGRAM]
    assert subprocess.run(words, check=False, timeout=PROGRAM_S).returncode == 3


def test_it_is_public() -> None:
    assert trio_ckpt.progress.Screen is Screen


class Notebook(io.StringIO):
    """Standard error as Jupyter replaces it: the descriptor is that of the server."""

    def __init__(self, server: TextIO) -> None:
        super().__init__()
        self.server = server

    def fileno(self) -> int:
        return self.server.fileno()


def test_a_notebook_shows_text_below_its_cell(tmp_path: Path) -> None:
    with open(tmp_path / "server.log", "w+", encoding="utf-8") as server:
        cell = Notebook(server)
        print("said below the cell", file=Screen(cell))
        assert cell.getvalue() == "said below the cell\n"
        assert server.read() == ""


def test_what_an_encoding_has_not_is_written_out() -> None:
    below = io.BytesIO()
    with io.TextIOWrapper(below, encoding="ascii") as file:
        print("cut… é 日本… \U0001f980", file=Screen(file))
        assert below.getvalue() == b"cut~ \\xe9 \\u65e5\\u672c~ \\U0001f980\n"
