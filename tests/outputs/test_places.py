"""What every place for outputs does: a folder, and a bucket in memory, in a folder, on a server."""

from __future__ import annotations

import hashlib
import importlib.util
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from tests.stores.objects.conftest import s3_server as s3_server, s3_url as s3_url
from trio_ckpt import Output, OutputError, OutputExistsError
from trio_ckpt.outputs import ARCHIVE, OutputDir, OutputPathError, Outputs, open_outputs

BUCKETS = ["bucket", "file", "s3"]

has_obstore = importlib.util.find_spec("obstore") is not None


@pytest.fixture(params=["folder", *BUCKETS])
def outputs(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Outputs]:
    if request.param != "folder" and not has_obstore:
        pytest.skip("obstore is not installed: pip install 'trio-ckpt[objects]'")
    place: Outputs
    if request.param == "bucket":
        from tests.outputs.buckets import in_memory

        place = in_memory()
    elif request.param == "s3":
        place = open_outputs(request.getfixturevalue("s3_url"))
    else:
        place = open_outputs(f"{'file://' if request.param == 'file' else ''}{tmp_path}/out")
    with closing(place):
        yield place


def read(outputs: Outputs, name: str) -> bytes:
    return outputs.read(name, 2**20)


def test_a_file_is_written_looked_at_and_read(outputs: Outputs) -> None:
    written = outputs.write("pages/ä 1%~#.json", b"[1]")
    assert (written.path, written.size) == ("pages/ä 1%~#.json", 3)
    assert written.sha256 == hashlib.sha256(b"[1]").hexdigest()
    assert read(outputs, written.path) == b"[1]"
    assert outputs.length(written.path) == 3
    assert outputs.length("pages/2.json") is None
    found = outputs.status(written.path)
    assert found is not None
    assert found.written_at >= outputs.now() - 1
    assert outputs.names() == ["pages"]
    assert outputs.count(10) == 1
    with pytest.raises(OutputError, match=r"has 3 bytes, over 2"):
        outputs.read(written.path, 2)
    with closing(outputs.read_pieces(written.path, 2)) as pieces:
        assert b"".join(pieces) == b"[1"


def test_a_new_file_replaces_none(outputs: Outputs) -> None:
    outputs.write("a", b"old")
    with pytest.raises(OutputExistsError):
        outputs.write("a", b"new", is_new=True)
    assert read(outputs, "a") == b"old"
    assert outputs.write("a", b"newer").size == 5
    assert read(outputs, "a") == b"newer"


def test_a_file_is_replaced_as_it_was_found(outputs: Outputs) -> None:
    outputs.write("a", b"one")
    found = outputs.status("a")
    assert outputs.check(outputs.write("a", b"three", over=found)) is None
    assert read(outputs, "a") == b"three"
    if isinstance(outputs, OutputDir) or outputs.root.startswith("file:"):
        return  # a folder has no such condition
    with pytest.raises(OutputError, match="another process has written it meanwhile"):
        outputs.write("a", b"four", over=found)
    assert read(outputs, "a") == b"three"


def test_an_empty_file_is_a_file(outputs: Outputs) -> None:
    written = outputs.write("empty", b"")
    assert outputs.check(written) is None
    assert outputs.check(written, "sha256") is None
    assert read(outputs, "empty") == b""


def test_what_was_confirmed_is_compared(outputs: Outputs) -> None:
    written = outputs.write("a", b"what it was")
    assert outputs.check(written) is None
    assert outputs.check(written, "sha256") is None
    outputs.write("a", b"what it is!")
    for verify in ("size", "sha256"):
        assert "altered: sha256" in str(outputs.check(written, verify))
    outputs.write("a", b"what")
    assert outputs.check(written) == "truncated: 4 of 11 bytes"
    outputs.write("a", b"what it is now")
    assert outputs.check(written) == "altered: 14 bytes instead of 11"
    outputs.write("a", b"what it was")
    assert outputs.check(written) is None, "the same content is as good"
    outputs.archive(["a"], "test")
    assert outputs.check(written) == "missing"


