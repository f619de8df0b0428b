"""How tests open what they work on."""

from __future__ import annotations

import os
from contextlib import AbstractAsyncContextManager, AbstractContextManager
from typing import Any

from trio_ckpt import Run, blocking, open_run
from trio_ckpt.abc import Store


def begin(
    store: Store | str | os.PathLike[str] = "memory:", run_id: str = "r", **options: Any
) -> AbstractAsyncContextManager[Run]:
    """Open a run that leaves the signals to pytest, which has handlers of its own."""
    return open_run(run_id, **{"store": store, "handle_signals": False} | options)


def begin_blocking(
    store: Store | str | os.PathLike[str] = "memory:", run_id: str = "r", **options: Any
) -> AbstractContextManager[blocking.BlockingRun]:
    """Open a run of a synchronous program that leaves the signals to pytest."""
    return blocking.open_run(run_id, **{"store": store, "handle_signals": False} | options)
