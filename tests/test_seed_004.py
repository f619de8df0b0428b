"""Every method of seed 004, "Checkpoint and Resume System": what it is here, by its name there.

The seed collects the pages of endpoints of repositories; here an endpoint of a repository is a
stream, ``(repo, endpoint)``, and what the seed's methods are called for happens by itself.
"""

# ruff: noqa: SIM117  (what a whole block does is the claim)

from __future__ import annotations

import json
import logging
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
import trio
from trio.testing import MockClock

import trio_ckpt
from tests.opening import begin
from trio_ckpt import (
    ConfigChangedError,
    RetryRule,
    RetryTable,
    Run,
    RunLockedError,
    RunStoppedError,
    Status,
    StreamFailedError,
    Then,
    UnknownStreamError,
)
from trio_ckpt.stores import MemoryStore, open_store

REPOS = ("org/repo1", "org/repo2", "org/repo3")
STREAMS = tuple((repo, endpoint) for repo in REPOS for endpoint in ("pulls", "issues"))
LAST_PAGE = 3  # of every endpoint; the page after it is empty
CONFIG = {"target": "sample-org", "since": "2025-01-01", "report": {"path": "report.html"}}


class ForbiddenError(Exception):
    """403."""


class RateLimitError(Exception):
    """429."""


def fetch_page(page: int) -> list[dict[str, int]]:
    """Two records for each page there is."""
    return [{"page": page, "record": n} for n in range(2)] if page <= LAST_PAGE else []


async def collect(
    run: Run,
    key: tuple[str, ...],
    fetch: Callable[[int], list[dict[str, int]]] = fetch_page,
    **settings: Any,
) -> list[int]:
    """The seed's main loop; returns the pages that were asked for."""
    asked = []
    async with run.open_stream(*key, first_index=1, **settings) as stream:
        async for batch in stream.batches():
            asked.append(batch.index)
            records = fetch(batch.index)
            if not records:
                batch.withdraw()
            else:
                batch.complete(records=len(records))
    return asked


async def collect_all(run: Run, keys: Iterable[tuple[str, ...]] = STREAMS) -> None:
    await run.add_streams(STREAMS)
    for key in keys:
        await collect(run, key)


async def progress_of(store: MemoryStore, *key: str) -> trio_ckpt.Progress:
    view = await store.load_run("r")
    assert view is not None
    return view.streams[key].progress


# ---------------------------------------------------------------------- the checkpoint as a whole


async def test_create_new() -> None:
    """A run that no process has begun is begun by opening it."""
    store = MemoryStore()
    async with begin(store, config=CONFIG) as run:
        assert run.found.sessions == 0
        assert str(run.found) == "nothing saved yet"
        await collect_all(run)
        assert run.exit_code == 0


async def test_load() -> None:
    """Opening it again loads what is there: everything that was done stays done."""
    store = MemoryStore()
    async with begin(store, config=CONFIG) as run:
        await collect_all(run, STREAMS[:2])
    async with begin(store, config=CONFIG) as run:
        assert run.found.sessions == 1
        assert (run.found.confirmed, run.found.records) == (6, 12)
        assert run.group("org/repo1").status is Status.COMPLETE
        assert run.streams_to_process() == list(STREAMS[2:])


async def test_exists() -> None:
    """Whether there is something to resume: before opening from the store, then from the run."""
    store = MemoryStore()
    assert await store.load_run("r") is None
    async with begin(store) as run:
        assert run.found.sessions == 0
    assert await store.load_run("r") is not None
    async with begin(store) as run:
        assert run.found.sessions == 1


async def test_validate_config() -> None:
    """A changed field is refused by name; order, whitespace and what is excluded are no change."""
    store = MemoryStore()
    async with begin(store, config=CONFIG, exclude=["report"]):
        pass
    reordered = json.loads(json.dumps(dict(reversed(CONFIG.items())), indent=4))
    reordered["report"] = {"path": "elsewhere.html"}
    async with begin(store, config=reordered, exclude=["report"]) as run:
        assert run.found.sessions == 1
    with pytest.raises(ConfigChangedError, match='since: "2025-01-01" -> "2024-01-01"') as caught:
        async with begin(store, config={**CONFIG, "since": "2024-01-01"}, exclude=["report"]):
            pass
    assert [name for name, _, _ in caught.value.changes] == ["since"]


