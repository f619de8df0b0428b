"""What is wrong is refused at the public border, with its name, its value and what would be right.

A row is a call, the argument that is wrong, and its value.  The message must name both, and a
refused call must have changed nothing.
"""

from __future__ import annotations

import io
import math
import re
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import attrs
import numpy as np
import pytest
import trio

from tests.hangs import HANG_S
from trio_ckpt import (
    Batch,
    CheckpointCoordinator,
    CheckpointResult,
    Code,
    Limits,
    NotEncodableError,
    Retention,
    RetryRule,
    RetryTable,
    Run,
    Stream,
    UnknownStreamError,
    monitor,
    open_maintenance,
    open_run,
    read_arrays,
    read_history,
    run_batches,
)
from trio_ckpt.abc import Observer
from trio_ckpt.outputs import RawCheck
from trio_ckpt.progress import show_progress
from trio_ckpt.stores import MemoryStore

NO_COUNT = (1.5, "1", None, True, np.float64(1), [1], math.nan)
NO_START = tuple(value for value in NO_COUNT if value is not None)
NO_SECONDS = ("1", True, [1], 1j, object())
NO_SPAN = (-1, math.nan, -math.inf)
NO_FLAG = ("no", "false", 0, 1, [])
NO_LIST = (5, "name", b"name", {"name": 1})
NO_FUNCTION = (5, "len", [len])


@attrs.frozen
class Call:
    """A callable, and the argument that is varied."""

    name: str
    argument: str
    call: Callable[..., Any]

    def __str__(self) -> str:
        return f"{self.name}({self.argument}=)"


def rows(
    name: str, call: Callable[..., Any], **wrong: tuple[object, ...]
) -> list[tuple[Call, object]]:
    return [
        (Call(name, argument, call), value)
        for argument, values in wrong.items()
        for value in values
    ]


def rule(**changed: Any) -> RetryRule:
    return RetryRule(**{"errors": (OSError,), **changed})


RECORDS = [
    *rows(
        "RetryRule",
        rule,
        errors=(5, OSError, "OSError", ["OSError"], [5], [object]),
        when=NO_FUNCTION,
        attempts=(*NO_COUNT, 0, -1),
        then=("skip", "SKIP", 5, None),
        retryable=NO_FLAG,
        backoff_s=(*NO_SECONDS, *NO_SPAN, math.inf, None),
        max_backoff_s=(*NO_SECONDS, *NO_SPAN, math.inf, None),
        jitter=(*NO_SECONDS, *NO_SPAN, math.inf, None),
        retry_after=NO_FUNCTION,
        max_retry_after_s=(*NO_SECONDS, *NO_SPAN, None),
    ),
    *rows("RetryTable", RetryTable, rules=(rule(), 5, "rules")),
    *rows(
        "Retention",
        Retention,
        last=(*NO_COUNT, 0),
        every=(*NO_COUNT, -1),
        max_age_s=(*NO_SECONDS, *NO_SPAN, None),
        max_bytes=(*NO_COUNT, -1),
        max_deltas=(*NO_COUNT, -1, 0, 10_000),
        archive=(5, b"x", "", "~/old.ckpt", Path("~")),
    ),
    *rows("RawCheck", RawCheck, accept=NO_FUNCTION),
    *rows("RawCheck", partial(RawCheck, print), limit_bytes=(*NO_COUNT, 0)),
]


def ids(value: object) -> str:
    return str(value) if isinstance(value, Call) else f"{type(value).__name__}-{value!r:.30}"


def is_named(argument: str, error: BaseException) -> bool:
    """Whether a message begins with the name of the argument and says what would be right."""
    return re.match(rf"{argument} must (not )?(be|have) .+", str(error)) is not None


@pytest.mark.parametrize(("call", "value"), RECORDS, ids=ids)
def test_a_record_with_a_wrong_field_is_refused(call: Call, value: object) -> None:
    with pytest.raises((TypeError, ValueError)) as caught:
        call.call(**{call.argument: value})
    assert is_named(call.argument, caught.value), caught.value


def test_rules_that_are_no_rules_are_refused() -> None:
    with pytest.raises(TypeError, match=r"^a rule must be a RetryRule, not 5$"):
        RetryTable((5,))  # type: ignore[arg-type]


def test_lists_serve_where_tuples_are_kept() -> None:
    table = RetryTable([RetryRule([OSError])])  # type: ignore[arg-type]
    assert table.rules[0].errors == (OSError,)


