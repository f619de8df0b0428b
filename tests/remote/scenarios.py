"""Jobs that pass every transition of the protocol, and what strikes them there."""

from __future__ import annotations

from collections import Counter
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import Any, Literal

import attrs
import pytest
import trio

from tests.remote import functions
from tests.remote.site import F, Site, until
from trio_ckpt import remote
from trio_ckpt.remote import TaskStatus
from trio_ckpt.remote._wire.message import Hello, Message, MessageKind, TaskMessage
from trio_ckpt.remote._wire.protocol import Connection
from trio_ckpt.remote._wire.tables import ConnectionPhase, PeerRole, TaskPhase
from trio_ckpt.remote._worker.worker import Worker
from trio_ckpt.stores import MemoryStore

JOB = "job-a"
MAX_S = 600.0  # on the mock clock; a job without kills takes some seconds
Victim = Literal["foreman", "worker", "client", "connection", "network"]
VICTIMS: tuple[Victim, ...] = ("foreman", "worker", "client", "connection", "network")
AWAY_S = (0.0, 0.3, 4.0, 20.0)  # until one that was killed is started again


@attrs.frozen
class Transition:
    """One cell of the tables as one side passes it.

    Attributes:
        role: Who speaks.
        kind: What is said.
        was: Where the connection, or the item, stood.
        is_sent: Whether the side is the one that speaks.
    """

    role: PeerRole
    kind: MessageKind
    was: ConnectionPhase | TaskPhase
    is_sent: bool

    def __str__(self) -> str:
        side = "sent" if self.is_sent else "come"
        return f"{self.kind.name} of the {self.role.value}, {self.was.value}, {side}"


@attrs.frozen
class Aim:
    """Where a schedule strikes.

    Attributes:
        transition: At which transition.
        nth: The how manieth time, from 1.
        victim: What is killed or cut; "network": its peer cannot come back for a while.
        away_s: Until it is started again, or may come back.
    """

    transition: Transition
    nth: int
    victim: Victim
    away_s: float

    def __str__(self) -> str:
        again = "" if self.victim == "connection" else f", again after {self.away_s:g} s"
        return f"{self.victim} at the {self.nth}. {self.transition}{again}"


@attrs.define(eq=False)
class Watch:
    """Sees each transition of all connections, and strikes at some of them."""

    aims: Sequence[Aim] = ()
    strike: Callable[[Aim, str], None] | None = None
    counts: Counter[Transition] = attrs.field(factory=Counter[Transition])
    _names: dict[int, str] = attrs.field(factory=dict[int, str])

    def moved(self, connection: Connection, transition: Transition, message: Message) -> None:
        """Note a transition that has just been passed."""
        if isinstance(message, Hello):
            self._names[id(connection)] = message.name
        if self.strike is None:
            return
        self.counts[transition] += 1
        for aim in self.aims:
            if (aim.transition, aim.nth) == (transition, self.counts[transition]):
                self.strike(aim, self._names.get(id(connection), ""))

    @contextmanager
    def watching(self) -> Iterator[None]:
        """See what passes while the block runs."""
        whole = Connection._step

        def step(
            connection: Connection, role: PeerRole, message: Message, error: Any, body: Any = None
        ) -> None:
            was: ConnectionPhase | TaskPhase = connection.phase
            if isinstance(message, TaskMessage):
                was = connection.tasks.get(message.task_id, TaskPhase.NONE)
            whole(connection, role, message, error, body)
            transition = Transition(role, message.KIND, was, body is not None)
            self.moved(connection, transition, message)

        Connection._step = step  # type: ignore[method-assign]
        try:
            yield
        finally:
            Connection._step = whole  # type: ignore[method-assign]


@attrs.frozen
class Scenario:
    """A job, who does it, and what happens beside.

    Attributes:
        name: What it is called.
        function: What the job does.
        items: With what.
        wanted: What comes of it.
        options: Of the job.
        workers: Their slots.
        beside: What else happens.
        is_cancelled: Whether the job is cancelled in the end.
        latency_s: How long each frame is on its way.
    """

    name: str
    function: str
    items: list[Any]
    wanted: list[Any]
    options: Mapping[str, Any] = attrs.field(factory=dict[str, Any])
    workers: tuple[int, ...] = (1,)
    beside: Callable[[Play], Awaitable[None]] | None = None
    is_cancelled: bool = False
    latency_s: float = 0.0


