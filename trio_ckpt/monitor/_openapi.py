"""The OpenAPI document, made from the table of endpoints and the records."""

from __future__ import annotations

import importlib.metadata
from typing import Any

import msgspec

from ._answers import ApiRecord, Refusal
from ._endpoints import ENDPOINTS, JSON, Endpoint

COMMON = {
    400: "A parameter is not what it should be; it says which.",
    401: "The secret is missing or wrong.",
    403: "Another site's page asks, or an action is not allowed.",
    413: "Requests here have no body.",
    414: "The URL is too long.",
    421: "The server is not known by the name in Host.",
    500: "The monitor itself failed, or the records of a run are damaged.",
    503: "The store cannot be read, or not in time.",
}
"""What every endpoint may refuse with."""


def document() -> dict[str, Any]:
    """The whole document, OpenAPI 3.1."""
    records: list[type[ApiRecord]] = [Refusal]
    records += [e.answer for e in ENDPOINTS if e.answer is not None]
    _, components = msgspec.json.schema_components(
        dict.fromkeys(records),
        schema_hook=lambda _moment: {"type": "string"},
        ref_template="#/components/schemas/{name}",
    )
    paths: dict[str, dict[str, Any]] = {}
    for endpoint in ENDPOINTS:
        paths.setdefault(endpoint.path, {})[endpoint.method.lower()] = _operation(endpoint)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "trio_ckpt monitor",
            "version": importlib.metadata.version("trio-ckpt"),
            "description": "Runs, streams, pending tokens and history, as they stand.",
        },
        "security": [{"secret": []}],
        "paths": paths,
        "components": {
            "schemas": components,
            "securitySchemes": {"secret": {"type": "http", "scheme": "bearer"}},
        },
    }


def _operation(endpoint: Endpoint) -> dict[str, Any]:
    refusals = {**COMMON, **endpoint.refusals}
    return {
        "operationId": _name(endpoint),
        "summary": endpoint.summary,
        "parameters": [
            {
                "name": parameter.name,
                "in": parameter.place,
                "required": parameter.is_required,
                "description": parameter.description,
                **parameter.described(),
            }
            for parameter in endpoint.parameters
        ],
        "responses": {
            str(endpoint.status): {
                "description": endpoint.summary,
                "content": {endpoint.media_type: {"schema": _schema(endpoint.answer)}},
            },
            **{
                str(status): {
                    "description": why,
                    "content": {JSON: {"schema": {"$ref": "#/components/schemas/Refusal"}}},
                }
                for status, why in sorted(refusals.items())
            },
        },
    }


def _name(endpoint: Endpoint) -> str:
    words = [word for word in endpoint.path.split("/") if word and not word.startswith("{")]
    return "_".join([endpoint.method.lower(), *words]).replace(".", "_").replace("-", "_") + (
        "_of_one" if endpoint.path.endswith("}") else ""
    )


def _schema(answer: type[ApiRecord] | None) -> dict[str, Any]:
    if answer is None:
        return {}
    return {"$ref": f"#/components/schemas/{answer.__name__}"}
