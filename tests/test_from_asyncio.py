"""Runs in asyncio programs, and asyncio in their batches."""

from __future__ import annotations

import asyncio
import contextvars
import os
import signal
import subprocess
import sys
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import sniffio
import trio
import trio.lowlevel
from aiohttp import web

from tests.hangs import HANG_S, PROGRAM_S
from tests.opening import begin
from trio_ckpt import RunStoppedError, from_asyncio
from trio_ckpt.stores import MemoryStore

CALLER: contextvars.ContextVar[str] = contextvars.ContextVar("caller", default="none")


class NoPageError(Exception):
    pass


def in_asyncio(func: Callable[..., Awaitable[Any]], *args: object) -> Any:
    """Run an async function of trio in an asyncio program."""

    async def main() -> Any:
        return await asyncio.wait_for(from_asyncio.run(func, *args), HANG_S)

    return asyncio.run(main())


def test_the_result_is_returned() -> None:
    async def add(one: int, other: int) -> int:
        await trio.lowlevel.checkpoint()
        return one + other

    assert in_asyncio(add, 1, 2) == 3


def test_an_exception_is_raised_as_the_object_that_it_is() -> None:
    error = NoPageError("page 1")

    async def fail() -> None:
        await trio.lowlevel.checkpoint()
        raise error

    with pytest.raises(NoPageError) as raised:
        in_asyncio(fail)
    assert raised.value is error


def test_asyncio_is_called_from_a_batch() -> None:
    async def fetch(page: int) -> str:
        await asyncio.sleep(0)
        assert asyncio.current_task() is not None
        return f"page {page}"

    async def crawl() -> list[str]:
        pages = []
        async with begin() as run, run.open_stream("pages") as stream:
            async for batch in stream.batches(range(3)):
                pages.append(await from_asyncio.call(fetch, batch.item))
                batch.complete()
        return pages

    assert in_asyncio(crawl) == ["page 0", "page 1", "page 2"]


def test_an_exception_of_asyncio_fails_its_batch() -> None:
    store, error = MemoryStore(), NoPageError("page 1")

    async def fetch(page: int) -> None:
        await asyncio.sleep(0)
        if page == 1:
            raise error

    async def crawl() -> None:
        async with begin(store) as run, run.open_stream("pages") as stream:
            async for batch in stream.batches(range(3)):
                await from_asyncio.call(fetch, batch.item)
                batch.complete()

    with pytest.raises(NoPageError) as raised:
        in_asyncio(crawl)
    assert raised.value is error

    async def look() -> None:
        async with begin(store) as run, run.open_stream("pages") as stream:
            assert list(stream.progress.done) == [0]
            assert set(stream.progress.failures) == {1}

    trio.run(look)


def test_both_have_the_context_variables_of_their_callers() -> None:
    async def of_asyncio() -> str:
        return CALLER.get()

    async def of_trio() -> tuple[str, str]:
        before = CALLER.get()
        CALLER.set("trio")
        return before, await from_asyncio.call(of_asyncio)

    async def main() -> tuple[str, str]:
        CALLER.set("asyncio")
        return await from_asyncio.run(of_trio)

    assert asyncio.run(main()) == ("asyncio", "trio")


def make_task(
    loop: asyncio.AbstractEventLoop, coro: Coroutine[Any, Any, Any], **options: Any
) -> asyncio.Task[Any]:
    """Make a task as an eager factory does: in the turn of its first step."""
    assert not trio.lowlevel.in_trio_task()
    return asyncio.Task(coro, loop=loop, **options)


def fail_to_make_task(
    _loop: asyncio.AbstractEventLoop, coro: Coroutine[Any, Any, Any], **_options: Any
) -> asyncio.Task[Any]:
    coro.close()
    raise NoPageError("no task")


FACTORIES: list[Any] = [make_task]
if sys.version_info >= (3, 12):
    FACTORIES.append(asyncio.eager_task_factory)


async def with_factory(factory: Any, func: Callable[..., Awaitable[Any]]) -> Any:
    async def of_trio() -> Any:
        asyncio.get_running_loop().set_task_factory(factory)
        return await from_asyncio.call(func)

    return await asyncio.wait_for(from_asyncio.run(of_trio), HANG_S)


@pytest.mark.parametrize("factory", FACTORIES)
def test_a_task_of_asyncio_begins_outside_of_trio(factory: Any) -> None:
    async def fetch() -> tuple[str, bool]:
        first = sniffio.current_async_library(), trio.lowlevel.in_trio_task()
        await asyncio.sleep(0)
        return first

    assert asyncio.run(with_factory(factory, fetch)) == ("asyncio", False)


def test_a_task_that_cannot_be_made_is_an_error_of_the_call() -> None:
    async def never() -> None:
        raise AssertionError("it ran")

    with pytest.raises(NoPageError, match="no task"):
        asyncio.run(with_factory(fail_to_make_task, never))


