"""Validates outputs before their batch is confirmed: bytes in, an exception out.

An output whose name ends with ``.json`` is a document; for others there is `RawCheck`.  A
document is parsed strictly (`trio_ckpt.outputs._json`) and then passes the checks in order.
An attrs class makes an instance of it, which the callables after it get.
"""

# The functions of this file read the private fields of its class, so that users do not see them.
# pyright: reportPrivateUsage=false

from __future__ import annotations

import hashlib
import inspect
import typing
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias, cast

import attrs

from .._journal.record import Output
from .._util.arguments import checked_by, whole_number
from .._util.errors import OutputInvalidError
from .._util.exceptions import class_name
from ._contract import Outputs
from ._json import MAX_JSON_BYTES, Json, JsonError, parse_json
from ._schema import make_schema_check
from ._structure import MisfitError, is_class, make_structure, misfit_of

_Check = Callable[[Json, Json], Json]
"""Gets a parsed document, and the newest instance made of it, or itself; returns the newest."""


def _is_plain_function(_check: object, _attribute: object, accept: Any) -> None:
    if not callable(accept):
        raise TypeError(f"accept must be a function of a path and bytes, not {accept!r}")
    _refuse_async(accept)


@attrs.frozen
class RawCheck:
    """A check of the outputs whose names do not end with ``.json``.

    Attributes:
        accept: Called in a thread, as the callables of `Validator.of` are, with the path of an
            output, below the folder of the run, and with its content; it refuses by raising or by
            returning False.
        limit_bytes: Larger outputs are refused unread, because the content is held in memory.
    """

    accept: Callable[[str, bytes], object] = attrs.field(validator=_is_plain_function)
    limit_bytes: int = attrs.field(
        default=MAX_JSON_BYTES, kw_only=True, validator=checked_by(whole_number, least=1)
    )


@attrs.frozen
class Validator:
    """Checks of outputs, in order; from `Validator.of`.

    Several threads may use one at the same time, if the callables given to it allow that.
    """

    _checks: tuple[_Check, ...] = ()
    _raw: tuple[RawCheck, ...] = ()

    @classmethod
    def of(cls, validate: Validate) -> Validator:
        """Make the validator that `validate` describes.

        Args:
            validate: One of these, or a sequence of them, applied in order:

                * an attrs class or a dataclass.  The document must be an object with what
                  the class needs.  Nothing is coerced: ``"12"`` and ``1.0`` and ``true``
                  are not ints; an int is accepted for a float.  Datetimes are
                  ISO 8601, enums go by value, unknown keys are
                  allowed.  The class's own validators run.
                * a mapping: a JSON Schema, of the draft that its ``$schema`` names, else
                  2020-12.  References are resolved within it and never fetched.
                * a callable.  It gets the instance that the newest class before it made,
                  otherwise the parsed document, and refuses by raising or by returning False.
                  It runs in a thread that is none of `trio.to_thread`: `trio.from_thread.run`
                  needs a ``trio_token`` there.
                * a `RawCheck`, for the outputs that are not JSON.

        Raises:
            TypeError: it is none of these.
            ValueError: it is an empty sequence, or an invalid schema.
            ImportError: cattrs or jsonschema is needed and not installed.
        """
        if isinstance(validate, Validator):
            return validate
        if isinstance(validate, (list, tuple)):
            parts = cast("Sequence[Validate]", validate)
            if not parts:
                raise ValueError("an empty sequence validates nothing")
            made = [cls.of(part) for part in parts]
            return cls(
                tuple(check for one in made for check in one._checks),
                tuple(check for one in made for check in one._raw),
            )
        if isinstance(validate, RawCheck):
            return cls((), (validate,))
        return cls((_make_check(validate),))

    def check(self, path: str, data: bytes) -> None:
        """Validate `data`, the content of `path`.

        Raises:
            OutputInvalidError: it is not valid; the message names the first wrong field, and the
                number of other problems.
        """
        try:
            if is_json(path):
                parsed = made = parse_json(data)
                for check in self._checks:
                    made = check(parsed, made)
            else:
                for raw in self._raw:
                    _ask(raw.accept, path, data)
        except JsonError as error:
            raise OutputInvalidError(path, "", str(error)) from error
        except MisfitError as error:
            more = f" (and {error.more:,} more)" if error.more else ""
            cause = error.__cause__ or error
            raise OutputInvalidError(path, error.field, f"{error.reason}{more}") from cause
        except (SystemExit, KeyboardInterrupt, GeneratorExit) as error:
            # A user's function raises to end the program: only this batch fails.
            raise OutputInvalidError(path, "", f"its check raised {class_name(error)}") from error


