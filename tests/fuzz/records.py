"""What a store gives back, before it is trusted: seals, records, folds, names, config."""

from __future__ import annotations

import json
import math
import random
import struct

import msgspec

from tests.fuzz.case import Reader, Target, law
from trio_ckpt._journal import live_view
from trio_ckpt._journal.apply import apply
from trio_ckpt._journal.folds import decode_progress, encode_progress
from trio_ckpt._journal.overview import SUMMARY, RunOverview, SessionOverview, stored_overview
from trio_ckpt._journal.progress import Progress
from trio_ckpt._journal.record import (
    ErrorInfo,
    Opened,
    Output,
    Record,
    RecordKind,
    Seal,
    SinkLines,
    Taken,
    decode_record,
    encode_record,
)
from trio_ckpt._journal.session_record import SessionCounts
from trio_ckpt._journal.stored import join_summary
from trio_ckpt._journal.summary import summarize
from trio_ckpt._runs.config import canonical_config, config_digest, diff_config
from trio_ckpt._util.errors import NotEncodableError, StoreDamagedError, StoreError
from trio_ckpt._util.exact_sum import shown
from trio_ckpt._util.index_set import IndexSet
from trio_ckpt._util.plain import (
    check_label,
    check_run_id,
    check_stream_key,
    decode_key,
    encode_key,
)
from trio_ckpt._util.text import moment, printable, stream_name
from trio_ckpt.abc import RunSummary
from trio_ckpt.cli._change import parse_batches
from trio_ckpt.cli._exits import CommandError
from trio_ckpt.cli._render import Table, to_json, to_lines
from trio_ckpt.cli._select import choose_streams
from trio_ckpt.cli._show import _RUN_COLUMNS, _run_document, _run_row
from trio_ckpt.monitor._views import RunGlance, run_line
from trio_ckpt.stores import MemoryStore, _split
from trio_ckpt.stores._json import files

OUTPUT = Output("pages/1.json", 12, 1_700_000_000_000_000_000, "ab" * 32)
SUM = {"cost": ("-1f", 3)}
RECORDS = [
    Record(at=1.5, index=0, records=3, outputs=(OUTPUT,), totals={"cost": 0.5}, spent={"n": 2}),
    Record(at=2.0, index=7, cursor={"page": [1, None]}, metadata={"é": True}, adopted=True),
    Record(at=3.0, index=8, lines=(SinkLines("a.jsonl", 9, b"d" * 16),), opened=Opened(1.0, 5)),
    Record(kind=RecordKind.SKIP, at=4.0, index=2, attempts=3, error=ErrorInfo("ValueError", "no")),
    Record(kind=RecordKind.ATTEMPT, at=5.0, index=3, error=ErrorInfo("E", "m", False, 3)),
    Record(kind=RecordKind.FAIL, at=6.0, error=ErrorInfo("E", "m")),
    Record(kind=RecordKind.FINISH, at=7.0, last_index=9, metadata={"a": {"b": [1.5]}}),
    Record(kind=RecordKind.SAVE, at=8.0, state=b"x" * 20, adds=b"y", expected=100),
    Record(kind=RecordKind.REDO, at=9.0, index=3, steps=(1, 2, 3, 4), taken=Taken(SUM, SUM, True)),
    Record(kind=RecordKind.RETRY, at=10.0, steps=(0, 1)),
    Record(kind=RecordKind.SESSION, at=11.0, metadata={"session": 1, "host": "h"}),
    Record(kind=RecordKind.ADD, at=12.0, position=4),
    Record(kind=RecordKind.PIN, at=13.0, index=1, metadata={"label": "best", "lineage": "00" * 8}),
    Record(kind=RecordKind.UNPIN, at=14.0, metadata={"label": "best"}),
    Record(kind=RecordKind.INTENT, at=15.0, index=5, metadata={"id": ["b", 1]}, reserved={"c": 2}),
]
PAYLOADS = [encode_record(record) for record in RECORDS]


def progress_of(records: list[Record]) -> Progress:
    progress = Progress()
    for sequence, record in enumerate(records, 1):
        apply(progress, sequence, record)
    return progress


def look_at(progress: Progress) -> None:
    """Ask what everybody asks who shows a stream."""
    len(progress.confirmed), len(progress.skipped), len(progress.done), len(progress.adopted)
    _ = progress.left, progress.runtime_s
    progress.first_left(progress.first_index)
    shown(progress.totals)
    shown(progress.spent)
    shown(progress.reserved)
    if progress.notes is not None:
        for index in progress.notes.by_batch:
            progress.notes.of(index)
    str(progress.confirmed)
    for at in (progress.started_at, progress.updated_at, progress.opened_at, progress.worked_at):
        if at is not None:
            moment(at)


