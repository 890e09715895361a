"""Notices an engine that will never answer again. Then its process has to be made anew: nothing less gives back a
thread that hangs in a driver, or an accelerator that lost its context."""

from luthier_common.kit.errors import LuthierError
from luthier_inference.engines import EnginePool


class EngineLostError(LuthierError):
    """An engine hangs or cannot compute any more. Ends the room."""

    code = "engine_lost"


class EngineWatch:
    """Looks every `look_every_s` whether the engines that have work get on with it."""

    def __init__(self, pool: EnginePool, *, look_every_s: float, hung_after_s: float) -> None:
        self._pool = pool
        self._look_every_s = look_every_s
        self._hung_after_s = hung_after_s
        self._seen: dict[str, tuple[int, int]] = {}

    async def look(self) -> None:
        """Raises `EngineLostError`."""
        # Looks are counted, not time: a process that was stopped and goes on is given as long as any other.
        seen = {}
        for base in self._pool.loaded:
            if base.engine.broken is not None:
                raise self._lost(f"{base.name}: {base.engine.broken}")
            progress = base.engine.progress
            before, num_looks = self._seen.get(base.digest, (progress, 0))
            is_still = base.engine.num_pending > 0 and progress == before
            num_looks = num_looks + 1 if is_still else 0
            if num_looks * self._look_every_s >= self._hung_after_s:
                raise self._lost(f"{base.name}: the engine has got no layer done for {self._hung_after_s:g} s")
            seen[base.digest] = (progress, num_looks)
        self._seen = seen

    def _lost(self, why: str) -> EngineLostError:
        self._pool.is_lost = True
        return EngineLostError(why)
