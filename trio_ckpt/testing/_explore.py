"""Crashes a program everywhere, and checks that it survives."""

from __future__ import annotations

import inspect
import logging
import random
import sys
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Collection, Generator, Iterator
from contextlib import contextmanager
from functools import partial
from types import TracebackType
from typing import cast

import attrs
import trio

from ._crash_points import (
    CRASH_KINDS,
    POINT_KINDS,
    CrashFoundError,
    CrashKind,
    CrashTrigger,
    LawBrokenError,
    Plan,
    Point,
    PointKind,
    read_plan,
    write_plan,
)
from ._session import End, Program, run_session
from ._world import SimulatedHost, World

Check = Callable[[World], Awaitable[None] | None]

DEFAULT_SCHEDULES = 50
DEFAULT_TIME_LIMIT_S = 60.0
MOST_CRASHES = 4  # in one random schedule: more seldom find what two do not
MAX_SEED = 10**6  # of random schedules: short enough to be typed
MAX_MOVES = 8  # of crashes that a start does not reach: each start may take another path


@attrs.frozen
class Exploration:
    """What was explored.

    Attributes:
        points: The number of points of each kind in a session without a crash.
        crashes: The number of sessions that were crashed or cancelled, by kind.
        sessions: The number of all sessions.
        schedules: The number of plans with several crashes.
        not_reached: Crashes that were planned at points that a session did not reach.
        left_out: The number of plans, by kind, that exceed the time or the budget; and of those
            in which a session did not reach a crash, because the program took another path.
        duration_s: Real time, in seconds.
        seed: The seed of everything random.
    """

    points: dict[PointKind, int]
    crashes: dict[CrashKind, int]
    sessions: int
    schedules: int
    not_reached: int
    left_out: dict[str, int]
    duration_s: float
    seed: int

    @property
    def crash_points(self) -> int:
        """The number of crashes."""
        return sum(self.crashes.values())

    def __str__(self) -> str:
        crashes = ", ".join(f"{times:,} {crash}" for crash, times in self.crashes.items())
        kinds = ", ".join(f"{number:,} {kind}" for kind, number in self.points.items())
        left = ", ".join(f"{number:,} of {name}" for name, number in self.left_out.items())
        return (
            f"{self.crash_points:,} crashes ({crashes}) at {kinds} points and in "
            f"{self.schedules:,} random schedules, {self.sessions:,} sessions, "
            f"{self.duration_s:.1f} s, seed {self.seed}"
            + (f"; LEFT OUT: {left}" if left else "; nothing left out")
        )


