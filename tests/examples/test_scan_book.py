"""The two stages over the pages of a book: ranges, costs, validation, redo, resume."""

from __future__ import annotations

import json
import logging
import re
import signal
import sys
from fractions import Fraction
from pathlib import Path

import pytest

import trio_ckpt
from examples import scan_book
from tests.examples.running import run_example
from trio_ckpt.stores import open_store

ROOT = Path(__file__).parents[2]
PAGES = 20

BOOK = "".join(
    f"Chapter  {page}:   teh page\n  has ``quotes'' and num-\nber {page * 7919 % 101}.\n"
    for page in range(1, PAGES + 1)
)
"""Three lines to a page, and something to correct on each."""


@pytest.fixture
def book(tmp_path: Path) -> Path:
    path = tmp_path / "book.txt"
    path.write_text(BOOK)
    return path


async def scan(book: Path, out: Path, *words: str) -> int:
    """One session."""
    words = (str(book), "--out", str(out), "--lines-per-page", "3", *words)
    return await scan_book.scan(scan_book.parse_options(words))


def pages(out: Path) -> dict[str, bytes]:
    """All pages of both stages."""
    stages = (out / "extract", out / "correct")
    files = [path for stage in stages if stage.exists() for path in sorted(stage.iterdir())]
    return {path.relative_to(out).as_posix(): path.read_bytes() for path in files}


async def read(out: Path, stage: str) -> trio_ckpt.Progress:
    """What is saved of a stage."""
    store = await open_store(out / "book.ckpt")
    view = await store.load_run("book")
    await store.aclose()
    assert view is not None
    return view.streams[stage,].progress


def price_of(out: Path, *indexes: int) -> Fraction:
    """What the model asks for pages, once each."""
    files = (out / "extract" / scan_book.page_name(index) for index in indexes)
    texts = ("\n".join(json.loads(path.read_text())["lines"]) for path in files)
    return sum((Fraction(len(t) * scan_book.USD_PER_CHARACTER) for t in texts), Fraction())


async def test_both_stages_leave_a_checked_file_for_every_page(book: Path, tmp_path: Path) -> None:
    assert await scan(book, tmp_path) == 0
    extracted = json.loads((tmp_path / "extract/page-0007.json").read_text())
    assert extracted == {
        "page": 7,
        "lines": ["Chapter  7:   teh page", "  has ``quotes'' and num-", "ber 85."],
        "words": 10,
    }
    corrected = json.loads((tmp_path / "correct/page-0007.json").read_text())
    assert corrected["text"] == 'Chapter 7: the page\nhas "quotes" and number 85.'
    assert len(pages(tmp_path)) == 2 * PAGES
    manifest = json.loads((tmp_path / "manifest.json").read_text())
    listed = [output["path"] for stage in manifest["streams"] for output in stage["outputs"]]
    assert sorted(listed) == sorted(pages(tmp_path))


async def test_the_pages_are_the_same_bytes_with_any_number_of_workers(
    book: Path, tmp_path: Path
) -> None:
    for workers in ("1", "4", "16"):
        assert await scan(book, tmp_path / workers, "--workers", workers) == 0
    assert pages(tmp_path / "1") == pages(tmp_path / "4") == pages(tmp_path / "16")


async def test_a_placeholder_is_refused_asked_for_again_and_paid_twice(
    book: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, "scan_book"):
        assert await scan(book, tmp_path) == 0
    again = [int(n) for n in re.findall(r"correct page (\d+) attempt 2", caplog.text)]
    assert again, "a book without a placeholder shows nothing"
    assert "attempt 3" not in caplog.text
    assert not any(b"illegible" in page for page in pages(tmp_path).values())
    progress = await read(tmp_path, "correct")
    produced = price_of(tmp_path, *range(1, PAGES + 1))
    assert progress.totals["cost_usd"].value == float(produced)
    assert progress.spent["cost_usd"].value == float(produced + price_of(tmp_path, *again))


@pytest.mark.parametrize(
    "text", ["[illegible]", "so [TODO] it is", "<unk>", "Lorem ipsum dolor", "[page text here]"]
)
def test_placeholders_are_found(text: str) -> None:
    with pytest.raises(ValueError, match="stands for something that is not there"):
        scan_book.refuse_placeholders({"text": text})
    scan_book.refuse_placeholders({"text": "a page that [really] says something"})