async def test_delete_if_exists(tmp_path: Path) -> None:
    """Beginning again deletes nothing: the old run and its files go to the archive."""
    store = MemoryStore()

    async def session(**settings: Any) -> int:
        async with begin(store, output_dir=tmp_path, **settings) as run:
            async with run.open_stream("org/repo1", "pulls", first_index=1) as stream:
                async for batch in stream.batches(range(1)):
                    batch.complete(outputs=[await batch.write_json("page.json", settings)])
                return int(run.found.confirmed)

    assert await session() == 0
    assert await session(fresh=True) == 0
    kept = [path.read_text() for path in (tmp_path / ".archive").rglob("page.json")]
    assert kept == ["{}\n"]


async def test_delete_if_exists_because_the_config_changed() -> None:
    """The seed's ``if not validate_config: delete, create_new`` is one argument."""
    store = MemoryStore()
    async with begin(store, config={"since": 2024}) as run:
        await collect_all(run)
    async with begin(store, config={"since": 2025}, on_config_change="restart") as run:
        assert run.found.confirmed == 0
        assert run.streams_to_process() == []


async def test_save() -> None:
    """Every page is saved by itself; between pages, state, cursor and spending can be, too."""
    store = MemoryStore()
    async with begin(store) as run:
        async with run.open_stream("org/repo1", "pulls", state={"seen": 0}) as stream:
            stream.state["seen"] = 17
            await stream.save(cursor="page-2")
            killed = store.after_crash()
    async with begin(killed) as run:
        async with run.open_stream("org/repo1", "pulls", state={"seen": 0}) as stream:
            assert (stream.state, stream.cursor) == ({"seen": 17}, "page-2")


# ----------------------------------------------------------------------------------- repositories


async def test_update_repos(caplog: pytest.LogCaptureFixture) -> None:
    """Naming the streams again changes nothing; what is gone is said, and kept; order is kept."""
    store = MemoryStore()
    async with begin(store) as run:
        added = await run.add_streams(STREAMS[:4])
        assert (added.new, added.unlisted) == (STREAMS[:4], ())
        await collect(run, STREAMS[0])
    async with begin(store) as run:
        with caplog.at_level(logging.INFO):
            added = await run.add_streams(STREAMS[1:])
        assert (added.new, added.unlisted) == (STREAMS[4:], STREAMS[:1])
        assert "org/repo1/pulls" in caplog.text
        assert run.streams_to_process() == list(STREAMS[1:])
        assert (await run.add_streams(STREAMS)).new == ()


async def test_get_repos_to_process() -> None:
    """In order; not what is complete; not what failed for good, unless it is asked for."""
    store = MemoryStore()
    forbidden, limited, done = STREAMS[0], STREAMS[1], STREAMS[2]
    async with begin(store) as run:
        await run.add_streams(STREAMS)
        for key, error, retryable in (
            (forbidden, ForbiddenError("403"), False),
            (limited, RateLimitError("429"), True),
        ):
            async with run.open_stream(*key, on_fail="record") as stream:
                await stream.fail(error, retryable=retryable)
        await collect(run, done)
    async with begin(store) as run:
        rest = list(STREAMS[3:])
        assert run.streams_to_process() == [limited, *rest]
        assert run.streams_to_process(retry_failed=True) == [forbidden, limited, *rest]
        assert run.streams_to_process(start_from=("org/repo2",)) == rest
        assert run.streams_to_process(start_from=STREAMS[4]) == list(STREAMS[4:])
        with pytest.raises(UnknownStreamError, match="org/repo9"):
            run.streams_to_process(start_from=("org/repo9",))


# -------------------------------------------------------------------------------------- endpoints


