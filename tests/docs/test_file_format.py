"""The page of the stored formats says what the code does."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path
from typing import Any, get_args

import msgspec
import pytest

from trio_ckpt import Retention, abc
from trio_ckpt._commit import intents, snapshots, state_capture, stored_state
from trio_ckpt._journal import folds, overview, progress, record, stored
from trio_ckpt._journal.record import Record, RecordKind, Seal
from trio_ckpt._util import plain
from trio_ckpt._util.index_set import IndexSet
from trio_ckpt.outputs import lines_digest
from trio_ckpt.sinks import _sqlite
from trio_ckpt.state._arrays import block_digests, block_ranges, compress
from trio_ckpt.state._tree import delta, flatten, format, frame, identity, leaves

PAGE = Path(__file__).parents[2] / "docs" / "reference" / "file-format.md"
TEXT = PAGE.read_text(encoding="utf-8")


def tables_of(section: str) -> list[list[list[str]]]:
    """The tables of a section: rows of cells, without the backticks around a cell."""
    part = re.search(rf"^## {section}$(.*?)(?=^## |\Z)", TEXT, re.MULTILINE | re.DOTALL)
    assert part is not None, section
    found: list[list[list[str]]] = []
    for block in re.findall(r"(?:^\|.*\n)+", part[1], re.MULTILINE):
        rows = [
            [cell.strip().strip("`") for cell in row.split("|")[1:-1]] for row in block.splitlines()
        ]
        found.append([rows[0], *rows[2:]])
    return found


def table(section: str, *head: str) -> list[list[str]]:
    """The rows of the one table whose head begins so."""
    (rows,) = [rows for rows in tables_of(section) if tuple(rows[0][: len(head)]) == head]
    return rows[1:]


def places(struct: Any) -> list[list[str]]:
    """The places of a struct that is stored as an array."""
    return [[str(place), name] for place, name in enumerate(struct.__struct_fields__)]


def first_two(rows: list[list[str]]) -> list[list[str]]:
    return [row[:2] for row in rows]


def constants(module: object) -> dict[str, int]:
    return {name: value for name, value in vars(module).items() if name.isupper()}


def test_the_fields_of_a_record() -> None:
    fields = msgspec.structs.fields(Record)
    rows = table("Records", "key", "field")
    assert first_two(rows) == [[field.encode_name, field.name] for field in fields]
    for row, field in zip(rows, fields, strict=True):
        is_nil = field.default is None
        assert ("nil" in row[2]) == is_nil, row
        assert (row[3] == "nil") == is_nil, row
        if type(field.default) is int:
            assert row[3] == str(field.default), row


def test_the_kinds_of_records() -> None:
    assert first_two(table("Records", "kind")) == [[str(k.value), k.name] for k in RecordKind]


def test_a_set_of_indexes_is_stored_as_the_page_says() -> None:
    (shown,) = re.findall(r"^borders .* stored as `(\[.*?\])`\.$", TEXT, re.MULTILINE)
    assert IndexSet([0, 1, 2, 7]).to_steps() == msgspec.json.decode(shown)


def test_the_places_of_a_fold() -> None:
    assert first_two(table("Folds", "place")) == places(folds._Fold)
    statuses = next(row[2] for row in table("Folds", "place") if row[1] == "status")
    assert set(re.findall(r'"([\w ]+)"', statuses)) == {s.value for s in record.Status}


def test_the_places_of_a_summary() -> None:
    assert first_two(table("Summaries", "place")) == places(overview.RunOverview)
    head = [row[:2] for row in table("Summaries", "offset", "size")]
    rest = stored._SUMMARY_HEAD.size + record.DIGEST_BYTES
    assert head == [["0", "1"], ["1", "8"], ["9", str(record.DIGEST_BYTES)], [str(rest), "rest"]]
    assert stored._SUMMARY_HEAD.format == ">?Q"
    assert f'the key `["{overview.SUMMARY[0]}"]`' in TEXT


def test_the_places_of_a_frame_a_view_and_a_patch() -> None:
    frames, views, patches = (rows[1:] for rows in tables_of("Frames"))
    assert first_two(frames) == places(frame.StateFrame)
    assert first_two(views) == places(frame.View)
    assert first_two(patches) == places(frame.Patch)
    assert set(re.findall(r"`([\w.]+)`", views[0][2] + "`")) | {"numpy"} == set(
        get_args(frame.Kind)
    )
    assert "`[names, sizes, views]`" in TEXT
    assert frame.Layout.__struct_fields__ == ("names", "sizes", "views")


def test_the_sizes_of_a_frame() -> None:
    rows = {row[1]: row for row in table("Frames", "place", "field", "type")}
    assert rows["version"][3].endswith(f": {frame.FRAME_VERSION}")
    assert rows["lineage"][2] == f"{frame.LINEAGE_BYTES} bytes"
    assert rows["parent"][2] == f"0 or {frame.DIGEST_BYTES} bytes"
    assert f"more than {state_capture.INLINE_BYTES} bytes in all" in TEXT
    assert f"after {Retention().max_deltas} differences" in TEXT
    assert stored_state.SHARE_OF_DEAD == 1.0
    assert f"less than {stored_state.DELTA_FROM_BYTES} bytes without arrays" in TEXT
    assert f"the full frame and {stored_state.DELTA_FROM_BYTES} bytes" in TEXT
    assert f"blocks of {block_digests.BLOCK_BYTES} bytes" in TEXT


def test_the_bytes_of_ranges() -> None:
    rows = table("Ranges", "offset", "size")
    assert [row[1] for row in rows] == [str(block_ranges._ROW.itemsize)] * 2
    assert f"A block has {block_digests.BLOCK_BYTES} bytes" in TEXT


def test_the_head_of_a_block() -> None:
    rows = table("Blocks", "offset", "size")
    assert [row[1] for row in rows] == ["1", "1", "4", "4", "rest"]
    assert compress.HEAD.format == "<BBII"
    assert rows[-1][0] == str(compress.HEAD.size)
    codecs = re.findall(r"(\d) (as it is|bitshuffle|zstd)", rows[0][2])
    assert codecs == [
        (str(compress.RAW), "as it is"),
        (str(compress.BITSHUFFLE_LZ4), "bitshuffle"),
        (str(compress.ZSTD), "zstd"),
    ]
    assert f"holds up to {compress.MAX_BLOCK_BYTES} bytes" in TEXT


def test_the_tags_of_trees() -> None:
    tags = {name: tag for name, tag in vars(format.Tag).items() if name.isupper()}
    assert first_two(table("Trees", "tag")) == [[str(tag), name] for name, tag in tags.items()]
    assert table("Trees", "offset")[0][2] == f"version: {format.FORMAT_VERSION}"
    (numbered,) = re.findall(r"maps without a tag, and the nodes (.*?)\. What", TEXT, re.DOTALL)
    assert {tags[name] for name in re.findall(r"`(\w+)`", numbered)} == format.MUTABLE


def test_the_actions_of_tree_deltas() -> None:
    names = ("REPLACE", "KEYS", "ITEMS", "SPLICE", "BYTES", "INSIDE")
    assert first_two(table("Tree deltas", "action")) == [
        [str(getattr(delta, name)), name] for name in names
    ]


@pytest.mark.parametrize("row", table("Limits", "limit"), ids=lambda row: row[0])
def test_a_limit_is_as_the_code_has_it(row: list[str]) -> None:
    homes = {"MAX_DEPTH": [identity]}
    modules = homes.get(
        row[0],
        [format, flatten, leaves, compress, frame, snapshots, intents, record, plain, abc],
    )
    found = {constants(module)[row[0]] for module in modules if row[0] in constants(module)}
    assert found == {int(row[1])}


def test_a_seal_is_as_the_page_says() -> None:
    """The page's example checks one of a record; this one has a key, and is of a fold."""
    sealed = Seal("r", 3, ("a", "ü"), b"secret").close(-17, b"payload")
    place = '3\nr\n["a","ü"]\n-17\n'.encode()
    digest = hashlib.blake2b(place + b"payload", digest_size=16, key=b"secret").digest()
    assert sealed == digest + b"payload"
    rows = table("Sealed payloads", "offset", "size")
    assert [row[:2] for row in rows] == [["0", str(record.DIGEST_BYTES)], ["16", "rest"]]


