"""No damage of a store or of outputs is silent, and a repair loses nothing without a word.

``python -m tests.damage`` plants thousands; here are a few hundred.
"""

from __future__ import annotations

import random
from collections.abc import AsyncGenerator, Iterator
from typing import Any

import pytest

from tests.damage import sweep as sweeping
from tests.damage.plant import PLANTS
from tests.damage.samples import lay_out
from tests.damage.sweep import Planted, Sweep, look, plant
from trio_ckpt._maintenance import verify_store
from trio_ckpt.abc import Finding

COUNT = 280
REPAIRS = 20
FIRST_SEED = 70_000


def test_a_store_that_is_whole_has_no_damage(sweep: Sweep) -> None:
    for sample in sweep.samples:
        lay_out(sample.root, sample.files)
        found = look(sample)
        assert [finding for finding in found if finding.is_damage] == [], sample.name


def test_looking_changes_nothing_that_readers_see(sweep: Sweep) -> None:
    for sample in sweep.samples:
        lay_out(sample.root, sample.files)
        look(sample)
        first = look(sample)
        assert look(sample) == first


def test_no_planted_damage_is_silent(sweep: Sweep) -> None:
    for planted in sweep.damages(FIRST_SEED, COUNT):
        assert sweep.judge(planted) != "silent", str(planted)


def test_a_repair_loses_nothing_without_a_word_and_the_run_goes_on(sweep: Sweep) -> None:
    for planted in sweep.damages(2 * FIRST_SEED, REPAIRS):
        sweep.judge(planted, repairs=True)
    assert sweep.tally.broken == []
    assert sweep.tally.repaired["sound"] > 0


@pytest.mark.parametrize("kind", PLANTS)
def test_every_kind_of_damage_changes_something_somewhere(sweep: Sweep, kind: str) -> None:
    """Or the sweep would not show much."""
    rng = random.Random(1)
    tried = ((sample, name) for sample in sweep.samples for name in sample.files)
    assert any(PLANTS[kind](sample, name, rng) is not None for sample, name in tried)


# -- the sweep can fail ----------------------------------------------------------------------------


def damages_of(sweep: Sweep, kind: str) -> Iterator[Planted]:
    """Damages of one kind, by the seeds that plant them."""
    for seed in range(40_000):
        planted = plant(sweep.samples, seed)
        if planted is not None and planted.kind == kind:
            yield planted


def test_without_the_notes_lost_records_are_silent(
    sweep: Sweep, monkeypatch: pytest.MonkeyPatch
) -> None:
    kind = "take the last record of a stream away"
    planted = next(damages_of(sweep, kind))
    assert sweep.judge(planted) == "found"
    for module in ("_sqlite.check", "_json.check"):
        monkeypatch.setattr(f"trio_ckpt.stores.{module}.lost_runs", lambda *_: [])
    assert sweep.judge(planted) == "silent"
    sweep.tally.silent.clear()


def test_without_the_seal_of_folds_an_altered_fold_is_silent(
    sweep: Sweep, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who reads it then is refused, and `verify` would have said nothing."""
    planted = next(
        planted for planted in damages_of(sweep, "alter a fold") if sweep.judge(planted) == "found"
    )

    def passes(*_: Any) -> None:
        return None

    async def stored(*args: Any) -> AsyncGenerator[Finding]:
        async with sweeping.aclosing(original(*args)) as findings:
            async for finding in findings:
                if "fold" not in finding.what and "not what was saved" not in finding.what:
                    yield finding

    original = verify_store.check_all
    monkeypatch.setattr(verify_store._Looked, "_compare", passes)
    monkeypatch.setattr(sweeping, "check_all", stored)
    assert sweep.judge(planted) == "silent"
    sweep.tally.silent.clear()