async def test_is_repo_endpoint_complete() -> None:
    """No caller needs to ask: a complete stream hands out nothing.  `status` says so."""
    store = MemoryStore()
    async with begin(store) as run:
        assert await collect(run, STREAMS[0]) == [1, 2, 3, 4]
    async with begin(store) as run:
        async with run.open_stream(*STREAMS[0], first_index=1) as stream:
            assert stream.status is Status.COMPLETE
        assert await collect(run, STREAMS[0]) == []


async def test_mark_repo_endpoint_in_progress() -> None:
    """A stream is in progress while it is open, and interrupted, not failed, when it was left."""
    store = MemoryStore()
    async with begin(store) as run:
        await run.add_streams(STREAMS)
        assert run.group("org/repo1").status is Status.PENDING
        async with run.open_stream(*STREAMS[0], first_index=1) as stream:
            async for batch in stream.batches():
                batch.complete()
                if batch.index == 2:
                    break
            assert run.group("org/repo1").status is Status.IN_PROGRESS
        assert run.group("org/repo1").status is Status.INTERRUPTED
        killed = store.after_crash()
    assert (await progress_of(killed, *STREAMS[0])).status is Status.INTERRUPTED
    async with begin(killed) as run:
        assert run.streams_to_process()[0] == STREAMS[0]
        assert await collect(run, STREAMS[0]) == [3, 4]


async def test_get_resume_page() -> None:
    """1 if nothing is done; after a crash the page that was not saved, whatever it was."""
    store, resumed_at = MemoryStore(), []
    async with begin(store) as run:
        async with run.open_stream(*STREAMS[0], first_index=1) as stream:
            async for batch in stream.batches():
                async with begin(store.after_crash()) as other:
                    async with other.open_stream(*STREAMS[0], first_index=1) as again:
                        said = again.resume_index
                    asked = await collect(other, STREAMS[0])
                resumed_at.append((batch.index, said, asked[0]))
                if fetch_page(batch.index):
                    batch.complete()
                else:
                    batch.withdraw()
        assert stream.resume_index == LAST_PAGE + 1
    assert resumed_at == [(page, page, page) for page in range(1, LAST_PAGE + 2)]


async def test_the_resume_page_is_the_first_that_is_left() -> None:
    """Not the one after the newest: a page in between that was put back is done first."""
    async with begin(MemoryStore()) as run:
        async with run.open_stream(*STREAMS[0], first_index=1) as stream:
            assert stream.resume_index == 1
            async for batch in stream.batches(range(5)):
                batch.complete()
            assert stream.resume_index == 6
            await stream.redo([2, 4], reason="x")
            assert stream.resume_index == 2
            async for batch in stream.batches(range(5)):
                batch.complete()
                await batch.confirm()
                assert stream.resume_index == (4 if batch.index == 2 else 6)


async def test_update_progress(tmp_path: Path) -> None:
    """Records first, progress after: both or neither, and the last page written is known."""
    store = MemoryStore()
    counts = []
    async with begin(store, output_dir=tmp_path) as run:
        async with run.open_stream(*STREAMS[0], first_index=1) as stream:
            async for batch in stream.batches():
                crashed = await store.after_crash().load_run("r")
                saved = crashed.streams.get(STREAMS[0]) if crashed is not None else None
                lines = tmp_path / "pulls.jsonl"
                written = lines.read_text().count("\n") if lines.exists() else 0
                known = saved.progress.records if saved is not None else 0
                counts.append((written, known))
                if records := fetch_page(batch.index):
                    batch.append_json("pulls.jsonl", *records)
                    batch.complete(records=len(records))
                else:
                    batch.withdraw()
    assert counts == [(0, 0), (2, 2), (4, 4), (6, 6)]
    progress = await progress_of(store, *STREAMS[0])
    assert (len(progress.confirmed), progress.records, progress.last_index) == (3, 6, 3)
    assert progress.started_at is not None
    assert progress.updated_at is not None