def explore_crashes(
    program: Program,
    check: Check,
    *,
    always: Callable[[World], None] | None = None,
    seed: int = 0,
    points: Collection[PointKind] = POINT_KINDS,
    schedules: int = DEFAULT_SCHEDULES,
    time_limit_s: float = DEFAULT_TIME_LIMIT_S,
    crashes: int | None = None,
    replay: str | None = None,
    how_to_replay: str = 'explore_crashes(..., replay="{}")',
) -> Exploration:
    """Prove a program crash-safe: crash it everywhere, restart it, and check what it leaves.

    The program runs under trio's mock clock, with a store and files in memory, in an order
    that follows from the seed.  First it runs undisturbed, which counts the points.  Then it
    is crashed at each of them in turn and restarted until it is done: at every call of the
    store (before it takes effect, after it, after a part of it), at every durable operation
    on files, and at every step of a task, killed and without power; at the steps it is also
    cancelled.  Then come random schedules of several crashes.

    After every crash some invariants are checked, see `docs/how-to/prove-crash-safety`; `check`
    runs at the end of every plan.

    Args:
        program: Called with a new `World` for each session.  It must keep everything that is
            to survive in there.
        check: Called when the program is done: raises if something is wrong; sync or async.
        always: Called after every session, however it ended: raises if something is wrong
            even though the program is not done.
        seed: The seed of everything random.
        points: The kinds of points.
        schedules: The number of random schedules of several crashes.
        time_limit_s: Real time that this may take, in seconds; the result says what was left out.
        crashes: The largest number of plans, spread evenly; default: all there are.
        replay: Only this plan, as a `CrashFoundError` names it.
        how_to_replay: How the error describes a replay; ``{}`` is the plan.

    Returns:
        What was explored, and what was left out.

    Raises:
        CrashFoundError: the program does not survive a crash.
        Exception: what the program or `check` raises without any crash.
        ValueError: `replay` is not a plan, or has a crash that the program does not reach.
    """
    unknown = sorted(set(points) - set(POINT_KINDS))
    if unknown:
        raise ValueError(
            f"{unknown[0]!r} is not a kind of point; there are {', '.join(POINT_KINDS)}"
        )
    explorer = _Explorer(program, check, always, seed, how_to_replay)
    with quiet_log() as explorer.said:
        if replay is not None:
            explorer.replay(read_plan(replay))
            return explorer.result()
        explorer.play(())
        plans = _Plans(explorer.counts, points, seed, schedules, crashes)
        deadline = explorer.began + time_limit_s
        with ProgressLine(plans.total) as line:
            explorer.points = points
            for plan in plans.take():
                if time.perf_counter() > deadline:
                    plans.leave_out_rest(plan)
                    break
                explorer.play(plan)
                line.step(explorer.crashed.total())
    return explorer.result(plans.left_out + explorer.missed)


@attrs.define(eq=False)
class _Plans:
    """The plans, in order: each point alone, then several together."""

    counts: Counter[PointKind]
    points: Collection[PointKind]
    seed: int
    schedules: int
    limit: int | None
    left_out: Counter[str] = attrs.field(factory=Counter[str], init=False)

    @property
    def _single(self) -> int:
        return sum(self.counts[kind] * len(CRASH_KINDS[kind]) for kind in self.points)

    @property
    def total(self) -> int:
        """The number of plans."""
        every = self._single + self.schedules
        return every if self.limit is None else min(self.limit, every)

    def take(self) -> Iterator[Plan]:
        """Yield all plans, or as many as the limit allows, evenly spread."""
        every = self._single + self.schedules
        taken = 0
        for number, plan in enumerate(self._every()):
            if (number + 1) * self.total // every > taken:
                taken += 1
                yield plan
            else:
                self.left_out[_name(plan)] += 1

    def leave_out_rest(self, first: Plan) -> None:
        """Count the plans from one on, for which no time is left."""
        is_left = False
        for plan in self._every():
            is_left = is_left or plan == first
            if is_left:
                self.left_out[_name(plan)] += 1

    def _every(self) -> Iterator[Plan]:
        for kind in POINT_KINDS:
            if kind in self.points:
                for number in range(1, self.counts[kind] + 1):
                    for crash in CRASH_KINDS[kind]:
                        yield (Point(kind, number, crash, self.seed),)
        chance = random.Random(self.seed)  # noqa: S311  # repeatable random numbers
        kinds: list[PointKind] = [k for k in POINT_KINDS if k in self.points and self.counts[k]]
        for _ in range(self.schedules if kinds else 0):
            times = chance.randint(2, MOST_CRASHES)
            yield tuple(self._random_point(chance, chance.choice(kinds)) for _ in range(times))

    def _random_point(self, chance: random.Random, kind: PointKind) -> Point:
        number = chance.randint(1, self.counts[kind])
        return Point(kind, number, chance.choice(CRASH_KINDS[kind]), chance.randrange(MAX_SEED))


def _name(plan: Plan) -> str:
    return f"{plan[0].kind} points" if len(plan) == 1 else "random schedules"


