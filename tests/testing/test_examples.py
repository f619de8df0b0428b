"""Our examples survive every crash: a few hundred here, all of them by hand.

python -m tests.testing.explore_examples
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.testing.examples import Book, check_crawl, crawl

CRASHES = 250  # plans for each example: seconds


def test_the_crawler_survives(ckpt_crashes: Callable[..., Any]) -> None:
    found = ckpt_crashes(crawl, check_crawl, crashes=CRASHES)
    assert found.crash_points >= CRASHES * 0.9


def test_the_book_survives(ckpt_crashes: Callable[..., Any], tmp_path: Path) -> None:
    book = Book(tmp_path)
    found = ckpt_crashes(book.scan, book.check, crashes=CRASHES)
    assert found.crash_points >= CRASHES * 0.9
