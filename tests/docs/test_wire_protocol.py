"""The page of the wire protocol says what the code does."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import msgspec
import pytest

from trio_ckpt.remote._wire import frames, message, protocol, submission
from trio_ckpt.remote._wire.codec import MESSAGES
from trio_ckpt.remote._wire.job_messages import JobOptions
from trio_ckpt.remote._wire.message import VERSIONS
from trio_ckpt.remote._wire.tables import PHASES, TASKS, PeerRole
from trio_ckpt.remote._wire.task_messages import FAULTS, AnyCall

PAGE = Path(__file__).parents[2] / "docs" / "reference" / "wire-protocol.md"
TEXT = PAGE.read_text(encoding="utf-8")
SIDES = {PeerRole.WORKER: "worker", PeerRole.CLIENT: "client"}


def table(*head: str) -> list[list[str]]:
    """The rows of the one table whose head begins so, without the backticks around cells."""
    found: list[list[list[str]]] = []
    for block in re.findall(r"(?:^\|.*\n)+", TEXT, re.MULTILINE):
        rows = [
            [cell.strip().strip("`") for cell in line.split("|")[1:-1]]
            for line in block.splitlines()
        ]
        if tuple(rows[0][: len(head)]) == head:
            found.append(rows[2:])
    (rows,) = found
    return rows


def test_the_header_of_a_frame() -> None:
    rows = table("offset", "size", "field")
    sizes = {"B": 1, "H": 2, "I": 4}
    layout = [sizes[letter] for letter in frames.HEADER.format if letter in sizes]
    assert [int(row[1]) for row in rows[:-1]] == layout
    assert [int(row[0]) for row in rows] == [sum(layout[:n]) for n in range(len(rows))]
    assert f"at most {frames.FRAME_BYTES} bytes" in rows[-1][3]
    assert rows[0][3].endswith(f": {frames.FRAME_VERSION}")


def test_the_kinds_of_messages() -> None:
    wanted: list[list[str]] = []
    for kind, struct in MESSAGES.items():
        roles = [role for role in PeerRole if any(kind in cells for cells in PHASES[role].values())]
        sides = ", ".join(dict.fromkeys(SIDES.get(role, "foreman") for role in roles))
        fields = ", ".join(struct.__struct_fields__)
        wanted.append([str(int(kind)), kind.name, sides, str(struct.MAX_BYTES), f"[{fields}]"])
    assert table("kind", "name") == wanted


def test_every_field_is_explained() -> None:
    explained = {name for row in table("field", "type") for name in re.findall(r"\w+", row[0])}
    used = {name for struct in MESSAGES.values() for name in struct.__struct_fields__}
    assert explained == used


def test_the_options_of_a_job() -> None:
    fields: tuple[Any, ...] = msgspec.structs.fields(JobOptions)
    wanted = [
        [f.name, repr(f.default if f.default is not msgspec.NODEFAULT else f.default_factory())]
        for f in fields
    ]
    assert [row[:2] for row in table("option")] == wanted


def test_the_verbs_of_the_store() -> None:
    verbs = AnyCall.__args__
    assert [row[:3] for row in table("verb", "name")] == [
        [
            str(verb.__struct_config__.tag),
            verb.__name__,
            f"[{', '.join(verb.__struct_fields__)}]",
        ]
        for verb in verbs
    ]


def test_the_faults() -> None:
    assert table("code", "the error") == [[code, kind.__name__] for code, kind in FAULTS.items()]


def test_the_table_of_phases() -> None:
    found: dict[tuple[str, str, str], str] = {}
    for side, phase, kinds, then in table("from", "while"):
        found.update({(side, phase, kind): then for kind in kinds.split(", ")})
    assert found == {
        (role.value, phase.value, kind.name): then.value
        for role, phases in PHASES.items()
        for phase, cells in phases.items()
        for kind, then in cells.items()
    }


def test_the_table_of_tasks() -> None:
    found: dict[tuple[str, str, str], str] = {}
    for was, side, kinds, then in table("the item is"):
        found.update({(was, side, kind): then for kind in kinds.split(", ")})
    assert found == {
        (was.value, SIDES.get(role, "foreman"), kind.name): then.value
        for was, cells in TASKS.items()
        for (role, kind), then in cells.items()
    }


@pytest.mark.parametrize("row", table("limit"), ids=lambda row: row[0])
def test_a_limit_is_as_the_code_has_it(row: list[str]) -> None:
    modules = (message, frames, protocol, submission)
    assert {vars(module)[row[0]] for module in modules if row[0] in vars(module)} == {int(row[1])}


def test_every_limit_is_on_the_page() -> None:
    names = {name for name in vars(message) if re.fullmatch(r"MAX_[A-Z]+(?:_[A-Z]+)*", name)}
    on_page = {row[0] for row in table("limit")} | {"MAX_RUN_ID_CHARS"}
    in_the_table_of_kinds = names - on_page
    assert in_the_table_of_kinds == {
        *("MAX_SMALL_BYTES", "MAX_ERROR_BYTES", "MAX_TRACE_BYTES", "MAX_MESSAGE_BYTES")
    }
    assert all(str(vars(message)[name]) in TEXT for name in in_the_table_of_kinds)


def test_the_versions() -> None:
    assert f"There is one: {VERSIONS[0]}" in TEXT
    assert len(VERSIONS) == 1
