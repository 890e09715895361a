"""Which rows meet in which step: the whole run's order, from lengths and a seed alone; pure, without torch.

A step's rows are split into forwards (`MicroBatch`) that waste little on padding and stay below a token limit; how
they are split changes no gradient beyond rounding, since the loss is a mean over the step's trained tokens.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class MicroBatch:
    """Rows of one forward: padded to the longest, or one after another in one line (`flat`)."""

    rows: tuple[int, ...]
    flat: bool = False


@dataclass(frozen=True)
class Plan:
    """Step n (from 1) trains on `steps[n - 1]`."""

    steps: tuple[tuple[MicroBatch, ...], ...]
    steps_per_epoch: int

    @property
    def total_steps(self) -> int:
        return len(self.steps)

    def is_epoch_end(self, step: int) -> bool:
        """Whether an epoch, or the run, ends with this step."""
        return step % self.steps_per_epoch == 0 or step == self.total_steps

    def epoch_at(self, step: int) -> float:
        return step / self.steps_per_epoch


@dataclass(frozen=True)
class ForwardLimits:
    """`max_tokens` bounds a forward's memory; a forward's fixed cost is that of `overhead_tokens` more tokens."""

    max_tokens: int
    overhead_tokens: int


def plan_run(
    lengths: Sequence[int],
    *,
    batch_size: int,
    n_epochs: int,
    seed: int,
    limits: ForwardLimits,
    pack_length: int | None = None,
    max_steps: int | None = None,
) -> Plan:
    """The order of a run. With `pack_length` an item of a batch is several rows that fit into so many tokens."""
    items: list[tuple[int, ...]] = [(row,) for row in range(len(lengths))]
    if pack_length is not None:
        items = pack_rows(lengths, pack_length, seed)
    steps_per_epoch = -(-len(items) // batch_size)
    total = min(n_epochs * steps_per_epoch, max_steps or n_epochs * steps_per_epoch)
    steps: list[tuple[MicroBatch, ...]] = []
    for epoch in range(-(-total // steps_per_epoch)):
        order = list(items)
        random.Random(f"{seed}/{epoch}").shuffle(order)
        for start in range(0, len(order), batch_size):
            batch = order[start : start + batch_size]
            if pack_length is None:
                steps.append(split_padded([row for item in batch for row in item], lengths, limits))
            else:
                steps.append(tuple(part for item in batch for part in split_flat(item, lengths, limits)))
    return Plan(tuple(steps[:total]), steps_per_epoch)


def pack_rows(lengths: Sequence[int], pack_length: int, seed: int) -> list[tuple[int, ...]]:
    """Rows in lines of at most `pack_length` tokens: best fit, longest first; rows of equal length in random order."""
    order = list(range(len(lengths)))
    random.Random(f"{seed}/pack").shuffle(order)
    order.sort(key=lambda row: -lengths[row])
    lines: list[list[int]] = []
    lines_by_room: dict[int, list[int]] = {}
    for row in order:
        rooms = [room for room in lines_by_room if room >= lengths[row]]
        room = min(rooms, default=None)
        if room is None:
            lines.append([])
            line, room = len(lines) - 1, max(pack_length, lengths[row])
        else:
            line = lines_by_room[room].pop()
            if not lines_by_room[room]:
                del lines_by_room[room]
        lines[line].append(row)
        lines_by_room.setdefault(room - lengths[row], []).append(line)
    return [tuple(line) for line in lines]


def split_padded(rows: Sequence[int], lengths: Sequence[int], limits: ForwardLimits) -> tuple[MicroBatch, ...]:
    """The cheapest split of rows, sorted by length, into padded forwards (dynamic programme over the cuts)."""
    order = sorted(rows, key=lambda row: (lengths[row], row))
    best: list[tuple[int, int]] = [(0, 0)]
    for end in range(1, len(order) + 1):
        longest = lengths[order[end - 1]]
        choices: list[tuple[int, int]] = []
        for start in range(end - 1, -1, -1):
            cost = (end - start) * longest
            if cost > limits.max_tokens and choices:
                break
            choices.append((best[start][0] + cost + limits.overhead_tokens, start))
        best.append(min(choices))
    parts: list[MicroBatch] = []
    end = len(order)
    while end:
        start = best[end][1]
        parts.append(MicroBatch(tuple(order[start:end])))
        end = start
    return tuple(reversed(parts))


def split_flat(rows: Sequence[int], lengths: Sequence[int], limits: ForwardLimits) -> list[MicroBatch]:
    """A packed line as one forward, or as several where it is longer than a forward may be."""
    parts: list[list[int]] = []
    room = 0
    for row in rows:
        if not parts or lengths[row] > room:
            parts.append([])
            room = limits.max_tokens
        parts[-1].append(row)
        room -= lengths[row]
    return [MicroBatch(tuple(part), flat=len(part) > 1) for part in parts]


def num_held(micro: MicroBatch, lengths: Sequence[int]) -> int:
    """Tokens of a forward, padding included."""
    held = [lengths[row] for row in micro.rows]
    return sum(held) if micro.flat else len(held) * max(held)


def split_again(micro: MicroBatch, lengths: Sequence[int], limits: ForwardLimits) -> Sequence[MicroBatch]:
    """The rows of a forward in as many as the limits ask for now; one that is within them, or a single row, stays."""
    if len(micro.rows) == 1 or num_held(micro, lengths) <= limits.max_tokens:
        return (micro,)
    split = split_flat if micro.flat else split_padded
    return split(micro.rows, lengths, limits)
