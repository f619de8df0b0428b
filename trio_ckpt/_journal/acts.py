"""Acts on a run from outside: what is asked for, by whom and why; how it is sent and recorded.

An act is a record: a NOTE in the run's own stream, whose metadata has it under `ACT`.  So a store
that an older version reads has a note more, and nothing else.  Whether the run is paused follows
from the newest `pause` or `resume`, see `trio_ckpt._journal.apply`.

Between processes an act is one line of JSON, and so is the answer to it.
"""

from __future__ import annotations

import os
import secrets
import socket
from collections.abc import Mapping
from contextlib import aclosing
from types import MappingProxyType
from typing import Annotated, Any, Literal

import msgspec

from .._util.errors import TrioCkptError
from .._util.exact_sum import Number
from .._util.index_set import IndexSet
from .._util.plain import RUN_STREAM, Plain, StreamKey
from .._util.text import moment, number, printable, stream_name
from .history import iter_records, read_known_run
from .record import ACT, PAUSED, Record, RecordKind
from .store import Store

MAX_LINE_BYTES = 65_536  # of an act: thousands of spans of batches
MAX_REPLY_BYTES = 2**20  # of an answer: a hundred streams with the longest keys
MAX_NAME_CHARS = 255  # of a user, a host or a part of a key
MAX_WHY_CHARS = 500
MAX_ID_CHARS = 32

Verb = Literal[
    "status",
    "pause",
    "resume",
    "stop",
    "snapshot",
    "requeue",
    "skip",
    "concurrency",
    "limit",
]

_Name = Annotated[str, msgspec.Meta(max_length=MAX_NAME_CHARS)]


class ActRefusedError(TrioCkptError, is_internal=True):
    """An act was not done: the run refuses it, or its process cannot be reached."""


class Act(msgspec.Struct, frozen=True, omit_defaults=True):
    """What a user wants of a run.

    Attributes:
        do: What.
        user: The name of the user.
        host, pid: The host name and the id of the process that asks.
        why: The reason that the user gives.
        stream: The key of the stream that it is about; empty: none.
        steps: The batches that it is about, as `IndexSet.to_steps` gives them.
        count: How many workers there should be, for `concurrency`.
        amounts: The most that may be spent, by name, for `limit`.
        at: When the run was asked; Unix time, s; 0: it was not asked yet.
        id: Which act it is, so that it is done once however often it is asked for.
    """

    do: Verb
    user: _Name
    host: _Name
    pid: Annotated[int, msgspec.Meta(ge=0, lt=2**53)]
    why: Annotated[str, msgspec.Meta(max_length=MAX_WHY_CHARS)] = ""
    stream: tuple[str, ...] = ()
    steps: tuple[Annotated[int, msgspec.Meta(ge=0, lt=2**53)], ...] = ()
    count: Annotated[int, msgspec.Meta(ge=0, lt=2**53)] = 0
    amounts: dict[_Name, int | float] = {}  # copied for each, see msgspec
    at: Annotated[float, msgspec.Meta(ge=0)] = 0.0
    id: Annotated[str, msgspec.Meta(max_length=MAX_ID_CHARS)] = ""

    def __post_init__(self) -> None:
        """Refuse steps that are no set of batches: what is decoded can be put into words.

        Raises:
            ValueError: they are none.
        """
        IndexSet.from_steps(self.steps)


class ActReply(msgspec.Struct, frozen=True, omit_defaults=True):
    """The answer of a run to an act.

    Attributes:
        is_done: Whether it was done.
        text: What was done, or why it was not.
        status: The run at this moment, for `status`.
    """

    is_done: bool
    text: str
    status: dict[str, Any] = {}  # copied for each, see msgspec


_encoder = msgspec.json.Encoder()
_act_decoder = msgspec.json.Decoder(Act)
_reply_decoder = msgspec.json.Decoder(ActReply)


