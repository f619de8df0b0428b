"""Whatever fails and whoever is paused: what was confirmed is there, once and in order."""

from __future__ import annotations

import logging
import random
from collections.abc import Callable
from contextlib import suppress

import attrs
import pytest

from tests.stores.objects.buckets import (
    LEASE_S,
    ClockedBucket,
    FaultyBucket,
    HandClock,
    Process,
    check_confirmed,
    nothing,
)
from trio_ckpt import RunLockedError
from trio_ckpt._util.errors import StoreError

SCHEDULES = 1_000
STEPS = 30


def run_schedule(number: int) -> tuple[int, int]:
    """Several processes save, merge and take over while requests fail; counts what they saw."""
    chance = random.Random(number)
    clock = HandClock()
    bucket = FaultyBucket(clock, chance)
    processes = [Process.on(bucket) for _ in range(3)]
    fenced = 0
    for _ in range(STEPS):
        process = chance.choice(processes)
        clock.now += chance.choice([0.1, 1.0, LEASE_S + 1])
        if process.owned is None:
            with suppress(RunLockedError):
                process.take()
        elif chance.random() < 0.2:
            with suppress(StoreError):
                process.merge()
        elif not process.save(chance.randint(1, 3)):
            fenced += 1
    bucket.heal()
    check_confirmed(bucket, *processes)
    return sum(len(process.confirmed) for process in processes), fenced


def test_no_schedule_of_faults_loses_or_doubles_a_record(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.CRITICAL, "trio_ckpt")  # each fault is a line
    found = [run_schedule(number) for number in range(SCHEDULES)]
    confirmed, fenced = sum(one for one, _ in found), sum(one for _, one in found)
    assert confirmed > 10 * SCHEDULES, "little was saved"
    assert fenced > SCHEDULES, "few owners were fenced"


@attrs.define
class Interruption:
    """What happens while a process is paused before one of its requests."""

    bucket: ClockedBucket
    at: int
    act: Callable[[], None]
    is_over: bool = False

    def __attrs_post_init__(self) -> None:
        self.bucket.before = self._count

    def _count(self, _verb: str, _key: str) -> None:
        self.at -= 1
        if self.at < 0 and not self.is_over:
            self.is_over = True
            self.act()


def pause_owner(at: int, *, heir_merges: bool) -> bool:
    """An owner saves and merges; at a request of it another one takes the run over."""
    clock = HandClock()
    bucket = ClockedBucket(clock)
    former, heir = Process.on(bucket), Process.on(bucket)
    former.take()
    former.save()

    def take_over() -> None:
        clock.now += LEASE_S + 1
        heir.take()
        for _ in range(5):
            assert heir.save()
        if heir_merges:
            heir.merge()
            assert heir.save()

    interruption = Interruption(bucket, at, take_over)
    saves_after = 0
    for number in range(8):
        was_over = interruption.is_over
        if former.owned is not None and number in (3, 6):
            with suppress(StoreError):
                former.merge()
        if former.owned is not None and former.save():
            saves_after += was_over
    bucket.before = nothing
    assert saves_after == 0, "a former owner saved"
    if interruption.is_over:
        assert heir.save()
        heir.merge()
        assert heir.save()
    check_confirmed(bucket, former, heir)
    return interruption.is_over


@pytest.mark.parametrize("heir_merges", [False, True])
def test_an_owner_paused_at_any_request_confirms_nothing_more(heir_merges: bool) -> None:
    paused = 0
    while pause_owner(paused, heir_merges=heir_merges):
        paused += 1
    assert paused > 12


def pause_taker(at: int, *, saves: int, owner_merges: bool) -> bool:
    """A process takes a run whose lease has ended; at a request of it the owner goes on."""
    clock = HandClock()
    bucket = ClockedBucket(clock)
    late, taker = Process.on(bucket), Process.on(bucket)
    late.take()
    late.save()
    clock.now += LEASE_S + 1

    def go_on() -> None:
        for _ in range(saves):
            if late.owned is not None:
                late.save()
        if owner_merges and late.owned is not None:
            late.merge()

    interruption = Interruption(bucket, at, go_on)
    with suppress(RunLockedError):
        taker.take()
    bucket.before = nothing
    for process in (late, taker, late, taker):
        if process.owned is not None:
            process.save()
    owners = [process for process in (late, taker) if process.owned is not None]
    assert len(owners) == 1, "two processes own the run"
    check_confirmed(bucket, late, taker)
    return interruption.is_over


@pytest.mark.parametrize("saves", [0, 5])
@pytest.mark.parametrize("owner_merges", [False, True])
def test_a_process_paused_while_it_takes_a_run_loses_nothing(
    saves: int, owner_merges: bool
) -> None:
    """Its position may be free, taken, merged and free again: then its entry is void."""
    paused = 0
    while pause_taker(paused, saves=saves, owner_merges=owner_merges):
        paused += 1
    assert paused >= 5


def pause_taker_for_two(at: int) -> bool:
    """At a request of a process that takes a run, its own lease ends, and another one takes it."""
    clock = HandClock()
    bucket = ClockedBucket(clock)
    former, taker, heir = Process.on(bucket), Process.on(bucket), Process.on(bucket)
    former.take()
    former.save()
    clock.now += LEASE_S + 1

    def take_over() -> None:
        clock.now += LEASE_S + 1
        with suppress(RunLockedError):
            heir.take()
        for _ in range(3):
            if heir.owned is not None:
                heir.save()
        if heir.owned is not None:
            heir.merge()

    interruption = Interruption(bucket, at, take_over)
    with suppress(RunLockedError):
        taker.take()
    bucket.before = nothing
    assert not former.save(), "a former owner saved"
    for process in (taker, heir):
        if process.owned is not None:
            process.save()
    check_confirmed(bucket, former, taker, heir)
    return interruption.is_over


def test_a_taker_paused_at_any_request_frees_no_position() -> None:
    """Its entry keeps a former owner out, even where it is void."""
    paused = 0
    while pause_taker_for_two(paused):
        paused += 1
    assert paused >= 5


def test_a_hundred_owners_in_a_row_are_each_paused_and_fenced() -> None:
    """Each owner is paused before its next save, half of them while their log is merged."""
    clock = HandClock()
    bucket = ClockedBucket(clock)
    owners = list[Process]()
    for number in range(100):
        process = Process.on(bucket)
        assert process.take() == number + 1
        for _ in range(3):
            assert process.save(2)
        if number % 2:
            process.merge()
        owners.append(process)
        clock.now += LEASE_S + 1
    last = owners.pop()
    confirmed_late = sum(process.save() for process in owners)
    assert confirmed_late == 0
    assert last.save()
    last.merge()
    again = [Process(one.requests, one.clock, one.owned) for one in owners]
    assert not any(one.owned is not None and one.save() for one in again)
    check_confirmed(bucket, *owners, last)
