"""Answers are drawn as plain lines, or for a terminal: the same text, whatever is in it."""

from __future__ import annotations

import io
import re
from pathlib import Path

import pytest

from tests.cli.tools import Terminal, complete, make_run
from trio_ckpt.cli._report import Pairs, Table, capped, console_for, to_json, to_lines, to_rich

EVIL = "\x1b[31m\nx [bold]y[/bold] \u202e"


class FakeTerminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def drawn(block: str | Pairs | Table, width: int = 80) -> list[str]:
    screen = FakeTerminal()
    console = console_for(screen)
    console.width = width
    console.no_color = True
    console.print(to_rich(block))
    text = re.sub(r"\x1b\[\d+m", "", screen.getvalue())  # rich's own: bold, and its end
    return [line.rstrip() for line in text.splitlines()]


def test_plain_columns_are_aligned_numbers_to_the_right() -> None:
    table = Table(("name", ">count", "why"), [("a", "1", ""), ("long name", "1,000", "x")], "note")
    assert to_lines(["title", table]) == [
        "title",
        "",
        "name       count  why",
        "a              1",
        "long name  1,000  x",
        "note",
    ]
    assert to_lines([Pairs([("a", "1"), ("long", "2")])]) == ["a     1", "long  2"]


def test_whatever_is_shown_is_printable() -> None:
    for block in (EVIL, Pairs([("a", EVIL)]), Table(("a",), [(EVIL,)])):
        assert all(line.isprintable() for line in to_lines([block]))
        text = " ".join(drawn(block))
        assert text.isprintable()
        assert "[bold]y[/bold]" in text  # markup is text like any other
    assert r"\x1b[31m\nx" in to_lines([EVIL])[0]


def test_json_is_ascii() -> None:
    text = to_json({"a": EVIL + "\x7f\x9b"})
    assert text.isascii()
    assert text.replace("\n", "").isprintable()


def test_a_narrow_terminal_folds_and_loses_nothing() -> None:
    table = Table(("stream", ">done"), [("a-long-name-of-a-stream-that-is-listed", "1,000")])
    lines = drawn(table, width=30)
    assert all(len(line) <= 30 for line in lines)
    assert "1,000" in " ".join(lines)
    name = "".join(line.split()[0] for line in lines[1:] if line.split())
    assert "a-long-name-of-a-stream-that-is-listed" in name


def test_a_terminal_too_narrow_for_columns_gets_lines(
    run: Terminal, gh: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_run(gh, "[bold]run[/bold]", {("a",): complete(1)})
    commands = [("ls", gh), ("show", gh, "gh-2025"), ("show", gh, "[bold]run[/bold]")]
    plain = {command: "".join(run(*command).out.split()) for command in commands}
    monkeypatch.setenv("COLUMNS", "40")
    for command, words in plain.items():
        screen = FakeTerminal()
        monkeypatch.setattr("sys.stdout", screen)
        assert run(*command).code == 0
        assert "".join(screen.getvalue().split()) == words  # wherever the lines are broken


def test_a_capped_table_says_how_much_is_left_out() -> None:
    table = capped(("a",), range(5), lambda n: (str(n),), 2, "things")
    assert table.rows == [("0",), ("1",)]
    assert table.note == "and 3 more things; --all shows them"
    assert capped(("a",), range(5), lambda n: (str(n),), None, "things").note == ""


def test_a_terminal_sees_the_same(
    run: Terminal, store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_run(store, "run", {(f"repo{n}",): complete(1) for n in range(30)})
    plain = run("show", store).out
    screen = FakeTerminal()
    monkeypatch.setenv("COLUMNS", "120")
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.setattr("sys.stdout", screen)
    assert run("show", store).code == 0
    for line in plain.splitlines():
        for cell in filter(None, line.split("  ")):
            assert cell.strip() in screen.getvalue()
