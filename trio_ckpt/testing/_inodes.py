"""Files and folders in memory, and what a power cut may leave of them.

Theory of operation
===================

A file has two contents: what is read now, and what was synced last, with the changes in
between.  A folder has the same of its names.  A kill keeps what is read now: it is in the
kernel's hands.  A power cut keeps what was synced, and any part of the later changes, in any
order, because the kernel writes back when and in what order it likes:

* content arrives by sectors of 512 bytes, counted in the file: each is as it was at some
  moment since the sync, whole; a new size may come without its bytes, which are zeros then;
* a name may arrive before the content behind it, a rename before the data of the file that
  it renames, as on ext4 with delayed allocation;
* a new file, or a removed one, may be as if nothing had been done.

What journals promise of names holds, too, so that no rename loses a file.  A rename within one
folder is there whole or not at all.  Between two folders the old name never goes before the
new one is there, and every folder on the way to it.  What was done to one name arrives in
order, and the folder that moves, or makes room for another, brings its own names along.
Syncing a file says nothing of its name: POSIX promises no more.
(Pillai et al., "All File Systems Are Not Created Equal", 2014, describes real ones.)
"""

from __future__ import annotations

import enum
import random
from collections.abc import Iterable, Iterator

import attrs

SECTOR_BYTES = 512  # what disks promise to write whole


class Fate(enum.Enum):
    """What kind of power cut it was."""

    NOTHING = "nothing that was not synced is left"
    NAMES = "names are left, the data behind them is not"
    SOME = "a part of what was not synced is left"


FATES = (Fate.NOTHING, Fate.NAMES, Fate.SOME)
WEIGHTS = (2, 1, 2)  # the worst is the likeliest to show a missing fsync
SHARES = (0.5, 0.9)  # a long row of changes to one name breaks off early, or late


@attrs.frozen
class Write:
    """Bytes that were written at an offset."""

    offset: int
    data: bytes


@attrs.frozen
class Resize:
    """A file that was cut, or made longer by zeros."""

    size: int


@attrs.define(eq=False)
class File:
    """A file, whatever its names.

    Attributes:
        number: Its inode's.
        data: What is read.
        mtime_ns: When it was changed.
        links: How many names it has.
        synced: What the disk is sure to have.
        synced_mtime_ns: The same of its time; an inode gets to the disk with that of its making.
        pending: The changes since it was synced, which a later sync makes the disk have.
        is_whole: A sync made the disk have what is read: none has failed.
    """

    number: int
    data: bytes = b""
    mtime_ns: int = 0
    links: int = 1
    synced: bytes = b""
    synced_mtime_ns: int = attrs.field(
        default=attrs.Factory(lambda self: self.mtime_ns, takes_self=True)
    )
    pending: list[Write | Resize] = attrs.field(factory=list[Write | Resize])
    is_whole: bool = True

    def change(self, change: Write | Resize, now_ns: int) -> None:
        """Change what is read."""
        self.data = changed(self.data, change)
        self.mtime_ns = now_ns
        self.pending.append(change)

    def show(self, change: Write, now_ns: int) -> None:
        """Change what is read, but nothing that a power cut could leave: half of a write."""
        self.data = changed(self.data, change)
        self.mtime_ns = now_ns

    def sync(self, *, with_time: bool = True) -> None:
        """Make the disk have it; `fdatasync` leaves the time out."""
        if self.is_whole:
            self.synced = self.data
        for change in () if self.is_whole else self.pending:
            self.synced = changed(self.synced, change)
        self.pending.clear()
        if with_time:
            self.synced_mtime_ns = self.mtime_ns

    def lose(self) -> None:
        """A sync has failed: what it was for is read on, and no later sync writes it.

        Linux marks the pages clean (https://wiki.postgresql.org/wiki/Fsync_Errors).
        """
        self.is_whole = False
        self.pending.clear()


