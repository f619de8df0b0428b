"""What the page on the command shows is what the command says."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.cli.tools import Terminal, make_gh, make_run, session
from trio_ckpt.cli import _app, _exits
from trio_ckpt.stores._local.locks import lock_run

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "reference" / "command.md").read_text(encoding="utf-8")
CONSOLE = re.compile(r"^```console\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def shown() -> Iterator[tuple[str, str]]:
    """Each command that the page shows, and what it shows that it says."""
    for block in CONSOLE.findall(PAGE):
        for part in re.split(r"^\$ ", block, flags=re.MULTILINE)[1:]:
            command, _, output = part.partition("\n")
            yield command, output


def settled(text: str) -> str:
    """Without what is another on each day."""
    text = re.sub(r"\d+ d \d+ h ago +", "AGO  ", text)
    text = re.sub(r"last saved +", "last saved  ", text)
    text = re.sub(r'("last_activity": )("[^"]*"|null)', r"\1AT", text)
    text = re.sub(r"records, [\d,]+ bytes", "records, N bytes", text)
    return text.replace("watched: 0 batches in 0.1 s", "watched: 0 batches in 0.0 s")


def test_every_command_that_is_shown_says_what_is_shown(
    run: Terminal, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    make_gh(Path("gh.ckpt"))
    commands = list(shown())
    assert len(commands) == 11
    for command, output in commands:
        program, *typed = shlex.split(command)
        assert program == "trio-ckpt"
        said = run(*typed)
        found = said.out.replace(str(tmp_path), "/srv")
        found = found.replace(
            " add_streams never named it, unlike others: streams_to_process gives it last.", ""
        )
        assert settled(found) == settled(output), command


def test_every_command_is_in_the_table_and_has_help(run: Terminal) -> None:
    assert re.findall(r"^\| `(\w+)` \| [a-z]", PAGE, re.MULTILINE)[: len(_app.COMMANDS)] == list(
        _app.COMMANDS
    )
    for command in _app.COMMANDS:
        said = run(command, "--help")
        assert said.code == 0
        assert "--json" in said.out
    listed = run("--help")
    assert listed.code == 0
    assert all(f"  {command} " in listed.out for command in _app.COMMANDS)


def test_every_exit_code_is_in_the_table() -> None:
    section = PAGE.partition("## Exit codes of the command")[2].partition("\n## ")[0]
    listed = {int(code) for code in re.findall(r"^\| (\d+) \|", section, re.MULTILINE)}
    own = {value for name, value in vars(_exits).items() if name.startswith("EXIT_")}
    assert listed == own | {3, 69, 75, 130}  # of a program, which `watch` answers, too


def keys_of(value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        for key, item in value.items():
            yield key
            if key not in FREE:
                yield from keys_of(item)
    elif isinstance(value, list):
        for item in value:
            yield from keys_of(item)


FREE = {"config", "metadata", "phases", "produced", "spent", "totals", "failures"} | {
    "packages",
    "spent_on_confirmed",
    "mean_spent_per_confirmed_batch",
}
"""What is in these is named by the program, not by us."""


def test_every_key_of_the_documents_is_on_the_page(run: Terminal, tmp_path: Path) -> None:
    store = tmp_path / "gh.ckpt"
    code = {"commit": "0" * 40, "is_dirty": False, "packages": {"trio": "0.27.0"}}
    make_gh(store, sessions=[session(code=code)])
    commands: list[list[object]] = [
        ["ls", store],
        ["show", store],
        ["watch", store],
        ["explain", store],
        ["history", store],
        ["history", store, "--stream", "org/repo1/pulls"],
        ["verify", store],
        ["verify", store, "--full"],
        ["verify", store, "--repair", "--yes"],
        ["export", store, "gh-2025", tmp_path / "x"],
        ["import", tmp_path / "other", tmp_path / "x"],
        ["show", store, "none"],
        ["retry", store, "gh-2025", "--yes"],
        ["reset", store, "gh-2025", "--yes"],
        ["prune", store, "gh-2025", "--keep", 1, "--yes"],
    ]
    lock = lock_run(store, "gh-2025")
    try:
        found = set(keys_of(run("show", store, "--json").json))
    finally:
        lock.release()
    for command in commands:
        found |= set(keys_of(run(*command, "--json").json))
    section = PAGE.partition("## JSON")[2]
    documented = set(re.findall(r"`(\w+)`", section))
    statuses = {"pending", "in_progress", "complete", "failed", "interrupted"}
    assert found - statuses - documented == set()


def test_what_the_page_quotes_is_said(run: Terminal, tmp_path: Path) -> None:
    """Messages that need more than one store are asserted where they arise; here they are found."""
    sources = "".join(
        path.read_text(encoding="utf-8") for path in (ROOT / "tests").rglob("test_*.py")
    )
    joined = re.sub(r'"\s*(?:f|r)?"', "", sources)
    section = PAGE.partition("What else it may say:")[2].partition("(troubles)=")[0]
    quotes = re.findall(r"^\| ([A-Z'a].*?) \| ", section, re.MULTILINE)
    assert len(quotes) == 12
    for quote in quotes:
        for sentence in re.split(r"(?<=[.]) ", quote):
            assert sentence.strip(" .") in joined, sentence


def test_a_store_is_not_made_by_its_name_only(run: Terminal, tmp_path: Path) -> None:
    make_run(tmp_path / "s", "run", {})
    assert run("ls", f"sqlite:{tmp_path / 's'}").code == 0