@asynccontextmanager
async def opened(**changed: Any) -> AsyncGenerator[Run]:
    arguments = {"store": MemoryStore(), "handle_signals": False, **changed}
    async with open_run("run", **arguments) as run:
        yield run


OPEN_RUN = rows(
    "open_run",
    opened,
    exclude=NO_LIST,
    tunable=NO_LIST,
    on_config_change=("Refuse", None, True, 5),
    output_dir=(b"x", "", 5, ["x"], "~/out", Path("~")),
    verify=("md5", True, None, "Size"),
    redo_missing=(*NO_FLAG, None),
    fresh=(*NO_FLAG, None),
    retry_failed=(*NO_FLAG, None),
    handle_signals=NO_FLAG,
    stop_signals=(
        *NO_LIST,
        (),
        "SIGTERM",
        ["SIGUSR9"],
        ["TERM"],
        [15],
        ["SIGKILL"],
        ["SIGSTOP"],
        ["SIGTERM", ""],
    ),
    limits=(5, {"batches": 5}, Limits, [Limits()], {"spent": {"cost_usd": 50}}),
    grace_s=(*NO_SECONDS, *NO_SPAN, None),
    save_timeout_s=(*NO_SECONDS, *NO_SPAN, None),
    wait_for_lock_s=(*NO_SECONDS, *NO_SPAN, None),
    wait_for_deferred_s=(*NO_SECONDS, *NO_SPAN, None),
    resume_command=(5, ["a", "b"], "", b"a"),
    coordinator=(5, "c", CheckpointCoordinator),
    observe=(5, "observer", {"a": 1}),
    code=(5, "warn", ["note"], Code, True),
)


@pytest.mark.parametrize(("call", "value"), OPEN_RUN, ids=ids)
async def test_a_run_with_a_wrong_argument_is_refused(call: Call, value: object) -> None:
    store = MemoryStore()
    with pytest.raises((TypeError, ValueError)) as caught:
        async with call.call(store=store, **{call.argument: value}):
            pass
    assert is_named(call.argument, caught.value), caught.value
    assert await store.load_run("run") is None


@pytest.mark.parametrize("value", [5, print, Observer])
async def test_only_observers_observe(value: Any) -> None:
    with pytest.raises(TypeError, match=r"^an observer must be an Observer, not "):
        async with opened(observe=[value]):
            pass


OPEN_STREAM = rows(
    "open_stream",
    Run.open_stream,
    first_index=(*NO_COUNT, -1, 2**63),
    retry=(5, [rule()], rule(), RetryTable),
    on_fail=("Record", None, True),
    output_dir=(5, b"x", ""),
    retry_failed=NO_FLAG,
    retention=(5, "x", Retention),
    recover=(*NO_FLAG, None),
)


@pytest.mark.parametrize(("call", "value"), OPEN_STREAM, ids=ids)
async def test_a_stream_with_a_wrong_argument_is_refused(
    call: Call, value: object, tmp_path: Path
) -> None:
    async with opened(output_dir=tmp_path) as run:
        with pytest.raises((TypeError, ValueError)) as caught:
            async with call.call(run, "s", **{call.argument: value}):
                pass
        assert is_named(call.argument, caught.value), caught.value
        assert not run.open_streams
        async with run.open_stream("s"):  # nothing of the refused one is left
            pass


@pytest.mark.parametrize(
    "key", [(), ("",), (5,), (None,), (b"x",), (("a", "b"),), ("a\nb",), ("@x",)]
)
async def test_a_stream_without_a_good_key_is_refused(key: Any) -> None:
    async with opened() as run:
        with pytest.raises((TypeError, ValueError), match="part"):
            async with run.open_stream(*key):
                pass


@pytest.mark.parametrize("keys", [5, "name", {"full_name": 1}, b"ab"])
async def test_what_is_no_list_of_keys_is_not_listed(keys: Any) -> None:
    async with opened() as run:
        with pytest.raises(TypeError, match=r"^keys must be a list of stream keys, not "):
            await run.add_streams(keys)
        assert run.streams_to_process() == []


@pytest.mark.parametrize("key", ["org", {"full_name": "org/one"}, {"org"}, 5, b"org", None])
async def test_a_listed_key_is_a_tuple_of_its_parts(key: Any) -> None:
    async with opened() as run:
        for call in (
            lambda: run.add_streams([("good",), key]),
            lambda: run.rewind(key, to=0, reason="r"),
        ):
            with pytest.raises(TypeError, match="key must be a tuple of its parts"):
                await call()
        assert run.streams_to_process() == []


REWIND = rows(
    "rewind", Run.rewind, to=(*NO_COUNT, -(2**70)), reason=(None, 5, "", b"r", ValueError("r"))
)


