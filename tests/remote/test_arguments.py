"""Wrong arguments of the remote side are refused by name and value, before anything happens."""

from __future__ import annotations

import math
import re
from decimal import Decimal
from typing import Any

import numpy as np
import pytest
import trio
from trio.testing import MockClock

from tests.hangs import HANG_S
from tests.remote.site import F, open_site
from tests.test_border import (
    NO_COUNT,
    NO_FLAG,
    NO_PORT,
    NO_SECONDS,
    NO_SPAN,
    NO_START,
    Call,
    ids,
    is_named,
    rows,
)
from trio_ckpt import NotEncodableError, remote
from trio_ckpt.engines import map_tasks
from trio_ckpt.remote import NotAllowedError
from trio_ckpt.stores import MemoryStore

SECRET = "a secret of 16 bytes or more"
NAN = math.nan

MAP: list[tuple[str, Any, str]] = [
    ("attempts", 0, "attempts must be an int from 1 to 1000, not 0"),
    ("attempts", 1.5, "attempts must be an int from 1 to 1000, not 1.5"),
    ("attempts", True, "attempts must be an int from 1 to 1000, not True"),
    ("checkpoint_interval_s", -1, "checkpoint_interval_s must be a number of seconds >= 0, not -1"),
    ("checkpoint_interval_s", "10", "checkpoint_interval_s must be a number of seconds"),
    ("checkpoint_interval_s", NAN, "checkpoint_interval_s must be a number of seconds"),
    ("checkpoint_interval_s", 1e10, "checkpoint_interval_s must be at most 1e+09 seconds"),
    ("errors", "ignore", "errors must be one of 'raise', 'collect', not 'ignore'"),
    ("job_id", "x", "a job's id is 'job-'"),
    ("job_id", 5, "job_id must be a str, not 5"),
]
CLIENT = [
    *MAP,
    ("losses", 0, "losses must be an int from 1 to 1000, not 0"),
    ("max_age_s", 0, "max_age_s must be a number of seconds > 0, not 0"),
    ("keep_checkpoints", "no", "keep_checkpoints must be True or False, not 'no'"),
    ("trace", "x", "trace must be a mapping, not 'x'"),
    ("trace", {"a": 5}, "a value of trace must be a str, not 5"),
    ("trace", {str(n): "" for n in range(17)}, "the options of a job cannot be sent"),
]
ENGINE = [
    *MAP,
    ("workers", 0, "workers must be an int from 1 to 1000, not 0"),
    ("workers", "2", "workers must be an int from 1 to 1000, not '2'"),
    ("slots", 0, "slots must be an int from 1 to 128, not 0"),
    ("slots", 129, "slots must be an int from 1 to 128, not 129"),
    ("engine", "slurm", "engine must be 'local', 'dask', 'ray', a Dask client, an Executor or a"),
    ("losses", 0, "losses must be an int from 1 to 1000, not 0"),
    ("address", "", "address must not be empty"),
    ("resources", 5, "resources must be a Resources, not 5"),
    ("engine_options", 5, "engine_options must be a mapping, not 5"),
]
WORKER = [
    ("url", 5, "url must be a str, not 5"),
    ("secret", 5, "secret must be bytes or a str, not a int"),
    ("secret", "short", "a secret has 16 to"),
    ("allow", "json", "allow must be a list of names of modules, not 'json'"),
    ("allow", [], "allow must have 1 to"),
    ("allow", [5], "a module of allow must be a str, not 5"),
    ("slots", 0, "slots must be an int from 1 to 128, not 0"),
    ("name", "", "name must not be empty"),
    ("name", "x" * 201, "name must have at most 200 characters"),
    ("grace_s", -1, "grace_s must be a number of seconds >= 0, not -1"),
    ("patience_s", "x", "patience_s must be a number of seconds"),
    ("handle_signals", 1, "handle_signals must be True or False, not 1"),
]
FOREMAN = [
    ("store", "memory:", "store must be an open store, not 'memory:'"),
    ("secret", None, "secret must be bytes or a str"),
    ("host", 5, "host must be a str, not 5"),
    ("port", 99_999, "port must be an int from 0 to 65535, not 99999"),
    ("port", -1, "port must be an int from 0 to 65535, not -1"),
    ("hosts", "example.org", "hosts must be a list of names of hosts, not 'example.org'"),
    ("max_connections", 0, "max_connections must be an int from 1 on, not 0"),
    ("grace_s", NAN, "grace_s must be a number of seconds"),
    ("heartbeat_s", 0, "heartbeat_s must be a number of seconds > 0, not 0"),
    ("heartbeat_s", 1e9, "heartbeat_s must be less than silence_s"),
    ("allow_plain", "no", "allow_plain must be True or False, not 'no'"),
    ("rebalance", 1, "rebalance must be True or False, not 1"),
]


