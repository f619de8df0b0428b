"""A rate that tasks share: their turns, what they reserve, and what a server says."""

from __future__ import annotations

from typing import Any

import pytest
import trio
from trio.testing import MockClock

from tests.opening import begin
from trio_ckpt import RateLimit, RunStoppedError
from trio_ckpt.stores import MemoryStore


class RefusedError(Exception):
    """As clients raise it for 429."""

    def __init__(self, retry_after: float | None = None, status: int = 429) -> None:
        super().__init__(f"status {status}")
        self.status = status
        self.retry_after = retry_after


async def test_requests_go_in_the_order_in_which_they_ask(autojump_clock: MockClock) -> None:
    """A large one is not overtaken by small ones."""
    limit, went = RateLimit(tokens_per_min=60), list[tuple[int, float]]()

    async def ask(number: int, tokens: int) -> None:
        async with limit.request(tokens=tokens):
            went.append((number, trio.current_time()))

    began = trio.current_time()
    async with trio.open_nursery() as nursery:
        for number, tokens in enumerate([1, 30, 1, 1]):
            nursery.start_soon(ask, number, tokens)
            await trio.testing.wait_all_tasks_blocked()
    assert [number for number, _ in went] == [0, 1, 2, 3]
    assert [at - began for _, at in went] == pytest.approx([0, 1, 31, 32])


async def test_tokens_that_were_not_used_shorten_the_wait(autojump_clock: MockClock) -> None:
    limit, began = RateLimit(tokens_per_min=60), trio.current_time()

    async def answer() -> None:
        async with limit.request(tokens=600) as turn:
            await trio.sleep(10)
            turn.settle(tokens=5)
            assert turn.tokens == 5

    async with trio.open_nursery() as nursery:
        nursery.start_soon(answer)
        await trio.testing.wait_all_tasks_blocked()
        async with limit.request(tokens=1):
            assert trio.current_time() - began == pytest.approx(10, abs=1e-6)


async def test_tokens_that_were_used_beyond_lengthen_it(autojump_clock: MockClock) -> None:
    limit, began = RateLimit(tokens_per_min=60), trio.current_time()
    async with limit.request(tokens=1) as turn:
        turn.settle(tokens=20)
    async with limit.request(tokens=1):
        assert trio.current_time() - began == pytest.approx(20)


@pytest.mark.parametrize(
    "error",
    [
        RefusedError(20),
        RefusedError(20, status=403),
        ExceptionGroup("several", [KeyError("x"), RefusedError(20)]),
    ],
)
async def test_all_tasks_hear_what_the_server_asks(
    error: Exception, autojump_clock: MockClock
) -> None:
    limit, began = RateLimit(requests_per_min=6_000), trio.current_time()
    with pytest.raises(type(error)) as caught:
        async with limit.request():
            raise error
    assert caught.value is error
    assert limit.share == 0.5

    async def ask() -> None:
        async with limit.request():
            assert trio.current_time() - began >= 20

    async with trio.open_nursery() as nursery:
        for _ in range(5):
            nursery.start_soon(ask)


async def test_other_errors_say_nothing_about_the_rate(autojump_clock: MockClock) -> None:
    limit = RateLimit(requests_per_min=6_000)
    for error in (KeyError("x"), RefusedError(20, status=503), RefusedError(status=403)):
        with pytest.raises(type(error)):
            async with limit.request():
                raise error
    async with limit.request() as turn:
        assert not turn.is_refused
    assert limit.share == 1.0
    assert trio.current_time() < 1


async def test_a_response_can_be_called_a_refusal(autojump_clock: MockClock) -> None:
    limit = RateLimit(requests_per_min=60)
    async with limit.request() as turn:
        turn.refused(retry_after_s=7)
    assert limit.share == 0.5
    began = trio.current_time()
    async with limit.request():
        pass
    assert trio.current_time() - began == pytest.approx(7)
    assert 0.5 < limit.share < 0.7


