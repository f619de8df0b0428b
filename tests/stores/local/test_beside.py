"""A helper thread of a blocking function: order, limits, errors and its end."""

from __future__ import annotations

import threading
from collections.abc import Sequence

import pytest

from trio_ckpt.stores._local.beside import Beside


def test_does_everything_in_order() -> None:
    done: list[int] = []
    beside = Beside("test beside", lambda items: done.extend(items))
    for number in range(1000):
        beside.add(number)
    beside.close()
    assert done == list(range(1000))
    assert "test beside" not in [thread.name for thread in threading.enumerate()]


def test_more_than_may_wait_is_not_taken() -> None:
    """A producer that is faster than the work has to wait."""
    may_work, done, added = threading.Event(), list[int](), list[int]()

    def work(items: Sequence[int]) -> None:
        may_work.wait(30)
        done.extend(items)

    beside = Beside("test beside", work, 3)

    def add_all() -> None:
        for number in range(9):
            beside.add(number)
            added.append(number)

    adding = threading.Thread(target=add_all)
    adding.start()
    adding.join(0.05)  # it would be over: that it goes on is what is seen
    assert adding.is_alive()
    assert added == [0, 1, 2]
    may_work.set()
    adding.join(30)
    beside.close()
    assert done == list(range(9))


def test_what_it_raises_is_raised_where_it_is_waited_for() -> None:
    """A caller that adds more, or waits for room, gets the error at once."""
    error = OSError("no more")

    def work(_items: Sequence[int]) -> None:
        raise error

    beside = Beside("test beside", work, 1)
    beside.add(1)
    with pytest.raises(OSError, match="no more"):
        beside.add(2)  # there is no room before the first has failed
    with pytest.raises(OSError, match="no more"):
        beside.close()
    beside.stop()
    beside.stop()


def test_stop_leaves_what_waits() -> None:
    begun, may_end, done = threading.Event(), threading.Event(), list[int]()

    def work(items: Sequence[int]) -> None:
        begun.set()
        may_end.wait(30)
        done.extend(items)

    beside = Beside("test beside", work)
    beside.add(1)
    assert begun.wait(30)
    beside.add(2)
    stopping = threading.Thread(target=beside.stop)
    stopping.start()
    stopping.join(0.05)
    assert stopping.is_alive()  # it waits for what is being done
    may_end.set()
    stopping.join(30)
    assert done == [1]
