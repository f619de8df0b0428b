"""What a power cut leaves of real files: the model of `trio_ckpt.testing` fed from a log.

The model says what a disk may have after a cut; the recorder's log says what was done before it.
"""

from __future__ import annotations

import os
import random
from collections.abc import Iterable
from pathlib import Path

import attrs

from tests.crash.recorder import SYNCS, Kind, Operation
from trio_ckpt.testing._inodes import File, Folder, Resize, Write, after_power_cut, move

Node = File | Folder


class UnknownFileError(Exception):
    """The log names a file that no operation made: an operation escaped the recorder."""


@attrs.define(eq=False)
class Disk:
    """The watched folder as the operations so far have left it, and what of it is synced.

    Attributes:
        root: The folder; that it is there is sure.
        marks: What the program said so far.
    """

    root: Folder = attrs.field(factory=lambda: Folder(0))
    marks: list[str] = attrs.field(factory=list[str])
    _by_inode: dict[int, Node] = attrs.field(factory=dict[int, Node], init=False)
    _numbers: int = attrs.field(default=0, init=False)  # the kernel gives an inode's again

    def apply(self, operation: Operation) -> None:
        """Do what was done."""
        kind = operation.kind
        if kind is Kind.MARK:
            self.marks.append(operation.path)
        elif kind & SYNCS:
            self._sync(operation)
        elif operation.error:
            return
        elif kind in (Kind.MAKE, Kind.MKDIR):
            self._make(operation)
        elif kind in (Kind.WRITE, Kind.RESIZE):
            self._change(operation)
        else:
            self._rename(operation)

    def _make(self, operation: Operation) -> None:
        folder, name = self._place(operation.path)
        self._numbers += 1
        node: Node = (
            Folder(self._numbers)
            if operation.kind is Kind.MKDIR
            else File(self._numbers, mtime_ns=operation.mtime_ns)
        )
        folder.rename({name: node}, operation.mtime_ns)
        self._by_inode[operation.inode] = node

    def _change(self, operation: Operation) -> None:
        file = self._opened(operation)
        if not isinstance(file, File):
            raise UnknownFileError(f"{operation} is of a folder")
        write = Write(operation.offset, operation.data)
        change = write if operation.kind is Kind.WRITE else Resize(operation.size)
        file.change(change, operation.mtime_ns)

    def _sync(self, operation: Operation) -> None:
        node = self._opened(operation)
        if operation.error:
            # The names of a folder are in the journal: they may still arrive.
            if isinstance(node, File):
                node.lose()
        elif isinstance(node, Folder):
            node.sync()
        else:
            node.sync(with_time=operation.kind is Kind.SYNC)

    def _rename(self, operation: Operation) -> None:
        folder, name = self._place(operation.path)
        node = folder.entries.get(name)
        if node is None:
            raise UnknownFileError(f"{operation}: nothing has this name")
        if operation.kind is Kind.RENAME:
            target, goal = self._place(operation.goal)
            move(node, folder, name, target, goal, operation.mtime_ns)
            return
        if isinstance(node, File):
            node.links -= 1
        folder.rename({name: None}, operation.mtime_ns)

    def _opened(self, operation: Operation) -> Node:
        node = self._by_inode.get(operation.inode) if operation.path else self.root
        if node is None:
            raise UnknownFileError(f"{operation}: no operation made this file")
        return node

    def _place(self, path: str) -> tuple[Folder, str]:
        *parts, last = path.split("/")
        folder: Node | None = self.root
        for part in parts:
            folder = folder.entries.get(part) if isinstance(folder, Folder) else None
        if not isinstance(folder, Folder):
            raise UnknownFileError(f"{path}: its folder was never made")
        return folder, last

    def cut(self, seed: int) -> Folder:
        """What a power cut now may leave; the seed decides."""
        return after_power_cut(self.root, random.Random(seed))

    def contents(self) -> dict[str, bytes | None]:
        """What is read now, by path; None: a folder.  To be compared with the real one."""
        return contents_of(self.root)


def replay(operations: Iterable[Operation]) -> Disk:
    """The disk after these operations."""
    disk = Disk()
    for operation in operations:
        disk.apply(operation)
    return disk


def contents_of(folder: Folder, path: str = "") -> dict[str, bytes | None]:
    """Every path below a folder of the model, and its content; None: a folder."""
    found: dict[str, bytes | None] = {}
    for name, node in folder.entries.items():
        if isinstance(node, Folder):
            found[path + name] = None
            found |= contents_of(node, f"{path}{name}/")
        else:
            found[path + name] = node.data
    return found


def write_tree(folder: Folder, goal: Path) -> None:
    """Make a real folder of one of the model; `goal` is there, and empty."""
    for name, node in folder.entries.items():
        path = goal / name
        if isinstance(node, Folder):
            path.mkdir(mode=0o700)
            write_tree(node, path)
        else:
            path.write_bytes(node.data)
            os.utime(path, ns=(node.mtime_ns, node.mtime_ns))
