"""Which changes of a program change the digest of what a handler does: the table of the page."""

from __future__ import annotations

import ast
import functools
import importlib.util
import linecache
import re
import sys
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import trio_ckpt
from trio_ckpt._runs.code_digest import digest_of
from trio_ckpt._runs.code_source import Sources

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

class Caller:
    def __call__(self, batch):
        return self.call(batch)

class Swapper(Caller):
    def call(self, batch):
        return batch.swapcase()

by_object = Swapper()

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
        for file, text in (("helpers", HELPERS), ("program", PROGRAM)):
            changed = text.replace(old, new) if old else text
            (self.folder / f"{file}.py").write_text(changed, encoding="utf-8")
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
    assert sources.file(json.__file__) is None
    assert sources.file(pytest.__file__) is None
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


# -- what can be called ---------------------------------------------------------------------------


def digest(*functions: Any) -> str:
    """The digest of functions, as a new start has it."""
    return digest_of(functions, Sources())


class Lower:
    def __call__(self, text: str) -> str:
        return self.change(text)

    def change(self, text: str) -> str:
        return text.lower()

    @classmethod
    def of_class(cls, text: str) -> str:
        return cls().change(text)


class Upper(Lower):
    def change(self, text: str) -> str:
        return text.upper()


class Title(Lower):
    def change(self, text: str) -> str:
        return text.title()


def test_an_object_that_inherits_its_call_counts_by_its_class(program: Program) -> None:
    before = program.digest("by_object")
    assert program.digest("by_object") == before
    assert program.digest("by_object", "batch.swapcase()", "batch.casefold()") != before
    assert program.digest("by_object", "self.call(batch)", "self.call(batch * 2)") != before


def test_a_method_of_a_class_counts_with_its_class() -> None:
    assert digest(Upper.of_class) != digest(Title.of_class)
    assert digest(Upper().change) != digest(Title().change)


def test_what_functools_wraps_is_read() -> None:
    def load(n: int) -> int:
        return n

    def load_more(n: int) -> int:
        return n + 1

    assert digest(functools.cache(load)) == digest(functools.cache(load))
    assert digest(functools.cache(load)) != digest(functools.cache(load_more))


def test_what_a_function_says_that_it_wraps_is_read() -> None:
    def of(wrapped: Any) -> str:
        def wrapper() -> None: ...

        return digest(functools.update_wrapper(wrapper, wrapped))

    assert of(_ping) == of(_ping)
    assert of(_ping) != of(_pong)


def test_functions_in_c_count_by_their_names() -> None:
    assert digest(len) != digest(print)
    assert digest(str.upper) != digest(str.lower)


def test_keywords_of_a_partial_have_no_order() -> None:
    def work(**settings: Any) -> None:
        del settings

    assert digest(functools.partial(work, a=1, b=2)) == digest(functools.partial(work, b=2, a=1))


# -- the same at each start and each stream ------------------------------------------------------


def test_what_a_function_assigns_does_not_count() -> None:
    done = 0

    def handler(batch: Any) -> None:
        nonlocal done
        done += 1
        _count(batch)

    before = digest(handler)
    handler(None)
    assert (done, digest(handler)) == (1, before)


def test_what_a_module_outside_has_loaded_does_not_count() -> None:
    names = vars(trio_ckpt)
    before = digest(_fails)
    loaded = trio_ckpt.PartitionsLeftError
    assert names["PartitionsLeftError"] is loaded
    assert digest(_fails) == before
    del names["PartitionsLeftError"]
    assert digest(_fails) == before


def test_where_a_program_lies_does_not_count() -> None:
    def moved(file: str) -> str:
        return digest(types.FunctionType(_says_where.__code__, {**globals(), "__file__": file}))

    assert moved("/srv/a/program.py") == moved("/srv/b/program.py")


