"""A job that is submitted again under its name: it goes on, in the way that was said last."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import trio
from trio.testing import MockClock

from tests.remote import functions
from tests.remote.functions import seen
from tests.remote.site import F, Site, open_site, until
from trio_ckpt import remote
from trio_ckpt.remote import JobCancelledError, JobRefusedError, TaskFailedError
from trio_ckpt.stores import MemoryStore

JOB = "job-again"


@pytest.fixture(autouse=True)
def _fresh() -> Iterator[None]:
    functions.reset()
    yield
    functions.reset()


async def map_again(site: Site, function: str, items: list[Any], **options: Any) -> list[Any]:
    async with site.client() as client:
        return await client.map(F + function, items, job_id=JOB, **options)


def tries() -> list[tuple[int, int]]:
    return [(item, attempt) for _, item, attempt in seen]


async def test_a_failed_job_goes_on_with_more_attempts(autojump_clock: MockClock) -> None:
    """What had failed is tried again from its first attempt, what was done is not."""
    items = [0, 1, 2]
    async with open_site(MemoryStore()) as site:
        await site.start_worker("a")
        with pytest.raises(TaskFailedError, match="1 fails at first"):
            await map_again(site, "fail_odd_first_try", items)
        await trio.sleep(5)  # an item that was on its way when the job failed may begin
        before = tries()
        with pytest.raises(TaskFailedError, match="1 fails at first"):
            await map_again(site, "fail_odd_first_try", items)
        assert tries() == before, "the same options change nothing"
        assert await map_again(site, "fail_odd_first_try", items, attempts=3) == items
        assert [tries().count(one) for one in ((0, 1), (1, 1), (1, 2), (1, 3))] == [1, 2, 1, 0]
        before = tries()
        assert await map_again(site, "fail_odd_first_try", items, attempts=9) == items
        assert tries() == before, "a job without failures is over, however it is to be done"


async def test_collected_errors_are_tried_again_with_more_attempts(
    autojump_clock: MockClock,
) -> None:
    async with open_site(MemoryStore()) as site:
        await site.start_worker("a")
        for _ in range(2):
            found = await map_again(site, "fail_odd_first_try", [0, 1, 2], errors="collect")
            assert [type(value) for value in found] == [int, TaskFailedError, int]
        options = {"errors": "collect", "attempts": 2}
        assert await map_again(site, "fail_odd_first_try", [0, 1, 2], **options) == [0, 1, 2]
        assert (await remote.read_job(site.store, JOB)).failed_tasks == 0


async def test_a_running_job_goes_on_with_more_attempts(autojump_clock: MockClock) -> None:
    """Another client says so while the first one waits for it; both get the results."""
    async with open_site(MemoryStore()) as site:
        found: list[Any] = []

        async def first() -> None:
            found.extend(await map_again(site, "fail_first_try", [1]))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(first)
            await until(lambda: site.foreman is not None and JOB in site.foreman.jobs)
            await trio.sleep(1)
            async with site.client("second") as client:
                await client.submit(F + "fail_first_try", [1], job_id=JOB, attempts=2)
                await site.start_worker("a")
                assert await client.attach(JOB) == [1]
        assert found == [1]


async def test_the_newest_options_outlive_the_foreman(autojump_clock: MockClock) -> None:
    async with open_site(MemoryStore()) as site:
        async with site.client() as client:
            await client.submit(F + "fail_first_try", [1], job_id=JOB)
            await client.submit(F + "fail_first_try", [1], job_id=JOB, attempts=3)
            await client.submit(F + "fail_first_try", [1], job_id=JOB, attempts=2)
        await site.kill_foreman(site.store.after_crash())  # type: ignore[attr-defined]
        await site.start_foreman()
        assert site.foreman is not None
        await site.foreman.jobs[JOB].ready.wait()
        submission = site.foreman.jobs[JOB].submission
        assert submission is not None
        assert submission.options.attempts == 2
        await site.start_worker("a")
        async with site.client() as client:
            assert await client.attach(JOB) == [1]


@pytest.mark.parametrize(
    ("function", "items"), [("fail_first_try", [1]), ("fail_odd_first_try", [2])]
)
async def test_other_work_under_the_same_name_is_refused(
    function: str, items: list[int], autojump_clock: MockClock
) -> None:
    """While the job is done, and when it is over; it is not touched by that."""
    async with open_site(MemoryStore()) as site, site.client() as client:
        await client.submit(F + "fail_odd_first_try", [1], job_id=JOB)
        with pytest.raises(JobRefusedError, match="another function or other items"):
            await client.submit(F + function, items, job_id=JOB, attempts=2)
        await site.start_worker("a")
        with pytest.raises(TaskFailedError):
            await client.attach(JOB)
        with pytest.raises(JobRefusedError, match="another function or other items"):
            await client.submit(F + function, items, job_id=JOB, attempts=2)
        assert tries() == [(1, 1)]


async def test_a_cancelled_job_stays_cancelled(autojump_clock: MockClock) -> None:
    async with open_site(MemoryStore()) as site, site.client() as client:
        await client.submit(F + "echo", [1], job_id=JOB)
        await client.cancel(JOB)
        await until(lambda: site.foreman is not None and not site.foreman.jobs)
        await client.submit(F + "echo", [1], job_id=JOB, attempts=2)
        with pytest.raises(JobCancelledError):
            await client.attach(JOB)


async def test_two_clients_that_submit_at_once_share_the_job(autojump_clock: MockClock) -> None:
    async with open_site(MemoryStore()) as site:
        await site.start_worker("a")
        found: list[list[int]] = []

        async def one(name: str) -> None:
            async with site.client(name) as client:
                found.append(await client.map(F + "square", [2, 3], job_id=JOB))

        async with trio.open_nursery() as nursery:
            for number in range(5):
                nursery.start_soon(one, f"client {number}")
        assert found == [[4, 9]] * 5
        assert seen == [2, 3]


async def test_the_traceback_of_a_failure_reaches_every_client(autojump_clock: MockClock) -> None:
    """Also one that comes later, from another foreman: it is stored with the attempt."""
    async with open_site(MemoryStore()) as site:
        await site.start_worker("a")
        with pytest.raises(TaskFailedError) as raised:
            await map_again(site, "fail_first_try", [1])
        await site.kill_foreman(site.store.after_crash())  # type: ignore[attr-defined]
        await site.start_foreman()
        async with site.client("later") as client:
            with pytest.raises(TaskFailedError) as again:
                await client.attach(JOB)
            found = await client.map(F + "fail_odd", [1, 2], errors="collect")
    for text in (raised.value.remote_traceback, again.value.remote_traceback):
        assert text.startswith("Traceback (most recent call last):\n")
        assert 'raise ValueError(f"{item} fails at first")' in text
        assert text.endswith("ValueError: 1 fails at first\n")
    assert "1 is odd" in found[0].remote_traceback
