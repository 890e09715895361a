"""Messages of every earlier version are still read, and newer ones do not disturb."""

import json
from pathlib import Path
from typing import Any

import pytest

from luthier_common.contract.envelope import Envelope, read_envelope
from luthier_common.contract.events import FACTS, read_fact
from luthier_common.contract.examples import example_message
from luthier_common.contract.topics import MAX_FACT_BYTES

GOLDEN = Path(__file__).parent / "golden"
OPEN_MAPS = ("metrics", "library_versions")
"""These keep every name that they are given."""
FILES = sorted(GOLDEN.glob("*.json"))
EACH = pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)


def read(path: Path, **changes: Any) -> Envelope:
    message = json.loads(path.read_text())
    headers = [(name, text.encode()) for name, text in message["headers"].items()]
    return read_envelope(json.dumps(message["value"] | changes).encode(), headers)


def holds(whole: Any, part: Any) -> bool:
    """Whether everything in `part` is still in `whole`; newer versions may have more."""
    if isinstance(part, dict):
        return isinstance(whole, dict) and all(key in whole and holds(whole[key], part[key]) for key in part)
    if isinstance(part, list):
        return isinstance(whole, list) and len(whole) == len(part) and all(map(holds, whole, part))
    return bool(whole == part)


def with_news(value: Any) -> Any:
    """The same with a field in every object that this version does not know."""
    if isinstance(value, dict):
        known = {name: part if name in OPEN_MAPS else with_news(part) for name, part in value.items()}
        return known | {"added_later": {"by": ["others"]}}
    return [with_news(part) for part in value] if isinstance(value, list) else value


def test_every_fact_has_a_golden_message() -> None:
    missing = sorted(set(FACTS) - {path.stem for path in FILES})
    assert not missing, (
        f"no golden message for {', '.join(missing)}: run `python -m luthier_common.contract.generate --golden` "
        "and commit what it adds"
    )


def test_no_fact_of_an_earlier_version_is_gone() -> None:
    assert {path.stem for path in FILES} <= set(FACTS), "facts are never removed: consumers may still meet them"


@EACH
def test_a_golden_message_is_read_whole(path: Path) -> None:
    message = json.loads(path.read_text())
    envelope = read(path)
    fact = read_fact(envelope.type, envelope.data)
    assert type(fact) is FACTS[path.stem]
    assert holds(fact.model_dump(mode="json"), message["value"]["data"])
    assert holds(json.loads(envelope.value()), message["value"])
    sent = {name: text.decode() for name, text in envelope.headers(message["headers"]["ce_source"])}
    assert sent == message["headers"]
    assert len(envelope.value()) < MAX_FACT_BYTES


@EACH
def test_fields_of_a_newer_version_are_ignored(path: Path) -> None:
    old = read(path)
    new = read(path, **{name: with_news(part) for name, part in json.loads(path.read_text())["value"].items()}, added=1)
    assert read_fact(new.type, new.data) == read_fact(old.type, old.data)
    assert (new.id, new.at, new.actor) == (old.id, old.at, old.actor)


def test_a_type_of_a_newer_version_is_skipped() -> None:
    envelope = read(GOLDEN / "JobCreated.json", type="JobDreamt", data={"anything": [1, 2, 3]})
    assert envelope.type == "JobDreamt"
    assert read_fact(envelope.type, envelope.data) is None


def test_a_known_type_that_is_malformed_is_an_error() -> None:
    envelope = read(GOLDEN / "JobPlaced.json", data={"attempt": "first"})
    with pytest.raises(ValueError, match="attempt"):
        read_fact(envelope.type, envelope.data)


@pytest.mark.parametrize("value", [b"", b"null", b"[]", b"{}", b"\xff\xfe", b'{"kind":"job"}', b"{" * 10_000])
def test_what_is_no_envelope_is_an_error(value: bytes) -> None:
    with pytest.raises(ValueError, match=r".*"):
        read_envelope(value)


@pytest.mark.parametrize("name", FACTS)
def test_an_example_can_be_made_of_every_fact(name: str) -> None:
    envelope, headers = example_message(FACTS[name])
    assert read_envelope(envelope.value(), headers) == envelope
