"""What a fail point costs while no fault is asked for: nanoseconds a pass, beside an empty coroutine."""

import asyncio
import time
from collections.abc import Awaitable, Callable

from _bench import report

from luthier_common.kit.failpoints import configure_failpoints, failpoint

NUM_PASSES = 200_000


async def nothing(_name: str) -> None:
    """What is compared with."""


async def ns_each(call: Callable[[str], Awaitable[None]]) -> float:
    began_at = time.perf_counter_ns()
    for _ in range(NUM_PASSES):
        await call("bench.before_nothing")
    return (time.perf_counter_ns() - began_at) / NUM_PASSES


async def main() -> None:
    configure_failpoints()
    report("failpoint", min([await ns_each(failpoint) for _ in range(5)]), "ns", min([await ns_each(nothing)]))


if __name__ == "__main__":
    asyncio.run(main())