@attrs.define(eq=False)
class Play:
    """One time that a scenario is played.

    Attributes:
        scenario: Which.
        site: Where.
        watch: What is seen.
        killed: The processes that were killed, and are to be started again.
    """

    scenario: Scenario
    site: Site
    watch: Watch
    nursery: trio.Nursery
    client: trio.CancelScope = attrs.field(factory=trio.CancelScope)
    client_name: str = "client"
    client_away_s: float = 0.0
    results: list[Any] | None = None
    _numbers: Counter[str] = attrs.field(factory=Counter[str])

    async def run(self) -> None:
        """Play it until the job has ended and its workers are free."""
        self.watch.strike = self.strike
        for place, slots in enumerate(self.scenario.workers):
            await self.site.start_worker(f"w{place}", slots=slots)
        self.nursery.start_soon(self.follow)
        self.nursery.start_soon(self._do_beside)
        await self.check_end()
        self.watch.strike = None

    # -- what is struck -----------------------------------------------------------------------

    def strike(self, aim: Aim, name: str) -> None:
        """Kill, or cut, what is aimed at, at this very instruction."""
        if aim.victim == "foreman":
            self.kill_foreman(aim.away_s)
        elif aim.victim in ("connection", "network"):
            if name in self.site.sockets:
                self.site.cut(name, for_good=aim.victim == "network")
                self.nursery.start_soon(self._let_back, name, aim.away_s)
        elif aim.victim == "client":
            if self.client_name in self.site.sockets:  # else it has not begun
                self.site.cut(self.client_name, for_good=True)
                self.client_away_s = aim.away_s
                self.client.cancel()
        elif self.site.workers:
            known = name if name in self.site.workers else next(iter(self.site.workers))
            self.nursery.start_soon(self._replace_worker, self.kill_worker(known), aim.away_s)

    async def _let_back(self, name: str, away_s: float) -> None:
        await trio.sleep(away_s)
        self.site.cut_off.discard(name)

    def kill_foreman(self, away_s: float) -> None:
        """Kill it, and have it started again."""
        if self.site.foreman is None:
            return
        store = self.site.store
        assert isinstance(store, MemoryStore)
        self.site.kill_foreman_now(store.after_crash())
        self.nursery.start_soon(self._start_foreman, away_s)

    async def _start_foreman(self, away_s: float) -> None:
        await trio.sleep(away_s)
        await self.site.start_foreman()

    def kill_worker(self, name: str) -> int:
        """Kill one; its slots."""
        worker = self.site.workers.pop(name)
        self.site.kill_worker(name)
        return worker.slots

    async def _replace_worker(self, slots: int, away_s: float) -> None:
        await trio.sleep(away_s)
        self._numbers["worker"] += 1
        await self.site.start_worker(f"again{self._numbers['worker']}", slots=slots)

    # -- the client ---------------------------------------------------------------------------

    async def follow(self) -> None:
        """Be the client, as often as it is killed."""
        while self.results is None:
            with trio.CancelScope() as self.client:
                with suppress(remote.ConnectionLostError):  # there was no foreman for too long
                    await self._map()
                continue
            await trio.sleep(self.client_away_s)
            self._numbers["client"] += 1
            self.client_name = f"client{self._numbers['client']}"

    async def _do_beside(self) -> None:
        if self.scenario.beside is None:
            return
        while True:
            with suppress(remote.ConnectionLostError):  # as above
                await self.scenario.beside(self)
                return
            await trio.sleep(1)

    async def _map(self) -> None:
        scenario = self.scenario
        async with self.site.client(self.client_name) as client:
            try:
                self.results = await client.map(
                    F + scenario.function, scenario.items, job_id=JOB, **scenario.options
                )
            except remote.JobCancelledError:
                self.results = []

    # -- the end ------------------------------------------------------------------------------

    async def check_end(self) -> None:
        """The results are right, no worker holds anything, and no slot is lost."""
        await until(lambda: self.results is not None, MAX_S)
        assert self.results == ([] if self.scenario.is_cancelled else self.scenario.wanted)
        await until(self._is_idle, MAX_S)
        wanted = TaskStatus.CANCELLED if self.scenario.is_cancelled else TaskStatus.COMPLETED
        assert (await remote.read_job(self.site.store, JOB)).status is wanted

    def _is_idle(self) -> bool:
        foreman = self.site.foreman
        if foreman is None or foreman.jobs or foreman.pool.leases or foreman.pool.waiting:
            return False
        handles = foreman.pool.workers.values()
        is_free = all(handle.free == handle.slots for handle in handles)
        is_whole = len(handles) == len(self.site.workers) >= len(self.scenario.workers)
        return is_free and is_whole and not any(w.items for w in self.site.workers.values())


# -- scenarios ------------------------------------------------------------------------------------


async def restart_foreman(play: Play) -> None:
    """The foreman is killed and started again, so that workers name what they hold."""
    await trio.sleep(1.3)
    play.kill_foreman(0.2)


async def cut_for_long(play: Play) -> None:
    """A worker is away for longer than it is waited for: another one has its items then."""
    await trio.sleep(1.3)
    if "w0" in play.site.workers:
        play.site.cut("w0", for_good=True)
        await trio.sleep(4.0)
        play.site.cut_off.discard("w0")


ACTIONS: tuple[Literal["force-checkpoint", "release", "cleanup"], ...] = (
    "force-checkpoint",
    "release",
    "cleanup",
)


async def ask_for_things(play: Play) -> None:
    """Checkpoints are forced, and a running item is asked back; who asks may be cut off."""
    async with play.site.client("asking") as client:
        for action in ACTIONS * 2:
            await trio.sleep(0.8)
            with suppress(remote.ConnectionLostError):
                await client.control(action, f"{JOB}.000000")


