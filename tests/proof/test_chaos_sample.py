"""A small chaos run: every kind of fault happens once at least, and nothing that was promised is broken."""

from pathlib import Path

import pytest

from builders.scale import FULL, scaled
from chaos.plan import BROKER, CHILD, DISKS, MONGOD, S3, SERVICES, Kind, counted, make_plan
from chaos.run import chaos_run

SEED = 5
SECONDS = scaled(45, 300)


def test_the_plan_follows_from_the_seed() -> None:
    assert make_plan(7, 600) == make_plan(7, 600)
    assert make_plan(7, 600) != make_plan(8, 600)


def test_half_an_hour_holds_what_the_bar_asks_for() -> None:
    planned = counted(make_plan(1, 1800))
    assert sum(planned[(Kind.KILL, service)] for service in SERVICES) >= 300
    assert planned[(Kind.KILL, MONGOD)] >= 30
    assert planned[(Kind.LOSE, BROKER)] >= 10
    for victim in (*SERVICES, CHILD, MONGOD):
        assert planned[(Kind.KILL, victim)]
        assert planned[(Kind.SHORT_STOP, victim)]
        assert planned[(Kind.LONG_STOP, victim)]
    assert all(planned[(Kind.FILL_DISK, disk)] for disk in DISKS)
    with_s3 = counted(make_plan(1, 1800, with_s3=True))
    assert all(with_s3[(kind, S3)] for kind in (Kind.KILL, Kind.SHORT_STOP, Kind.LONG_STOP))


@pytest.mark.timeout(SECONDS + 180)
async def test_faults_of_every_kind_break_no_invariant(tmp_path: Path) -> None:
    report = await chaos_run(SEED, SECONDS, tmp_path)
    print(*report.lines(), sep="\n")
    assert not report.findings, "\n".join(report.lines())
    assert report.count(Kind.KILL, *SERVICES) >= scaled(6, 40)
    assert report.count(Kind.KILL, MONGOD)
    assert report.count(Kind.KILL, CHILD)
    assert report.count(Kind.LOSE, BROKER)
    assert report.count(Kind.SHORT_STOP)
    assert report.count(Kind.LONG_STOP)
    if not any(note.startswith("no disk") for note in report.notes):
        assert report.count(Kind.FILL_DISK)
    assert report.jobs["succeeded"] >= scaled(3, 20)
    if FULL:
        assert report.jobs["cancelled"]
