"""What a command answers: one document for programs, blocks of text for people.

Everything that is shown passes `printable` here, in one place, so no text of the store can
steer a terminal; and no markup is read, so none can be smuggled in.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterable, Sequence
from typing import Any, TextIO, TypeVar

import attrs

from .._words import printable

GAP = "  "  # between columns
MAX_NAME_CELLS = 30  # a name of this width is not folded, other columns are
MIN_FOLDED_CELLS = 10  # below it a folded column is no help to a reader
MIN_COLUMNS_CELLS = 60  # on a terminal narrower than this names and texts are set as lines

T = TypeVar("T")


@attrs.frozen
class Pairs:
    """Lines of a name and what is said of it."""

    rows: Sequence[tuple[str, str]]


@attrs.frozen
class Table:
    """Rows under headings.

    Attributes:
        columns: The headings; one that begins with ``>`` is of numbers, set to the right.
        rows: As many cells as columns.
        note: A line below it.
    """

    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    note: str = ""


Block = str | Pairs | Table


@attrs.frozen
class Answer:
    """What a command answers; only the one of the two that is asked for is made.

    Attributes:
        document: For programs: the shape is documented, and kept.
        blocks: For people.
        exit_code: What the command exits with.
    """

    document: Callable[[], dict[str, Any]]
    blocks: Callable[[], Sequence[Block]]
    exit_code: int = 0


def to_json(document: dict[str, Any], *, indent: int | None = 2) -> str:
    """The document as ASCII, so that no terminal takes a part of it for a command."""
    return json.dumps(document, indent=indent, allow_nan=False).replace("\x7f", "\\u007f")


def capped(
    columns: Sequence[str],
    things: Sequence[T],
    row: Callable[[T], Sequence[str]],
    limit: int | None,
    what: str,
) -> Table:
    """A table of at most `limit` things that says how many are left out."""
    shown = things if limit is None else things[:limit]
    more = len(things) - len(shown)
    note = f"and {more:,} more {what}; --all shows them" if more else ""
    return Table(columns, [row(thing) for thing in shown], note)


def to_lines(blocks: Iterable[Block]) -> list[str]:
    """The blocks as plain lines."""
    lines: list[str] = []
    for block in blocks:
        match block:
            case Pairs():
                width = max((len(name) for name, _ in block.rows), default=0)
                lines += [f"{n:{width}}{GAP}{printable(text)}".rstrip() for n, text in block.rows]
            case Table():
                lines += ["", *_table_lines(block)]
            case str():
                lines.append(printable(block))
    return lines


def _table_lines(table: Table) -> list[str]:
    headings = [heading.lstrip(">") for heading in table.columns]
    rows = [headings, *([printable(cell) for cell in row] for row in table.rows)]
    widths = [max(len(row[at]) for row in rows) for at in range(len(headings))]
    lines: list[str] = []
    for row in rows:
        cells = [
            cell.rjust(width) if heading.startswith(">") else cell.ljust(width)
            for cell, width, heading in zip(row, widths, table.columns, strict=True)
        ]
        lines.append(GAP.join(cells).rstrip())
    return [*lines, table.note] if table.note else lines


def show(blocks: Sequence[Block]) -> None:
    """Print blocks: plain lines, or for a terminal in its width and with a little colour."""
    file = sys.stdout
    if not file.isatty():
        for line in to_lines(blocks):
            print(line, file=file)
        return
    console = console_for(file)
    for block in blocks:
        if isinstance(block, Table):
            console.print()
        if _fits(block, console.width):
            console.print(to_rich(block))
        else:  # the terminal breaks the lines, and nothing is lost
            console.print("\n".join(to_lines([block])).strip(), soft_wrap=True)


def _fits(block: Block, width: int) -> bool:
    """Whether a block can be set in columns without squeezing one to nothing."""
    match block:
        case str():
            return True
        case Pairs():
            return width >= MIN_COLUMNS_CELLS
        case Table():
            fixed = [at for at in range(len(block.columns)) if _is_fixed(block, at)]
            rest = len(block.columns) - len(fixed)
            need = sum(_width(block, at) for at in fixed) + rest * MIN_FOLDED_CELLS
            return width >= need + len(GAP) * len(block.columns)


def _width(table: Table, at: int) -> int:
    cells = [table.columns[at].lstrip(">"), *(printable(row[at]) for row in table.rows)]
    return max(map(len, cells))


def _is_fixed(table: Table, at: int) -> bool:
    """Whether a column is never folded: numbers, and names that are not too long."""
    return table.columns[at].startswith(">") or (at == 0 and _width(table, at) <= MAX_NAME_CELLS)


def console_for(file: TextIO) -> Any:
    """A rich console that takes text as it is; rich is imported here, where it is needed."""
    from rich.console import Console

    return Console(file=file, markup=False, highlight=False, emoji=False, soft_wrap=False)


def to_rich(block: Block) -> Any:
    """What rich prints of a block."""
    from rich.table import Table as RichTable
    from rich.text import Text

    match block:
        case str():
            return Text(printable(block))
        case Pairs():
            grid = RichTable.grid(padding=(0, len(GAP)))
            grid.add_column(style="bold", no_wrap=True)
            grid.add_column(overflow="fold")
            for name, text in block.rows:
                grid.add_row(Text(name), Text(printable(text)))
            return grid
        case Table():
            table = RichTable(box=None, padding=(0, len(GAP), 0, 0), caption_justify="left")
            for at, heading in enumerate(block.columns):
                table.add_column(
                    Text(heading.lstrip(">")),
                    justify="right" if heading.startswith(">") else "left",
                    overflow="fold",
                    no_wrap=_is_fixed(block, at),
                )
            for row in block.rows:
                table.add_row(*(Text(printable(cell)) for cell in row))
            if block.note:
                table.caption = Text(block.note)
            return table
