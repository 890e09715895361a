"""What the description shows as an example is something that the API would take, or answer."""

from collections.abc import Iterator
from typing import Any

import pytest
from jsonschema import Draft202012Validator

from luthier_api.example_answers import ANSWERS
from luthier_api.examples import REQUESTS
from luthier_api.reference import make_hollow_app

DOCUMENT: dict[str, Any] = make_hollow_app().openapi_schema.to_schema()


def shown() -> Iterator[tuple[str, str, dict[str, Any]]]:
    """Each example with its operation, and where in it it stands."""
    for methods in DOCUMENT["paths"].values():
        for operation in methods.values():
            if isinstance(operation, dict) and "operationId" in operation:
                places = {"takes": operation.get("requestBody"), "answers": operation["responses"].get("200")}
                for name, place in places.items():
                    content = ((place or {}).get("content") or {}).get("application/json") or {}
                    if "example" in content:
                        yield operation["operationId"], name, content


@pytest.mark.parametrize(("operation", "place", "content"), list(shown()))
def test_an_example_is_what_the_schema_beside_it_describes(operation: str, place: str, content: dict[str, Any]) -> None:
    schema = content["schema"] | {"components": DOCUMENT["components"]}
    mistakes = [
        f"{error.json_path}: {error.message}" for error in Draft202012Validator(schema).iter_errors(content["example"])
    ]
    assert mistakes == [], f"what {operation} {place}"


def test_no_example_is_of_an_operation_that_is_not_there() -> None:
    named = {operation for operation, _, _ in shown()}
    assert {*REQUESTS, *ANSWERS} <= named
