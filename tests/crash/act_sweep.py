"""An act is killed at each point of it, and what is left is looked at."""

from __future__ import annotations

import signal
from collections.abc import Callable

import trio

from tests.crash.acts import BATCHES, DONE, KEY, MOST_POINTS, REQUEUED, RUN, SKIPPED, do_act, finish
from tests.fork_server import Told
from trio_ckpt import read_history
from trio_ckpt._journal.acts import paused_text, read_acts
from trio_ckpt._journal.history import session_metadata_of
from trio_ckpt.stores import open_store


def nothing() -> None:
    """Do nothing: the lock of a killed owner has ended."""


def check_killed(url: str, do: str, told: Told, end_lease: Callable[[], None] = nothing) -> bool:
    """See that an act was done or never was, and that the run goes on.

    Args:
        url: The store.
        do: The act.
        told: What its session told.
        end_lease: Ends the lease of the owner that was killed.

    Returns:
        Whether the act is on record.
    """
    was_answered = bool(told.words("answered"))
    assert not told.is_late
    assert told.code == -signal.SIGKILL or was_answered
    end_lease()
    is_done = trio.run(_is_on_record, url, do, was_answered)
    assert trio.run(finish, url, do) == (3 if do == "skip" and is_done else 0)
    again = [REQUEUED] if do == "requeue" and is_done else []
    assert trio.run(_saved, url) == sorted([*range(BATCHES), *again])
    return is_done


async def _is_on_record(url: str, do: str, was_answered: bool) -> bool:
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


async def _saved(url: str) -> list[int]:
    """The batches that the history has as confirmed or skipped."""
    store = await open_store(url)
    kinds = ("batch", "skip")
    views = [view async for view in read_history(store, RUN, KEY) if view.kind in kinds]
    await store.aclose()
    return sorted(view.batch_index or 0 for view in views)


def kill_at_each_call(
    ask: Callable[[int], Told], prepare: Callable[[], str], do: str, end_lease: Callable[[], None]
) -> None:
    """Kill an act before and after each change of its store, until it is answered first.

    Args:
        ask: Has it done and killed at a point: 2 is before the first change, 3 after it.
        prepare: Makes a store; returns its URL.
        do: The act.
        end_lease: Ends the lease of the owner that was killed.
    """
    found: list[bool] = []
    for point in range(2, 2 * MOST_POINTS):
        url = prepare()
        told = ask(point)
        found.append(check_killed(url, do, told, end_lease))
        if told.words("answered"):
            break
    assert found[0] is False
    assert found[-1] is True
    assert told.words("answered")
