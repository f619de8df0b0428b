"""Sessions: what one finds, what it says, how it ends, and what changed between two."""

# ruff: noqa: PT012, SIM117  (what a whole block does is the claim)

from __future__ import annotations

import logging
import os
import socket
from pathlib import Path

import attrs
import pytest
import trio
import trio.testing

from tests.opening import begin
from trio_ckpt import (
    ConfigChangedError,
    RetryRule,
    RetryTable,
    Run,
    RunStoppedError,
    SessionView,
    StoreError,
    Then,
    UnknownRunError,
    read_sessions,
)
from trio_ckpt._commit.saves import save_record
from trio_ckpt._journal.record import Record, RecordKind
from trio_ckpt._runs.config import canonical_config, config_digest
from trio_ckpt._runs.run import open_run_of
from trio_ckpt.stores import MemoryStore, open_store
from trio_ckpt.testing import Fail, FaultyStore


class BodyError(Exception):
    """What a body raises."""


async def work(run: Run, count: int = 3, name: str = "s") -> None:
    async with run.open_stream(name) as stream:
        async for batch in stream.batches(range(count)):
            batch.spend(cost=0.25)
            batch.complete(records=2, totals={"words": 1000.5})


def at(monkeypatch: pytest.MonkeyPatch, now_s: float) -> None:
    """Stop the wall clock there."""
    monkeypatch.setattr("time.time", lambda: now_s)


# ---------------------------------------------------------------------------------------
# The line of what was found
# ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("end", "words"),
    [
        ("leave", "ended"),
        ("kill", "was killed"),
        ("stop", "was stopped"),
        ("cancel", "was cancelled"),
        ("raise", "ended by BodyError"),
    ],
)
async def test_the_line_of_what_was_found(
    end: str,
    words: str,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    autojump_clock: trio.testing.MockClock,
) -> None:
    caplog.set_level(logging.INFO)
    store, killed = MemoryStore(), MemoryStore()
    retry = RetryTable((RetryRule((BodyError,), attempts=1, then=Then.SKIP),))
    at(monkeypatch, 1_750_000_000.0)  # 2025-06-15 15:06:40 UTC
    error: BaseException | None = None
    try:
        with trio.CancelScope() as scope:
            async with begin(store) as run:
                assert "run 'r' begins: nothing saved yet" in caplog.text
                await work(run)
                async with run.open_stream("t", retry=retry) as stream:
                    async for batch in stream.batches(range(4)):
                        if batch.index == 1:
                            batch.fail(BodyError("no"))
                        elif batch.index == 2:
                            batch.fail("not this one")
                            with pytest.raises(Exception, match="not this one"):
                                await batch.confirm()
                            break
                        else:
                            batch.complete(records=1)
                killed = store.after_crash()
                if end == "raise":
                    raise BodyError
                if end == "cancel":
                    scope.cancel()
                    await trio.lowlevel.checkpoint()
                if end == "stop":
                    run.request_stop()
    except (BodyError, RunStoppedError) as problem:
        error = problem
    assert (error is None) is (end not in ("raise", "stop"))
    at(monkeypatch, 1_750_500_000.0)
    async with begin(killed if end == "kill" else store) as run:
        line = (
            "4 batches done, 1 skipped, 1 to retry, 7 records, 3,001.5 words, 0.75 cost spent in "
            f"all; 2 streams; session 1 {words} at 2025-06-15 15:06:40 UTC"
        )
        assert str(run.found) == line
        assert f"run 'r' resumes: {line}" in caplog.text
        assert (run.found.last_end, run.found.was_killed) == (words, end == "kill")
        assert run.found.may_have_left_files is (end in ("kill", "raise", "cancel"))
        assert run.found.ended_at == 1_750_000_000.0
        assert (run.found.totals, run.found.spent) == ({"words": 3001.5}, {"cost": 0.75})


async def test_a_fresh_run_finds_nothing(caplog: pytest.LogCaptureFixture) -> None:
    store = MemoryStore()
    async with begin(store) as run:
        await work(run)
    async with begin(store, fresh=True) as run:
        assert str(run.found) == "nothing saved yet"
        assert (run.found.sessions, run.found.last_end, run.found.confirmed) == (0, None, 0)


