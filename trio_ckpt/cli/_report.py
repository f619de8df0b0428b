"""What a command answers: one document for programs, blocks of text for people.

Everything that is shown passes `printable` here, in one place, so no text of the store can
steer a terminal; and no markup is read, so none can be smuggled in.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Sequence
from typing import Any, TextIO

import attrs

from .._words import printable

GAP = "  "  # between columns


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
    """What a command answers.

    Attributes:
        document: For programs: the shape is documented, and kept.
        blocks: For people.
        exit_code: What the command exits with.
    """

    document: dict[str, Any]
    blocks: Sequence[Block]
    exit_code: int = 0


def to_json(document: dict[str, Any], *, indent: int | None = 2) -> str:
    """The document as ASCII, so that no terminal takes a part of it for a command."""
    return json.dumps(document, indent=indent, allow_nan=False).replace("\x7f", "\\u007f")


def capped(
    columns: Sequence[str], rows: Sequence[Sequence[str]], limit: int | None, what: str
) -> Table:
    """A table of at most `limit` rows that says how many are left out."""
    if limit is None or len(rows) <= limit:
        return Table(columns, rows)
    more = len(rows) - limit
    return Table(columns, rows[:limit], f"and {more:,} more {what}; --all shows them")


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


def show(blocks: Sequence[Block], file: TextIO | None = None) -> None:
    """Print blocks: plain lines, or for a terminal with its width and a little colour."""
    file = file or sys.stdout
    if not file.isatty():
        for line in to_lines(blocks):
            print(line, file=file)
        return
    console = console_for(file)
    for block in blocks:
        console.print(to_rich(block))


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
            for heading in block.columns:
                is_right = heading.startswith(">")
                table.add_column(
                    Text(heading.lstrip(">")),
                    justify="right" if is_right else "left",
                    overflow="fold",
                    no_wrap=is_right,
                )
            for row in block.rows:
                table.add_row(*(Text(printable(cell)) for cell in row))
            if block.note:
                table.caption = Text(block.note)
            return table