async def test_mark_repo_endpoint_complete() -> None:
    """An empty page, a last one, a known end or `finish` complete a stream; leaving it does not."""
    store = MemoryStore()
    async with begin(store) as run:
        await collect(run, ("by an empty page",))
        async with run.open_stream("by a last page") as stream:
            async for batch in stream.batches():
                batch.complete(last=batch.index == 2)
        async with run.open_stream("by a known end") as stream:
            async for batch in stream.batches(range(3)):
                batch.complete()
        async with run.open_stream("by finish") as stream:
            async with stream.open_batch() as batch:
                batch.complete()
            await stream.finish()
        async with run.open_stream("by nothing") as stream:
            async with stream.open_batch() as batch:
                batch.complete()
    view = await store.load_run("r")
    assert view is not None
    ends = {"/".join(key): entry.progress.status for key, entry in view.streams.items() if key}
    assert ends.pop("by nothing") is Status.INTERRUPTED
    assert set(ends.values()) == {Status.COMPLETE}
    assert len(ends) == 4


@pytest.mark.parametrize("by", ["stream.fail", "the retry table"])
async def test_mark_repo_endpoint_failed(by: str) -> None:
    """Retryable: the next resume takes it up.  Not: recorded, so that the next repo goes on."""
    store = MemoryStore()
    retry = RetryTable(
        (
            RetryRule((ForbiddenError,), attempts=1, then=Then.FAIL_STREAM, retryable=False),
            RetryRule((RateLimitError,), attempts=1, then=Then.FAIL_STREAM),
        )
    )

    async def try_to_collect(run: Run, key: tuple[str, ...], error: Exception) -> None:
        async with run.open_stream(*key, first_index=1, retry=retry, on_fail="record") as stream:
            async for batch in stream.batches():
                if batch.index == 1:
                    batch.complete()
                else:
                    batch.fail(error)
                if by == "stream.fail":
                    break
            await stream.fail(error, retryable=isinstance(error, RateLimitError))

    async with begin(store) as run:
        await run.add_streams(STREAMS[:3])
        await try_to_collect(run, STREAMS[0], ForbiddenError("403 Forbidden"))
        await try_to_collect(run, STREAMS[1], RateLimitError("429 Too Many Requests"))
        await collect(run, STREAMS[2])
        assert run.group("org/repo1").status is Status.FAILED
        assert run.group("org/repo2").status is Status.COMPLETE
        assert run.exit_code == 75
    failed = await progress_of(store, *STREAMS[0])
    assert failed.status is Status.FAILED
    assert failed.error is not None
    assert (failed.error.type, failed.error.message) == ("ForbiddenError", "403 Forbidden")
    assert (failed.error.retryable, failed.failed_at is None) == (False, False)
    assert list(failed.confirmed) == [1]

    async with begin(store) as run:
        assert run.streams_to_process() == [STREAMS[1]]
        with pytest.raises(StreamFailedError, match="403 Forbidden"):
            await collect(run, STREAMS[0])
        assert await collect(run, STREAMS[1]) == [2, 3, 4]
        assert run.streams_to_process() == []
    async with begin(store) as run:
        assert run.streams_to_process(retry_failed=True) == [STREAMS[0]]
        assert await collect(run, STREAMS[0], retry_failed=True) == [2, 3, 4]
        assert run.exit_code == 0


# ----------------------------------------------------------------------------- phases, statistics


async def test_set_current_phase() -> None:
    """The phase whose block is open; one that was broken off is current still."""
    store = MemoryStore()
    async with begin(store) as run:
        assert run.current_phase is None
        async with run.phase("discovery"):
            assert run.current_phase == "discovery"
        assert run.current_phase is None
        with pytest.raises(OSError, match="no network"):
            async with run.phase("pulls"):
                raise OSError("no network")
        assert run.phases == {"discovery": Status.COMPLETE, "pulls": Status.FAILED}
    async with begin(store) as run:
        assert run.current_phase == "pulls"


async def test_mark_phase_complete() -> None:
    """A phase is complete when its block ends without an exception, and only then."""
    store = MemoryStore()
    for is_broken in (True, False):
        async with begin(store) as run:
            try:
                async with run.phase("discovery") as phase:
                    assert not phase.complete
                    if is_broken:
                        raise OSError("no network")
            except OSError:
                pass
    async with begin(store.after_crash()) as run:
        async with run.phase("discovery") as phase:
            assert phase.complete