def test_a_first_step_may_cancel_its_caller() -> None:
    seen = list[str]()

    async def wait() -> None:
        try:
            await asyncio.sleep(HANG_S)
        finally:
            seen.append("ended")

    async def of_trio() -> None:
        with trio.CancelScope() as scope:

            def cancel_and_make(*args: Any, **options: Any) -> asyncio.Task[Any]:
                scope.cancel()
                return make_task(*args, **options)

            asyncio.get_running_loop().set_task_factory(cancel_and_make)
            await from_asyncio.call(wait)
        seen.append("cancelled")

    async def main() -> None:
        await from_asyncio.run(of_trio)

    asyncio.run(main())
    assert seen == ["cancelled"]


def test_a_call_that_is_cancelled_before_it_begins_is_none() -> None:
    async def never() -> None:
        raise AssertionError("it ran")

    async def of_trio() -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(from_asyncio.call, never)
            nursery.start_soon(cancel, nursery.cancel_scope)

    async def cancel(scope: trio.CancelScope) -> None:
        scope.cancel()

    in_asyncio(of_trio)


def test_asyncio_cancels_a_run_which_is_left_in_good_order() -> None:
    store, seen = MemoryStore(), list[str]()

    async def crawl(begun: asyncio.Event) -> None:
        async with begin(store) as run, run.open_stream("pages") as stream:
            async for batch in stream.batches(range(3)):
                batch.complete()
                if batch.index == 1:
                    begun.set()
                    try:
                        await trio.sleep_forever()
                    finally:
                        seen.append("cancelled")

    async def main() -> None:
        begun = asyncio.Event()
        task = asyncio.create_task(from_asyncio.run(crawl, begun))
        await asyncio.wait_for(begun.wait(), HANG_S)
        task.cancel()
        await asyncio.sleep(0)
        task.cancel()  # it waits for the end of the run all the same
        with pytest.raises(asyncio.CancelledError):
            await task
        assert seen == ["cancelled"]

    asyncio.run(main())

    async def look() -> list[int]:
        async with begin(store) as run, run.open_stream("pages") as stream:
            assert stream.progress.failures == {}
            return list(stream.progress.done)

    assert trio.run(look) == [0, 1]


def test_a_cancellation_before_the_start_is_one() -> None:
    async def never() -> None:
        raise AssertionError("it ran")

    async def main() -> None:
        task = asyncio.create_task(from_asyncio.run(never))
        task.cancel()
        await task

    with pytest.raises(asyncio.CancelledError):
        asyncio.run(main())


def test_a_result_that_comes_with_a_cancellation_is_dropped() -> None:
    """A task of asyncio that was asked to end does not go on."""

    async def stubborn(begun: asyncio.Event) -> int:
        with trio.CancelScope(shield=True):
            begun.set()
            await trio.sleep(0.01)
        return 1

    async def main() -> None:
        begun = asyncio.Event()
        task = asyncio.create_task(from_asyncio.run(stubborn, begun))
        await begun.wait()
        task.cancel()
        await task

    with pytest.raises(asyncio.CancelledError):
        asyncio.run(main())


def test_a_cancel_scope_cancels_the_task_of_asyncio() -> None:
    seen = list[str]()

    async def wait(begun: trio.Event) -> None:
        begun.set()
        try:
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(0)
            seen.append("ended")

    async def main() -> bool:
        begun = trio.Event()
        with trio.CancelScope() as scope:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(from_asyncio.call, wait, begun)
                await begun.wait()
                scope.cancel()
        assert seen == ["ended"]
        return scope.cancelled_caught

    assert in_asyncio(main)


def test_a_task_that_another_cancels_raises_its_error() -> None:
    async def give_up() -> None:
        task = asyncio.current_task()
        assert task is not None
        task.cancel()
        await asyncio.sleep(0)

    async def main() -> str:
        try:
            await from_asyncio.call(give_up)
        except asyncio.CancelledError:
            return "cancelled"
        return "not cancelled"

    assert in_asyncio(main) == "cancelled"


def test_a_stop_ends_the_run_of_an_asyncio_program() -> None:
    async def crawl() -> None:
        async with begin() as run, run.open_stream("pages") as stream:
            async for batch in stream.batches(range(3)):
                batch.complete()
                run.request_stop()

    async def main() -> int:
        try:
            await from_asyncio.run(crawl)
        except RunStoppedError as stopped:
            return stopped.exit_code
        return 0

    assert asyncio.run(main()) == 75


def test_a_second_run_of_the_thread_is_refused() -> None:
    async def outer() -> None:
        async def other() -> None:
            pass

        with pytest.raises(RuntimeError, match="nursery of one function"):
            await from_asyncio.call(from_asyncio.run, other)

    in_asyncio(outer)


