"""Outputs are looked into before their batch is confirmed: bytes in, an exception out.

A document is read strictly (`trio_ckpt.outputs._json`) and then goes through the checks
in order.  An attrs class makes an instance of it, which the callables after it are given.
"""

from __future__ import annotations

import hashlib
import inspect
import typing
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias, cast

import attrs

from .._errors import OutputInvalidError
from .._records import Output
from ._dir import OutputDir
from ._json import MAX_JSON_BYTES, JsonError, parse_json
from ._schema import make_schema_check
from ._structure import MisfitError, is_class, make_structure, misfit_of


@attrs.frozen
class _Document:
    """What the checks have made of a document so far."""

    parsed: Any
    made: Any  # by the newest class, or as it was parsed


_Check = Callable[[_Document], _Document]


@attrs.frozen
class Validator:
    """Checks of a JSON document, in order; from `Validator.of`.

    Several threads may use one at the same time, if the callables given to it allow that.
    """

    _checks: tuple[_Check, ...]

    @classmethod
    def of(cls, validate: Validate) -> Validator:
        """Make the validator that `validate` describes.

        Args:
            validate: One of these, or a sequence of them, applied in order:

                * an attrs class or a dataclass.  The document must be an object with what
                  the class needs.  Nothing is coerced: ``"12"`` and ``1.0`` and ``true``
                  are no ints; an int is fine where a float is wanted.  Datetimes are
                  ISO 8601, enums go by value, keys that the class does not know are
                  allowed.  The class's own validators run.
                * a mapping: a JSON Schema, of the draft that its ``$schema`` names, else
                  2020-12.  References are resolved within it and never fetched.
                * a callable.  It gets the instance that the newest class before it made,
                  else the parsed document, and refuses by raising or by returning False.

        Raises:
            TypeError: it is none of these.
            ValueError: it is an empty sequence, or a schema that is none.
            ImportError: cattrs or jsonschema is needed and not installed.
        """
        if isinstance(validate, Validator):
            return validate
        if isinstance(validate, (list, tuple)):
            parts = cast("Sequence[Validate]", validate)
            if not parts:
                raise ValueError("an empty sequence validates nothing")
            return cls(tuple(check for part in parts for check in cls.of(part)._checks))
        return cls((_make_check(validate),))

    def check(self, path: str, data: bytes) -> None:
        """See that `data`, the content of `path`, is valid.

        Raises:
            OutputInvalidError: it is not; naming the first field that is wrong, and how
                many other problems there are.
        """
        try:
            parsed = parse_json(data)
            document = _Document(parsed, parsed)
            for check in self._checks:
                document = check(document)
        except JsonError as error:
            raise OutputInvalidError(path, "", str(error)) from error
        except MisfitError as error:
            more = f" (and {error.more:,} more)" if error.more else ""
            cause = error.__cause__ or error
            raise OutputInvalidError(path, error.field, f"{error.reason}{more}") from cause


Validate: TypeAlias = (
    type[Any] | Mapping[str, Any] | Callable[[Any], Any] | Sequence["Validate"] | Validator
)
"""What an output is validated by; see `Validator.of`."""


def check_outputs(outputs: OutputDir, listed: Sequence[Output], validator: Validator) -> None:
    """Validate every output in `listed` whose name ends with ``.json``.  Blocks.

    What is validated is what was hashed: a file that changed since is refused.

    Args:
        outputs: Where they are.
        listed: The outputs of one batch.
        validator: Decides.

    Raises:
        OutputInvalidError: one is not valid, or there is none to validate: an empty batch
            does not slip by.
        OutputError: one cannot be read.
    """
    found = [output for output in listed if output.path.lower().endswith(".json")]
    if not found:
        raise OutputInvalidError("", "", "no JSON output to validate")
    for output in found:
        if output.size > MAX_JSON_BYTES:
            reason = f"has {output.size:,} bytes, over {MAX_JSON_BYTES:,}"
            raise OutputInvalidError(output.path, "", reason)
        data = outputs.read(output.path, MAX_JSON_BYTES)
        if hashlib.sha256(data).hexdigest() != output.sha256:
            raise OutputInvalidError(output.path, "", "was altered since it was hashed")
        validator.check(output.path, data)


def _make_check(validate: Any) -> _Check:
    if is_class(validate):
        structure = make_structure(validate)
        return lambda document: _Document(document.parsed, structure(document.parsed))
    if isinstance(validate, Mapping):
        check = make_schema_check(cast("Mapping[str, Any]", validate))

        def conform(document: _Document) -> _Document:
            check(document.parsed)
            return document

        return conform
    if isinstance(validate, type) or typing.get_origin(validate) is not None:
        raise TypeError(f"{validate!r} is neither an attrs class nor a dataclass")
    if not callable(validate):
        raise TypeError(
            f"outputs are validated by an attrs class, a JSON Schema, a callable, or a sequence "
            f"of them, not by {validate!r}"
        )
    if inspect.iscoroutinefunction(validate) or inspect.iscoroutinefunction(
        getattr(validate, "__call__", None)  # noqa: B004  # its __call__ may be async
    ):
        raise TypeError(f"{validate!r} is async; a validator runs in a thread")
    return _call(cast("Callable[[Any], Any]", validate))


def _call(accept: Callable[[Any], Any]) -> _Check:
    name = getattr(accept, "__name__", None) or type(accept).__name__

    def ask(document: _Document) -> _Document:
        try:
            answer = accept(document.made)
        except Exception as error:
            misfit = misfit_of(error)
            raise MisfitError(misfit.field, misfit.reason, misfit.more) from error
        if answer is False:
            raise MisfitError("", f"{name} refuses it")
        return document

    return ask
