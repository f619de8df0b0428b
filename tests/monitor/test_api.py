"""What the REST interface answers: of a run seen from inside, and of a store from outside."""

# ruff: noqa: PT012, SIM117  (what a whole block does is the claim)

from __future__ import annotations

import json
from pathlib import Path
from typing import Any
from urllib.parse import quote

import attrs
import msgspec
import pytest
import trio
from msgspec.structs import replace

from tests.cli.tools import make_damaged, make_gh
from tests.hangs import HANG_S
from tests.monitor.client import ACTION_SECRET, Client, serving
from tests.opening import begin
from trio_ckpt import (
    BatchFailedError,
    CheckpointCoordinator,
    RetryRule,
    RetryTable,
    RunStoppedError,
    Status,
    monitor,
)
from trio_ckpt._journal.live_view import LiveToken, LiveView, LiveWaiting
from trio_ckpt._journal.record import ErrorInfo
from trio_ckpt._journal.statistics import MIN_STUCK_AFTER_S, STUCK_AFTER_S
from trio_ckpt._journal.summary import read_run_status
from trio_ckpt._tokens.token import touch
from trio_ckpt.abc import RunSummary
from trio_ckpt.monitor._answers import Done, ErrorLine, FailureLine, make_answer, moment
from trio_ckpt.monitor._api import MAX_LISTED_RUNS
from trio_ckpt.monitor._views import (
    RunSnapshot,
    run_line,
    stuck_after,
    token_lines,
)
from trio_ckpt.stores import MemoryStore, open_store


async def collect(run: Any, *key: str, count: int = 3) -> None:
    async with run.open_stream(*key) as stream:
        async for batch in stream.batches(range(count)):
            batch.spend(cost_usd=0.25)
            batch.complete(records=10, totals={"words": 5})


# -- a run seen from inside ------------------------------------------------------------------------


async def test_a_run_seen_from_inside() -> None:
    async with begin() as run:
        await collect(run, "a", "b")
        async with run.open_stream("c") as stream, stream.open_batch() as batch:
            async with serving(run) as (client, _):
                (line,) = (await client.get("/api/runs")).json["runs"]
                assert (line["run"], line["seen"], line["status"]) == ("r", "inside", "in_progress")
                assert line["running"]
                assert line["batches"]["confirmed"] == 3
                assert (line["records"], line["produced"]) == (30, {"words": 15})
                assert line["spent"] == line["spent_on_confirmed"] == {"cost_usd": 0.75}
                assert line["pending"] == 1
                assert line["session"]["confirmed"] == 3
                assert line["streams"]["complete"] == line["streams"]["in_progress"] == 1
                (token,) = (await client.get("/api/runs/r/pending")).json["tokens"]
                assert token["stream"] == ["c"]
                assert (token["state"], token["stuck"], token["stale"]) == ("pending", False, False)
                batch.complete()
                (token,) = (await client.get("/api/runs/r/pending")).json["tokens"]
                assert token["state"] == "completed"
                numbers = (await client.get("/api/runs/r/statistics")).json
                assert numbers["session_confirmed"] == 3
                assert numbers["groups"] == {
                    **dict.fromkeys(["pending", "failed", "interrupted"], 0),
                    "complete": 1,
                    "in_progress": 1,
                }


async def test_what_is_reserved_and_noted_is_shown_apart() -> None:
    store = MemoryStore()
    async with begin(store) as run:
        async with run.open_stream("c") as stream, stream.open_batch() as batch:
            await batch.note("job", "j-1", usd=0.5)
            await batch.reserve(usd=0.25)
            async with serving(run) as (inside, _), serving(store) as (outside, _):
                for client in (inside, outside):
                    detail = (await client.get("/api/runs/r")).json["run"]
                    numbers = (await client.get("/api/runs/r/statistics")).json
                    (line,) = (await client.get("/api/runs")).json["runs"]
                    for answer in (detail, numbers, line):
                        assert answer["noted"] == {"usd": 0.5}
                        assert answer["assumed"] == {"usd": 0.25}
                        assert answer["spent"] == {}
            batch.spend(usd=0.125)
            batch.complete()


