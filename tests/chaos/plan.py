"""What is done to whom and when: a pure function of the seed, so that a run can be repeated."""

import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from itertools import chain, islice, repeat

from builders.rivals import RIVALS

SERVICES = ("registry", "api", "file-validator", "scheduler", "trainer", "inference", *RIVALS)
TRAINERS = ("trainer", "trainer-2")
CHILD = "child"
MONGOD = "mongod"
BROKER = "tansu"
S3 = "s3"
DISKS = ("runs", "objects")
SPACING_S = 4.0
LEASE_TTL_S = 4.0
SHORT_STOP_S = 1.0
LONG_STOP_S = LEASE_TTL_S + 2.0
FULL_FOR_S = 4.0


class Kind(StrEnum):
    """What can be done to a process or a disk."""

    KILL = "kill -9"
    LOSE = "lose all"
    SHORT_STOP = "stop, short"
    LONG_STOP = "stop past the lease"
    FILL_DISK = "disk full"


@dataclass(frozen=True)
class Share:
    """So many of `PER` faults are of this kind."""

    kind: Kind
    victims: tuple[str, ...]
    count: int


_STOPPABLE = (*SERVICES, CHILD, MONGOD, BROKER)
PER = 450
"""Half an hour. A service may be down when its turn has come, hence more kills than the bar asks for."""
SHARES = (
    Share(Kind.KILL, SERVICES, 320),
    Share(Kind.KILL, (MONGOD,), 36),
    Share(Kind.KILL, (CHILD,), 26),
    Share(Kind.LOSE, (BROKER,), 14),
    Share(Kind.SHORT_STOP, _STOPPABLE, 24),
    Share(Kind.LONG_STOP, _STOPPABLE, 16),
    Share(Kind.LONG_STOP, TRAINERS, 12),
    Share(Kind.FILL_DISK, DISKS, 14),
)
S3_SHARES = (
    Share(Kind.KILL, (S3,), 16),
    Share(Kind.SHORT_STOP, (S3,), 6),
    Share(Kind.LONG_STOP, (S3,), 6),
)
"""Beside the others, where objects lie in a server."""
HOLD_S = {Kind.SHORT_STOP: SHORT_STOP_S, Kind.LONG_STOP: LONG_STOP_S, Kind.FILL_DISK: FULL_FOR_S}


@dataclass(frozen=True)
class Fault:
    """`at_s` after the beginning; `hold_s` until it is taken back."""

    at_s: float
    kind: Kind
    victim: str
    hold_s: float = 0.0

    def __str__(self) -> str:
        held = f" for {self.hold_s:g} s" if self.hold_s else ""
        return f"{self.at_s:7.1f} s  {self.kind} {self.victim}{held}"


def make_plan(seed: int, seconds: float, *, with_s3: bool = False) -> list[Fault]:
    """At least one fault of each share, spread over the time in a random order."""
    rng = random.Random(seed)
    shares = SHARES + S3_SHARES if with_s3 else SHARES
    wanted = max(1, round(seconds / SPACING_S))
    deeds = list(chain.from_iterable(_deeds(share, wanted, rng) for share in shares))
    rng.shuffle(deeds)
    spacing_s = seconds / len(deeds)
    return [
        Fault(round((number + rng.uniform(0, 0.5)) * spacing_s, 1), kind, victim, HOLD_S.get(kind, 0.0))
        for number, (kind, victim) in enumerate(deeds)
    ]


def counted(plan: Sequence[Fault]) -> Counter[tuple[Kind, str]]:
    """How often each thing is done to each."""
    return Counter((fault.kind, fault.victim) for fault in plan)


def _deeds(share: Share, wanted: int, rng: random.Random) -> list[tuple[Kind, str]]:
    """Every victim in turn, each round in another order."""
    count = max(1, round(share.count * wanted / PER))
    rounds = (rng.sample(share.victims, len(share.victims)) for _ in repeat(None))
    return [(share.kind, victim) for victim in islice(chain.from_iterable(rounds), count)]
