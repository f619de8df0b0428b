"""The picture of a killed program is of a real session, and asks no other server for anything."""

from __future__ import annotations

import html
import re
from pathlib import Path

from docs.recording import KILLED_AT, PICTURE, README, picture, record


def lines_of(svg: str) -> list[str]:
    texts = re.findall(r"<text[^>]*>([^<]*)</text>", svg)
    return [line for text in texts if (line := html.unescape(text).replace("\xa0", " ").strip())]


def test_the_picture_shows_what_the_program_prints(tmp_path: Path) -> None:
    first, listed, second = (printed for _, printed in record(tmp_path))
    assert first.splitlines()[-2:] == [KILLED_AT, "Killed"]
    assert re.search(r"^book +interrupted .* 5 +5 +0 .*1 was killed$", listed, re.MULTILINE)
    assert second.splitlines() == [
        *(f"page {index}" for index in range(6, 11)),
        "10 pages are durable",
    ]
    assert f"```text\n{second}```" in README.read_text(encoding="utf-8")
    kept = lines_of(PICTURE.read_text(encoding="utf-8"))
    said = [*first.splitlines(), *second.splitlines()]
    assert [line for line in kept if line in said] == said


def test_the_picture_asks_no_other_server() -> None:
    svg = picture([("true", "<&>")])
    for text in (svg, PICTURE.read_text(encoding="utf-8")):
        assert "url(" not in text.replace("url(#", "")
        assert "@import" not in text
        assert "href" not in text
