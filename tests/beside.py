"""A store as another process has it: by a handle of its own."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path

import trio

from trio_ckpt.abc import Store
from trio_ckpt.stores import open_store


@asynccontextmanager
async def opened(folder: Path) -> AsyncGenerator[Store]:
    """A handle on the store in a folder."""
    store = await open_store(folder / "s.ckpt")
    try:
        yield store
    finally:
        with trio.CancelScope(shield=True):
            await store.aclose()
