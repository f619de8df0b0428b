"""A system that fails at a given call, and helpers that inspect files."""

from __future__ import annotations

import errno
import hashlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from trio_ckpt._util.errors import OutputError
from trio_ckpt.outputs import OutputDir, System
from trio_ckpt.outputs._system import ROOT
from trio_ckpt.outputs._tree import TEMP_NAME

CALLS = [name for name in vars(System) if not name.startswith("_")]
CHANGES = {"mkdir", "pwrite", "truncate", "fsync", "fdatasync", "rename", "link", "unlink"}


class Killed(BaseException):
    """The process is gone: no call after it does anything."""


class FaultySystem(System):
    """Fails its k-th call, records its calls, and may write little at a time."""

    def __init__(
        self,
        fail_at: int = 0,
        error: BaseException | None = None,
        *,
        only: str | None = None,
        write_at_most: int = 2**30,
    ) -> None:
        self.fail_at, self.error, self.only = fail_at, error, only
        self.write_at_most = write_at_most
        self.count = 0
        self.failed = ""
        self.changes: list[str] = []  # "fsync a/b", in order, from `names`
        self.names: dict[int, str] = {}  # of open files and folders

    def call(self, name: str, fd: int, *args: Any, **kwargs: Any) -> Any:
        if isinstance(self.error, Killed) and self.failed:
            raise self.error
        if self.only in (None, name):
            self.count += 1
            if self.count == self.fail_at:
                self.failed = name
                if name == "close":  # close(2): the descriptor is gone even so
                    self.names.pop(fd, None)
                    super().close(fd)
                assert self.error is not None
                raise self.error
        if name == "pwrite":
            data, offset = args
            args = (data[: self.write_at_most], offset)
        if name in CHANGES:
            self.changes.append(f"{name} {self.where(name, fd, *args, **kwargs)}")
        result = getattr(System, name)(self, fd, *args, **kwargs)
        if name == "open":
            is_root = args[0] == ROOT
            self.names[result] = (
                "" if is_root else f"{self.names[kwargs['dir_fd']]}/{fd}".lstrip("/")
            )
        if name == "close":
            self.names.pop(fd, None)
        return result

    def where(self, name: str, fd: Any, *args: Any, dir_fd: int = -1, **kwargs: Any) -> str:
        if name in ("rename", "link"):
            folder, last = kwargs["dst_dir_fd"], args[0]
        elif name in ("mkdir", "unlink"):
            folder, last = dir_fd, fd
        else:
            return self._tidy(self.names[fd])
        return self._tidy(f"{self.names[folder]}/{last}".lstrip("/"))

    @staticmethod
    def _tidy(path: str) -> str:
        return "temp" if TEMP_NAME.fullmatch(path.rpartition("/")[2]) else path or "root"

    def die(self) -> None:
        """What the kernel does for a killed process."""
        for fd in self.names:
            os.close(fd)
        self.names.clear()


def _pass_through(name: str) -> Callable[..., Any]:
    return lambda self, *args, **kwargs: self.call(name, *args, **kwargs)


for _name in CALLS:
    setattr(FaultySystem, _name, _pass_through(_name))


def files_in(root: Path) -> dict[str, bytes]:
    """Every file below a folder, with its content."""
    return {
        str(path.relative_to(root)): path.read_bytes()
        for path in sorted(root.rglob("*"))
        if path.is_file() and not path.is_symlink()
    }


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


ERRORS = [errno.EIO, errno.ENOSPC, errno.EACCES]


def sweep(
    root: Path, make_error: Callable[[], BaseException], work: Callable[[OutputDir], object]
) -> Iterator[tuple[Path, FaultySystem]]:
    """Do the work with its k-th call failing, for every k there is, in a folder of its own."""
    for k in range(1, 200):
        before = OutputDir.open(root / str(k))
        before.write("a/f", b"old")
        before.close()
        system = FaultySystem(write_at_most=2)
        outdir = OutputDir.open(root / str(k), system=system)
        error = make_error()
        system.count, system.fail_at, system.error = 0, k, error
        raised: BaseException | None = None
        try:
            work(outdir)
        except (OutputError, Killed) as caught:
            raised = caught
        system.fail_at = 0
        assert bool(system.failed) == (raised is not None) or system.failed == "lock"
        assert raised is None or any(e is error for e in (raised, raised.__cause__))
        if isinstance(raised, Killed):
            system.die()
        else:
            outdir.close()
        assert not system.names
        if not system.failed:
            assert k > 5
            return
        yield root / str(k), system
    raise AssertionError("the work does not end")
