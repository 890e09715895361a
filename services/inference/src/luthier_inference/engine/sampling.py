"""The choice of the next token of one row."""

import torch
from torch import Tensor

from luthier_inference.domain import Sampling

_GREEDY_BELOW = 1e-5
"""Dividing by less takes scores out of the range of float32, and the likeliest token is all that is left anyway."""


class Sampler:
    """Chooses tokens for one answer; equal seeds and equal logits give equal tokens."""

    def __init__(self, sampling: Sampling, device: torch.device) -> None:
        self._sampling = sampling
        self._counts: dict[int, int] = {}
        self._random = torch.Generator(device=device)
        if sampling.seed is None:
            self._random.seed()
        else:
            self._random.manual_seed(sampling.seed % 2**63)

    def choose(self, logits: Tensor) -> int:
        """The next token for logits of shape [vocabulary]."""
        scores = self._penalize(logits.float())
        if self._sampling.temperature < _GREEDY_BELOW:
            token = int(scores.argmax())
        else:
            token = self._draw((scores - scores.max()) / self._sampling.temperature)
        self._counts[token] = self._counts.get(token, 0) + 1
        return token

    def _draw(self, scores: Tensor) -> int:
        chances = torch.softmax(scores, dim=-1)
        if self._sampling.top_p >= 1:
            return int(torch.multinomial(chances, 1, generator=self._random))
        ordered, ids = chances.sort(descending=True, stable=True)
        before = ordered.cumsum(-1) - ordered
        ordered[before >= self._sampling.top_p] = 0
        ordered[0] = ordered[0].clamp_min(torch.finfo(ordered.dtype).tiny)
        return int(ids[torch.multinomial(ordered, 1, generator=self._random)])

    def _penalize(self, scores: Tensor) -> Tensor:
        sampling = self._sampling
        if not self._counts or not (sampling.frequency_penalty or sampling.presence_penalty):
            return scores
        ids = torch.tensor(list(self._counts), device=scores.device)
        counts = torch.tensor(list(self._counts.values()), device=scores.device, dtype=scores.dtype)
        scores = scores.clone()
        scores[ids] -= counts * sampling.frequency_penalty + sampling.presence_penalty
        return scores
