"""The engine's thread: it alone touches the model. Between two steps it lets in those whose turn it is, reads a piece
of one prompt, and decodes one token of every running row."""

import logging
import threading
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from luthier_common.kit.errors import LuthierError
from luthier_inference.domain import EngineFailedError, token_budget
from luthier_inference.engine.batch import Batch, Prefill, Row
from luthier_inference.engine.failures import Failures
from luthier_inference.engine.line import Ticket
from luthier_inference.engine.lora import Adapter
from luthier_inference.engine.memory import CacheBudget, free_bytes, is_out_of_memory
from luthier_inference.engine.model import BaseModel
from luthier_inference.engine.requests import Requests
from luthier_inference.engine.shelf import Shelf
from luthier_text import TextBundle

logger = logging.getLogger(__name__)
STOP_LIMIT_S = 2.0


@dataclass(frozen=True)
class EngineLimits:
    """How much the engine takes on at once. `cache_bytes` None: `cache_share` of the memory that is free.

    Forward passes need some too, and so do the bases that are loaded later.
    """

    max_rows: int = 16
    max_waiting: int = 64
    max_adapters: int = 16
    adapter_idle_s: float = 600.0
    prefill_tokens: int = 128
    cache_bytes: int | None = None
    cache_share: float = 0.5


@dataclass
class _Reading:
    ticket: Ticket
    prefill: Prefill


