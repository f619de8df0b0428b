"""Observers: what they are told, in which order, in whose task; and that they break nothing."""

# ruff: noqa: PT012  (what a whole block does is the claim)

from __future__ import annotations

import logging
import subprocess
import sys
from typing import Any

import pytest
import trio
from trio.testing import MockClock

from tests.hangs import PROGRAM_S
from tests.opening import begin
from trio_ckpt import (
    BatchFailedError,
    RetryRule,
    RetryTable,
    Run,
    Then,
    run_batches,
    trace_batches,
)
from trio_ckpt.abc import Attempt, AttemptEnd, Observer
from trio_ckpt.stores import MemoryStore

trace_sdk = pytest.importorskip("opentelemetry.sdk.trace")
trace_export = pytest.importorskip("opentelemetry.sdk.trace.export.in_memory_span_exporter")


class Notes(Observer):
    """Writes everything down."""

    def __init__(self) -> None:
        self.told: list[str] = []
        self.size = 0
        self.tasks: dict[str, trio.lowlevel.Task] = {}

    def _note(self, what: str, attempt: Attempt) -> None:
        self.told.append(
            f"{what} {'/'.join(attempt.stream)} {attempt.batch_index}.{attempt.number}"
        )
        self.tasks[what] = trio.lowlevel.current_task()

    def attempt_began(self, attempt: Attempt) -> None:
        self._note("began", attempt)

    def attempt_settled(self, attempt: Attempt) -> None:
        self._note("settled", attempt)

    def attempt_ended(self, attempt: Attempt, end: AttemptEnd, error: str | None) -> None:
        self._note(end.value, attempt)
        if error is not None:
            self.told.append(error)

    def attempt_left(self, attempt: Attempt) -> None:
        self._note("left", attempt)

    def bytes_saved(self, run_id: str, size: int) -> None:
        self.size += size


class Broken(Observer):
    """Fails at everything."""

    def attempt_began(self, attempt: Attempt) -> None:
        raise RuntimeError("no")

    attempt_settled = attempt_left = attempt_began

    def attempt_ended(self, attempt: Attempt, end: AttemptEnd, error: str | None) -> None:
        raise RuntimeError("no")

    def bytes_saved(self, run_id: str, size: int) -> None:
        raise RuntimeError("no")


async def work(run: Run, count: int = 2) -> None:
    async with run.open_stream("a", "b") as stream:
        async for batch in stream.batches(range(count)):
            batch.complete()


async def test_an_attempt_is_told_from_its_beginning_to_its_end() -> None:
    notes = Notes()
    async with begin(observe=[notes]) as run:
        await work(run)
    assert notes.told == [
        f"{what} a/b {index}.1"
        for index in (0, 1)
        for what in ("began", "settled", "confirmed", "left")
    ]


async def test_it_begins_and_is_left_in_the_task_that_works_on_it() -> None:
    notes = Notes()
    async with begin(observe=[notes]) as run:
        await work(run)
    here = trio.lowlevel.current_task()
    assert notes.tasks["began"] is notes.tasks["settled"] is notes.tasks["left"] is here


async def test_an_end_is_told_when_it_is_durable_and_not_before() -> None:
    """An observer that counts confirmed batches is never ahead of the store."""
    store, seen = MemoryStore(), list[bool]()

    class Looks(Observer):
        def attempt_ended(self, attempt: Attempt, end: AttemptEnd, error: str | None) -> None:
            memory = store._memory.runs["r"]
            log = memory.generations[0]['["a","b"]'].log
            seen.append(len(log) > attempt.batch_index)

    async with begin(store, observe=[Looks()]) as run:
        await work(run, 3)
    assert seen == [True] * 3


async def test_every_end_has_its_name(autojump_clock: MockClock) -> None:
    notes = Notes()
    table = RetryTable([RetryRule((KeyError,), attempts=2)])
    async with begin(observe=[notes]) as run:
        async with run.open_stream("s", retry=table) as stream:
            async for batch in stream.batches():
                if batch.index == 0 and batch.attempt == 1:
                    batch.fail(KeyError("once"))
                elif batch.index == 1:
                    batch.skip("not wanted")
                elif batch.index == 2:
                    batch.withdraw()
                else:
                    batch.complete()
        with pytest.raises(BatchFailedError):
            async with run.open_stream("t", retry=table) as stream:
                async for batch in stream.batches(range(1)):
                    batch.fail("for good")
        with trio.move_on_after(1):
            async with run.open_stream("u") as stream:
                async for _ in stream.batches(range(1)):
                    await trio.sleep_forever()
    ends = [line for line in notes.told if line.split()[0] not in ("began", "settled", "left")]
    assert ends == [
        *("retried s 0.1", "'once'", "confirmed s 0.2", "skipped s 1.1", "not wanted"),
        *("withdrawn s 2.1", "failed t 0.1", "for good"),
        *("interrupted u 0.1", "it was cancelled before it was settled"),
    ]


