"""The engine's thread: it alone touches the model. Between two steps it takes in commands and requests, reads a piece
of one waiting prompt, and decodes one token of every running row."""

import logging
import queue
import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from luthier_common.kit.errors import LuthierError
from luthier_inference.domain import (
    Delta,
    EngineBusyError,
    EngineFailedError,
    Generation,
    UnknownAdapterError,
)
from luthier_inference.engine.batch import Batch, Prefill, Row
from luthier_inference.engine.lora import Adapter, load_adapter
from luthier_inference.engine.model import BaseModel
from luthier_text import TextBundle

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class EngineLimits:
    """How much the engine takes on at once."""

    max_rows: int = 16
    max_waiting: int = 64
    max_adapters: int = 16
    adapter_idle_s: float = 600.0
    prefill_tokens: int = 128


class Ticket:
    """A request on its way: `tell` is called on the engine's thread; `cancel` may be called from anywhere."""

    def __init__(self, asked: Generation, tell: Callable[[Delta | LuthierError], None]) -> None:
        self.asked = asked
        self.tell = tell
        self.is_cancelled, self.is_closed = False, False

    def cancel(self) -> None:
        self.is_cancelled = True


@dataclass(frozen=True)
class _Load:
    name: str
    directory: Path
    done: "Future[None]"


@dataclass(frozen=True)
class _Running:
    ticket: Ticket
    row: Row


@dataclass
class _Reading:
    running: _Running
    prefill: Prefill


