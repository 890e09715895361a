"""Settings for Kafka that cannot be meant are refused by name; every client is given those that can."""

import ast
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from luthier_common.kit.errors import SettingError
from luthier_common.kit.kafka_access import kafka_access
from luthier_common.kit.settings import RoomSettings

ROOT = Path(__file__).resolve().parents[3]
SECRET = "kafka-pass-1a2b"


def settings_with(**kafka: Any) -> RoomSettings:
    unused = {"mongo_url": "mongodb://unused", "kafka_url": "unused:1", "objects_url": "file:///unused"}
    return RoomSettings(**unused, **{f"kafka_{name}": value for name, value in kafka.items()})


def test_without_settings_nothing_is_asked_for() -> None:
    access = kafka_access(settings_with())
    assert access.options() == {"security_protocol": "PLAINTEXT", "ssl_context": None}


def test_a_password_reaches_the_client_and_no_text() -> None:
    settings = settings_with(security_protocol="SASL_PLAINTEXT", user="luthier", password=SECRET)
    access = kafka_access(settings)
    assert access.options()["sasl_plain_password"] == SECRET
    assert SECRET not in f"{access!r} {settings!r}"


@pytest.mark.parametrize(
    ("given", "named"),
    [
        ({"security_protocol": "SASL_SSL"}, "LUTHIER_KAFKA_USER"),
        ({"security_protocol": "SASL_SSL", "user": "luthier"}, "LUTHIER_KAFKA_PASSWORD"),
        ({"user": "luthier", "password": SECRET}, "LUTHIER_KAFKA_SECURITY_PROTOCOL"),
        ({"user": "luthier"}, "LUTHIER_KAFKA_USER or LUTHIER_KAFKA_PASSWORD"),
        ({"password": SECRET}, "LUTHIER_KAFKA_USER or LUTHIER_KAFKA_PASSWORD"),
        ({"ca_file": "/ca.pem"}, "LUTHIER_KAFKA_SECURITY_PROTOCOL"),
        ({"security_protocol": "SSL", "ca_file": "/no/such/ca.pem"}, "LUTHIER_KAFKA_CA_FILE"),
        ({"security_protocol": "SSL", "cert_file": "/cert.pem"}, "LUTHIER_KAFKA_KEY_FILE"),
        ({"security_protocol": "SSL", "cert_file": "/no/c.pem", "key_file": "/no/k.pem"}, "LUTHIER_KAFKA_CERT_FILE"),
    ],
)
def test_what_cannot_be_meant_is_refused_by_name(given: dict[str, str], named: str) -> None:
    with pytest.raises(SettingError, match=named) as refused:
        kafka_access(settings_with(**given))
    assert SECRET not in str(refused.value)


def test_an_unknown_protocol_is_refused() -> None:
    with pytest.raises(ValidationError, match="kafka_security_protocol"):
        settings_with(security_protocol="TLS")


def test_every_client_in_the_code_is_given_access() -> None:
    """A client that forgets it would work in every test but those with TLS."""
    forgetful = [
        f"{path.relative_to(ROOT)}:{call.lineno}"
        for folder in ("libs", "services")
        for path in (ROOT / folder).rglob("*.py")
        for call in ast.walk(ast.parse(path.read_text()))
        if isinstance(call, ast.Call) and _is_forgetful(call)
    ]
    assert forgetful == []


def _is_forgetful(call: ast.Call) -> bool:
    """One that connects, but without access, a CA file or S3 access; a starred argument counts as all of them."""
    name, given = _name(call.func), len(call.args) + len(call.keywords)
    if any(isinstance(argument, ast.Starred) for argument in call.args):
        return name == "open_mongo" and not _has(call, "ca_file")
    match name:
        case "build_broker":
            return given < 3
        case "Writer" | "Reader" | "ensure_topics" | "open_objects":
            return len(call.args) < 2
        case "open_mongo":
            return not _has(call, "ca_file")
    return False


def _has(call: ast.Call, keyword: str) -> bool:
    return any(given.arg == keyword for given in call.keywords)


def _name(called: ast.expr) -> str:
    return called.id if isinstance(called, ast.Name) else ""
