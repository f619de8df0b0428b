"""The digest of what a function does: its source, and what of the program it uses.

Theory of operation
===================

The source is parsed, and its syntax tree is digested without positions, comments and docstrings:
what cannot change a result changes no digest.  The names that it uses are looked up where Python
would, and what they stand for is digested, too: functions and classes of the program, in whatever
module, and plain constants.  Modules outside the program (the standard library and what is
installed) are not followed: their versions say what they are (`Code.packages`).

No value of the program is called or imported for this.  A value that is neither a function, a class
nor a plain constant, such as a client or a list, counts by the name of its class.
"""

from __future__ import annotations

import ast
import functools
import hashlib
import inspect
import os
import sysconfig
import types
from collections.abc import Iterable, Iterator
from contextlib import suppress
from typing import Any

import attrs

MAX_PARTS = 1_000  # functions and classes of a program that one function uses
MAX_SOURCE_CHARS = 5_000_000  # of a file, which is parsed
DIGEST_BYTES = 8  # a digest is typed by people

_CONSTANTS = (int, float, complex, str, bytes, bool, type(None))
_NAMES = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
_INSTALLED = {"site-packages", "dist-packages"}  # also of other environments on the path
_Named = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef


@functools.cache
def _outside() -> tuple[str, ...]:
    """The folders of the standard library, and of what is installed."""
    paths = sysconfig.get_paths()
    wanted = ("stdlib", "platstdlib", "purelib", "platlib")
    folders = [os.path.dirname(os.path.dirname(__file__))]  # this library is none of the program
    folders += [paths[name] for name in wanted if name in paths]
    return tuple({os.path.realpath(folder) + os.sep for folder in folders})


@attrs.define(eq=False)
class Sources:
    """The syntax trees of the files of a program, each parsed once."""

    _trees: dict[str, ast.Module | None] = attrs.field(
        factory=dict[str, "ast.Module | None"], init=False
    )

    def tree(self, file: str | None) -> ast.Module | None:
        """The tree of a file of the program; None: it is outside, or cannot be read."""
        if file is None:
            return None
        if file not in self._trees:
            self._trees[file] = _parse(file)
        return self._trees[file]


def _parse(file: str) -> ast.Module | None:
    import linecache  # few runs note their code

    path = os.path.realpath(file)
    if path.startswith(_outside()) or _INSTALLED & set(path.split(os.sep)):
        return None
    text = "".join(linecache.getlines(file))
    if not text or len(text) > MAX_SOURCE_CHARS:
        return None
    try:
        return ast.parse(text)
    except (SyntaxError, ValueError, RecursionError):
        return None


def digest_of(functions: Iterable[object], sources: Sources) -> str:
    """The digest of functions, hexadecimal.

    Args:
        functions: The functions, or other objects that can be called.
        sources: The files of the program.
    """
    walk = _Walk(sources)
    for function in functions:
        walk.add(function)
    return walk.hasher.hexdigest()


