"""The JSON store: what a person reads in it, its folder, and damage."""

# ruff: noqa: ASYNC240  # a test may block its own loop

from __future__ import annotations

import hashlib
import json
import os
import stat
from pathlib import Path
from typing import Any

import msgspec
import pytest
import trio
from hypothesis import given, strategies as st

from tests.stores.tools import A, B, chain, heads, make
from trio_ckpt import Batch, Stream, open_run
from trio_ckpt._journal.apply import apply
from trio_ckpt._journal.folds import encode_progress
from trio_ckpt._journal.progress import Progress
from trio_ckpt._journal.record import (
    ErrorInfo,
    Output,
    Record,
    RecordKind,
    Seal,
    decode_record,
    encode_record,
)
from trio_ckpt._util.errors import StoreDamagedError, StoreError, StoreVersionError
from trio_ckpt.abc import Checkpoint, Fold, RunKey, Severity, StoredRun
from trio_ckpt.stores import JsonStore, open_store
from trio_ckpt.stores._json import files, format, reader as _json_reader, records as _json_records

RUN = "gh-2025"


def _document(folder: Path, run_id: str = "run") -> Any:
    return json.loads((folder / "runs" / run_id / "checkpoint.json").read_text())


# ---------------------------------------------------------------------------------------
# What a person reads
# ---------------------------------------------------------------------------------------


async def test_person_reads_statuses_indexes_outputs_and_totals(
    folder: Path, tmp_path: Path
) -> None:
    """After a run checkpoint.json has everything, under names that need no key."""
    stream: Stream[None]
    batch: Batch[None]
    async with (
        open_run(RUN, store=f"json:{folder}", output_dir=tmp_path / "data") as run,
        run.open_stream("org/repo", "pulls", first_index=1) as stream,
    ):
        async for batch in stream.batches(end=3):
            if batch.index == 2:
                batch.skip("not there")
                continue
            path = await batch.write_json(f"{batch.index}.json", {"page": batch.index})
            batch.complete(outputs=[path], records=30, totals={"cost_usd": 0.5})

    document = _document(folder, RUN)
    assert (document["run_id"], document["owner"], document["generation"]) == (RUN, 1, 0)
    (found,) = [s for s in document["streams"] if s["stream"] == '["org/repo","pulls"]']
    records = [entry["record"] for entry in found["records"]]
    done = [record for record in records if record["kind"] == "batch"]
    assert [record["index"] for record in done] == [1, 3]
    content = (tmp_path / "data" / "3.json").read_bytes()
    (output,) = done[1]["outputs"]
    assert (output["path"], output["size"]) == ("3.json", len(content))
    assert output["sha256"] == hashlib.sha256(content).hexdigest()
    assert done[1]["totals"] == {"cost_usd": 0.5}
    assert done[1]["records"] == 30
    assert done[1]["time"].startswith("20")
    assert done[1]["time"].endswith("+00:00")
    (skipped,) = [record for record in records if record["kind"] == "skip"]
    assert (skipped["index"], skipped["error"]["message"]) == (2, "not there")


async def test_fold_says_what_it_is(folder: Path) -> None:
    """A fold has its numbers beside its bytes, under long names, too."""
    progress = Progress()
    record = Record(at=1.0, index=0, records=7, totals={"cost_usd": 0.25})
    seal = Seal("run", 0, ("a",), None)
    apply(progress, 1, record)
    payload = seal.close(-1, encode_progress(progress))
    store = await JsonStore.open(folder)
    async with store.lock_run("run") as owner:
        group = [Checkpoint(A, 1, seal.close(1, encode_record(record)))]
        await store.save(RunKey("run", 0, owner), group, [Fold(A, 1, payload)])
    await store.aclose()
    (stream,) = _document(folder)["streams"]
    assert stream["fold"]["through"] == 1
    summary = stream["fold"]["summary"]
    assert (summary["confirmed"], summary["records"]) == (1, 7)
    assert summary["totals"] == {"cost_usd": 0.25}


