from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.damage.sweep import Sweep, make_samples


@pytest.fixture(scope="session")
def sweep(tmp_path_factory: pytest.TempPathFactory) -> Sweep:
    """Samples of both stores, and what is seen of them while they are whole."""
    return Sweep(make_samples(tmp_path_factory.mktemp("damage")))


@pytest.fixture(autouse=True)
def _private(tmp_path: Path) -> Iterator[None]:
    before = os.umask(0o077)
    yield
    os.umask(before)
