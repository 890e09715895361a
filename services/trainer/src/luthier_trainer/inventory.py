"""What this node can run on: its GPUs by NVML, or CPU slots. No torch."""

import logging
from typing import Any, Literal

import pynvml

from luthier_common.kit.mongo import Doc

log = logging.getLogger(__name__)


def find_slots(device: Literal["auto", "cpu", "cuda"], num_cpu_slots: int) -> tuple[str, list[Doc]]:
    """What the node is (`cpu`, or its GPU's name) and its free slots; RuntimeError without a GPU that was asked for."""
    gpus = [] if device == "cpu" else _find_gpus()
    if device == "cuda" and not gpus:
        raise RuntimeError("LUTHIER_TRAINER_DEVICE is cuda, but NVML sees no GPU")
    if not gpus:
        return "cpu", [{"index": index, "gpu": None, "holder": None} for index in range(num_cpu_slots)]
    return gpus[0]["name"], [{"index": index, "gpu": gpu, "holder": None} for index, gpu in enumerate(gpus)]


def merge_slots(fresh: list[Doc], known: list[Doc]) -> list[Doc]:
    """The slots that are there now, with the holders that the document knows; what is gone stays while it is held."""
    holders = {slot["index"]: slot["holder"] for slot in known}
    merged = [{**slot, "holder": holders.get(slot["index"])} for slot in fresh]
    gone = [{**slot, "gone": True} for slot in known if slot["index"] >= len(fresh) and slot["holder"] is not None]
    return merged + gone


def _find_gpus() -> list[dict[str, Any]]:
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError as error:
        log.info("NVML does not start: %s", error)
        return []
    try:
        handles = [pynvml.nvmlDeviceGetHandleByIndex(index) for index in range(pynvml.nvmlDeviceGetCount())]
        return [
            {
                "name": pynvml.nvmlDeviceGetName(handle),
                "memory_bytes": int(pynvml.nvmlDeviceGetMemoryInfo(handle).total),
            }
            for handle in handles
        ]
    except pynvml.NVMLError as error:
        log.warning("NVML failed: %s", error)
        return []
    finally:
        pynvml.nvmlShutdown()