def new_act(
    do: Verb,
    user: str,
    *,
    why: str = "",
    stream: StreamKey = (),
    indexes: IndexSet | None = None,
    count: int = 0,
    amounts: Mapping[str, Number] = MappingProxyType({}),
) -> Act:
    """An act of this process.

    Args:
        do: What.
        user: The name of the user; longer names are cut.
        why: The reason.
        stream: The key of the stream that it is about.
        indexes: The batches that it is about.
        count: How many workers there should be.
        amounts: The most that may be spent, by name.

    Raises:
        ValueError: the reason is too long, the batches are too many to be sent, or a number or a
            name is none that an act can have.
    """
    if len(why) > MAX_WHY_CHARS:
        raise ValueError(f"why has {number(len(why))} letters; at most {MAX_WHY_CHARS} are kept")
    host = socket.gethostname()[:MAX_NAME_CHARS]
    steps = () if indexes is None else tuple(indexes.to_steps())
    about = (stream, steps, count, dict(amounts))
    act_id = secrets.token_hex(MAX_ID_CHARS // 2)
    act = Act(do, user[:MAX_NAME_CHARS], host, os.getpid(), why, *about, id=act_id)
    line = encode_line(act)
    if len(line) > MAX_LINE_BYTES:
        raise ValueError(f"too many spans of batches, {number(len(steps) // 2)}, for one act")
    try:  # what the owner cannot decode gets no answer
        return _act_decoder.decode(line)
    except msgspec.ValidationError as error:
        raise ValueError(f"this is no act that can be sent: {error}") from error


def encode_line(message: Act | ActReply) -> bytes:
    """Encode an act or an answer as one line."""
    return _encoder.encode(message) + b"\n"


def decode_act(line: bytes) -> Act | None:
    """Decode an act; None: the bytes are none."""
    try:
        return _act_decoder.decode(line)
    except (msgspec.MsgspecError, UnicodeError, RecursionError):
        return None


def decode_reply(line: bytes) -> ActReply:
    """Decode an answer.

    Raises:
        ActRefusedError: the bytes are none.
    """
    try:
        return _reply_decoder.decode(line)
    except (msgspec.MsgspecError, UnicodeError, RecursionError) as error:
        raise ActRefusedError(f"the answer of the run cannot be read: {error}") from error


# -- records ---------------------------------------------------------------------------------------


def plain_act(act: Act) -> dict[str, Plain]:
    """An act as a record has it."""
    plain: dict[str, Plain] = msgspec.to_builtins(act)
    return plain


def act_note(act: Act) -> Record:
    """The record of an act."""
    return Record(kind=RecordKind.NOTE, at=act.at, metadata={ACT: plain_act(act)})


def act_of(metadata: Mapping[str, Plain], name: str = ACT) -> Act | None:
    """The act in the metadata of a record; None: there is none that this version knows."""
    try:
        return msgspec.convert(metadata[name], Act)
    except (KeyError, msgspec.ValidationError, RecursionError):
        return None


def act_text(act: Act) -> str:
    """An act in words: ``pause by ann, process 12 on box: the quota is used up``."""
    return f"{act.do}{target_text(act)} by {actor_text(act)}"


def target_text(act: Act) -> str:
    """What an act is about, after a space, as it is typed; empty: it is about the run."""
    texts = [f"{printable(name)}={number(most)}" for name, most in act.amounts.items()]
    if act.stream:
        texts += [stream_name(act.stream), str(indexes_of(act))]
    if act.count:
        texts.append(number(act.count))
    return "".join(f" {text}" for text in texts)


def indexes_of(act: Act) -> IndexSet:
    """The batches that an act is about."""
    return IndexSet.from_steps(act.steps)


def actor_text(act: Act) -> str:
    """Who asked for an act, and why."""
    why = f": {printable(act.why)}" if act.why else ""
    return f"{printable(act.user)}, process {act.pid} on {printable(act.host)}{why}"


def paused_text(metadata: Mapping[str, Plain]) -> str:
    """Since when a run is paused, by whom and why, as session metadata say; empty: it is not."""
    if not metadata.get(PAUSED):
        return ""
    act = act_of(metadata, PAUSED)
    return (
        "by an act that cannot be read"
        if act is None
        else f"since {moment(act.at)}, by {actor_text(act)}"
    )


async def read_acts(store: Store, run_id: str, *, generation: int | None = None) -> list[Act]:
    """The acts on a run from outside, oldest first.

    Raises:
        UnknownRunError: the store has no such run.
        StoreDamagedError: a record is not what was saved.

    Cancellation: a cancellation point.
    """
    stored = await read_known_run(store, run_id, generation)
    acts: list[Act] = []
    async with aclosing(iter_records(store, run_id, stored.generation, RUN_STREAM)) as records:
        async for _, record in records:
            if record.kind is RecordKind.NOTE and (act := act_of(record.metadata)) is not None:
                acts.append(act)
    return acts[::-1]
