"""The message around a fact: CloudEvents 1.0 in Kafka's binary mode (attributes in headers, JSON in the value)."""

import hashlib
import json
from datetime import UTC
from typing import Any

from pydantic import AwareDatetime, Field

from luthier_common.contract.spec import Shape
from luthier_common.contract.topics import Kind


class Actor(Shape):
    """Who caused a fact: a room, or a key with the end user and the request it acted in."""

    room: str | None = None
    key_id: str | None = None
    end_user: str | None = None
    request_id: str | None = None


class Envelope(Shape):
    """One fact of one thing, as it stands in the outbox, on the topic and in the event list."""

    kind: Kind
    thing: str = Field(description="id of the thing; also the message key")
    seq: int = Field(description="rises by one per thing; a gap means: wait, the rest is coming")
    type: str = Field(description="name of the fact")
    at: AwareDatetime = Field(description="when it was committed, database time, UTC")
    generation: int = Field(description="rises when a user restarts a final job")
    attempt: int = Field(description="the run's number; 0 before the first placement")
    org: str
    project: str
    actor: Actor
    terminal: bool = Field(False, description="the fact ended this generation")
    trace: str | None = Field(None, description="W3C traceparent of what caused the fact")
    data: dict[str, Any]

    @property
    def id(self) -> str:
        return f"{self.kind}/{self.thing}/{self.seq}"

    def value(self) -> bytes:
        """The message value: JSON with sorted keys, equal bytes for equal facts."""
        body = self.model_dump(mode="json", exclude={"trace"})
        return json.dumps(body, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()

    def headers(self, source: str) -> list[tuple[str, bytes]]:
        """CloudEvents attributes and the trace context. `source` is `luthier/{cluster}/{incarnation}`."""
        pairs = {
            "ce_specversion": "1.0",
            "ce_id": self.id,
            "ce_source": source,
            "ce_type": self.type,
            "ce_subject": self.thing,
            "ce_time": self.at.astimezone(UTC).isoformat().replace("+00:00", "Z"),
            "content-type": "application/json",
        }
        if self.trace:
            pairs["traceparent"] = self.trace
        return [(name, text.encode()) for name, text in pairs.items()]

    def digest(self) -> str:
        """sha256 of the value: what the event list and the topic are compared by."""
        return hashlib.sha256(self.value()).hexdigest()


def read_envelope(value: bytes, headers: list[tuple[str, bytes]] | tuple[tuple[str, bytes], ...] = ()) -> Envelope:
    """Read a message of this or a newer contract version: unknown fields and unknown types are kept or ignored.

    Raises ValueError (pydantic's ValidationError is one) on anything that is no envelope.
    """
    trace = dict(headers).get("traceparent")
    envelope = Envelope.model_validate_json(value)
    return envelope.model_copy(update={"trace": trace.decode()}) if trace else envelope
