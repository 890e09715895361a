"""The engine's thread: it alone touches the model. Between two steps it lets in those whose turn it is, reads a piece
of one prompt, and decodes one token of every running row."""

import logging
import threading
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from luthier_common.kit.errors import LuthierError
from luthier_inference.domain import Delta, EngineBusyError, EngineFailedError
from luthier_inference.engine.batch import Batch, Prefill, Row
from luthier_inference.engine.line import Ticket, WaitingLine
from luthier_inference.engine.lora import Adapter
from luthier_inference.engine.memory import free_bytes, is_out_of_memory
from luthier_inference.engine.model import BaseModel
from luthier_inference.engine.shelf import Shelf
from luthier_text import TextBundle

logger = logging.getLogger(__name__)
MOST_FAILED_STEPS = 3
"""An engine that so many times running could compute nothing for anybody is broken."""
STOP_LIMIT_S = 2.0
_CACHE_SHARE = 0.5
"""Of the memory that is free when the base is loaded. Forward passes and further bases need some too."""


@dataclass(frozen=True)
class EngineLimits:
    """How much the engine takes on at once. `cache_bytes` None: half of the memory that is free."""

    max_rows: int = 16
    max_waiting: int = 64
    max_adapters: int = 16
    adapter_idle_s: float = 600.0
    prefill_tokens: int = 128
    cache_bytes: int | None = None


@dataclass
class _Reading:
    ticket: Ticket
    prefill: Prefill


