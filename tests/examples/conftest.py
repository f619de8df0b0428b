"""A served site for the tests of the examples."""

from __future__ import annotations

import pytest
import trio

from tests.examples.site import Site


@pytest.fixture
async def site(nursery: trio.Nursery) -> Site:
    """An empty site that is being served; a test fills ``site.pages``."""
    site = Site()
    await nursery.start(site.serve)
    return site
