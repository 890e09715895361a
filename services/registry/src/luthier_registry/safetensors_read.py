"""What safetensors files say about themselves: their headers alone are read, and held against the files' lengths."""

import json
import math
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from luthier_registry.errors import BaseImportError

LENGTH_BYTES = 8
MAX_HEADER_BYTES = 100_000_000
"""The format's own limit."""
FLOATS = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}
BUFFERS = frozenset({"BOOL", "I64"})
"""Masks and positions that some models store beside their weights."""
ITEM_BYTES = {"F64": 8, "I64": 8, "F32": 4, "F16": 2, "BF16": 2, "BOOL": 1}
_LFS_POINTER = b"version https://git-lfs"


@dataclass(frozen=True)
class Tensor:
    """One entry of a header."""

    dtype: str
    shape: tuple[int, ...]


@dataclass(frozen=True)
class WeightFacts:
    """What the manifest of a base tells of its weights."""

    num_parameters: int
    dtype: str


def read_header(path: Path) -> dict[str, Tensor]:
    """The tensors of a file by name; `BaseImportError` where the file is not whole or not plain numbers."""
    with path.open("rb") as stream:
        start = stream.read(len(_LFS_POINTER))
        if start == _LFS_POINTER:
            raise _damaged(path, "is a Git LFS pointer, not the weights: fetch the file itself")
        length = int.from_bytes(start[:LENGTH_BYTES], "little")
        data_bytes = path.stat().st_size - LENGTH_BYTES - length
        if len(start) < LENGTH_BYTES or length > MAX_HEADER_BYTES or data_bytes < 0:
            raise _damaged(path, "has no safetensors header")
        stream.seek(LENGTH_BYTES)
        header = stream.read(length)
    try:
        entries = json.loads(header)
        entries.pop("__metadata__", None)
        read = {name: _read_entry(path, name, entry) for name, entry in entries.items()}
    except BaseImportError:
        raise
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise _damaged(path, "has a safetensors header that cannot be read") from error
    position = 0
    for begin, end in sorted(offsets for _, offsets in read.values()):
        if begin != position:
            raise _damaged(path, "has tensors that overlap or leave a gap")
        position = end
    if position != data_bytes:
        raise _damaged(path, f"holds {data_bytes} bytes of weights where its header says {position}")
    return {name: tensor for name, (tensor, _) in read.items()}


def sum_up(tensors: Iterable[Tensor]) -> WeightFacts:
    """Parameters, and the type that most of them have."""
    sizes: Counter[str] = Counter()
    for tensor in tensors:
        if tensor.dtype in FLOATS:
            sizes[tensor.dtype] += math.prod(tensor.shape)
    if not sizes.total():
        raise BaseImportError("base_damaged_weights", "the safetensors files hold no weights")
    return WeightFacts(sizes.total(), FLOATS[sizes.most_common(1)[0][0]])


def _read_entry(path: Path, name: str, entry: dict[str, Any]) -> tuple[Tensor, tuple[int, int]]:
    dtype, shape, (begin, end) = entry["dtype"], tuple(entry["shape"]), entry["data_offsets"]
    if dtype not in FLOATS and dtype not in BUFFERS:
        raise BaseImportError("base_quantised", f"{path.name} holds {name} as {dtype}: only unquantised models train")
    if not all(type(number) is int and number >= 0 for number in (*shape, begin, end)):
        raise _damaged(path, f"has no sound shape for {name}")
    if end - begin != math.prod(shape) * ITEM_BYTES[dtype]:
        raise _damaged(path, f"has a length for {name} that is not its shape's")
    return Tensor(dtype, shape), (begin, end)


def _damaged(path: Path, what: str) -> BaseImportError:
    return BaseImportError("base_damaged_weights", f"{path.name} {what}")
