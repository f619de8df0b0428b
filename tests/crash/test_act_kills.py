"""An act whose process is killed at any change of a file was done, or it never was."""

from __future__ import annotations

import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import trio

from tests.crash.acts import (
    ACTS,
    BATCHES,
    DONE,
    KEY,
    REQUEUED,
    RUN,
    SKIPPED,
    AimedKills,
    do_act,
    finish,
    prepare,
)
from tests.crash.recorder import NO_COMPILER, Action, build, has_compiler
from trio_ckpt import read_history
from trio_ckpt._journal.acts import paused_text, read_acts
from trio_ckpt._journal.history import session_metadata_of
from trio_ckpt.stores import open_store

pytestmark = [
    pytest.mark.skipif(sys.platform != "linux", reason="the recorder is for Linux"),
    pytest.mark.skipif(not has_compiler(), reason=NO_COMPILER),
]
MOST_POINTS = 40  # an act makes fewer changes


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[AimedKills]:
    with AimedKills(build(tmp_path_factory.mktemp("recorder"))) as started:
        yield started


async def is_on_record(url: str, do: str, was_answered: bool) -> bool:
    """See that an act is done as its record says; returns whether it is on record."""
    store = await open_store(url)
    acts = [act.do for act in await read_acts(store, RUN)]
    before = ["pause"] if do == "resume" else []
    assert acts in (before, [*before, do])
    is_done = len(acts) > len(before)
    assert is_done or not was_answered
    view = await store.load_run(RUN)
    assert view is not None
    progress = view.streams[KEY].progress
    is_paused = bool(paused_text(session_metadata_of(view)))
    assert is_paused == (is_done if do == "pause" else do == "resume" and not is_done)
    if not was_answered:  # else it may have gone on
        assert (REQUEUED in progress.confirmed) == (do != "requeue" or not is_done)
        assert len(progress.confirmed) == DONE - (do == "requeue" and is_done)
    assert (SKIPPED in progress.skipped) == (do == "skip" and is_done)
    if is_paused:
        await do_act(store, "resume")
    await store.aclose()
    return is_done


async def saved(url: str) -> list[int]:
    """The batches that the history has as confirmed or skipped."""
    store = await open_store(url)
    kinds = ("batch", "skip")
    views = [view async for view in read_history(store, RUN, KEY) if view.kind in kinds]
    await store.aclose()
    return sorted(view.batch_index or 0 for view in views)


@pytest.mark.parametrize("kind", ["sqlite", "json"])
@pytest.mark.parametrize("do", ACTS)
def test_an_act_that_is_killed_was_done_or_never_was(
    do: str, kind: str, server: AimedKills, tmp_path: Path
) -> None:
    """Before and after each change of a file that the act makes, until it is answered first."""
    found: list[bool] = []
    for point in range(2, 2 * MOST_POINTS):
        action = Action.KILL_AFTER if point % 2 else Action.KILL_BEFORE
        root = tmp_path / str(point)
        root.mkdir()
        url = f"{kind}:{root / 'store'}"
        trio.run(prepare, url, do)
        told = server.kill(url, root, do, action, point // 2)
        was_answered = bool(told.words("answered"))
        assert not told.is_late
        assert told.code == -signal.SIGKILL or was_answered
        is_done = trio.run(is_on_record, url, do, was_answered)
        assert trio.run(finish, url) == (3 if do == "skip" and is_done else 0)
        again = [REQUEUED] if do == "requeue" and is_done else []
        assert trio.run(saved, url) == sorted([*range(BATCHES), *again])
        found.append(is_done)
        if was_answered:
            break
    assert was_answered
    assert found[0] is False
    assert found[-1] is True