async def test_only_the_run_that_is_watched_is_shown() -> None:
    store = MemoryStore()
    async with begin(store, "other") as other:
        await collect(other, "s")
    async with begin(store) as run:
        async with serving(run) as (client, _):
            assert [one["run"] for one in (await client.get("/api/runs")).json["runs"]] == ["r"]
            reply = await client.get("/api/runs/other")
            assert (reply.status, reply.code) == (404, "not_found")


async def test_failures_are_told_the_worst_first() -> None:
    async with begin() as run:
        table = RetryTable([RetryRule((KeyError,), attempts=2, backoff_s=1_000)])
        async with run.open_stream("s") as stream:
            async for batch in stream.batches(range(2)):
                batch.skip("no such page") if batch.index else batch.complete()
        with pytest.raises(BatchFailedError):
            async with run.open_stream("dead", retry=table) as stream:
                async for batch in stream.batches(range(1)):
                    batch.fail(ValueError("torn"))
        with trio.move_on_after(0.2):
            async with run.open_stream("slow", retry=table) as stream:
                async for batch in stream.batches(range(1)):
                    batch.fail(KeyError("busy"))
        async with serving(run) as (client, _):
            found = (await client.get("/api/runs/r/failures")).json
        told = [(one["name"], one["batch_index"], one["outcome"]) for one in found["failures"]]
        assert told == [
            ("dead", None, "failed"),
            ("dead", 0, "may run again"),
            ("slow", 0, "may run again"),
            ("s", 1, "skipped"),
        ]
        assert found["failures"][0]["error"]["type"] == "ValueError"
        assert found["failures"][3]["error"]["message"] == "no such page"


# -- a store seen from outside ---------------------------------------------------------------------


async def test_a_store_seen_from_outside(tmp_path: Path) -> None:
    await trio.to_thread.run_sync(make_gh, tmp_path / "gh.ckpt")
    store = await open_store(tmp_path / "gh.ckpt")
    async with serving(store) as (client, _):
        runs = (await client.get("/api/runs")).json
        (line,) = runs["runs"]
        assert (line["run"], line["seen"], line["running"]) == ("gh-2025", "stored", False)
        assert (line["pending"], line["rate_per_s"]) == (None, None)
        assert line["status"] == "interrupted"
        assert line["exit_code"] == 75
        assert line["error"]["type"] == "ForbiddenError"
        assert line["session"]["how"] == "ended"
        detail = (await client.get("/api/runs/gh-2025")).json
        assert [one["status"] for one in detail["streams"]] == [
            *("failed", "failed", "interrupted", "pending", "complete", "complete")
        ]
        assert len(detail["groups"]) == 4
        sessions = (await client.get("/api/runs/gh-2025/sessions")).json
        assert sessions["sessions"][0]["confirmed"] == 25
    await store.aclose()


async def test_a_run_of_another_process_is_seen_with_its_pending_tokens(tmp_path: Path) -> None:
    """Another handle onto the store stands for the other process."""
    other = await open_store(tmp_path / "s")
    async with begin(tmp_path / "s") as run:
        async with run.open_stream("a") as stream, stream.open_batch() as batch:
            async with serving(other, stuck_after_s=0.0) as (client, _):
                with trio.fail_after(HANG_S):
                    while (found := (await client.get("/api/runs/r/pending")).json)["total"] == 0:
                        await trio.sleep(0.1)
                        touch(run.coordinator.registry)
                assert found["seen"] == "published"
                assert [token["stuck"] for token in found["tokens"]] == [True]
                (line,) = (await client.get("/api/runs")).json["runs"]
                assert (line["seen"], line["running"], line["stuck"]) == ("published", True, 1)
                text = (await client.get("/metrics")).body.decode()
                assert 'ckpt_pending_tokens{run="r"} 1.0' in text
                payload = await other.read_live("r")
            batch.complete()
    await other.publish("r", payload)  # as a process leaves it that is killed
    async with serving(other) as (client, _):
        found = (await client.get("/api/runs/r/pending")).json
        assert found["seen"] == "stored"
        assert [(one["stale"], one["stuck"]) for one in found["tokens"]] == [(True, False)]
        (line,) = (await client.get("/api/runs")).json["runs"]
        assert (line["pending"], line["stuck"], line["running"]) == (None, 0, False)
    await other.aclose()


