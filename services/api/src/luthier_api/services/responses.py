"""Responses: a conversation is rebuilt from what is stored, an engine goes on with it, the answer is kept."""

import logging
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import aclosing, suppress
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Never, TypeVar

from luthier_api.domain import Page, View
from luthier_api.errors import ApiError, ErrorCode, bad_cursor, not_found
from luthier_api.idempotency import not_kept
from luthier_api.services.engines import BROKE_OFF, Engines
from luthier_api.services.models import ModelService, Served
from luthier_api.store.responses import Conversation, ResponseStore
from luthier_api.wire.response_events import ResponseEvents
from luthier_api.wire.responses import InputItem, broken, ended
from luthier_common.contract.ids import new_id
from luthier_common.kit.clock import Clock
from luthier_common.kit.errors import TransientError
from luthier_common.kit.failpoints import failpoint
from luthier_common.kit.mongo import DRIVER_ERRORS, Doc

log = logging.getLogger(__name__)
PREFIX = "resp_"
MESSAGE_PREFIX = "msg_"
AUTO = "auto"
MAX_LOOKS = 4
AWAY: tuple[type[Exception], ...] = (TransientError, *DRIVER_ERRORS)
_TURNS = ("user", "assistant")
_PARAMS = {"messages": "input", "max_completion_tokens": "max_output_tokens"}
_T = TypeVar("_T")


@dataclass(frozen=True)
class WantedResponse:
    """What a request asks for. `items` are messages without ids, `asked` is shown on the response as it came."""

    model: str
    items: list[Doc]
    sampling: dict[str, Any]
    asked: Doc
    metadata: dict[str, str]
    previous: str | None


@dataclass(frozen=True)
class Again:
    """Of a request with an Idempotency-Key: what its response's id is made of, and whether it was done before."""

    core: str | None = None
    is_done: bool = False


@dataclass(frozen=True)
class _Work:
    """A response that an engine can begin with."""

    served: Served
    response: Doc
    message_id: str
    messages: list[Doc]
    body: dict[str, Any]

    def body_without(self, num_dropped: int) -> dict[str, Any]:
        """For an engine, without so many of the oldest turns."""
        return {**self.body, "messages": without_oldest(self.messages, num_dropped)}


