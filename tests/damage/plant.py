"""Planted damages: what can happen to a file of a store, each by a function.

A plant takes all files and a random generator and gives back all files, one of them damaged, or
None where it changes nothing.  Where in a file is chosen so that its ends are met as often as its
middle.
"""

from __future__ import annotations

import random
from collections.abc import Callable

from tests.damage.samples import Files, Sample

PAGE = 4_096
SECTOR = 512
Plant = Callable[[Sample, str, random.Random], Files | None]


def _place(rng: random.Random, size: int) -> int:
    """A place in so many bytes."""
    at = rng.choice([0, size - 1, rng.randrange(size), rng.randrange(size), rng.randrange(size)])
    return min(size - 1, max(0, at + rng.choice([0, 0, rng.randrange(-40, 41)])))


def _with(sample: Sample, name: str, content: bytes | None) -> Files | None:
    if content is None or content == sample.files[name]:
        return None
    return {**sample.files, name: content}


def _inside(change: Callable[[bytes, random.Random], bytes | None]) -> Plant:
    def plant(sample: Sample, name: str, rng: random.Random) -> Files | None:
        content = sample.files[name]
        return _with(sample, name, change(content, rng)) if content else None

    return plant


def _flip_bit(content: bytes, rng: random.Random) -> bytes:
    at = _place(rng, len(content))
    return content[:at] + bytes([content[at] ^ 1 << rng.randrange(8)]) + content[at + 1 :]


def _set_byte(content: bytes, rng: random.Random) -> bytes:
    at = _place(rng, len(content))
    return content[:at] + bytes([rng.randrange(256)]) + content[at + 1 :]


def _truncate(content: bytes, rng: random.Random) -> bytes:
    return content[: _place(rng, len(content))]


def _truncate_to_lines(content: bytes, rng: random.Random) -> bytes | None:
    """Where it does not show: at the end of a line, or of a page or a frame of the log."""
    ends = [at + 1 for at, byte in enumerate(content) if byte == 10]
    ends += list(range(PAGE, len(content), PAGE)) + list(range(32, len(content), PAGE + 24))
    return content[: rng.choice(ends)] if ends else None


def _extend(content: bytes, rng: random.Random) -> bytes:
    return content + rng.randbytes(rng.choice([1, 7, SECTOR, PAGE]))


def _extend_by_zeros(content: bytes, rng: random.Random) -> bytes:
    return content + bytes(rng.choice([1, SECTOR, PAGE]))


def _zero(size: int) -> Callable[[bytes, random.Random], bytes]:
    def change(content: bytes, rng: random.Random) -> bytes:
        at = _place(rng, len(content)) // size * size
        piece = content[at : at + size]
        return content[:at] + bytes(len(piece)) + content[at + size :]

    return change


def _swap_pages(content: bytes, rng: random.Random) -> bytes | None:
    pages = [content[at : at + PAGE] for at in range(0, len(content), PAGE)]
    if len(pages) < 2:
        return None
    one, two = rng.sample(range(len(pages)), 2)
    pages[one], pages[two] = pages[two], pages[one]
    return b"".join(pages)


def _copy_page(content: bytes, rng: random.Random) -> bytes | None:
    """A page that was written to the wrong place."""
    pages = [content[at : at + PAGE] for at in range(0, len(content), PAGE)]
    if len(pages) < 2:
        return None
    one, two = rng.sample(range(len(pages)), 2)
    pages[one] = pages[two]
    return b"".join(pages)


def _lines(change: Callable[[list[bytes], random.Random], None]) -> Plant:
    def inside(content: bytes, rng: random.Random) -> bytes | None:
        lines = content.splitlines(keepends=True)
        if len(lines) < 2:
            return None
        change(lines, rng)
        return b"".join(lines)

    return _inside(inside)


def _double_line(lines: list[bytes], rng: random.Random) -> None:
    at = rng.randrange(len(lines))
    lines.insert(rng.choice([at, rng.randrange(len(lines))]), lines[at])


def _drop_line(lines: list[bytes], rng: random.Random) -> None:
    del lines[rng.choice([-1, rng.randrange(len(lines))])]


def _reorder_lines(lines: list[bytes], rng: random.Random) -> None:
    one, two = rng.sample(range(len(lines)), 2)
    lines[one], lines[two] = lines[two], lines[one]


def _stale_file(sample: Sample, name: str, rng: random.Random) -> Files | None:
    """The file as it was earlier."""
    older = [files[name] for files in sample.older if name in files]
    return _with(sample, name, rng.choice(older)) if older else None


def _stale_page(sample: Sample, name: str, rng: random.Random) -> Files | None:
    """One page of it as it was earlier."""
    content = sample.files[name]
    older = [files[name] for files in sample.older if name in files]
    places = [
        (old, at)
        for old in older
        for at in range(0, min(len(old), len(content)), PAGE)
        if old[at : at + PAGE] != content[at : at + PAGE]
    ]
    if not places:
        return None
    old, at = rng.choice(places)
    end = at + min(PAGE, len(old) - at, len(content) - at)
    return _with(sample, name, content[:at] + old[at:end] + content[end:])


def _delete(sample: Sample, name: str, _rng: random.Random) -> Files | None:
    return {key: content for key, content in sample.files.items() if key != name}


def _empty(sample: Sample, name: str, _rng: random.Random) -> Files | None:
    return _with(sample, name, b"")


def _rename(sample: Sample, name: str, _rng: random.Random) -> Files | None:
    files = dict(sample.files)
    files[f"{name}.old"] = files.pop(name)
    return files


def _duplicate(sample: Sample, name: str, _rng: random.Random) -> Files | None:
    """Add a copy of a file under another name, next to it."""
    folder, _, last = name.rpartition("/")
    return {**sample.files, f"{folder}/x{last}": sample.files[name]}


def _swap_files(sample: Sample, name: str, rng: random.Random) -> Files | None:
    ending = name.rpartition(".")[2] if "." in name else ""
    others = [other for other in sample.files if other != name and other.endswith(ending)]
    other = rng.choice(others) if others else name
    files = dict(sample.files)
    files[name], files[other] = files[other], files[name]
    return None if files == sample.files else files


def _copy_over(sample: Sample, name: str, rng: random.Random) -> Files | None:
    """Another file of its kind in its place."""
    ending = name.rpartition(".")[2] if "." in name else ""
    others = [other for other in sample.files if other != name and other.endswith(ending)]
    return _with(sample, name, sample.files[rng.choice(others)]) if others else None


PLANTS: dict[str, Plant] = {
    "flip a bit": _inside(_flip_bit),
    "set a byte": _inside(_set_byte),
    "truncate": _inside(_truncate),
    "truncate at a line or a page": _inside(_truncate_to_lines),
    "extend": _inside(_extend),
    "extend by zeros": _inside(_extend_by_zeros),
    "zero a page": _inside(_zero(PAGE)),
    "zero a sector": _inside(_zero(SECTOR)),
    "swap two pages": _inside(_swap_pages),
    "a page in another's place": _inside(_copy_page),
    "swap two files": _swap_files,
    "a file in another's place": _copy_over,
    "delete": _delete,
    "rename": _rename,
    "replace by an empty file": _empty,
    "duplicate under another name": _duplicate,
    "duplicate a line": _lines(_double_line),
    "remove a line": _lines(_drop_line),
    "reorder lines": _lines(_reorder_lines),
    "stale copy of a file": _stale_file,
    "stale copy of a page": _stale_page,
}
