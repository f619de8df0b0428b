"""An archive is believed only when every byte and every word in it is right."""

from __future__ import annotations

import json
import struct
import tracemalloc
import warnings
import zipfile
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import msgspec
import pytest
import trio

from tests.maintenance.export_tools import everything, forge, reseal, unpack, write_run
from trio_ckpt import ArchiveError, import_run, open_run
from trio_ckpt._journal.record import Record, encode_record
from trio_ckpt._maintenance import archive_file
from trio_ckpt._maintenance.archive_file import FRAME, Archive
from trio_ckpt._maintenance.archive_writer import ArchiveWriter
from trio_ckpt._maintenance.export import export_run
from trio_ckpt.outputs import OutputDir
from trio_ckpt.stores import MemoryStore

Edit = Callable[[dict[str, bytes], dict[str, Any]], object]


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    async def write() -> None:
        store = MemoryStore(inline_limit_bytes=2_000)
        await write_run(store, tmp_path / "out")
        with closing(OutputDir.open(tmp_path / "out")) as outputs:
            await export_run(store, "r", tmp_path / "r.zip", outputs=outputs)

    trio.run(write)
    return tmp_path / "r.zip"


def read_all(path: Path) -> list[bytes]:
    """All that is in an archive."""
    with closing(Archive.open(path)) as opened:
        found = [
            payload
            for number in range(len(opened.manifest.streams))
            for _, payload in opened.records(number)
        ]
        for member in opened.outputs.values():
            found.append(b"".join(opened.pieces(member)))
        return found


# ---------------------------------------------------------------------------------------
# Damage
# ---------------------------------------------------------------------------------------


def test_a_flipped_bit_is_found_wherever_it_is(archive: Path, tmp_path: Path) -> None:
    good, bad = archive.read_bytes(), tmp_path / "bad.zip"
    read_all(archive)
    for position in range(len(good)):
        flipped = bytearray(good)
        flipped[position] ^= 1 << position % 8
        bad.write_bytes(flipped)
        with pytest.raises(ArchiveError):
            Archive.open(bad)


def test_a_truncated_or_prolonged_archive_is_refused(archive: Path, tmp_path: Path) -> None:
    good, bad = archive.read_bytes(), tmp_path / "bad.zip"
    for data in [good[:size] for size in range(0, len(good), 7)] + [good + b"\0", b"\0" + good]:
        bad.write_bytes(data)
        with pytest.raises(ArchiveError):
            Archive.open(bad)


def test_what_is_no_archive_is_refused(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "other.zip", "w") as other:
        other.writestr("a", "b")
    (tmp_path / "sealed").write_bytes(reseal(b"no zip at all" * 20 + bytes(81)))
    for name in ("other.zip", "sealed", "."):
        with pytest.raises(ArchiveError, match=r"not a trio_ckpt archive|not a regular file"):
            Archive.open(tmp_path / name)
    with pytest.raises(FileNotFoundError):
        Archive.open(tmp_path / "gone")


# ---------------------------------------------------------------------------------------
# Lies
# ---------------------------------------------------------------------------------------

CHUNK = "streams/000001/000000000001"
OUTPUT = "outputs/pages/2.json"


def set_size(name: str, size: int) -> Edit:
    def edit(_: dict[str, bytes], manifest: dict[str, Any]) -> None:
        for member in manifest["members"]:
            if member["name"] == name:
                member["size"] = size

    return edit


def rename(name: str, new: str) -> Edit:
    """In the zip and in the manifest."""

    def edit(files: dict[str, bytes], manifest: dict[str, Any]) -> None:
        files[new] = files.pop(name)
        for member in manifest["members"]:
            if member["name"] == name:
                member["name"] = new

    return edit


def set_chunks(*chunks: int) -> Edit:
    return lambda _, manifest: manifest["streams"][1].update(chunks=chunks)


def set_stream(**changes: Any) -> Edit:
    return lambda _, manifest: manifest["streams"][1].update(changes)


