"""Where programs are crashed: plays a schedule to its end, and sees that every promise is kept.

The promises are those of the law (docs/explanation/how-it-works.md).  They are looked at on a
copy of the files after every session that did not end well, and on the files at the end.
"""

from __future__ import annotations

import json
import re
import shutil
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import attrs
import trio

from tests.crash.disk import Disk, UnknownFileError, replay, write_tree
from tests.crash.programs import (
    BATCHES,
    LINES,
    OUT,
    RUN,
    STORE,
    STREAM,
    lines_of,
    open_kind,
    output_name,
    output_of,
)
from tests.crash.recorder import NO_PLAN, Action, Operation, Plan, read_log
from tests.crash.schedules import Schedule
from tests.crash.zygote import Ended, Zygote
from trio_ckpt import StoreDamagedError, StoreError
from trio_ckpt.testing._inodes import Folder

MANIFEST = "manifest.json"
OF_THIS_RUN = ("completed_at", "checkpoints", "runtime_s")  # in it: how it came about
# Lines that no checkpoint knows may be the user's only copy, so the library keeps them.
KEPT = "out/.archive"
LIVE = f"{STORE}/live"
KILLS = (Action.KILL_BEFORE, Action.KILL_AFTER, Action.KILL_HALF)
EXIT_POISONED = 75
AFTER_CUT = 50  # number of the session that finds what a power cut left

_DIGEST = re.compile(r"\b[0-9a-f]{64}$")
_JOURNAL = re.compile(r"/journal\.\d+\.jsonl$")


class ViolationError(Exception):
    """A promise was broken."""


@attrs.define
class Counts:
    """What was tried.

    Attributes:
        points: Schedules in which everything went wrong that should.
        sessions: Processes that were run.
        not_reached: Schedules of which a session ended before its operation came.
    """

    points: int = 0
    sessions: int = 0
    not_reached: int = 0


@attrs.define
class _Story:
    """What the sessions of one schedule have said so far."""

    acked: set[int] = attrs.field(factory=set[int])
    confirmed: set[int] = attrs.field(factory=set[int])  # as a reader found after a session


@attrs.frozen
class Recording:
    """The operations of a row of sessions, and where in the log each session ended."""

    operations: tuple[Operation, ...]
    ends: tuple[int, ...]


