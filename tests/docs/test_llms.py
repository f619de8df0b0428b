"""What language models read beside the HTML: `llms.txt`, and each page as Markdown."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from docs import llms
from tests.hangs import PROGRAM_S

ROOT = Path(__file__).parents[2]

SOURCES = {
    "index": "# trio_ckpt\n\nResumable work: it goes on. Kill it.\n\n"
    "```{toctree}\nhow-to/stop\nreference/api\nexplanation/decisions/0001\n```\n",
    "how-to/stop": "# Stop\n\nA run\nstops when it is asked to. [Names](../reference/api.md).\n",
    "explanation/decisions/0001": "# 1. Stop early\n\nStatus: accepted.\n\nIt is simpler.\n",
    "reference/api": "# The names\n\nThese.\n\n```{eval-rst}\n.. currentmodule:: trio_ckpt\n\n"
    ".. autoclass:: Pin()\n\n.. autofunction:: partition_of\n```\n\nAnd no others.\n",
}


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The HTML of a small documentation under the project's configuration."""
    folder = tmp_path_factory.mktemp("built")
    for name, text in SOURCES.items():
        path = folder / "docs" / f"{name}.md"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    command = [sys.executable, "-m", "sphinx", "-W", "-q", "-c", str(ROOT / "docs"), "docs", "html"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=PROGRAM_S)
    assert done.returncode == 0, done.stderr
    return folder / "html"


def read(path: Path) -> str:
    return path.read_text(encoding="utf-8")


def test_each_page_is_there_as_markdown(built: Path) -> None:
    for name, text in SOURCES.items():
        if name != "reference/api":
            assert read(built / f"{name}.md") == text
    page = read(built / "reference/api/trio_ckpt.partition_of.md")
    assert page.startswith("# partition_of\n\ntrio_ckpt.partition_of(")
    assert "Parameters:" in page


def test_the_markdown_of_the_overview_leads_to_each_name(built: Path) -> None:
    page = read(built / "reference/api.md")
    assert page.startswith("# The names\n\nThese.\n\n- [Pin](api/trio_ckpt.Pin.md): ")
    assert page.endswith("\n\nAnd no others.\n")
    assert re.findall(r"\((\S+)\)", page) == [
        "api/trio_ckpt.Pin.md",
        "api/trio_ckpt.partition_of.md",
    ]
    for target in re.findall(r"\((\S+)\)", page):
        assert (built / "reference" / target).exists()


def test_the_head_of_a_page_says_where_its_markdown_is(built: Path) -> None:
    head = read(built / "how-to/stop.html").partition("</head>")[0]
    assert '<link rel="alternate" type="text/markdown" href="stop.md">' in head
    assert "text/markdown" not in read(built / "search.html")


def test_llms_txt_names_each_page_with_how_it_begins(built: Path) -> None:
    text = read(built / "llms.txt")
    assert text.startswith("# trio_ckpt\n\n> Resumable work: it goes on.\n\n## Tutorial\n")
    lines = text.splitlines()
    assert "- [Stop](how-to/stop.md): A run stops when it is asked to." in lines
    assert "- [1. Stop early](explanation/decisions/0001.md): It is simpler." in lines
    addresses = re.findall(r"^- \[.*?\]\((\S+?)\): \S", text, re.MULTILINE)
    assert len(addresses) == len(SOURCES) - 1 + 2
    assert all((built / address).exists() for address in addresses)


def test_a_page_in_no_section_is_refused() -> None:
    with pytest.raises(KeyError):
        llms.index("p", [llms.Page("elsewhere/page", "A page", "It is.")])
