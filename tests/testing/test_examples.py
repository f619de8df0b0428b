"""Our examples survive every crash: a few hundred here, all of them by hand.

python -m tests.testing.explore_examples
"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.testing.examples import Book, check_crawl, crawl
from tests.testing.more_programs import MORE

CRASHES = 200  # plans for each example: seconds


def test_the_crawler_survives(ckpt_crashes: Callable[..., Any]) -> None:
    found = ckpt_crashes(crawl, check_crawl, crashes=CRASHES, time_limit_s=math.inf)
    assert found.crash_points >= CRASHES * 0.9


def test_the_book_survives(ckpt_crashes: Callable[..., Any], tmp_path: Path) -> None:
    book = Book(tmp_path)
    found = ckpt_crashes(book.scan, book.check, crashes=CRASHES, time_limit_s=math.inf)
    assert found.crash_points >= CRASHES * 0.9


@pytest.mark.parametrize(
    ("program", "check"), [more[1:] for more in MORE], ids=[m[0] for m in MORE]
)
def test_what_else_the_library_can_do_survives(
    program: Any, check: Any, ckpt_crashes: Callable[..., Any]
) -> None:
    found = ckpt_crashes(program, check, crashes=CRASHES // 4, time_limit_s=math.inf)
    assert found.crash_points >= CRASHES // 4 * 0.8
