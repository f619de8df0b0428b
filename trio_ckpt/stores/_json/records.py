"""One record as readable JSON that gives back, byte for byte, the payload that was saved.

A payload is a digest (the seal) followed by a `Record` in MessagePack.  Here it is written with
the record's fields under their long names.  Each payload is tested for whether that gives the
same bytes back; one that does not (it is not a record, a newer version wrote it, its
metadata has bytes in it) is kept as base64.  So nothing here depends on which fields a record
has: the readable form is derived from `Record` itself.

An edited entry gives other bytes, and those fail their seal.
"""

from __future__ import annotations

import enum
import inspect
import types
from datetime import UTC, datetime
from typing import TypeAlias, Union, get_args, get_origin

import msgspec

from ..._journal.folds import decode_progress
from ..._journal.record import DIGEST_BYTES, Record, RecordKind, decode_record, encode_record
from ..._journal.store import Checkpoint, Fold
from ..._util.errors import NotEncodableError, StoreDamagedError

_Field: TypeAlias = tuple[str, object] | tuple[str, object, object]  # name, type, default

_CONTAINERS = (tuple, list, dict)
_BAD_JSON = (msgspec.MsgspecError, ValueError, RecursionError)


class Entry(msgspec.Struct, frozen=True, omit_defaults=True, forbid_unknown_fields=True):
    """A record as it stands in a file, in one of three forms.

    Attributes:
        sequence: The record's number in its stream, from 1.
        seal: The seal in hexadecimal, with `record`.
        record: The readable form.
        payload: The bytes themselves, if they have no readable form.
        blob: The digest of the blob that holds the bytes.
        blobs: The attached blobs that the record names.
    """

    sequence: int
    seal: str | None = None
    record: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET
    payload: bytes | None = None
    blob: str | None = None
    blobs: tuple[str, ...] = ()


class FoldEntry(msgspec.Struct, frozen=True, omit_defaults=True, forbid_unknown_fields=True):
    """A fold as it stands in a file; `summary` is only for people."""

    through: int
    summary: dict[str, object] | None = None
    payload: bytes = msgspec.field(default=b"")


def _derive(struct: type[msgspec.Struct], extra: tuple[_Field, ...] = ()) -> type[msgspec.Struct]:
    """Return a struct like `struct` with long field names, as a JSON object."""
    fields: list[_Field] = []
    for field in msgspec.structs.fields(struct):
        readable = _readable_type(field.type)
        if field.required:
            fields.append((field.name, readable))
        elif field.default_factory is not msgspec.NODEFAULT:
            made = msgspec.field(default_factory=field.default_factory)
            fields.append((field.name, readable, made))
        else:
            fields.append((field.name, readable, msgspec.field(default=field.default)))
    return msgspec.defstruct(
        f"Readable{struct.__name__}",
        [*extra, *fields],
        frozen=True,
        kw_only=True,
        omit_defaults=True,
        forbid_unknown_fields=True,
    )


def _readable_type(kind: object) -> object:
    if inspect.isclass(kind):
        if issubclass(kind, msgspec.Struct):
            return _derive(kind)
        if issubclass(kind, enum.Enum):
            return str
    origin, args = get_origin(kind), get_args(kind)
    if origin in (Union, types.UnionType):
        return Union[tuple(map(_readable_type, args))]  # noqa: UP007  # of a computed tuple
    if origin in _CONTAINERS:
        return types.GenericAlias(origin, tuple(map(_readable_type, args)))
    return kind


_FIELDS = {field.name: field.type for field in msgspec.structs.fields(Record)}
_BLANK = Record(at=0.0)  # every field of a record replaces its own
_READABLE = _derive(Record, (("time", str, ""),))
_record_decoder = msgspec.json.Decoder(_READABLE)
_entry_decoder = msgspec.json.Decoder(Entry)
_fold_decoder = msgspec.json.Decoder(FoldEntry)
_encode = msgspec.json.Encoder().encode


