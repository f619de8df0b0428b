"""Kills of foreman, worker and client aimed at each transition of the protocol's tables.

python -m tests.remote.aims SCHEDULES [SEED]

A scenario is a job, the workers that do it, and what happens beside.  It is rehearsed once, and
each transition that either side of a connection passes is noted.  Then it is played again and
again; each time a process is killed, or a connection is cut, at one or two of these transitions:
when the message is about to be sent, or has just come.  All is in one process, in memory, on a
mock clock and in an order of tasks that a seed names.  So the same seed draws the same schedules,
and a schedule plays the same way each time.
"""

from __future__ import annotations

import argparse
import functools
import logging
import random
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

import trio

from tests.remote import functions
from tests.remote.scenarios import (
    AWAY_S,
    SCENARIOS,
    VICTIMS,
    Aim,
    Play,
    Scenario,
    Transition,
    Victim,
    Watch,
)
from tests.remote.site import open_site
from trio_ckpt.remote._wire.codec import MESSAGES
from trio_ckpt.remote._wire.message import MessageKind, TaskMessage
from trio_ckpt.remote._wire.tables import PHASES, TASKS, TaskPhase
from trio_ckpt.stores import MemoryStore
from trio_ckpt.testing import make_clock, seeded_scheduler
from trio_ckpt.testing._session import ThreadTurns


def play(scenario: Scenario, *aims: Aim, order: int = 0) -> Counter[Transition]:
    """Play a scenario once.

    Args:
        scenario: The scenario.
        aims: Where it is struck.
        order: The seed of the order in which tasks run, and of the waits between connections.

    Returns:
        How often each transition was passed.

    Raises:
        AssertionError, trio.TooSlowError: it does not end, or not right.
    """
    functions.reset()
    watch = Watch(aims)

    async def main() -> None:
        async with open_site(MemoryStore()) as site, trio.open_nursery() as nursery:
            site.latency_s = scenario.latency_s
            await Play(scenario, site, watch, nursery).run()
            nursery.cancel_scope.cancel()

    with watch.watching(), _no_surprises(), seeded_scheduler(order):
        trio.run(main, clock=make_clock(), instruments=[ThreadTurns()])
    return watch.counts


@contextmanager
def _no_surprises() -> Iterator[None]:
    """See that what is logged is nothing that our own code did not expect."""
    surprises: list[str] = []

    class Handler(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if record.exc_info:
                surprises.append(self.format(record))

    logger, handler = logging.getLogger("trio_ckpt"), Handler()
    logger.addHandler(handler)
    try:
        yield
    finally:
        logger.removeHandler(handler)
    assert not surprises, surprises


@functools.cache
def rehearse() -> tuple[tuple[Scenario, Counter[Transition]], ...]:
    """All scenarios with what they pass, the shortest first."""
    found = [(scenario, play(scenario)) for scenario in SCENARIOS]
    found.sort(key=lambda one: one[1].total())
    return tuple(found)


def share(victim: Victim) -> Iterator[tuple[Scenario, Aim]]:
    """One schedule for each transition: in the shortest scenario that has it, at the first or at
    the last time."""
    rng = random.Random(victim)
    seen: set[Transition] = set()
    for scenario, counts in rehearse():
        for transition in [one for one in counts if one not in seen]:
            seen.add(transition)
            nth = rng.choice([1, counts[transition]])
            yield scenario, Aim(transition, nth, victim, rng.choice(AWAY_S))


def any_schedule(rng: random.Random) -> tuple[Scenario, list[Aim]]:
    """A scenario, and one or two strikes at any of its transitions."""
    scenario, counts = rng.choice(rehearse())
    aims: list[Aim] = []
    for _ in range(rng.choice([1, 2])):
        transition = rng.choice(list(counts))
        nth = rng.choice([1, counts[transition], rng.randint(1, counts[transition])])
        aims.append(Aim(transition, nth, rng.choice(VICTIMS), rng.choice(AWAY_S)))
    return scenario, aims


def cells() -> set[Transition]:
    """Every cell of the tables, on both sides."""
    of_connections = {
        (role, kind, phase)
        for role, phases in PHASES.items()
        for phase, kinds in phases.items()
        for kind in kinds
        if not issubclass(MESSAGES[kind], TaskMessage)
    }
    of_items = {(role, kind, was) for was, kinds in TASKS.items() for role, kind in kinds}
    return {
        Transition(role, kind, was, is_sent)
        for role, kind, was in of_connections | of_items
        for is_sent in (True, False)
    }


def is_passed_only_by_chance(cell: Transition) -> bool:
    """What is legal since messages cross, and what our sides do not say by themselves."""
    if cell.was is TaskPhase.ENDED:
        return cell.kind is not MessageKind.TASK_ACK
    if cell.was is TaskPhase.STOPPING:
        return cell.kind not in (MessageKind.RELEASE_TASK, MessageKind.TASK_RESULT)
    return cell.kind is MessageKind.CREDIT and cell.is_sent  # it is queued where it is granted


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.remote.aims", description=__doc__)
    parser.add_argument("schedules", type=int)
    parser.add_argument("seed", type=int, nargs="?", default=1)
    options = parser.parse_args()
    count, seed = options.schedules, options.seed
    logging.disable(logging.WARNING)
    rng, started = random.Random(seed), time.monotonic()
    struck: set[Transition] = set()
    victims: Counter[str] = Counter()
    bad = 0
    for _ in range(count):
        scenario, aims = any_schedule(rng)
        struck.update(aim.transition for aim in aims)
        victims.update(aim.victim for aim in aims)
        order = rng.randrange(2**32)
        try:
            play(scenario, *aims, order=order)
        except Exception as error:
            bad += 1
            what = f"{scenario.name}: {' and '.join(map(str, aims))}, order {order}"
            print(f"{what}: {error!r}", flush=True)
    seconds = time.monotonic() - started
    print(
        f"{count} schedules, {len(struck)} of {len(cells())} transitions struck, {dict(victims)}, "
        f"{seconds:.0f} s: {bad} bad"
    )


if __name__ == "__main__":
    main()