Validate: TypeAlias = (
    type[object]
    | Mapping[str, object]
    | Callable[[Json], object]
    | RawCheck
    | Sequence["Validate"]
    | Validator
)
"""The values that an output can be validated by; see `Validator.of`."""


WELL_FORMED = Validator()  # accepts every JSON document that parses


def is_json(path: str) -> bool:
    """Return whether an output is a JSON document, by its name."""
    return path.lower().endswith(".json")


def check_outputs(outputs: Outputs, listed: Sequence[Output], validator: Validator) -> None:
    """Validate every output in `listed` that has checks.  Blocks.

    The content must match the recorded hash: a file that changed since is refused.

    Args:
        outputs: The place of the outputs.
        listed: The outputs of one batch.
        validator: The checks.

    Raises:
        OutputInvalidError: one is not valid, or there is none to validate: an empty batch
            is not valid.
        OutputError: one cannot be read.
    """
    kinds = {is_json(output.path) for output in listed}
    if validator._checks and True not in kinds:
        raise OutputInvalidError("", "", "no JSON output to validate")
    if validator._raw and False not in kinds:
        raise OutputInvalidError("", "", "no output to validate that is not JSON")
    for output in listed:
        if validator._checks if is_json(output.path) else validator._raw:
            _check_one(outputs, output, validator)


def check_found(outputs: Outputs, listed: Sequence[Output], validator: Validator | None) -> None:
    """Validate outputs without a record: none is empty, and JSON files are JSON.  Blocks.

    Args:
        outputs: The place of the outputs.
        listed: The outputs of one batch.
        validator: Additional checks; see `check_outputs`.

    Raises:
        OutputInvalidError: one is not valid.
        OutputError: one cannot be read.
    """
    for output in listed:
        if output.size == 0:
            raise OutputInvalidError(output.path, "", "is empty")
        if is_json(output.path) and not (validator and validator._checks):
            _check_one(outputs, output, WELL_FORMED)
    if validator is not None:
        check_outputs(outputs, listed, validator)


def _check_one(outputs: Outputs, output: Output, validator: Validator) -> None:
    raw = () if is_json(output.path) else validator._raw
    limit_bytes = min((check.limit_bytes for check in raw), default=MAX_JSON_BYTES)
    if output.size > limit_bytes:
        reason = f"has {output.size:,} bytes, over {limit_bytes:,}"
        raise OutputInvalidError(output.path, "", reason)
    data = outputs.read(output.path, limit_bytes)
    if hashlib.sha256(data).hexdigest() != output.sha256:
        raise OutputInvalidError(output.path, "", "altered since it was hashed")
    validator.check(output.path, data)


def _make_check(validate: object) -> _Check:
    if is_class(validate):
        structure = make_structure(validate)
        return lambda parsed, _: structure(parsed)
    if isinstance(validate, Mapping):
        conform = make_schema_check(cast("Mapping[str, object]", validate))

        def check(parsed: Json, made: Json) -> Json:
            conform(parsed)
            return made

        return check
    if isinstance(validate, type) or typing.get_origin(validate) is not None:
        raise TypeError(f"{validate!r} is neither an attrs class nor a dataclass")
    if not callable(validate):
        raise TypeError(
            f"outputs are validated by an attrs class, a JSON Schema, a callable, a RawCheck, or a "
            f"sequence of them, not by {validate!r}"
        )
    _refuse_async(validate)
    return _call(cast("Callable[[Json], object]", validate))


def _refuse_async(accept: object) -> None:
    if inspect.iscoroutinefunction(accept) or inspect.iscoroutinefunction(
        getattr(accept, "__call__", None)  # noqa: B004  # its __call__ may be async
    ):
        raise TypeError(f"{accept!r} is async; a validator runs in a thread")


def _call(accept: Callable[[Json], object]) -> _Check:
    def check(_: Json, made: Json) -> Json:
        _ask(accept, made)
        return made

    return check


def _ask(accept: Callable[..., object], *values: object) -> None:
    """Call a function of the user's, which refuses by raising or by returning False."""
    try:
        answer = accept(*values)
    except Exception as error:
        misfit = misfit_of(error)
        raise MisfitError(misfit.field, misfit.reason, misfit.more) from error
    if answer is False:
        name = getattr(accept, "__name__", None) or type(accept).__name__
        raise MisfitError("", f"{name} refuses it")
