"""Second instances of rooms beside those of a stack: what one leaves or sleeps through, the other takes over."""

from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace

from luthier_stack.part import Part
from luthier_stack.ports import find_free_ports
from luthier_stack.services import service_spec
from luthier_stack.stack import Stack

RIVALS: Mapping[str, str] = {f"{room}-2": room for room in ("api", "scheduler", "registry", "trainer")}
SECOND_HOME = "second"
"""Below the stack's home: that of the rivals, which are as if on another machine."""
READY_WITHIN_S = 60.0


@asynccontextmanager
async def rival_of(stack: Stack, room: str) -> AsyncIterator[Part]:
    """A second process of this room, alive; as a trainer it is a node of its own."""
    home = stack.home / SECOND_HOME
    own = {"LUTHIER_HOME": str(home), "LUTHIER_TRAINER_NODE": SECOND_HOME}
    health_port, port = find_free_ports(2)
    spec = service_spec(
        room,
        # The processes of an api have one pepper, which lies in their home.
        env=stack.env | ({} if room == "api" else own),
        health_port=health_port,
        port=port if room == "api" else None,
        logs=home / "logs",
        echo=False,
        announce=False,
        command=stack.settings.commands.get(room),
    )
    spec.log_path.parent.mkdir(parents=True, exist_ok=True)
    part = Part(replace(spec, longest_delay_s=stack.settings.longest_restart_delay_s))
    part.start()
    try:
        await part.wait_alive(READY_WITHIN_S)
        yield part
    finally:
        await part.stop()


@asynccontextmanager
async def rivals_of(stack: Stack) -> AsyncIterator[dict[str, Part]]:
    """One of each of `RIVALS`, by name."""
    async with AsyncExitStack() as started:
        yield {name: await started.enter_async_context(rival_of(stack, room)) for name, room in RIVALS.items()}
