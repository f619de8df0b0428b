"""The lock of a run, and what other processes read of its owner."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from trio_ckpt.stores._local import locks


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux reports the holder of a lock")
def test_a_run_that_is_marked_has_a_note(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A reader never takes an owner that is releasing for an unknown one."""
    (tmp_path / "lock").mkdir()
    owned = locks.lock_run(tmp_path, "run")
    reader = locks.FileLock.open(owned.run.path)
    seen: list[bool] = []
    truncate = os.ftruncate

    def look_first(fd: int, length: int) -> None:
        seen.append(reader.is_marked())
        truncate(fd, length)

    assert reader.is_marked()
    assert os.pread(reader.fd, 1, 0)
    monkeypatch.setattr(locks.os, "ftruncate", look_first)
    owned.release()
    reader.close()
    assert seen == [False]