@attrs.define(eq=False)
class Renaming:
    """Names of one folder that were changed together.

    Attributes:
        names: The new ones; None: it is gone.
        needs: What the disk has before it has this; all of it is older.
        is_kept: Whether the disk is sure to have it.
    """

    names: dict[str, File | Folder | None]
    needs: list[Renaming]
    is_kept: bool = False

    def keep(self) -> None:
        """Make the disk have it: a journal has what it needs in the same transaction."""
        left = [self]
        while left:
            change = left.pop()
            if not change.is_kept:
                change.is_kept = True
                left += change.needs


@attrs.define(eq=False)
class Folder:
    """A folder; the attributes are as those of `File`, and `parent` is where it is."""

    number: int
    mtime_ns: int = 0
    entries: dict[str, File | Folder] = attrs.field(factory=dict[str, "File | Folder"])
    synced: dict[str, File | Folder] = attrs.field(factory=dict[str, "File | Folder"])
    pending: list[Renaming] = attrs.field(factory=list[Renaming])
    parent: Folder | None = None
    _latest: dict[str, Renaming] = attrs.field(factory=dict[str, "Renaming"], init=False)

    def rename(
        self,
        names: dict[str, File | Folder | None],
        now_ns: int,
        needs: Iterable[Renaming] = (),
    ) -> Renaming:
        """Change names; see `Renaming` for what they need besides that of this folder."""
        change = Renaming(names, [*needs, *self._order(names)])
        for node in names.values():
            if isinstance(node, Folder):
                node.parent = self
        _rename(self.entries, names)
        self.mtime_ns = now_ns
        self.pending.append(change)
        self._latest.update(dict.fromkeys(names, change))
        return change

    def _order(self, names: dict[str, File | Folder | None]) -> Iterator[Renaming]:
        """What a change of names cannot come before."""
        for name, node in names.items():
            if name in self._latest:
                yield self._latest[name]  # which needs the one before it
            replaced = self.entries.get(name)
            if node is not None and isinstance(replaced, Folder):
                yield from replaced.changes()
            if isinstance(node, Folder) and node.parent is not self:
                yield from node.changes()

    def way(self) -> Iterator[Renaming]:
        """What it takes, of what was not synced, for this folder to be found."""
        folder = self
        while folder.parent is not None:
            here, folder = folder, folder.parent
            yield from (change for change in folder.pending if here in change.names.values())

    def changes(self) -> Iterator[Renaming]:
        """What was not synced of the names in it, and in all folders below."""
        yield from self.pending
        for node in self.entries.values():
            if isinstance(node, Folder):
                yield from node.changes()

    def sync(self) -> None:
        """Make the disk have its names as they are."""
        for change in self.pending:
            change.keep()
        self.synced = dict(self.entries)
        self.pending.clear()
        self._latest.clear()


def move(
    node: File | Folder, source: Folder, name: str, target: Folder, goal: str, now_ns: int
) -> None:
    """Rename what has a name; what has the other name loses it."""
    there = target.entries.get(goal)
    if isinstance(there, File):
        there.links -= 1
    names: dict[str, File | Folder | None] = {goal: node}
    if source is target:
        source.rename({name: None, **names}, now_ns)
    else:
        arrived = target.rename(names, now_ns)
        source.rename({name: None}, now_ns, needs=[arrived, *target.way()])


def changed(data: bytes, change: Write | Resize) -> bytes:
    """A content after a change."""
    if isinstance(change, Resize):
        return data[: change.size].ljust(change.size, b"\0")
    end = change.offset + len(change.data)
    return data[: change.offset].ljust(change.offset, b"\0") + change.data + data[end:]


def after_power_cut(root: Folder, chance: random.Random) -> Folder:
    """The tree as the next start finds it; all of it is on the disk then."""
    (fate,) = chance.choices(FATES, WEIGHTS)
    return _Cut(chance, fate).folder(root)


