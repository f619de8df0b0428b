"""Answers are drawn as plain lines, or for a terminal: the same text, whatever is in it."""

from __future__ import annotations

import io
import json
import re
from pathlib import Path

import pytest

from tests.cli.tools import Terminal, complete, make_run
from trio_ckpt._util.screen import console_for
from trio_ckpt.cli._render import (
    Pairs,
    Table,
    capped,
    fitted_lines,
    to_json,
    to_lines,
    to_rich,
)

EVIL = "\x1b[31m\nx [bold]y[/bold] \u202e"


class FakeTerminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def drawn(block: str | Pairs | Table, width: int = 80) -> list[str]:
    if isinstance(block, Table):
        return fitted_lines(block, width) or to_lines([block])
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


WIDE = Table(
    ("stream", "=began", ">done", "error"),
    [
        ("a-long-name-of-a-stream-that-is-listed", "12:00", "1,000", "403: not yours, " * 5),
        ("short", "12:01", "7", ""),
    ],
    "note",
)


def test_a_narrow_terminal_has_whole_words_and_the_last_column_below() -> None:
    assert fitted_lines(WIDE, 50) == [
        "stream                                began   done",
        "a-long-name-of-a-stream-that-is-lis…  12:00  1,000",
        "    stream:",
        "        a-long-name-of-a-stream-that-is-listed;",
        "        error: 403: not yours, 403: not yours,",
        "        403: not yours, 403: not yours, 403: not",
        "        yours,",
        "short                                 12:01      7",
        "note",
    ]
    assert fitted_lines(WIDE, 200) == to_lines([WIDE])[1:]
    assert fitted_lines(WIDE, 21) is None  # a name of seven letters is none
    assert fitted_lines(Table((">a",), [("1" * 30,)]), 20) is None
    full = " ".join(" ".join(to_lines([WIDE])).split())
    assert WIDE.rows[0][0] in full  # elsewhere nothing is cut
    assert WIDE.rows[0][3].strip() in full


def test_a_column_without_text_is_left_out_before_another_is_cut() -> None:
    table = Table(("what", ">batch", "files", "why"), [("x" * 20, "7", "", ""), ("y", "8", "", "")])
    assert fitted_lines(table, 28) == [
        f"{'what':20}  batch",
        f"{'x' * 20}      7",
        f"{'y':20}      8",
    ]
    assert fitted_lines(table, 80) == to_lines([table])[1:]


def test_the_widest_columns_are_cut_first() -> None:
    table = Table(("a", "b", "c", "why"), [("x" * 20, "y" * 40, "z" * 12, "")])
    assert [line.split() for line in fitted_lines(table, 60) or []] == [
        ["a", "b", "c"],
        ["x" * 20, "y" * 23 + "…", "z" * 12],
        ["b:", "y" * 40],
    ]
    for width in range(36, 80):
        lines = fitted_lines(table, width)
        assert lines is not None
        assert max(map(len, lines)) <= width
        assert max(map(len, lines)) >= min(76, width)  # no more than need be


def test_one_long_name_does_not_push_the_other_rows_aside() -> None:
    table = Table(("stream", ">done"), [("x" * 200, "1"), ("short", "2")])
    assert to_lines([table])[1:] == ["stream  done", "x" * 200 + "     1", "short      2"]


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


@pytest.mark.parametrize("command", [["show"], ["history"], ["ls"]])
def test_at_80_columns_no_word_is_broken(
    run: Terminal, gh: Path, monkeypatch: pytest.MonkeyPatch, command: list[str]
) -> None:
    name = "x" * 200
    make_run(gh, "gh-2026", {(name,): complete(1), ("a", "b"): complete(1)})
    ask = [command[0], gh, *([] if command == ["ls"] else ["gh-2025"])]
    long = ["show", gh, "gh-2026"]
    for typed in (ask, long):
        plain = set(run(*typed).out.split())
        screen = FakeTerminal()
        with monkeypatch.context() as patch:
            patch.setenv("COLUMNS", "80")
            patch.setenv("NO_COLOR", "1")
            patch.setattr("sys.stdout", screen)
            assert run(*typed).code == 0
        text = re.sub(r"\x1b\[\d+m", "", screen.getvalue())
        lines = text.splitlines()
        path = str(gh)
        assert all(len(line) <= 80 for line in lines if path not in line)
        words = [w.strip(";") for line in lines if path not in line for w in line.split()]
        labels = {"error:", "spent:", "session:", "what", "did:", "streams:", "stream:", "group:"}
        known = {word.strip(";") for word in plain} | labels | {"process:", "config:"}
        whole = [w for w in words if not w.endswith("…") and set(w) != {"x"}]  # the long name
        assert sum(word.count("x") for word in words if set(word) == {"x"}) % len(name) == 0
        broken = {word for word in whole if word not in known}
        assert not {word for word in broken if word.removeprefix("sqlite:") not in path}
    assert name in run(*long).out


def test_a_document_says_what_json_cannot_say_as_python_writes_it() -> None:
    """Metadata that another program wrote may hold bytes, numbers that are none, or a deep nest."""
    deep: list[object] = []
    for _ in range(900):
        deep = [deep]
    odd = {"bytes": b"\xff", "nan": float("nan"), 1: (2.5, None), "deep": deep, b"k": True}
    found = json.loads(to_json({"metadata": odd}))["metadata"]
    assert found["bytes"] == r"b'\xff'"
    assert found["nan"] == "nan"
    assert found["1"] == [2.5, None]
    assert "b'k'" in found
    assert to_json({"a": [1.5, "é"]}, indent=None) == '{"a": [1.5, "\\u00e9"]}'
