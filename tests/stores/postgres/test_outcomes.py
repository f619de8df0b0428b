"""After a connection broke, only what is known is said: copies may have landed, or land late.

The connections are fakes that answer as they are told, so these tests need no server.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime

import pytest
import trio
from trio.testing import MockClock

pytest.importorskip("psycopg", reason="psycopg is not installed")

from psycopg import DatabaseError, Error, OperationalError, errors, pq

from tests.hangs import HANG_S
from trio_ckpt import SaveOutcomeUnknownError, StoreConflictError, StoreError
from trio_ckpt.abc import Checkpoint, Fold, Pruned, RunKey
from trio_ckpt.stores._postgres import connection as connecting, prune, save as saving
from trio_ckpt.stores._postgres.address import parse_address
from trio_ckpt.stores._postgres.blobs import PART_BYTES
from trio_ckpt.stores._postgres.connection import (
    NONE,
    PostgresConnection,
    Row,
    Statement,
    Values,
    is_broken,
)
from trio_ckpt.stores._postgres.owning import GRACE_S, PAST_LEASE_S, OwnedRun
from trio_ckpt.stores._postgres.save import APPEND_ONE, RENEW, SAVE
from trio_ckpt.stores._postgres.schema import ServerFacts
from trio_ckpt.stores._postgres.store import PostgresStore, _Line

SECRET = "s3cr3t"
ADDRESS = parse_address(f"postgresql://me:{SECRET}@127.0.0.1:1/db?lease_s=300")
KEY = RunKey("run", 0, 1)
STREAM = '["a"]'

CUT = OperationalError(f"cut, with {SECRET}")
REFUSALS = [
    errors.QueryCanceled("57014"),
    errors.LockNotAvailable("55P03"),
    errors.DiskFull("53100"),
    errors.OutOfMemory("53200"),
    DatabaseError("of an unknown kind"),
]

Answers = list[int | Error]


class Scripted(PostgresConnection):
    """Gives the answers that it is told to, and notes what was sent.

    Attributes:
        answers: To saves, in their order; the last one also to all that follow.
        rows: What each other statement returns, by a part of its text.
        sent: The names of the saves that were sent.
    """

    def __init__(self, answers: Answers, rows: dict[str, list[Row] | Error]) -> None:
        super().__init__(ADDRESS, "full")
        self.answers, self.rows, self.sent = answers, rows, list[str]()

    def run(self, statement: Statement, values: Sequence[bytes]) -> int:
        self.sent.append(statement.name)
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        if isinstance(answer, Error):
            raise answer
        return answer

    def query(self, statement: str, values: Values = NONE) -> list[Row]:
        answer = next((rows for part, rows in self.rows.items() if part in statement), [])
        if isinstance(answer, Error):
            raise answer
        return answer


@pytest.fixture(autouse=True)
def _without_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connecting, "_FIRST_PAUSE_S", 0.0)


def owned_run() -> OwnedRun:
    return OwnedRun(1, 1, 0, 0, 5, 0, 1, False, 7, heads={STREAM: saving.PostgresHead(1, 5, 5)})


def save(
    connection: PostgresConnection, owned: OwnedRun, *, count: int = 1
) -> list[Exception | None]:
    group = [Checkpoint(STREAM, 6 + n, b"x") for n in range(count)]
    return saving.save_group(connection, owned, KEY, group, [], None)


MOVED_PAST = {"position = position + 1": [(6,)], "SELECT owner": [(1, 0, 6, False)]}
LANDED = {"SELECT owner": [(1, 0, 6, True)]}
TAKEN_OVER = {"SELECT owner": [(2, 0, 6, True)]}


@pytest.mark.parametrize("refusal", REFUSALS, ids=str)
def test_a_copy_that_landed_is_not_said_to_be_refused(refusal: Error) -> None:
    connection = Scripted([CUT, refusal, 1], dict(LANDED))
    assert save(connection, owned_run()) == [None]
    assert connection.sent == [APPEND_ONE.name, APPEND_ONE.name, RENEW.name]


@pytest.mark.parametrize("refusal", REFUSALS, ids=str)
def test_a_refused_copy_ends_those_before_it_and_says_so(refusal: Error) -> None:
    owned = owned_run()
    with pytest.raises(StoreError, match="nothing was saved") as raised:
        save(Scripted([CUT, refusal], dict(MOVED_PAST)), owned)
    assert type(raised.value) is StoreError
    assert owned.position == 6


@pytest.mark.parametrize("refusal", REFUSALS, ids=str)
def test_who_may_not_ask_after_a_break_does_not_know(refusal: Error) -> None:
    for part in ("position = position + 1", "SELECT owner"):
        with pytest.raises(SaveOutcomeUnknownError) as raised:
            save(Scripted([CUT, refusal], {part: refusal}), owned_run())
        assert SECRET not in str(raised.value)


def test_a_save_that_is_refused_at_once_was_not_saved() -> None:
    connection = Scripted([errors.DiskFull("full")], {})
    with pytest.raises(errors.DiskFull):
        save(connection, owned_run())
    assert connection.sent == [APPEND_ONE.name]


def test_an_undone_copy_is_sent_again() -> None:
    connection = Scripted([CUT, errors.DeadlockDetected("40P01"), 1], {})
    assert save(connection, owned_run()) == [None]
    assert len(connection.sent) == 3


def test_a_takeover_during_a_break_leaves_the_outcome_unknown() -> None:
    with pytest.raises(SaveOutcomeUnknownError, match="by the next one"):
        save(Scripted([CUT, 0], dict(TAKEN_OVER)), owned_run())
    with pytest.raises(StoreConflictError, match="nothing was saved"):
        save(Scripted([0], dict(TAKEN_OVER)), owned_run())
    # It came between the read and the proof.
    with pytest.raises(SaveOutcomeUnknownError, match="by the next one"):
        save(Scripted([CUT, 0], dict(LANDED)), owned_run())


def test_a_save_that_is_found_is_proved_by_a_commit() -> None:
    connection = Scripted([CUT, 0, CUT, 0, 1], dict(LANDED))
    assert save(connection, owned_run()) == [None]
    copy, proof = APPEND_ONE.name, RENEW.name
    assert connection.sent == [copy, copy, proof, copy, proof]


@pytest.mark.parametrize("folds", [[], [Fold(STREAM, 5, b"sum")]])
@pytest.mark.parametrize("problem", [CUT, errors.QueryCanceled("57014")], ids=str)
def test_a_late_renewal_says_nothing_of_the_owner(
    monkeypatch: pytest.MonkeyPatch, folds: list[Fold], problem: Error
) -> None:
    monkeypatch.setattr(saving, "RETRY_S", 0.0)
    connection = Scripted([CUT, problem], dict(TAKEN_OVER))
    with pytest.raises(type(problem)):
        saving.save_group(connection, owned_run(), KEY, [], folds, None)
    connection = Scripted([CUT, 1], {})
    assert saving.save_group(connection, owned_run(), KEY, [], folds, None) == []
    assert connection.sent == [SAVE.name if folds else RENEW.name] * 2
    with pytest.raises(StoreConflictError):
        saving.save_group(Scripted([CUT, 0], {}), owned_run(), KEY, [], folds, None)


class Queried(Scripted):
    """Its queries for one statement fail as they are told to, one after another."""

    def __init__(
        self, part: str, failures: list[Error], rows: dict[str, list[Row] | Error] | None = None
    ) -> None:
        super().__init__([1], rows or {})
        self.part, self.failures = part, failures

    def query(self, statement: str, values: Values = NONE) -> list[Row]:
        if self.part in statement and self.failures:
            raise self.failures.pop(0)
        return super().query(statement, values)


CHANGES: list[tuple[str, Callable[[PostgresConnection, OwnedRun], object]]] = [
    ("SET first", lambda connection, owned: prune.prune(connection, owned, KEY, 0)),
    ("attached", lambda connection, owned: prune.drop_blobs(connection, owned, KEY, STREAM, [1])),
]


@pytest.mark.parametrize(("part", "change"), CHANGES, ids=["prune", "drop"])
def test_a_change_of_unknown_outcome_is_said_to_be_unknown(
    part: str, change: Callable[[PostgresConnection, OwnedRun], object]
) -> None:
    with pytest.raises(errors.QueryCanceled):
        change(Queried(part, [errors.QueryCanceled("57014")]), owned_run())
    with pytest.raises(SaveOutcomeUnknownError) as raised:
        change(Queried(part, [CUT, errors.QueryCanceled("57014")]), owned_run())
    assert SECRET not in str(raised.value)


@pytest.mark.parametrize(("part", "change"), CHANGES, ids=["prune", "drop"])
def test_a_takeover_after_a_break_leaves_a_change_unknown(
    part: str, change: Callable[[PostgresConnection, OwnedRun], object]
) -> None:
    fenced: dict[str, list[Row] | Error] = {"SET first": [], "attached": [(0, 0)]}
    with pytest.raises(StoreConflictError, match="nothing was"):
        change(Queried(part, [], fenced), owned_run())
    with pytest.raises(SaveOutcomeUnknownError, match="does not have the run any more"):
        change(Queried(part, [CUT], fenced), owned_run())


@pytest.mark.parametrize("problem", [CUT, errors.DiskFull("53100")], ids=str)
def test_what_fails_after_a_change_does_not_undo_it(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, problem: Error
) -> None:
    monkeypatch.setattr(PostgresConnection.repeat, "__defaults__", (0.0,))  # it gives up at once
    done: dict[str, list[Row] | Error] = {
        "SET first": [(2, 20, True)],
        "RETURNING a.digest": [(1, 1)],
        "SELECT": problem,  # all other statements have one
    }
    assert prune.prune(Scripted([1], done), owned_run(), KEY, 0) == Pruned(1, 2, 20)
    long_run, done["SET first"] = owned_run(), [(3,)]
    long_run.position = prune.CHUNK + 1
    assert prune.prune(Scripted([1], done), long_run, KEY, 0) == Pruned(1, 0, 0)
    assert prune.drop_blobs(Scripted([1], done), owned_run(), KEY, STREAM, [1]) == 0
    assert caplog.text.count("are left until its next lock or prune") == 3
    assert SECRET not in caplog.text


def test_nothing_is_saved_to_a_generation_that_may_be_pruned() -> None:
    owned = owned_run()
    connection = Queried("SET first", [CUT, errors.QueryCanceled("57014")])
    with pytest.raises(SaveOutcomeUnknownError):
        prune.prune(connection, owned, KEY, 0)
    with pytest.raises(StoreConflictError):
        save(connection, owned)
    assert connection.sent == []


@pytest.mark.parametrize(
    ("severity", "broken"), [("ERROR", False), ("FATAL", True), ("PANIC", True)]
)
@pytest.mark.parametrize(
    "field", [pq.DiagnosticField.SEVERITY_NONLOCALIZED, pq.DiagnosticField.SEVERITY]
)
def test_an_error_that_ends_the_session_breaks_it(
    severity: str, broken: bool, field: pq.DiagnosticField
) -> None:
    fields = {field: severity.encode(), pq.DiagnosticField.SQLSTATE: b"53200"}

    class Failure:
        """The result of a statement that failed."""

        status = pq.ExecStatus.FATAL_ERROR

        def error_field(self, name: pq.DiagnosticField) -> bytes | None:
            return fields.get(name)

        def get_error_message(self, encoding: str = "utf-8") -> str:
            return "out of memory"

    with pytest.raises(errors.OutOfMemory) as raised:
        connecting._number_of(Failure())  # type: ignore[arg-type]  # all that is read of one
    assert is_broken(raised.value) is broken


TAKEN: dict[str, list[Row] | Error] = {
    "ON CONFLICT (run_id)": [(1, 1, 0, 0, 0, 0, 0, False, 7, True)],
}


def opened(connection: PostgresConnection) -> PostgresStore:
    facts = ServerFacts(150000, "15", True, True, "on", "", False, False, 0, 10)
    line = _Line(connection, "writes")
    return PostgresStore(ADDRESS, line, facts, mac_key=None, inline_limit_bytes=1)


async def test_a_mark_that_cannot_be_set_fails_no_lock(caplog: pytest.LogCaptureFixture) -> None:
    class Full(Scripted):
        """It has no room for locks."""

        def query(self, statement: str, values: Values = NONE) -> list[Row]:
            if values.get("is_marking"):
                raise errors.OutOfMemory(f"53200, with {SECRET}")
            return super().query(statement, values)

    store = opened(Full([1], dict(TAKEN)))
    async with store.lock_run("run") as owner:
        assert await store.save(RunKey("run", 0, owner), []) == []
    await store.aclose()
    assert "was not set" in caplog.text
    assert SECRET not in caplog.text


class Silent(Scripted):
    """A run whose owner shows no sign of life; it is taken once its lease or its grace is over."""

    def __init__(self, lease_left_s: float, start: float) -> None:
        left_s, now = lease_left_s, datetime.now(UTC)
        super().__init__(
            [1],
            {
                "split_part(host": [("elsewhere", 7, now, left_s)],
                "SELECT owner, expires_at": [(1, now, "elsewhere", 7, left_s)],
                "pg_try_advisory_lock": [(True,)],
            },
        )
        self.clock, self.ends_at = trio.lowlevel.current_clock(), start + left_s

    def query(self, statement: str, values: Values = NONE) -> list[Row]:
        if "ON CONFLICT (run_id)" not in statement:
            return super().query(statement, values)
        has_ended = self.clock.current_time() > self.ends_at
        if has_ended or values["dead_owner"] == 1:
            return [(1, 2, 0, 0, 0, 0, 0, False, 7, True)]
        return []


@pytest.mark.parametrize(
    ("lease_left_s", "waited_s"),
    [(200.0, 300 / 3 + GRACE_S), (101.5, 300 / 3 + GRACE_S), (12.0, 12 + PAST_LEASE_S)],
)
async def test_no_owner_is_waited_for_beyond_its_lease(
    autojump_clock: MockClock, lease_left_s: float, waited_s: float
) -> None:
    began = trio.current_time()
    store = opened(Silent(lease_left_s, began))
    async with store.lock_run("run") as owner:
        assert owner == 2
        assert trio.current_time() - began == pytest.approx(waited_s, abs=1e-6)
    await store.aclose()


@pytest.fixture
def hanging() -> Iterator[threading.Event]:
    """What renewals wait for; they go on at the end of the test."""
    event = threading.Event()
    ending = threading.Timer(60, event.set)  # else a test that fails does not end
    ending.start()
    yield event
    event.set()
    ending.cancel()


async def test_no_end_waits_behind_a_renewal_that_hangs(hanging: threading.Event) -> None:
    begun = threading.Event()

    class Hanging(Scripted):
        """Its saves do not end."""

        def run(self, statement: Statement, values: Sequence[bytes]) -> int:
            begun.set()
            hanging.wait()
            return 1

    store = opened(Hanging([1], dict(TAKEN)))
    async with store.lock_run("run") as owner, trio.open_nursery() as nursery:
        nursery.start_soon(store.save, RunKey("run", 0, owner), [])
        await trio.to_thread.run_sync(begun.wait)
        nursery.cancel_scope.cancel()
    await store.aclose()
    assert not hanging.is_set()


@pytest.mark.parametrize("part", [".parts VALUES", ".blobs (run"], ids=["upload", "name"])
async def test_a_put_that_hangs_is_abandoned(hanging: threading.Event, part: str) -> None:
    begun, dropped, parts = threading.Event(), threading.Event(), list[str]()

    class Hanging(Scripted):
        """What is put does not end."""

        def query(self, statement: str, values: Values = NONE) -> list[Row]:
            if part in statement:
                begun.set()
                hanging.wait()
            if ".parts VALUES" in statement:
                parts.append(statement)
            elif "DELETE FROM {s}.parts p WHERE run" in statement:
                dropped.set()
            return super().query(statement, values)

    store = opened(Hanging([1], dict(TAKEN)))
    store._uploading.connection = store._writing.connection
    is_large = "parts" in part
    payload = [bytes(PART_BYTES) for _ in range(9)] if is_large else b"small"
    async with store.lock_run("run") as owner, trio.open_nursery() as nursery:
        nursery.start_soon(store.put_blob, RunKey("run", 0, owner), payload)
        await trio.to_thread.run_sync(begun.wait)
        nursery.cancel_scope.cancel()
    await store.aclose()
    assert not hanging.is_set()
    hanging.set()
    if is_large:
        assert await trio.to_thread.run_sync(dropped.wait, HANG_S)
    assert len(parts) == is_large, "it goes on with the next part"