def test_a_record_from_another_place_is_compared_by_content(outputs: Outputs) -> None:
    outputs.write("a", b"content")
    digest = hashlib.sha256(b"content").hexdigest()
    for mtime_ns in (0, 1_700_000_000_000_000_000, -17):
        assert outputs.check(Output("a", 7, mtime_ns, digest)) is None
        other = Output("a", 7, mtime_ns, hashlib.sha256(b"another").hexdigest())
        assert "altered" in str(outputs.check(other))


def test_outputs_are_moved_into_the_archive(outputs: Outputs) -> None:
    for name in ("a", "pages/b"):
        outputs.write(name, name.encode())
    done = outputs.archive(["a", "pages/b", "none"], "run-0")
    assert done.moved == {"a": f"{ARCHIVE}/run-0/a", "pages/b": f"{ARCHIVE}/run-0/pages/b"}
    assert done.missing == ("none",)
    assert outputs.length("a") is None
    assert outputs.count(10) == 0
    assert outputs.archive(["a"], "run-0").moved == {"a": f"{ARCHIVE}/run-0/a"}, "it is repeated"
    outputs.write("a", b"again")
    assert outputs.archive(["a"], "run-0").moved == {"a": f"{ARCHIVE}/run-0/a~2"}
    assert outputs.archived_head("a", "run-0", 3) == b"aga"
    assert outputs.archived_head("x", "run-0", 3) is None
    with pytest.raises(OutputPathError, match="is not a label"):
        outputs.archive(["a"], "a/b")


def test_what_is_about_to_be_replaced_is_kept(outputs: Outputs) -> None:
    outputs.write("a", b"a leftover")
    goal = outputs.set_aside("a", "run-unconfirmed")
    assert goal == f"{ARCHIVE}/run-unconfirmed/a"
    outputs.write("a", b"new")
    assert read(outputs, "a") == b"new"
    assert outputs.archived_head("a", "run-unconfirmed", 100) == b"a leftover"
    assert outputs.set_aside("none", "run-unconfirmed") is None


@pytest.mark.parametrize("size", [0, 10, 9 * 2**20])
def test_a_file_is_written_in_pieces(outputs: Outputs, size: int) -> None:
    outputs.write("large", b"old")
    with closing(outputs.create("large")) as file:
        for start in range(0, size, 2**20):
            file.write(bytes(min(2**20, size - start)))
        assert outputs.length("large") == 3, "until it is committed"
        written = file.commit()
        with pytest.raises(OutputError, match="nothing more is written"):
            file.write(b"x")
    assert (written.size, written.sha256) == (size, hashlib.sha256(bytes(size)).hexdigest())
    assert outputs.check(written) is None
    assert outputs.check(written, "sha256") is None
    with closing(outputs.create("large")) as file:
        file.write(b"given up")
    assert outputs.length("large") == size


def test_a_file_of_the_user_is_adopted(outputs: Outputs) -> None:
    first = outputs.write("a", b"by hand")
    adopted = outputs.adopt("a")
    assert adopted == first
    with pytest.raises(OutputError) as caught:
        outputs.adopt("none")
    assert isinstance(caught.value.__cause__, FileNotFoundError), "as a rescan asks"


def test_outputs_in_a_folder_need_no_library_for_buckets(tmp_path: Path) -> None:
    program = (
        "import sys; from trio_ckpt.outputs import open_outputs; "
        f"open_outputs({str(tmp_path / 'out')!r}).write('a', b'x'); "
        "assert not {'obstore', 'trio_ckpt._buckets'} & sys.modules.keys()"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


@pytest.mark.parametrize("path", ["../a", "/a", "a/../b", "", ".archive/a", "a\nb", "a\\b"])
def test_a_path_that_leads_elsewhere_is_refused(outputs: Outputs, path: str) -> None:
    with pytest.raises(OutputPathError):
        outputs.write(path, b"x")
    assert outputs.count(10) == 0
