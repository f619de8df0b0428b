"""Orders: a permutation for every data set, seed and epoch, and a place that is kept by sample."""

from __future__ import annotations

import itertools
import math
from collections import Counter
from typing import Any

import pytest
from hypothesis import given, strategies as st

from tests.opening import begin
from trio_ckpt import StateChangedError
from trio_ckpt.state import Order
from trio_ckpt.stores import MemoryStore

GOLDEN = {
    10: [7, 2, 6, 0, 4, 9, 1, 8, 5, 3],
    255: [51, 229, 58, 46, 199, 48],
    256: [194, 170, 155, 169, 82, 72],
    10**9: [648339208, 766775079, 645169946, 287589852],
    2**62: [741580490050247711, 4454441554799088092],
}
SEEDS = st.integers(0, 2**63 - 2)


def order_in(n: int, seed: int = 0, epoch: int = 0) -> Order:
    order = Order(n, seed)
    order.begin_epoch(epoch)
    return order


@given(st.integers(1, 3000), SEEDS, SEEDS)
def test_each_sample_has_one_position(n: int, seed: int, epoch: int) -> None:
    order = order_in(n, seed, epoch)
    assert sorted(order.sample_at(position) for position in range(n)) == list(range(n))


@given(st.integers(1, 2**62), SEEDS, st.data())
def test_samples_of_a_data_set_of_any_size_are_distinct(
    n: int, seed: int, data: st.DataObject
) -> None:
    order = order_in(n, seed)
    first = data.draw(st.integers(0, n - 1))
    found = [order.sample_at(position) for position in range(first, min(n, first + 50))]
    assert len(set(found)) == len(found)
    assert all(0 <= sample < n for sample in found)


def test_an_order_is_the_same_on_every_machine_and_version() -> None:
    """These values are part of the format: a saved position means the samples behind it."""
    assert order_in(1).take(3) == [0]
    assert order_in(10, 1).take(10) == GOLDEN[10]
    assert order_in(255, 3, 2).take(6) == GOLDEN[255]
    assert order_in(256, 3, 2).take(6) == GOLDEN[256]
    assert order_in(10**9, 7, 3).take(4) == GOLDEN[10**9]
    assert order_in(2**62, 2**63 - 2, 2**63 - 2).take(2) == GOLDEN[2**62]


def test_seeds_and_epochs_have_orders_of_their_own() -> None:
    orders = {
        tuple(order_in(50, seed, epoch).take(50)) for seed in range(20) for epoch in range(20)
    }
    assert len(orders) == 400


def far_from_uniform(counts: Counter[Any], cells: int, expected: float) -> float:
    """How many standard deviations a chi-square is above what chance gives."""
    found = sum((count - expected) ** 2 / expected for count in counts.values())
    found += (cells - len(counts)) * expected  # those that were never seen
    return (found - (cells - 1)) / math.sqrt(2 * (cells - 1))


@pytest.mark.parametrize("n", [2, 3, 4, 5, 6])
def test_each_permutation_of_few_samples_is_as_frequent(n: int) -> None:
    many = 20 * math.factorial(n)
    counts = Counter(tuple(order_in(n, seed).take(n)) for seed in range(many))
    assert far_from_uniform(counts, math.factorial(n), 20) < 4


@pytest.mark.parametrize("n", [13, 100, 257])
def test_places_and_neighbours_of_samples_are_uniform(n: int) -> None:
    epochs = 20 * n // (1 + n // 50)
    places, neighbours = Counter[Any](), Counter[Any]()
    for epoch in range(epochs):
        found = order_in(n, 5, epoch).take(n)
        places.update(enumerate(found))
        neighbours.update(itertools.pairwise(found))
    assert far_from_uniform(places, n * n, epochs / n) < 4
    assert far_from_uniform(neighbours, n * (n - 1), epochs / n) < 4


# -- the place ----------------------------------------------------------------------------------


@given(st.integers(1, 200), st.lists(st.tuples(st.integers(1, 40), st.integers(1, 5))), SEEDS)
def test_any_sizes_and_ranks_in_turn_take_each_sample_once(
    n: int, steps: list[tuple[int, int]], seed: int
) -> None:
    """After each step the place goes through a save, and another number of ranks goes on."""
    saved, seen = Order(n, seed).state_dict(), list[int]()
    for size, ranks in [*steps, (n, 3)]:
        orders = [Order(n, seed) for _ in range(ranks)]
        for order in orders:
            order.load_state_dict(saved)
        before = orders[0].left
        for rank, order in enumerate(orders):
            seen += order.take(size, rank=rank, ranks=ranks)
        saved = orders[0].state_dict()
        assert [order.state_dict() for order in orders] == [saved] * ranks
        assert saved["position"] == n - max(before - size, 0)
    assert sorted(seen) == list(range(n))