@pytest.mark.parametrize(("call", "value"), REWIND, ids=ids)
async def test_a_wrong_rewind_is_refused(call: Call, value: object) -> None:
    async with opened() as run:
        async with run.open_stream("s") as stream:
            async for batch in stream.batches(range(3)):
                batch.complete()
        arguments = {"to": 0, "reason": "r", call.argument: value}
        with pytest.raises((TypeError, ValueError)) as caught:
            await run.rewind(("s",), **arguments)
        assert is_named(call.argument, caught.value), caught.value
        assert run.group("s").confirmed == 3


async def test_a_group_that_is_not_there_is_refused() -> None:
    async with opened() as run:
        assert sum(run.group().streams.values()) == 0
        await run.add_streams([("org/one", "pulls")])
        assert sum(run.group("org/one").streams.values()) == 1
        with pytest.raises(UnknownStreamError, match="has no stream 'org/two'"):
            run.group("org/two")


# -- batches -----------------------------------------------------------------------------------


async def work_on(call: Callable[..., Any], *arguments: Any, **named: Any) -> None:
    async for batch in call(*arguments, **named):
        batch.complete()


BATCHES = [
    *rows(
        "batches",
        Stream.batches,
        items=("abc", b"abc", 5, {"a": 1}, {1, 2}, (n for n in "ab")),
        key=NO_FUNCTION,
        start=(*NO_START, -1, 2**63),
        end=(*NO_START, -1, 2**63),
    ),
]


@pytest.mark.parametrize(("call", "value"), BATCHES, ids=ids)
async def test_a_wrong_loop_is_refused_at_its_first_step(call: Call, value: object) -> None:
    async with opened() as run, run.open_stream("s") as stream:
        arguments = {"items": range(3), call.argument: value}
        with pytest.raises((TypeError, ValueError)) as caught:
            await work_on(call.call, stream, **arguments)
        assert is_named(call.argument, caught.value), caught.value
        assert not stream.progress.done
        await work_on(Stream.batches, stream, range(2))


@pytest.mark.parametrize("made", ["abc", 5, None, b"ab"])
async def test_a_function_that_returns_no_list_is_refused(made: Any) -> None:
    async with opened() as run, run.open_stream("s") as stream:
        with pytest.raises(TypeError, match=r"^items must return a list of items, not "):
            await work_on(Stream.batches, stream, lambda: made)
        assert not stream.progress.done


@pytest.mark.parametrize(("key", "said"), [(lambda _: 5, "5"), (lambda _: None, "None")])
async def test_a_key_that_is_no_str_is_refused_with_its_batch(key: Any, said: str) -> None:
    async with opened() as run, run.open_stream("s", first_index=7) as stream:
        with pytest.raises(TypeError, match=rf"^key must return a str, not {said}, for batch 7$"):
            await work_on(Stream.batches, stream, [1], key=key)
        async for batch in stream.batches([1]):
            batch.complete()


async def test_an_item_that_cannot_be_stored_is_named_with_its_batch() -> None:
    async with opened() as run, run.open_stream("s") as stream:
        with pytest.raises(
            NotEncodableError, match=r"^the item of batch 1\.a\[0\] cannot be stored: .*give key="
        ):
            await work_on(Stream.batches, stream, [{"a": [1]}, {"a": [object()]}])
        async for batch in stream.batches([{"a": [1]}, {"a": [2]}]):
            batch.complete()


RUN_BATCHES = rows(
    "run_batches",
    run_batches,
    items=("abc", 5, {"a": 1}),
    handler=NO_FUNCTION,
    concurrency=(*NO_COUNT, 0, -1, 10**9),
    retry=(5, [rule()], rule()),
    key=NO_FUNCTION,
    start=(*NO_START, -1),
    end=(*NO_START, -1),
)


@pytest.mark.parametrize(("call", "value"), RUN_BATCHES, ids=ids)
async def test_a_wrong_parallel_loop_is_refused(call: Call, value: object) -> None:
    async def handler(batch: Batch[int]) -> None:
        batch.complete()

    async with opened() as run, run.open_stream("s") as stream:
        arguments = {"items": range(3), "handler": handler, call.argument: value}
        with pytest.raises((TypeError, ValueError)) as caught:
            await call.call(stream, **arguments)
        assert is_named(call.argument, caught.value), caught.value
        assert not stream.progress.done
        await run_batches(stream, range(3), handler)


REMAINING = rows("remaining", Stream.remaining, total=(*NO_START, -1), start=NO_START, end=NO_START)