async def test_a_range_leaves_the_rest_and_says_so(
    book: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    assert await scan(book, tmp_path, "--start", "3", "--end", "6") == 75
    assert list((await read(tmp_path, "extract")).confirmed) == [3, 4, 5, 6]
    assert list((await read(tmp_path, "correct")).confirmed) == [3, 4, 5, 6]
    assert (await read(tmp_path, "extract")).status is not trio_ckpt.Status.COMPLETE
    assert "extract: 4 pages to do" in capsys.readouterr().err
    assert await scan(book, tmp_path) == 0
    saves = f"${float(price_of(tmp_path, 3, 4, 5, 6)):.4f}"
    said = capsys.readouterr().err
    (resumes,) = [line for line in caplog.messages if "resumes" in line]
    assert resumes.startswith("run 'book' resumes: 8 batches done")
    assert f"extract: 4 of {PAGES} pages done; 16 to do" in said
    assert f"correct: 4 of {PAGES} pages done, which saves {saves}; 16 to do" in said
    assert "correct: 16 pages this time, 20 in all; $" in said
    whole = tmp_path / "whole"
    assert await scan(book, whole) == 0
    assert pages(tmp_path) == pages(whole)


async def test_redo_does_pages_once_more_in_both_stages(
    book: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    assert await scan(book, tmp_path) == 0
    before, was = pages(tmp_path), await read(tmp_path, "correct")
    caplog.clear()
    with caplog.at_level(logging.INFO, "scan_book"):
        assert await scan(book, tmp_path, "--redo", "3,17") == 0
    begun = re.findall(r"(\w+) page (\d+) attempt 1", caplog.text)
    assert sorted(begun) == [(s, n) for s in ("correct", "extract") for n in ("17", "3")]
    assert pages(tmp_path) == before
    now, again = await read(tmp_path, "correct"), re.findall(r"page (\d+) attempt 2", caplog.text)
    assert now.totals == was.totals, "what is redone replaces what it was"
    more = price_of(tmp_path, 3, 17, *map(int, again))
    assert now.spent["cost_usd"].value == float(Fraction(was.spent["cost_usd"].value) + more)
    archived = {path.name for path in (tmp_path / ".archive").rglob("page-*.json")}
    assert archived == {"page-0003.json", "page-0017.json"}


async def test_what_was_deleted_or_spoiled_is_done_again(
    book: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    assert await scan(book, tmp_path) == 0
    before = pages(tmp_path)
    (tmp_path / "extract/page-0004.json").unlink()
    page = json.loads(before["correct/page-0009.json"])
    (tmp_path / "correct/page-0009.json").write_text(json.dumps({**page, "text": "[illegible]"}))
    with caplog.at_level(logging.INFO, "scan_book"):
        assert await scan(book, tmp_path) == 0
    begun = re.findall(r"(\w+) page (\d+) attempt 1", caplog.text)
    assert begun == [("extract", "4"), ("correct", "9")]
    assert pages(tmp_path) == before


async def test_a_stage_says_what_it_was_done_with(book: Path, tmp_path: Path) -> None:
    assert await scan(book, tmp_path, "--end", "15") == 75
    assert await scan(book, tmp_path) == 0
    progress = await read(tmp_path, "correct")
    assert progress.metadata == {"model": "pretend-1", "pages_this_session": 5}
    assert progress.completed_at is not None
    sequence = progress.sequence
    assert await scan(book, tmp_path) == 0
    assert (await read(tmp_path, "correct")).sequence == sequence, "nothing was done, or said"


@pytest.mark.parametrize(
    ("words", "field"), [(["--model", "pretend-2"], "model"), (["--workers", "2"], None)]
)
async def test_another_model_is_refused_other_workers_are_not(
    words: list[str], field: str | None, book: Path, tmp_path: Path
) -> None:
    assert await scan(book, tmp_path) == 0
    if field is None:
        assert await scan(book, tmp_path, *words) == 0
    else:
        with pytest.raises(trio_ckpt.ConfigChangedError, match=field):
            await scan(book, tmp_path, *words)
        assert await scan(book, tmp_path, *words, "--fresh") == 0


class Interrupt(logging.Handler):
    """Sends a signal when a page is begun."""

    def __init__(self, line: str) -> None:
        super().__init__()
        self.line = line

    def emit(self, record: logging.LogRecord) -> None:
        if record.getMessage() == self.line:
            signal.raise_signal(signal.SIGTERM)


async def test_a_signal_saves_what_is_begun(book: Path, tmp_path: Path) -> None:
    handler, log = Interrupt("correct page 8 attempt 1"), logging.getLogger("scan_book")
    log.addHandler(handler)
    log.setLevel(logging.INFO)
    try:
        with pytest.raises(trio_ckpt.RunStoppedError) as caught:
            await scan(book, tmp_path)
    finally:
        log.removeHandler(handler)
        log.setLevel(logging.NOTSET)
    assert caught.value.exit_code == 75
    done = len((await read(tmp_path, "correct")).confirmed)
    assert 4 <= done < PAGES
    assert await scan(book, tmp_path) == 0
    whole = tmp_path / "whole"
    assert await scan(book, whole) == 0
    assert pages(tmp_path) == pages(whole)
    for stage in ("extract", "correct"):
        progress, wanted = await read(tmp_path, stage), await read(whole, stage)
        assert (progress.totals, progress.spent) == (wanted.totals, wanted.spent)


# --------------------------------------------------------------------------- the book, the command


def test_a_text_comes_with_every_python(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The licence beside the library, or above it; without one, chapters of help()."""
    library = tmp_path / "lib" / "python3"
    library.mkdir(parents=True)
    monkeypatch.setattr("examples.scan_book.os.__file__", str(library / "os.py"))
    chapters = scan_book.read_book(None)
    assert len(scan_book.split_pages(chapters, 12)) > 10
    assert scan_book.read_book(None) == chapters
    (tmp_path / "lib" / "LICENSE").write_text("above")
    assert scan_book.read_book(None) == "above"
    (library / "LICENSE.txt").write_text("beside")
    assert scan_book.read_book(None) == "beside"
    mine = tmp_path / "mine.txt"
    mine.write_text("mine")
    assert scan_book.read_book(mine) == "mine"


def test_going_on_does_not_redo_again(monkeypatch: pytest.MonkeyPatch) -> None:
    words = ["python", "-m", "examples.scan_book", "--redo", "3,17", "--out", "a b", "--fresh"]
    monkeypatch.setattr(sys, "orig_argv", words)
    assert scan_book.resume_command() == "python -m examples.scan_book --out 'a b'"
    monkeypatch.setattr(sys, "orig_argv", ["python", "--redo=3", "--end=5"])
    assert scan_book.resume_command() == "python --end=5"


def test_the_command_works_on_the_licence_of_python(tmp_path: Path) -> None:
    log = tmp_path / "begun.log"
    done = run_example("scan_book", "--out", str(tmp_path / "out"), "--log", str(log))
    assert done.returncode == 0, done.stderr
    count = len(scan_book.split_pages(scan_book.read_book(None), 12))
    assert f"correct: {count} pages this time, {count} in all; $" in done.stderr
    assert len(re.findall("attempt 1", log.read_text())) == 2 * count


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["no-such-book.txt"], 1, "FileNotFoundError"),
        (["--redo", "3,x"], 2, "a whole number from 1"),
        (["--start", "0"], 2, "a whole number from 1"),
    ],
)
def test_what_cannot_work_is_one_line(
    words: list[str], code: int, said: str, tmp_path: Path
) -> None:
    done = run_example("scan_book", *words, "--out", str(tmp_path))
    assert done.returncode == code
    assert said in done.stderr
    assert "Traceback" not in done.stderr


async def test_the_model_costs_no_more_than_is_allowed(book: Path, tmp_path: Path) -> None:
    allowed = price_of_half(book)
    words = ("--workers", "1", "--max-cost")
    for _ in range(2):
        with pytest.raises(trio_ckpt.RunStoppedError, match="cost_usd are spent"):
            await scan(book, tmp_path, *words, f"{allowed:.9f}")
    assert 0 < len(pages(tmp_path)) < 2 * PAGES
    assert await scan(book, tmp_path, *words, "50") == 0
    assert len(pages(tmp_path)) == 2 * PAGES


def price_of_half(book: Path) -> float:
    """About half of what the model asks for one stage."""
    return len(book.read_text()) * scan_book.USD_PER_CHARACTER / 2
