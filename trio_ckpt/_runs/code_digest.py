"""The digest of what a function does: its source, and what of the program it uses.

Theory of operation
===================

The source is parsed, and its syntax tree is digested without positions, comments and docstrings:
what cannot change a result changes no digest.  The names that it uses are looked up where Python
would, and what they stand for is digested, too: functions and classes of the program, in whatever
module, and plain constants.  Modules outside the program (the standard library and what is
installed) are not followed: their versions say what they are (`Code.packages`).

The same program must have the same digest at each start, and at each stream of a start.  So what a
program changes while it runs does not count: a name that a function assigns (``global``,
``nonlocal``) counts by its name alone, and so does what a module outside has, which may load its
names when they are first used.

No value of the program is called, asked for an attribute or imported for this.  A value that is
neither a function, a class nor a plain constant, such as a client or a list, counts by the name of
its class; if it can be called, by what its class and what it wraps do.
"""

from __future__ import annotations

import functools
import hashlib
import inspect
import sys
import types
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from typing import Any, cast

from .code_source import (
    Piece,
    SourceFile,
    Sources,
    is_outside_module,
    names_of,
    shown_constant,
    write_words,
)

MAX_PARTS = 1_000  # functions and classes of a program that one function uses
DIGEST_BYTES = 8  # a digest is typed by people

_CONSTANTS = (int, float, complex, str, bytes, bool, type(None))
_IN_C: tuple[type, ...] = (
    types.BuiltinFunctionType,
    types.MethodDescriptorType,
    types.ClassMethodDescriptorType,
    types.WrapperDescriptorType,
    types.MethodWrapperType,
)
_FUNCTIONS = (types.FunctionType, types.MethodType, *_IN_C)
_OF_MODULE = frozenset(vars(types.ModuleType("m"))) | {"__file__", "__path__", "__cached__"}
"""What Python says of a module, such as where it lies."""


def digest_of(functions: Iterable[object], sources: Sources) -> str:
    """The digest of functions, hexadecimal.

    Args:
        functions: The functions, or other objects that can be called.
        sources: The files of the program.
    """
    walk = _Walk(sources)
    for function in functions:
        walk.add(function)
    walk.finish()
    return walk.hasher.hexdigest()


class _Walk:
    """Digests parts of a program, each once, those that are used first before others."""

    def __init__(self, sources: Sources) -> None:
        self.hasher = hashlib.blake2b(digest_size=DIGEST_BYTES)
        self._sources = sources
        self._seen = set[int]()
        self._kept = list[object]()  # so that no id is used twice
        self._todo = deque[Any]()

    def _write(self, *words: str) -> None:
        write_words(self.hasher, words)

    def add(self, value: Any) -> None:
        """Add what a value is; what a function or class does is added by `finish`."""
        kind = type(
            cast("object", value)
        )  # not `isinstance`, which asks a proxy for what it stands for
        if issubclass(kind, functools.partial):
            self.add(value.func)
            for argument in (*value.args, *sorted(value.keywords.items())):
                self.add(argument)
        elif issubclass(kind, types.MethodType):
            owner = value.__self__
            self.add(owner if issubclass(type(owner), type) else type(owner))
            self.add(value.__func__)
        elif issubclass(kind, types.FunctionType | type):
            self._queue(value)
        elif issubclass(kind, _IN_C):
            self._write(kind.__name__, value.__qualname__)
        elif kind in (tuple, frozenset):
            self._write(kind.__name__, str(len(value)))
            for part in value if kind is tuple else sorted(value, key=_place):
                self.add(part)
        elif kind in _CONSTANTS:
            self._write(kind.__name__, shown_constant(value))
        else:
            self._object(value)

    def _object(self, value: object) -> None:
        """Add an object by its class; one that can be called by what it does."""
        kind = type(value)
        self._write(kind.__qualname__)
        if callable(value):
            self._queue(kind)
            self.add(inspect.getattr_static(value, "__wrapped__", None))  # as by functools.cache

    def _queue(self, value: object) -> None:
        if id(value) not in self._seen and len(self._seen) < MAX_PARTS:
            self._seen.add(id(value))
            self._kept.append(value)
            self._todo.append(value)

    def finish(self) -> None:
        """Add what the functions and classes do that were added."""
        while self._todo:
            value = self._todo.popleft()
            if isinstance(value, types.FunctionType):
                self._function(value)
            else:
                self._class(value)

    def _function(self, function: types.FunctionType) -> None:
        wrapped = getattr(function, "__wrapped__", None)
        file = self._sources.file(function.__code__.co_filename)
        pieces = [] if file is None else file.pieces_of(function.__code__)
        held = [*_contents(function, file)]
        held += [*(function.__defaults__ or ()), *(function.__kwdefaults__ or {}).values()]
        if not pieces:  # it is outside the program, or was made without a file
            self._write(function.__module__ or "", function.__qualname__)
            held = [value for value in held if issubclass(type(value), _FUNCTIONS)]
        self._pieces(pieces, function.__globals__, file)
        for value in (wrapped, *held):
            self.add(value)

    def _class(self, cls: type) -> None:
        module = sys.modules.get(cls.__module__)
        file = self._sources.file_of(module)
        pieces = [] if file is None else file.pieces_of_class(cls.__qualname__)
        if module is not None:
            self._pieces(pieces, names_of(module), file)
        if not pieces:
            self._write(cls.__module__, cls.__qualname__)
            if module is None or not is_outside_module(module):
                self._members(cls)

    def _members(self, cls: type) -> None:
        """Add what the methods of a class do whose source is in no file, as in a notebook."""
        for name, member in sorted(vars(cls).items()):
            is_wrapped = isinstance(member, staticmethod | classmethod)
            inner: Any = cast("Any", member).__func__ if is_wrapped else member
            if isinstance(inner, types.FunctionType):
                self._write(name)
                self.add(inner)
        for base in cls.__bases__:
            self.add(base)

    def _pieces(
        self, pieces: Iterable[Piece], names: Mapping[str, Any], file: SourceFile | None
    ) -> None:
        """Add pieces of source, and what the global names stand for that they use."""
        for piece in pieces:
            self._write(piece.digest)
            for name, attributes in piece.uses:
                self._use(names, file, name, attributes)

    def _use(
        self, names: Mapping[str, Any], file: SourceFile | None, name: str, rest: tuple[str, ...]
    ) -> None:
        """Add what a name stands for, or the last of its attributes if it is a module."""
        if name in _OF_MODULE or name not in names or (file and name in file.variables):
            return
        value = names[name]
        if not issubclass(type(value), types.ModuleType):
            self._write(name)
            self.add(value)
        elif is_outside_module(value):
            self._write(names_of(value)["__name__"], *rest)
        elif rest:
            self._use(names_of(value), self._sources.file_of(value), rest[0], rest[1:])


def _contents(function: types.FunctionType, file: SourceFile | None) -> Iterator[object]:
    """What a closure has of the functions around it, without what one of them assigns."""
    names = function.__code__.co_freevars
    for name, cell in zip(names, function.__closure__ or (), strict=True):
        if file is None or name not in file.variables:
            with suppress(ValueError):  # it is empty
                yield cell.cell_contents


def _place(value: Any) -> str:
    """The place of a part of a set, which is the same at each start."""
    kind = type(cast("object", value))
    if kind in _CONSTANTS:
        return f"{kind.__name__} {shown_constant(value)}"
    if kind is tuple:
        return " ".join(map(_place, value))
    named: Any = value if issubclass(kind, (*_FUNCTIONS, type)) else kind
    return f"{kind.__name__} {named.__qualname__}"
