"""Tensors of one forward, and the loss of its trained tokens."""

from dataclasses import dataclass
from typing import Any

import torch
from torch.nn import functional

from luthier_text import IGNORED_LABEL
from luthier_trainer.training.data import TokenRows
from luthier_trainer.training.plan import MicroBatch

Tensors = dict[str, torch.Tensor]


@dataclass
class TokenSums:
    """Sums over trained tokens; tensors, so that a GPU is not waited for before the end of a step."""

    loss: torch.Tensor
    num_correct: torch.Tensor
    num_trained: torch.Tensor

    def __add__(self, other: "TokenSums") -> "TokenSums":
        return TokenSums(
            self.loss + other.loss, self.num_correct + other.num_correct, self.num_trained + other.num_trained
        )

    def detach(self) -> "TokenSums":
        """The same without its graph."""
        return TokenSums(self.loss.detach(), self.num_correct.detach(), self.num_trained.detach())

    def means(self) -> tuple[float, float]:
        """Loss and accuracy of a trained token."""
        num_trained = max(int(self.num_trained.item()), 1)
        return self.loss.item() / num_trained, self.num_correct.item() / num_trained


def collate(micro: MicroBatch, rows: TokenRows, pad_id: int) -> Tensors:
    """The tensors of one forward. Without a mask or positions there is nothing to tell apart."""
    ids = [torch.frombuffer(rows.input_ids(row), dtype=torch.int32).long() for row in micro.rows]
    marks = [torch.frombuffer(rows.labels(row), dtype=torch.int32).long() for row in micro.rows]
    lengths = [len(row) for row in ids]
    if micro.flat:
        positions = torch.cat([torch.arange(length) for length in lengths])
        return {
            "input_ids": torch.cat(ids)[None],
            "labels": torch.cat(marks)[None],
            "position_ids": positions[None],
        }
    tensors = {
        "input_ids": torch.nn.utils.rnn.pad_sequence(ids, batch_first=True, padding_value=pad_id),
        "labels": torch.nn.utils.rnn.pad_sequence(marks, batch_first=True, padding_value=IGNORED_LABEL),
    }
    if min(lengths) < max(lengths):
        mask = [torch.ones(length, dtype=torch.long) for length in lengths]
        tensors["attention_mask"] = torch.nn.utils.rnn.pad_sequence(mask, batch_first=True)
    return tensors


class TrainedTokens:
    """Runs a causal model, but its head only on positions that are trained on: a prompt costs no logits.

    On CUDA trl's fused head does the same without holding the logits. `use_cache=False` is what makes packed rows
    blind to each other: transformers builds the block-diagonal mask from the positions only without a cache.
    """

    def __init__(self, model: Any) -> None:
        self._mask: torch.Tensor | None = None
        model.get_output_embeddings().register_forward_pre_hook(self._select)

    def sums(self, model: Any, tensors: Tensors) -> TokenSums:
        """Loss, hits and number of the trained tokens of one forward."""
        inputs: dict[str, Any] = {name: tensor for name, tensor in tensors.items() if name != "labels"}
        labels = tensors["labels"]
        if labels.device.type == "cuda":
            out = model(**inputs, labels=labels, use_cache=False, fused_lm_head=True)
            return TokenSums(-out.log_probs.sum(), out.is_top1.sum(), out.label_mask.sum())
        targets = labels[:, 1:]
        self._mask = targets != IGNORED_LABEL
        try:
            logits = model(**inputs, use_cache=False).logits.float()
        finally:
            mask, self._mask = self._mask, None
        chosen = targets[mask]
        loss = functional.cross_entropy(logits, chosen, reduction="sum")
        return TokenSums(loss, (logits.detach().argmax(-1) == chosen).sum(), mask.sum())

    def _select(self, _module: Any, args: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...] | None:
        if self._mask is None:
            return None
        return (args[0][:, :-1][self._mask],)