async def test_is_phase_complete() -> None:
    """In its block, and from outside."""
    store = MemoryStore()
    async with begin(store) as run:
        assert run.phases.get("discovery") is not Status.COMPLETE
        async with run.phase("discovery"):
            assert run.phases["discovery"] is Status.IN_PROGRESS
            await run.add_streams(STREAMS)
    async with begin(store) as run:
        assert run.phases["discovery"] is Status.COMPLETE
        async with run.phase("discovery") as phase:
            assert phase.complete
        assert run.streams_to_process() == list(STREAMS)


async def test_get_stats() -> None:
    """Repositories and streams by status, counted apart; records; of this session and in all."""
    store = MemoryStore()
    async with begin(store) as run:
        await collect_all(run, STREAMS[:3])
        now = run.statistics()
        assert sum(now.groups.values()) == len(REPOS)
        assert now.groups[Status.COMPLETE] == 1
        assert now.groups[Status.IN_PROGRESS] == 1  # one of its streams is complete, one pending
        assert now.groups[Status.PENDING] == 1
        assert now.groups[Status.FAILED] == now.groups[Status.INTERRUPTED] == 0
        assert (now.streams[Status.COMPLETE], now.streams[Status.PENDING]) == (3, 3)
        assert (now.confirmed, now.records) == (9, 18)
        async with run.open_stream(*STREAMS[3], first_index=1) as stream:
            async with stream.open_batch() as batch:
                batch.complete(records=2)
        assert run.statistics().groups[Status.INTERRUPTED] == 1
    async with begin(store) as run:
        await collect(run, STREAMS[3])
        now = run.statistics()
        assert (now.records, now.session_records) == (24, 4)
        assert (now.confirmed, now.session_confirmed) == (12, 2)


# ------------------------------------------------------------------------------- signals, locking


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
async def test_install_signal_handlers(number: int, autojump_clock: MockClock) -> None:
    """The page in hand is saved, no other is begun, and the program is told how to go on."""
    store, ended = MemoryStore(), []

    async def interrupted() -> None:
        async with begin(store, handle_signals=True, resume_command="collect --again") as run:
            async with run.open_stream(*STREAMS[0], first_index=1) as stream:
                async for batch in stream.batches():
                    if batch.index == 2:
                        signal.raise_signal(number)
                    await trio.sleep(1)
                    ended.append(batch.index)
                    batch.complete(records=2)

    with pytest.raises(RunStoppedError) as caught:
        await interrupted()
    assert ended == [1, 2]
    assert (caught.value.exit_code, caught.value.resume_command) == (75, "collect --again")
    progress = await progress_of(store, *STREAMS[0])
    assert (list(progress.confirmed), progress.status) == ([1, 2], Status.INTERRUPTED)
    async with begin(store) as run:
        assert run.found.last_end is not None
        assert "stopped" in run.found.last_end
        assert await collect(run, STREAMS[0]) == [3, 4]


OWNER = """
import sys, trio, trio_ckpt
async def main():
    async with trio_ckpt.open_run("r", store=sys.argv[1]):
        print("owns it", flush=True)
        await trio.sleep_forever()
trio.run(main)
"""


def test_context_manager_and_locking(tmp_path: Path) -> None:
    """One process owns a run, and others are told whose it is; its lock dies with it."""
    path = tmp_path / "github.ckpt"

    async def open_and_close() -> bool:
        async with begin(path) as run:
            return bool(run.found.was_killed)

    async def read() -> bool:
        store = await open_store(path)
        is_there = await store.load_run("r") is not None
        await store.aclose()
        return is_there

    command = [sys.executable, "-c", OWNER, str(path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as owner:
        assert owner.stdout is not None
        try:
            assert owner.stdout.readline() == "owns it\n"
            with pytest.raises(RunLockedError) as caught:
                trio.run(open_and_close)
            assert (caught.value.pid, caught.value.host) == (owner.pid, socket.gethostname())
            assert caught.value.since.endswith("+00:00")
            assert trio.run(read), "reading needs no lock"
        finally:
            owner.kill()
    assert trio.run(open_and_close), "it was killed, and nothing had to be removed by hand"
    assert not trio.run(open_and_close)