def test_no_value_of_the_program_is_called(monkeypatch: pytest.MonkeyPatch) -> None:
    class Proxy:
        @property  # type: ignore[misc]
        def __class__(self) -> Any:
            raise AssertionError("it is asked what it stands for")

        def __getattr__(self, name: str) -> Any:
            raise AssertionError(f"it is asked for {name}")

        def __repr__(self) -> str:
            raise AssertionError("it is shown")

        def __hash__(self) -> int:
            return 1

    values = frozenset([Proxy()]), (Proxy(), 1)
    assert digest(lambda: values) == digest(functools.partial(lambda: values))
    monkeypatch.setitem(globals(), "_client", Proxy())
    assert digest(_asks)


# -- sizes ----------------------------------------------------------------------------------------


def test_very_large_integers_and_sums_are_read(program: Program) -> None:
    number = 10**5_000  # Python does not show it in base 10
    assert digest(lambda: number)
    long = " + ".join(["text"] * 1_500)
    for name, old in (("correct", "text.strip()"), ("by_method", "batch.lower()")):
        new = long.replace("text", "batch") if name == "by_method" else long
        assert program.digest(name, old, new) != program.digest(name)


def test_a_long_chain_of_functions_is_read(program: Program) -> None:
    chain = "".join(f"def f{n}(t):\n    return f{n + 1}(t)\n" for n in range(500))
    chain += "def f500(t):\n    return t\n"
    use = ("text.strip()\n", f"f0(text)\n{chain}")
    changed = (use[0], use[1].replace("    return t\n", "    return t + t\n"))
    assert program.digest("correct", *use) != program.digest("correct", *changed)


def test_a_file_is_passed_through_once(monkeypatch: pytest.MonkeyPatch) -> None:
    passes, parse = list[str](), ast.parse

    def counted(text: str) -> ast.Module:
        passes.append(text)
        return parse(text)

    monkeypatch.setattr(ast, "parse", counted)
    sources = Sources()
    before = digest_of([_ping, _pong, Upper(), Lower()], sources)
    assert digest_of([_ping, _pong, Upper(), Lower()], sources) == before
    assert len(passes) == 1


# -- without a file -------------------------------------------------------------------------------


def cell(text: str, name: str = "<cell 1>") -> dict[str, Any]:
    """Run a cell of a notebook, whose source Python can find; returns its names."""
    linecache.cache[name] = (len(text), None, text.splitlines(keepends=True), name)
    names: dict[str, Any] = {"__name__": "a_notebook"}
    exec(compile(text, name, "exec"), names)
    return names


HANDLE = "def handle(batch):\n    return batch\n"
CLASS = "class Handler:\n    def __call__(self, batch):\n        return batch\n"


def test_a_notebook_is_read() -> None:
    first, again = cell(HANDLE), cell("\n\n" + HANDLE, "<cell 2>")
    other = cell(HANDLE.replace("return batch", "return 2"), "<cell 3>")
    assert digest(first["handle"]) == digest(again["handle"]) != digest(other["handle"])


def test_a_class_of_a_notebook_is_read() -> None:
    first, again = cell(CLASS), cell("\n\n" + CLASS, "<cell 2>")
    other = cell(CLASS.replace("return batch", "return 2"), "<cell 3>")
    assert digest(first["Handler"]()) == digest(again["Handler"]()) != digest(other["Handler"]())


def test_without_a_source_a_function_counts_by_its_name() -> None:
    def made(text: str) -> Any:
        names: dict[str, Any] = {"__name__": "a_notebook"}
        exec(text, names)
        return names["handle"]

    assert digest(made(HANDLE)) == digest(made(HANDLE.replace("return batch", "return 2")))


_client: Any = None
_done = 0


def _count(batch: Any) -> None:
    global _done  # as many programs do
    _done += batch is None


def _fails(batch: Any) -> None:
    raise trio_ckpt.PartitionsLeftError("r", (), ())


def _says_where(batch: Any) -> str:
    return __file__


def _asks(batch: Any) -> Any:
    return _client.ask(batch)


def _ping(n: int) -> int:
    return _pong(n - 1) if n else 0


def _pong(n: int) -> int:
    return _ping(n) + 1