async def ask_often(play: Play) -> None:
    """Whatever an item is doing, it is asked for a checkpoint or asked back just then."""

    async def ask(turn: int, number: int) -> None:
        with suppress(remote.ConnectionLostError):
            await client.control(ACTIONS[turn % 20 == 17], f"{JOB}.{number:06d}")

    async with play.site.client("asking") as client, trio.open_nursery() as nursery:
        for turn in range(60):
            await trio.sleep(0.13)
            for number in NUMBERS:
                nursery.start_soon(ask, turn, number)


async def cancel_it(play: Play) -> None:
    """The job is cancelled, until it says so: a foreman may be killed before it has heard it."""
    await trio.sleep(1.3)
    async with play.site.client("cancelling") as client:
        while play.results is None:
            await client.cancel(JOB)
            await trio.sleep(2)


async def stop_things(play: Play) -> None:
    """A worker and the foreman are stopped in good order, and others are started."""
    await trio.sleep(1.2)
    if "w0" in play.site.workers:
        worker = play.site.workers.pop("w0")
        await worker.stop("it stops", 5.0)
        await play.site.start_worker("w0 again")
    await trio.sleep(0.3)
    if play.site.foreman is not None:
        play.site.stop_foreman()
        await trio.sleep(0.5)
        await play.site.start_foreman()


async def come_late(play: Play) -> None:
    """For a while there is no worker that may do the job, and its client is told."""
    for name in tuple(play.site.workers):
        play.kill_worker(name)
    await trio.sleep(6)
    await play.site.start_worker("late")


async def be_refused(play: Play) -> None:
    """Who does not know the secret is refused, and so is another job of the same name."""
    await trio.sleep(0.7)
    stranger = Worker(b"another secret of 16 bytes", ("x",), 1, "stranger", 1.0)
    with suppress(remote.HandshakeRefusedError, remote.ConnectionLostError):
        await stranger.run(play.site.dial("stranger"))
    with suppress(remote.HandshakeRefusedError, remote.ConnectionLostError):
        async with play.site.client("another stranger", b"another secret of 16 bytes"):
            raise AssertionError("it was let in")
    async with play.site.client("another") as client:
        await until_there(play.site)
        with pytest.raises(remote.JobRefusedError):
            await client.submit(F + "echo", [1], job_id=JOB)


async def until_there(site: Site) -> None:
    """Wait until the job is durable."""
    while True:
        with suppress(remote.UnknownJobError):
            await remote.read_job(site.store, JOB)
            return
        await trio.sleep(0.5)


NUMBERS = list(range(5))
SUMS = [functions.short_sum(n) for n in NUMBERS]
LONG = [30, 0, 25]
LONG_SUMS = [functions.short_sum(n) for n in LONG]
ENDLESS = [*NUMBERS, 500, 501]
FOREVER = list(range(500, 509))
LARGE = ["x" * 1_500_000, "y" * 1_500_000, "z" * 1_500_000, "-" * 1_500_000]
SAVING = {"checkpoint_interval_s": 0.5}

TRIES = {"attempts": 2}

SCENARIOS = (
    Scenario("one slot", "short", NUMBERS, SUMS),
    Scenario("one slot, saving", "short", NUMBERS, SUMS, {"checkpoint_interval_s": 0.0}),
    Scenario("free slots", "short", NUMBERS, SUMS, workers=(3, 3)),
    Scenario("two tries", "fail_first_try", NUMBERS, NUMBERS, TRIES, (1, 1)),
    Scenario("large", "echo", LARGE, LARGE, workers=(2,)),
    Scenario("naps", "nap", NUMBERS, NUMBERS, workers=(4,)),
    Scenario("back again", "short", NUMBERS, SUMS, {}, (1,), restart_foreman),
    Scenario("back again, saving", "short", NUMBERS, SUMS, SAVING, (2, 1), restart_foreman),
    Scenario(
        "back again, two tries", "fail_first_try", NUMBERS, NUMBERS, TRIES, (2, 1), restart_foreman
    ),
    Scenario("a worker that is away", "short", NUMBERS, SUMS, {}, (2, 2), cut_for_long),
    Scenario("asked for", "short", LONG, LONG_SUMS, SAVING, (1, 1), ask_for_things),
    Scenario("from afar", "uneven", NUMBERS, SUMS, SAVING, (2, 1), ask_often, latency_s=0.3),
    Scenario("stopped", "short", NUMBERS, SUMS, SAVING, (1, 1), stop_things),
    Scenario("no worker at first", "short", NUMBERS, SUMS, {}, (1,), come_late),
    Scenario("refused", "short", NUMBERS, SUMS, {}, (1,), be_refused),
    Scenario("cancelled", "stubborn", ENDLESS, [], {}, (4,), cancel_it, is_cancelled=True),
    Scenario(
        *("cancelled from afar", "uneven", FOREVER, [], {"checkpoint_interval_s": 0.0}, (9,)),
        *(cancel_it, True, 0.3),
    ),
    Scenario("cancelled, saving", "short", ENDLESS, [], SAVING, (2,), cancel_it, is_cancelled=True),
)