LIES: dict[str, tuple[Edit, str]] = {
    "an extra member": (lambda f, _: f.update(extra=b"x"), "extra is missing, extra or"),
    "an extra output": (lambda f, _: f.update({"outputs/x": b"x"}), "outputs/x is missing, extra"),
    "a missing output": (lambda f, _: f.pop(OUTPUT), "pages/2.json is missing"),
    "a missing chunk": (lambda f, _: f.pop(CHUNK), "streams/000001/000000000001 is missing"),
    "other content": (lambda f, _: f.update({OUTPUT: f[OUTPUT][::-1]}), "not what its manifest"),
    "a longer member": (lambda f, _: f.update({OUTPUT: f[OUTPUT] + b"x"}), "not what its manifest"),
    "a greater size": (set_size(OUTPUT, 10**9), "not what its manifest says"),
    "a negative size": (set_size(OUTPUT, -1), "not what its manifest says"),
    "another format": (lambda _, m: m.update(format="zip"), "not a trio_ckpt archive"),
    "a newer version": (lambda _, m: m.update(version=2), "is of version 2; this is version 1"),
    "a manifest without members": (lambda _, m: m.pop("members"), "missing required field"),
    "a manifest of other types": (lambda _, m: m.update(streams=3), "not a trio_ckpt archive"),
    "a member that the manifest has twice": (
        lambda _, m: m["members"].append(m["members"][0]),
        "there twice",
    ),
    "a stream that is there twice": (
        lambda _, m: m["streams"][1].update(key=m["streams"][2]["key"]),
        "its streams are not",
    ),
    "a stream without records": (set_stream(records=0), "its streams are not"),
    "fewer records": (set_stream(records=3), "is missing"),
    "more records": (set_stream(records=300), "is missing"),
    "an empty part of a key": (set_stream(key=["a", ""]), "its streams are not"),
    "a very long key": (set_stream(key=["a" * 1_001]), "its streams are not"),
    "no chunks": (set_stream(chunks=[]), "its streams are not"),
    "chunks twice": (set_chunks(1, 1), "its streams are not"),
    "chunks that are not there": (set_chunks(1, 3), "its streams are not"),
    "chunks that do not begin at 1": (set_chunks(2), "its streams are not"),
    "a name of a run that leads out": (lambda _, m: m.update(run_id="../x"), "separators"),
}


@pytest.mark.parametrize(("edit", "reason"), LIES.values(), ids=LIES.keys())
def test_a_lie_is_refused(archive: Path, tmp_path: Path, edit: Edit, reason: str) -> None:
    with pytest.raises(ArchiveError, match=reason):
        read_all(forge(archive, tmp_path / "lie.zip", edit))


def test_a_size_that_lies_is_seen_before_anything_is_unpacked(
    archive: Path, tmp_path: Path
) -> None:
    for size in (0, 10, 12, 2**39):
        bad = forge(archive, tmp_path / "lie.zip", set_size(OUTPUT, size))
        with pytest.raises(ArchiveError, match=r"2\.json is not what its manifest says"):
            Archive.open(bad)


NAMES = [
    "../../etc/passwd",
    "/etc/passwd",
    "a/../../b",
    "a//b",
    "./a",
    "a\\b",
    "a/",
    "",
    ".archive/a",
    ".a.ckpt-tmp-0123456789abcdef",
    "a\x01b",
]


@pytest.mark.parametrize("name", NAMES)
def test_an_output_that_leads_elsewhere_is_refused(
    archive: Path, tmp_path: Path, name: str
) -> None:
    bad = forge(archive, tmp_path / "lie.zip", rename(OUTPUT, f"outputs/{name}"))
    with pytest.raises(ArchiveError):
        Archive.open(bad)


def frames(*records: tuple[int, bytes], rest: bytes = b"") -> bytes:
    return b"".join(FRAME.pack(n, len(payload)) + payload for n, payload in records) + rest


CHUNKS = {
    "a gap": (frames((1, b"a"), (3, b"b")), "record 2 is missing"),
    "the same twice": (frames((1, b"a"), (1, b"b")), "record 2 is missing"),
    "half a record": (frames((1, b"a"), rest=b"\0\0"), "in the middle of a record"),
    "a length that lies": (frames((1, b"a"), rest=struct.pack(">QI", 2, 9)), "in the middle"),
    "a length beyond all": (
        frames((1, b"a"), rest=struct.pack(">QI", 2, 2**32 - 1)),
        "a record of 4,294,967,295 bytes",
    ),
    "nothing": (b"", "record 1 of"),
}


@pytest.mark.parametrize(("chunk", "reason"), CHUNKS.values(), ids=CHUNKS.keys())
def test_a_chunk_that_lies_is_refused(
    archive: Path, tmp_path: Path, chunk: bytes, reason: str
) -> None:
    bad = forge(
        archive,
        tmp_path / "lie.zip",
        lambda files, _: files.update({CHUNK: chunk}),
        update_members=True,
    )
    with pytest.raises(ArchiveError, match=reason):
        read_all(bad)