async def test_what_is_saved_meanwhile_is_seen(tmp_path: Path) -> None:
    other = await open_store(tmp_path / "s")
    async with serving(other) as (client, _):
        assert (await client.get("/api/runs")).json["runs"] == []
        async with begin(tmp_path / "s") as run:
            for count in (3, 7):
                await collect(run, f"s{count}", count=count)
                with trio.fail_after(HANG_S):
                    while True:
                        runs = (await client.get("/api/runs")).json["runs"]
                        if runs and runs[0]["batches"]["confirmed"] == sum({3, count}):
                            break
                        await trio.sleep(0.1)
    await other.aclose()


async def test_a_damaged_run_hides_no_other(tmp_path: Path) -> None:
    url = str(tmp_path / "s")
    await trio.to_thread.run_sync(make_damaged, url, "bad")
    async with begin(url, "good") as run:
        await collect(run, "s")
    store = await open_store(url)
    async with serving(store) as (client, _):
        runs = (await client.get("/api/runs")).json
        assert [one["run"] for one in runs["runs"]] == ["good"]
        assert [one["run"] for one in runs["unreadable"]] == ["bad"]
        reply = await client.get("/api/runs/bad")
        assert (reply.status, reply.code) == (500, "damaged")
        assert (await client.get("/metrics")).status == 200
    await store.aclose()


# -- pages -----------------------------------------------------------------------------------------


async def test_runs_come_by_pages() -> None:
    store = MemoryStore()
    for index in range(5):
        async with begin(store, f"run-{index}"):
            pass
    async with serving(store) as (client, _):
        seen: list[str] = []
        after: str | None = ""
        while after is not None:
            page = (await client.get(f"/api/runs?limit=2&after={after}")).json
            assert page["total"] == 5
            seen += [one["run"] for one in page["runs"]]
            after = page["next"]
    assert seen == [f"run-{index}" for index in range(5)]


async def test_streams_and_history_come_by_pages() -> None:
    async with begin() as run:
        for index in range(5):
            await collect(run, f"s{index}", count=4)
        async with serving(run) as (client, _):
            page = (await client.get("/api/runs/r/streams?limit=3")).json
            assert (len(page["streams"]), page["total"], page["next"]) == (3, 5, 3)
            page = (await client.get("/api/runs/r/streams?limit=3&after=3")).json
            assert (len(page["streams"]), page["next"]) == (2, None)
            key, seen, cursor = quote('["s1"]'), list[int](), ""
            while cursor is not None:
                more = f"&cursor={cursor}" if cursor else ""
                page = (await client.get(f"/api/runs/r/history?stream={key}&limit=2{more}")).json
                seen += [one["sequence"] for one in page["checkpoints"]]
                cursor = page["next"]
            assert seen == [5, 4, 3, 2, 1]
            assert page["checkpoints"][-1]["kind"] == "batch"
            assert page["checkpoints"][-1]["spent"] == {"cost_usd": 0.25}


