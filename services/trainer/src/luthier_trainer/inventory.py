"""What this node can run on: its GPUs by NVML, or CPU slots. No torch."""

import logging
from typing import Any, Literal

import pynvml

from luthier_common.kit.mongo import Doc

log = logging.getLogger(__name__)


def find_slots(
    device: Literal["auto", "cpu", "cuda"], num_cpu_slots: int, visible: str | None = None
) -> tuple[str, list[Doc]]:
    """What the node is (`cpu`, or its GPU's name) and its free slots; RuntimeError without a GPU that was asked for.

    `visible` is `CUDA_VISIBLE_DEVICES`: GPUs that it does not name are another process's. A slot's index is NVML's.
    """
    found = [] if device == "cpu" else _find_gpus()
    gpus = pick_visible(found, visible)
    if found and not gpus:
        log.warning("CUDA_VISIBLE_DEVICES names none of the %d GPUs here", len(found))
    if device == "cuda" and not gpus:
        named = "" if visible is None else " that CUDA_VISIBLE_DEVICES names"
        raise RuntimeError(f"LUTHIER_TRAINER_DEVICE is cuda, but NVML sees no GPU{named}")
    if not gpus:
        return "cpu", [{"index": index, "gpu": None, "holder": None} for index in range(num_cpu_slots)]
    return gpus[0][1]["name"], [{"index": index, "gpu": gpu, "holder": None} for index, gpu in gpus]


def pick_visible(gpus: list[Doc], visible: str | None) -> list[tuple[int, Doc]]:
    """The GPUs that `CUDA_VISIBLE_DEVICES` names, with their indices; all when it is not set.

    Read as CUDA does: the first entry that names no GPU ends the list, one that comes twice empties it. Entries are
    indices (as nvidia-smi counts) or UUIDs, which may be cut short.
    """
    if visible is None:
        return list(enumerate(gpus))
    picked: list[tuple[int, Doc]] = []
    for entry in visible.split(","):
        named = [(index, gpu) for index, gpu in enumerate(gpus) if _names(entry.strip(), index, gpu["uuid"])]
        if len(named) != 1:
            break
        if named[0] in picked:
            return []
        picked += named
    return picked


def _names(entry: str, index: int, uuid: str) -> bool:
    return entry == str(index) or (entry.startswith("GPU-") and uuid.startswith(entry))


def merge_slots(fresh: list[Doc], known: list[Doc]) -> list[Doc]:
    """The slots that are there now, with the holders that the document knows; what is gone stays while it is held."""
    holders = {slot["index"]: slot["holder"] for slot in known}
    merged = [{**slot, "holder": holders.get(slot["index"])} for slot in fresh]
    present = {slot["index"] for slot in fresh}
    gone = [{**slot, "gone": True} for slot in known if slot["index"] not in present and slot["holder"] is not None]
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
                "uuid": pynvml.nvmlDeviceGetUUID(handle),
                "memory_bytes": int(pynvml.nvmlDeviceGetMemoryInfo(handle).total),
            }
            for handle in handles
        ]
    except pynvml.NVMLError as error:
        log.warning("NVML failed: %s", error)
        return []
    finally:
        pynvml.nvmlShutdown()