class _Walk:
    """Digests parts of a program, each once, in the order in which they are used."""

    def __init__(self, sources: Sources) -> None:
        self.hasher = hashlib.blake2b(digest_size=DIGEST_BYTES)
        self._sources = sources
        self._seen = set[int]()
        self._kept = list[object]()  # so that no id is used twice

    def _write(self, *words: str) -> None:
        for word in words:
            data = word.encode(errors="surrogatepass")
            self.hasher.update(b"%d:" % len(data) + data)

    def add(self, value: Any) -> None:
        """Add what a value does, or what it is."""
        if isinstance(value, functools.partial):
            self.add(value.func)
            for argument in (*value.args, *value.keywords.items()):
                self.add(argument)
        elif isinstance(value, types.MethodType):
            self.add(type(value.__self__))
            self.add(value.__func__)
        elif isinstance(value, types.FunctionType):
            self._function(value)
        elif isinstance(value, type):
            self._class(value)
        elif type(value) in (tuple, frozenset):
            self._write(type(value).__name__, str(len(value)))
            for part in value if isinstance(value, tuple) else sorted(value, key=repr):
                self.add(part)
        elif type(value) in _CONSTANTS:
            self._write(type(value).__name__, repr(value))
        else:
            self._object(value)

    def _object(self, value: object) -> None:
        """Add an object by its class; one that the program has made callable by what it does."""
        self._write(type(value).__qualname__)
        if not isinstance(value, types.ModuleType) and "__call__" in vars(type(value)):
            self._class(type(value))

    def _is_new(self, value: object) -> bool:
        if id(value) in self._seen or len(self._seen) >= MAX_PARTS:
            return False
        self._seen.add(id(value))
        self._kept.append(value)
        return True

    def _function(self, function: types.FunctionType) -> None:
        if not self._is_new(function):
            return
        wrapped = getattr(function, "__wrapped__", None)
        nodes = _nodes_of(function.__code__, self._sources)
        if not nodes:  # it is outside the program, or was made without a file
            self._write(function.__module__ or "", function.__qualname__)
        for node in nodes:
            self._write(*_words(node, is_named=False))
        held = list(_contents(function.__closure__ or ()))
        held += [*(function.__defaults__ or ()), *(function.__kwdefaults__ or {}).values()]
        for value in [*held, wrapped] if nodes else [wrapped, *filter(inspect.isroutine, held)]:
            self.add(value)
        for node in nodes:
            self._names(node, function.__globals__)

    def _class(self, cls: type) -> None:
        if not self._is_new(cls):
            return
        module = inspect.getmodule(cls)
        tree = self._sources.tree(getattr(module, "__file__", None))
        nodes = [] if tree is None else [n for n in _defined(tree) if n[0] == cls.__qualname__]
        if not nodes:
            self._write(cls.__module__, cls.__qualname__)
        for _, node in nodes:
            self._write(*_words(node, is_named=False))
            self._names(node, vars(module) if module is not None else {})

    def _names(self, node: ast.AST, names: dict[str, Any]) -> None:
        """Add what the global names stand for that a piece of source uses."""
        for name, attributes in _uses(node):
            if name not in names:
                continue
            value = names[name]
            while isinstance(value, types.ModuleType) and attributes:
                value = vars(value).get(attributes[0])
                attributes = attributes[1:]
            if not isinstance(value, types.ModuleType):
                self._write(name)
                self.add(value)


def _contents(cells: Iterable[types.CellType]) -> Iterator[object]:
    """What a closure has of the functions around it."""
    for cell in cells:
        with suppress(ValueError):  # it is empty
            yield cell.cell_contents


def _nodes_of(code: types.CodeType, sources: Sources) -> list[ast.AST]:
    """The source of a function; of lambdas on one line all, as nothing tells them apart."""
    tree = sources.tree(code.co_filename)
    found = list[ast.AST]()
    for node in () if tree is None else ast.walk(tree):
        if isinstance(node, ast.Lambda):
            is_it = code.co_name == "<lambda>" and node.lineno == code.co_firstlineno
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            first = min([node.lineno, *(one.lineno for one in node.decorator_list)])
            is_it = code.co_name == node.name and first == code.co_firstlineno
        else:
            is_it = False
        if is_it:
            found.append(node)
    return found


def _defined(tree: ast.AST, prefix: str = "") -> Iterator[tuple[str, _Named]]:
    """The functions and classes of a tree, with their qualified names."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, _NAMES):
            yield prefix + node.name, node
            inner = "." if isinstance(node, ast.ClassDef) else ".<locals>."
            yield from _defined(node, prefix + node.name + inner)
        else:
            yield from _defined(node, prefix)


def _words(node: ast.AST, *, is_named: bool = True) -> Iterator[str]:
    """A piece of source as words, without positions, comments and docstrings.

    Args:
        node: Its syntax tree.
        is_named: Whether the name of a function or class counts, which the outermost is not for.
    """
    yield type(node).__name__
    for field, value in ast.iter_fields(node):
        if value is None or value == [] or (field == "name" and not is_named):
            continue  # an empty field may be one that other versions of Python do not have
        yield field
        parts = value if isinstance(value, list) else [value]
        if field == "body" and isinstance(node, _NAMES) and ast.get_docstring(node) is not None:
            parts = parts[1:]
        for part in parts:
            if isinstance(part, ast.AST):
                yield from _words(part)
            else:
                yield repr(part)
    yield "end"


def _uses(node: ast.AST) -> list[tuple[str, tuple[str, ...]]]:
    """The names that a piece of source uses, with the attributes that it takes of them."""
    found = dict[tuple[str, tuple[str, ...]], None]()
    inner = set[int]()
    for part in ast.walk(node):
        attributes = list[str]()
        at: ast.AST = part
        while isinstance(at, ast.Attribute):
            attributes.insert(0, at.attr)
            at = at.value
            inner.add(id(at))
        if isinstance(at, ast.Name) and (attributes or id(part) not in inner):
            found.setdefault((at.id, tuple(attributes)))
    return sorted(found)