class Worker:
    """Owns model, adapters and batch of one base. What other threads touch too is guarded by `Requests.changed`."""

    def __init__(self, model: BaseModel, text: TextBundle, limits: EngineLimits) -> None:
        self._model = model
        self._text = text
        self._limits = limits
        self._max_rows = limits.max_rows if model.can_batch else 1
        bytes_of_id = model.cache_bytes_of_id()
        max_bytes = limits.cache_bytes or int(free_bytes(model.device) * limits.cache_share)
        self._budget = CacheBudget(max_bytes, bytes_of_id)
        self._requests = Requests(limits.max_rows + limits.max_waiting)
        self._shelf = Shelf(limits.max_adapters, limits.adapter_idle_s)
        self._reading: deque[_Reading] = deque()
        self._running: list[Ticket] = []
        self._batch = Batch()
        self._failures = Failures()
        self._num_turns = 0
        self._thread = threading.Thread(target=self._work, name="engine", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """End the thread, unless it hangs; requests that are under way fail with `EngineFailedError`."""
        self._requests.stop()
        self._thread.join(STOP_LIMIT_S)

    def submit(self, ticket: Ticket) -> None:
        """Raises `EngineBusyError`, and `ContextLengthError`: nobody waits behind what can never be read."""
        token_budget(len(ticket.asked.prompt_ids), ticket.asked.sampling.max_tokens, self._text.context_length)
        self._requests.add(ticket)

    def make_room(self) -> None:
        """For one more adapter. Raises `EngineBusyError` when all that are loaded are in use."""
        with self._requests.changed:
            self._requests.check_open()
            self._shelf.make_room(self._requests.adapters)

    def install(self, adapter: Adapter) -> None:
        """Offer an adapter under its name, after `make_room`."""
        with self._requests.changed:
            self._requests.check_open()
            self._shelf.put(adapter)

    def drop_adapter(self, name: str) -> None:
        """Forget it; answers under way go on."""
        with self._requests.changed:
            self._shelf.drop(name)

    @property
    def adapters(self) -> tuple[str, ...]:
        """Names of the loaded adapters."""
        with self._requests.changed:
            return self._shelf.names

    @property
    def num_pending(self) -> int:
        """Requests that wait or run."""
        return len(self._requests)

    @property
    def progress(self) -> int:
        """Rises as long as the engine works: whoever watches it sees when it hangs."""
        # A turn of a large model takes minutes on a slow machine; one of its layers does not.
        return self._num_turns + self._model.plan.num_layers_done

    @property
    def broken(self) -> str | None:
        """Why it can never compute again in this process."""
        return self._failures.broken

    @property
    def cache_bytes(self) -> int:
        """What keys and values of running answers may take."""
        return self._budget.max_bytes

    @torch.inference_mode()
    def _work(self) -> None:
        while self.broken is None and self._wait_for_work():
            try:
                self._turn()
            except Exception as error:
                self._drop_batch(error)
        self._requests.fail_all()

    def _wait_for_work(self) -> bool:
        """False when the engine is to stop."""
        with self._requests.changed:
            if not self._requests and not self._requests.is_closed:
                self._requests.changed.wait(max(1.0, self._limits.adapter_idle_s / 4))
            self._shelf.drop_idle(self._requests.adapters)
            return not self._requests.is_closed

    def _turn(self) -> None:
        self._num_turns += 1
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
        at_work = self._at_work()
        if len(at_work) >= self._max_rows:
            return None
        ticket = self._requests.take(at_work)
        # With the room for some more tokens each: a row that is let in is not to be set back at once.
        if ticket is None or self._budget.has_room([*at_work, ticket], self._limits.prefill_tokens):
            return ticket
        self._requests.put_back([ticket])
        return None

    def _read_prompt(self) -> None:
        """One piece of one prompt, in turns: short prompts do not wait for long ones, and long ones get on."""
        if not self._reading:
            return
        reading = self._reading.popleft()
        try:
            self._read_piece(reading)
        except Exception as error:
            if is_out_of_memory(error):
                self._reading.append(reading)
                self._run_short(error)
                return
            with self._for_one(reading.ticket):
                raise

    def _read_piece(self, reading: _Reading) -> None:
        try:
            logits = reading.prefill.advance(self._model, self._limits.prefill_tokens)
        except Exception as error:
            if not is_out_of_memory(error):
                self._failures.add_prompt(reading.ticket.asked.prompt_ids, error)
            raise
        self._failures.end_prompts()
        if logits is None:
            self._reading.append(reading)
            return
        self._tell_next(reading.ticket, logits)
        if not reading.ticket.is_closed:
            self._batch.join(reading.prefill)
            self._running.append(reading.ticket)

    def _set_back(self) -> None:
        """Answers grow: where memory gets short, who joined last waits again, and is read anew when it is its turn."""
        while self._running and not self._budget.has_room(self._running):
            self._leave(self._running[-1:])
            self._requests.put_back([self._running.pop()])

    def _decode(self) -> None:
        if not self._running:
            return
        try:
            logits = self._batch.step(self._model)
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            self._batch.undo_step()
            self._run_short(error)
        else:
            self._failures.end()
            for ticket, scores in zip(self._running, logits, strict=True):
                with self._for_one(ticket):
                    self._tell_next(ticket, scores)
        self._remove_closed()

    def _run_short(self, error: Exception) -> None:
        """Memory ran out: fewer go on, who came last waits again. Only a row that was alone fails."""
        at_work = self._at_work()
        if len(at_work) == 1:
            self._requests.fail(at_work, _could_not_compute(error))
            return
        self._budget.shrink(at_work)
        self._requests.put_back([reading.ticket for reading in self._reading])
        self._reading.clear()
        self._set_back()

    def _drop_batch(self, error: Exception) -> None:
        """What ran fails; but where only the memory to cut out rows was wanting, the others are read again."""
        logger.error("a step of the engine failed", exc_info=error)
        running, self._running, self._batch = self._running, [], Batch()
        if is_out_of_memory(error):
            self._requests.put_back(running)
            return
        self._failures.add_step(error)
        self._requests.fail(running, _could_not_compute(error))

    def _tell_next(self, ticket: Ticket, logits: Tensor) -> None:
        """Choose and tell the row's next token; closes a ticket whose answer has ended."""
        assert ticket.row is not None
        delta = ticket.row.take(logits)
        if delta is not None and delta.finish_reason is None:
            ticket.tell(delta)
        elif delta is not None:
            self._requests.close(ticket, delta)

    @contextmanager
    def _for_one(self, ticket: Ticket) -> Iterator[None]:
        """What fails in this block ends this request only, unless the accelerator itself is lost."""
        try:
            yield
        except torch.AcceleratorError:
            raise
        except LuthierError as error:
            self._requests.close(ticket, error)
        except Exception as error:
            logger.exception("a request could not be computed")
            self._requests.close(ticket, _could_not_compute(error))

    def _remove_closed(self) -> None:
        closed = [ticket for ticket in self._running if ticket.is_closed]
        if closed:
            self._running = [ticket for ticket in self._running if not ticket.is_closed]
            self._leave(closed)

    def _leave(self, tickets: Sequence[Ticket]) -> None:
        self._batch.leave([ticket.row for ticket in tickets if ticket.row is not None])

    def _drop_cancelled(self) -> None:
        self._requests.close_cancelled()
        for ticket in self._at_work():
            if ticket.is_cancelled:
                self._requests.close(ticket)
        self._reading = deque(reading for reading in self._reading if not reading.ticket.is_closed)
        self._remove_closed()

    def _use_adapter(self, name: str | None) -> Adapter | None:
        if name is None:
            return None
        with self._requests.changed:
            return self._shelf.use(name)

    def _at_work(self) -> list[Ticket]:
        return [*(reading.ticket for reading in self._reading), *self._running]


def _could_not_compute(error: Exception) -> EngineFailedError:
    return EngineFailedError(f"The engine could not compute: {type(error).__name__}.")