_plain = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.text() | st.binary()
    | st.floats(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text() | st.integers(0, 9), inner),
    max_leaves=10,
)  # fmt: skip
_names = st.dictionaries(st.text(), st.integers(-(2**63), 2**63 - 1) | st.floats())
_records = st.builds(
    Record,
    kind=st.sampled_from(RecordKind),
    at=st.floats(),
    index=st.none() | st.integers(0, 2**63),
    item=st.binary(max_size=8),
    records=st.integers(0, 2**63),
    outputs=st.lists(
        st.builds(Output, st.text(), st.integers(0, 2**63), st.integers(0, 2**63), st.text())
    ).map(tuple),
    totals=_names,
    cursor=_plain,
    metadata=st.dictionaries(st.text(), _plain),
    error=st.none() | st.builds(ErrorInfo, st.text(), st.text(), st.booleans()),
)


def _there_and_back(payload: bytes) -> _json_records.Entry:
    raw = _json_records.encode_entry(Checkpoint(A, 1, payload))
    entry = _json_records.decode_entry(_json_records.msgspec.Raw(raw))
    assert _json_records.payload_of(entry) == payload
    return entry


def test_a_record_without_a_kind_is_a_batch_as_it_is_in_its_bytes() -> None:
    """And no error of ours: whether it is what was saved, its seal says."""
    raw = _json_records.msgspec.Raw(b'{"sequence":1,"seal":"","record":{"time":"","at":1.0}}')
    payload = _json_records.payload_of(_json_records.decode_entry(raw))
    assert decode_record(payload) == Record(at=1.0)


@given(_records)
def test_any_record_comes_back_byte_for_byte(record: Record) -> None:
    """Also one of a time that no calendar has, which is encoded here no more."""
    _there_and_back(Seal("run", 0, ("a",), None).close(1, msgspec.msgpack.encode(record)))


@given(st.binary(max_size=60))
def test_any_bytes_come_back(payload: bytes) -> None:
    _there_and_back(payload)


@pytest.mark.parametrize("kind", RecordKind)
def test_every_kind_of_record_is_readable(kind: RecordKind) -> None:
    record = Record(kind=kind, at=1.5, index=3, cursor={"page": [1, None, 2.0]}, state=b"\0")
    entry = _there_and_back(Seal("run", 0, ("a",), None).close(1, encode_record(record)))
    assert entry.payload is None
    assert kind.name.lower() in bytes(entry.record).decode()  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "record",
    [
        Record(at=1.0, metadata={"bytes": b"\0"}),
        Record(at=1.0, metadata={"a": {1: "not a str"}}),
        Record(at=1e300),
        Record(at=float("nan")),
        Record(at=1.0, metadata={"inf": float("inf")}),
    ],
)
def test_what_json_cannot_say_is_kept_as_bytes(record: Record) -> None:
    entry = _there_and_back(Seal("run", 0, ("a",), None).close(1, msgspec.msgpack.encode(record)))
    assert entry.payload is not None


# ---------------------------------------------------------------------------------------
# The folder
# ---------------------------------------------------------------------------------------


async def test_only_the_user_may_read_it(folder: Path) -> None:
    digest = hashlib.sha256(b"blob").hexdigest()
    store = await JsonStore.open(folder / "deep" / "deeper")
    async with store.lock_run("run") as owner:
        run = RunKey("run", 0, owner)
        await store.put_blob(run, b"blob")
        await store.save(run, [Checkpoint(A, 1, b"", digest)])
        for path in (folder, *folder.rglob("*")):
            wanted = 0o700 if path.is_dir() else 0o600
            assert stat.S_IMODE(path.stat().st_mode) == wanted, path
    await store.aclose()


async def test_not_made_unless_asked(folder: Path) -> None:
    with pytest.raises(StoreError, match=r"there is no store at .*store"):
        await open_store(f"json:{folder}", create=False)
    assert not folder.exists()


async def test_folder_with_foreign_files(folder: Path) -> None:
    folder.mkdir()
    (folder / "thesis.tex").write_text("")
    with pytest.raises(StoreError, match=r"is not a trio_ckpt json store: it holds 'thesis.tex'"):
        await JsonStore.open(folder)
    assert [path.name for path in folder.iterdir()] == ["thesis.tex"]


@pytest.mark.parametrize("left", [(), ("store.json.tmp",), ("lock", "blobs"), ("lock", "runs")])
async def test_interrupted_making_goes_on(folder: Path, left: tuple[str, ...]) -> None:
    folder.mkdir()
    for name in left:
        (folder / name).touch() if name.endswith("tmp") else (folder / name).mkdir()
    await make(folder, *chain(A, 1, 1), scheme="json")


