"""A file system in a file whose power can be cut, on a Linux machine and as root."""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
import struct
import subprocess
import tempfile
import time
from contextlib import suppress
from pathlib import Path

import attrs

from tests.hangs import HANG_S

IMAGE_BYTES = 64 * 2**20  # ext4's journal takes 4 MiB of it, a run 2 MiB
OPTIONS = ("data=ordered", "data=ordered,nodelalloc", "data=writeback")  # of the mount
FS_IOC_SHUTDOWN = 0x8004587D  # _IOR('X', 125, __u32)
NO_LOG_FLUSH = 2
FREE_AGAIN_S = HANG_S  # until a file system that was shut down releases its last process

NO_PRIVILEGE = "no privilege: "  # how tests/conftest.py knows what CI may skip


class CannotCutError(Exception):
    """Power cannot be cut here; says why."""


@attrs.define(eq=False)
class Disk:
    """A file system whose power can be cut; a context manager that leaves nothing mounted."""

    folder: Path
    is_mounted: bool = attrs.field(default=False, init=False)

    @classmethod
    def make(cls) -> Disk:
        """Make one, and see that it can be mounted.

        Raises:
            CannotCutError: it cannot.
        """
        if os.geteuid() != 0:
            raise CannotCutError(f"{NO_PRIVILEGE}only root may mount a file system")
        if shutil.which("mkfs.ext4") is None:
            raise CannotCutError("there is no mkfs.ext4: install e2fsprogs")
        fast = Path("/dev/shm")  # what the image is on need not be durable, only fast
        self = cls(Path(tempfile.mkdtemp(prefix="power-cut-", dir=fast if fast.is_dir() else None)))
        try:
            self._format()
            self.mount(OPTIONS[0])
            self.cut()
            self.unmount()
        except BaseException:
            self.close()
            raise
        return self

    def __enter__(self) -> Disk:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def root(self) -> Path:
        """Where it is mounted."""
        return self.folder / "mounted"

    def _format(self) -> None:
        self.root.mkdir()
        image = self.folder / "image"
        with image.open("wb") as file:
            file.truncate(IMAGE_BYTES)
        subprocess.run(["mkfs.ext4", "-q", "-F", "-m", "0", str(image)], check=True)

    def mount(self, options: str) -> None:
        """Mount it; the loop device goes away when it is unmounted.

        Raises:
            CannotCutError: this machine does not let us.
        """
        command = ["mount", "-o", f"loop,{options}", str(self.folder / "image"), str(self.root)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise CannotCutError(f"{NO_PRIVILEGE}{done.stderr.strip()}")
        self.is_mounted = True

    def cut(self) -> None:
        """From now on nothing reaches it."""
        fd = os.open(self.root, os.O_RDONLY)
        try:
            fcntl.ioctl(fd, FS_IOC_SHUTDOWN, struct.pack("I", NO_LOG_FLUSH))
        except OSError as error:
            raise CannotCutError(f"{NO_PRIVILEGE}FS_IOC_SHUTDOWN: {error.strerror}") from error
        finally:
            os.close(fd)

    def unmount(self) -> None:
        """Let go of it, when the last process on it has ended."""
        until = time.monotonic() + FREE_AGAIN_S
        while True:
            done = subprocess.run(["umount", str(self.root)], capture_output=True, check=False)
            if done.returncode == 0:
                self.is_mounted = False
                return
            if time.monotonic() > until:
                raise OSError(errno.EBUSY, done.stderr.decode().strip())
            time.sleep(0.01)

    def close(self) -> None:
        """Unmount it whatever happens, and remove it."""
        if self.is_mounted:
            with suppress(OSError):
                self.unmount()
        if self.is_mounted:  # detached: gone with the last process on it
            subprocess.run(["umount", "--lazy", str(self.root)], check=False)
        shutil.rmtree(self.folder, ignore_errors=self.is_mounted)
