from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.damage.sweep import Sweep, make_samples, room_for_samples


@pytest.fixture(scope="session")
def sweep() -> Iterator[Sweep]:
    """Samples of both stores, and what is seen of them while they are whole."""
    with room_for_samples() as root:
        yield Sweep(make_samples(root))
