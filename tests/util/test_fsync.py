"""A file system that has no fsync for folders is named, and nothing counts as durable on it."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path

import pytest
import trio

from trio_ckpt import OutputError, StoreError, TrioCkptError, export_run, open_run
from trio_ckpt._journal.store import Severity
from trio_ckpt._maintenance.doctor import examine
from trio_ckpt.stores import open_store

REFUSALS = [errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP]


class Unsynced:
    """Refuses the fsync of one folder, as such a file system does."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder = Path()
        self.code = errno.EINVAL
        self._fsync = os.fsync
        monkeypatch.setattr(os, "fsync", self.fsync)

    def fsync(self, fd: int) -> None:
        found = os.fstat(fd)
        if stat.S_ISDIR(found.st_mode) and self.folder.name and self.folder.exists():
            asked = self.folder.stat()
            if (found.st_dev, found.st_ino) == (asked.st_dev, asked.st_ino):
                raise OSError(self.code, os.strerror(self.code))
        self._fsync(fd)


@pytest.fixture
def unsynced(monkeypatch: pytest.MonkeyPatch) -> Unsynced:
    return Unsynced(monkeypatch)


async def work(store: str, output_dir: Path) -> None:
    async with (
        open_run("r", store=store, output_dir=output_dir) as run,
        run.open_stream("s") as stream,
    ):
        async for batch in stream.batches(range(3)):
            await batch.write_json(f"a/{batch.index}.json", [batch.index])
            batch.append_json("all.jsonl", batch.index)
            batch.complete()


@pytest.mark.parametrize("code", REFUSALS)
@pytest.mark.parametrize(
    ("scheme", "folder"),
    [
        ("sqlite", ""),
        ("sqlite", "store"),
        ("json", "store"),
        ("json", "store/runs"),
        ("json", "store/runs/r"),
        ("memory", "out"),
        ("memory", "out/a"),
        ("memory", ""),
    ],
)
async def test_a_folder_that_cannot_be_synced_is_named(
    tmp_path: Path, unsynced: Unsynced, code: int, scheme: str, folder: str
) -> None:
    unsynced.folder, unsynced.code = tmp_path / folder, code
    kind = OutputError if scheme == "memory" else StoreError
    store = "memory:" if scheme == "memory" else f"{scheme}:{tmp_path / 'store'}"
    with pytest.raises(TrioCkptError) as caught:
        await work(store, tmp_path / "out")
    found: BaseException = caught.value
    while not isinstance(found, kind):
        assert found.__cause__ is not None
        found = found.__cause__
    assert f"{tmp_path / folder} cannot be synced ({os.strerror(code)})" in str(found)
    assert "use a folder on a local disk" in str(found)
    unsynced.folder = Path()
    await work(store, tmp_path / "out")


async def test_an_archive_is_not_called_written_in_such_a_folder(
    tmp_path: Path, unsynced: Unsynced
) -> None:
    await work(f"sqlite:{tmp_path / 'store'}", tmp_path / "out")
    store = await open_store(f"sqlite:{tmp_path / 'store'}")
    unsynced.folder = tmp_path / "there"
    unsynced.folder.mkdir()
    with pytest.raises(OutputError, match="there cannot be synced"):
        await export_run(store, "r", unsynced.folder / "r.zip")
    await store.aclose()


async def test_a_failed_fsync_is_no_missing_one(tmp_path: Path, unsynced: Unsynced) -> None:
    unsynced.folder, unsynced.code = tmp_path / "store", errno.EIO
    with pytest.raises(StoreError, match="Input/output error") as caught:
        await work(f"sqlite:{tmp_path / 'store'}", tmp_path / "out")
    assert "cannot be synced" not in str(caught.value)


async def test_doctor_names_such_a_folder(tmp_path: Path, unsynced: Unsynced) -> None:
    unsynced.folder = tmp_path
    found = {one.where: one for one in await trio.to_thread.run_sync(examine, tmp_path)}
    assert found["fsync"].severity is Severity.BAD
    assert f"{tmp_path} cannot be synced" in found["fsync"].what
