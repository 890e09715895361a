"""One broker of the real Apache Kafka with properties of the test's own choice."""

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path

from builders.waiting import until
from luthier_stack.part import tied_to_this_process

CLUSTER_ID = "bHV0aGllci10ZXN0LXRscw"
_JAVA = ("-Xms128m", "-Xmx384m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1")


@asynccontextmanager
async def kafka_with(
    properties: Mapping[str, str], folder: Path, real: Path, *format_options: str
) -> AsyncIterator[None]:
    """Format its log directory, start it, and wait until it serves; `real` is the folder of the real servers."""
    config, log = folder / "server.properties", folder / "kafka.log"
    config.write_text("".join(f"{name}={value}\n" for name, value in properties.items()))
    java = ("java", "-cp", f"{real}/kafka/jars/*", f"-Dlog4j2.configurationFile={real}/kafka/log4j2.properties", *_JAVA)
    tool = ("kafka.tools.StorageTool", "format", "-t", CLUSTER_ID, "-c", str(config), *format_options)
    with log.open("wb") as out:
        formatted = await asyncio.create_subprocess_exec(*java, *tool, stdout=out, stderr=out)
        assert await formatted.wait() == 0, log.read_text()
        process = await asyncio.create_subprocess_exec(
            *tied_to_this_process((*java, "kafka.Kafka", str(config))), stdout=out, stderr=out
        )
    try:

        async def started() -> bool:
            assert process.returncode is None, log.read_text()[-2000:]
            return b"Kafka Server started" in log.read_bytes()

        await until(started, within_s=90, every_s=0.1, what="Kafka")
        yield
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()
