"""What a run says at its end: faults, jobs, findings."""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from chaos.plan import BROKER, MONGOD, SERVICES, TRAINERS, Fault, Kind
from chaos.watch import Recovery

BACKLOG_LIMIT_S = 30.0
LONG_S = 300.0
"""A run of so many seconds has shown that leases end and jobs move; in a shorter one chance may have it otherwise."""
BAR_S = 1800.0
BAR = {"services": 300, MONGOD: 30, BROKER: 10}
"""So many must be killed, or lost, in a run of so many seconds."""
RECOVERY_LIMIT_S = 60.0
DONE_SHARE = 0.6
"""Of the faults of a kind: a victim that is not there when its turn comes, such as a training child, cannot be hurt."""
Counts = Mapping[tuple[Kind, str], int]


@dataclass
class Report:
    """All that was counted and found."""

    seed: int
    seconds: float
    done: Counts
    missed: Counts
    jobs: Mapping[str, int]
    num_runs_lost: int
    """Facts that say so."""
    num_jobs_moved: int
    """Jobs whose attempts ran on different nodes."""
    answers: Mapping[str, int]
    recoveries: Sequence[Recovery]
    backlog_s: float
    """After the last fault: the last moment at which a fact had waited for long."""
    settled_s: float
    findings: Sequence[str]
    notes: Sequence[str] = field(default_factory=tuple)

    def count(self, kind: Kind, *victims: str) -> int:
        """How often this really happened to these (to any: no victims named)."""
        return sum(n for (done, victim), n in self.done.items() if done is kind and (not victims or victim in victims))

    @property
    def longest(self) -> Recovery | None:
        """The fault that was felt longest; one that was felt to the end comes before all."""
        return max(self.recoveries, key=lambda one: float("inf") if one.seconds is None else one.seconds, default=None)

    def lines(self) -> list[str]:
        table = [f"{'fault':<20} {'victim':<15} {'done':>5} {'missed':>6}"]
        table += [
            f"{kind:<20} {victim:<15} {self.done.get((kind, victim), 0):>5} {self.missed.get((kind, victim), 0):>6}"
            for kind, victim in sorted({*self.done, *self.missed})
        ]
        longest = self.longest
        felt = "none" if longest is None else f"{_seconds(longest.seconds)} ({str(longest.fault).strip()})"
        return [
            f"seed {self.seed}, {self.seconds:g} s of faults",
            *table,
            f"service kills {self.count(Kind.KILL, *SERVICES)}",
            f"mongod kills {self.count(Kind.KILL, MONGOD)}",
            f"broker losses {self.count(Kind.LOSE, BROKER)}",
            f"jobs: {_listed(self.jobs)}",
            f"runs lost {self.num_runs_lost}, jobs that went on elsewhere {self.num_jobs_moved}",
            f"calls: {_listed(self.answers)}",
            f"longest recovery: {felt}",
            f"after the last fault: nothing waited after {self.backlog_s:.1f} s (limit {BACKLOG_LIMIT_S:g} s)",
            f"after the last fault: every invariant looked at after {self.settled_s:.1f} s",
            *self.notes,
            *([f"{len(self.findings)} findings:", *self.findings] if self.findings else ["no invariant is broken"]),
        ]


def unproven(report: Report, plan: Sequence[Fault]) -> list[str]:
    """What a run must have shown, or it has shown nothing: faults that happened, jobs that went on under them."""
    findings = []
    if report.backlog_s > BACKLOG_LIMIT_S:
        findings.append(f"I11 facts still waited {report.backlog_s:.1f} s after the last fault")
    planned: Counter[Kind] = Counter(fault.kind for fault in plan)
    for kind, number in planned.items():
        if report.count(kind) < DONE_SHARE * number:
            findings.append(f"only {report.count(kind)} of {number} faults of the kind {kind!r} happened")
    if not report.jobs.get("succeeded"):
        findings.append("no job succeeded")
    if report.seconds >= LONG_S:
        num_stops = sum(fault.kind is Kind.LONG_STOP and fault.victim in TRAINERS for fault in plan)
        if report.num_runs_lost < num_stops // 2:
            findings.append(f"{num_stops} long stops of trainers made {report.num_runs_lost} RunLost only")
        if not report.num_jobs_moved:
            findings.append("no job went on at another trainer")
    if report.seconds >= BAR_S:
        hurt = {
            "services": report.count(Kind.KILL, *SERVICES),
            MONGOD: report.count(Kind.KILL, MONGOD),
            BROKER: report.count(Kind.LOSE, BROKER),
        }
        findings += [
            f"only {hurt[name]} of {least} faults of {name}" for name, least in BAR.items() if hurt[name] < least
        ]
    if (longest := report.longest) is not None and not _is_short(longest.seconds, report.seconds):
        findings.append(f"nothing went on after {str(longest.fault).strip()}: {_seconds(longest.seconds)}")
    return findings


def _is_short(recovery_s: float | None, run_s: float) -> bool:
    """A short run shows that jobs go on at all."""
    return recovery_s is not None and (run_s < LONG_S or recovery_s <= RECOVERY_LIMIT_S)


def alarms_in(logs: Path) -> list[str]:
    """Lines in which a service says that something happened which must not."""
    return [
        f"alarm in {path.name}: {line[:400]}"
        for path in sorted(logs.glob("*.log*"))
        for line in path.read_text(errors="replace").splitlines()
        if '"alarm:' in line and "alarm: late" not in line
    ]


def errors_in(logs: Path, most: int = 12) -> list[str]:
    """The errors that services logged, counted: no finding, but worth a look."""
    counted: Counter[str] = Counter()
    for path in sorted(logs.glob("*.log*")):
        for line in path.read_text(errors="replace").splitlines():
            if '"error"' not in line and '"critical"' not in line:
                continue
            try:
                record = json.loads(line)
            except ValueError:
                continue
            if isinstance(record, dict) and record.get("level") in ("error", "critical"):
                counted[f"{path.stem}: {str(record.get('message'))[:100]}"] += 1
    return [f"logged {times} times: {message}" for message, times in counted.most_common(most)]


def _listed(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{name} {number}" for name, number in sorted(counts.items())) or "none"


def _seconds(seconds: float | None) -> str:
    return "never" if seconds is None else f"{seconds:.1f} s"