class ResponseService:
    """Responses as one principal sees them, for one request."""

    def __init__(
        self, store: ResponseStore, models: ModelService, engines: Engines, clock: Clock, *, keep_s: float, again: Again
    ) -> None:
        self._store = store
        self._models = models
        self._engines = engines
        self._clock = clock
        self._keep_s = keep_s
        self._again = again

    async def create(self, wanted: WantedResponse) -> Doc:
        response_id = None if self._again.core is None else f"{PREFIX}{self._again.core}"
        if response_id is not None and (stored := await self._store.find(response_id)) is not None:
            return stored
        if self._again.is_done:
            raise not_kept()
        work = await self._prepare(wanted, response_id)
        answer = await self._ask(work, self._engines.complete)
        choice = answer["choices"][0]
        text, reason = choice["message"]["content"] or "", choice["finish_reason"]
        done = ended(work.response, work.message_id, text, reason, answer["usage"], self._clock.now())
        await self._keep(done)
        return done

    async def stream(self, wanted: WantedResponse, view: View) -> AsyncIterator[bytes]:
        """The events of the response; what is refused is refused before the first."""
        work = await self._prepare(wanted)
        return self._events(work, await self._ask(work, self._engines.chunks), view)

    async def get(self, response_id: str) -> Doc:
        response = await self._store.find(response_id)
        if response is None:
            raise not_found("response", response_id)
        return response

    async def delete(self, response_id: str) -> None:
        if not await self._store.delete(response_id):
            raise not_found("response", response_id)

    async def list_input(self, response_id: str, page: Page) -> list[InputItem]:
        """What the request itself said, newest first; one more than the page holds, if there are more."""
        items: list[InputItem] = (await self.get(response_id))["input"]
        ordered = items if page.ascending else items[::-1]
        ids = [item["id"] for item in ordered]
        if page.after is not None and page.after not in ids:
            raise bad_cursor(f"an item of this list ({MESSAGE_PREFIX}...)")
        start = 0 if page.after is None else ids.index(page.after) + 1
        return ordered[start : start + page.limit + 1]

    async def cancel(self, response_id: str) -> Never:
        """Only background responses could be cancelled, and there are none."""
        await self.get(response_id)
        message = "Only responses made with background can be cancelled; hang up to end one that is being made."
        raise ApiError(ErrorCode.INVALID_STATE, message)

    async def _prepare(self, wanted: WantedResponse, response_id: str | None = None) -> _Work:
        served = await self._models.resolve(wanted.model)
        before = await self._conversation(wanted.previous, may_cut=wanted.asked["truncation"] == AUTO)
        now = self._clock.now()
        response: Doc = {
            "_id": response_id or new_id(PREFIX, now),
            "created_at": now,
            "expires_at": now + timedelta(seconds=self._keep_s),
            "completed_at": None,
            "status": "in_progress",
            "error": None,
            "model": wanted.model,
            "asked": wanted.asked,
            "metadata": [{"k": key, "v": value} for key, value in wanted.metadata.items()],
            "previous": wanted.previous,
            "input": [{"id": new_id(MESSAGE_PREFIX, now), **item} for item in wanted.items],
            "output": [],
            "usage": None,
            "num_before": before.num_messages,
            "num_dropped": before.num_left_out,
        }
        instructions = wanted.asked["instructions"]
        messages = [{"role": "system", "content": instructions}] if instructions else []
        for turn in [*before.turns, response]:
            messages += [_message(item) for item in [*turn["input"], *turn["output"]]]
        body = {**wanted.sampling, "model": wanted.model, "base": served.base, "adapter": served.adapter}
        message_id = new_id(MESSAGE_PREFIX, now)
        return _Work(served, response, message_id, messages, {**body, "project": self._models.project})

    async def _conversation(self, last_id: str | None, *, may_cut: bool) -> Conversation:
        if last_id is None:
            return Conversation([])
        found = await self._store.find_conversation(last_id, is_cut=may_cut)
        if found is None:
            message = f"Previous response with id '{last_id[:200]}' not found, or what it goes on from."
            raise ApiError(ErrorCode.PREVIOUS_RESPONSE_NOT_FOUND, message, param="previous_response_id")
        return found

    async def _ask(self, work: _Work, ask: Callable[[Served, dict[str, Any]], Awaitable[_T]]) -> _T:
        """The engine's answer; with truncation `auto` the oldest turns are left out, hardly more than must be."""
        try:
            return await ask(work.served, work.body_without(0))
        except ApiError as error:
            may_cut = work.response["asked"]["truncation"] == AUTO and len(_turns_of(work.messages)) > 1
            if error.error is not ErrorCode.CONTEXT_LENGTH_EXCEEDED or not may_cut:
                raise error.naming(_PARAMS) from error
        try:
            body = work.body_without(await self._fewest_to_drop(work))
            work.response["num_dropped"] += len(work.messages) - len(body["messages"])
            return await ask(work.served, body)
        except ApiError as error:
            raise error.naming(_PARAMS) from error

    async def _fewest_to_drop(self, work: _Work) -> int:
        """How many of the oldest turns, never the last one; of many, up to a sixteenth of them too many.

        Each look costs an engine as much as the beginning of an answer.
        """
        too_few, enough = 0, len(_turns_of(work.messages)) - 1
        for _ in range(MAX_LOOKS):
            if enough - too_few <= 1:
                break
            between = (too_few + enough) // 2
            if await self._fits(work, between):
                enough = between
            else:
                too_few = between
        return enough

    async def _fits(self, work: _Work, num_dropped: int) -> bool:
        """Whether an engine takes the rest: it is asked for one token of an answer, which is thrown away."""
        try:
            await self._engines.complete(work.served, {**work.body_without(num_dropped), "max_completion_tokens": 1})
        except ApiError as error:
            if error.error is not ErrorCode.CONTEXT_LENGTH_EXCEEDED:
                raise
            return False
        return True

    async def _events(
        self, work: _Work, chunks: AsyncGenerator[dict[str, Any], None], view: View
    ) -> AsyncIterator[bytes]:
        events = ResponseEvents(work.message_id, view)
        said = _Said([])
        async with aclosing(chunks):
            for event in events.begin(work.response):
                yield event
            try:
                async for chunk in chunks:
                    if delta := said.hear(chunk):
                        yield events.delta(delta)
                done = said.end(work, self._clock)
                await self._keep(done)
            except AWAY as error:
                log.warning("a response broke off: %s", type(error).__name__)
                done = broken(work.response, work.message_id, said.text, BROKE_OFF)
                with suppress(*AWAY):
                    await self._keep(done)
                yield events.failed(done)
                return
            for event in events.end(done):
                yield event

    async def _keep(self, response: Doc) -> None:
        if response["asked"]["store"]:
            await failpoint("responses.before_keep")
            await self._store.insert(response)
            await failpoint("responses.after_keep")


@dataclass
class _Said:
    """What an engine has said so far."""

    pieces: list[str]
    reason: str | None = None
    usage: dict[str, Any] | None = None

    @property
    def text(self) -> str:
        return "".join(self.pieces)

    def hear(self, chunk: dict[str, Any]) -> str:
        """The new text of a chunk."""
        self.usage = chunk.get("usage") or self.usage
        new = ""
        for choice in chunk.get("choices") or []:
            new += choice["delta"].get("content") or ""
            self.reason = choice.get("finish_reason") or self.reason
        self.pieces.append(new)
        return new

    def end(self, work: _Work, clock: Clock) -> Doc:
        if self.reason is None or self.usage is None:
            raise TransientError("the engine gave no whole answer")
        return ended(work.response, work.message_id, self.text, self.reason, self.usage, clock.now())


def _turns_of(messages: list[Doc]) -> list[int]:
    return [index for index, message in enumerate(messages) if message["role"] in _TURNS]


def without_oldest(messages: list[Doc], count: int) -> list[Doc]:
    """The messages without the oldest so many turns, nor an answer whose question went; what the system says stays."""
    turns = _turns_of(messages)
    gone = set(turns[:count])
    for index in turns[count:-1] if count else []:
        if messages[index]["role"] == "user":
            break
        gone.add(index)
    return [message for index, message in enumerate(messages) if index not in gone]


def _message(item: Doc) -> Doc:
    return {"role": item["role"], "content": "".join(part["text"] for part in item["content"])}
