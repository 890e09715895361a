"""The contract for programs: JSON Schemas of the facts and their envelope, and an AsyncAPI 3.0 document. Pure."""

from typing import Any

from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from luthier_common.contract.envelope import Envelope
from luthier_common.contract.events import FACTS, Fact
from luthier_common.contract.topics import DEAD_LETTERS, TOPICS, Kind, Topic

Document = dict[str, Any]
DIALECT = "https://json-schema.org/draft/2020-12/schema"
VERSION = "1.0.0"
_HEADERS = {
    "ce_specversion": "CloudEvents version, `1.0`",
    "ce_id": "`{kind}/{id}/{seq}`; with ce_source it names the fact: dedupe by both",
    "ce_source": "`luthier/{cluster}/{incarnation}`; the incarnation rises when a backup is restored",
    "ce_type": "name of the fact; skip what you do not know",
    "ce_subject": "id of the thing, equal to the message key",
    "ce_time": "when the fact was committed, UTC",
    "content-type": "`application/json`",
}
_OPTIONAL_HEADERS = {"traceparent": "W3C trace context of what caused the fact"}


def json_schema(shape: type[BaseModel]) -> Document:
    """The JSON Schema of one shape. Readers ignore fields that it does not name."""
    return {"$schema": DIALECT, **shape.model_json_schema()}


def asyncapi() -> Document:
    """Every topic with its messages, keys, headers and retention."""
    shapes: list[type[BaseModel]] = [Envelope, *FACTS.values()]
    _, lifted = models_json_schema(
        [(shape, "validation") for shape in shapes],
        ref_template="#/components/schemas/{model}",
    )
    channels = {_channel_id(topic): _channel(topic, _facts_of(kind)) for kind, topic in TOPICS.items()}
    dead_id = _channel_id(DEAD_LETTERS)
    return {
        "asyncapi": "3.0.0",
        "info": {
            "title": "Luthier life facts",
            "version": VERSION,
            "description": (
                "Facts are told at least once. Per thing `seq` rises by one: a gap means wait, the rest is coming. "
                "Unknown fields are to be ignored and unknown types to be skipped. Never prompts, texts or secrets."
            ),
        },
        "defaultContentType": "application/json",
        "channels": {**channels, dead_id: _dead_letter_channel()},
        "operations": {
            f"tell-{kind}": {"action": "send", "channel": {"$ref": f"#/channels/{_channel_id(topic)}"}}
            for kind, topic in TOPICS.items()
        }
        | {"bury": {"action": "send", "channel": {"$ref": f"#/channels/{dead_id}"}}},
        "components": {
            "messages": {name: _message(shape) for name, shape in FACTS.items()} | {"DeadLetter": _dead_letter()},
            "schemas": lifted["$defs"] | {"Headers": _headers(_HEADERS, _OPTIONAL_HEADERS)},
        },
    }


def _facts_of(kind: Kind) -> list[str]:
    return [name for name, shape in FACTS.items() if shape.kind is kind]


def _channel_id(topic: Topic) -> str:
    return topic.name.removeprefix("luthier.").replace(".", "-")


def _channel(topic: Topic, messages: list[str]) -> Document:
    return {
        "address": topic.name,
        "description": topic.purpose + ".",
        "messages": {name: {"$ref": f"#/components/messages/{name}"} for name in messages},
        "bindings": {
            "kafka": {
                "topic": topic.name,
                "partitions": topic.num_partitions,
                "topicConfiguration": {
                    "cleanup.policy": ["delete"],
                    "retention.ms": topic.retention_ms,
                    "max.message.bytes": topic.max_message_bytes,
                },
                "bindingVersion": "0.5.0",
            }
        },
    }


def _dead_letter_channel() -> Document:
    return _channel(DEAD_LETTERS, ["DeadLetter"])


def _message(shape: type[Fact]) -> Document:
    name = shape.__name__
    return {
        "name": name,
        "title": name,
        "summary": sentence_of(shape),
        "contentType": "application/json",
        "headers": {"$ref": "#/components/schemas/Headers"},
        "bindings": {"kafka": {"key": {"type": "string", "description": f"id of the {shape.kind}"}}},
        "payload": {
            "allOf": [
                {"$ref": "#/components/schemas/Envelope"},
                {
                    "type": "object",
                    "properties": {
                        "kind": {"const": str(shape.kind)},
                        "type": {"const": name},
                        "data": {"$ref": f"#/components/schemas/{name}"},
                    },
                },
            ]
        },
    }


def _dead_letter() -> Document:
    named = {"x-error": "class of the error", "x-origin": "`{topic}/{partition}/{offset}` that it came from"}
    return {
        "name": "DeadLetter",
        "title": "DeadLetter",
        "summary": "A message as it was received, with why and from where in the headers.",
        "headers": _headers(named, _HEADERS | _OPTIONAL_HEADERS),
        "payload": {},
    }


def _headers(required: dict[str, str], optional: dict[str, str]) -> Document:
    return {
        "type": "object",
        "required": list(required),
        "properties": {
            name: {"type": "string", "description": text} for name, text in {**required, **optional}.items()
        },
    }


def sentence_of(shape: type[BaseModel]) -> str:
    """The first line of a shape's own docstring."""
    return (shape.__dict__.get("__doc__") or "").strip().partition("\n")[0]
