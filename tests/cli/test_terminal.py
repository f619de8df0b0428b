"""What a terminal of 80 and of 200 columns shows, also without colour and without UTF-8."""

from __future__ import annotations

import io
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.cli.tools import AGO, T0, Terminal, make_gh

COMMANDS = [
    ["ls"],
    ["show"],
    ["watch"],
    ["explain"],
    ["history"],
    ["history", "--stream", "org/repo1/pulls"],
    ["verify"],
    ["doctor"],
]
STYLE = re.compile(r"\x1b\[([\d;]*)m")
MOVE = re.compile(r"\x1b\[\??\d*[AKhl]|\r")  # lines that are drawn in place
BOLD = {"1", "0"}

Look = Callable[..., str]
NOW = T0 + 9 * 86_400 + 9 * 3_600 + 60


class Screen(io.TextIOWrapper):
    """A terminal that takes bytes of one encoding."""

    def __init__(self, encoding: str) -> None:
        self.bytes = io.BytesIO()
        super().__init__(self.bytes, encoding=encoding, newline="\n")

    def isatty(self) -> bool:
        return True


@pytest.fixture
def look(run: Terminal, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Look:
    """Types a command about a store at a width; returns what the terminal got."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.delenv("NO_COLOR", raising=False)
    make_gh(Path("gh.ckpt"))

    def type_it(command: list[str], columns: int, encoding: str = "utf-8") -> str:
        screen = Screen(encoding)
        with monkeypatch.context() as patch:
            patch.setenv("COLUMNS", str(columns))
            patch.setattr("time.time", lambda: NOW)  # the columns are as wide as what they say
            patch.setattr("sys.stdout", screen)
            run(command[0], "gh.ckpt", *command[1:])
        screen.flush()
        return screen.bytes.getvalue().decode(encoding)

    return type_it


def text_of(shown: str) -> str:
    """What is left to read: without bold, and with a day that never changes."""
    plain = AGO.sub("9 d 9 h ago", STYLE.sub("", shown))
    return re.sub(r"\s+sqlite:\S*gh\.ckpt", " sqlite:gh.ckpt", plain)


@pytest.mark.parametrize("columns", [80, 200])
@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_no_line_is_wider_than_the_terminal(
    look: Look, command: list[str], columns: int, tmp_path: Path
) -> None:
    for line in MOVE.sub("\n", STYLE.sub("", look(command, columns))).splitlines():
        if str(tmp_path) not in line:  # a path is never broken
            assert len(line) <= columns, line


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_headings_are_bold_and_nothing_has_a_colour_of_its_own(
    look: Look, command: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    coloured = look(command, 80)
    assert set(";".join(STYLE.findall(coloured)).split(";")) <= BOLD | {""}  # dark or light
    monkeypatch.setenv("NO_COLOR", "1")
    if command != ["doctor"]:  # it measures
        assert text_of(look(command, 80)) == text_of(coloured)


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_a_terminal_without_utf_8_has_the_same_columns(look: Look, command: list[str]) -> None:
    plain, ours = look(command, 80, "ascii"), look(command, 80)
    assert plain.isascii()
    assert "\\u" not in plain
    if command != ["doctor"]:
        assert text_of(plain) == text_of(ours).replace("…", "~")


def test_ls_at_80_columns(look: Look) -> None:
    assert text_of(look(["ls"], 80)) == (
        "store sqlite:gh.ckpt\n"
        "\n"
        "run      status       streams                done     left  skipped  last saved\n"
        "gh-2025  interrupted  1 pending, 2 complet…    17  unknown        1  9 d 9 h ago\n"
        "    streams: 1 pending, 2 complete, 2 failed, 1 interrupted; session: 1 ended\n"
    )


def test_history_at_80_and_at_200_columns(look: Look) -> None:
    assert text_of(look(["history"], 80)) == (
        "run 'gh-2025' in sqlite:gh.ckpt\n"
        "\n"
        "session  began                    took        how it ended  process   config\n"
        "      1  2025-11-20 12:00:00 UTC  1 min 00 s  ended         4711 on…  8b7ca09a1…\n"
        "    process: 4711 on box; config: 8b7ca09a1e75; what it did: 25 batches\n"
        "        confirmed, 0 skipped; produced records 250; spent cost_usd 0.5\n"
    )
    assert text_of(look(["history"], 200)) == (
        "run 'gh-2025' in sqlite:gh.ckpt\n"
        "\n"
        "session  began                    took        how it ended  process      config        "
        "what it did\n"
        "      1  2025-11-20 12:00:00 UTC  1 min 00 s  ended         4711 on box  8b7ca09a1e75  "
        "25 batches confirmed, 0 skipped; produced records 250; spent cost_usd 0.5\n"
    )


def test_show_at_80_columns_sets_the_last_column_below(look: Look) -> None:
    shown = text_of(look(["show"], 80))
    assert (
        "stream            status       done     left  skipped  records  spent\n"
        "org/repo2/pulls   failed          3        0        0       30  cost_usd 0.75\n"
        "    error: ForbiddenError: 403: not yours (batch 3); for good\n"
    ) in shown
    assert "org/repo1  interrupted  1 complete, 1 interrup…     8        6        0       80\n" in (
        shown
    )


def test_a_point_of_explain_is_indented_below_its_text(look: Look) -> None:
    points = text_of(look(["explain"], 80)).partition("\n\n")[2].splitlines()
    assert len(points) > 10
    assert {line[:2] for line in points} == {"- ", "  "}
    wide = [line for line in text_of(look(["explain"], 200)).splitlines() if line[:2] == "- "]
    assert wide[3] == "- Stream 'org/repo4/pulls' has not begun: a start begins it."
    assert len(wide) == 6
