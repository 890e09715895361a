"""Rows that are decoded together. Each row keeps its keys and values in one shared, left-padded cache: a row that joins
brings its own prefilled cache, a row that leaves is cut out, and padding that no row needs any more is dropped."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

from luthier_inference.domain import BrokenWeightsError, Delta, FinishReason, Generation, StopFilter, token_budget
from luthier_inference.engine.lora import Adapter
from luthier_inference.engine.model import BaseModel
from luthier_inference.engine.sampling import Sampler
from luthier_text import StreamDecoder, TextBundle


class Row:
    """One answer in the making: its sampler, its decoder and what has not been told yet."""

    def __init__(self, asked: Generation, adapter: Adapter | None, text: TextBundle, device: torch.device) -> None:
        self.adapter = adapter
        self.ids = list(asked.prompt_ids)
        self._budget = token_budget(len(asked.prompt_ids), asked.sampling.max_tokens, text.context_length)
        self._sampler = Sampler(asked.sampling, device)
        self._stops = StopFilter(asked.sampling.stop)
        self._decoder: StreamDecoder = text.stream_decoder()
        self._eos_ids = text.eos_ids
        self._num_untold = 0

    def take(self, logits: Tensor) -> Delta | None:
        """Choose the next token; what can be told now, if anything. Raises `BrokenWeightsError`."""
        # A score may be -inf, which forbids a token; a highest one that is no number leaves none to choose.
        if not bool(logits.max().isfinite()):
            raise BrokenWeightsError("The model computes values that are not numbers.")
        chosen = self._sampler.choose(logits)
        self.ids.append(chosen)
        self._budget -= 1
        self._num_untold += 1
        if chosen in self._eos_ids:
            return self._end(self._stops.feed(self._decoder.flush()), FinishReason.STOP)
        shown = self._stops.feed(self._decoder.feed([chosen]))
        if self._stops.is_stopped:
            return self._tell(shown, FinishReason.STOP)
        if self._budget == 0:
            return self._end(shown + self._stops.feed(self._decoder.flush()), FinishReason.LENGTH)
        return self._tell(shown, None) if shown else None

    def _end(self, shown: str, reason: FinishReason) -> Delta:
        if self._stops.is_stopped:
            return self._tell(shown, FinishReason.STOP)
        return self._tell(shown + self._stops.flush(), reason)

    def _tell(self, shown: str, reason: FinishReason | None) -> Delta:
        num_tokens, self._num_untold = self._num_untold, 0
        return Delta(shown, num_tokens, reason)


@dataclass
class Prefill:
    """A row whose ids are read piece by piece, so that running answers do not wait for a long prompt."""

    row: Row
    cache: DynamicCache
    num_read: int = 0

    def advance(self, model: BaseModel, num_tokens: int) -> Tensor | None:
        """Read the next piece; the logits of the next token once all is read."""
        piece = self.row.ids[self.num_read : self.num_read + num_tokens]
        ids = torch.tensor([piece], device=model.device)
        logits = model.forward(ids, self.cache, [self.row.adapter])
        self.num_read += len(piece)
        return logits[0] if self.num_read == len(self.row.ids) else None


@dataclass
class Batch:
    """Rows of equal standing and their shared cache. `lengths` counts the ids that each row has in the cache."""

    cache: DynamicCache = field(default_factory=DynamicCache)
    rows: list[Row] = field(default_factory=list)
    lengths: list[int] = field(default_factory=list)

    def step(self, model: BaseModel) -> Tensor:
        """Logits of the next token of every row, shape [rows, vocabulary]. After an error, `undo_step`."""
        ids = torch.tensor([[row.ids[-1]] for row in self.rows], device=model.device)
        positions = torch.tensor([[length] for length in self.lengths], device=model.device)
        mask = None
        if min(self.lengths) != max(self.lengths):
            slots = torch.arange(max(self.lengths) + 1, device=model.device)
            padding = torch.tensor([max(self.lengths) - length for length in self.lengths], device=model.device)
            mask = (slots[None, :] >= padding[:, None]).long()
        logits = model.forward(ids, self.cache, [row.adapter for row in self.rows], mask, positions)
        self.lengths = [length + 1 for length in self.lengths]
        return logits

    def undo_step(self) -> None:
        """Drop what a step that failed left in some of the layers."""
        longest = max(self.lengths)
        for layer in _layers(self.cache):
            layer.keys, layer.values = (_filled(each)[..., :longest, :] for each in (layer.keys, layer.values))

    def join(self, done: Prefill) -> None:
        """Add a row that has been read; an error changes nothing. A second row needs plain layers (`can_batch`)."""
        length = done.num_read
        if not self.rows:
            self.cache, self.rows, self.lengths = done.cache, [done.row], [length]
            return
        num_rows, longest = len(self.rows), max(self.lengths)
        wanted = max(length, longest)
        try:
            for ours, theirs in zip(_layers(self.cache), _layers(done.cache), strict=True):
                keys = torch.cat([_pad(ours.keys, wanted), _pad(theirs.keys, wanted)])
                ours.keys, ours.values = keys, torch.cat([_pad(ours.values, wanted), _pad(theirs.values, wanted)])
        except Exception:
            for layer in _layers(self.cache):
                layer.keys, layer.values = (_filled(e)[:num_rows, :, -longest:] for e in (layer.keys, layer.values))
            raise
        self.rows.append(done.row)
        self.lengths.append(length)

    def leave(self, rows: Sequence[Row]) -> None:
        """Cut these rows out and drop the padding that only they needed."""
        kept = [at for at, row in enumerate(self.rows) if not any(row is gone for gone in rows)]
        self.rows = [self.rows[at] for at in kept]
        self.lengths = [self.lengths[at] for at in kept]
        if not kept:
            self.cache = DynamicCache()
            return
        longest = max(self.lengths)
        for layer in _layers(self.cache):
            layer.keys = _cut(layer.keys, kept, longest)
            layer.values = _cut(layer.values, kept, longest)


def _layers(cache: DynamicCache) -> list[DynamicLayer]:
    return [layer for layer in cache.layers if isinstance(layer, DynamicLayer)]


def _pad(tensor: Tensor | None, length: int) -> Tensor:
    """Left-pad keys or values of shape [rows, heads, ids, size] to `length` ids."""
    tensor = _filled(tensor)
    rows, heads, num_ids, size = tensor.shape
    return torch.cat([tensor.new_zeros(rows, heads, length - num_ids, size), tensor], dim=-2)


def _cut(tensor: Tensor | None, rows: list[int], length: int) -> Tensor:
    """These rows' last `length` ids."""
    tensor = _filled(tensor)
    return tensor[torch.tensor(rows, device=tensor.device), :, tensor.shape[-2] - length :]


def _filled(tensor: Tensor | None) -> Tensor:
    if tensor is None:
        raise RuntimeError("a layer of the cache is empty")
    return tensor