async def test_another_version(folder: Path) -> None:
    await make(folder, scheme="json")
    (folder / "store.json").write_text('{"format":"trio_ckpt json store","version":7}')
    with pytest.raises(StoreVersionError, match=r"format 7, .* reads format 3: update"):
        await JsonStore.open(folder)


@pytest.mark.parametrize("marker", ["", "{", "[]", '{"version":1}', "{}" * 1000])
async def test_damaged_marker(folder: Path, marker: str) -> None:
    await make(folder, scheme="json")
    (folder / "store.json").write_text(marker)
    with pytest.raises(StoreError, match=r"store\.json"):
        await JsonStore.open(folder)


@pytest.mark.parametrize(
    "member",
    ["store.json", "runs", "blobs", "lock", "runs/run", "runs/run/checkpoint.json"],
)
async def test_links_are_refused(folder: Path, tmp_path: Path, member: str) -> None:
    await make(folder, *chain(A, 1, 1), scheme="json")
    (folder / member).rename(tmp_path / "elsewhere")
    (folder / member).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(StoreError, match=r"symbolic link"):
        await _read(folder)


@pytest.mark.parametrize("run_id", ["run", "gh-2025", "a.b_c", "0", "x" * 64])
def test_safe_run_ids_are_names_of_folders(run_id: str) -> None:
    assert files.folder_name(run_id) == run_id


@pytest.mark.parametrize(
    "run_id", ["", ".", "..", "../x", "A", "a b", "é", "-x", "x.", "x" * 65, "a~b", "con/x", "\0"]
)
def test_other_run_ids_cannot_be_mistaken(run_id: str) -> None:
    """Nothing of the path is theirs, and no folder is that of two runs."""
    name = files.folder_name(run_id)
    assert "~" in name
    assert name not in (".", "..")
    assert not set(name) & set("/\\\0: ")
    assert name == name.lower()
    assert name != files.folder_name(run_id + " ")
    assert len(name) < 100


# ---------------------------------------------------------------------------------------
# Damage
# ---------------------------------------------------------------------------------------


async def _read(folder: Path) -> StoredRun | None:
    store = await JsonStore.open(folder)
    try:
        return await store.read_run("run")
    finally:
        await store.aclose()


async def _make_both_files(folder: Path) -> StoredRun:
    """A run with records and folds in checkpoint.json and in its journal; returns what it says.

    It is copied while its owner is at work, as a crash would leave it.
    """
    seal = Seal("run", 0, ("a",), None)

    def saved(n: int) -> Checkpoint:
        record = Record(at=float(n), index=n, metadata={"n": n})
        return Checkpoint(A, n, seal.close(n, encode_record(record)))

    await make(folder, *map(saved, range(1, 4)), Checkpoint(B, 1, b"b"), scheme="json")
    store = await JsonStore.open(folder)
    async with store.lock_run("run") as owner:
        run = RunKey("run", 0, owner)
        await store.save(run, [saved(4)], [Fold(A, 2, b"fold")])
        await store.save(run, [saved(5), Checkpoint(B, 2, b"c")])
        before = {path: path.read_bytes() for path in folder.glob("runs/run/*")}
        stored = await store.read_run("run")
    await store.aclose()
    assert stored is not None
    for path in folder.glob("runs/run/*"):
        path.unlink()
    for path, content in before.items():
        path.write_bytes(content)
    return stored


@pytest.mark.parametrize("name", ["checkpoint.json", "journal.*.jsonl"])
async def test_any_altered_byte_is_noticed(folder: Path, name: str) -> None:
    """Whatever byte it is, in a record, a fold, an owner number or between them."""
    whole = await _make_both_files(folder)
    assert await _read(folder) == whole
    (path,) = folder.glob(f"runs/run/{name}")
    content = path.read_bytes()
    reader = _json_reader.JsonReader(folder)
    for place in range(len(content)):
        for other in (content[place] ^ 1, content[place] ^ 0x80, 0x0A, 0x20, 0):
            if other == content[place]:
                continue
            path.write_bytes(content[:place] + bytes([other]) + content[place + 1 :])
            with pytest.raises(StoreDamagedError):
                reader.read_run("run", None)


async def test_damage_in_the_middle_names_file_and_line(folder: Path) -> None:
    await _make_both_files(folder)
    (path,) = folder.glob("runs/run/journal.*")
    lines = path.read_bytes().split(b"\n")
    lines[2] = lines[2].replace(b'"generation":0', b'"generation":1')
    path.write_bytes(b"\n".join(lines))
    with pytest.raises(StoreDamagedError, match=rf"{path.name}, line 3, is not what was written"):
        await _read(folder)