def encode_entry(checkpoint: Checkpoint) -> bytes:
    """Encode a checkpoint as JSON, readable if that loses nothing.

    Raises:
        TypeError, ValueError: a value has no form in JSON.
    """
    sequence, payload = checkpoint.sequence, checkpoint.payload
    _check_bytes(payload)
    blobs = tuple(dict.fromkeys(checkpoint.blobs)) if checkpoint.blobs else ()
    if checkpoint.blob is not None:
        return _encode(Entry(sequence, blob=checkpoint.blob, blobs=blobs))
    try:
        record = msgspec.Raw(_encode(_to_readable(decode_record(payload[DIGEST_BYTES:]))))
        entry = Entry(sequence, payload[:DIGEST_BYTES].hex(), record, blobs=blobs)
        if _open_record(entry) == payload:
            return _encode(entry)
    except (StoreDamagedError, TypeError, KeyError, OSError, OverflowError, *_BAD_JSON):
        pass  # it is not a record of this version, and need not be
    return _encode(Entry(sequence, payload=payload, blobs=blobs))


def without_blobs(raw: msgspec.Raw) -> msgspec.Raw:
    """Return the entry without its attached blobs."""
    return with_blobs(raw, ())


def with_blobs(raw: msgspec.Raw, blobs: tuple[str, ...]) -> msgspec.Raw:
    """Return the entry with these attached blobs."""
    return msgspec.Raw(_encode(msgspec.structs.replace(decode_entry(raw), blobs=blobs)))


def decode_entry(raw: msgspec.Raw) -> Entry:
    """Decode an entry, but not its record.

    Raises:
        StoreDamagedError: it is not an entry.
    """
    try:
        return _entry_decoder.decode(raw)
    except _BAD_JSON as error:
        raise StoreDamagedError(f"a checkpoint cannot be read: {error}") from error


def payload_of(entry: Entry) -> bytes:
    """Return the payload that was saved; not for an entry whose payload is a blob.

    Raises:
        StoreDamagedError: the entry has no valid payload.
    """
    if entry.payload is not None:
        return entry.payload
    try:
        return _open_record(entry)
    except (NotEncodableError, TypeError, KeyError, *_BAD_JSON) as error:
        raise StoreDamagedError(f"checkpoint {entry.sequence} cannot be read: {error}") from error


def _check_bytes(payload: object) -> None:
    if not isinstance(payload, bytes):
        raise TypeError(f"a payload is bytes, not {type(payload).__name__}")


def _to_readable(record: Record) -> msgspec.Struct:
    values = {name: getattr(record, name) for name in _FIELDS}
    values = {name: value for name, value in values.items() if value is not msgspec.UNSET}
    values["kind"] = record.kind.name.lower()
    # For people; `at` is the exact number.
    values["time"] = datetime.fromtimestamp(record.at, UTC).isoformat(timespec="milliseconds")
    return msgspec.convert(values, _READABLE, from_attributes=True)


def _open_record(entry: Entry) -> bytes:
    if isinstance(entry.record, msgspec.UnsetType) or entry.seal is None:
        raise ValueError("it has neither a record nor a payload")
    readable = _record_decoder.decode(entry.record)
    values: dict[str, object] = {}
    for name, kind in _FIELDS.items():
        value = getattr(readable, name)
        if name == "kind":
            values[name] = value if isinstance(value, RecordKind) else RecordKind[value.upper()]
        elif value is not msgspec.UNSET:
            values[name] = msgspec.convert(value, kind, from_attributes=True)
    record = msgspec.structs.replace(_BLANK, **values)
    return bytes.fromhex(entry.seal) + encode_record(record)


def encode_fold(fold: Fold) -> bytes:
    """Encode a fold as JSON: its bytes, and a readable summary.

    Raises:
        TypeError: its payload is not bytes.
    """
    _check_bytes(fold.payload)
    try:
        return _encode(FoldEntry(fold.through, _summary(fold.payload), fold.payload))
    except (StoreDamagedError, TypeError, ValueError, OverflowError):
        # It is not a progress of this version, and need not be.
        return _encode(FoldEntry(fold.through, None, fold.payload))


def _summary(payload: bytes) -> dict[str, object]:
    progress = decode_progress(payload[DIGEST_BYTES:])
    return {
        "status": progress.status.value,
        "confirmed": len(progress.confirmed),
        "skipped": len(progress.skipped),
        "last_index": progress.last_index,
        "records": progress.records,
        "totals": {name: total.value for name, total in progress.totals.items()},
        "spent": {name: total.value for name, total in progress.spent.items()},
        "reserved": {name: total.value for name, total in progress.reserved.items()},
    }


def decode_fold(raw: msgspec.Raw) -> FoldEntry:
    """Decode a fold.

    Raises:
        StoreDamagedError: it is not a fold.
    """
    try:
        return _fold_decoder.decode(raw)
    except _BAD_JSON as error:
        raise StoreDamagedError(f"a fold cannot be read: {error}") from error
