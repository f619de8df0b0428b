"""The reference names everything that is public, and nothing else."""

from __future__ import annotations

import inspect
import re
import signal
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import trio_ckpt
import trio_ckpt.abc
import trio_ckpt.blocking
import trio_ckpt.engines
import trio_ckpt.from_asyncio
import trio_ckpt.outputs
import trio_ckpt.remote
import trio_ckpt.sinks
import trio_ckpt.stores
import trio_ckpt.testing
from docs import api_pages
from tests.loggers import LOGGERS
from trio_ckpt._util import errors as _errors

ROOT = Path(__file__).parents[2]
REFERENCE = ROOT / "docs" / "reference"
DIRECTIVE = re.compile(r"^\.\. auto(?:class|exception|function):: (\w+)", re.MULTILINE)
FIRST_CELL = re.compile(r"^\| `([\w.]+)` \|", re.MULTILINE)


def read(name: str) -> str:
    return (REFERENCE / name).read_text(encoding="utf-8")


def section(text: str, module: str) -> str:
    """The part of the page that documents a module's names."""
    parts = re.split(r"^\.\. currentmodule:: (\S+)$", text, flags=re.MULTILINE)
    return parts[parts.index(module) + 1]


def public(module: object) -> set[str]:
    return {
        name
        for name in dir(module)
        if not name.startswith("_")
        and (inspect.isclass(value := getattr(module, name)) or inspect.isfunction(value))
    }


def test_every_public_name_is_documented_once() -> None:
    names = DIRECTIVE.findall(section(read("api.md"), "trio_ckpt"))
    assert sorted(names) == sorted(public(trio_ckpt))


def shown_members(module: str) -> dict[str, set[str] | None]:
    """The members of each class that the page lists; None: all that have a docstring."""
    shown: dict[str, set[str] | None] = {}
    block = r"^\.\. auto(?:class|exception):: (\w+)[^\n]*\n(   :members:([^\n]*)\n)?"
    for name, line, members in re.findall(block, section(read("api.md"), module), re.MULTILINE):
        listed = set(re.findall(r"\w+", members))
        shown[name] = listed if listed or not line else None
    return shown


def own_names(cls: type) -> set[str]:
    """The public names of a class: members, fields, and what its `__init__` assigns to self."""
    names, of_python = set[str](), set[str]()
    for base in cls.__mro__:
        if not base.__module__.startswith("trio_ckpt"):
            of_python |= {*vars(base)}
        else:
            names |= {*vars(base), *inspect.get_annotations(base)}
            if "__init__" in vars(base) and not hasattr(base, "__attrs_attrs__"):
                source = inspect.getsource(vars(base)["__init__"])
                names |= set(re.findall(r"^        self\.(\w+)(?:: [^=\n]+)? = ", source, re.M))
    return {name for name in names - of_python if not name.startswith("_")}


def attributes_in(cls: type) -> set[str]:
    """The names that the docstrings of a class and its bases list as attributes or arguments."""
    found: set[str] = set()
    for base in cls.__mro__:
        doc = inspect.cleandoc(base.__doc__ or "")
        for part in re.findall(r"^(?:Attributes|Args):\n((?: .*\n?|\n)+)", doc, re.MULTILINE):
            for names in re.findall(r"^    (\w[\w, ]*):", part, re.MULTILINE):
                found |= set(re.findall(r"\w+", names))
    return found


MODULES = (trio_ckpt, trio_ckpt.remote, trio_ckpt.engines)
CLASSES = [
    (module.__name__, value)
    for module in MODULES
    for name in dir(module)
    if not name.startswith("_") and inspect.isclass(value := getattr(module, name))
]
CLASSES += [
    ("trio_ckpt.outputs", value)
    for name in shown_members("trio_ckpt.outputs")
    if inspect.isclass(value := getattr(trio_ckpt.outputs, name))
]


@pytest.mark.parametrize(("module", "cls"), CLASSES, ids=lambda of: getattr(of, "__name__", of))
def test_a_public_class_has_no_name_that_the_reference_hides(module: str, cls: type) -> None:
    listed = shown_members(module)[cls.__name__]
    if listed is not None:
        assert own_names(cls) - listed - attributes_in(cls) == set()
    assert (listed or set()) - own_names(cls) == set()


def test_every_public_name_for_tests_is_documented() -> None:
    names = DIRECTIVE.findall(section(read("api.md"), "trio_ckpt.testing"))
    assert set(names) == public(trio_ckpt.testing)


