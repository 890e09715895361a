"""Settings of an inference node."""

import socket

from pydantic import Field

from luthier_common.kit.settings import RoomSettings


class InferenceSettings(RoomSettings):
    """One engine process. What it serves comes from the catalogue of bases."""

    inference_node: str = Field(
        default_factory=lambda: f"inference-{socket.gethostname()}", description="unique name of this node"
    )
    inference_host: str = Field("127.0.0.1", description="address to listen on")
    inference_port: int = Field(0, description="port to listen on; 0 takes a free one")
    inference_address: str | None = Field(None, description="URL for other rooms, if not http://host:port")
    inference_bases: str = Field("*", description="bases served, comma-separated; * serves the whole catalogue")
    engine_device: str = Field("auto", description="cpu, cuda, cuda:1, ...; auto takes a GPU where there is one")
    engine_dtype: str = Field("auto", description="float32, bfloat16, float16; auto knows what the device is good at")
    engine_threads: int | None = Field(None, description="CPU threads of the engine; none: one for each core")
    engine_max_bases: int = Field(2, ge=1, description="bases kept in memory; the one used longest ago makes room")
    engine_max_rows: int = Field(16, ge=1, description="answers made at the same time, for each base")
    engine_max_waiting: int = Field(64, ge=0, description="requests that may wait before 429, for each base")
    engine_cache_bytes: int | None = Field(
        None,
        ge=1,
        description="memory for keys and values of running answers, for each base; "
        "none: half of what is free when it is loaded, divided by the bases kept in memory",
    )
    engine_hung_after_s: float = Field(
        120.0, gt=0, description="an engine that gets no layer done for so long, though there is work, ends the process"
    )
    engine_drain_s: float = Field(5.0, ge=0, description="answers under way have so long to end when the node stops")
    engine_max_adapters: int = Field(16, ge=1, description="adapters kept in memory, for each base")
    adapter_idle_s: float = Field(600.0, description="an adapter unused this long leaves the memory")
    adapter_cache_dirs: int = Field(64, ge=1, description="adapters kept on disk")
    base_cache_dirs: int = Field(
        8, ge=1, description="bases kept on disk; none goes that is loaded or was used within the hour"
    )
    verify_patience_s: float = Field(
        1800.0, gt=0, description="a finished model that cannot be tried for so long is published untried"
    )
    verify_answer_s: float = Field(300.0, gt=0, description="a trial without an answer for so long is made again")