@attrs.define(eq=False)
class _Explorer:
    """Plays plans, and counts their results."""

    program: Program
    check: Check
    always: Callable[[World], None] | None
    seed: int
    how_to_replay: str
    said: list[str] = attrs.field(factory=list[str], init=False)
    counts: Counter[PointKind] = attrs.field(factory=Counter["PointKind"], init=False)
    crashed: Counter[CrashKind] = attrs.field(factory=Counter["CrashKind"], init=False)
    sessions: int = attrs.field(default=0, init=False)
    schedules: int = attrs.field(default=0, init=False)
    not_reached: int = attrs.field(default=0, init=False)
    points: Collection[PointKind] = attrs.field(default=(), init=False)
    missed: Counter[str] = attrs.field(factory=Counter[str], init=False)
    began: float = attrs.field(factory=time.perf_counter, init=False)

    def play(self, plan: Plan, *, moves: int = MAX_MOVES) -> None:
        """Run the program through the crashes of a plan to its end.

        Args:
            plan: The crashes, start after start.
            moves: How many crashes that a start does not reach may be replaced.

        Raises:
            CrashFoundError: the program does not survive.
        """
        story: list[str] = []
        self.said.clear()
        try:
            missed = self._play(plan, story)
        except Exception as problem:
            if not plan and not isinstance(problem, LawBrokenError):
                raise
            said = list(self.said)
            is_repeatable = self._fails_again(plan)
            raise self._found(plan, problem, story, said, is_repeatable=is_repeatable) from problem
        if missed is None:
            self.schedules += len(plan) > 1
            return
        place, counts = missed
        met = self._met(plan, place, counts) if moves else None
        if met is not None:
            self.play(met, moves=moves - 1)
        else:
            self.not_reached += len(plan) - place
            self.missed[f"{_name(plan)} that no start came to"] += 1

    def _met(self, plan: Plan, place: int, counts: Counter[PointKind]) -> Plan | None:
        """Replace a crash by one that this start reaches; None: there is none.

        A start after a crash has fewer points than the first start, from which plans are drawn.
        """
        point = plan[place]
        kinds: list[PointKind] = [k for k in POINT_KINDS if k in self.points and counts[k]]
        if len(plan) == 1 or not kinds:
            return None
        kind = point.kind if point.kind in kinds else kinds[0]
        crash = point.crash if point.crash in CRASH_KINDS[kind] else "kill"
        number = (point.number - 1) % counts[kind] + 1
        met = Point(kind, number, crash, point.seed)
        return None if met == point else (*plan[:place], met, *plan[place + 1 :])

    def replay(self, plan: Plan) -> None:
        """Play one plan that the caller names.

        Raises:
            ValueError: the program does not reach one of its points.
        """
        self.play(plan)
        if self.not_reached:
            raise ValueError(
                f"{write_plan(plan)}: the program does not come to all of these points, so it is "
                "another one than the plan was found for"
            )

    def _play(self, plan: Plan, story: list[str]) -> tuple[int, Counter[PointKind]] | None:
        """Play a plan; return the crash that was not reached, and what was reached instead."""
        missed = None
        host = SimulatedHost()
        for place, point in enumerate(plan):
            end = self._session(host, point.seed, point, story)
            if end.trigger.where is None:
                missed = (place, end.trigger.counts)
                break
            self.crashed[point.crash] += 1
            if end.is_done and place == len(plan) - 1:
                break
        else:
            story.append("started again, without a crash" if plan else "without a crash")
            end = self._session(host, plan[-1].seed if plan else self.seed, None, story)
            if not plan:
                self.counts = end.trigger.counts
        self._finish(host)
        return missed

    def _session(
        self, host: SimulatedHost, seed: int, point: Point | None, story: list[str]
    ) -> End:
        self.sessions += 1
        end = run_session(self.program, host, seed, point)
        if point is not None and end.trigger.where is not None:
            story.append(f"{point}: {_say(point, end)}")
            self.said.clear()  # messages of a dying program do not help
        if end.error is not None:
            raise end.error
        host.check()
        if self.always is not None:
            self.always(self._look(host))
        return end

    def _finish(self, host: SimulatedHost) -> None:
        world = self._look(host)
        if inspect.iscoroutinefunction(self.check):
            trio.run(cast("Callable[[World], Awaitable[None]]", self.check), world)
        elif inspect.isawaitable(answer := self.check(world)):
            trio.run(partial(_await, answer))

    def _look(self, host: SimulatedHost) -> World:
        return World(host, CrashTrigger(), self.seed)

    def _fails_again(self, plan: Plan) -> bool:
        try:
            self._play(plan, [])
        except Exception:
            return True
        return False

    def _found(
        self,
        plan: Plan,
        problem: Exception,
        story: list[str],
        said: list[str],
        *,
        is_repeatable: bool,
    ) -> CrashFoundError:
        text = write_plan(plan)
        lines = [str(problem) or type(problem).__name__]
        if not isinstance(problem, AssertionError):
            lines[0] = f"{type(problem).__name__}: {lines[0]}"
        lines += [f"  {line}" for line in story]
        lines += [f"  the log: {line}" for line in said]
        if is_repeatable:
            lines.append(f"  see it again: {self.how_to_replay.format(text)}")
        else:
            lines.append(
                f"  it did not fail again when {text!r} was played once more: the program has "
                "threads that are not trio's, real time or chance of its own"
            )
        return CrashFoundError("\n".join(lines), text)

    def result(self, left_out: Counter[str] | None = None) -> Exploration:
        """Return what was explored."""
        return Exploration(
            points=dict(self.counts),
            crashes=dict(self.crashed),
            sessions=self.sessions,
            schedules=self.schedules,
            not_reached=self.not_reached,
            left_out=dict(left_out or {}),
            duration_s=time.perf_counter() - self.began,
            seed=self.seed,
        )