@attrs.define(eq=False)
class Lab:
    """A folder, a kind of store, and a server that forks.

    Attributes:
        base: Where everything is; the caller's, to be removed by the caller.
        aside: Where copies are looked at; the same.
        zygote: Runs the sessions.
        store: The kind of store.
        program: What is crashed.
        counts: What was tried.
    """

    base: Path
    aside: Path
    zygote: Zygote
    store: str
    program: str = "good"
    counts: Counts = attrs.field(factory=Counts)
    _number: int = attrs.field(default=0, init=False)  # of the next session in the folder
    _shape: list[str] = attrs.field(factory=list[str], init=False)
    _manifest: Any = attrs.field(default=None, init=False)

    @property
    def root(self) -> Path:
        """The folder of the program."""
        return self.base / "tree"

    @property
    def log(self) -> Path:
        """The recorder's log."""
        return self.base / "log"

    def clear(self) -> None:
        """Begin with an empty folder."""
        shutil.rmtree(self.root, ignore_errors=True)
        self.log.unlink(missing_ok=True)
        self.root.mkdir()
        self._number = 0

    def run(self, plan: Plan = NO_PLAN, *, is_logged: bool = False) -> Ended:
        """Run one session."""
        self.counts.sessions += 1
        log = self.log if is_logged else None
        self._number += 1
        return self.zygote.run(
            self.root,
            self.store,
            program=self.program,
            plan=plan,
            log=log,
            number=self._number,
        )

    def learn(self) -> Ended:
        """Run the program undisturbed, and remember what it leaves behind."""
        self.clear()
        ended = self.run()
        _check_clean(ended)
        self._shape, self._manifest = shape_of(self.root), read_manifest(self.root)
        self._check_end()
        return ended

    def record(self, plans: Sequence[Plan]) -> Recording:
        """Run sessions, and write down what they do.

        Raises:
            ViolationError: the model of the disk is not what the disk is.
        """
        self.clear()
        ends: list[int] = []
        for plan in plans:
            self.run(plan, is_logged=True)
            ends.append(len(list(read_log(self.log))))
        recording = Recording(tuple(read_log(self.log)), tuple(ends))
        self._compare(recording)
        return recording

    def _compare(self, recording: Recording) -> None:
        try:
            model = replay(recording.operations).contents()
        except UnknownFileError as error:
            raise ViolationError(f"an operation escaped the recorder: {error}") from error
        real = {
            path.relative_to(self.root).as_posix(): None if path.is_dir() else path.read_bytes()
            for path in self.root.rglob("*")
        }
        # A mapped file changes without a call; and the half of a write that a kill lets through
        # is no line of the log.
        names = [name for name in {**model, **real} if not name.endswith("-shm")]
        wrong = [name for name in names if model.get(name, "") != real.get(name, "")]
        if wrong:
            raise ViolationError(f"the log does not lead to what is there: {sorted(wrong)}")

    # -- schedules --------------------------------------------------------------------------

    def play(self, schedule: Schedule, recording: Recording | None = None) -> None:
        """Let everything of a schedule happen, then let the program finish, and check it all.

        Args:
            schedule: What happens.
            recording: Of its plans, where power is cut and this is at hand.

        Raises:
            ViolationError: a promise was broken.
        """
        if schedule.cut is not None:
            recording = recording or self.record(schedule.plans)
            disk = replay(recording.operations[: schedule.cut])
            self.play_cut(disk, disk.cut(schedule.seed))
            return
        self.clear()
        story = _Story()
        for plan in schedule.plans:
            ended = self.run(plan)
            self._judge(story, ended, plan)
            if not ended.hits and not ended.was_killed:
                self.counts.not_reached += 1
            self._check_crashed(story)
            if ended.code == 0:  # it got over it
                _check_complete(story)
                break
        self._finish(story)
        self.counts.points += bool(ended.hits) or ended.was_killed

    def play_cut(self, disk: Disk, left: Folder) -> None:
        """Go on with what a power cut left; acknowledged is what was marked before it.

        Raises:
            ViolationError: a promise was broken.
        """
        shutil.rmtree(self.root, ignore_errors=True)
        self.root.mkdir()
        self._number = AFTER_CUT
        write_tree(left, self.root)
        story = _Story(acked={int(mark.split()[1]) for mark in disk.marks})
        self._check_crashed(story)
        self._finish(story)
        self.counts.points += 1

    def _finish(self, story: _Story) -> None:
        ended = self.run()
        self._judge(story, ended, NO_PLAN)
        _check_clean(ended)
        self._check_end()

    # -- promises ---------------------------------------------------------------------------

    def _judge(self, story: _Story, ended: Ended, plan: Plan) -> None:
        """See that a session ended in a way that is allowed, and did nothing twice."""
        if ended.is_late:
            raise ViolationError("the session hangs")
        if not ended.is_ours:
            raise ViolationError(f"an error that is none of the library: {ended.error}")
        if ended.code < 0 and not (ended.was_killed and plan.action in KILLS):
            raise ViolationError(f"the session was ended by signal {-ended.code}")
        if ended.code > 1 and ended.code != EXIT_POISONED:
            raise ViolationError(f"the session ended with exit code {ended.code}")
        again = set(ended.begun) & (story.acked | story.confirmed)
        if again:
            raise ViolationError(f"batches {sorted(again)} were confirmed, and were begun again")
        twice = [index for index in set(ended.begun) if ended.begun.count(index) > 1]
        if twice:
            raise ViolationError(f"batches {twice} were begun twice in one session")
        story.acked |= set(ended.acked)

    def _check_crashed(self, story: _Story) -> None:
        """See what a reader finds."""
        copy = self._copy()
        confirmed = read_confirmed(self.store, copy / STORE)
        lost = (story.acked | story.confirmed) - confirmed
        if lost:
            raise ViolationError(f"batches {sorted(lost)} were acknowledged, and are lost")
        check_outputs(copy / OUT, confirmed)
        story.confirmed = confirmed

    def _copy(self) -> Path:
        """A copy to look at: reading may tidy up."""
        copy = self.aside / "copy"
        shutil.rmtree(copy, ignore_errors=True)
        shutil.copytree(self.root, copy, copy_function=shutil.copyfile)
        return copy

    def _check_end(self) -> None:
        story = _Story(confirmed=read_confirmed(self.store, self._copy() / STORE))
        _check_complete(story)
        check_outputs(self.root / OUT, story.confirmed)
        lines = (self.root / OUT / LINES).read_bytes()
        if lines != b"".join(map(lines_of, range(BATCHES))):
            raise ViolationError(f"{LINES} is not what an undisturbed run leaves")
        if read_manifest(self.root) != self._manifest:
            raise ViolationError(f"{MANIFEST} is not that of an undisturbed run")
        litter = Counter(shape_of(self.root)) - Counter(self._shape)
        if litter:
            raise ViolationError(f"there is litter: {dict(litter)}")


