"""How tests have acts done on an open run, without a socket in between."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Any

import pytest
import trio

from tests.opening import begin
from trio_ckpt import Run
from trio_ckpt._journal.acts import Act, ActReply
from trio_ckpt._runs import lifecycle
from trio_ckpt._runs.open_run import OpenRun
from trio_ckpt._runs.session import SessionRecorder
from trio_ckpt._runs.steering import Steering


@asynccontextmanager
async def begin_steered(store: Any, **options: Any) -> AsyncGenerator[tuple[Run, Steering]]:
    """Open a run, and have what does the acts on it."""
    found: list[Steering] = []

    async def keep(run: OpenRun, session: SessionRecorder) -> None:
        found.append(Steering(run, session))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(lifecycle, "serve_acts", keep)
        async with begin(store, **options) as run:
            while not found:
                await trio.lowlevel.checkpoint()
            yield run, found[0]


def act(do: Any, **more: Any) -> Act:
    """An act of a user."""
    return Act(do, "ann", "box", 4711, **more)


async def done(steering: Steering, do: Any, **more: Any) -> str:
    """Have an act done; returns what was done."""
    reply = await steering.do(act(do, **more))
    assert reply.is_done, reply.text
    return reply.text


async def refused(steering: Steering, do: Any, **more: Any) -> str:
    """Have an act refused; returns why."""
    reply: ActReply = await steering.do(act(do, **more))
    assert not reply.is_done
    return reply.text
