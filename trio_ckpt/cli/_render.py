"""The answer of a command: one document for programs, blocks of text for people.

Everything that is shown passes `printable` here, in one place, so no text of the store can
steer a terminal; and no markup is read, so none can be smuggled in.
"""

from __future__ import annotations

import json
import logging
import math
import sys
import textwrap
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, TypeVar, cast

import attrs
import msgspec
from msgspec.structs import asdict

from .._journal.record import ErrorInfo, Status
from .._journal.store import Owner
from .._journal.summary import Summary, left_of
from .._util.exact_sum import Number
from .._util.plain import MAX_DEPTH
from .._util.screen import GAP_CELLS, console_for, grid_of
from .._util.text import display_width, iso_moment, number, one_line, printable, truncate

if TYPE_CHECKING:  # rich is imported where it is needed
    from rich.console import Console, RenderableType

MAX_ROWS = 20  # of a table, unless all are asked for
GAP = " " * GAP_CELLS
POINT = "- "  # at the beginning of a text: it is a point of a list
INDENT = "    "  # of what is set below its row
MAX_PADDED_CELLS = 60  # a longer cell is not cut, but does not push the other rows aside
MIN_CUT_CELLS = 8  # a column is not cut to less, or it would be unreadable
MIN_COLUMNS_CELLS = 60  # on a terminal narrower than this names and texts are set as lines

T = TypeVar("T")

Document = Mapping[str, object]
"""An answer for programs: what JSON can hold; other values become their `repr`."""


@attrs.frozen
class Pairs:
    """Lines of a name and a text."""

    rows: Sequence[tuple[str, str]]


@attrs.frozen
class Table:
    """Rows under headings.

    Attributes:
        columns: The headings; one that begins with ``>`` is of numbers, set to the right, and
            one with ``=`` of what is short; neither is ever cut.
        rows: As many cells as columns.
        note: A line below it.
    """

    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    note: str = ""


Block = str | Pairs | Table


@attrs.frozen
class CommandAnswer:
    """The answer of a command in two forms; only the requested form is made.

    Attributes:
        document: For programs: the shape is documented, and kept.
        blocks: For people.
        exit_code: What the command exits with.
    """

    document: Callable[[], Document]
    blocks: Callable[[], Sequence[Block]]
    exit_code: int = 0


def to_json(document: Document, *, indent: int | None = 2) -> str:
    """The document as ASCII, so that no part of it can control a terminal."""
    try:
        text = json.dumps(document, allow_nan=False)
    except (TypeError, ValueError, RecursionError):  # its metadata may come from another program
        text = json.dumps(_sayable(document), allow_nan=False)
    if indent is not None:  # json.dumps itself indents many times slower
        text = msgspec.json.format(text, indent=indent)
    return text.replace("\x7f", "\\u007f")


def _sayable(value: object, depth: int = 0) -> object:
    """A value as JSON can hold it; any other value becomes its `repr`."""
    if value is None or isinstance(value, (bool, int, str)):
        return value
    if depth > MAX_DEPTH:
        return "…"
    if isinstance(value, Mapping):
        pairs = cast("Mapping[object, object]", value)
        return {str(name): _sayable(item, depth + 1) for name, item in pairs.items()}
    if isinstance(value, (list, tuple)):
        return [_sayable(item, depth + 1) for item in cast("Sequence[object]", value)]
    return value if isinstance(value, float) and math.isfinite(value) else repr(value)


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
    note = f"and {number(more)} more {what}; --all shows them" if more else ""
    return Table(columns, [row(thing) for thing in shown], note)


def row_limit(*, show_all: bool) -> int | None:
    """How many rows a table has at most."""
    return None if show_all else MAX_ROWS


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
    rows = _texts(table)
    widths = [_width(rows, at, MAX_PADDED_CELLS) for at in range(len(table.columns))]
    return _lines(table, rows, widths)


