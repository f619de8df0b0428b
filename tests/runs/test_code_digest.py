"""Which changes of a program change the digest of what a handler does: the table of the page."""

from __future__ import annotations

import functools
import importlib.util
import linecache
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from trio_ckpt._runs.code_digest import Sources, digest_of

PAGE = Path(__file__).parents[2] / "docs" / "how-to" / "change-the-code.md"

HELPERS = """
RATE = 3

def clean(text):
    return text.strip()

def unused(text):
    return text
"""

PROGRAM = '''
import functools
import json
import helpers
from helpers import clean

LIMIT = 10

def twice(function):
    @functools.wraps(function)
    def wrapper(batch):
        return [function(batch), function(batch)]
    return wrapper

def shorten(text):
    return text[:LIMIT]

@twice
def correct(batch, sep=" "):
    """Correct one page."""
    # what the model said
    text = clean(json.loads(batch))
    return sep.join([shorten(text), str(helpers.RATE)])

by_lambda = lambda batch: clean(batch).upper()

class Corrector:
    def __init__(self, model):
        self.model = model

    def correct(self, batch):
        return self.inner(batch)

    def inner(self, batch):
        return batch.lower()

by_method = Corrector("small").correct

def make(threshold, client):
    def handler(batch):
        return len(batch) > threshold and client
    return handler

by_closure = make(5, object())
'''

CHANGES: dict[str, tuple[str, str, str]] = {
    "a comment": ("correct", "# what the model said", "# as the model has said it"),
    "a docstring": ("correct", "Correct one page.", "Correct a page."),
    "white space, line breaks": (
        "correct",
        "return sep.join([shorten(text), str(helpers.RATE)])",
        "return  sep.join(\n        [shorten(text),\n         str(helpers.RATE)]\n    )\n",
    ),
    "a constant of the module": ("correct", "LIMIT = 10", "LIMIT = 20"),
    "a default argument": ("correct", 'sep=" "', 'sep="-"'),
    "a helper in the same module": ("correct", "text[:LIMIT]", "text[-LIMIT:]"),
    "an imported helper": ("correct", "text.strip()", "text.lstrip()"),
    "a decorator": (
        "correct",
        "[function(batch), function(batch)]",
        "[function(batch), function(batch), 0]",
    ),
    "a lambda": ("by_lambda", ".upper()", ".title()"),
    "a method": ("by_method", "batch.lower()", "batch.title()"),
    "a value in a closure": ("by_closure", "make(5,", "make(6,"),
    "the name of the function": ("correct", "def correct(batch, sep", "def improve(batch, sep"),
}


class Program:
    """A program of two modules in a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def digest(self, name: str, old: str = "", new: str = "") -> str:
        """The digest of a handler, after a change to one of the modules."""
        for module, text in (("helpers", HELPERS), ("program", PROGRAM)):
            changed = text.replace(old, new) if old else text
            (self.folder / f"{module}.py").write_text(changed, encoding="utf-8")
        linecache.clearcache()
        sys.modules.pop("helpers", None)
        spec = importlib.util.spec_from_file_location("program", self.folder / "program.py")
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules["program"] = module
        spec.loader.exec_module(module)
        handler = getattr(module, name, None) or module.improve
        return digest_of([handler], Sources())


@pytest.fixture
def program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Program]:
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    yield Program(tmp_path)
    for name in ("helpers", "program"):
        sys.modules.pop(name, None)


def rows() -> dict[str, bool]:
    """The table of the page: whether a change is named."""
    text = PAGE.read_text(encoding="utf-8")
    found = re.findall(r"^\| ([^|]+) \| (named|silent)\b[^|]*\|$", text, re.MULTILINE)
    return {change.strip(): word == "named" for change, word in found}


def test_the_page_has_each_kind_of_change() -> None:
    assert list(rows()) == list(CHANGES)


@pytest.mark.parametrize("change", CHANGES)
def test_a_change_is_named_or_silent_as_the_page_says(change: str, program: Program) -> None:
    name, old, new = CHANGES[change]
    assert (HELPERS + PROGRAM).count(old) == 1
    before, after = program.digest(name), program.digest(name, old, new)
    assert (before != after) is rows()[change]


@pytest.mark.parametrize("name", ["correct", "by_lambda", "by_method", "by_closure"])
def test_the_same_source_has_the_same_digest(name: str, program: Program) -> None:
    assert program.digest(name) == program.digest(name)


def test_what_a_handler_does_not_use_does_not_count(program: Program) -> None:
    before = program.digest("correct")
    assert program.digest("correct", "def unused(text):", "def unused(text, more):") == before
    assert program.digest("correct", "batch.lower()", "batch.title()") == before
    assert program.digest("correct", "RATE = 3", "RATE = 4") != before  # helpers.RATE


def test_libraries_are_not_read() -> None:
    import json

    sources = Sources()
    assert sources.tree(json.__file__) is None
    assert sources.tree(pytest.__file__) is None
    assert len(digest_of([json.loads, len, print], sources)) == 16


def test_a_partial_counts_with_its_arguments() -> None:
    def work(batch: Any, model: str) -> None:
        del batch, model

    def digest(function: Callable[..., Any]) -> str:
        return digest_of([function], Sources())

    small = digest(functools.partial(work, model="small"))
    assert small == digest(functools.partial(work, model="small"))
    assert small != digest(functools.partial(work, model="large"))


def test_functions_that_use_each_other_end() -> None:
    assert digest_of([_ping], Sources()) != digest_of([_pong], Sources())


def _ping(n: int) -> int:
    return _pong(n - 1) if n else 0


def _pong(n: int) -> int:
    return _ping(n) + 1