# -- sealed payloads, records, folds ------------------------------------------------------


def open_sealed() -> Reader:
    seals = [Seal("run", 0, ("a", "b"), key) for key in (None, b"k" * 32)]

    def read(data: bytes) -> str:
        seal = seals[data[:1] == b"k"]
        payload = seal.open(7, data[1:])
        law(holds=seal.close(7, payload) == data[1:], broken="another seal was taken")
        return "read"

    made = [mark + seal.close(7, text) for mark, seal in zip((b"n", b"k"), seals, strict=True)
            for text in (b"", b"x", *PAYLOADS[:3])]  # fmt: skip
    return Reader(read, [*made, b"n" + seals[0].close(8, b"x"), b"k" + seals[0].close(7, b"x")])


def open_record() -> Reader:
    def read(data: bytes) -> str:
        record = decode_record(data)
        payload = encode_record(record)
        law(holds=encode_record(decode_record(payload)) == payload, broken="it came back another")
        progress = progress_of(RECORDS[:4])
        apply(progress, 5, record)
        look_at(progress)
        encoded = encode_progress(progress)
        law(
            holds=encode_progress(decode_progress(encoded)) == encoded,
            broken="what was applied cannot be folded",
        )
        return "read"

    return Reader(read, PAYLOADS)


def open_fold() -> Reader:
    def read(data: bytes) -> str:
        progress = decode_progress(data)
        payload = encode_progress(progress)
        law(
            holds=encode_progress(decode_progress(payload)) == payload,
            broken="it came back another",
        )
        look_at(progress)
        return "read"

    counts = (0, 1, 3, 4, 9, len(RECORDS))
    return Reader(read, [encode_progress(progress_of(RECORDS[:count])) for count in counts])


def open_live() -> Reader:
    view = live_view.LiveView(
        1.0,
        3,
        (live_view.LiveToken(("a",), 3, "pending", 1.0),),
        1,
        2,
        3.0,
        0.5,
        None,
        (),
        stopping=live_view.LiveStopping(1, ((("a",), 3),), 31.0),
    )

    def read(data: bytes) -> str:
        return "nothing" if live_view.decode_live(data) is None else "read"

    return Reader(read, [msgspec.msgpack.encode(view)])


def open_overview() -> Reader:
    """A summary whose seal opens, as that of any writer to a store without a key."""
    store = MemoryStore()
    seal = store.seal("r", 2, SUMMARY)
    parts = {("a", str(n)): progress_of(RECORDS[:n]) for n in (1, 4, 9)}
    sums = summarize((), parts)
    session = SessionOverview(3, "box", 7, 11.0, 60.5, "ended", 71.0, SessionCounts(batches=5))
    overviews = [
        RunOverview("r", 2, None, sums.status, sums, session, "collect", 71.0, 120.5, 75, False),
        RunOverview("r", 2, None, sums.status, sums, None, None, None, 0.0, 0, True),
    ]

    def read(data: bytes) -> str:
        summary = join_summary(seal.close(5, data), records=5, is_complete=False)
        found = stored_overview(store, RunSummary("r", 2, 1, 3, 5, summary=summary))
        if found is None:
            return "nothing"
        json.loads(to_json(_run_document(found, None)))
        (line,) = to_lines([Table(_RUN_COLUMNS, [_run_row(found, 2e9, None)])])[2:]
        law(holds=line.isprintable(), broken="it would steer the terminal")
        run_line(RunGlance(found, None, "stored", 2e9))
        return "read"

    def fresh(rng: random.Random) -> bytes:
        """One with other values in a few of its places."""
        found = msgspec.msgpack.decode(msgspec.msgpack.encode(rng.choice(overviews)))
        parts = [found, found[4], found[4]["streams"], *([found[5]] if found[5] else [])]
        for _ in range(rng.randrange(1, 4)):
            part = rng.choice(parts)
            places = list(part) if isinstance(part, dict) else range(len(part))
            part[rng.choice(places)] = rng.choice(ODD)
        return msgspec.msgpack.encode(found)

    return Reader(read, [msgspec.msgpack.encode(overview) for overview in overviews], fresh=fresh)