def _check_complete(story: _Story) -> None:
    if story.confirmed != set(range(BATCHES)):
        raise ViolationError(f"exit code 0, and only batches {sorted(story.confirmed)} are done")


def _check_clean(ended: Ended) -> None:
    if ended.code:
        raise ViolationError(f"a clean start ended with exit code {ended.code}: {ended.error}")


def read_confirmed(store: str, folder: Path) -> set[int]:
    """The batches that a reader finds confirmed.

    Raises:
        ViolationError: the store looks damaged.
    """
    try:
        return trio.run(_read_confirmed, store, folder)
    except StoreDamagedError as error:
        raise ViolationError(f"the store looks damaged: {error}") from error
    except StoreError as error:
        if "there is no store" in str(error):
            return set()
        raise ViolationError(f"the store cannot be read: {error}") from error


async def _read_confirmed(kind: str, folder: Path) -> set[int]:
    store = await open_kind(kind, folder, create=False)
    try:
        view = await store.load_run(RUN)
    finally:
        await store.aclose()
    stream = view.streams.get(STREAM) if view is not None else None
    return set(stream.progress.confirmed) if stream is not None else set()


def check_outputs(out: Path, confirmed: set[int]) -> None:
    """See that what confirmed batches left is there.

    Raises:
        ViolationError: it is not: progress is ahead of it.
    """
    lines = b""
    for index in sorted(confirmed):
        path = out / output_name(index)
        if not path.exists() or path.read_bytes() != output_of(index):
            raise ViolationError(f"batch {index} is confirmed, and its output is not there, whole")
        lines += lines_of(index)
    path = out / LINES
    if not (path.read_bytes() if path.exists() else b"").startswith(lines):
        raise ViolationError(f"batches {sorted(confirmed)} are confirmed, and lines are missing")


def read_manifest(root: Path) -> Any:
    """The manifest, without what says how the run went."""

    def without(value: Any) -> Any:
        if isinstance(value, Mapping):
            return {k: without(v) for k, v in value.items() if k not in OF_THIS_RUN}
        return [without(item) for item in value] if isinstance(value, list) else value

    path = root / OUT / MANIFEST
    return without(json.loads(path.read_bytes())) if path.exists() else None


def shape_of(root: Path) -> list[str]:
    """Every name below a folder, without what is another in each run: digests and numbers."""
    names = []
    for path in sorted(root.rglob("*")):
        name = path.relative_to(root).as_posix()
        if name == LIVE:
            continue  # it stays when it is empty: it is needed again
        if name.startswith(KEPT) and (path.is_dir() or path.stat().st_size):
            continue
        name = _DIGEST.sub("BLOB", name)
        names.append(_JOURNAL.sub("/journal.N.jsonl", name))
    return sorted(names)
