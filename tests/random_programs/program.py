"""A random program: its sessions, its commands and its accidents, one after the other."""

from __future__ import annotations

import json
import os
import random
from pathlib import Path
from typing import Any

import attrs

from tests.fork_server import Told
from tests.random_programs.judge import Judge, ViolationError, demand
from tests.random_programs.reader import Ledger
from tests.random_programs.server import Server
from tests.random_programs.session import FAULTS, ORDERED, OUT, CommandPlan, SessionPlan, StreamPlan

MAX_STEPS = 3_000  # of tasks: a session has some hundred up to a few thousand
EXPECTED = {"BoomError"}
WITH_FAULTS = {"StoreError", "StoreConflictError", "BatchFailedError"}
WITH_DAMAGE = {"OutputsMissingError", "CannotRedoError"}
WITH_SKIPS_IN_ORDER = {"CannotRedoError"}
GROWS = ("plain", "pool", "lines", "stateful")


@attrs.define
class RandomProgram:
    """One program.

    Attributes:
        seed: Makes all of it, but for what threads and kills make of it.
        root: An empty folder.
        server: Carries out what it does.
        story: What happened, for the reader of a violation.
    """

    seed: int
    root: Path
    server: Server
    rng: random.Random = attrs.field(init=False)
    judge: Judge = attrs.field(init=False)
    streams: list[StreamPlan] = attrs.field(init=False)
    page: int = attrs.field(init=False)
    sessions: int = 0
    story: list[str] = attrs.field(factory=list[str])

    def __attrs_post_init__(self) -> None:
        rng = self.rng = random.Random(self.seed)
        self.judge = Judge(self.root, rng.choice(["sqlite", "json"]))
        self.page = rng.choice([1, 2, 3, 5, 50])
        kinds = rng.choices(
            ["plain", "pool", "lines", "stateful", "growing", "open-ended"], k=rng.randrange(1, 4)
        )
        self.streams = [
            StreamPlan(
                key=(f"{'a' * rng.randrange(1, 3)}{number}", kind),
                kind=kind,
                count=rng.randrange(1, 4) if kind == "growing" else rng.randrange(1, 15),
                width=rng.choice([1, 2, 5]),
            )
            for number, kind in enumerate(kinds)
        ]

    def run(self) -> None:
        """Run it to its end.

        Raises:
            ViolationError: something was not as it must be; its notes have the story.
        """
        try:
            for _ in range(self.rng.randrange(2, 6)):
                self._disturbed_session()
                if self.rng.random() < 0.4:
                    self._accident()
                if self.rng.random() < 0.5:
                    self._command()
            self._end()
        except BaseException as error:
            error.add_note("\n".join([f"seed {self.seed}, {self.judge.kind}", *self.story]))
            raise

    # -- sessions -----------------------------------------------------------------------------

    def _disturbed_session(self) -> None:
        rng = self.rng
        self.streams = [self._with_trouble(stream) for stream in self.streams]
        how = rng.choice(["", "kill", "kill", "kill", "stop", "cancel", "boom"])
        faults = {rng.randrange(2, 20): rng.choice(list(FAULTS))} if rng.random() < 0.2 else {}
        self._session(
            trouble=rng.choice([0.0, 0.1, 0.3]),
            end=(how, int(MAX_STEPS ** rng.random())),
            faults=faults,
            verify=rng.choice(["size", "sha256"]),
            redo_missing=rng.random() < 0.7,
            retry_failed=rng.random() < 0.3,
            fresh=rng.random() < 0.05,
        )

    def _with_trouble(self, stream: StreamPlan) -> StreamPlan:
        rng = self.rng
        grows = stream.kind in GROWS and rng.random() < 0.3
        redo = rng.random() < 0.4
        return attrs.evolve(
            stream,
            count=stream.count + (rng.randrange(1, 5) if grows else 0),
            rewind=rng.random() if rng.random() < 0.2 else None,
            redo=tuple(rng.random() for _ in range(rng.randrange(1, 5))) if redo else (),
            redo_at=rng.choice([0, 1, 2, 4]),
        )

    def _session(
        self, *, trouble: float, end: tuple[str, int], faults: dict[int, str], **settings: Any
    ) -> Told:
        self.sessions += 1
        plan = SessionPlan(
            name=f"{self.seed}.{self.sessions}",
            store=self.judge.kind,
            page=self.page,
            streams=tuple(self.streams),
            trouble=trouble,
            end=end,
            faults=faults,
            settings=settings,
        )
        self.story.append(str(plan))
        ended = self.server.run(plan, self.root)
        expected = set(WITH_FAULTS) if faults else set[str]()
        if end[0] == "stop":  # it may come with a fault, both in one group
            expected.add("RunStoppedError")
        self._judge(ended, expected, begins_again=settings.get("fresh", False))
        return ended

    def _judge(self, ended: Told, allowed: set[str], *, begins_again: bool) -> None:
        raised = [tuple(leaf) for word in ended.words("raised") for leaf in word]
        self.story.append(f"  -> {ended.code} {raised}")
        expected = {*EXPECTED, *allowed}
        if self.judge.damaged or self.judge.shortened:
            expected |= WITH_DAMAGE
        if any(self._has_skips_in_order(stream) for stream in self.streams):
            expected |= WITH_SKIPS_IN_ORDER
        for name, text, _ in raised:
            demand(name in expected or "BoomError" in text, "it raised", name, text)
        demand(ended.code != 99, "the child has an error of its own")
        self.judge.look(ended, begins_again=begins_again)

    def _end(self) -> None:
        """Sessions that nothing disturbs, until the run is complete."""
        for _ in range(3):
            self.streams = [self._at_the_end(stream) for stream in self.streams]
            ended = self._session(
                trouble=0.0,
                end=("", 0),
                faults={},
                verify="sha256",
                redo_missing=True,
                retry_failed=True,
                fresh=self._cannot_go_on(),
            )
            if ended.words("worked") == [(0,)]:
                break
        demand(ended.words("worked") == [(0,)], "it does not come to its end", ended)
        for stream in self.streams:
            ledger = self.judge.ledgers[stream.key]
            demand(ledger.is_complete, "a stream is not complete", stream.key)
            demand(not ledger.skipped, "a batch is skipped still", stream.key)
            if stream.kind != "growing":
                demand(set(ledger.standing) == set(range(stream.count)), "not all", stream.key)
        demand(self.judge.is_sound, "damage is left")
        self._manifest_agrees()

    def _at_the_end(self, stream: StreamPlan) -> StreamPlan:
        """A batch that was skipped under later ones that build on it needs a rewind."""
        rewind = 0.0 if self._has_skips_in_order(stream) else None
        return attrs.evolve(stream, rewind=rewind, redo=(), redo_at=0)

    def _has_skips_in_order(self, stream: StreamPlan) -> bool:
        ledger = self.judge.ledgers.get(stream.key)
        return stream.kind in ORDERED and ledger is not None and bool(ledger.skipped)

    def _cannot_go_on(self) -> bool:
        """Whether the last session said that a state before the damage is not kept any more."""
        return "CannotRedoError" in self.story[-1]

    def _manifest_agrees(self) -> None:
        manifest = json.loads((self.root / OUT / "manifest.json").read_bytes())
        listed = {tuple(stream["stream"]): stream for stream in manifest["streams"]}
        for key, ledger in self.judge.ledgers.items():
            said = listed.pop(key)
            files = {(o["batch"], o["path"], o["size"], o["sha256"]) for o in said["outputs"]}
            demand(files == _outputs(ledger), "the manifest's files", key)
            demand(said["records"] == ledger.records, "the manifest's records", key)
            sizes = {file["path"]: file["size"] for file in said["append_files"] if file["size"]}
            demand(sizes == ledger.sinks, "the manifest's append files", key)
        demand(not listed, "the manifest has more streams", listed)

    # -- between them -------------------------------------------------------------------------

    def _command(self) -> None:
        rng, self.sessions = self.rng, self.sessions + 1
        key = rng.choice(self.streams).key
        ledger = self.judge.ledgers.get(key)
        if ledger is None:
            return
        done = sorted({*ledger.standing, *ledger.skipped})
        kinds = ["retry", "redo", "rewind", "compact", "repair", "reset"]
        plan = CommandPlan(
            what=rng.choices(kinds, [3, 4, 4, 2, 2, 1])[0],
            store=self.judge.kind,
            page=self.page,
            key=key,
            indexes=tuple(rng.sample(done, min(len(done), rng.randrange(1, 4)))),
            to=rng.randrange(-1, max(done, default=0) + 2),
            reason=f"{self.seed}.{self.sessions} by command",
            end=("kill" if rng.random() < 0.3 else "", int(300 ** rng.random())),
        )
        if plan.what == "redo" and not done:
            return
        self.story.append(str(plan))
        self.judge.reasons.add(plan.reason)
        ended = self.server.run(plan, self.root)
        raised = {leaf[0] for word in ended.words("raised") for leaf in word}
        self.story.append(f"  -> {ended.code} {raised} {ended.words('repaired')}")
        demand(raised <= {"CannotRedoError"}, "a command raised", ended.words("raised"))
        self.judge.look(ended, begins_again=plan.what == "reset")

    def _accident(self) -> None:
        """Damage some confirmed outputs, or append files."""
        rng, folder = self.rng, self.root / OUT
        files = [
            file
            for ledger in self.judge.ledgers.values()
            for entry in ledger.standing.values()
            for file in entry.files
            if (folder / file.path).is_file()
        ]
        for file in rng.sample(files, min(len(files), rng.choice([1, 1, 2, 30]))):
            path = folder / file.path
            way = rng.choice(["removed", "shortened", "longer", "altered"])
            self.story.append(f"{file.path} is {way}")
            self.judge.damaged.add((file.path, file.sha256))
            _damage(path, way)
        sinks = [path for ledger in self.judge.ledgers.values() for path in ledger.sinks]
        if sinks and rng.random() < 0.4:
            name = rng.choice(sinks)
            path = folder / name
            size = path.stat().st_size if path.exists() else 0
            left = rng.choice([0, rng.randrange(size + 1)])
            self.story.append(f"{name} is cut to {left} of {size} bytes")
            self.judge.shortened.add(name)
            if path.exists():
                os.truncate(path, left)


def _damage(path: Path, way: str) -> None:
    content = path.read_bytes()
    if way == "removed":
        path.unlink()
    elif way == "shortened":
        path.write_bytes(content[: len(content) // 2])
    elif way == "longer":
        path.write_bytes(content + b"?")
    else:
        path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))


def _outputs(ledger: Ledger) -> set[tuple[int, str, int, str]]:
    return {
        (index, file.path, file.size, file.sha256)
        for index, entry in ledger.standing.items()
        for file in entry.files
    }


def run_program(seed: int, root: Path, server: Server) -> int:
    """Run one program; returns how many sessions and commands it had.

    Raises:
        ViolationError: see `RandomProgram.run`.
    """
    program = RandomProgram(seed, root, server)
    program.run()
    return program.sessions


__all__ = ["RandomProgram", "ViolationError", "run_program"]