async def test_runs_that_have_not_changed_are_not_read_again() -> None:
    reads: list[str] = []

    class Counting(MemoryStore):
        async def load_run(self, run_id: str, generation: int | None = None) -> Any:
            reads.append(run_id)
            return await super().load_run(run_id, generation)

        async def list_runs(self, *bounds: Any) -> tuple[RunSummary, ...]:
            """As an older version has left them, without summaries."""
            page = await super().list_runs(*bounds)
            return tuple(replace(run, summary=b"") for run in page)

    store = Counting()
    for index in range(MAX_LISTED_RUNS + 5):
        async with begin(store, f"run-{index:03}"):
            pass
    reads.clear()
    async with serving(store) as (client, _):
        for _ in range(3):
            assert len((await client.get("/api/runs?limit=100")).json["runs"]) == 100
        assert len(reads) == 100
        async with begin(store, "run-007") as run:
            await collect(run, "s")
        with trio.fail_after(HANG_S):
            while True:
                if (await client.get("/api/runs/run-007")).json["streams_total"]:
                    break


BAD = {
    "/api/runs?limit=0": "limit is from 1 to 200",
    "/api/runs?limit=201": "limit is from 1 to 200",
    "/api/runs?limit=-1": "limit is a whole number",
    "/api/runs?limit=1e3": "limit is a whole number",
    "/api/runs?limit=%D9%A3": "limit is a whole number",
    "/api/runs?limit=1&limit=2": "given twice",
    "/api/runs?what=1": "no parameter 'what'",
    "/api/runs?limit": "cannot be read",
    "/api/runs?after=%FF": "cannot be read",
    "/api/runs?after=" + "x" * 201: "at most 200 characters",
    "/api/runs/" + "x" * 201: "at most 200 characters",
    "/api/runs/r/history": "stream is missing",
    "/api/runs/r/history?stream=a": "JSON array of texts",
    "/api/runs/r/history?stream=[1]": "JSON array of texts",
    "/api/runs/r/history?stream=" + "[" * 1000: "JSON array of texts",
    "/api/runs/r/history?stream=[%22s%22]&cursor=../../etc": "cursor",
    "/api/runs/r/streams?after=99999999999999999999": "after is a whole number",
    "/metrics?x=1": "no parameter 'x'",
    "/api/events?run=a/b": "run",
}


@pytest.mark.parametrize("target", BAD)
async def test_a_bad_parameter_is_named(target: str) -> None:
    async with begin() as run:
        async with serving(run) as (client, _):
            reply = await client.get(target)
    assert (reply.status, reply.code) == (400, "bad_parameter")
    assert BAD[target] in reply.json["error"]["message"]


HOSTILE_IDS = [
    "..",
    "%2e%2e",
    "..%2f..%2fetc%2fpasswd",
    "%00",
    "%0a",
    "'; DROP TABLE log; --",
    "💣",
]


@pytest.mark.parametrize("name", HOSTILE_IDS)
async def test_a_hostile_id_is_no_run(name: str, tmp_path: Path) -> None:
    store = await open_store(tmp_path / "s")
    async with serving(store, allow_actions=True) as (client, _):
        actor = Client(client.port, ACTION_SECRET)
        written = quote(name, safe="%")
        for target in (
            f"/api/runs/{written}",
            f"/api/runs/{written}/history?stream=%5B%22s%22%5D",
            f"/api/checkpoints/jobs/{written}",
            f"/api/checkpoints/tasks/{written}",
        ):
            assert (await client.get(target)).status in (400, 404)
        for action in ("retry", "stop", "prune?keep=1"):
            reply = await actor.post(f"/api/runs/{written}/{action}")
            assert reply.status in (400, 404, 409)
    assert not list((tmp_path / "s").glob("*passwd*"))
    assert await store.list_runs() == ()
    await store.aclose()


# -- actions ---------------------------------------------------------------------------------------