@pytest.mark.parametrize("order", [(0, 2, 1, 3), (0, 1, 1, 2, 3), (0, 2, 3), (1, 2, 3), (0, 1, 3)])
async def test_lines_that_moved_are_noticed(folder: Path, order: tuple[int, ...]) -> None:
    """Lost, doubled and exchanged lines, though each by itself is as it was."""
    await _make_both_files(folder)
    (path,) = folder.glob("runs/run/journal.*")
    lines = path.read_bytes().splitlines(keepends=True)
    assert len(lines) == 4
    path.write_bytes(b"".join(lines[place] for place in order))
    with pytest.raises(StoreDamagedError, match="is not what was written"):
        await _read(folder)


async def test_journal_of_another_run_is_noticed(folder: Path) -> None:
    await make(folder, *chain(A, 1, 1), scheme="json")
    store = await JsonStore.open(folder)
    async with store.lock_run("other") as owner:
        await store.save(RunKey("other", 0, owner), chain(A, 1, 3))
    await store.aclose()
    for path in folder.glob("runs/other/*"):
        (folder / "runs" / "run" / path.name).write_bytes(path.read_bytes())
    with pytest.raises(StoreDamagedError, match=r"checkpoint\.json .* another run's"):
        await _read(folder)


async def test_lost_checkpoint_of_a_run_that_was_given_back_is_noticed(folder: Path) -> None:
    """Its journal has one line then, but it is not the first: a checkpoint.json was there."""
    await make(folder, *chain(A, 1, 2), scheme="json")
    (folder / "runs" / "run" / "checkpoint.json").unlink()
    with pytest.raises(StoreDamagedError, match=r"checkpoint\.json is missing"):
        await _read(folder)


@pytest.mark.parametrize("name", ["checkpoint.json", "journal.*.jsonl"])
async def test_lost_file_is_noticed(folder: Path, name: str) -> None:
    await _make_both_files(folder)
    (path,) = folder.glob(f"runs/run/{name}")
    path.unlink()
    with pytest.raises(StoreDamagedError, match=f"{path.name} is missing"):
        await _read(folder)
    store = await JsonStore.open(folder)
    with pytest.raises(StoreDamagedError, match=f"{path.name} is missing"):
        async with store.lock_run("run"):
            pass
    await store.aclose()


async def test_edited_record_is_refused(folder: Path) -> None:
    """Also by who makes the file's own digest fit again: the record's seal does not."""
    payload = Seal("run", 0, ("a",), None).close(1, encode_record(Record(at=1.0, records=30)))
    await make(folder, Checkpoint(A, 1, payload), scheme="json")
    path = folder / "runs" / "run" / "checkpoint.json"
    content = path.read_text().replace('"records":30', '"records":31')
    path.write_text(content)
    with pytest.raises(StoreDamagedError):
        await _read(folder)
    start = content.index("\n", 2) + 1
    digest = hashlib.blake2b(content[start:].encode(), digest_size=16).hexdigest()
    path.write_text(f'{{\n"check": "{digest}",\n{content[start:]}')
    store = await JsonStore.open(folder)
    with pytest.raises(StoreDamagedError, match="is not what was saved"):
        await store.load_run("run")
    await store.aclose()


