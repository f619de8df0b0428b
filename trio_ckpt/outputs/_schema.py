"""Checks of JSON values by a JSON Schema (https://json-schema.org/draft/2020-12)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from importlib import import_module
from typing import Any, TypeAlias, cast

import attrs

from .._util.extras import needs_extra
from ._json import Json
from ._structure import MisfitError, join

MAX_REASON_CHARS = 300  # jsonschema quotes the value, which may be the whole document

_LIBRARIES = ("jsonschema", "jsonschema_specifications", "referencing")
_REFERENCES = ("$ref", "$dynamicRef", "$recursiveRef")
_READ_OTHERWISE = {
    *("pattern", "patternProperties"),  # dialects of regular expressions
    "multipleOf",  # rounding
    *("contentMediaType", "contentEncoding", "dependencies"),  # asserted in more drafts
    *("unevaluatedProperties", "unevaluatedItems"),
}
"""Keywords that the libraries read in different ways."""

Check = Callable[[Json], None]
Untyped: TypeAlias = Any  # of the libraries, whose types are partly unknown


def make_schema_check(schema: Mapping[str, object]) -> Check:
    """Return a function that raises `MisfitError` for a value that the schema does not allow.

    The draft is the one that ``$schema`` names, else 2020-12.  Formats are annotations.
    jsonschema decides, and says why.  Where jsonschema-rs is installed and cannot decide
    otherwise, it is asked first, since it is a thousand times faster: what it accepts is valid.

    Raises:
        MissingExtraError: jsonschema is not installed.
        ValueError: the schema is invalid, is of an unknown draft, or refers to something
            outside of it: references are never fetched.
    """
    with needs_extra("validate", "validation by a JSON Schema"):
        jsonschema, known, referencing = map(_load, _LIBRARIES)
    plain = _plain(schema)
    uri = plain.setdefault("$schema", jsonschema.Draft202012Validator.META_SCHEMA["$schema"])
    kind = None
    if isinstance(uri, str):
        kind = jsonschema.validators.validator_for(plain, default=None)
    if kind is None:
        raise ValueError(f"the schema's $schema is {uri!r}, which is not a known draft")
    try:
        kind.check_schema(plain)
    except jsonschema.SchemaError as error:
        raise ValueError(f"it is not a JSON Schema: {error.json_path}: {error.message}") from error
    specification = referencing.jsonschema.specification_with(uri)
    registry = known.REGISTRY
    root = specification.create_resource(plain)
    try:
        is_common = _resolve_all(registry.resolver_with_root(root), root, {})
    except referencing.exceptions.Unresolvable as error:
        raise ValueError(f"the schema refers to {error.ref!r}, which is not in it") from error
    validator = kind(plain, registry=registry)
    accepts = _compile(plain) if is_common else _accept_nothing

    def check(value: Json) -> None:
        if accepts(value):
            return
        try:
            _refuse_first(validator.iter_errors(value))
        except RecursionError as error:
            raise MisfitError("", "the schema refers to itself without end") from error

    return check


def _load(name: str) -> Untyped:
    return import_module(name)


def _plain(value: object) -> Json:
    """Return a private copy in dicts and lists."""
    if isinstance(value, Mapping):
        items = cast("Mapping[str, object]", value).items()
        return {key: _plain(item) for key, item in items}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in cast("list[object]", value)]
    return value


def _resolve_all(resolver: Untyped, resource: Untyped, seen: dict[int, bool]) -> bool:
    """Check that every reference in a schema resolves.

    Returns:
        Whether all libraries read the schema in one way; they do not where it refers to itself.
    """
    contents: Untyped = resource.contents
    if isinstance(contents, bool):
        return True
    if id(contents) in seen:
        return seen[id(contents)]
    seen[id(contents)] = False
    parts = [(resolver.in_subresource(inner), inner) for inner in resource.subresources()]
    for keyword in _REFERENCES:
        reference = contents.get(keyword)
        if isinstance(reference, str):
            found = resolver.lookup(reference)
            parts.append((found.resolver, attrs.evolve(resource, contents=found.contents)))
    are_common = [_resolve_all(within, part, seen) for within, part in parts]
    seen[id(contents)] = all(are_common) and not _READ_OTHERWISE & contents.keys()
    return seen[id(contents)]


def _compile(schema: Json) -> Callable[[Json], bool]:
    """Return a function that says whether a value is certainly valid."""
    try:
        library = _load("jsonschema_rs")
        return cast(
            "Callable[[Json], bool]",
            library.validator_for(
                schema, retriever=_fetch_nothing, validate_formats=False
            ).is_valid,
        )
    except (ImportError, ValueError):  # it is not installed, or does not know the draft
        return _accept_nothing


def _fetch_nothing(uri: str) -> Json:
    raise ValueError(uri)


def _accept_nothing(_value: Json) -> bool:
    return False


def _refuse_first(errors: Iterable[Untyped]) -> None:
    first, more = None, -1
    for error in errors:
        first = first or error
        more += 1
    if first is None:
        return
    field = ""
    for step in first.absolute_path:
        field = join(field, f"[{step}]" if isinstance(step, int) else str(step))
    reason = str(first.message)
    if first.validator == "required":
        missing = next((name for name in first.validator_value if name not in first.instance), "")
        field, reason = join(field, missing), "required, but missing"
    if len(reason) > MAX_REASON_CHARS:
        reason = f"{reason[: MAX_REASON_CHARS - 1]}…"
    raise MisfitError(field, reason, more)