def _lines(table: Table, rows: Sequence[Sequence[str]], widths: Sequence[int]) -> list[str]:
    sides = (">" if column.startswith(">") else "<" for column in table.columns)
    pattern = GAP.join(
        f"{{:{side}{width}}}" for side, width in zip(sides, widths, strict=True)
    ).format
    lines = [
        pattern(*row).rstrip() if "".join(row).isascii() else _row_line(table, row, widths)
        for row in rows
    ]
    return [*lines, table.note] if table.note else lines


def _texts(table: Table) -> list[Sequence[str]]:
    """Headings and rows, printable."""
    headings = [heading.lstrip(">=") for heading in table.columns]
    return [headings, *map(_printable_row, table.rows)]


def _printable_row(row: Sequence[str]) -> Sequence[str]:
    return row if "".join(row).isprintable() else [printable(cell) for cell in row]


def _width(rows: Sequence[Sequence[str]], at: int, limit: int | None = None) -> int:
    """Of a column; cells that are wider than the limit do not count."""
    cells = {row[at] for row in rows}
    widths = set(map(len if "".join(cells).isascii() else display_width, cells))
    return max(width for width in widths if limit is None or width <= limit)


def _row_line(table: Table, row: Sequence[str], widths: Sequence[int]) -> str:
    texts = list[str]()
    for at, width in enumerate(widths):
        padding = " " * max(0, width - display_width(row[at]))
        is_number = table.columns[at].startswith(">")
        texts.append(padding + row[at] if is_number else row[at] + padding)
    return GAP.join(texts).rstrip()


def fitted_lines(table: Table, width: int) -> list[str] | None:
    """The lines of a table on a terminal of a width; None: the columns do not fit into it.

    If need be columns that are empty are left out, the last column, a text, is set below its row,
    and the others are cut with an ellipsis, the widest first: below the row they stand in full.
    """
    rows = _texts(table)
    widths = [_width(rows, at) for at in range(len(table.columns))]
    if _sum(widths) <= width:
        return _lines(table, rows, widths)
    if table.columns[-1].startswith((">", "=")):
        return None
    has_last = any(row[-1] for row in table.rows)
    table = _without_empty_columns(table)
    rows = _texts(table)
    last = len(table.columns) - has_last  # the column that is set below, if it has any text
    widths = [_width(rows, at) for at in range(last)]
    elastic = [at for at in range(last) if not table.columns[at].startswith((">", "="))]
    floors = {at: max(MIN_CUT_CELLS, display_width(rows[0][at])) for at in elastic}
    while (over := _sum(widths) - width) > 0:
        wide = [at for at in elastic if widths[at] > floors[at]]
        if not wide:
            return None
        widest = max(wide, key=lambda at: widths[at])
        others = [widths[at] for at in wide if widths[at] < widths[widest]]
        goal = max(floors[widest], widths[widest] - over, max(others, default=0))
        widths[widest] = min(goal, widths[widest] - 1)
    lines: list[str] = []
    for place, row in enumerate(rows):
        shown = [truncate(row[at], widths[at]) for at in range(last)]
        lines.append(_row_line(table, shown, widths))
        below = [at for at in elastic if display_width(row[at]) > widths[at]]
        below += [last] if has_last and row[last] else []
        if place and below:
            lines += textwrap.wrap(
                "; ".join(f"{rows[0][at]}: {row[at]}" for at in below),
                width,
                initial_indent=INDENT,
                subsequent_indent=2 * INDENT,
                break_on_hyphens=False,
            )
    return [*lines, table.note] if table.note else lines


def _without_empty_columns(table: Table) -> Table:
    """A table without the columns that have no text in any row."""
    columns = range(len(table.columns))
    used = [at for at in columns if not table.rows or any(row[at] for row in table.rows)]
    rows = [[row[at] for at in used] for row in table.rows]
    return attrs.evolve(table, columns=[table.columns[at] for at in used], rows=rows)


def _sum(widths: Sequence[int]) -> int:
    return sum(widths) + len(GAP) * (len(widths) - 1)


