"""A few owners that fight or sleep; many by hand: ``python -m tests.crash.owners --full``."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

import pytest

from tests.crash.owners import IN_SUITE, KINDS, MAY_REPLACE, Twins, Zombie, schedule
from tests.crash.steady import POINTS, Zygote

SEED = 1


@pytest.fixture(scope="module")
def zygote() -> Iterator[Zygote]:
    with Zygote() as made:
        yield made


@pytest.mark.parametrize("number", range(IN_SUITE))
@pytest.mark.parametrize("kind", KINDS)
def test_of_twins_one_has_the_run_and_each_batch_is_confirmed_once(
    kind: str, number: int, zygote: Zygote
) -> None:
    figures: Counter[str] = Counter()
    with schedule(f"{kind} {SEED} {number}", kind) as (place, chance):
        Twins(place, zygote, chance, figures).run()
    assert figures["starts"] >= 1


@pytest.mark.parametrize("point", [*POINTS, ""])
@pytest.mark.parametrize("kind", KINDS)
def test_who_wakes_after_a_takeover_confirms_nothing_and_damages_nothing(
    kind: str, point: str, zygote: Zygote
) -> None:
    """And before it is taken over: who is stopped owns the run as one who works does."""
    figures: Counter[str] = Counter()
    with schedule(f"{kind} {SEED} {point}", kind) as (place, chance):
        Zombie(place, zygote, chance, figures, point).run()
    assert figures["refused"] == figures["woken"] == 1
    replaced = figures["replaced an output, which was noticed and done again"]
    assert replaced <= (point in MAY_REPLACE)