async def test_a_run_is_stopped_in_good_order() -> None:
    with pytest.raises(RunStoppedError) as caught:
        async with begin() as run:
            async with serving(run, allow_actions=True) as (client, _):
                actor = Client(client.port, ACTION_SECRET)
                reply = await actor.post("/api/runs/r/retry")
                assert (reply.status, reply.code) == (409, "not_possible")
                assert not run.is_stopping
                async with run.open_stream("s") as stream, stream.open_batch() as batch:
                    assert (await client.get("/api/runs")).json["runs"][0]["stopping"] is None
                    assert (await actor.post("/api/runs/r/stop")).status == 202
                    assert run.is_stopping
                    stopping = (await client.get("/api/runs")).json["runs"][0]["stopping"]
                    assert (stopping["open"], stopping["batches"]) == (1, ["s batch 0"])
                    assert stopping["until"] is not None
                    batch.complete()
    assert caught.value.exit_code == 75


async def test_what_failed_is_put_back_to_work_and_archives_are_removed(tmp_path: Path) -> None:
    store = await open_store(tmp_path / "s")
    for fresh in (False, True):
        async with begin(store, fresh=fresh) as run:
            async with run.open_stream("s", on_fail="record") as stream:
                await stream.fail("forbidden", retryable=False)
    async with serving(store, allow_actions=True) as (client, _):
        actor = Client(client.port, ACTION_SECRET)
        assert (await actor.post("/api/runs/r/retry")).json["count"] == 1
        assert (await actor.post("/api/runs/r/prune?keep=1")).json["count"] == 1
        assert (await actor.post("/api/runs/r/prune?keep=0")).status == 400
        reply = await actor.post("/api/runs/r/stop")
        assert (reply.status, reply.code) == (409, "not_possible")
        async with begin(tmp_path / "s"):
            reply = await actor.post("/api/runs/r/retry")
            assert (reply.status, reply.code) == (409, "locked")
    view = await store.load_run("r")
    assert view is not None
    assert view.streams["s",].progress.status is Status.INTERRUPTED
    await store.aclose()


# -- views -----------------------------------------------------------------------------------------


async def a_snapshot(**fields: Any) -> RunSnapshot:
    store = MemoryStore()
    async with begin(store) as run:
        await collect(run, "s")
        look = await read_run_status(store, "r")
    assert look is not None
    live = LiveView(
        at=1_000.0,
        owner=1,
        tokens=(LiveToken(("s",), 3, "pending", 900.0), LiveToken(("s",), 4, "pending", 995.0)),
        pending=2,
        session_confirmed=3,
        session_s=10.0,
        rate_per_s=fields.pop("rate_per_s", None),
        eta_s=None,
        waiting=(LiveWaiting(("s",), "slow down", 1_030.0),),
    )
    return RunSnapshot(look, live, "published", 1_000.0, **fields)


async def test_what_is_stuck_follows_from_what_is_usual() -> None:
    assert stuck_after(await a_snapshot()) == STUCK_AFTER_S
    assert stuck_after(await a_snapshot(rate_per_s=0.1)) == 200.0  # 2 in flight at 0.1/s: 20 s
    assert stuck_after(await a_snapshot(rate_per_s=1_000.0)) == MIN_STUCK_AFTER_S
    assert stuck_after(await a_snapshot(stuck_after_s=5.0)) == 5.0
    snapshot = await a_snapshot()
    assert [token.stuck for token in token_lines(snapshot, 10)] == [True, False]
    line = run_line(snapshot.glance)
    assert line.stuck == 1
    assert line.waiting[0].reason == "slow down"


async def test_what_waits_for_its_next_attempt_is_not_stuck() -> None:
    snapshot = await a_snapshot(stuck_after_s=60.0)
    held_back = LiveToken(("s",), 3, "pending", 500.0, 600.0, 1_300.0)
    again = LiveToken(("s",), 4, "pending", 500.0, 990.0)
    slow = LiveToken(("s",), 5, "pending", 500.0, 900.0)
    set_back = LiveToken(("s",), 6, "pending", 4_100.0, 900.0)  # made before the clock was set back
    assert snapshot.live is not None
    live = replace(snapshot.live, tokens=(held_back, again, slow, set_back), pending=4)
    snapshot = attrs.evolve(snapshot, live=live)
    lines = token_lines(snapshot, 10)
    assert [line.stuck for line in lines] == [False, False, True, True]
    assert [line.waits_until for line in lines] == [moment(1_300.0), None, None, None]
    begun = [moment(at) for at in (600.0, 990.0, 900.0, 900.0)]
    assert [line.begun_at for line in lines] == begun
    assert [line.age_s for line in lines] == [500.0, 500.0, 500.0, 0.0]
    assert run_line(snapshot.glance).stuck == 2


