"""Any batches, redos, rewinds and kills agree with a model."""

# ruff: noqa: SIM117  (what a whole block does is the claim)

from __future__ import annotations

import random
from fractions import Fraction
from pathlib import Path
from typing import Any

import attrs
import pytest

from tests.commit.redone import (
    archived,
    exact,
    follow,
)
from tests.opening import begin
from trio_ckpt import (
    CannotRedoError,
    Stream,
)
from trio_ckpt.stores import MemoryStore


@attrs.define
class Entry:
    """One record that stands, in the model."""

    index: int | None  # None: a state saved between batches
    trail: str  # the state, and the cursor, after it
    line: str
    total: float
    is_skip: bool = False


@attrs.define
class Model:
    """What an ordered stream must be: a list of what stands, in the order it was saved."""

    log: list[Entry] = attrs.field(factory=list[Entry])
    spent: Fraction = Fraction()
    nonce: int = 0

    @property
    def trail(self) -> str:
        return self.log[-1].trail if self.log else ""

    def done(self, *, skipped: bool = False) -> list[int]:
        return sorted(e.index for e in self.log if e.index is not None and e.is_skip is skipped)

    def rewind(self, to: int) -> list[int]:
        cut = next((n for n, e in enumerate(self.log) if (e.index or 0) > to), None)
        if cut is None:
            return []
        gone, self.log = self.log[cut:], self.log[:cut]
        return sorted(e.index for e in gone if e.index is not None)

    @property
    def is_built_over(self) -> bool:
        """Whether a batch was confirmed after one that was skipped."""
        skipped, done = self.done(skipped=True), self.done()
        return bool(skipped and done) and min(skipped) < max(done)

    def retry(self) -> None:
        self.log = [e for e in self.log if not e.is_skip]


async def take_a_step(
    store: MemoryStore, folder: Path, model: Model, rng: random.Random, count: int
) -> MemoryStore:
    """Change run and model alike: a few batches, then perhaps a rewind, then an end."""
    retries = rng.random() < 0.2
    if retries and model.is_built_over:
        async with begin(store, output_dir=folder, retry_failed=True) as run:
            with pytest.raises(CannotRedoError, match="later ones build"):
                await follow(run, 0, state={"trail": ""})
        retries = False
    if retries:
        model.retry()
    async with begin(store, output_dir=folder, retry_failed=retries) as run:
        async with run.open_stream("s", state={"trail": ""}) as stream:
            check_model(stream, model, folder)
            until = model.nonce + rng.randrange(1, 4)
            async for batch in stream.batches(range(count)):
                model.nonce += 1
                cost, total = rng.random(), rng.random()
                batch.spend(cost=cost)
                model.spent += Fraction(cost)
                if rng.random() < 0.2:
                    batch.skip("not today")
                    model.log.append(Entry(batch.index, model.trail, "", 0.0, is_skip=True))
                    if model.nonce == until:
                        break
                    continue
                assert stream.state["trail"] == model.trail
                assert stream.cursor == (model.trail or None)
                trail = f"{model.trail}{batch.index}:{model.nonce} "
                stream.state["trail"] = trail
                batch.append_json("lines.jsonl", model.nonce)
                await batch.write_text(f"{batch.index}.txt", f"{model.nonce}")
                batch.complete(records=1, totals={"words": total}, cursor=trail)
                model.log.append(Entry(batch.index, trail, f"{model.nonce}\n", total))
                if rng.random() < 0.2:
                    trail = f"{trail}save "
                    await batch.confirm()
                    stream.state["trail"] = trail
                    await stream.save(cursor=trail)
                    model.log.append(Entry(None, trail, "", 0.0))
                if model.nonce == until:
                    break
        if rng.random() < 0.5:
            to = rng.randrange(-1, count)
            assert list(await run.rewind(("s",), to=to, reason="x")) == model.rewind(to)
        return store.after_crash() if rng.random() < 0.5 else store


def check_model(stream: Stream[Any], model: Model, folder: Path) -> None:
    progress = stream.progress
    assert list(progress.confirmed) == model.done()
    assert list(progress.skipped) == model.done(skipped=True)
    assert progress.records == len(model.done())
    total = progress.totals.get("words")
    assert (Fraction(total.numerator, 2**total.shift) if total else 0) == exact(
        *(entry.total for entry in model.log)
    )
    spent = progress.spent.get("cost")
    assert (Fraction(spent.numerator, 2**spent.shift) if spent else 0) == model.spent
    assert stream.state["trail"] == model.trail
    assert stream.cursor == (model.trail or None)
    lines = "".join(entry.line for entry in model.log)
    if lines:
        assert (folder / "lines.jsonl").read_text() == lines
    assert progress.sinks.get("lines.jsonl", 0) == len(lines)
    for entry in model.log:
        if entry.line:
            assert (folder / f"{entry.index}.txt").read_text() + "\n" == entry.line


@pytest.mark.parametrize("seed", range(12))
async def test_any_batches_skips_rewinds_and_kills_agree_with_the_model(
    seed: int, tmp_path: Path
) -> None:
    rng, model = random.Random(seed), Model()
    store, count = MemoryStore(), 6
    for _ in range(12):
        store = await take_a_step(store, tmp_path, model, rng, count)
    async with begin(store, output_dir=tmp_path) as run:
        async with run.open_stream("s", state={"trail": ""}) as stream:
            check_model(stream, model, tmp_path)


@pytest.mark.parametrize("seed", range(8))
async def test_any_redos_rewinds_and_kills_of_batches_that_stand_alone(
    seed: int, tmp_path: Path
) -> None:
    """What was ever confirmed is the output of its batch or in the archive."""
    rng, store, count = random.Random(seed), MemoryStore(), 6
    standing, gone, nonce = dict[int, int](), list[int](), 0
    for _ in range(10):
        async with begin(store, output_dir=tmp_path) as run:
            async with run.open_stream("s") as stream:
                until = nonce + rng.randrange(1, 5)
                async for batch in stream.batches(range(count)):
                    nonce += 1
                    await batch.write_text(f"{batch.index}", f"{nonce}")
                    batch.complete(totals={"nonces": nonce})
                    standing[batch.index] = nonce
                    if nonce == until:
                        break
                if rng.random() < 0.5:
                    chosen = rng.sample(sorted(standing), rng.randrange(len(standing) + 1))
                    await stream.redo(chosen, reason="x")
                    gone += [standing.pop(index) for index in chosen]
            if rng.random() < 0.4:
                to = rng.randrange(-1, count)
                taken = await run.rewind(("s",), to=to, reason="x")
                assert list(taken) == sorted(index for index in standing if index > to)
                gone += [standing.pop(index) for index in taken]
            store = store.after_crash() if rng.random() < 0.5 else store
        progress = stream.progress
        assert list(progress.confirmed) == sorted(standing)
        total = progress.totals.get("nonces")
        assert (total.value if total else 0) == sum(standing.values())
        for index, number in standing.items():
            assert (tmp_path / f"{index}").read_text() == f"{number}"
        kept = [text for text in archived(tmp_path) if text.isdigit()]  # no manifest
        assert sorted(map(int, kept)) == sorted(gone)