class Worker:
    """Owns model, adapters, batch and line of one base. What other threads touch too is guarded by `_changed`."""

    def __init__(self, model: BaseModel, text: TextBundle, limits: EngineLimits) -> None:
        self._model = model
        self._text = text
        self._limits = limits
        self._max_rows = limits.max_rows if model.can_batch else 1
        self._bytes_of_id = model.cache_bytes_of_id()
        self._max_bytes = limits.cache_bytes or int(free_bytes(model.device) * _CACHE_SHARE)
        self._changed = threading.Condition()
        self._open: dict[Ticket, None] = {}
        self._line = WaitingLine()
        self._shelf = Shelf(limits.max_adapters, limits.adapter_idle_s)
        self._reading: deque[_Reading] = deque()
        self._running: list[Ticket] = []
        self._batch = Batch()
        self._num_failed_steps = 0
        self._is_closed = False
        self.num_turns = 0
        """Rises as long as the engine works: whoever watches it sees when it hangs."""
        self.broken: str | None = None
        """Why it can never compute again in this process."""
        self._thread = threading.Thread(target=self._work, name="engine", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """End the thread, unless it hangs; requests that are under way fail with `EngineFailedError`."""
        with self._changed:
            self._is_closed = True
            self._changed.notify()
        self._thread.join(STOP_LIMIT_S)

    def submit(self, ticket: Ticket) -> None:
        """Raises `EngineBusyError` when too many requests are open; the project with the most feels it first."""
        with self._changed:
            self._check_open()
            if len(self._open) >= self._limits.max_rows + self._limits.max_waiting:
                busy = EngineBusyError("The engine has too many requests; try again later.")
                given = self._line.give_way(ticket.asked.project, _by_project(self._open))
                if given is None:
                    raise busy
                self._close(given, busy)
            self._open[ticket] = None
            self._line.add(ticket)
            self._changed.notify()

    def install(self, adapter: Adapter) -> None:
        """Offer an adapter under its name. Raises `EngineBusyError` when all that are loaded are in use."""
        with self._changed:
            self._check_open()
            self._shelf.put(adapter, self._in_use())

    def drop_adapter(self, name: str) -> None:
        """Forget it; answers under way go on."""
        with self._changed:
            self._shelf.drop(name)

    @property
    def adapters(self) -> tuple[str, ...]:
        """Names of the loaded adapters."""
        with self._changed:
            return self._shelf.names

    @property
    def num_pending(self) -> int:
        """Requests that wait or run."""
        return len(self._open)

    def _check_open(self) -> None:
        if self._is_closed:
            raise EngineFailedError("The engine is stopping.")

    @torch.inference_mode()
    def _work(self) -> None:
        while self._wait_for_work():
            try:
                self._turn()
            except Exception as error:
                logger.exception("a step of the engine failed")
                self._num_failed_steps += 1
                self._fail(self._running, _could_not_compute(error))
                self._running, self._batch = [], Batch()
                if isinstance(error, torch.AcceleratorError) or self._num_failed_steps >= MOST_FAILED_STEPS:
                    self.broken = f"the engine cannot compute any more: {type(error).__name__}"
                    break
        with self._changed:
            self._is_closed = True
            self._fail(list(self._open), EngineFailedError("The engine is stopping."))

    def _wait_for_work(self) -> bool:
        """False when the engine is to stop."""
        with self._changed:
            if not self._open and not self._is_closed:
                self._changed.wait(max(1.0, self._limits.adapter_idle_s / 4))
            self._shelf.drop_idle(self._in_use())
            return not self._is_closed

    def _turn(self) -> None:
        self.num_turns += 1
        self._drop_cancelled()
        self._admit()
        self._read_prompt()
        self._set_back()
        self._decode()

    def _admit(self) -> None:
        while (ticket := self._take_next()) is not None:
            with self._for_one(ticket):
                if ticket.row is None:
                    adapter = self._use_adapter(ticket.asked.adapter)
                    ticket.row = Row(ticket.asked, adapter, self._text, self._model.device)
                self._reading.append(_Reading(ticket, Prefill(ticket.row, self._model.new_cache())))

    def _take_next(self) -> Ticket | None:
        """Whoever is next, if there is a row left and memory: who has to wait for it is overtaken by nobody."""
        at_work = [*(reading.ticket for reading in self._reading), *self._running]
        if len(at_work) >= self._max_rows:
            return None
        with self._changed:
            ticket = self._line.take(_by_project(at_work))
            # With the room for some more tokens each: a row that is let in is not to be set back at once.
            if ticket is None or self._fit([*at_work, ticket], self._limits.prefill_tokens):
                return ticket
            self._line.put_back(ticket)
            return None

    def _fit(self, tickets: Sequence[Ticket], num_more: int = 0) -> bool:
        """Whether the cache of these rows, each as long as the longest, may be had. One alone is always tried."""
        longest = max(ticket.num_ids for ticket in tickets) + num_more
        return len(tickets) == 1 or len(tickets) * longest * self._bytes_of_id <= self._max_bytes

    def _read_prompt(self) -> None:
        """One piece of one prompt, in turns: short prompts do not wait for long ones, and long ones get on."""
        if not self._reading:
            return
        reading = self._reading.popleft()
        with self._for_one(reading.ticket):
            logits = reading.prefill.advance(self._model, self._limits.prefill_tokens)
            if logits is None:
                self._reading.append(reading)
                return
            self._tell_next(reading.ticket, logits)
            if not reading.ticket.is_closed:
                self._batch.join(reading.prefill)
                self._running.append(reading.ticket)

    def _set_back(self) -> None:
        """Answers grow: where memory gets short, who joined last waits again, and is read anew when it is its turn."""
        while self._running and not self._fit(self._running):
            ticket = self._running[-1]
            self._leave([ticket])
            self._running.pop()
            with self._changed:
                self._line.put_back(ticket)

    def _decode(self) -> None:
        if not self._running:
            return
        try:
            logits = self._batch.step(self._model)
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            logger.warning("memory was short: the longest answer under way fails", exc_info=True)
            self._batch.undo_step()
            self._close(max(self._running, key=lambda ticket: ticket.num_ids), _could_not_compute(error))
        else:
            self._num_failed_steps = 0
            for ticket, scores in zip(self._running, logits, strict=True):
                with self._for_one(ticket):
                    self._tell_next(ticket, scores)
        self._remove_closed()

    def _tell_next(self, ticket: Ticket, logits: Tensor) -> None:
        """Choose and tell the row's next token; closes a ticket whose answer has ended."""
        assert ticket.row is not None
        delta = ticket.row.take(logits)
        if delta is not None and delta.finish_reason is None:
            ticket.tell(delta)
        elif delta is not None:
            self._close(ticket, delta)

    @contextmanager
    def _for_one(self, ticket: Ticket) -> Iterator[None]:
        """What fails in this block ends this request only, unless the accelerator itself is lost."""
        try:
            yield
        except torch.AcceleratorError:
            raise
        except LuthierError as error:
            self._close(ticket, error)
        except Exception as error:
            logger.exception("a request could not be computed")
            self._close(ticket, _could_not_compute(error))

    def _remove_closed(self) -> None:
        closed = [ticket for ticket in self._running if ticket.is_closed]
        if closed:
            self._running = [ticket for ticket in self._running if not ticket.is_closed]
            self._leave(closed)

    def _leave(self, tickets: Sequence[Ticket]) -> None:
        self._batch.leave([ticket.row for ticket in tickets if ticket.row is not None])

    def _drop_cancelled(self) -> None:
        with self._changed:
            for ticket in self._line.take_cancelled():
                self._close(ticket)
        for ticket in [*(reading.ticket for reading in self._reading), *self._running]:
            if ticket.is_cancelled:
                self._close(ticket)
        self._reading = deque(reading for reading in self._reading if not reading.ticket.is_closed)
        self._remove_closed()

    def _close(self, ticket: Ticket, last: Delta | LuthierError | None = None) -> None:
        if ticket.is_closed:
            return
        ticket.is_closed = True
        with self._changed:
            del self._open[ticket]
        if last is not None:
            ticket.tell(last)

    def _fail(self, tickets: Sequence[Ticket], error: LuthierError) -> None:
        for ticket in tickets:
            self._close(ticket, error)

    def _use_adapter(self, name: str | None) -> Adapter | None:
        if name is None:
            return None
        with self._changed:
            return self._shelf.use(name)

    def _in_use(self) -> set[str | None]:
        return {ticket.asked.adapter for ticket in self._open}


def _by_project(tickets: Sequence[Ticket] | dict[Ticket, None]) -> Counter[str | None]:
    return Counter(ticket.asked.project for ticket in tickets)


def _could_not_compute(error: Exception) -> EngineFailedError:
    return EngineFailedError(f"The engine could not compute: {type(error).__name__}.")
