"""docs/protocol against the code: the routes, the messages, and the vectors as examples."""

import json
import re
from dataclasses import MISSING, fields
from enum import StrEnum
from pathlib import Path
from typing import Any

import jsonschema
import openapi_spec_validator
import pytest
import yaml

from fedctl_agent.daemon.routes import ROUTES
from fedctl_wire import messages
from fedctl_wire.limits import LIMITS
from fedctl_wire.signing import Envelope, PayloadType, Signature
from tests.property.wire.messages import MESSAGES

ROOT = Path(__file__).parents[2]
PROTOCOL = ROOT / "docs" / "protocol"
DOCUMENT = yaml.safe_load((PROTOCOL / "openapi.yaml").read_text(encoding="utf-8"))
SCHEMAS: dict[str, Any] = DOCUMENT["components"]["schemas"]
METHODS = {"get", "head", "put", "post", "patch", "delete"}
ENUMS = [
    found
    for found in vars(messages).values()
    if isinstance(found, type) and issubclass(found, StrEnum) and found is not StrEnum
]


def operations() -> list[tuple[str, str, dict[str, Any]]]:
    return [
        (method.upper(), path, item[method])
        for path, item in DOCUMENT["paths"].items()
        for method in item
        if method in METHODS
    ]


def test_it_is_a_valid_openapi_document() -> None:
    openapi_spec_validator.validate(DOCUMENT)
    assert DOCUMENT["openapi"].startswith("3.1.")


def test_the_routes_are_those_of_the_agent() -> None:
    documented = sorted((method, path) for method, path, _ in operations())
    assert documented == sorted((route.method, route.path) for route in ROUTES)


def test_every_parameter_of_a_path_is_declared() -> None:
    parameters = DOCUMENT["components"]["parameters"]
    for path, item in DOCUMENT["paths"].items():
        declared = [parameters[p["$ref"].rpartition("/")[2]]["name"] for p in item.get("parameters", ())]
        assert declared == re.findall(r"{(\w+)}", path), path


def test_every_message_of_a_route_is_one_of_the_code() -> None:
    used = set(re.findall(r"#/components/schemas/(\w+)", json.dumps(DOCUMENT)))
    known = {cls.__name__ for cls in (*MESSAGES, *ENUMS, Envelope, Signature)} | {"Name"}
    assert used <= set(SCHEMAS)
    assert set(SCHEMAS) == known


@pytest.mark.parametrize("cls", MESSAGES, ids=lambda cls: cls.__name__)
def test_a_schema_has_the_fields_of_its_message(cls: type) -> None:
    schema, own = SCHEMAS[cls.__name__], [f for f in fields(cls) if f.name != "extra"]
    assert list(schema["properties"]) == [f.name for f in own]
    required = [f.name for f in own if f.default is MISSING and f.default_factory is MISSING]
    assert schema.get("required", []) == required
    closed = all(f.name != "extra" for f in fields(cls))
    assert schema.get("additionalProperties", True) is not closed


@pytest.mark.parametrize("enum", ENUMS, ids=lambda enum: enum.__name__)
def test_an_enumeration_has_the_words_of_the_code(enum: type[StrEnum]) -> None:
    assert SCHEMAS[enum.__name__]["enum"] == [member.value for member in enum]


def test_the_envelope_is_the_one_that_is_sent() -> None:
    sent = Envelope("t", b"p", (Signature("k", "s"),)).to_json()
    assert list(SCHEMAS["Envelope"]["properties"]) == list(sent)
    assert list(SCHEMAS["Signature"]["properties"]) == list(sent["signatures"][0])
    assert SCHEMAS["Envelope"]["properties"]["signatures"]["maxItems"] == LIMITS.signatures


@pytest.mark.parametrize(
    "vector",
    [
        pytest.param(vector, id=vector["class"])
        for vector in json.loads((ROOT / "tests/vectors/messages.json").read_text())["messages"]
    ],
)
def test_a_vector_fits_its_schema(vector: dict[str, str]) -> None:
    schema = {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "$ref": f"#/components/schemas/{vector['class']}",
        "components": {"schemas": SCHEMAS},
    }
    value = json.loads(vector["canonical"])
    jsonschema.validate(value, schema)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate([value], schema)


def test_every_operation_has_an_error_answer_and_a_name_of_its_own() -> None:
    ids = [operation["operationId"] for _, _, operation in operations()]
    assert len(set(ids)) == len(ids)
    for method, path, operation in operations():
        assert operation["responses"]["default"] == {"$ref": "#/components/responses/Error"}, (method, path)


def test_the_prose_names_every_payload_type_and_links_to_files_that_exist() -> None:
    prose = (PROTOCOL / "README.md").read_text(encoding="utf-8")
    assert [kind.value for kind in PayloadType if kind.value not in prose] == []
    for page in (PROTOCOL / "README.md", *(ROOT / "docs" / "adr").glob("*.md")):
        for target in re.findall(r"\]\(([^)#:]+)\)", page.read_text(encoding="utf-8")):
            assert (page.parent / target).exists(), f"{page.name}: {target}"