@pytest.mark.parametrize(("call", "value"), REMAINING, ids=ids)
async def test_a_wrong_range_of_what_is_left_is_refused(call: Call, value: object) -> None:
    async with opened() as run, run.open_stream("s") as stream:
        with pytest.raises((TypeError, ValueError)) as caught:
            call.call(stream, **{"total": 3, call.argument: value})
        assert is_named(call.argument, caught.value), caught.value
        await stream.finish()


NO_AMOUNTS: tuple[Any, ...] = (
    *({"a": value} for value in ("1", None, True, math.nan, math.inf, 1j, 2**70)),
    {1: 1},
    {"": 1},
)

COMPLETE = rows(
    "complete",
    Batch.complete,
    outputs=(5, "x.txt", b"x", None),
    records=(*NO_COUNT, -1, 2**70, np.float64(1)),
    totals=(5, "x", [("a", 1)], *NO_AMOUNTS),
    metadata=(5, "x", [1], {1: 1}, {"a": {1}}, {"a": object()}),
    cursor=(object(), {1}, math.nan, b"x", 2**70),
    last=("no", 1, None),
)


@pytest.mark.parametrize(("call", "value"), COMPLETE, ids=ids)
async def test_a_wrong_result_leaves_the_batch_open(call: Call, value: object) -> None:
    async with opened() as run, run.open_stream("s") as stream:
        async for batch in stream.batches():
            with pytest.raises((TypeError, ValueError)) as caught:
                call.call(batch, **{call.argument: value})
            said = str(caught.value)
            assert said.startswith(call.argument) or "an index of" in said, said
            assert batch.token.is_pending
            batch.complete(last=True)
        assert stream.progress.totals == {}
        assert stream.cursor is None


@pytest.mark.parametrize("method", ["fail", "skip"])
@pytest.mark.parametrize("value", [None, 5, KeyError, b"reason", ["reason"]])
async def test_what_is_no_reason_leaves_the_batch_open(method: str, value: Any) -> None:
    async with opened() as run, run.open_stream("s") as stream:
        async for batch in stream.batches(range(1)):
            with pytest.raises(TypeError, match=r"must be an exception or a str, not "):
                getattr(batch, method)(value)
            batch.complete()
        assert run.exit_code == 0


@pytest.mark.parametrize("amounts", [{"a": -1}, {"a": -0.5}, *NO_AMOUNTS[:-2]])
async def test_wrong_spending_is_not_counted(amounts: dict[str, Any]) -> None:
    async with opened() as run, run.open_stream("s") as stream:
        async for batch in stream.batches(range(1)):
            with pytest.raises(NotEncodableError, match=r"^spend\.a cannot be stored: "):
                batch.spend(**amounts)
            batch.complete()
        assert stream.statistics().spent == {}


@pytest.mark.parametrize("text", [5, b"a", None])
async def test_only_text_is_written_as_text(text: Any, tmp_path: Path) -> None:
    async with opened(output_dir=tmp_path) as run, run.open_stream("s") as stream:
        async for batch in stream.batches(range(1)):
            with pytest.raises(TypeError, match=r"^text must be a str, not "):
                await batch.write_text("a.txt", text)
            batch.complete(outputs=[await batch.write_text("b.txt", "")])


# -- tokens ------------------------------------------------------------------------------------


@pytest.mark.parametrize("index", [*NO_COUNT, -1, 2**63])
async def test_a_token_of_no_batch_is_refused(index: Any) -> None:
    async with CheckpointCoordinator() as coordinator:
        for call in (coordinator.create_checkpoint, coordinator.find_checkpoint):
            with pytest.raises((TypeError, ValueError), match=r"^batch_index must be an int"):
                call("run", index)
        assert coordinator.get_pending_checkpoints() == ()


@pytest.mark.parametrize("stream", ["s", 5, None, (1,), ("a", None), {"a": 1}])
async def test_a_token_of_no_stream_is_refused(stream: Any) -> None:
    async with CheckpointCoordinator() as coordinator:
        calls: list[Any] = [coordinator.create_checkpoint]
        calls += [coordinator.find_checkpoint] if stream is not None else []  # None: in any stream
        for call in calls:
            with pytest.raises(TypeError, match="stream must be"):
                call("run", 0, stream=stream)