@pytest.mark.parametrize(
    "line",
    [
        {"owner": 1, "generation": 0},
        {"owner": 2, "generation": -1},
        {"owner": 2, "generation": 2},
        {"owner": 2, "generation": 0, "more": 1},
        {"owner": 2},
        {"owner": 2, "generation": 0, "folds": [['["c"]', {"through": 1, "payload": ""}]]},
        {"owner": 2, "generation": 0, "folds": [[A, {"through": 6, "payload": ""}]]},
        {"owner": 2, "generation": 0, "folds": [[A, {"through": 0, "payload": ""}]]},
        {"owner": 2, "generation": 0, "folds": [[A, {"payload": ""}]]},
        {"owner": 2, "generation": 0, "records": [[A, {"sequence": 7, "payload": ""}]]},
        {"owner": 2, "generation": 0, "records": [[A, {"sequence": 6}]]},
        {"owner": 2, "generation": 0, "records": [[A, {"sequence": 6, "record": {"kind": "x"}}]]},
        {"owner": 2, "generation": 0, "records": [[A, {"sequence": 6, "blob": "00" * 32}]]},
    ],
)
async def test_line_that_fits_its_check_but_cannot_be(folder: Path, line: dict[str, Any]) -> None:
    """The check detects accidents; the content of a line is validated all the same."""
    await _make_both_files(folder)
    (path,) = folder.glob("runs/run/journal.*")
    content = path.read_bytes()
    check = content.splitlines()[-1][10:42]
    raw = json.dumps(line).encode()
    path.write_bytes(content + format.frame(raw, check)[0])
    with pytest.raises(StoreDamagedError):
        await _read(folder)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"null",
        b"[" * 100_000,
        b'{"check":"","run_id":NaN}',
        b'{\n"check": "",\n"check": ""\n}\n',
        b"\xff",
    ],
)
async def test_content_that_is_not_a_checkpoint_is_refused(folder: Path, content: bytes) -> None:
    await make(folder, scheme="json")
    (folder / "runs" / "run" / "checkpoint.json").write_bytes(content)
    with pytest.raises(StoreDamagedError):
        await _read(folder)


async def test_name_that_is_there_twice_is_refused(folder: Path) -> None:
    """A file whose digest fits, but that no writer of ours wrote so."""
    await make(folder, *chain(A, 1, 2), scheme="json")
    path = folder / "runs" / "run" / "checkpoint.json"
    content = path.read_bytes().replace(b'"owner": 1,\n', b'"owner": 1,\n"owner": 1,\n')
    start = content.index(b"\n", 2) + 1
    digest = hashlib.blake2b(content[start:], digest_size=16).hexdigest().encode()
    path.write_bytes(b'{\n"check": "%b",\n%b' % (digest, content[start:]))
    with pytest.raises(StoreDamagedError, match="was altered"):
        await _read(folder)


async def test_file_too_big_to_be_ours_is_not_read(folder: Path) -> None:
    await make(folder, *chain(A, 1, 2), scheme="json")
    path = folder / "runs" / "run" / "checkpoint.json"
    os.truncate(path, 2**40)  # a hole: it takes no room
    with pytest.raises(StoreError, match=r"1,099,511,627,776 bytes, over"):
        await _read(folder)


async def test_fifo_in_its_place_is_refused(folder: Path) -> None:
    await make(folder, *chain(A, 1, 2), scheme="json")
    path = folder / "runs" / "run" / "checkpoint.json"
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(StoreError, match="is not a file"):
        await _read(folder)


# ---------------------------------------------------------------------------------------
# What crashes leave
# ---------------------------------------------------------------------------------------


async def test_torn_line_at_any_byte(folder: Path) -> None:
    """Wherever the last append was cut, its group is there whole or not at all, for readers
    and for the next owner, who goes on from there."""
    whole = await _make_both_files(folder)
    (path,) = folder.glob("runs/run/journal.*")
    content = path.read_bytes()
    start = content.rindex(b"\n", 0, -1) + 1
    reader = _json_reader.JsonReader(folder)
    for size in range(start, len(content)):
        path.write_bytes(content[:size])
        stored = reader.read_run("run", None)
        assert stored is not None
        found = {entry.stream: entry.sequence for entry in stored.streams}
        assert found == ({A: 5, B: 2} if size == len(content) - 1 else {A: 4, B: 1})
    for size in (start, start + 1, len(content) - 2, len(content) - 1):
        for left in folder.glob("runs/run/journal.*"):
            left.unlink()
        await _restore(folder, whole, path, content[:size])
        store = await JsonStore.open(folder)
        async with store.lock_run("run") as owner:
            newest = (await heads(store))[A]
            assert newest == (5 if size == len(content) - 1 else 4)
            group = [Checkpoint(A, newest + 1, b"on")]
            assert await store.save(RunKey("run", 0, owner), group) == [None]
        await store.aclose()
        stored = await _read(folder)
        assert stored is not None
        assert {e.stream: e.tail[-1].payload for e in stored.streams}[A] == b"on"


async def _restore(folder: Path, whole: StoredRun, path: Path, journal: bytes) -> None:
    for left in folder.glob("runs/run/*"):
        left.unlink()
    assert await _make_both_files(folder) == whole
    (again,) = folder.glob("runs/run/journal.*")
    assert again == path
    path.write_bytes(journal)


