"""Who owns an output name: what a dict would say, in a sixth of its memory."""

from __future__ import annotations

import random
import tracemalloc

import pytest

from trio_ckpt._commit import path_owners
from trio_ckpt._commit.path_owners import SINK, PathOwners

MAX_BYTES_EACH = 40


@pytest.mark.parametrize("entries", [2, 64])
def test_owners_are_those_that_a_dict_would_have(
    monkeypatch: pytest.MonkeyPatch, entries: int
) -> None:
    monkeypatch.setattr(path_owners, "_ENTRIES", entries)
    chance, owners = random.Random(4), PathOwners()
    plain: dict[str, tuple[str, int]] = {}
    for step in range(6_000):
        name = f"name {chance.randrange(300)}"
        owner = (f"stream {chance.randrange(3)}", chance.choice([SINK, 0, 1, 2**40]))
        match chance.randrange(4):
            case 0:
                assert owners.hold(name, owner) == plain.setdefault(name, owner), step
            case 1:
                assert owners.confirm(name, owner) == plain.setdefault(name, owner), step
            case 2:
                owner = chance.choice([owner, plain.get(name, owner)])
                owners.drop(name, owner)
                if plain.get(name) == owner:
                    del plain[name]
            case _:
                assert owners.get(name) == plain.get(name), step
    assert {name: owners.get(name) for name in plain} == plain


def test_a_digest_is_found_only_at_the_begin_of_an_entry(monkeypatch: pytest.MonkeyPatch) -> None:
    """The number of a batch, and the end of one entry with the begin of the next, are none."""
    monkeypatch.setattr(path_owners, "_ENTRIES", 64)
    owners = PathOwners()
    for index in range(50):
        owners.confirm(f"{index}", ("s", index))
    (bucket,) = owners._buckets
    for at in range(len(bucket) - 12):
        found = path_owners._position(bucket, bytes(bucket[at : at + 12]))
        assert found == (at if at % 24 == 0 else -1)


@pytest.mark.parametrize("count", [20_000, 200_000])
def test_a_confirmed_name_takes_little_memory(count: int) -> None:
    owners, names = PathOwners(), [f"folder/{index}.json" for index in range(count)]
    tracemalloc.start()
    try:
        for index, name in enumerate(names):
            owner = ("stream", index)
            owners.hold(name, owner)
            owners.confirm(name, owner)
        taken, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert taken / count < MAX_BYTES_EACH, taken / count
    assert owners.get(names[-1]) == ("stream", count - 1)