async def _await(answer: Awaitable[None]) -> None:
    await answer


def _say(point: Point, end: End) -> str:
    """Describe what happened at a point."""
    crash = {"kill": "killed", "power": "lost power", "cancel": ""}[point.crash]
    return f"{crash} {end.trigger.where}".strip()


EVERY_S = 0.2  # often enough to look alive
MAX_SAID = 10  # lines of the log that an error repeats
# Each session of an exploration logs that it resumes, or stops.
EXPECTED = ("trio_ckpt._runs.announce", "trio_ckpt._commit.shutdown")


class _Listener(logging.Handler):
    def __init__(self, said: list[str]) -> None:
        super().__init__(logging.WARNING)
        self._said = said

    def emit(self, record: logging.LogRecord) -> None:
        if record.name not in EXPECTED and len(self._said) < MAX_SAID:
            self._said.append(f"{record.name}: {record.getMessage()}")


@contextmanager
def quiet_log() -> Generator[list[str]]:
    """Collect the library's warnings while the block runs: dying programs log many."""
    logger, said = logging.getLogger("trio_ckpt"), list[str]()
    listener, was = _Listener(said), logger.propagate
    logger.addHandler(listener)
    logger.propagate = False
    try:
        yield said
    finally:
        logger.propagate = was
        logger.removeHandler(listener)


class ProgressLine:
    """A progress line on the terminal; nothing where there is no terminal."""

    def __init__(self, total: int) -> None:
        self._total = total
        self._done = 0
        self._began = self._shown = time.monotonic()
        self._is_live = sys.stderr.isatty()

    def step(self, crashes: int) -> None:
        """Count one more plan."""
        self._done += 1
        now = time.monotonic()
        if not self._is_live or now - self._shown < EVERY_S:
            return
        self._shown = now
        rate = crashes / (now - self._began) * 60
        left = f"{self._done:,} of {self._total:,} plans"
        self._write(f"\r\x1b[K{left}, {crashes:,} crashes, {rate:,.0f} a minute")

    def __enter__(self) -> ProgressLine:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc_value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._is_live:
            self._write("\r\x1b[K")

    def _write(self, text: str) -> None:
        sys.stderr.write(text)
        sys.stderr.flush()
