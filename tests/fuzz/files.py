"""Files that others may have written: those of the JSON store, archives, outputs that are JSON."""

from __future__ import annotations

import contextlib
import enum
import json
import shutil
import tempfile
import zipfile
from datetime import datetime
from pathlib import Path
from typing import Any

import attrs
import msgspec
import trio

from tests.fuzz.case import Reader, Target, law
from tests.fuzz.records import PAYLOADS
from tests.maintenance.export_tools import forge, make_store, reseal, unpack, write_run
from trio_ckpt._journal.record import DIGEST_BYTES, Seal, decode_record
from trio_ckpt._maintenance.archive_file import Archive
from trio_ckpt._maintenance.export import export_run
from trio_ckpt._util.errors import ArchiveError, OutputInvalidError, StoreDamagedError
from trio_ckpt.abc import Checkpoint, Fold
from trio_ckpt.outputs._json import parse_json
from trio_ckpt.outputs._validate import Validator
from trio_ckpt.stores._json import format as fmt
from trio_ckpt.stores._json.records import (
    decode_entry,
    decode_fold,
    encode_entry,
    encode_fold,
    payload_of,
)

FILE = Path("the file")
SEAL = Seal("run", 0, ("a",), None)

# -- the JSON store -----------------------------------------------------------------------


def _checkpoints() -> list[Checkpoint]:
    sealed = [SEAL.close(n, payload) for n, payload in enumerate(PAYLOADS, 1)]
    odd = [b"", b"no record", SEAL.close(1, b"\x81\xa1t\xc0")]
    return [Checkpoint('["a"]', n, payload) for n, payload in enumerate([*sealed, *odd], 1)]


def _state() -> fmt.RunState:
    state = fmt.RunState("run", 3, generation=1, journal=2, updated_at=1.5, summary=b"a summary")
    stream = fmt.StreamState([msgspec.Raw(encode_entry(one)) for one in _checkpoints()[:5]])
    stream.fold = msgspec.Raw(encode_fold(Fold('["a"]', 2, b"no progress")))
    state.streams[1, '["a"]'] = stream
    state.streams[0, "[]"] = fmt.StreamState()
    return state


def _read_all(state: fmt.RunState) -> None:
    """Open every record and fold."""
    for stream in state.streams.values():
        for raw in stream.entries:
            entry = decode_entry(raw)
            if entry.blob is None:
                payload_of(entry)
        if stream.fold is not None:
            decode_fold(stream.fold)


def open_checkpoint_json() -> Reader:
    """What follows the check; the first byte says whether the check is mended."""
    mark = b'"check": "'

    def read(data: bytes) -> str:
        content = data[1:]
        if data[:1] > b"\x20":
            content = b'{\n%b%b",\n%b' % (mark, fmt.digest(content), content)
        state = fmt.parse_checkpoint(FILE, content, None)
        law(holds=fmt.render_checkpoint(state) == content, broken="two texts of one run")
        _read_all(state)
        return "read"

    whole = fmt.render_checkpoint(_state())
    body = whole[whole.index(b'"format"') :]
    return Reader(read, [b"\xff" + body, b"\0" + whole])


def open_journal() -> Reader:
    """Lines without their checks, which are put before them; then the journal is replayed."""
    known = _state()
    head, first = fmt.journal_head(known)

    def read(data: bytes) -> str:
        state = attrs.evolve(known, streams={})
        for place, stream in known.streams.items():
            state.streams[place] = fmt.StreamState(stream.entries.copy(), stream.fold)
        content, check = head, first
        for raw in data[1:].split(b"\n"):
            text, check = fmt.frame(raw, check)
            content += text
        if data[:1] < b"\x20":
            content = content[: -data[0]] if data and data[0] else content + data[1:9]
        end = fmt.replay(FILE, content, state)
        law(holds=end.size + end.torn == len(content), broken="bytes are not accounted for")
        _read_all(state)
        again = fmt.parse_checkpoint(FILE, fmt.render_checkpoint(state), "run")
        law(holds=again == state, broken="it cannot be written again")
        return "read"

    entries = [msgspec.Raw(encode_entry(one)) for one in _checkpoints()]
    lines = [
        fmt.JournalLine(4, 1),
        fmt.JournalLine(4, 1, [('["a"]', entries[5]), ('["b"]', entries[0])]),
        fmt.JournalLine(5, 1, folds=[('["a"]', msgspec.Raw(encode_fold(Fold("", 3, b"x"))))]),
        fmt.JournalLine(5, 1, drops=[('["a"]', [1, 2])]),
        fmt.JournalLine(5, 2, [('["a"]', entries[0])], at=1.5),
        fmt.JournalLine(5, 2, summary=b"a summary"),
    ]
    texts = [fmt.encode_line(line) for line in lines]
    whole, torn = b"\xff" + b"\n".join(texts), b"\x01" + texts[1]
    return Reader(read, [*(b"\xff" + text for text in texts), whole, torn])


