"""A run whose records another program wrote, shown by every command that reads."""

from __future__ import annotations

import random
from functools import partial
from typing import Any

import trio

from tests.cli.tools import T0, batches, complete, ended, failed, session
from tests.fuzz.case import Reader, Target, law
from tests.fuzz.records import RECORDS
from trio_ckpt._journal.record import Record, RecordKind, decode_record, encode_record
from trio_ckpt._util.errors import StoreDamagedError, StoreError, UnknownRunError
from trio_ckpt._util.plain import RUN_STREAM, StreamKey, encode_key
from trio_ckpt.abc import Checkpoint, RunKey
from trio_ckpt.cli import _explain, _show
from trio_ckpt.cli._exits import CommandError
from trio_ckpt.cli._render import to_json, to_lines
from trio_ckpt.stores import MemoryStore

KEY: StreamKey = ("a", "b")
NOW = T0 + 1e6
ODD: list[Any] = [
    *(None, True, -1, 2**63, 0.5, -1e300, 1e300, "", "x", "\x1b[31m\n", [], {}, [None], {"": None}),
    *([["a", "b"]], [[1, 2, 3]], {"totals": 3}, {"batches": "x"}, b"bytes"),
]


def shaken(rng: random.Random, value: Any) -> Any:
    """A plain value, with some of its parts replaced or left out."""
    if rng.random() < 0.15:
        return rng.choice(ODD)
    if isinstance(value, dict):
        return {k: shaken(rng, v) for k, v in value.items() if rng.random() > 0.1}
    if isinstance(value, (list, tuple)):
        return [shaken(rng, item) for item in value if rng.random() > 0.1]
    return value


def open_shown() -> Reader:
    """The first byte says in whose place the record comes that follows."""
    first, second = session(1, changes=[["model", '"a"', '"b"']]), session(2)
    own = [first, ended(first, batches=3), second, ended(second, how="was stopped")]
    stream = [
        *batches(2, totals={"cost": 0.5}, spent={"n": 1}),
        Record(kind=RecordKind.SKIP, at=T0 + 20, index=3),
        failed("no", retryable=True),
        *complete(1),
    ]
    every = [*own, *stream]
    places = len(every)

    async def look(records: list[Record], own_records: list[Record]) -> None:
        store = MemoryStore()
        async with store.lock_run("run") as owner:
            for key, chosen in ((RUN_STREAM, own_records), (KEY, records)):
                seal = store.seal("run", 0, key)
                group = [
                    Checkpoint(encode_key(key), n, seal.close(n, encode_record(record)))
                    for n, record in enumerate(chosen, 1)
                ]
                await store.save(RunKey("run", 0, owner), group)
        for ask in (
            partial(_show.list_runs, now=NOW),
            partial(_show.show_run, run_id="run", stream=None, show_all=True),
            partial(_explain.explain, run_id="run", stream=None, show_all=True, now=NOW),
            partial(_explain.show_sessions, run_id="run", limit=9),
            partial(_explain.show_checkpoints, run_id="run", stream="a/b", limit=9),
        ):
            answer = await ask(store)
            to_json(answer.document())
            for line in to_lines(answer.blocks()):
                law(holds=line.isprintable(), broken=f"it would steer the terminal: {line!r}")

    def read(data: bytes) -> str:
        place = data[0] % places if data else 0
        record = decode_record(data[1:])
        whole = [*every[:place], record, *every[place + 1 :]]
        mine, theirs = whole[: len(own)], whole[len(own) :]
        trio.run(look, theirs, mine)
        return "read"

    def fresh(rng: random.Random) -> bytes:
        place = rng.randrange(places)
        fields = {name: getattr(every[place], name) for name in Record.__struct_fields__}
        fields["metadata"] = shaken(rng, fields["metadata"])
        if not isinstance(fields["metadata"], dict):
            fields["metadata"] = {}
        if rng.random() < 0.3:
            fields["kind"] = rng.choice(list(RecordKind))
        return bytes((place,)) + encode_record(Record(**fields))

    seeds = [bytes((place,)) + encode_record(record) for place, record in enumerate(every)]
    seeds += [bytes((place,)) + encode_record(one) for place in (0, 5) for one in RECORDS]
    return Reader(read, seeds, fresh)


TARGETS = {
    "shown": Target(
        open_shown, (StoreDamagedError, StoreError, CommandError, UnknownRunError), share=0.02
    )
}