async def test_everything_is_json_that_any_program_reads() -> None:
    async with begin() as run:
        await collect(run, "org/ümlaut \u202e\U0001f4a3", "<b>")
        async with serving(run) as (client, _):
            for target in ("/api/runs", "/api/runs/r", "/api/runs/r/streams", "/openapi.json"):
                reply = await client.get(target)
                assert reply.headers["content-type"] == "application/json"
                text = reply.body.decode()
                assert json.loads(text, parse_constant=lambda name: pytest.fail(name))
                assert "\n" not in text  # one line: it may travel as an event


# -- a coordinator alone ---------------------------------------------------------------------------


async def test_the_tokens_of_a_coordinator_are_shown_by_run() -> None:
    async with CheckpointCoordinator() as coordinator:
        first = coordinator.create_checkpoint("one", 0)
        second = coordinator.create_checkpoint("one", 1, stream=("a", "b"))
        other = coordinator.create_checkpoint("two", 7)
        async with serving(coordinator, allow_actions=True) as (client, _):
            lines = (await client.get("/api/runs")).json["runs"]
            assert [(line["run"], line["pending"]) for line in lines] == [("one", 2), ("two", 1)]
            assert {(line["seen"], line["status"]) for line in lines} == {("inside", "in_progress")}
            tokens = (await client.get("/api/runs/one/pending")).json["tokens"]
            told = [(token["stream"], token["batch_index"], token["state"]) for token in tokens]
            assert told == [([], 0, "pending"), (["a", "b"], 1, "pending")]
            assert (await client.get("/api/runs/one")).json["pending_total"] == 2
            assert b'ckpt_pending_tokens{run="one"} 2.0' in (await client.get("/metrics")).body
            assert (await client.get("/api/runs/three")).status == 404
            actor = Client(client.port, ACTION_SECRET)
            for path in ("stop", "retry", "prune?keep=1"):
                assert (await actor.post(f"/api/runs/one/{path}")).status == 409
            assert (await client.get("/api/runs/one/sessions")).status in (200, 404)
            for token in (first, second, other):
                token.complete()
            lines = (await client.get("/api/runs")).json["runs"]
            assert [(line["run"], line["pending"]) for line in lines] == [("one", 0), ("two", 0)]


@pytest.mark.parametrize("thing", ["gh.ckpt", 5, None])
async def test_what_is_neither_run_nor_store_nor_coordinator_is_refused(thing: Any) -> None:
    with pytest.raises(TypeError, match="an open run, an open store or a coordinator"):
        await monitor.serve(thing, port=0)


def test_an_answer_is_made_of_what_fits_its_fields() -> None:
    error = ErrorInfo("ValueError", "bad", batch_index=3)
    line = make_answer(FailureLine, error, **LINE, error=error)
    assert line.error == ErrorLine(type="ValueError", message="bad", retryable=True, batch_index=3)
    assert make_answer(Done, done="pruned", count=2) == Done(done="pruned", count=2)
    for wrong in ({"name": 5}, {"outcome": "lost"}, {"attempts": "2"}, {"error": "bad"}):
        with pytest.raises(msgspec.ValidationError):
            make_answer(FailureLine, error, **{**LINE, "error": None, **wrong})
    with pytest.raises(AttributeError):
        make_answer(FailureLine, error, **LINE)  # it has no attribute `error`, and none is given


LINE: dict[str, Any] = {"stream": ("a", "b"), "name": "a/b", "outcome": "failed", "attempts": None}
