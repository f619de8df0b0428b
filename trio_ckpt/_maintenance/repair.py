"""Repairs a store and the outputs of its runs, and reports what it cannot repair.

Theory of operation
===================

First the store's own files, without opening the store (`repair_folder`): afterwards the store can
be opened, and each stream has only valid records or is as it was.  Then, run by run and under its
lock, a repair does with damaged outputs and states what a start does, by the same records: batches
are re-queued, and a state goes back to the newest one that is whole.

Nothing is deleted: what is replaced or cut off is kept in ``damaged/`` of the store's folder, and
outputs in the archive of their folder.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from contextlib import aclosing
from pathlib import Path

import attrs

from .._journal.history import list_all_runs
from .._journal.store import Finding, FindingKind, Repaired, Store
from .._runs.manifest import MANIFEST
from .._runs.verify import MISSING, MISSING_MANY
from .._util.errors import StoreDamagedError, StoreError, StoreVersionError, TrioCkptError
from .._util.index_set import IndexSet
from .._util.log import at, get_logger
from .._util.plain import StreamKey, decode_key
from .._util.text import batches_are, plural, printable, stream_name
from .._util.threads import run_blocking
from ..outputs import AnyPath
from ..stores import folder_of, open_store
from ..stores._json.files import check_marker, make_marker
from ..stores._local.files import explain, make_member, need_folder
from ..stores._local.locks import FileLock, lock_opening
from .offline import (
    Maintenance,
    cut_tail,
    drop_states,
    open_maintenance,
    recover_state,
    requeue_all,
    rewrite_manifest,
)
from .recover_json import recover_runs
from .recover_sqlite import recover_database
from .recovery import Recovery
from .verify_store import check_all

log = get_logger(__name__)

REASON = "put back by a repair: its output is damaged"


@attrs.frozen
class RepairReport:
    """The result of a repair.

    Attributes:
        done: What was repaired.
        not_done: What could have been repaired, and why it was not.
        left: What is still wrong.
    """

    done: tuple[Repaired, ...]
    not_done: tuple[Repaired, ...]
    left: tuple[Finding, ...]


def needs_store_repair(findings: Iterable[Finding]) -> bool:
    """Whether some findings are about the store's own files."""
    of_runs = (FindingKind.STATE, FindingKind.OUTPUT)
    return any(finding.is_damage and finding.kind not in of_runs for finding in findings)


async def repair_all(
    url: str,
    findings: Sequence[Finding],
    run_id: str | None = None,
    *,
    output_dir: AnyPath | None = None,
    accept_loss: bool = False,
    mac_key: bytes | None = None,
) -> RepairReport:
    """Repair what was found.

    Args:
        url: The store, in a local folder.
        findings: The findings of `check_all`, or why the store cannot be opened.
        run_id: Only this run's outputs and states; the store's own files are those of all runs.
        output_dir: The run's output folder; default: that of its last session.
        accept_loss: Whether a stream may lose intact records that follow a damaged one.
        mac_key: Seals the store's records.

    Raises:
        RunLockedError: another process owns a run that needs repair.
        StoreError: the store cannot be repaired; the message says why.

    Durability: repairs survive power loss when this returns; after a kill at any moment the
        command can be given again.
    Cancellation: a cancellation point between repairs.
    """
    done: list[Repaired] = []
    not_done: list[Repaired] = []
    if needs_store_repair(findings):
        folder = folder_of(url)
        kind = await run_blocking(kind_of, folder) if folder else None
        if kind is not None:
            repaired = await run_blocking(
                lambda: repair_folder(Path(folder), kind, mac_key=mac_key, accept_loss=accept_loss)
            )
            done += repaired.done
            not_done += repaired.left
    async with aclosing(await open_store(url, mac_key=mac_key, create=False)) as store:
        for name in await _runs_of(store, run_id, not_done):
            folder_now = output_dir if run_id is not None else None
            try:
                await _Mender(store, name, folder_now, done, not_done, accept_loss).mend()
            except TrioCkptError as error:
                not_done.append(Repaired(f"run {name!r}", str(error)))
        async with aclosing(check_all(store, run_id, output_dir=output_dir)) as found:
            left = [finding async for finding in found if finding.is_damage]
    for part in done:
        log.warning("%s: %s", printable(part.where), printable(part.what), extra=at(run_id))
    return RepairReport(tuple(done), tuple(not_done), tuple(left))


async def _runs_of(store: Store, run_id: str | None, not_done: list[Repaired]) -> list[str]:
    if run_id is not None:
        return [run_id]
    try:
        return [run.run_id for run in await list_all_runs(store)]
    except StoreError as error:
        not_done.append(Repaired(store.url, f"its runs cannot be listed: {error}"))
        return []