def test_a_chunk_that_begins_elsewhere_than_its_name_says_is_refused(
    archive: Path, tmp_path: Path
) -> None:
    def edit(files: dict[str, bytes], manifest: dict[str, Any]) -> None:
        files["streams/000001/000000000002"] = frames((3, b"c"))
        files[CHUNK] = frames((1, b"a"), (2, b"b"))
        manifest["streams"][1].update(chunks=[1, 2], records=3)

    with pytest.raises(ArchiveError, match="000000000002 is not about record 3"):
        read_all(forge(archive, tmp_path / "lie.zip", edit, update_members=True))


def test_a_name_that_the_zip_has_twice_is_refused(archive: Path, tmp_path: Path) -> None:
    for name in (OUTPUT, "manifest.json"):
        bad = tmp_path / "twice.zip"
        bad.write_bytes(archive.read_bytes())
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # zipfile says so, too
            with zipfile.ZipFile(bad, "a") as opened:
                opened.writestr(name, unpack(archive)[name])
        bad.write_bytes(reseal(bad.read_bytes()))
        with pytest.raises(ArchiveError, match=r"there twice|several manifests"):
            Archive.open(bad)


def test_only_stored_and_deflated_members_are_read(archive: Path, tmp_path: Path) -> None:
    for deflated in ("", "outputs/", "manifest.json"):
        good = forge(archive, tmp_path / "x.zip", lambda *_: None, deflated=deflated)
        assert read_all(good) == read_all(archive)
    bad = forge(archive, tmp_path / "x.zip", lambda *_: None, compression=zipfile.ZIP_BZIP2)
    with pytest.raises(ArchiveError, match="neither stored nor deflated"):
        Archive.open(bad)


def fill_manifest(_: dict[str, bytes], manifest: dict[str, Any]) -> None:
    manifest["streams"][1]["chunks"] = [1] * 10**6


def fill_record(files: dict[str, bytes], manifest: dict[str, Any]) -> None:
    """Lists in lists: an object of 64 bytes for each byte."""
    metadata = msgspec.msgpack.encode([[]] * (2 * 10**7))
    payload = msgspec.msgpack.encode({"t": 1.0, "m": {"a": msgspec.Raw(metadata)}})
    files[CHUNK] = FRAME.pack(1, len(payload)) + payload
    manifest["streams"][1].update(records=1, chunks=[1], blobs={})
    manifest["records"] = sum(part["records"] for part in manifest["streams"])


def fill_chunk(files: dict[str, bytes], manifest: dict[str, Any]) -> None:
    """Small records, together a little over 8 MiB, which may deflate to anything."""
    payload = encode_record(Record(at=1.0, index=7, state=bytes(1_000)))
    count = 2**23 // (FRAME.size + len(payload)) + 1
    files[CHUNK] = b"".join(FRAME.pack(n, len(payload)) + payload for n in range(1, count + 1))
    manifest["streams"][1].update(records=count, chunks=[1], blobs={})


@pytest.mark.parametrize(
    ("edit", "deflated"),
    [(fill_manifest, "manifest.json"), (fill_record, CHUNK), (fill_chunk, CHUNK)],
)
async def test_what_is_held_in_memory_is_not_much_larger_than_the_file(
    archive: Path, tmp_path: Path, edit: Edit, deflated: str
) -> None:
    """A bomb: what is deflated to a thousandth is refused before memory is taken for it."""
    bad = forge(archive, tmp_path / "bomb.zip", edit, update_members=True, deflated=deflated)
    assert bad.stat().st_size < 2 * 10**6
    tracemalloc.start()
    try:
        with pytest.raises(ArchiveError, match=rf"{deflated} .* over 20 times .*MAX_RATIO"):
            await import_run(MemoryStore(), bad)
        assert tracemalloc.get_traced_memory()[1] < 20 * 10**6
    finally:
        tracemalloc.stop()


def test_members_that_lie_on_each_other_are_refused(archive: Path, tmp_path: Path) -> None:
    """Else a megabyte could be counted for many."""
    at = archive.stat().st_size

    def edit(files: dict[str, bytes], manifest: dict[str, Any]) -> None:
        files[CHUNK] = files[CHUNK] + bytes(3 * at)

    bad = forge(archive, tmp_path / "bad.zip", edit, update_members=True)
    data = bytearray(bad.read_bytes())
    place = data.rindex(b"PK\x01\x02", 0, data.rindex(b"manifest.json"))
    size = struct.unpack_from("<I", data, place + 20)[0]
    struct.pack_into("<I", data, place + 20, size + len(data))
    bad.write_bytes(reseal(bytes(data)))
    with pytest.raises(ArchiveError, match=r"[Oo]verlap"):
        Archive.open(bad)


