"""Plants damages, one after another, and sees that none is silent.

A damage is *found* if opening or `verify --full` says that something is damaged, *harmless* if all
that readers see is as it was, and else *silent*: that is what must not be.
"""

from __future__ import annotations

import logging
import os
import random
import shutil
import tempfile
from collections import Counter
from collections.abc import Generator, Iterator
from contextlib import aclosing, contextmanager
from pathlib import Path

import attrs
import trio

from tests.damage.plant import PLANTS
from tests.damage.rows import ROWS, plant_row
from tests.damage.samples import (
    KINDS,
    Files,
    Sample,
    content_of,
    finish,
    lay_out,
    make_sample,
    outputs_from,
)
from trio_ckpt._maintenance.repair import RepairReport, repair_all
from trio_ckpt._maintenance.verify_store import check_all
from trio_ckpt._util.errors import TrioCkptError
from trio_ckpt.abc import Finding
from trio_ckpt.stores import open_store

ROW_SHARE = 0.15  # of the damages of a database: rows that are changed, not bytes
DATABASE_SHARE = 0.5  # of all: the files in which all is


@attrs.frozen
class Planted:
    """One damage.

    Attributes:
        sample: What was damaged.
        kind: How.
        name: The file.
        seed: Plants the same again.
        files: What is there with it.
    """

    sample: Sample
    kind: str
    name: str
    seed: int
    files: Files

    def __str__(self) -> str:
        return f"{self.sample.name}: {self.kind}: {self.name} (--seed {self.seed} --count 1)"


def make_samples(root: Path, kinds: tuple[str, ...] = KINDS) -> list[Sample]:
    """The samples that damages are planted in."""
    return [
        make_sample(kind, root / f"{kind}-{is_killed}", is_killed=is_killed)
        for kind in kinds
        for is_killed in (False, True)
    ]


def plant(samples: list[Sample], seed: int) -> Planted | None:
    """The damage of a seed; None: it would change nothing."""
    rng = random.Random(seed)
    sample = rng.choice(samples)
    names = [name for name in sorted(sample.files) if "/.archive/" not in name]
    heart = [n for n in names if n.startswith("store/") and "blobs" not in n and "lock/" not in n]
    name = rng.choice(heart if rng.random() < DATABASE_SHARE else names)
    if name == "store/state.db" and rng.random() < ROW_SHARE:
        kind = rng.choice(sorted(ROWS))
        files = plant_row(sample, kind, rng, sample.root.with_suffix(".beside"))
    else:
        kind = rng.choice(sorted(PLANTS))
        files = PLANTS[kind](sample, name, rng)
    if files is None or files == sample.files:
        return None
    return Planted(sample, kind, name, seed, files)


def look(sample: Sample) -> list[Finding]:
    """What `verify --full` finds; an error where the store is opened is a finding."""

    async def main() -> list[Finding]:
        store = await open_store(sample.url, create=False)
        try:
            async with aclosing(check_all(store)) as findings:
                return [finding async for finding in findings]
        finally:
            await store.aclose()

    try:
        return trio.run(main)
    except TrioCkptError as error:
        return [Finding("opening", str(error))]


@attrs.define
class Tally:
    """What became of the planted damages."""

    verdicts: Counter[str] = attrs.field(factory=Counter[str])
    kinds: Counter[str] = attrs.field(factory=Counter[str])
    silent: list[str] = attrs.field(factory=list[str])
    repaired: Counter[str] = attrs.field(factory=Counter[str])
    broken: list[str] = attrs.field(factory=list[str])

    def add(self, other: Tally) -> None:
        """Count what another sweep has found."""
        self.verdicts += other.verdicts
        self.kinds += other.kinds
        self.silent += other.silent
        self.repaired += other.repaired
        self.broken += other.broken


