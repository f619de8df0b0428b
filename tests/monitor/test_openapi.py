"""The OpenAPI document: it says what there is, and what is answered is what it says."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import hypothesis
import pytest
import schemathesis

from tests.cli.tools import make_gh
from tests.monitor.background import Background, background
from tests.monitor.client import ACTION_SECRET
from trio_ckpt.monitor._endpoints import ENDPOINTS
from trio_ckpt.monitor._openapi import document
from trio_ckpt.stores import open_store

MAX_EXAMPLES = 25  # of each operation: bounded, so that it is a test and no campaign
REFUSALS = {413: "body_not_taken", 414: "too_long", 421: "wrong_host"}
"""Refusals that schemathesis does not know as such: status -> code of the error."""


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Background]:
    folder = tmp_path_factory.mktemp("openapi") / "gh.ckpt"
    make_gh(folder)

    async def program(found: Background) -> None:
        store = await open_store(folder)
        await found.show(store)
        await store.aclose()

    with background(program) as found:
        yield found


ASKED = [
    (endpoint.path, endpoint.method)
    for endpoint in ENDPOINTS
    if endpoint.path != "/api/events"  # it answers for ever; its own tests read it
]


@pytest.mark.parametrize("mode", ["positive", "negative"])
@pytest.mark.parametrize(("path", "method"), ASKED)
def test_every_answer_is_what_the_document_says(
    served: Background, path: str, method: str, mode: str
) -> None:
    """Requests are made from the document: such as it allows, and such as it does not."""
    schema = schemathesis.openapi.from_dict(document())
    operation = schema[path][method]
    headers = {"Authorization": f"Bearer {ACTION_SECRET}"}

    @hypothesis.settings(
        max_examples=MAX_EXAMPLES,
        deadline=None,
        derandomize=True,
        database=None,
        suppress_health_check=list(hypothesis.HealthCheck),
    )
    @hypothesis.given(case=operation.as_strategy(schemathesis.GenerationMode(mode)))
    def ask(case: schemathesis.Case) -> None:
        response = case.call(base_url=served.url, headers=headers)
        assert response.status_code < 500
        if response.status_code in REFUSALS:
            assert response.json()["error"]["code"] == REFUSALS[response.status_code]
        elif b"stream: at most" in response.content:  # no schema says how long JSON may be
            assert response.status_code == 400
        else:
            case.validate_response(response)

    try:
        ask()
    except hypothesis.errors.Unsatisfiable:
        assert mode == "negative"  # nothing about it can be wrong


def test_every_endpoint_is_in_it_once_and_nothing_else() -> None:
    found = {(path, method) for path, methods in document()["paths"].items() for method in methods}
    assert found == {(endpoint.path, endpoint.method.lower()) for endpoint in ENDPOINTS}
    names = [
        one["operationId"] for methods in document()["paths"].values() for one in methods.values()
    ]
    assert len(set(names)) == len(names)


def test_every_record_is_described_with_all_its_fields() -> None:
    schemas = document()["components"]["schemas"]
    for endpoint in ENDPOINTS:
        if endpoint.answer is not None:
            described = schemas[endpoint.answer.__name__]
            assert set(described["required"]) == set(endpoint.answer.__struct_fields__)


def test_every_refusal_says_why_in_words() -> None:
    for methods in document()["paths"].values():
        for operation in methods.values():
            for status, answer in operation["responses"].items():
                assert answer["description"]
                if int(status) >= 400:
                    content = answer["content"]["application/json"]
                    assert content["schema"]["$ref"].endswith("/Refusal")


def test_the_page_of_the_reference_lists_every_path() -> None:
    page = (Path(__file__).parents[2] / "docs" / "reference" / "rest-api.md").read_text()
    for endpoint in ENDPOINTS:
        assert f"| `{endpoint.method}` | `{endpoint.path}` |" in page