def row(entry: tuple[str, Any, str]) -> str:
    return f"{entry[0]}={entry[1]!r}"[:40]


@pytest.mark.parametrize(("name", "value", "says"), ENGINE, ids=map(row, ENGINE))
async def test_map_tasks_refuses(name: str, value: Any, says: str) -> None:
    wrong: dict[str, Any] = {name: value}
    with pytest.raises((TypeError, ValueError), match=re.escape(says)):
        await map_tasks("json:loads", ["1"], **wrong)


@pytest.mark.parametrize(
    ("function", "items", "kind"),
    [
        (5, [1], NotAllowedError),
        ("json.loads", [1], NotAllowedError),
        ("json:loads", "abc", TypeError),
        ("json:loads", 5, TypeError),
        ("json:loads", {"a": 1}, TypeError),
        ("json:loads", [{1, 2}], NotEncodableError),
        ("json:loads", [1, 2, NAN], NotEncodableError),
    ],
)
async def test_map_tasks_refuses_what_cannot_be_done(
    function: Any, items: Any, kind: type[Exception]
) -> None:
    with pytest.raises(kind):
        await map_tasks(function, items)


@pytest.mark.parametrize(("name", "value", "says"), CLIENT, ids=map(row, CLIENT))
async def test_a_client_refuses(
    autojump_clock: MockClock, name: str, value: Any, says: str
) -> None:
    wrong: dict[str, Any] = {name: value}
    async with open_site(MemoryStore()) as site, site.client() as client:
        with pytest.raises((TypeError, ValueError), match=re.escape(says)):
            await client.map(F + "square", [1], **wrong)
        assert await site.store.list_runs() == ()


@pytest.mark.parametrize(("name", "value", "says"), WORKER, ids=map(row, WORKER))
async def test_a_worker_refuses(name: str, value: Any, says: str) -> None:
    given: dict[str, Any] = {"url": "ws://127.0.0.1:1", "secret": SECRET, "allow": ["json"]}
    with pytest.raises((TypeError, ValueError), match=re.escape(says)):
        await remote.run_worker(**{**given, name: value})


@pytest.mark.parametrize(("name", "value", "says"), FOREMAN, ids=map(row, FOREMAN))
async def test_a_foreman_refuses(name: str, value: Any, says: str) -> None:
    given: dict[str, Any] = {"store": MemoryStore(), "secret": SECRET, "port": 0}
    with pytest.raises((TypeError, ValueError), match=re.escape(says)):
        await remote.serve_foreman(**{**given, name: value})


@pytest.mark.parametrize(
    ("name", "value"), [("url", 5), ("url", "http://x"), ("secret", "short"), ("name", 5)]
)
async def test_a_connection_is_refused(name: str, value: Any) -> None:
    given: dict[str, Any] = {"url": "ws://127.0.0.1:1", "secret": SECRET}
    with pytest.raises((TypeError, ValueError)):
        async with remote.connect(**{**given, name: value}):
            pass