def print_blocks(blocks: Sequence[Block]) -> None:
    """Print blocks: plain lines, or for a terminal in its width and with a little colour."""
    file = sys.stdout
    if not file.isatty():
        file.writelines(f"{line}\n" for line in to_lines(blocks))
        return
    console = console_for(file)
    for block in blocks:
        if isinstance(block, Table):
            console.print()
            _print_table(console, block)
        elif isinstance(block, str) and block.startswith(POINT):
            _print_point(console, block)
        elif isinstance(block, str) or console.width >= MIN_COLUMNS_CELLS:
            console.print(to_rich(block))
        else:
            _print_lines(console, to_lines([block]))


def _print_table(console: Console, table: Table) -> None:
    width = console.width
    lines = fitted_lines(table, width) if width >= MIN_COLUMNS_CELLS else None
    if lines is None:
        _print_lines(console, _table_lines(table))
    else:
        _print_lines(console, lines[:1], style="bold")
        _print_lines(console, lines[1:])


def _print_point(console: Console, block: str) -> None:
    """Print a point of a list; the lines after its first one begin below its text."""
    from rich.text import Text

    text = Text(printable(block.removeprefix(POINT)))
    margin = POINT
    for line in text.wrap(console, console.width - len(POINT)):
        line.rstrip()
        console.print(Text(margin).append_text(line), soft_wrap=True)
        margin = " " * len(POINT)


def _print_lines(console: Console, lines: Iterable[str], style: str | None = None) -> None:
    for line in lines:  # those too long are broken by the terminal, and nothing is lost
        console.print(line, style=style, soft_wrap=True)


def to_rich(block: str | Pairs) -> RenderableType:
    """The object that rich prints for a text, or for pairs."""
    from rich.text import Text

    return Text(printable(block)) if isinstance(block, str) else grid_of(block.rows)


class LogLines(logging.Handler):
    """Prints log records on standard error, each on one line after a prefix."""

    def __init__(self, prefix: str, level: int) -> None:
        super().__init__(level)
        self._prefix = prefix

    def emit(self, record: logging.LogRecord) -> None:
        """Print a record."""
        print(f"{self._prefix}{one_line(record.getMessage())}", file=sys.stderr)


# ---------------------------------------------------------------------------------------
# Parts of documents that more than one command needs
# ---------------------------------------------------------------------------------------


def mean_spent(summary: Summary) -> dict[str, Number]:
    """What a confirmed batch has cost on average, by name; empty where that is not known."""
    known = summary.confirmed - summary.adopted
    return {name: value / known for name, value in summary.saved.items()} if known else {}


def word_of(status: Status) -> str:
    """A status, for programs: one word."""
    return status.name.lower()


def owner_document(owner: Owner | None) -> Document | None:
    """The owner, for programs."""
    if owner is None:
        return None
    since = owner.since.isoformat(timespec="seconds")
    return {"host": owner.host, "pid": owner.pid, "since": since}


def error_part(error: ErrorInfo | None) -> Document | None:
    """A remembered error, for programs."""
    return None if error is None else asdict(error)


def summary_document(summary: Summary) -> Document:
    """A summary, for programs."""
    return {
        "status": word_of(summary.status),
        "streams": {word_of(status): count for status, count in summary.streams.items()},
        "batches": {
            "confirmed": summary.confirmed,
            "skipped": summary.skipped,
            "failing": summary.failing,
            "deferred": summary.deferred,
            "left": left_of(summary),
            "adopted": summary.adopted,
        },
        "records": summary.records,
        "produced": dict(summary.totals),
        "spent": dict(summary.spent),
        "spent_on_confirmed": dict(summary.saved),
        "assumed": dict(summary.assumed),
        "noted": dict(summary.noted),
        "mean_spent_per_confirmed_batch": mean_spent(summary),
        "started_at": iso_moment(summary.started_at),
        "updated_at": iso_moment(summary.updated_at),
        "completed_at": iso_moment(summary.completed_at),
        "failed_at": iso_moment(summary.failed_at),
        "next_due": iso_moment(summary.next_due),
        "error": error_part(summary.error),
    }
