"""One client, many things at once: nothing that it awaits is left waiting, and nothing that it has
cancelled goes on."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from typing import Any

import pytest
import trio
import trio.lowlevel
from trio.testing import MockClock

from tests.remote import functions
from tests.remote.functions import gates, seen
from tests.remote.site import F, Site, open_site, until
from trio_ckpt import remote
from trio_ckpt.remote import JobRefusedError, TaskStatus
from trio_ckpt.remote._client import Client
from trio_ckpt.remote._wire.message import MAX_FOLLOWED, MAX_SUBMISSIONS
from trio_ckpt.stores import MemoryStore

JOB = "job-c"


@pytest.fixture(autouse=True)
def _fresh() -> Iterator[None]:
    functions.reset()
    yield
    functions.reset()


async def test_many_jobs_are_submitted_at_once(autojump_clock: MockClock) -> None:
    """More than a foreman takes from one client at a time: the others wait their turn."""
    count = 5 * MAX_SUBMISSIONS
    async with open_site(MemoryStore()) as site, site.client() as client:
        await site.start_worker("a", slots=4)
        found: dict[int, list[Any]] = {}

        async def one(number: int) -> None:
            found[number] = await client.map(F + "echo", [number, "x" * 300_000 * (number % 3)])

        async with trio.open_nursery() as nursery:
            for number in range(count):
                nursery.start_soon(one, number)
    assert {number: values[0] for number, values in found.items()} == {n: n for n in range(count)}


async def test_two_readers_of_a_job_have_all_results_each(autojump_clock: MockClock) -> None:
    """The second one comes when the first has read a part, over two connections."""
    async with open_site(MemoryStore()) as site, site.client() as client:
        await site.start_worker("a", slots=3)
        first = await client.map_unordered(F + "wait", ["x", "y", "z"], job_id=JOB)
        await until(lambda: len(gates) == 3)
        gates["x"].set()
        assert (await anext(first)).value == "x"
        second = client.results(JOB)
        gates["y"].set()
        assert {(await anext(second)).value for _ in range(2)} == {"x", "y"}
        site.cut("client")
        gates["z"].set()
        assert {result.value async for result in first} == {"y", "z"}
        assert [result.value async for result in second] == ["z"]


async def test_a_refused_job_leaves_those_alone_that_read_it(autojump_clock: MockClock) -> None:
    async with open_site(MemoryStore()) as site, site.client() as client:
        results = await client.map_unordered(F + "square", [3], job_id=JOB)
        with pytest.raises(JobRefusedError, match="another function or other items"):
            await client.submit(F + "square", [4], job_id=JOB)
        await site.start_worker("a")
        assert [result.value async for result in results] == [9]


async def test_the_same_job_twice_at_once_is_one_job(autojump_clock: MockClock) -> None:
    async with open_site(MemoryStore()) as site, site.client() as client:
        await site.start_worker("a")
        found: list[Any] = []

        async def one() -> None:
            found.append(await client.map(F + "square", [2, 3], job_id=JOB))

        async with trio.open_nursery() as nursery:
            for _ in range(3):
                nursery.start_soon(one)
        assert found == [[4, 9]] * 3
        assert seen == [2, 3]


async def test_results_that_are_not_read_any_more_make_room(autojump_clock: MockClock) -> None:
    async with open_site(MemoryStore()) as site, site.client() as client:
        await client.submit(F + "echo", [1], job_id=JOB)
        kept = [client.results(f"job-{n}") for n in range(MAX_FOLLOWED)]
        with pytest.raises(JobRefusedError, match=r"at most 1,000 jobs at a time"):
            client.results(JOB)
        kept.clear()
        gc.collect()
        await site.start_worker("a")
        assert await client.attach(JOB) == [1]


# -- cancelling -----------------------------------------------------------------------------------


async def status(site: Site) -> TaskStatus | None:
    try:
        return (await remote.read_job(site.store, JOB)).status
    except remote.UnknownJobError:
        return None


async def test_a_cancel_behind_its_submission_ends_the_job(autojump_clock: MockClock) -> None:
    """Both are on their way together, and the foreman hears the second while it takes the job."""
    async with open_site(MemoryStore()) as site, site.client() as client:
        site.latency_s = 0.5
        await site.start_worker("a")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(submit, client)
            await trio.sleep(0.1)
            await client.cancel(JOB)
        await until(lambda: site.foreman is not None and not site.foreman.jobs)
        assert await status(site) is TaskStatus.CANCELLED


async def submit(client: Client) -> None:
    await client.submit(F + "wait", ["x"], job_id=JOB)


async def test_a_cancel_without_a_connection_is_said_on_the_next(
    autojump_clock: MockClock,
) -> None:
    async with open_site(MemoryStore()) as site, site.client() as client:
        await site.start_worker("a")
        await submit(client)
        site.cut("client", for_good=True)
        await trio.sleep(1)
        await client.cancel(JOB)
        site.cut_off.discard("client")
        await until(lambda: site.foreman is not None and not site.foreman.jobs)
        assert await status(site) is TaskStatus.CANCELLED


async def test_a_map_that_is_cancelled_before_it_is_taken_leaves_no_job(
    autojump_clock: MockClock,
) -> None:
    """Nor does it come back with the next connection."""
    async with open_site(MemoryStore()) as site, site.client() as client:
        await site.start_worker("a")
        site.cut("client", for_good=True)
        with trio.move_on_after(3):
            await client.map(F + "wait", ["x"], job_id=JOB)
        site.cut_off.discard("client")
        await trio.sleep(10)
        assert await status(site) in (None, TaskStatus.CANCELLED)
        assert seen == []


async def test_a_foreman_that_stops_while_a_job_is_submitted_is_waited_for(
    autojump_clock: MockClock,
) -> None:
    """It says goodbye in the middle of many items; the next one is told all of them."""
    items = [[n, "x" * 900_000] for n in range(12)]
    async with open_site(MemoryStore()) as site, site.client() as client:
        found: list[Any] = []

        async def one() -> None:
            found.extend(await client.map(F + "echo", items, job_id=JOB))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(one)
            for _ in range(40):
                await trio.lowlevel.checkpoint()
            site.stop_foreman()
            await trio.sleep(2)
            assert await status(site) is None
            await site.start_foreman()
            await site.start_worker("a", slots=4)
        assert found == items
