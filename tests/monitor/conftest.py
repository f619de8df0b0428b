"""What the tests of the monitor share."""

from __future__ import annotations

import gc
import os
import threading
from collections.abc import Iterator

import pytest


def open_files() -> set[str]:
    """What is open in this process, but for what pytest and trio have for themselves."""
    found = set[str]()
    for fd in os.listdir("/proc/self/fd"):
        try:
            found.add(f"{fd} {os.readlink(f'/proc/self/fd/{fd}')}")
        except OSError:
            continue  # that of the listing itself
    return found


@pytest.fixture
def nothing_left() -> Iterator[None]:
    """No socket, file or thread is left behind that was not there before."""
    threads = {thread.name for thread in threading.enumerate()}
    files = open_files()
    yield
    gc.collect()
    left = {name for name in open_files() - files if "anon_inode" not in name}
    assert left == set()
    new = {t.name for t in threading.enumerate()} - threads
    assert {name for name in new if not name.startswith("Trio thread")} == set()
