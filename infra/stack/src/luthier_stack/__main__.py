"""The command: `python -m luthier_stack up` runs Luthier in the foreground until it is interrupted."""

import argparse
import asyncio
import os
import signal
import sys
from typing import Any

from pydantic import ValidationError

from luthier_stack.errors import StackError
from luthier_stack.logs import show
from luthier_stack.settings import SERVICES, StackSettings
from luthier_stack.stack import Stack

_FIRST_READY_S = 600.0


def main() -> None:
    """Parse the command line, run, and turn every expected failure into one line and status 1."""
    given = {name: value for name, value in vars(_parser().parse_args()).items() if value is not None}
    given.pop("command")
    try:
        settings = StackSettings(**{"echo": True, "announce": True, **given})
        asyncio.run(_run(settings))
    except ValidationError as error:
        sys.exit("\n".join(f"luthier: {'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors()))
    except StackError as error:
        sys.exit(f"luthier: {error}")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="luthier_stack", description="Luthier on one machine")
    up = parser.add_subparsers(dest="command", required=True).add_parser("up", help="run it in the foreground")
    up.add_argument("--home", help="where everything is kept (LUTHIER_HOME, default .luthier)")
    up.add_argument("--port", type=int, help="where the API listens (LUTHIER_PORT, default 8000)")
    up.add_argument("--services", help="only these, comma-separated; an empty text starts the servers alone")
    return parser


async def _run(settings: StackSettings) -> None:
    stop_asked = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, _on_signal, stop_asked)
    stack = Stack(settings)
    show("stack", f"starting in {settings.home}")
    work = asyncio.create_task(_start_and_tell(stack))
    asked = asyncio.create_task(stop_asked.wait())
    try:
        await asyncio.wait({work, asked}, return_when=asyncio.FIRST_COMPLETED)
        if work.done():
            work.result()
            await asked
    finally:
        work.cancel()
        await asyncio.wait({work})
        show("stack", "stopping")
        await stack.stop()
        show("stack", "stopped")


async def _start_and_tell(stack: Stack) -> None:
    await stack.start()
    if set(stack.settings.services) == set(SERVICES):  # some rooms alone are alive, and wait for the others
        for name in SERVICES:
            await stack.wait_ready(name, _FIRST_READY_S)
    for line in _greeting(stack):
        show("stack", line)


def _greeting(stack: Stack) -> list[str]:
    if "api" not in stack.settings.services:
        return ["ready: " + ", ".join(stack.processes or {"nothing to run": None})]
    return [
        f"Luthier is ready at {stack.api_url}/v1",
        f"the admin key is in {stack.admin_key_path}",
        "try it:  from openai import OpenAI",
        f'         client = OpenAI(base_url="{stack.api_url}/v1", api_key=open("{stack.admin_key_path}").read())',
    ]


def _on_signal(stop_asked: asyncio.Event, *_: Any) -> None:
    """The first signal asks for an ordered stop; a second one ends at once, and the kernel ends the children."""
    if stop_asked.is_set():
        os._exit(130)
    stop_asked.set()


if __name__ == "__main__":
    main()
