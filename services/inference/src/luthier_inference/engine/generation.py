"""The engine as the service sees it: load a base, load adapters, and follow answers with `async for`."""

import asyncio
from collections.abc import AsyncGenerator
from pathlib import Path

import torch
from transformers.utils import logging as transformers_logging

from luthier_common.kit.errors import LuthierError
from luthier_inference.domain import Delta, Generation
from luthier_inference.engine.model import load_base
from luthier_inference.engine.worker import EngineLimits, Ticket, Worker
from luthier_inference.settings import InferenceSettings
from luthier_text import TextBundle


class Engine:
    """One base model that answers. Safe to use from any task of one event loop."""

    def __init__(
        self,
        base_dir: Path,
        device: str = "cpu",
        dtype: str = "auto",
        limits: EngineLimits | None = None,
        num_threads: int | None = None,
    ) -> None:
        """Loads the base, which takes seconds: call it in a thread. Raises `BadBaseError`, `TextError`."""
        transformers_logging.disable_progress_bar()  # type: ignore[no-untyped-call]
        if num_threads:
            torch.set_num_threads(num_threads)
        self.text = TextBundle.load(base_dir)
        model = load_base(base_dir, device, dtype)
        self.device, self.dtype = device, str(model.dtype).removeprefix("torch.")
        self._worker = Worker(model, self.text, limits or EngineLimits())
        self._worker.start()

    @property
    def adapters(self) -> tuple[str, ...]:
        """Names of the loaded adapters."""
        return self._worker.adapters

    @property
    def num_pending(self) -> int:
        """Requests that wait or run."""
        return self._worker.num_pending

    async def load_adapter(self, name: str, directory: Path) -> None:
        """Offer the adapter of this directory under `name`.

        Raises `BadAdapterError`, `FilesUnreadableError`, `EngineBusyError`. A caller that leaves does not end the load.
        """
        await asyncio.shield(asyncio.wrap_future(self._worker.load(name, directory)))

    async def generate(self, asked: Generation) -> AsyncGenerator[Delta, None]:
        """The answer, piece by piece; the last piece has a finish reason. Closing the iterator ends the generation.

        Raises `UnknownAdapterError`, `ContextLengthError`, `EngineBusyError`, `EngineFailedError`.
        """
        loop = asyncio.get_running_loop()
        pieces: asyncio.Queue[Delta | LuthierError] = asyncio.Queue()

        def tell(piece: Delta | LuthierError) -> None:
            if not loop.is_closed():
                loop.call_soon_threadsafe(pieces.put_nowait, piece)

        ticket = Ticket(asked, tell)
        self._worker.submit(ticket)
        try:
            while True:
                piece = await pieces.get()
                if isinstance(piece, LuthierError):
                    raise piece
                yield piece
                if piece.finish_reason is not None:
                    return
        finally:
            ticket.cancel()

    def close(self) -> None:
        """End the engine's thread; answers under way fail."""
        self._worker.stop()


def make_engine(directory: Path, settings: InferenceSettings) -> Engine:
    """An engine for a base bundle, as the node's settings say."""
    device = settings.engine_device
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    limits = EngineLimits(
        max_rows=settings.engine_max_rows,
        max_waiting=settings.engine_max_waiting,
        max_adapters=settings.engine_max_adapters,
        adapter_idle_s=settings.adapter_idle_s,
    )
    return Engine(directory, device, settings.engine_dtype, limits, settings.engine_threads)