@pytest.mark.parametrize("damage", ["start", "sector", "tail", "less"])
async def test_line_that_power_loss_left_half_blank(folder: Path, damage: str) -> None:
    """A file may end in a sector of zeros that was never written, nor acknowledged.

    Zeros that are less than a sector did not come so: that is damage.
    """
    store = await JsonStore.open(folder)
    async with store.lock_run("run") as owner:
        await store.save(RunKey("run", 0, owner), [Checkpoint(A, 1, b"x" * 2000)])
        before = {path: path.read_bytes() for path in folder.glob("runs/run/*")}
    await store.aclose()
    for left in folder.glob("runs/run/*"):
        left.unlink()
    (path,) = (path for path in before if path.suffix == ".jsonl")
    content = before[path]
    start = content.rindex(b"\n", 0, -1) + 1
    sector = start - start % 512 + 512
    spans = {
        "start": (start, sector),
        "sector": (sector, sector + 512),
        "tail": (sector + 512, len(content)),  # its newline, too
        "less": (sector + 1, sector + 511),
    }
    begin, end = spans[damage]
    before[path] = content[:begin] + bytes(end - begin) + content[end:]
    for name, old in before.items():
        name.write_bytes(old)
    if damage == "less":
        with pytest.raises(StoreDamagedError, match="line 2"):
            await _read(folder)
        return
    stored = await _read(folder)
    assert stored is not None
    assert stored.streams == ()


def test_one_altered_byte_is_damage_and_not_a_crash() -> None:
    """Where a line begins at the last byte of a sector, a single zero would be all of its part."""
    assert not format._has_blank_sector(b"x" * 511 + b"\0" + b"x" * 600, 511)
    assert format._has_blank_sector(b"x" * 490 + b"\0" * 22 + b"x" * 600, 490)


async def test_leftovers_of_a_crash_are_removed(folder: Path) -> None:
    """When the run is locked: half written files, and journals that no file names."""
    await make(folder, *chain(A, 1, 2), scheme="json")
    home = folder / "runs" / "run"
    (kept,) = home.glob("journal.*")
    for name in ("checkpoint.json.tmp", "journal.77.jsonl", "journal.1.jsonl"):
        (home / name).write_text("half")
    (home / "README").touch()
    store = await JsonStore.open(folder)
    async with store.lock_run("run"):
        names = {path.name for path in home.iterdir()}
        assert names == {"checkpoint.json", kept.name, "README"}
        assert await heads(store) == {A: 2}
    await store.aclose()


async def test_run_whose_making_was_cut_short(folder: Path) -> None:
    """Until its checkpoint.json has its name, there is no run; then the next start makes it."""
    await make(folder, scheme="json")
    home = folder / "runs" / "run"
    (home / "checkpoint.json").rename(home / "checkpoint.json.tmp")
    (home / "journal.2.jsonl").rename(home / "journal.1.jsonl")
    store = await JsonStore.open(folder)
    assert await store.list_runs() == ()
    assert await store.read_run("run") is None
    async with store.lock_run("run") as owner:
        assert owner == 1
        assert await store.save(RunKey("run", 0, owner), chain(A, 1, 1)) == [None]
    assert await heads(store) == {A: 1}
    await store.aclose()