ODD = [None, True, 0, -1, 2**64 - 1, 1.5, -1e300, math.inf, math.nan, "", "\x1b[2J\n", "é\u202e"]
"""Values that a place may have, or must not."""


# -- index sets, names, config ------------------------------------------------------------


def open_indexes() -> Reader:
    """Borders of 8 bytes each, and what is typed after ``--batches``."""

    def read(data: bytes) -> str:
        if data[:1] == b"t":
            found = parse_batches(data[1:].decode(errors="replace"))
            law(holds=len(found) <= 10_000_000, broken="there are too many")
            return "typed"
        steps = [
            step for (step,) in struct.iter_unpack("<q", data[1 : 1 + (len(data) - 1) // 8 * 8])
        ]
        found = IndexSet.from_steps(steps)
        law(holds=found.to_steps() == steps, broken="it came back another")
        other = IndexSet.from_steps([3, 4, 5, 6])
        both = found.union(other)
        law(
            holds=all(index in both for index in (3, 6, 12, 17)) and both.covers(3, 7),
            broken="a union lost something",
        )
        both.subtract(found)
        str(both)
        return "read"

    steps = [[], [0, 1], [5, 5], [0, 10, 1, 1, 7, 2**40]]
    made = [b"s" + struct.pack(f"<{len(s)}q", *s) for s in steps]
    return Reader(read, [*made, b"t17,203-210", b"t0-9999999", b"t 1 - 2 ,3"])


def open_names() -> Reader:
    """What may be typed as the name of a run, a stream, a label, a store."""
    known = [("a",), ("a", "b"), ("a/b",), ("é", "\u202e"), ('["a"]',)]

    def read(data: bytes) -> str:
        text = data[1:].decode(errors="surrogateescape")
        law(holds=printable(text).isprintable(), broken="it would steer the terminal")
        match data[:1]:
            case b"k":
                key = decode_key(text)
                law(holds=decode_key(encode_key(key)) == key, broken="it came back another")
                law(holds=stream_name(check_stream_key(key)).isprintable(), broken="not printable")
            case b"r":
                name = files.folder_name(check_run_id(text))
                law(
                    holds=name not in (".", "..") and "/" not in name and len(name) < 100,
                    broken="it leads out of the folder",
                )
            case b"l":
                check_label(text)
            case b"s":
                choose_streams(known, text)
            case _:
                scheme, path = _split(text)
                law(holds=scheme == "memory" or bool(path), broken="a store without a place")
        return "read"

    keys = [b'k["a","b"]', 'k["é"]'.encode(), b"sa/b", b"sa", b's["a","b"]']
    ids = [b"rrun-1", b"rRun 2025", b"lbest"]
    urls = [b"ugh.ckpt", b"usqlite:gh", b"ujson:a/b", b"umemory:", b"uC:\\x"]
    return Reader(read, [*keys, *ids, *urls])


def open_config() -> Reader:
    def read(data: bytes) -> str:
        was, _, now = data.partition(b"\0")
        try:
            plain, other = (json.loads(part) for part in (was, now or b"{}"))
        except (ValueError, RecursionError):
            return "no JSON"
        skipped = [name for name in plain if name == "skipped"] if isinstance(plain, dict) else []
        one, two = canonical_config(plain, skipped), canonical_config(other)
        law(holds=canonical_config(one) == one, broken="it is not canonical")
        law(holds=config_digest(one) == config_digest(canonical_config(one)), broken="digests")
        differs = bool(diff_config(one, two))
        law(holds=differs == (config_digest(one) != config_digest(two)), broken="diff and digest")
        return "read"

    seeds = [
        b'{"a":1,"b":[1.5,null,"x"]}\0{"a":2}',
        b'{"a":{"b":{"c":true}}}\0{"a":{"b":{"c":1}}}',
        b'{"\xc3\xa9":"x","skipped":1}',
        b'{"a":1e10,"b":-0.0}\0{"a":10000000000.0,"b":0.0}',
    ]
    return Reader(read, seeds)


TARGETS = {
    "sealed": Target(open_sealed),
    "record": Target(open_record),
    "fold": Target(open_fold),
    "live": Target(open_live, ()),
    "overview": Target(open_overview, (), frozenset({"read", "nothing"})),
    "indexes": Target(open_indexes, (ValueError, CommandError), frozenset({"read", "typed"})),
    "names": Target(open_names, (StoreDamagedError, StoreError, ValueError, CommandError)),
    "config": Target(open_config, (NotEncodableError,)),
}
