"""Ids sort by time and are nobody else's, also in a process that another one became."""

import re
import subprocess
import sys
from datetime import UTC, datetime, timedelta

from luthier_common.contract.ids import JOB_PREFIX, new_id

FORKING = """
import os
from luthier_common.contract.ids import draw_hex
draw_hex()
if child := os.fork():
    os.waitpid(child, 0)
print(draw_hex(), flush=True)
"""


def test_ids_are_distinct_and_sort_by_time() -> None:
    now = datetime(2026, 11, 23, tzinfo=UTC)
    ids = [new_id(JOB_PREFIX, now + timedelta(milliseconds=number // 1000)) for number in range(3000)]
    assert all(re.fullmatch(r"ftjob-[0-9a-f]{24}", one) for one in ids)
    assert len(set(ids)) == len(ids)
    assert max(ids[:1000]) < min(ids[1000:2000]) < max(ids[1000:2000]) < min(ids[2000:])


def test_a_forked_process_draws_its_own() -> None:
    drawn = subprocess.run([sys.executable, "-c", FORKING], check=True, capture_output=True, text=True).stdout.split()
    assert len(drawn) == len(set(drawn)) == 2
