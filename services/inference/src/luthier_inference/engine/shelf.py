"""The adapters in memory, in the order of their last use."""

import time
from collections.abc import Collection

from luthier_inference.domain import EngineBusyError, UnknownAdapterError
from luthier_inference.engine.lora import Adapter


class Shelf:
    """At most `max_adapters`; what nobody has used for `idle_s` goes. Its caller sees to it that one thread is here."""

    def __init__(self, max_adapters: int, idle_s: float) -> None:
        self._max_adapters = max_adapters
        self._idle_s = idle_s
        self._adapters: dict[str, tuple[Adapter, float]] = {}

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(self._adapters)

    def make_room(self, in_use: Collection[str | None]) -> None:
        """For one more. Raises `EngineBusyError` when all are in use."""
        if len(self._adapters) >= self._max_adapters:
            unused = next((name for name in self._adapters if name not in in_use), None)
            if unused is None:
                raise EngineBusyError("All adapters of the engine are in use; try again later.")
            del self._adapters[unused]

    def put(self, adapter: Adapter) -> None:
        """There is room for it."""
        self._adapters[adapter.name] = (adapter, time.monotonic())

    def use(self, name: str) -> Adapter:
        """Raises `UnknownAdapterError`."""
        if name not in self._adapters:
            raise UnknownAdapterError("The model's adapter is not loaded.")
        adapter, _ = self._adapters.pop(name)
        self._adapters[name] = (adapter, time.monotonic())
        return adapter

    def drop(self, name: str) -> None:
        """Rows that use it keep it until they end."""
        self._adapters.pop(name, None)

    def drop_idle(self, in_use: Collection[str | None]) -> None:
        oldest = time.monotonic() - self._idle_s
        for name in [name for name, (_, used_at) in self._adapters.items() if used_at < oldest]:
            if name not in in_use:
                del self._adapters[name]