def test_the_digests_of_items_and_lines() -> None:
    rows = {row[0]: row[4] for row in table("Records", "key", "field")}
    assert f"of {len(plain.item_digest('x'))} bytes" in rows["d"]
    assert f"of {len(lines_digest(b'x'))} bytes" in rows["j"]


def test_the_page_names_what_structs_hold() -> None:
    """The arrays inside of records are written out on the page, in the order of the code."""
    rows = {row[0]: row[4] for row in table("Records", "key", "field")}
    for key, struct in (
        ("o", record.Output),
        ("j", record.SinkLines),
        ("b", record.Opened),
        ("z", record.Taken),
    ):
        assert f"[{', '.join(struct.__struct_fields__)}]" in rows[key], key
    assert set(re.findall(r"\w+", rows["e"])) >= set(record.ErrorInfo.__struct_fields__)
    assert "[at, batch_index, lineage]" in TEXT
    assert progress.Pin.__struct_fields__ == ("at", "batch_index", "lineage")
    assert progress.FailedAttempt.__struct_fields__ == ("attempts", "error")


def test_the_columns_of_the_markers() -> None:
    markers_of_postgres = pytest.importorskip("trio_ckpt.sinks._postgres_driver")
    columns = [row[0] for row in table("Markers", "column")]
    for statement in (_sqlite._TABLE, markers_of_postgres._TABLE):
        made = re.findall(r"(?:\(|,)\s+(\w+) (?!KEY)", statement)
        assert made[:8] == columns