async def test_bytes_are_those_that_the_store_took() -> None:
    notes, store = Notes(), MemoryStore(inline_limit_bytes=2_000)
    async with begin(store, observe=[notes]) as run:
        before = notes.size
        async with run.open_stream("s") as stream:
            async for batch in stream.batches(range(2)):
                batch.complete(metadata={"text": "x" * (100 if batch.index else 5_000)})
        grown = notes.size - before
    assert 5_100 < grown < 6_000


async def test_workers_are_told_apart(autojump_clock: MockClock) -> None:
    notes = Notes()

    async def handle(batch: Any) -> None:
        await trio.sleep(1)
        batch.complete()

    async with begin(observe=[notes]) as run, run.open_stream("s") as stream:
        await run_batches(stream, range(3), handle, concurrency=3)
    assert sorted(notes.told[:3]) == ["began s 0.1", "began s 1.1", "began s 2.1"]
    assert sorted(notes.told[-3:]) == ["left s 0.1", "left s 1.1", "left s 2.1"]


async def test_one_that_fails_is_logged_and_the_others_are_told(
    caplog: pytest.LogCaptureFixture,
) -> None:
    notes = Notes()
    with caplog.at_level(logging.ERROR, "trio_ckpt._commit.observers"):
        async with begin(observe=[Broken(), notes]) as run:
            await work(run, 1)
    assert [line.split()[0] for line in notes.told] == ["began", "settled", "confirmed", "left"]
    assert {record.message for record in caplog.records} == {"an observer failed: Broken"}


async def test_one_may_come_late_and_leave_early() -> None:
    notes = Notes()
    async with begin() as run, run.open_stream("s") as stream:
        async for batch in stream.batches(range(3)):
            if batch.index == 1:
                with run.observing(notes):
                    batch.complete()
                    await batch.confirm()
            else:
                batch.complete()
    assert notes.told == ["settled s 1.1", "confirmed s 1.1", "left s 1.1"]


# -- OpenTelemetry ---------------------------------------------------------------------------------


def tracing() -> tuple[Observer, Any, Any]:
    exporter = trace_export.InMemorySpanExporter()
    provider = trace_sdk.TracerProvider()
    provider.add_span_processor(
        pytest.importorskip("opentelemetry.sdk.trace.export").SimpleSpanProcessor(exporter)
    )
    return trace_batches(provider), exporter, provider.get_tracer("user")


async def test_a_span_per_attempt_names_run_stream_batch_and_end() -> None:
    observer, exporter, _ = tracing()
    async with begin(observe=[observer]) as run, run.open_stream("a", "b") as stream:
        async for batch in stream.batches(range(2)):
            batch.skip("bad page") if batch.index else batch.complete()
    first, second = exporter.get_finished_spans()
    assert dict(first.attributes) == {
        "trio_ckpt.run": "r",
        "trio_ckpt.stream": "a/b",
        "trio_ckpt.batch": 0,
        "trio_ckpt.attempt": 1,
        "trio_ckpt.end": "confirmed",
    }
    assert second.attributes["trio_ckpt.end"] == "skipped"
    assert first.status.is_ok or first.status.is_unset
    assert [event.name for event in first.events] == ["settled"]


async def test_a_failed_attempt_has_the_status_error() -> None:
    observer, exporter, _ = tracing()
    async with begin(observe=[observer]) as run:
        table = RetryTable([RetryRule((ValueError,), then=Then.SKIP)])
        with pytest.raises(BatchFailedError):
            async with run.open_stream("a", retry=table) as stream:
                async for batch in stream.batches(range(1)):
                    batch.fail("page is torn")
    (span,) = exporter.get_finished_spans()
    assert not span.status.is_ok
    assert span.status.description == "page is torn"


async def test_only_what_the_body_calls_is_traced_below_its_batch() -> None:
    observer, exporter, tracer = tracing()
    async with begin(observe=[observer]) as run:
        with tracer.start_as_current_span("program"):
            async with run.open_stream("a") as stream:
                async for batch in stream.batches(range(2)):
                    with tracer.start_as_current_span(f"fetch {batch.index}"):
                        await trio.lowlevel.checkpoint()
                    batch.complete()
            with tracer.start_as_current_span("after"):
                pass
    spans = {span.name: span for span in exporter.get_finished_spans()}
    batches = {
        s.attributes["trio_ckpt.batch"]: s
        for s in exporter.get_finished_spans()
        if s.name == "trio_ckpt.batch"
    }
    program = spans["program"].context.span_id
    for index in (0, 1):
        assert spans[f"fetch {index}"].parent.span_id == batches[index].context.span_id
        assert batches[index].parent.span_id == program
    assert spans["after"].parent.span_id == program


def test_nothing_of_it_is_imported_before_it_is_asked_for() -> None:
    code = "import sys, trio_ckpt; print([m for m in sys.modules if m.startswith('opentelemetry')])"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=PROGRAM_S
    )
    assert done.stdout.strip() == "[]"
