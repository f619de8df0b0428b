"""What language models read: `llms.txt`, and each page as Markdown beside its HTML.

The format of `llms.txt` is that of https://llmstxt.org.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

import attrs

SECTIONS = {
    "tutorial": "Tutorial",
    "how-to": "How-to guides",
    "reference": "Reference",
    "explanation": "Explanation",
    "reference/api": "Public names",
}


@attrs.frozen
class Page:
    """A page of the documentation.

    Attributes:
        name: Its path without a suffix, from the root of the documentation.
        summary: A sentence, on one line.
    """

    name: str
    title: str
    summary: str


def index(project: str, pages: Iterable[Page]) -> str:
    """The text of `llms.txt`: the pages by sections, each with its address and how it begins.

    Args:
        project: Its name.
        pages: All of them, the first page with the name "index" among them.

    Raises:
        KeyError: a page is in a folder that is no section.
    """
    sections: dict[str, list[Page]] = {folder: [] for folder in SECTIONS}
    start = Page("index", project, "")
    for page in pages:
        if page.name == start.name:
            start = page
        else:
            folder = page.name.rpartition("/")[0]
            sections[folder.removesuffix("/decisions")].append(page)
    parts = [f"# {project}\n\n> {start.summary}\n"]
    for folder, found in sections.items():
        lines = "".join(f"- [{page.title}]({page.name}.md): {page.summary}\n" for page in found)
        parts.append(f"## {SECTIONS[folder]}\n\n{lines}")
    return "\n".join(parts)


def first_sentence(text: str) -> str:
    """The first sentence of a text, on one line."""
    words = " ".join(text.split())
    return re.split(r"(?<=[.!?])\s", words, maxsplit=1)[0]


def as_markdown(title: str, text: str) -> str:
    """A page that is not written in Markdown: its text, below its title.

    Args:
        text: Of the page, the underlined title at its beginning.
    """
    return f"# {title}\n\n{text.split(chr(10), 2)[2].lstrip(chr(10))}"
