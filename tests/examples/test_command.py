"""What is typed wrong is refused with 2, before anything is begun."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from examples import collector, crawler, scan_book, train, train_on_workers
from examples._command import (
    add_limits,
    amount,
    explain,
    limits_of,
    output_folder,
    seconds,
    whole_number,
)
from trio_ckpt import Limits


@pytest.mark.parametrize("text", ["1", "5", "10", "010"])
def test_whole_numbers_within_bounds(text: str) -> None:
    assert whole_number(1, 100)(text) == int(text)


@pytest.mark.parametrize("text", ["0", "101", "", "-1", "1.5", "x", "²", "٣", "9" * 5_000, " 1"])
def test_what_is_no_whole_number_within_bounds(text: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError, match="a whole number from 1 to 100, not"):
        whole_number(1, 100)(text)


@pytest.mark.parametrize("text", ["0", "0.5", "86400", "1e3"])
def test_seconds(text: str) -> None:
    assert seconds()(text) == float(text)


@pytest.mark.parametrize("text", ["nan", "inf", "-1", "86401", "x", "", "1e999"])
def test_what_are_no_seconds(text: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError, match="seconds, at most 86400, not"):
        seconds()(text)


def test_zero_seconds_where_there_have_to_be_some() -> None:
    with pytest.raises(argparse.ArgumentTypeError, match="not '0'"):
        seconds(is_zero_allowed=False)("0")


def test_an_empty_text_names_no_folder() -> None:
    """A variable of the shell that is not set would be the current folder."""
    assert output_folder("x") == Path("x")
    with pytest.raises(argparse.ArgumentTypeError, match="a folder, not nothing"):
        output_folder("")


def test_an_error_is_a_line_and_a_group_a_line_each(capsys: pytest.CaptureFixture[str]) -> None:
    inner = ExceptionGroup("inner", [KeyError("k"), OSError("disk")])
    assert explain(ExceptionGroup("outer", [ValueError("v"), inner])) == 1
    assert capsys.readouterr().err == "ValueError: v\nKeyError: 'k'\nOSError: disk\n"


COMMANDS: dict[str, tuple[Callable[[], object], list[str]]] = {
    "crawler": (crawler.main, ["http://e.test/"]),
    "collector": (collector.main, []),
    "scan_book": (scan_book.main, []),
    "train": (train.command, []),
    "train_on_workers": (train_on_workers.command, []),
}
BAD = [
    ("crawler", ["--concurrency", "1001"]),
    ("collector", ["--workers", "101"]),
    ("collector", ["--url", "nonsense"]),
    ("scan_book", ["--latency", "nan"]),
    ("scan_book", ["--start", "5", "--end", "2"]),
    ("scan_book", ["--redo", "3,"]),
    ("train", ["--epochs", "0"]),
    ("train", ["--hidden", "0"]),
    ("train", ["--seed", "-1"]),
    ("train_on_workers", ["--networks", "0"]),
    *((name, ["--out", ""]) for name in COMMANDS),
]


@pytest.mark.parametrize(("name", "words"), BAD)
def test_a_bad_command_line_is_exit_code_2(
    name: str, words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    main, needed = COMMANDS[name]
    monkeypatch.setattr(sys, "argv", [name, *needed, "--out", str(tmp_path / "out"), *words])
    with pytest.raises(SystemExit) as caught:
        main()
    assert caught.value.code == 2
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["collector", "scan_book", "train"])
def test_an_output_folder_that_cannot_be_made_is_one_line(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("not a folder")
    main, needed = COMMANDS[name]
    monkeypatch.setattr(sys, "argv", [name, *needed, "--out", str(tmp_path / "file" / "out")])
    assert main() == 1
    assert capsys.readouterr().err.count("\n") == 1


ARGUMENTS = {
    collector: ["--out", "out"],
    crawler: ["--out", "out", "http://127.0.0.1/"],
    scan_book: ["--out", "out"],
}


@pytest.mark.parametrize("module", ARGUMENTS, ids=lambda one: one.__name__)
def test_what_went_wrong_is_a_line_each_however_deep(
    module: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A nursery in a nursery raises a group in a group."""
    inner = ExceptionGroup("inner", [ValueError("b"), ExceptionGroup("leaf", [KeyError("c")])])

    def run(*_: object) -> int:
        raise ExceptionGroup("outer", [OSError("a"), inner])

    monkeypatch.setattr("sys.argv", ["it", *ARGUMENTS[module]])
    monkeypatch.setattr("trio.run", run)
    assert module.main() == 1
    assert capsys.readouterr().err.splitlines() == ["OSError: a", "ValueError: b", "KeyError: 'c'"]


@pytest.mark.parametrize("text", ["0", "-1", "nan", "inf", "x", ""])
def test_what_is_no_amount_of_money(text: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError, match="an amount above 0, not"):
        amount(text)


@pytest.mark.parametrize(
    ("words", "limits"),
    [
        ([], Limits()),
        (["--max-cost", "0.5"], Limits(spent={"cost_usd": 0.5})),
        (["--max-runtime", "30", "--max-batches", "7"], Limits(runtime_s=30, batches=7)),
        (["--max-failures", "20"], Limits(consecutive_failures=20)),
    ],
)
def test_options_are_the_limits_of_the_run(words: list[str], limits: Limits) -> None:
    parser = argparse.ArgumentParser()
    add_limits(parser, has_cost=True)
    assert limits_of(parser.parse_args(words)) == limits
