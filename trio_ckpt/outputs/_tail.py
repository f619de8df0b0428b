"""The lines of append files: archived before they are cut off, and compared with records."""

from __future__ import annotations

from contextlib import closing

from .._util.errors import OutputError
from .._util.text import plural
from ._dir import HASH_CHUNK_BYTES, OutputDir
from ._names import ARCHIVE, AnyPath, lines_digest
from ._new import NewFile
from ._system import output_errors
from ._tree import Sync


def keep_tail(outdir: OutputDir, path: AnyPath, offset: int, label: str) -> str | None:
    """Copy an append file from `offset` on into ``.archive/<label>/``.

    Durability: the copy survives a power cut once this has returned.

    Returns:
        The path of the copy, relative to the root; None: there is nothing to copy.

    Raises:
        OutputError: it cannot be read or copied.
    """
    name = outdir.relative(path)
    goal = f"{ARCHIVE}/{label}/{name}~{offset}"
    try:
        with (
            output_errors(name),
            outdir.tree.folder(name, Sync.NONE) as (folder, last),
            outdir.tree.opened(folder, last) as (fd, found),
        ):
            if found.st_size <= offset:
                return None
            goal = _free(outdir, goal)
            with closing(NewFile.open(outdir.tree, goal)) as file:
                while piece := outdir.tree.system.pread(fd, HASH_CHUNK_BYTES, offset):
                    file.write(piece)
                    offset += len(piece)
                file.commit()
    except OutputError as error:
        if isinstance(error.__cause__, FileNotFoundError):
            return None
        raise
    return goal


def _free(outdir: OutputDir, goal: str) -> str:
    """Return a name that no earlier copy has."""
    free, copy = goal, 1
    with outdir.tree.folder(goal, Sync.MAKE) as (folder, _):
        while outdir.tree.mode(folder, free.rpartition("/")[2]):
            copy += 1
            free = f"{goal}~{copy}"
    return free


def find_lines_damage(
    outdir: OutputDir, path: AnyPath, offset: int, size: int, digest: bytes | None
) -> str | None:
    """Compare the lines that a batch has appended with the existing file.

    Args:
        outdir: The output folder.
        path: The name of the append file.
        offset: Where the lines begin, in bytes.
        size: The number of bytes that they have.
        digest: Their digest, see `lines_digest`; None: only their presence is checked.

    Returns:
        None if they are good, else a text that says what is wrong with them.

    Raises:
        OutputError: this is unknown, because the file cannot be read.
    """
    name = outdir.relative(path)
    try:
        with (
            output_errors(name),
            outdir.tree.folder(name, Sync.NONE) as (folder, last),
            outdir.tree.opened(folder, last) as (fd, found),
        ):
            if found.st_size < offset + size:
                missing = min(size, offset + size - found.st_size)
                return f"truncated: {missing:,} missing of {plural(size, 'byte')} at {offset}"
            if digest is None:
                return None
            data = b""
            while len(data) < size:
                piece = outdir.tree.system.pread(fd, size - len(data), offset + len(data))
                if not piece:
                    break
                data += piece
    except OutputError as error:
        if isinstance(error.__cause__, FileNotFoundError):
            return "missing"
        raise
    return None if lines_digest(data) == digest else f"altered: {plural(size, 'byte')} at {offset}"