@attrs.define(eq=False)
class Sweep:
    """Plants damages in samples.

    Attributes:
        samples: The samples.
        tally: What has become of them.
    """

    samples: list[Sample]
    tally: Tally = attrs.field(factory=Tally, init=False)
    _whole: dict[str, dict[str, object]] = attrs.field(
        factory=dict[str, dict[str, object]], init=False
    )
    _finished: dict[str, Files] = attrs.field(factory=dict[str, Files], init=False)

    def __attrs_post_init__(self) -> None:
        for sample in self.samples:
            lay_out(sample.root, sample.files)
            self._whole[sample.name] = trio.run(content_of, sample)
            lay_out(sample.root, sample.files)
            self._finished[sample.name] = finish(sample)

    def damages(self, first_seed: int, count: int) -> Iterator[Planted]:
        """So many damages, from a seed on."""
        seed = first_seed
        while count:
            planted = plant(self.samples, seed)
            seed += 1
            if planted is not None:
                count -= 1
                yield planted

    def judge(self, planted: Planted, *, repairs: bool = False) -> str:
        """Plant a damage, and see what becomes of it."""
        sample = planted.sample
        lay_out(sample.root, planted.files)
        found = [finding for finding in look(sample) if finding.is_damage]
        verdict = "found" if found else self._unfound(planted)
        self.tally.verdicts[verdict] += 1
        self.tally.kinds[planted.kind] += 1
        if verdict == "silent":
            self.tally.silent.append(str(planted))
        if repairs and found:
            lay_out(sample.root, planted.files)
            self._repair(planted, found)
        return verdict

    def _unfound(self, planted: Planted) -> str:
        sample = planted.sample
        lay_out(sample.root, planted.files)
        try:
            now = trio.run(content_of, sample)
        except (TrioCkptError, OSError):
            return "silent"  # who reads it fails, and verify has not said so
        return "harmless" if now == self._whole[sample.name] else "silent"

    # -- repairing ------------------------------------------------------------------------

    def _repair(self, planted: Planted, found: list[Finding]) -> None:
        sample = planted.sample

        accept_loss = planted.seed % 2 == 0

        async def main() -> RepairReport:
            return await repair_all(sample.url, found, accept_loss=accept_loss)

        try:
            report = trio.run(main)
        except TrioCkptError:
            self.tally.repaired["refused"] += 1
            return
        left = [finding for finding in look(sample) if finding.is_damage]
        if bool(left) != bool(report.left):
            self.tally.broken.append(f"{planted}: it says {report.left}, and there is {left}")
        if not report.left:
            self._check_losses(planted, report)
            self._check_resume(planted, report)
        self.tally.repaired["left some" if left else "sound"] += 1

    def _check_losses(self, planted: Planted, report: RepairReport) -> None:
        """What is not there any more must have been said."""
        before = self._whole[planted.sample.name]
        now = trio.run(content_of, planted.sample)
        told = " ".join(part.where for part in report.done if part.is_loss)
        for place, content in before.items():
            if place.count(" ") >= 2 and "folded" not in place and not place.startswith("file"):
                run_id, _, stream = place.split(" ", 2)
                names = (f"stream {stream} of run {run_id!r}", f"run {run_id!r} ", f"runs/{run_id}")
                was, there = _records(content), _records(now.get(place))
                is_told = any(name in f"{told} " for name in names)
                if not was.items() <= there.items() and not is_told:
                    self.tally.broken.append(f"{planted}: {place} lost records, and it is not said")

    def _check_resume(self, planted: Planted, report: RepairReport) -> None:
        is_lost = any(part.is_loss for part in report.done)
        try:
            outputs = finish(planted.sample, may_begin_afresh=is_lost)
        except Exception as error:
            self.tally.broken.append(f"{planted}: after the repair a start fails: {error!r}")
            return
        wanted = self._finished[planted.sample.name]
        outputs = {name: outputs[name] for name in outputs_from(wanted) if name in outputs}
        if outputs != wanted:
            odd = sorted(name for name in wanted if outputs.get(name) != wanted[name])
            self.tally.broken.append(f"{planted}: after the repair {odd[:3]} are others")


def _records(content: object) -> dict[int, bytes]:
    return dict(content[1]) if isinstance(content, tuple) else {}


def plant_many(seed: int, count: int, repair_every: int) -> Tally:
    """Plant so many damages, in samples of their own; what has become of them."""
    logging.disable(logging.CRITICAL)  # the library says each damage
    with room_for_samples() as root:
        sweep = Sweep(make_samples(root))
        for number, planted in enumerate(sweep.damages(seed, count), 1):
            verdict = sweep.judge(planted, repairs=count == 1 or number % repair_every == 0)
            if count == 1:
                print(f"{verdict}: {planted}")
    return sweep.tally


@contextmanager
def room_for_samples() -> Generator[Path]:
    """A folder that is in memory where that can be: samples are laid out again and again."""
    memory = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    root = Path(tempfile.mkdtemp(prefix="damage", dir=memory))
    try:
        yield root
    finally:
        shutil.rmtree(root)