@pytest.mark.parametrize("run_id", [5, b"r", "", "a/b", ".."])
async def test_a_token_of_no_run_is_refused(run_id: Any) -> None:
    async with CheckpointCoordinator() as coordinator:
        for call in (
            lambda: coordinator.create_checkpoint(run_id, 0),
            lambda: coordinator.find_checkpoint(run_id, 0),
            lambda: coordinator.get_pending_checkpoints(run_id),
        ):
            with pytest.raises((TypeError, ValueError), match="run id"):
                call()


@pytest.mark.parametrize("value", [None, 5, KeyError, b"reason"])
async def test_what_is_no_reason_leaves_the_token_pending(value: Any) -> None:
    async with CheckpointCoordinator() as coordinator:
        token = coordinator.create_checkpoint("run", 0)
        with pytest.raises(TypeError, match=r"^error must be an exception or a str, not "):
            token.fail(value)
        assert token.is_pending
        assert token.complete()


RESULTS = rows(
    "CheckpointResult",
    CheckpointResult,
    records=(*NO_COUNT, -1),
    outputs=("abc", 5, {"a": 1}),
)


@pytest.mark.parametrize(("call", "value"), RESULTS, ids=ids)
def test_a_wrong_result_cannot_be_made(call: Call, value: object) -> None:
    with pytest.raises((TypeError, ValueError)) as caught:
        call.call(**{call.argument: value})
    assert is_named(call.argument, caught.value), caught.value


# -- what is read and changed from outside -------------------------------------------------------


@pytest.mark.parametrize("key", ["org", 5, None, {"a": 1}])
async def test_what_is_no_key_is_not_read(key: Any) -> None:
    store = MemoryStore()
    async with opened(store=store) as run, run.open_stream("o") as stream:
        async for batch in stream.batches(range(1)):
            batch.complete()
    with pytest.raises(TypeError, match=r"^key must be a tuple of its parts"):
        await read_arrays(store, "run", key)
    with pytest.raises(TypeError, match=r"^key must be a tuple of its parts"):
        async for _ in read_history(store, "run", key):
            pass
    async with open_maintenance(store, "run") as maintenance:
        for call in (
            lambda: maintenance.redo(key, [0], "r"),
            lambda: maintenance.rewind(key, to=0, reason="r"),
            lambda: maintenance.retry([key]),
            lambda: maintenance.compact([key]),
        ):
            with pytest.raises(TypeError, match="key must be a tuple of its parts"):
                await call()


@pytest.mark.parametrize("indexes", ["01", 5, [1.5], [True], [-1], ["0"], {"a": 1}])
async def test_what_are_no_indexes_is_not_redone(indexes: Any) -> None:
    store = MemoryStore()
    async with opened(store=store) as run, run.open_stream("s") as stream:
        async for batch in stream.batches(range(2)):
            batch.complete()
        with pytest.raises((TypeError, ValueError), match="indexes must be"):
            await stream.redo(indexes, reason="r")
        assert len(stream.progress.confirmed) == 2
    async with open_maintenance(store, "run") as maintenance:
        with pytest.raises((TypeError, ValueError), match="indexes must be"):
            await maintenance.redo(("s",), indexes, "r")


# -- services ----------------------------------------------------------------------------------

NO_PORT = (-1, 65_536, 1.5, "8000", True, None)

MONITOR = rows(
    "monitor.serve",
    monitor.serve,
    run_or_store=(5, "gh.ckpt", None, MemoryStore),
    port=NO_PORT,
    host=(5, "", None),
    hosts=("example.org", 5, {"a": 1}),
    allow_actions=NO_FLAG,
    allow_plain=NO_FLAG,
    stuck_after_s=(*NO_SECONDS, *NO_SPAN),
)


@pytest.mark.parametrize(("call", "value"), MONITOR, ids=ids)
async def test_a_monitor_with_a_wrong_argument_does_not_start(call: Call, value: object) -> None:
    arguments: dict[str, Any] = {"run_or_store": MemoryStore()}
    with trio.fail_after(HANG_S), pytest.raises((TypeError, ValueError)) as caught:
        await call.call(**{**arguments, call.argument: value})
    assert is_named(call.argument, caught.value), caught.value


# -- displays ------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [*NO_SECONDS, *NO_SPAN, 0])
async def test_a_display_of_a_wrong_pace_is_refused(value: Any) -> None:
    async with opened() as run:
        with pytest.raises((TypeError, ValueError), match=r"^every_s must be a number of seconds"):
            await show_progress(run, file=io.StringIO(), every_s=value)


@pytest.mark.parametrize("value", [None, 5, "run", Run])
async def test_a_display_of_what_is_no_run_is_refused(value: Any) -> None:
    with pytest.raises(TypeError, match=r"^run must be an open run, not "):
        await show_progress(value)
