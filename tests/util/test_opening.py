"""What `open_*` functions return says how it is opened, where it is used in another way."""

# ruff: noqa: SIM117  (which of two calls raises is the claim)

from __future__ import annotations

import copy
from collections.abc import AsyncGenerator, Callable
from contextlib import AbstractAsyncContextManager, AbstractContextManager, ExitStack
from typing import Any

import pytest

from trio_ckpt import open_collection, open_maintenance, open_run
from trio_ckpt._util.opening import opening
from trio_ckpt.stores import MemoryStore

STORE = MemoryStore()
CALLS: dict[str, Callable[[], Any]] = {
    "open_run": lambda: open_run("run", store=STORE),
    "open_collection": lambda: open_collection("all", store=STORE, partitions=2),
    "open_maintenance": lambda: open_maintenance(STORE, "run"),
}


@pytest.mark.parametrize("name", CALLS)
def test_with_is_refused_with_the_line_to_write(name: str) -> None:
    with pytest.raises(TypeError, match=rf"^{name}\(\) .*write 'async with {name}\(\.\.\.\) as "):
        with CALLS[name]():
            pass
    with ExitStack() as stack, pytest.raises(TypeError, match=r"trio_ckpt\.blocking"):
        stack.enter_context(CALLS[name]())


@pytest.mark.parametrize("name", CALLS)
async def test_await_is_refused_with_the_line_to_write(name: str) -> None:
    with pytest.raises(TypeError, match=rf"^{name}\(\) cannot be awaited: write 'async with "):
        await CALLS[name]()


@pytest.mark.parametrize("name", CALLS)
def test_a_method_before_it_is_opened_is_refused(name: str) -> None:
    with pytest.raises(AttributeError, match=rf"^{name}\(\) has not been opened, .*'async with "):
        CALLS[name]().open_stream("pages")
    assert not hasattr(CALLS[name](), "batches")


async def test_the_openings_of_a_run_say_what_to_write() -> None:
    async with open_run("run", store=MemoryStore(), handle_signals=False) as run:
        with pytest.raises(AttributeError, match=r"write 'async with open_stream\(\.\.\.\) as str"):
            run.open_stream("pages").batches(range(3))  # type: ignore[attr-defined]
        with pytest.raises(TypeError, match=r"write 'async with phase\(\.\.\.\) as phase:'"):
            with run.phase("collect"):  # type: ignore[attr-defined]
                pass
        async with run.open_stream("pages", state={"n": 0}) as stream:
            with pytest.raises(TypeError, match=r"write 'async with open_batch\(\.\.\.\) as batch"):
                with stream.open_batch():  # type: ignore[attr-defined]
                    pass
            async for batch in stream.batches(range(1)):
                with pytest.raises(
                    TypeError, match=r"'async with snapshots\(\.\.\.\) as snapshots"
                ):
                    with stream.snapshots():  # type: ignore[attr-defined]
                        pass
                batch.complete()


@pytest.mark.parametrize("name", CALLS)
def test_it_is_only_an_asynchronous_context_manager(name: str) -> None:
    one = CALLS[name]()
    assert isinstance(one, AbstractAsyncContextManager)
    assert not isinstance(one, AbstractContextManager)  # who closes by that would call __exit__
    assert isinstance(copy.copy(one), type(one))


async def test_what_it_opens_is_closed_with_its_error() -> None:
    closed: list[str] = []

    @opening("thing")
    async def open_thing(name: str) -> AsyncGenerator[str]:
        """Open a thing."""
        try:
            yield name
        except ValueError as error:
            closed.append(str(error))

    async with open_thing("bell") as thing:
        assert thing == "bell"
        raise ValueError("rung")
    assert closed == ["rung"]  # type: ignore[unreachable]
    assert (open_thing.__name__, open_thing.__doc__) == ("open_thing", "Open a thing.")