async def test_numbers_of_other_types_travel_as_what_they_are_worth(
    autojump_clock: MockClock,
) -> None:
    items = [np.float64(1.5), np.int32(3), Decimal("2.5"), (1, 2)]
    async with open_site(MemoryStore()) as site:
        await site.start_worker("a", allow=("tests.remote",))
        async with site.client() as client:
            assert await client.map(F + "echo", items) == [1.5, 3, 2.5, [1, 2]]
            found = await client.map("tests.remote.misbehaving:numbers", [None])
    assert found == [[1.5, 3, 2.5, [1, 2]]]


async def test_items_are_taken_when_they_are_given(autojump_clock: MockClock) -> None:
    item = {"n": 1}
    async with open_site(MemoryStore()) as site, site.client() as client:
        job_id = await client.submit(F + "echo", [item])
        item["n"] = 2
        await site.start_worker("a")
        assert await client.attach(job_id) == [{"n": 1}]


# -- what is no value of its kind at all --------------------------------------------------------

FOREMAN_ROWS = rows(
    "serve_foreman",
    remote.serve_foreman,
    store=(5, "jobs.ckpt", MemoryStore),
    port=NO_PORT,
    host=(5, "", None),
    hosts=("example.org", 5),
    max_connections=(*NO_COUNT, 0),
    grace_s=(*NO_SECONDS, *NO_SPAN, None),
    heartbeat_s=(*NO_SECONDS, *NO_SPAN, 0, 1e9),
    silence_s=(*NO_SECONDS, *NO_SPAN, 0, None),
    rebalance=NO_FLAG,
    allow_plain=NO_FLAG,
)

WORKER_ROWS = rows(
    "run_worker",
    remote.run_worker,
    url=(5, None, ""),
    allow=("module", 5, []),
    slots=(*NO_COUNT, 0, 1_000_000),
    grace_s=(*NO_SECONDS, *NO_SPAN, None),
    patience_s=(*NO_SECONDS, *NO_SPAN, None),
    handle_signals=NO_FLAG,
)

ENGINE_ROWS = rows(
    "map_tasks",
    map_tasks,
    engine=("slurm", None),
    workers=(*NO_START, 0, 10**6),
    slots=(*NO_COUNT, 0, 10**6),
    errors=("skip", None),
)


@pytest.mark.parametrize(("call", "value"), [*FOREMAN_ROWS, *WORKER_ROWS, *ENGINE_ROWS], ids=ids)
async def test_a_service_with_a_wrong_argument_does_not_start(call: Call, value: object) -> None:
    arguments: dict[str, Any] = {
        "serve_foreman": {"store": MemoryStore(), "secret": b"s" * 32, "port": 0},
        "run_worker": {"url": "ws://127.0.0.1:1", "secret": b"s" * 32, "allow": ["tests"]},
        "map_tasks": {"func": "examples.squares:square", "items": [1]},
    }[call.name]
    with trio.fail_after(HANG_S), pytest.raises((TypeError, ValueError)) as caught:
        await call.call(**{**arguments, call.argument: value})
    assert is_named(call.argument, caught.value), caught.value


SUBMIT = rows(
    "submit",
    remote.Client.submit,
    items=("abc", 5, {"a": 1}),
    checkpoint_interval_s=(*NO_SECONDS, *NO_SPAN, math.inf),
    errors=("skip", None),
    attempts=(*NO_COUNT, 0, 10**6),
    losses=(*NO_COUNT, 0, 10**6),
    max_age_s=(*NO_SECONDS, *NO_SPAN, 0, None),
    keep_checkpoints=NO_FLAG,
    trace=("abc", 5, [1]),
)


async def test_a_wrong_job_is_not_submitted(autojump_clock: MockClock) -> None:
    async with open_site(MemoryStore()) as site, site.client("c") as client:
        for call, value in SUBMIT:
            arguments = {"items": [1], call.argument: value}
            with pytest.raises((TypeError, ValueError)) as caught:
                await call.call(client, "examples.squares:square", **arguments)
            assert is_named(call.argument, caught.value), caught.value
        assert not await site.store.list_runs()