@pytest.mark.parametrize(
    "module",
    [
        *(trio_ckpt.abc, trio_ckpt.remote, trio_ckpt.engines),
        *(trio_ckpt.blocking, trio_ckpt.from_asyncio),
    ],
    ids=lambda module: module.__name__,
)
def test_every_public_name_of_a_module_is_documented(module: ModuleType) -> None:
    names = DIRECTIVE.findall(section(read("api.md"), module.__name__))
    assert sorted(names) == sorted(public(module))


def test_every_name_of_the_reference_has_a_page_of_its_own(tmp_path: Path) -> None:
    text = read("api.md")
    (tmp_path / "api.md").write_text(text, encoding="utf-8")
    (tmp_path / "api").mkdir()
    (tmp_path / "api" / "trio_ckpt.Gone.rst").write_text("a name that is not there any more")
    api_pages.write_pages(tmp_path)
    pages = {path.stem: path.read_text("utf-8") for path in (tmp_path / "api").iterdir()}
    names = [f"{entry.module}.{entry.name}" for _, entry in api_pages.read_entries(text)]
    assert len(names) == len(DIRECTIVE.findall(text)) == len(pages)
    for name in names:
        module, _, last = name.rpartition(".")
        assert section(pages[name], module).split()[2].partition("(")[0] == last
    shown = api_pages.overview(text)
    assert re.findall(r"^api/(\S+)$", shown, re.MULTILINE) == names
    assert DIRECTIVE.findall(shown) == []


def test_what_the_pages_of_names_would_leave_out_is_refused() -> None:
    with pytest.raises(ValueError, match="automodule"):
        api_pages.overview("```{eval-rst}\n.. automodule:: trio_ckpt.abc\n   :members:\n```\n")


def test_every_error_of_the_remote_side_says_what_to_do() -> None:
    errors = {f"remote.{name}" for name in public(trio_ckpt.remote) if name.endswith("Error")}
    rows = set(re.findall(r"`(remote\.\w+Error)`", read("errors.md")))
    assert errors - rows == {"remote.ProtocolError"}  # the root of two that are there
    assert rows - errors == set()


def test_every_error_of_engines_says_what_to_do() -> None:
    errors = {f"engines.{name}" for name in public(trio_ckpt.engines) if name.endswith("Error")}
    assert errors == set(re.findall(r"`(engines\.\w+Error)`", read("errors.md")))


def test_every_error_says_what_to_do() -> None:
    errors = {name for name in public(trio_ckpt) if name.endswith("Error")} - {"TrioCkptError"}
    rows = set(FIRST_CELL.findall(read("errors.md")))
    assert {row for row in rows if "." not in row} == errors


@pytest.mark.parametrize(
    ("heading", "function"),
    [
        (None, trio_ckpt.open_run),
        ("`run.open_stream`", trio_ckpt.Run.open_stream),
        ("`run_batches`", trio_ckpt.run_batches),
    ],
)
def test_every_argument_is_listed_with_its_default(
    heading: str | None, function: Callable[..., Any]
) -> None:
    parts = re.split(r"^## (.+)$", read("settings.md"), flags=re.MULTILINE)
    part = parts[0] if heading is None else parts[parts.index(heading) + 1]
    rows = re.findall(r"^\| `(\w+)` \| (?:`([^`]*)`)? *\|", part, re.MULTILINE)
    parameters = list(inspect.signature(function).parameters.values())
    assert [(name, default) for name, default in rows] == [
        (p.name, "" if p.default is p.empty else repr(p.default))
        for p in parameters
        if p.name != "self"
    ]


def test_every_exit_code_is_listed() -> None:
    codes = {value for name, value in vars(_errors).items() if name.startswith("EXIT_")}
    codes.add(128 + signal.SIGINT)  # a stop that is forced has the number of its signal
    listed = re.findall(r"^\| (\d+) \|", read("exit-codes.md"), re.MULTILINE)
    assert {int(code) for code in listed} == codes


def test_every_logger_is_listed() -> None:
    whole, *rows = FIRST_CELL.findall(read("logging.md"))
    assert whole == "trio_ckpt"
    below = {row: [name for name in LOGGERS if f"{name}.".startswith(f"{row}.")] for row in rows}
    assert all(below.values()), below
    assert {name for names in below.values() for name in names} == set(LOGGERS)


def test_every_test_that_the_seeds_page_names_exists() -> None:
    named = set(re.findall(r"`(test_\w+)`", read("../explanation/from-the-seeds.md")))
    files = (ROOT / "tests").rglob("test_*.py")
    defined = {
        name
        for path in files
        for name in re.findall(r"^(?:async )?def (test_\w+)", path.read_text(), re.M)
    }
    assert named
    assert named - defined == set()
