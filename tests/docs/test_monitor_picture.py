"""The pictures of the monitor are of a real run, small, and named by the pages that show them."""

from __future__ import annotations

import os
import shutil
import struct
from pathlib import Path

import pytest
import trio

from docs.monitor_picture import FOLDER, SCHEMES, SIZE, record

ROOT = Path(__file__).parents[2]
MAX_BYTES = 150_000
CHROMIUM = os.environ.get("CHROMIUM") or shutil.which("chromium")
PAGES = ("README.md", "docs/how-to/watch-in-a-browser.md")


def size_of(png: bytes) -> dict[str, int]:
    """Width and height (Portable Network Graphics, section 11.2.1)."""
    assert png.startswith(b"\x89PNG\r\n\x1a\n")
    return dict(zip(("width", "height"), struct.unpack(">II", png[16:24]), strict=True))


@pytest.mark.skipif(CHROMIUM is None, reason="there is no chromium to look with")
def test_the_script_takes_a_picture_of_each_scheme(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    trio.run(record, tmp_path, 0)
    light, dark = ((tmp_path / f"monitor-{scheme}.png").read_bytes() for scheme in SCHEMES)
    assert size_of(light)["width"] == size_of(dark)["width"] == SIZE["width"]
    assert light != dark


@pytest.mark.parametrize("scheme", SCHEMES)
def test_the_kept_pictures_are_small_and_shown(scheme: str) -> None:
    path = FOLDER / f"monitor-{scheme}.png"
    png = path.read_bytes()
    assert size_of(png)["width"] == SIZE["width"]
    assert len(png) <= MAX_BYTES
    assert all(path.name in (ROOT / page).read_text(encoding="utf-8") for page in PAGES)
