"""What is known of the items of the last generation: found by key, in little memory."""

from __future__ import annotations

import random
import tracemalloc
from collections.abc import Generator
from contextlib import closing

import pytest

from trio_ckpt import CannotRunAgainError, Output
from trio_ckpt._commit.previous import KeyKind, PreviousItems, index_digest
from trio_ckpt._journal.record import Record
from trio_ckpt._util.plain import item_digest


@pytest.fixture
def items() -> Generator[PreviousItems]:
    with closing(PreviousItems(KeyKind.ITEM, 10_000, 3, "stream 's'")) as items:
        yield items


def record(index: int) -> Record:
    outputs = (Output(f"{index}.txt", index, -1, "0" * 64),)
    metadata = {"etag": str(index)}
    return Record(at=1.0, index=index, records=2, outputs=outputs, metadata=metadata, adds=b"x")


def test_each_item_is_found_by_its_key(items: PreviousItems) -> None:
    indexes = random.Random(1).sample(range(10_000), 1_000)
    for index in indexes:
        items.add(item_digest(f"key {index}"), index, items.keep(record(index)))
    for index in indexes:
        found = items.find(item_digest(f"key {index}"))
        assert found is not None
        assert found[0] == index
        known = items.read(found[1])
        assert known.outputs == record(index).outputs
        assert known.metadata == {"etag": str(index)}
        assert known.adds == b""  # only what a batch asks for is kept
    assert items.find(item_digest("no key")) is None


def test_two_items_with_one_key_are_refused(items: PreviousItems) -> None:
    items.add(item_digest("a"), 7, 0)
    with pytest.raises(CannotRunAgainError, match="has one key for batches 5 and 7 of generation"):
        items.add(item_digest("a"), 5, 0)


def test_an_index_is_a_key_of_its_own() -> None:
    assert len({index_digest(index) for index in range(1_000)}) == 1_000
    assert index_digest(2**40) != index_digest(0)


def test_an_item_takes_at_most_40_bytes_of_memory_for_its_key() -> None:
    count = 50_000
    tracemalloc.start()
    with closing(PreviousItems(KeyKind.INDEX, count, 0, "stream 's'")) as items:
        for index in range(count):
            items.add(item_digest(str(index)), index, index)
        held, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert held / count < 40  # 24, and buckets that have room to grow


@pytest.mark.parametrize(
    ("kind", "has_key", "is_frontier", "is_refused"),
    [
        (KeyKind.NOTHING, False, False, False),
        (KeyKind.ITEM, True, False, False),
        (KeyKind.ITEM, False, False, True),
        (KeyKind.ITEM, False, True, True),
        (KeyKind.FRONTIER, False, True, False),
        (KeyKind.FRONTIER, True, False, True),
        (KeyKind.INDEX, False, False, False),
        (KeyKind.INDEX, True, False, True),
        (KeyKind.CURSOR, False, False, False),
        (KeyKind.CURSOR, True, False, True),
    ],
)
def test_a_source_has_to_name_its_items_as_before(
    kind: KeyKind, has_key: bool, is_frontier: bool, is_refused: bool
) -> None:
    with closing(PreviousItems(kind, 1, 3, "stream 's'")) as items:
        if not is_refused:
            items.check_kind(has_key=has_key, is_frontier=is_frontier)
            return
        with pytest.raises(CannotRunAgainError, match="cannot be compared with generation 3"):
            items.check_kind(has_key=has_key, is_frontier=is_frontier)