@pytest.mark.parametrize("text", ["x" * 10**6, ""])
async def test_what_would_be_deflated_to_nothing_is_stored(tmp_path: Path, text: str) -> None:
    store, other = MemoryStore(), MemoryStore()
    async with open_run("r", store=store) as run, run.open_stream("s") as stream:
        async for batch in stream.batches(range(3)):
            batch.complete(metadata={"note": text})
    await export_run(store, "r", tmp_path / "r.zip")
    with zipfile.ZipFile(tmp_path / "r.zip") as opened:
        held = [info for info in opened.infolist() if info.filename.startswith("streams/")]
    assert all(info.file_size <= 20 * info.compress_size for info in held)
    await import_run(other, tmp_path / "r.zip")
    assert (await everything(other, "r"))["s",] == (await everything(store, "r"))["s",]


def test_a_member_that_unpacks_to_more_than_it_says_is_not_unpacked(
    archive: Path, tmp_path: Path
) -> None:
    """A bomb: the zip's directory and the manifest agree on a size, the content goes on."""

    def edit(files: dict[str, bytes], manifest: dict[str, Any]) -> None:
        files[OUTPUT] = bytes(10 * 2**20)
        set_size(OUTPUT, 5)(files, manifest)

    bad = forge(archive, tmp_path / "bomb.zip", edit, deflated=OUTPUT)
    data = bad.read_bytes()
    assert data.count(struct.pack("<I", 10 * 2**20)) == 2
    bad.write_bytes(reseal(data.replace(struct.pack("<I", 10 * 2**20), struct.pack("<I", 5))))
    seen: list[bytes] = []
    with closing(Archive.open(bad)) as opened, pytest.raises(ArchiveError):
        seen.extend(opened.pieces(opened.outputs["pages/2.json"]))
    assert sum(map(len, seen)) <= 5


# ---------------------------------------------------------------------------------------
# Limits
# ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("limit", "reason"),
    [
        ("MAX_MEMBERS", "more than an archive may"),
        ("MAX_DIRECTORY_BYTES", "more than an archive may"),
        ("MAX_MANIFEST_BYTES", "missing or too long"),
        ("MAX_TOTAL_BYTES", "would take more than"),
        ("MAX_RECORD_BYTES", "has a record of"),
    ],
)
def test_every_limit_is_kept(
    archive: Path, monkeypatch: pytest.MonkeyPatch, limit: str, reason: str
) -> None:
    monkeypatch.setattr(archive_file, limit, 6)
    with pytest.raises(ArchiveError, match=reason):
        read_all(archive)


def test_an_archive_may_have_more_members_than_a_zip_had(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    count = 2**16 + 1  # zip64
    with (
        closing(OutputDir.open(tmp_path)) as folder,
        closing(folder.create("big.zip")) as file,
        closing(ArchiveWriter(file)) as writer,
    ):
        for number in range(count):
            writer.add(f"outputs/{number}", 1, [b"x"])
        writer.finish(run_id="r", generation=0, created_at="", streams=[])
        file.commit()
    with closing(Archive.open(tmp_path / "big.zip")) as opened:
        assert len(opened.outputs) == count
        assert b"".join(opened.pieces(opened.outputs["65536"])) == b"x"
    monkeypatch.setattr(archive_file, "MAX_MEMBERS", count - 1)
    with pytest.raises(ArchiveError, match=r"has 65,538 members, more than an archive may"):
        Archive.open(tmp_path / "big.zip")


def test_others_can_unpack_an_archive_and_check_it(archive: Path) -> None:
    files = unpack(archive)
    manifest = json.loads(files["manifest.json"])
    assert json.loads(files[OUTPUT]) == {"page": 2}
    assert {m["name"] for m in manifest["members"]} == files.keys() - {"manifest.json"}
    assert all(m["size"] == len(files[m["name"]]) for m in manifest["members"])


@pytest.mark.parametrize("gone", [1, 100])
def test_a_member_outside_of_the_file_is_refused(archive: Path, tmp_path: Path, gone: int) -> None:
    """Its place is counted from where the zip says that it begins, so it may be before the file."""
    bad = tmp_path / "bad.zip"
    bad.write_bytes(reseal(archive.read_bytes()[gone:]))
    with pytest.raises(ArchiveError, match="is not inside of the file"):
        Archive.open(bad)