@attrs.define(eq=False)
class _Cut:
    """One power cut: decides for every change whether it arrived."""

    chance: random.Random
    fate: Fate
    _found: dict[int, File | Folder] = attrs.field(factory=dict[int, "File | Folder"], init=False)
    _decided: dict[int, bool] = attrs.field(factory=dict[int, bool], init=False)
    _share: float = attrs.field(init=False)  # of the names that arrive, where some do

    def __attrs_post_init__(self) -> None:
        self._share = self.chance.choice(SHARES)

    def node(self, node: File | Folder) -> File | Folder:
        """What is left of a file or a folder; one with two names is one."""
        found = self._found.get(node.number)
        if found is None:
            found = self.folder(node) if isinstance(node, Folder) else self.file(node)
            self._found[node.number] = found
        elif isinstance(found, File):
            found.links += 1
        return found

    def folder(self, folder: Folder) -> Folder:
        names = dict(folder.synced)
        for change in folder.pending:
            if self._keeps(change):
                _rename(names, change.names)
        entries = {name: self.node(node) for name, node in names.items()}
        found = Folder(folder.number, folder.mtime_ns, entries, dict(entries))
        for node in entries.values():
            if isinstance(node, Folder):
                node.parent = found
        return found

    def _keeps(self, change: Renaming) -> bool:
        """Once for each change, since others may need it; after those that it needs."""
        left = [change]
        while left:
            needs = [need for need in left[-1].needs if id(need) not in self._decided]
            if needs:
                left += needs
            else:
                last = left.pop()
                if id(last) not in self._decided:
                    self._decided[id(last)] = self._decide(last)
        return self._decided[id(change)]

    def _decide(self, change: Renaming) -> bool:
        if change.is_kept:
            return True
        if not all(self._decided[id(need)] for need in change.needs):
            return False
        return self.fate is Fate.NAMES or (
            self.fate is Fate.SOME and self.chance.random() < self._share
        )

    def file(self, file: File) -> File:
        if not file.pending and file.mtime_ns == file.synced_mtime_ns:
            return File(file.number, file.synced, file.mtime_ns, 1, file.synced, file.mtime_ns)
        data = self._arrived(file) if self.fate is Fate.SOME else file.synced
        if self.fate is not Fate.NOTHING and self.chance.random() < 0.5:
            data = data.ljust(len(file.data), b"\0")  # the size came without the bytes
        mtime_ns = self.chance.choice([file.mtime_ns, file.synced_mtime_ns])
        return File(file.number, data, mtime_ns, 1, data, mtime_ns)

    def _arrived(self, file: File) -> bytes:
        """A content of which every sector, and the size, was written back at its own moment."""
        last = len(file.pending)
        span = self.chance.choice([(0, 0), (0, last), (last, last)])
        sizes = _sizes(file)
        moments = [self.chance.randint(*span) for _ in range(-(-max(sizes) // SECTOR_BYTES))]
        size = sizes[self.chance.randint(*span)]
        sectors: dict[int, bytes] = {}
        data = file.synced
        for moment in range(last + 1):
            if moment:
                data = changed(data, file.pending[moment - 1])
            for number in (n for n, at in enumerate(moments) if at == moment):
                piece = data[number * SECTOR_BYTES : (number + 1) * SECTOR_BYTES]
                sectors[number] = piece.ljust(SECTOR_BYTES, b"\0")
        return b"".join(sectors[number] for number in range(len(moments)))[:size]


def _sizes(file: File) -> list[int]:
    """How long a file was when it was synced, and after each change since."""
    sizes = [len(file.synced)]
    for change in file.pending:
        if isinstance(change, Resize):
            sizes.append(change.size)
        else:
            sizes.append(max(sizes[-1], change.offset + len(change.data)))
    return sizes


def _rename(entries: dict[str, File | Folder], names: dict[str, File | Folder | None]) -> None:
    for name, node in names.items():
        if node is None:
            entries.pop(name, None)
        else:
            entries[name] = node