def test_read_begins_again_when_a_run_was_rewritten(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between reading checkpoint.json and its journal, another has taken both their places."""

    async def main() -> None:
        await make(folder, *chain(A, 1, 3), scheme="json")
        real = files.read_whole
        store = await JsonStore.open(folder)
        async with store.lock_run("run") as owner:
            await store.save(RunKey("run", 0, owner), chain(A, 4, 4))
            calls: list[str] = []

            def interrupted(path: Path, limit_bytes: int) -> bytes:
                content = real(path, limit_bytes)
                calls.append(path.name)
                if len(calls) == 1:
                    held = store._writer._held["run"]
                    store._writer._rewrite_if_it_can_be("run", held)
                return content

            monkeypatch.setattr(files, "read_whole", interrupted)
            stored = _json_reader.JsonReader(folder).read_run("run", None)
            monkeypatch.setattr(files, "read_whole", real)
            assert stored is not None
            assert stored.streams[0].sequence == 4
            assert calls.count("checkpoint.json") == 3  # ours, the writer's, ours again
        await store.aclose()

    trio.run(main)


async def test_run_that_is_made_while_it_is_looked_for(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its checkpoint.json was not there, and then its journal has lines: that is not damage."""
    await make(folder, *chain(A, 1, 3), scheme="json")
    store = await JsonStore.open(folder)
    async with store.lock_run("run"):
        real, calls = files.read_whole, [0]

        def read_whole(path: Path, limit_bytes: int) -> bytes:
            calls[0] += 1
            if calls[0] == 1:
                raise FileNotFoundError
            return real(path, limit_bytes)

        monkeypatch.setattr(files, "read_whole", read_whole)
        stored = _json_reader.JsonReader(folder).read_run("run", None)
        assert stored is not None
        assert stored.streams[0].sequence == 3
    await store.aclose()


async def test_files_that_did_not_change_are_read_once(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reads: list[Path] = []
    real = _json_reader.load

    def load(path: Path, run_id: str | None = None) -> object:
        reads.append(path)
        return real(path, run_id)

    monkeypatch.setattr(_json_reader, "load", load)
    store = await open_store(f"json:{folder}")
    async with store.lock_run("run") as owner:
        run = RunKey("run", 0, owner)
        await store.save(run, [Checkpoint(A, 1, b"one")])
        reads.clear()
        for _ in range(5):
            assert len((await store.history("run", A)).records) == 1
        assert len(reads) == 1
        await store.save(run, [Checkpoint(A, 2, b"two")])
        assert len((await store.history("run", A)).records) == 2
        assert len(reads) == 2
    await store.aclose()


class GoneWhileListed:
    """A folder whose files are removed between their listing and the look at each."""

    def __init__(self, _folder: Path) -> None:
        pass

    def __enter__(self) -> GoneWhileListed:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def __iter__(self) -> GoneWhileListed:
        return self

    def __next__(self) -> Any:
        raise FileNotFoundError


async def test_a_rewrite_during_a_listing_brings_back_no_older_read(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two rewrites, met at the same point of a read, look alike."""
    store = await JsonStore.open(folder)
    monkeypatch.setattr(_json_reader.os, "scandir", GoneWhileListed)
    async with store.lock_run("run") as owner:
        run = RunKey("run", 0, owner)
        for number in (1, 2):
            await store.save(run, chain(A, number, number))
            assert await heads(store) == {A: number}
    monkeypatch.undo()
    await store.aclose()


async def test_a_folder_whose_name_is_no_text_hides_no_run(folder: Path) -> None:
    await make(folder, *chain(A, 1, 2), scheme="json")
    try:
        os.mkdir(path := os.fsencode(folder / "runs") + b"/\xff")
    except OSError:
        pytest.skip("the file system takes names of Unicode alone")
    Path(os.fsdecode(path), "checkpoint.json").write_text("{}")
    store = await JsonStore.open(folder)
    assert [summary.run_id for summary in await store.list_runs()] == ["run"]
    found = [finding async for finding in store.check()]
    assert [finding.where for finding in found] == [r"runs/\udcff"]
    assert found[0].severity is Severity.NOTE
    await store.aclose()


@pytest.mark.parametrize("run_id", ["bad", "Bad Run"])
@pytest.mark.parametrize("damage", ["checkpoint.json", "journal"])
async def test_a_run_that_cannot_be_read_hides_no_other(
    folder: Path, run_id: str, damage: str
) -> None:
    """It is listed, by its folder if its id cannot be read; reading it says what is wrong."""
    blob = b"of the run that is pruned"
    digest = hashlib.sha256(blob).hexdigest()
    await make(folder, Checkpoint(A, 1, b"", digest), blobs=(blob,), scheme="json")
    store = await JsonStore.open(folder)
    async with store.lock_run(run_id) as owner:
        await store.save(RunKey(run_id, 0, owner), chain(A, 1, 2))
    (path,) = (folder / "runs" / files.folder_name(run_id)).glob(f"{damage}*")
    path.write_bytes(b"damaged" + path.read_bytes())
    listed = {summary.run_id: summary.records for summary in await store.list_runs()}
    assert set(listed) == {files.folder_name(run_id), "run"}
    for name in (run_id, files.folder_name(run_id)):
        with pytest.raises(StoreDamagedError):
            await store.load_run(name)
    assert await store.read_run(f"no{files.folder_name(run_id)}") is None
    async with store.lock_run("run") as owner:
        pruned = await store.prune(RunKey("run", 0, owner), keep=0)
        assert pruned.records == 1
    await store.aclose()
