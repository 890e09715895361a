"""The embedded servers speak neither TLS nor SASL: what the environment says of others' is not passed on to rooms."""

from pathlib import Path

import pytest

from luthier_stack.settings import StackSettings
from luthier_stack.stack import Stack

ELSEWHERE = {
    "LUTHIER_KAFKA_SECURITY_PROTOCOL": "SASL_SSL",
    "LUTHIER_KAFKA_CA_FILE": "/ca.pem",
    "LUTHIER_MONGO_CA_FILE": "/ca.pem",
}


@pytest.fixture(autouse=True)
def _is_set(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in ELSEWHERE.items():
        monkeypatch.setenv(name, value)


async def test_the_embedded_broker_is_told_of_without_tls(tmp_path: Path) -> None:
    settings = StackSettings(home=tmp_path, services=(), servers=("tansu",), mongo_url="mongodb://elsewhere")
    async with Stack(settings) as stack:
        assert not {name for name in stack.env if name.startswith("LUTHIER_KAFKA_")} - {"LUTHIER_KAFKA_URL"}
        assert stack.env["LUTHIER_MONGO_CA_FILE"] == "/ca.pem"


async def test_servers_elsewhere_are_reached_as_the_environment_says(tmp_path: Path) -> None:
    given = {"mongo_url": "mongodb://elsewhere", "kafka_url": "elsewhere:9093"}
    async with Stack(StackSettings(home=tmp_path, services=(), **given)) as stack:
        assert {name: stack.env[name] for name in ELSEWHERE} == ELSEWHERE