async def test_a_rate_that_does_not_learn_is_not_cut(autojump_clock: MockClock) -> None:
    limit = RateLimit(requests_per_min=60, adaptive=False)
    async with limit.request() as turn:
        turn.refused(retry_after_s=7)
    assert limit.share == 1.0
    async with limit.request():
        assert trio.current_time() == pytest.approx(7)


async def test_a_cancelled_wait_takes_nothing(autojump_clock: MockClock) -> None:
    limit = RateLimit(requests_per_min=1)
    async with limit.request():
        pass
    with trio.move_on_after(5) as scope:
        async with limit.request():
            pass
    assert scope.cancelled_caught
    async with limit.request():
        assert trio.current_time() == pytest.approx(60)


async def test_it_follows_a_server_that_allows_less(autojump_clock: MockClock) -> None:
    """The server takes 100 a minute, the program believes in 600."""
    limit, level, at, counts = RateLimit(requests_per_min=600), 10.0, 0.0, [0, 0]

    async def call() -> None:
        nonlocal level, at
        async with limit.request():
            await trio.sleep(0.2)
            now = trio.current_time()
            level, at = min(10.0, level + (now - at) * 100 / 60), now
            level -= 1
            if level < 0:
                level += 1
                counts[1] += 1
                raise RefusedError
            counts[0] += 1

    async def work() -> None:
        while trio.current_time() < 1_800:
            try:
                await call()
            except RefusedError:
                await trio.sleep(1)

    async with trio.open_nursery() as nursery:
        for _ in range(8):
            nursery.start_soon(work)
    done, refused = counts
    assert done > 0.8 * 30 * 100  # what the server allows in half an hour
    assert refused < 0.1 * done


async def test_a_stop_does_not_wait_for_a_turn(autojump_clock: MockClock) -> None:
    limit = RateLimit(requests_per_min=1)
    async with limit.request():
        pass
    began = trio.current_time()

    async def work() -> None:
        async with begin(MemoryStore()) as run, run.open_stream("s") as stream:
            async for batch in stream.batches(range(2)):
                run.request_stop()
                async with limit.request(batch):
                    batch.complete()

    with pytest.raises(RunStoppedError):
        await work()
    assert trio.current_time() - began < 1


def test_another_trio_run_is_refused() -> None:
    """It has another clock, so a wait could last for days, and may be beside this one."""
    limit = RateLimit(requests_per_min=600)

    async def ask() -> None:
        async with limit.request() as turn:
            turn.refused(retry_after_s=0)

    trio.run(ask)
    with pytest.raises(RuntimeError, match=r"belongs to the trio\.run .*before, under one"):
        trio.run(ask)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "needs requests_per_min= or tokens_per_min="),
        ({"requests_per_min": 0}, "requests_per_min must be above zero"),
        ({"tokens_per_min": -1}, "tokens_per_min must be"),
        ({"tokens_per_min": "1"}, "tokens_per_min must be"),
        ({"tokens_per_min": 1, "adaptive": 1}, "adaptive must be"),
    ],
)
def test_bad_arguments_are_named(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises((TypeError, ValueError), match=message):
        RateLimit(**arguments)


async def test_bad_numbers_of_tokens_are_named(autojump_clock: MockClock) -> None:
    limit = RateLimit(tokens_per_min=60)
    with pytest.raises(ValueError, match="tokens must be"):
        async with limit.request(tokens=-1):
            pass
    async with limit.request(tokens=1) as turn:
        with pytest.raises(TypeError, match="tokens must be"):
            turn.settle(tokens=0.5)  # type: ignore[arg-type]
        with pytest.raises(ValueError, match="retry_after_s must be"):
            turn.refused(-1)


async def test_what_it_shows(autojump_clock: MockClock) -> None:
    limit = RateLimit(requests_per_min=500, tokens_per_min=100_000)
    assert repr(limit) == "<RateLimit; requests a minute 500; tokens a minute 100,000>"
    async with limit.request() as turn:
        turn.refused()
    assert repr(limit).endswith("tokens a minute 100,000; share 50%>")
