"""Make a page for each public name, and an overview, of the directives in `reference/api.md`.

`api.md` says what is public and which members are shown. Sphinx reads the overview in its place,
and the pages, which are written beside it before each build.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path

import attrs

FOLDER = "api"
BLOCK = re.compile(r"^```\{eval-rst\}\n(.*?)^```\n", re.MULTILINE | re.DOTALL)
PART = re.compile(
    r"^\.\. currentmodule:: (?P<module>\S+)\n"
    r"|^\.\. auto(?:class|exception|function):: (?P<name>\w+).*\n(?: {3}.*\n)*",
    re.MULTILINE,
)


@attrs.frozen
class Entry:
    """A public name.

    Attributes:
        module: Where it is imported from.
        directive: What Sphinx shows of it, as reStructuredText.
    """

    module: str
    name: str
    directive: str

    @property
    def page(self) -> str:
        """The name of its page, without a suffix."""
        return f"{self.module}.{self.name}"

    @property
    def text(self) -> str:
        """Its page."""
        title = self.page.removeprefix("trio_ckpt.")
        return (
            f"{title}\n{'=' * len(title)}\n\n.. currentmodule:: {self.module}\n\n{self.directive}"
        )


def read_entries(text: str) -> Iterator[tuple[int, Entry]]:
    """The public names of `api.md`, each with the number of its block."""
    module = ""
    for number, block in enumerate(BLOCK.findall(text)):
        if rest := PART.sub("", block).strip():
            raise ValueError(f"api.md has what is not the directive of a public name: {rest!r}")
        for part in PART.finditer(block):
            module = part["module"] or module
            if part["name"]:
                yield number, Entry(module, part["name"], part[0])


def overview(text: str) -> str:
    """What is read in place of `api.md`: a line for each name, which leads to its page."""
    blocks: dict[int, list[Entry]] = {}
    for number, entry in read_entries(text):
        blocks.setdefault(number, []).append(entry)
    tables = (_table(entries) for entries in blocks.values())
    return BLOCK.sub(lambda _: next(tables), text)


def listing(text: str, summaries: Mapping[str, str]) -> str:
    """The overview as Markdown that Sphinx need not read.

    Args:
        text: Of `api.md`.
        summaries: What each page says first, by its name.
    """
    blocks: dict[int, list[str]] = {}
    for number, entry in read_entries(text):
        line = f"- [{entry.name}]({FOLDER}/{entry.page}.md): {summaries[entry.page]}\n"
        blocks.setdefault(number, []).append(line)
    lists = ("".join(lines) for lines in blocks.values())
    return BLOCK.sub(lambda _: next(lists), text)


def _table(entries: list[Entry]) -> str:
    names = "".join(f"   {entry.name}\n" for entry in entries)
    pages = "".join(f"{FOLDER}/{entry.page}\n" for entry in entries)
    return (
        f"```{{eval-rst}}\n.. currentmodule:: {entries[0].module}\n\n"
        f".. autosummary::\n   :nosignatures:\n\n{names}```\n\n"
        f"```{{toctree}}\n:hidden:\n\n{pages}```\n"
    )


def write_pages(reference: Path) -> None:
    """Write the pages of the names in `reference/api.md`; a page that is right is left alone."""
    folder = reference / FOLDER
    folder.mkdir(exist_ok=True)
    text = (reference / "api.md").read_text(encoding="utf-8")
    pages = {f"{entry.page}.rst": entry.text for _, entry in read_entries(text)}
    for path in folder.iterdir():
        if path.name not in pages:
            path.unlink()
    for name, content in pages.items():
        path = folder / name
        if not path.exists() or path.read_text(encoding="utf-8") != content:
            path.write_text(content, encoding="utf-8")