# ---------------------------------------------------------------------------------------
# The sessions, read back
# ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["memory", "sqlite"])
async def test_every_session_is_told_with_its_end_and_its_counts(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = MemoryStore() if kind == "memory" else await open_store(tmp_path / "r.ckpt")
    folder = tmp_path / "out"
    at(monkeypatch, 1_000.0)
    async with begin(store, config={"n": 1}, output_dir=folder) as run:
        async with run.open_stream("s") as stream:
            async for batch in stream.batches(range(4)):
                batch.spend(cost=0.5)
                if batch.index == 0:
                    batch.skip("no")
                else:
                    batch.complete(records=3, totals={"words": 7})
                if batch.index == 2:
                    break
    at(monkeypatch, 2_000.0)
    with pytest.raises(BodyError):
        async with begin(store, config={"n": 1}, output_dir=folder) as run:
            async with run.phase("p"):
                await work(run, 4)
            raise BodyError
    at(monkeypatch, 3_000.0)
    async with begin(store, config={"n": 1}):
        running = await read_sessions(store, "r", is_running=True)
        seen_by_others = await read_sessions(store, "r")
    first, second, third = await read_sessions(store, "r")
    digest = config_digest(canonical_config({"n": 1}))
    for number, view in enumerate((first, second, third), 1):
        assert (view.number, view.host, view.pid) == (number, socket.gethostname(), os.getpid())
        assert (view.config, view.config_digest, view.changes) == ({"n": 1}, digest, ())
        assert view.began == 1_000.0 * number
    assert [view.output_dir for view in (first, second, third)] == [str(folder)] * 2 + [None]
    assert [view.how for view in (first, second, third)] == ["ended", "ended by BodyError", "ended"]
    assert first.counts == {
        "batches": 2,
        "skipped": 1,
        "retries": 0,
        "records": 6,
        "totals": {"words": 14},
        "spent": {"cost": 1.5},
    }
    assert second.counts == {
        "batches": 1,  # of the phase nothing is counted
        "skipped": 0,
        "retries": 0,
        "records": 2,
        "totals": {"words": 1000.5},
        "spent": {"cost": 0.25},
    }
    assert third.counts["batches"] == 0
    assert [view.how for view in running] == ["ended", "ended by BodyError", "is running"]
    assert running[-1].ended is None
    assert running[-1].counts == {}
    assert seen_by_others[-1].how == "was killed"
    await store.aclose()


async def test_of_sessions_that_were_killed_nothing_is_made_up() -> None:
    store = MemoryStore()
    for _ in range(3):
        async with begin(store) as run:
            await work(run)
            store = store.after_crash()
    assert [view.how for view in await read_sessions(store, "r")] == ["was killed"] * 3
    async with begin(store) as run:
        assert run.found.sessions == 3
    views = await read_sessions(store, "r", is_running=True)
    assert [view.how for view in views] == ["was killed"] * 3 + ["ended"]
    assert [view.number for view in views] == [1, 2, 3, 4]


async def test_more_sessions_than_fit_on_a_page() -> None:
    store = MemoryStore()
    async with begin(store) as run:
        for _ in range(1_200):
            note = Record(kind=RecordKind.NOTE, at=0.0)
            await save_record(
                open_run_of(run).committer, open_run_of(run).committer.stream_logs[0], note
            )
    async with begin(store):
        pass
    assert [view.how for view in await read_sessions(store, "r")] == ["ended", "ended"]


async def test_an_end_not_saved_is_logged_and_looks_like_a_kill_to_the_next(
    caplog: pytest.LogCaptureFixture,
) -> None:
    store = MemoryStore()
    async with begin(FaultyStore(store, {2: Fail()})):
        pass
    assert "how the session ended could not be saved" in caplog.text
    async with begin(store) as run:
        assert run.found.was_killed


async def test_older_generations_have_their_own_sessions() -> None:
    store = MemoryStore()
    async with begin(store, config={"n": 1}):
        pass
    async with begin(store, config={"n": 2}, fresh=True):
        pass
    (old,) = await read_sessions(store, "r", generation=0)
    (new,) = await read_sessions(store, "r")
    assert (old.config, new.config) == ({"n": 1}, {"n": 2})
    assert new.number == 1
    for run_id, generation in (("other", None), ("r", 7)):
        with pytest.raises(UnknownRunError, match=f"no run {run_id!r}"):
            await read_sessions(store, run_id, generation=generation)
    assert [summary.run_id for summary in await store.list_runs()] == ["r"]


# ---------------------------------------------------------------------------------------
# Configurations
# ---------------------------------------------------------------------------------------


@attrs.frozen
class Config:
    """What a run depends on."""

    model: str
    pages: int
    workers: int = 4


async def last_session(store: MemoryStore) -> SessionView:
    return (await read_sessions(store, "r"))[-1]


async def test_a_change_is_refused_field_by_field_and_leaves_no_session() -> None:
    store = MemoryStore()
    async with begin(store, config=Config("a", 3)) as run:
        await work(run)
    with pytest.raises(ConfigChangedError) as info:
        async with begin(store, config=Config("b", 4), tunable=["workers"]):
            pass
    assert info.value.changes == (("model", '"a"', '"b"'), ("pages", "3", "4"))
    assert '\n  model: "a" -> "b"\n  pages: 3 -> 4\n' in str(info.value)
    assert len(await read_sessions(store, "r")) == 1


async def test_an_accepted_change_is_in_the_history_and_the_new_one_counts() -> None:
    store = MemoryStore()
    async with begin(store, config=Config("a", 3)) as run:
        await work(run)
    async with begin(store, config=Config("b", 3), on_config_change="accept") as run:
        assert run.found.confirmed == 3
    view = await last_session(store)
    assert view.changes == (("model", '"a"', '"b"'),)
    assert view.config["model"] == "b"
    async with begin(store, config=Config("b", 3)):
        pass
    assert (await last_session(store)).changes == ()
    with pytest.raises(ConfigChangedError):
        async with begin(store, config=Config("a", 3)):
            pass


async def test_a_restart_archives_the_run_and_says_why(tmp_path: Path) -> None:
    store = MemoryStore()
    async with begin(store, config=Config("a", 3), output_dir=tmp_path) as run:
        async with run.open_stream("s") as stream:
            async for batch in stream.batches(range(1)):
                await batch.write_text("0.txt", "old")
                batch.complete()
    async with begin(
        store, config=Config("b", 3), output_dir=tmp_path, on_config_change="restart"
    ) as run:
        assert run.found.sessions == 0
        assert not (tmp_path / "0.txt").exists()
    assert (await last_session(store)).changes == (("model", '"a"', '"b"'),)
    view = await store.load_run("r")
    assert view is not None
    assert view.generation == 1
    assert (await read_sessions(store, "r", generation=0))[0].config["model"] == "a"
    assert len(list((tmp_path / ".archive").rglob("0.txt"))) == 1


async def test_a_tunable_field_may_change_and_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    store = MemoryStore()
    for workers, policy in ((4, "refuse"), (8, "refuse"), (9, "restart")):
        with caplog.at_level(logging.INFO):
            async with begin(
                store,
                config=Config("a", 3, workers),
                tunable=["workers"],
                on_config_change=policy,
            ) as run:
                await work(run)
    assert "config of run 'r': workers: 4 -> 8" in caplog.text
    assert [view.changes for view in await read_sessions(store, "r")] == [
        (),
        (("workers", "4", "8"),),
        (("workers", "8", "9"),),
    ]
    view = await store.load_run("r")
    assert view is not None
    assert view.generation == 0  # a tunable change restarts nothing


async def test_a_field_that_is_newly_excluded_does_not_count() -> None:
    store = MemoryStore()
    config = {"github": {"org": "one", "started": 1}, "at": 1}
    async with begin(store, config=config):
        pass
    config = {"github": {"org": "one", "started": 2}, "at": 2}
    async with begin(store, config=config, exclude=["github.started", "at"]):
        pass
    with pytest.raises(ConfigChangedError, match=r"github\.org"):
        async with begin(
            store, config={"github": {"org": "two", "started": 2}}, exclude=["github.started"]
        ):
            pass


async def test_a_tunable_field_may_be_one_that_has_gone() -> None:
    store = MemoryStore()
    async with begin(store, config={"a": 1, "workers": 2}):
        pass
    async with begin(store, config={"a": 1}, tunable=["workers"]):
        pass
    with pytest.raises(ValueError, match="tunable names 'threads', which is not a field of config"):
        async with begin(store, config={"a": 1}, tunable=["threads"]):
            pass


async def test_excluded_fields_and_the_order_of_keys_do_not_count() -> None:
    store = MemoryStore()
    async with begin(store, config={"a": 1, "b": {"x": 1, "y": 2}, "log": "x"}, exclude=["log"]):
        pass
    async with begin(store, config={"log": "z", "b": {"y": 2, "x": 1}, "a": 1}, exclude=["log"]):
        pass
    first, second = await read_sessions(store, "r")
    assert first.config_digest == second.config_digest
    assert second.changes == ()


async def test_a_session_that_cannot_begin_leaves_nothing() -> None:
    store = MemoryStore()
    with pytest.raises(StoreError):
        async with begin(FaultyStore(store, {1: Fail()})):
            pytest.fail("its body must not run")
    async with begin(store) as run:
        assert run.found.sessions == 0
