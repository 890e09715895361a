"""The engine as the service sees it: load a base, load adapters, and follow answers with `async for`."""

import asyncio
import hashlib
import logging
from collections.abc import AsyncGenerator
from pathlib import Path

import torch
from transformers.utils import logging as transformers_logging

from luthier_common.kit.errors import LuthierError
from luthier_inference.domain import Delta, EngineFailedError, Generation
from luthier_inference.engine.line import Ticket
from luthier_inference.engine.lora import load_adapter
from luthier_inference.engine.memory import release_unused
from luthier_inference.engine.model import load_base
from luthier_inference.engine.worker import EngineLimits, Worker
from luthier_inference.settings import InferenceSettings
from luthier_text import TextBundle

logger = logging.getLogger(__name__)
_CACHE_SHARE = 0.5
"""Of free memory, for all bases together: forward passes need some too."""


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
        """Loads the base, which takes seconds: call it in a thread. Raises `BadBaseError`, `TextError`, `OSError`."""
        transformers_logging.disable_progress_bar()  # type: ignore[no-untyped-call]
        if num_threads:
            torch.set_num_threads(num_threads)
        self.text = TextBundle.load(base_dir)
        self._model = load_base(base_dir, device, dtype)
        self.device, self.dtype = device, str(self._model.dtype).removeprefix("torch.")
        self._loading = asyncio.Lock()
        self._worker = Worker(self._model, self.text, limits or EngineLimits())
        self._worker.start()

    @property
    def computes_with(self) -> str:
        """A short digest of what else decides on numbers: kind of device, torch, and how attention is computed."""
        said = (self._model.device.type, torch.__version__, self._model.network.config._attn_implementation)
        return hashlib.sha256(" ".join(said).encode()).hexdigest()[:6]

    @property
    def adapters(self) -> tuple[str, ...]:
        """Names of the loaded adapters."""
        return self._worker.adapters

    @property
    def num_pending(self) -> int:
        """Requests that wait or run."""
        return self._worker.num_pending

    @property
    def progress(self) -> int:
        """Rises while there is something pending, unless the engine hangs."""
        return self._worker.progress

    @property
    def cache_bytes(self) -> int:
        """What keys and values of running answers may take."""
        return self._worker.cache_bytes

    @property
    def broken(self) -> str | None:
        """Why it can never compute again in this process, if so."""
        return self._worker.broken

    async def load_adapter(self, name: str, directory: Path) -> None:
        """Offer the adapter of this directory under `name`; answers under way go on meanwhile.

        Raises `BadAdapterError`, `FilesUnreadableError`, `EngineBusyError`, and `EngineFailedError` when memory is
        wanting. A caller that leaves does not end the load.
        """
        await asyncio.shield(asyncio.create_task(self._load_adapter(name, directory)))

    async def _load_adapter(self, name: str, directory: Path) -> None:
        # One after the other: each is read whole.
        async with self._loading:
            if name in self._worker.adapters:
                return
            # Before it is read: there is never more than may be.
            self._worker.make_room()
            layers, dtype = self._model.layers, self._model.dtype
            try:
                adapter = await asyncio.to_thread(load_adapter, name, directory, layers, dtype)
            except LuthierError:
                raise
            except Exception as error:
                logger.exception("an adapter could not be loaded")
                raise EngineFailedError(f"The adapter could not be loaded: {type(error).__name__}.") from error
            self._worker.install(adapter)

    def drop_adapter(self, name: str) -> None:
        """Forget an adapter; answers under way go on."""
        self._worker.drop_adapter(name)

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
    # What made room for this one is not gone before.
    release_unused()
    device = settings.engine_device
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    limits = EngineLimits(
        max_rows=settings.engine_max_rows,
        max_waiting=settings.engine_max_waiting,
        max_adapters=settings.engine_max_adapters,
        adapter_idle_s=settings.adapter_idle_s,
        cache_bytes=settings.engine_cache_bytes,
        cache_share=_CACHE_SHARE / settings.engine_max_bases,
    )
    return Engine(directory, device, settings.engine_dtype, limits, settings.engine_threads)