def test_a_run_after_another_is_allowed() -> None:
    async def one() -> int:
        await trio.lowlevel.checkpoint()
        return 1

    async def main() -> int:
        return await from_asyncio.run(one) + await from_asyncio.run(one)

    assert asyncio.run(main()) == 2


async def test_in_a_trio_program_the_bridge_says_so() -> None:
    with pytest.raises(RuntimeError, match="await the function itself"):
        await from_asyncio.run(trio.sleep, 0)
    with pytest.raises(RuntimeError, match="no loop of asyncio here"):
        await from_asyncio.call(asyncio.sleep, 0)


def test_without_the_bridge_the_error_says_what_to_do() -> None:
    async def main() -> None:
        async with begin():
            pass

    with pytest.raises(RuntimeError, match=r"await trio_ckpt\.from_asyncio\.run\(main\)"):
        asyncio.run(main())


def test_asyncio_code_beside_the_bridge_is_told_as_well() -> None:
    async def of_asyncio() -> None:
        with pytest.raises(RuntimeError, match=r"await trio_ckpt\.from_asyncio\.run\(main\)"):
            async with begin():
                pass

    async def main() -> None:
        await from_asyncio.call(of_asyncio)

    in_asyncio(main)


# -- aiohttp -------------------------------------------------------------------------------------


@asynccontextmanager
async def site() -> AsyncGenerator[str]:
    """A server of aiohttp on loopback; yields its address."""

    async def page(request: web.Request) -> web.Response:
        return web.json_response({"page": int(request.match_info["number"])})

    app = web.Application()
    app.router.add_get("/{number}", page)
    runner = web.AppRunner(app)
    await runner.setup()
    try:
        server = web.TCPSite(runner, "127.0.0.1", 0)
        await server.start()
        yield f"http://127.0.0.1:{runner.addresses[0][1]}"
    finally:
        await runner.cleanup()


def test_aiohttp_fetches_the_pages_of_a_run(tmp_path: Path) -> None:
    async def crawl(session: aiohttp.ClientSession, address: str) -> None:
        async def fetch(number: int) -> Any:
            async with session.get(f"{address}/{number}") as response:
                return await response.json()

        async def handle(batch: Any) -> None:
            found = await from_asyncio.call(fetch, batch.item)
            await batch.write_json(f"{batch.item}.json", found)
            batch.complete()

        async with begin(output_dir=tmp_path) as run, run.open_stream("pages") as stream:
            async for batch in stream.batches(range(5)):
                await handle(batch)

    async def main() -> None:
        async with site() as address, aiohttp.ClientSession() as session:
            await from_asyncio.run(crawl, session, address)

    asyncio.run(main())
    assert (tmp_path / "4.json").read_text("utf-8") == '{"page":4}\n'
    assert len(list(tmp_path.glob("[0-9]*.json"))) == 5


def test_a_server_of_aiohttp_answers_while_a_run_works() -> None:
    async def crawl(asked: Callable[[], Awaitable[int]]) -> int:
        async with begin() as run, run.open_stream("pages") as stream:
            async for batch in stream.batches(range(3)):
                batch.complete(records=await from_asyncio.call(asked))
            return stream.progress.records

    async def main() -> int:
        async with site() as address, aiohttp.ClientSession() as session:

            async def asked() -> int:
                async with session.get(f"{address}/7") as response:
                    return int((await response.json())["page"])

            return await from_asyncio.run(crawl, asked)

    assert asyncio.run(main()) == 21


PROGRAM = """
import asyncio, os, signal, sys
import trio_ckpt
from trio_ckpt import from_asyncio

async def crawl():
    async with trio_ckpt.open_run("r", store="r.ckpt") as run:
        async with run.open_stream("pages") as stream:
            async for batch in stream.batches(range(4)):
                if batch.index == 1:
                    for number in sys.argv[1:]:
                        os.kill(os.getpid(), getattr(signal, number))
                        await from_asyncio.call(asyncio.sleep, 0.05)  # the signal arrives
                batch.complete()

async def main():
    await from_asyncio.run(crawl)
    print("complete")

asyncio.run(main())
"""


@pytest.mark.parametrize(
    ("signals", "code"), [(["SIGINT"], 75), (["SIGTERM"], 75), (["SIGINT", "SIGINT"], 130)]
)
def test_a_signal_ends_an_asyncio_program_with_its_code(
    signals: list[str], code: int, tmp_path: Path
) -> None:
    (tmp_path / "program.py").write_text(PROGRAM, encoding="utf-8")

    def run(*words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "program.py", *words],
            cwd=tmp_path,
            env={**os.environ},
            capture_output=True,
            text=True,
            timeout=PROGRAM_S,
            check=False,
        )

    stopped = run(*signals)
    assert stopped.returncode == code, stopped.stderr
    assert "Traceback" not in stopped.stderr
    assert run().stdout == "complete\n"
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
