"""Repairs the folder of a local store, also one that cannot be opened."""

from __future__ import annotations

import os
from pathlib import Path

from .._util.errors import StoreError, StoreVersionError
from ..stores._json.files import check_marker, make_marker
from ..stores._local.files import explain, make_member, need_folder
from ..stores._local.locks import FileLock, lock_opening
from .recover_json import recover_runs
from .recover_sqlite import recover_database
from .recovery import Recovery


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
