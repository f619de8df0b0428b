"""Names of outputs and lines of append files."""

from __future__ import annotations

import math
import os
from pathlib import Path

import pytest
from hypothesis import given, strategies as st

from trio_ckpt._util.errors import NotEncodableError, OutputError
from trio_ckpt.outputs import OutputPathError, encode_lines, lines_digest, relative_path
from trio_ckpt.outputs._tree import TEMP_NAME, TempOwner, temp_name

# ---------------------------------------------------------------------------------------
# Names
# ---------------------------------------------------------------------------------------

GOOD = {
    "a": "a",
    "a/b.json": "a/b.json",
    "./a//b/": "a/b",
    "/out/x/y": "x/y",
    "/out//x": "x",
    "..a/b..": "..a/b..",
    "ü/日本 1": "ü/日本 1",
    "x/.archive": "x/.archive",
}
BAD = ["", ".", "/", "/out", "/out/", "/outer/x", "/etc/passwd", "..", "a/../b", "/out/../x"]
BAD += [
    "a\\b",
    "a\0b",
    "a\nb",
    "a\x7f",
    "a\x85b",
    "\ud800",
    ".archive/x",
    temp_name("a"),
    "a" * 5000,
]


@pytest.mark.parametrize(("path", "name"), GOOD.items())
def test_good_paths_have_one_name(path: str, name: str) -> None:
    assert relative_path("/out", path) == relative_path("/out", Path(path)) == name


@pytest.mark.parametrize("path", BAD)
def test_bad_paths_are_refused_as_output_error_and_value_error(path: str) -> None:
    with pytest.raises(OutputPathError) as caught:
        relative_path("/out", path)
    assert isinstance(caught.value, OutputError)
    assert isinstance(caught.value, ValueError)


@given(st.text(st.sampled_from("ab./\\\n~é"), max_size=12))
def test_a_name_is_its_own_name_and_stays_below_the_root(path: str) -> None:
    try:
        name = relative_path("/out", path)
    except OutputPathError:
        return
    assert relative_path("/out", name) == name
    assert os.path.normpath(f"/out/{name}") == f"/out/{name}" != "/out"


@given(st.text(min_size=1, max_size=255))
def test_temporary_names_fit_every_file_system_and_are_recognised(name: str) -> None:
    name = name.encode(errors="replace").decode()
    for owner in (None, TempOwner.of("run", 10**9)):
        temp = temp_name(name, owner)
        assert TEMP_NAME.fullmatch(temp)
        assert len(temp.encode()) <= 143  # the shortest NAME_MAX around, of eCryptfs


# ---------------------------------------------------------------------------------------
# Lines
# ---------------------------------------------------------------------------------------


def test_lines_are_compact_json_one_for_each_record() -> None:
    assert encode_lines([{"a": [1, 2.5, None], "b": "é\n"}, "x"]) == (
        '{"a":[1,2.5,null],"b":"é\\n"}\n"x"\n'.encode()
    )
    assert encode_lines([]) == b""


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf, {1}, b"x", {1: 2}, "\ud800", 2**64])
def test_what_json_cannot_say_is_refused_with_its_path(bad: object) -> None:
    with pytest.raises(NotEncodableError) as caught:
        encode_lines([{"a": 1}, {"a": [0, bad]}])
    assert caught.value.path == "records[1].a[1]"


def test_the_digest_of_lines_is_16_bytes_and_of_their_content() -> None:
    assert len(lines_digest(b"x\n")) == 16
    assert lines_digest(b"x\n") != lines_digest(b"y\n")