class Worker:
    """Owns model, adapters, batch and queue of one base."""

    def __init__(self, model: BaseModel, text: TextBundle, limits: EngineLimits) -> None:
        self._model = model
        self._text = text
        self._limits = limits
        self._inbox: queue.SimpleQueue[Ticket | _Load | None] = queue.SimpleQueue()
        self._waiting: deque[Ticket] = deque()
        self._reading: deque[_Reading] = deque()
        self._running: list[_Running] = []
        self._batch = Batch()
        self._adapters: dict[str, tuple[Adapter, float]] = {}
        self._num_pending = 0
        self._lock = threading.Lock()
        self._is_closed = False
        self._is_stopping = False
        self._thread = threading.Thread(target=self._work, name="engine", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """End the thread; requests that are under way fail with `EngineFailedError`."""
        with self._lock:
            self._is_closed = True
            self._inbox.put(None)
        self._thread.join()

    def submit(self, ticket: Ticket) -> None:
        """Raises `EngineBusyError` when too many requests are under way."""
        with self._lock:
            self._check_open()
            if self._num_pending >= self._limits.max_rows + self._limits.max_waiting:
                raise EngineBusyError("The engine has too many requests; try again later.")
            self._num_pending += 1
            self._inbox.put(ticket)

    def load(self, name: str, directory: Path) -> "Future[None]":
        """Read an adapter and offer it under `name`; a name that is loaded already is kept."""
        done: Future[None] = Future()
        with self._lock:
            self._check_open()
            self._inbox.put(_Load(name, directory, done))
        return done

    @property
    def adapters(self) -> tuple[str, ...]:
        """Names of the loaded adapters."""
        return tuple(self._adapters)

    @property
    def num_pending(self) -> int:
        """Requests that wait or run."""
        return self._num_pending

    def _check_open(self) -> None:
        if self._is_closed:
            raise EngineFailedError("The engine is stopping.")

    @torch.inference_mode()
    def _work(self) -> None:
        while not self._is_stopping:
            try:
                self._take_in()
                self._turn()
            except Exception as error:
                logger.exception("a step of the engine failed")
                self._fail_all(EngineFailedError(f"The engine could not compute: {type(error).__name__}."))
        self._fail_all(EngineFailedError("The engine is stopping."))

    def _take_in(self) -> None:
        """Everything in the inbox; waits when there is nothing else to do."""
        is_idle = not (self._waiting or self._reading or self._running)
        timeout_s = max(1.0, self._limits.adapter_idle_s / 4) if is_idle else None
        while True:
            try:
                item = self._inbox.get(timeout=timeout_s) if timeout_s else self._inbox.get_nowait()
            except queue.Empty:
                return
            timeout_s = None
            if item is None:
                self._is_stopping = True
            elif isinstance(item, _Load):
                self._load(item)
            else:
                self._waiting.append(item)

    def _turn(self) -> None:
        self._drop_cancelled()
        self._evict_idle()
        self._admit()
        self._read_prompt()
        self._decode()

    def _admit(self) -> None:
        max_rows = self._limits.max_rows if self._model.can_batch else 1
        while self._waiting and len(self._reading) + len(self._running) < max_rows:
            # A ticket leaves its list last: whatever is raised, `_fail_all` finds it.
            ticket = self._waiting[0]
            try:
                adapter = self._use_adapter(ticket.asked.adapter)
                row = Row(ticket.asked, adapter, self._text, self._model.device)
            except LuthierError as error:
                self._close(ticket, error)
            else:
                self._reading.append(_Reading(_Running(ticket, row), Prefill(row, self._model.new_cache())))
            self._waiting.popleft()

    def _read_prompt(self) -> None:
        """One piece of one prompt, in turns: short prompts do not wait for long ones, and long ones get on."""
        if not self._reading:
            return
        reading = self._reading[0]
        logits = reading.prefill.advance(self._model, self._limits.prefill_tokens)
        if logits is None:
            self._reading.rotate(-1)
            return
        if not self._tell_next(reading.running, logits):
            self._batch.join(reading.prefill)
            self._running.append(reading.running)
        self._reading.popleft()

    def _decode(self) -> None:
        if not self._running:
            return
        logits = self._batch.step(self._model)
        ended = [run for run, scores in zip(self._running, logits, strict=True) if self._tell_next(run, scores)]
        self._remove(ended)

    def _tell_next(self, running: _Running, logits: Tensor) -> bool:
        """Choose and tell the row's next token; true when the row has ended."""
        try:
            delta = running.row.take(logits)
        except LuthierError as error:
            self._close(running.ticket, error)
            return True
        if delta is None:
            return False
        if delta.finish_reason is None:
            running.ticket.tell(delta)
            return False
        self._close(running.ticket, delta)
        return True

    def _remove(self, ended: list[_Running]) -> None:
        if ended:
            self._running = [run for run in self._running if run not in ended]
            self._batch.leave([run.row for run in ended])

    def _drop_cancelled(self) -> None:
        for ticket in [ticket for ticket in self._waiting if ticket.is_cancelled]:
            self._waiting.remove(ticket)
            self._close(ticket, None)
        for reading in [reading for reading in self._reading if reading.running.ticket.is_cancelled]:
            self._reading.remove(reading)
            self._close(reading.running.ticket, None)
        gone = [run for run in self._running if run.ticket.is_cancelled]
        for run in gone:
            self._close(run.ticket, None)
        self._remove(gone)

    def _close(self, ticket: Ticket, last: Delta | LuthierError | None) -> None:
        if ticket.is_closed:
            return
        ticket.is_closed = True
        with self._lock:
            self._num_pending -= 1
        if last is not None:
            ticket.tell(last)

    def _fail_all(self, error: LuthierError) -> None:
        tickets = [*self._waiting, *(r.running.ticket for r in self._reading), *(run.ticket for run in self._running)]
        self._waiting.clear()
        self._reading.clear()
        self._running.clear()
        self._batch = Batch()
        for ticket in tickets:
            self._close(ticket, error)

    def _load(self, command: _Load) -> None:
        try:
            if command.name not in self._adapters:
                self._make_room()
                adapter = load_adapter(command.name, command.directory, self._model.layers, self._model.dtype)
                self._adapters[command.name] = (adapter, time.monotonic())
        except LuthierError as error:
            command.done.set_exception(error)
        except Exception as error:
            logger.exception("an adapter could not be loaded")
            command.done.set_exception(EngineFailedError(f"The adapter could not be loaded: {type(error).__name__}."))
        else:
            command.done.set_result(None)

    def _use_adapter(self, name: str | None) -> Adapter | None:
        if name is None:
            return None
        if name not in self._adapters:
            raise UnknownAdapterError("The model's adapter is not loaded.")
        adapter, _ = self._adapters.pop(name)
        self._adapters[name] = (adapter, time.monotonic())
        return adapter

    def _in_use(self) -> set[str | None]:
        tickets = [*self._waiting, *(r.running.ticket for r in self._reading), *(run.ticket for run in self._running)]
        return {ticket.asked.adapter for ticket in tickets}

    def _make_room(self) -> None:
        """Forget the adapter that was used longest ago; the dictionary is in the order of use."""
        if len(self._adapters) < self._limits.max_adapters:
            return
        in_use = self._in_use()
        unused = [name for name in self._adapters if name not in in_use]
        if not unused:
            raise EngineBusyError("All adapters of the engine are in use; try again later.")
        del self._adapters[unused[0]]

    def _evict_idle(self) -> None:
        oldest = time.monotonic() - self._limits.adapter_idle_s
        idle = [name for name, (_, used_at) in self._adapters.items() if used_at < oldest]
        if not idle:
            return
        in_use = self._in_use()
        for name in idle:
            if name not in in_use:
                del self._adapters[name]
