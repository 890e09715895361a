"""The events of a streamed response, numbered, in the order that clients expect. Pure."""

import json
from collections.abc import Iterator, Mapping
from typing import Any

from luthier_api.domain import View
from luthier_api.wire.responses import output_part, response_object
from luthier_common.kit.mongo import Doc


class ResponseEvents:
    """Makes the events of one response with one output message."""

    def __init__(self, message_id: str, view: View) -> None:
        self._message_id = message_id
        self._view = view
        self._next = 0

    def begin(self, response: Doc) -> Iterator[bytes]:
        """From the response's creation to an empty message."""
        item = {"id": self._message_id, "type": "message", "role": "assistant", "status": "in_progress", "content": []}
        yield self._lifecycle("created", response)
        yield self._lifecycle("in_progress", response)
        yield self._event("output_item.added", {"output_index": 0, "item": item})
        yield self._event("content_part.added", {**self._place(), "part": output_part("")})

    def delta(self, text: str) -> bytes:
        return self._event("output_text.delta", {**self._place(), "delta": text, "logprobs": []})

    def end(self, response: Doc) -> Iterator[bytes]:
        """From the whole text to the ended response."""
        message = response["output"][0]
        part = message["content"][0]
        yield self._event("output_text.done", {**self._place(), "text": part["text"], "logprobs": []})
        yield self._event("content_part.done", {**self._place(), "part": part})
        yield self._event("output_item.done", {"output_index": 0, "item": message})
        yield self._lifecycle(response["status"], response)

    def failed(self, response: Doc) -> bytes:
        return self._lifecycle("failed", response)

    def _place(self) -> dict[str, Any]:
        return {"item_id": self._message_id, "output_index": 0, "content_index": 0}

    def _lifecycle(self, name: str, response: Doc) -> bytes:
        return self._event(name, {"response": response_object(response, self._view)})

    def _event(self, name: str, fields: Mapping[str, Any]) -> bytes:
        data = {"type": f"response.{name}", "sequence_number": self._next, **fields}
        self._next += 1
        return f"event: response.{name}\ndata: {json.dumps(data, ensure_ascii=False)}\n\n".encode()