@attrs.define(eq=False)
class _Mender:
    """Repairs outputs and states of one run."""

    store: Store
    run_id: str
    output_dir: AnyPath | None
    done: list[Repaired]
    not_done: list[Repaired]
    accept_loss: bool

    async def mend(self) -> None:
        """Repair what is damaged."""
        checked = check_all(self.store, self.run_id, output_dir=self.output_dir)
        async with aclosing(checked) as found:
            mine = [f async for f in found if f.is_damage and f.run_id == self.run_id]
        newest = [f for f in mine if f.stream is not None or f.path is not None]
        if not newest:
            return
        if lost := [
            finding for finding in mine if finding.kind is FindingKind.LOSS
        ]:  # a new owner would forget it
            what = f"nothing else of it is mended: {lost[0].what}"
            self.not_done.append(Repaired(f"run {self.run_id!r}", what))
            return
        async with open_maintenance(
            self.store, self.run_id, output_dir=self.output_dir
        ) as maintenance:
            generation = maintenance.view.generation
            newest = [f for f in newest if f.generation in (None, generation)]
            by_stream: dict[StreamKey, list[Finding]] = {}
            for finding in newest:
                if finding.stream is not None:
                    by_stream.setdefault(decode_key(finding.stream), []).append(finding)
            for key, findings in by_stream.items():
                if key in maintenance.view.streams:
                    await self._try(maintenance, key, findings)
            if any(f.path == MANIFEST and f.stream is None for f in newest):
                await self._rewrite_manifest(maintenance)

    async def _try(self, maintenance: Maintenance, key: StreamKey, findings: list[Finding]) -> None:
        where = f"stream {stream_name(key)!r} of run {self.run_id!r}"
        try:
            states = [finding for finding in findings if finding.kind is FindingKind.STATE]
            if states and (taken := await self._recover(maintenance, key)) is not None:
                self._say(where, f"its state is again the newest that is whole{_back(taken)}")
            if old := [finding.sequence for finding in states if finding.sequence is not None]:
                await drop_states(maintenance, key, old)
                self._say(where, f"{len(old)} old states that are damaged were dropped", True)
            await self._redo(maintenance, key, where, findings)
            for finding in findings:
                if finding.path is not None and finding.batch_index is None:
                    await cut_tail(maintenance, key, finding.path)
                    self._say(f"output {finding.path}", "what followed its confirmed end was cut")
        except TrioCkptError as error:
            self.not_done.append(Repaired(where, str(error)))

    async def _recover(self, maintenance: Maintenance, key: StreamKey) -> IndexSet | None:
        """Go back to the newest state that is whole; None: the newest one is."""
        try:
            return await recover_state(maintenance, key)
        except StoreDamagedError:
            if not self.accept_loss:
                raise
            return await requeue_all(maintenance, key, "no saved state of it is whole")

    async def _redo(
        self, maintenance: Maintenance, key: StreamKey, where: str, findings: list[Finding]
    ) -> None:
        bad = [f for f in findings if f.path is not None and f.batch_index is not None]
        batches = sorted({f.batch_index for f in bad if f.batch_index is not None})
        missing = sum(f.what == MISSING for f in bad)
        if missing > MISSING_MANY:
            what = f"{plural(missing, 'output')} missing: is the output folder right? A start with "
            self.not_done.append(Repaired(where, what + "redo_missing=True does them again"))
            return
        if not batches:
            return
        if maintenance.view.streams[key].progress.is_ordered:
            taken = await maintenance.rewind(key, to=batches[0] - 1, reason=REASON)
        else:
            await maintenance.redo(key, batches, REASON)
            taken = IndexSet(batches)
        self._say(where, f"outputs were damaged{_back(taken)}")

    async def _rewrite_manifest(self, maintenance: Maintenance) -> None:
        try:
            if await rewrite_manifest(maintenance):
                self._say(MANIFEST, "it was written from the records")
        except TrioCkptError as error:
            self.not_done.append(Repaired(MANIFEST, str(error)))

    def _say(self, where: str, what: str, is_loss: bool = False) -> None:
        self.done.append(Repaired(where, what, is_loss))


def _back(taken: IndexSet) -> str:
    return f": {batches_are(taken)} re-queued" if taken else ""


# ---------------------------------------------------------------------------------------
# The store's own files
# ---------------------------------------------------------------------------------------


def repair_folder(folder: Path, kind: str, *, mac_key: bytes | None, accept_loss: bool) -> Recovery:
    """Repair a local store from the files in its folder; says what was repaired.  Blocking.

    Files that it replaces are kept in ``damaged/`` first.

    Args:
        folder: The store's folder.
        kind: "sqlite" or "json".
        mac_key: Seals its records.
        accept_loss: Whether a stream may lose intact records that follow a damaged one.

    Raises:
        StoreError: a process owns a run of the store, it cannot be written, or nothing can be read.

    Durability: repairs survive power loss when this returns; a crash leaves each file in its old or
        its new state.
    """
    with explain(folder, "repairing"):
        make_member(folder / "lock")
        need_folder(folder / "blobs")
        opening = lock_opening(folder)
        try:
            alone = FileLock.open(folder / "lock" / "store")
            try:
                if not alone.take(wait=False):
                    raise StoreError(f"{folder}: a process owns a run of this store: stop it first")
                recovery = Recovery(folder, mac_key, accept_loss)
                recovery.put_bad_blobs_aside()
                recovery.put_bad_watermarks_aside()
                if kind == "sqlite":
                    recover_database(recovery)
                else:
                    _mend_marker(recovery)
                    recover_runs(recovery)
                return recovery
            finally:
                alone.release()
        finally:
            opening.release()


def _mend_marker(recovery: Recovery) -> None:
    """Rewrite the file that says what kind of store the folder is."""
    try:
        check_marker(recovery.folder)
    except StoreVersionError:
        raise
    except StoreError:
        marker = recovery.folder / "store.json"
        if marker.exists():
            recovery.put_aside(marker)
        make_marker(recovery.folder)
        recovery.report(marker.name, "it was rewritten")


def kind_of(folder: str | os.PathLike[str]) -> str | None:
    """Tell the kind of store in a folder by the files that only this kind has."""
    try:
        if os.path.lexists(os.path.join(folder, "state.db")):
            return "sqlite"
        return "json" if os.path.isdir(os.path.join(folder, "runs")) else None
    except ValueError:  # not a path
        return None
