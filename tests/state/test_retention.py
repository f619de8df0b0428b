"""Which saved states keep their arrays, and that the account of them stays small."""

from __future__ import annotations

import random
from collections.abc import Iterable

import pytest

from trio_ckpt import Retention
from trio_ckpt.state._retention import Version, Versions


def versions(*lineages: bytes) -> list[Version]:
    return [Version(n + 1, float(n), lineage, 1) for n, lineage in enumerate(lineages)]


def dropped(retention: Retention, saved: Iterable[Version]) -> set[int]:
    found = Versions(retention)
    found.add_all(saved)
    return taken(found)


def taken(found: Versions) -> set[int]:
    """The records whose arrays go now."""
    dropped = found.take_dropped((), is_complete=False)
    return {sequence for sequences in dropped.values() for sequence in sequences}


@pytest.mark.parametrize(
    ("retention", "expected"),
    [
        (Retention(last=1), {1, 2, 3}),
        (Retention(last=3), {1, 2}),
        (Retention(last=1, every=2), {3}),
        (Retention(last=1, max_age_s=2.0), {1, 2}),
        (Retention(last=5, max_bytes=5), set()),
        (Retention(last=5, max_bytes=3), {1, 2}),
        (Retention(last=5, max_bytes=1), {1, 2, 3}),
        (Retention(last=1, every=2, max_bytes=4), {3}),
    ],
)
def test_whole_chains_are_kept(retention: Retention, expected: set[int]) -> None:
    assert dropped(retention, versions(b"a", b"a", b"b", b"c", b"c")) == expected
    assert dropped(retention, []) == set()


def test_of_a_complete_stream_the_newest_stays_and_what_is_needed() -> None:
    keeps_much = Retention(last=9, every=1, max_age_s=100.0)
    found = Versions(keeps_much)
    found.add_all(versions(b"a", b"b", b"c", b"d"))
    assert found.take_dropped((), is_complete=False) == {}
    assert found.take_dropped({b"b"}, is_complete=True) == {b"a": [1], b"c": [3]}
    assert found.take_dropped({b"b"}, is_complete=True) == {}


def test_what_is_needed_counts_for_the_bytes_and_stays() -> None:
    found = Versions(Retention(last=9, max_bytes=3))
    found.add_all(versions(b"a", b"b", b"c", b"d"))
    assert found.is_too_large
    assert found.take_dropped({b"a"}, is_complete=False) == {b"b": [2]}
    assert not found.is_too_large


def by_the_book(retention: Retention, saved: list[Version]) -> set[int]:
    """What `Retention` says, from all states."""
    kept = {version.lineage for version in saved[-retention.last :]}
    for version in saved:
        is_kth = retention.every and version.sequence % retention.every == 0
        if is_kth or (retention.max_age_s and saved[-1].at - version.at <= retention.max_age_s):
            kept.add(version.lineage)
    sizes: dict[bytes, int] = {}
    for version in saved:
        sizes[version.lineage] = sizes.get(version.lineage, 0) + version.blob_bytes
    room = (retention.max_bytes or 2**63) - sizes[saved[-1].lineage]
    for lineage in sorted(kept - {saved[-1].lineage}, key=int, reverse=True):
        if sizes[lineage]:
            room -= sizes[lineage]
            if room < 0:
                kept.discard(lineage)
    return {v.sequence for v in saved if v.blob_bytes and v.lineage not in kept}


def test_the_account_by_chains_says_what_one_of_all_states_would() -> None:
    rng = random.Random(6)
    for _ in range(500):
        retention = Retention(
            last=rng.randrange(1, 5),
            every=rng.choice([0, 0, 3, 7]),
            max_age_s=rng.choice([0.0, 0.0, 5.0]),
            max_bytes=rng.choice([0, 0, 20, 50]),
        )
        saved: list[Version] = []
        lineage, found = 0, Versions(retention)
        gone: set[int] = set()
        for sequence in range(1, rng.randrange(2, 40)):
            lineage += rng.random() < 0.4
            blob_bytes = rng.choice([0, 10])
            saved.append(Version(sequence, float(sequence), b"%d" % lineage, blob_bytes))
            found.add(saved[-1])
            if not retention.max_bytes and rng.random() < 0.2:  # what went for room stays gone
                gone |= taken(found)
        gone |= taken(found)
        again = Versions(retention)
        for version in reversed(saved):
            again.add_older(version)
        assert taken(again) == by_the_book(retention, saved)
        assert gone == by_the_book(retention, saved)


def test_the_account_does_not_grow_with_the_number_of_states() -> None:
    found = Versions(Retention(last=2))
    for sequence in range(1, 10_000):  # small states: each a chain of its own, nothing to drop
        found.add(Version(sequence, float(sequence), b"%d" % sequence, 0))
    assert len(found) == 0
    for sequence in range(10_000, 20_000):  # chains of 50 large ones, pruned when one begins
        lineage = b"%d" % (sequence // 50)
        found.add(Version(sequence, float(sequence), lineage, 2**20))
        if sequence % 50 == 0:
            found.take_dropped((), is_complete=False)
        assert len(found) <= 3