def open_entry() -> Reader:
    """A record as it stands in a file (``f``), or a payload that is to stand there."""

    def read(data: bytes) -> str:
        if data[:1] != b"f":
            text = encode_entry(Checkpoint('["a"]', 3, data[1:]))
            entry = decode_entry(msgspec.Raw(text))
            law(holds=payload_of(entry) == data[1:], broken="it came back another")
            return "payload" if entry.record is msgspec.UNSET else "readable"
        entry = decode_entry(msgspec.Raw(data[1:]))
        if entry.blob is not None:
            return "blob"
        payload = payload_of(entry)
        if entry.payload is None:
            with contextlib.suppress(StoreDamagedError):
                decode_record(payload[DIGEST_BYTES:])
        return "read"

    made = _checkpoints()
    return Reader(
        read,
        [*(b"f" + encode_entry(one) for one in made), *(b"p" + one.payload for one in made)],
    )


# -- archives -----------------------------------------------------------------------------


def open_archive() -> Reader:
    """A zip under a seal that fits; or its manifest (``m``), or the records of it (``r``)."""
    folder = Path(tempfile.mkdtemp(prefix="fuzz-archive-"))
    good, bad = folder / "good.zip", folder / "bad.zip"
    trio.run(_make_archive, folder, good)
    files = unpack(good)
    manifest = files["manifest.json"]
    chunk = next(name for name in sorted(files) if name.startswith("streams/"))

    def read(data: bytes) -> str:
        if data[:1] in (b"m", b"r"):

            def edit(members: dict[str, bytes], told: dict[str, Any]) -> None:
                if data[:1] == b"r":
                    members[chunk] = data[1:]
                else:
                    told.clear()
                    told.update(_object(data[1:]))

            forge(good, bad, edit, update_members=data[:1] == b"r")
        else:
            bad.write_bytes(reseal(data[1:]))
        archive = Archive.open(bad)
        with contextlib.closing(archive):
            for number in range(len(archive.manifest.streams)):
                for _sequence, payload in archive.records(number):
                    with contextlib.suppress(StoreDamagedError):
                        decode_record(payload)
            for member in (*archive.outputs.values(), *archive.blobs.values()):
                for _ in archive.pieces(member):
                    pass
        return "read"

    small = folder / "small.zip"
    with zipfile.ZipFile(small, "w") as archive:
        archive.writestr("manifest.json", manifest[:200])
        archive.comment = bytes(81)
    seeds = [b"m" + manifest, b"r" + files[chunk], b"z" + small.read_bytes()]
    if len(good.read_bytes()) < 8_000:
        seeds.append(b"z" + good.read_bytes())
    return Reader(read, seeds, close=lambda: shutil.rmtree(folder))


def _object(text: bytes) -> dict[str, Any]:
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


async def _make_archive(folder: Path, path: Path) -> None:
    store = await make_store("memory:", folder)
    await write_run(store, folder / "out")
    await export_run(store, "r", path)
    await store.aclose()


# -- outputs that are JSON ----------------------------------------------------------------


class _Level(enum.Enum):
    LOW = 1
    HIGH = "high"


@attrs.frozen
class _Line:
    text: str
    at: datetime | None = None
    level: _Level = _Level.LOW


@attrs.frozen
class _Page:
    number: int
    lines: list[_Line]
    scores: dict[str, float] = attrs.field(factory=dict)
    pair: tuple[int, str] | None = None


SCHEMA = {
    "type": "object",
    "properties": {
        "number": {"type": "integer", "multipleOf": 1},
        "lines": {"type": "array", "items": {"$ref": "#/$defs/line"}, "uniqueItems": True},
        "tree": {"$ref": "#"},
    },
    "$defs": {"line": {"type": "object", "required": ["text"], "patternProperties": {"^t": {}}}},
    "required": ["number"],
}


def open_output() -> Reader:
    checks = [Validator.of(kind) for kind in (_Page, SCHEMA)]

    def read(data: bytes) -> str:
        checks[data[:1] == b"s"].check("page.json", data[1:])
        value = parse_json(data[1:])
        text = json.dumps(value).encode()
        law(holds=json.dumps(parse_json(text)).encode() == text, broken="it came back another")
        return "read"

    pages = [
        {"number": 1, "lines": [{"text": "é", "at": "2025-11-20T10:00:00+00:00"}]},
        {"number": 2, "lines": [{"text": "", "level": "high"}], "scores": {"a": 1.5, "b": 2}},
        {"number": 3, "lines": [], "pair": [1, "x"], "tree": {"number": 4}},
    ]
    texts = [json.dumps(page).encode() for page in pages]
    deep = b'{"number":1,"tree":' * 60 + b"1" + b"}" * 60
    return Reader(read, [mark + text for mark in (b"c", b"s") for text in (*texts, deep)])


TARGETS = {
    "checkpoint-json": Target(open_checkpoint_json),
    "journal": Target(open_journal),
    "entry": Target(open_entry, ends=frozenset({"read", "payload", "readable"})),
    "archive": Target(open_archive, (ArchiveError,), share=0.05),
    "output": Target(open_output, (OutputInvalidError,), share=0.2),
}
