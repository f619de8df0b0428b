"""Steers a run from outside: asks its process, or does without one what can be done without one."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path

import msgspec
import trio

from .._commit.give_up import check_done, known_end, skip_records
from .._journal.acts import (
    MAX_REPLY_BYTES,
    Act,
    ActRefusedError,
    ActReply,
    act_note,
    act_text,
    decode_reply,
    encode_line,
    indexes_of,
    paused_text,
)
from .._journal.history import session_metadata_of
from .._journal.record import PAUSED
from .._journal.store import Owner, Store
from .._util.errors import CannotRedoError, RunLockedError, StoreError, UnknownStreamError
from .._util.text import batches_are
from .._util.threads import run_blocking
from ..stores import folder_of
from ..stores._local.control_socket import connect_to_run, is_of_other_user
from .ask_inbox import ask_inbox
from .offline import Maintenance, open_maintenance, progress_in, redo_by_act, save_act

FIND_S = 2.0  # a run that has just begun makes its socket after it has taken its lock
LOOK_EVERY_S = 0.05
ASK_S = 90.0  # an act waits for a save, which may take `save_timeout_s`

OFFLINE = "no process runs the run"


async def steer(store: Store, run_id: str, act: Act) -> ActReply:
    """Do an act on a run: by the process that runs it, or here if no process does.

    Args:
        store: The store of the run.
        run_id: The run.
        act: The act.

    Returns:
        What was done.

    Raises:
        ActRefusedError: it was not done; the message says why.
        UnknownRunError: the store has no such run.
        StoreError: the store cannot be used.

    Durability: when this returns the act is durable.
    Cancellation: a cancellation point; whether the act was done is in the history of the run.
    """
    until = trio.current_time() + FIND_S
    while True:
        owner, reply = await store.read_owner(run_id), None
        try:
            if owner is None:
                return await _do_offline(store, run_id, act)
            if store.inbox_every_s is None:
                reply = await _ask(store, run_id, act, owner)
            else:
                reply = await ask_inbox(store, run_id, act, ASK_S)
                until = trio.current_time() + FIND_S  # it may have waited for long
        except RunLockedError as error:  # it has just begun
            if trio.current_time() > until:
                raise ActRefusedError(str(error), run_id=run_id) from error
        if reply is not None:
            if not reply.is_done:
                raise ActRefusedError(f"run {run_id!r}: {reply.text}", run_id=run_id)
            return reply
        if owner is not None and store.inbox_every_s is None and trio.current_time() > until:
            raise _no_socket(run_id, owner)
        await trio.sleep(LOOK_EVERY_S)


# -- a process runs the run ------------------------------------------------------------------------


async def _ask(store: Store, run_id: str, act: Act, owner: Owner) -> ActReply | None:
    """Ask the process that runs a run; None: no process listens at its socket.

    Raises:
        ActRefusedError: the store has no such sockets, or the process gives no answer.
    """
    folder = folder_of(store.url)
    if not folder:
        raise ActRefusedError(
            f"run {run_id!r} is running: {_who(owner)}; its store has neither a folder, beside "
            "which a socket could be, nor an inbox: stop it by a signal",
            run_id=run_id,
        )
    try:
        connection = await run_blocking(connect_to_run, Path(folder), run_id)
    except StoreError as error:
        raise ActRefusedError(
            f"run {run_id!r} is running ({_who(owner)}), and cannot be steered: {error}",
            run_id=run_id,
        ) from error
    if connection is None:
        return None
    async with trio.SocketStream(trio.socket.from_stdlib_socket(connection)) as stream:
        with trio.move_on_after(ASK_S):
            if is_of_other_user(stream.socket):
                raise ActRefusedError(
                    f"run {run_id!r}: another user listens at its socket", run_id=run_id
                )
            return await _exchange(stream, act)
    raise _no_answer(run_id)


async def _exchange(stream: trio.SocketStream, act: Act) -> ActReply:
    received = bytearray()
    try:
        await stream.send_all(encode_line(act))
        while b"\n" not in received and len(received) <= MAX_REPLY_BYTES:
            some = await stream.receive_some(MAX_REPLY_BYTES)
            if not some:
                break
            received += some
    except (trio.BrokenResourceError, OSError) as error:
        raise _no_answer() from error
    if b"\n" not in received:
        raise _no_answer()
    return decode_reply(bytes(received))


def _no_answer(run_id: str | None = None) -> ActRefusedError:
    return ActRefusedError(
        "the process that runs the run gave no answer; trio-ckpt history shows whether it did it",
        run_id=run_id,
    )


def _no_socket(run_id: str, owner: Owner) -> ActRefusedError:
    return ActRefusedError(
        f"run {run_id!r} is owned ({_who(owner)}), but no process listens at its socket: it is on "
        "another machine, or in a container or a service with temporary files of its own; it is a "
        "command such as trio-ckpt compact; or it could not make a socket, as its log says",
        run_id=run_id,
    )


def _who(owner: Owner) -> str:
    return f"process {owner.pid} on {owner.host}"


# -- no process runs the run -----------------------------------------------------------------------


async def _do_offline(store: Store, run_id: str, act: Act) -> ActReply:
    """Do an act on a run that no process runs."""
    if act.do == "status":
        return await _read_status(store, run_id)
    deed = _OFFLINE.get(act.do)
    if deed is None:
        raise ActRefusedError(f"{OFFLINE}, and {act.do} needs one", run_id=run_id)
    async with open_maintenance(store, run_id) as maintenance:
        try:
            text = await deed(maintenance, msgspec.structs.replace(act, at=time.time()))
        except (CannotRedoError, UnknownStreamError, ValueError) as error:
            raise ActRefusedError(str(error), run_id=run_id) from error
    return ActReply(True, f"{OFFLINE}: {text}")


async def _pause(maintenance: Maintenance, act: Act) -> str:
    _check_pause(maintenance, act)
    await save_act(maintenance, act_note(act))
    return "the next start starts paused"


async def _resume(maintenance: Maintenance, act: Act) -> str:
    _check_pause(maintenance, act)
    await save_act(maintenance, act_note(act))
    return "the next start hands out batches again"


async def _requeue(maintenance: Maintenance, act: Act) -> str:
    indexes, progress = indexes_of(act), progress_in(maintenance, act.stream)
    if progress.has_frontier:
        raise ValueError("the stream has a Frontier, which has dropped its items")
    check_done(progress, indexes)
    await redo_by_act(maintenance, act.stream, indexes, act_note(act), act_text(act))
    return f"{batches_are(indexes)} re-queued, for the next start"


async def _skip(maintenance: Maintenance, act: Act) -> str:
    indexes, progress = indexes_of(act), progress_in(maintenance, act.stream)
    records = skip_records(progress, indexes, act_text(act), stop=known_end(progress))
    await save_act(maintenance, act_note(act), act.stream, records)
    return f"{batches_are(indexes)} skipped, for the next start"


_OFFLINE: Mapping[str, Callable[[Maintenance, Act], Awaitable[str]]] = {
    "pause": _pause,
    "resume": _resume,
    "requeue": _requeue,
    "skip": _skip,
}
"""What can be done to a run that no process runs."""


async def _read_status(store: Store, run_id: str) -> ActReply:
    view = await store.load_run(run_id)
    metadata = {} if view is None else session_metadata_of(view)
    return ActReply(
        True,
        OFFLINE,
        {
            "session": metadata.get("session", 0),
            "paused": metadata.get(PAUSED),
            "stopping": None,
            "limits": {},  # those of the last session have ended with it
            "streams": [],
        },
    )


def _check_pause(maintenance: Maintenance, act: Act) -> None:
    """Raise ActRefusedError if there is nothing to pause or to resume."""
    metadata, run_id = session_metadata_of(maintenance.view), maintenance.view.run_id
    if not metadata:
        raise ActRefusedError(f"run {run_id!r} has had no session", run_id=run_id)
    paused = paused_text(metadata)
    if act.do == "resume" and not paused:
        raise ActRefusedError(f"run {run_id!r} is not paused", run_id=run_id)
    if act.do == "pause" and paused:
        raise ActRefusedError(f"run {run_id!r} is paused already, {paused}", run_id=run_id)