@given(st.integers(1, 100), st.integers(0, 100), st.integers(1, 30), st.integers(1, 4))
def test_what_is_fetched_ahead_is_what_is_taken_and_does_not_count(
    n: int, begun: int, size: int, ranks: int
) -> None:
    order = order_in(n, 1)
    if begun:
        order.advance(begun)
    place = order.state_dict()
    shares = [list(order.ahead(size, rank=rank, ranks=ranks)) for rank in range(ranks)]
    assert order.state_dict() == place
    for share in zip(*shares, strict=True):
        other = Order(n, 1)
        other.load_state_dict(order.state_dict())
        assert order.take(size, rank=0, ranks=ranks) == share[0]
        for rank in range(1, ranks):
            other.load_state_dict(place)
            assert other.take(size, rank=rank, ranks=ranks) == share[rank]
        place = order.state_dict()
    assert order.left == 0
    assert order.take(size) == []


def test_each_iteration_ahead_begins_at_the_place_of_that_moment() -> None:
    order = Order(10, 1)
    ahead = order.ahead(4)
    fetched = iter(ahead)
    first = next(fetched)
    order.advance(4)
    assert next(iter(ahead)) == next(fetched) != first
    order.begin_epoch(1)
    assert next(fetched) == order_in(10, 1, 0).take(10)[8:]
    assert [sample for batch in ahead for sample in batch] == order_in(10, 1, 1).take(10)


def test_an_order_says_where_it_is() -> None:
    order = order_in(10, 7, 3)
    order.take(4)
    assert (order.epoch, order.position, order.left) == (3, 4, 6)
    assert repr(order) == "<Order n=10 seed=7 epoch=3, position=4>"
    assert order.state_dict() == {"algorithm": 1, "n": 10, "seed": 7, "epoch": 3, "position": 4}


async def test_an_order_in_a_state_goes_on_and_forgets_a_failed_attempt() -> None:
    store, seen = MemoryStore(), list[int]()
    for batches in (2, 4, 5):
        state: dict[str, Any] = {"order": Order(10, 1), "seen": []}
        async with begin(store) as run, run.open_stream("s", state=state) as stream:
            async for batch in stream.batches(range(batches)):
                stream.state["seen"] += stream.state["order"].take(2)
                batch.complete()
            seen = stream.state["seen"]
        store = store.after_crash()
    assert sorted(seen) == list(range(10))


# -- what is refused ----------------------------------------------------------------------------


async def save_order(store: MemoryStore, order: Order) -> None:
    async with begin(store) as run, run.open_stream("s", state={"order": order}) as stream:
        await stream.save()


@pytest.mark.parametrize(
    ("changed", "match"),
    [
        ({"n": 11}, r"an order with n=10 was saved, this one has n=11"),
        ({"seed": 2}, r"an order with seed=1 was saved, this one has seed=2"),
    ],
)
async def test_other_data_or_another_seed_is_refused(changed: Any, match: str) -> None:
    store = MemoryStore()
    await save_order(store, Order(10, 1))
    with pytest.raises(StateChangedError, match=match) as caught:
        await save_order(store, Order(**{"n": 10, "seed": 1} | changed))
    assert caught.value.path == "state.order"


@pytest.mark.parametrize(
    "changed",
    [{"algorithm": 2}, {"position": 11}, {"position": -1}, {"epoch": "0"}, {"epoch": None}],
)
def test_a_damaged_place_is_refused_and_changes_nothing(changed: Any) -> None:
    order = order_in(10, 1, 2)
    order.take(3)
    before = order.state_dict()
    with pytest.raises((ValueError, TypeError)):
        order.load_state_dict(before | changed)
    assert order.state_dict() == before


def test_arguments_are_checked() -> None:
    order = Order(10, 1)
    for call, match in (
        (lambda: Order(0, 1), "n must be an int from 1"),
        (lambda: Order(2**62 + 1, 1), "n must be"),
        (lambda: Order(10, -1), "seed must be"),
        (lambda: order.take(0), "size must be an int from 1 on"),
        (lambda: order.take(1, rank=1), "rank must be an int from 0 to 0"),
        (lambda: order.ahead(1, ranks=0), "ranks must be an int from 1 on"),
        (lambda: order.advance(-1), "size must be"),
        (lambda: order.sample_at(10), "position must be an int from 0 to 9"),
        (lambda: order.begin_epoch(-1), "epoch must be"),
    ):
        with pytest.raises(ValueError, match=match):
            call()
    assert order.state_dict() == Order(10, 1).state_dict()
