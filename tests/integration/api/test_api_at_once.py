"""Jobs that are created at the same time: as many as are meant, and no more than may wait."""

import asyncio
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from integration.api.conftest import MAX_QUEUED, TINY, Api, run_api

LINE = b'{"messages":[{"role":"user","content":"hi"},{"role":"assistant","content":"yes"}]}\n'
URL = "/v1/fine_tuning/jobs"


async def test_a_rush_lets_no_more_jobs_wait_than_may(api: Api) -> None:
    key = await api.new_key("admin", project="proj-rush")
    file = await api.sdk(key).files.create(file=("a.jsonl", LINE * 20), purpose="fine-tune")
    async with api.http(key) as http:
        bodies = [{"model": TINY, "training_file": file.id, "seed": seed} for seed in range(MAX_QUEUED + 15)]
        answers = await asyncio.gather(*(http.post(URL, json=body) for body in bodies))
    assert Counter(answer.status_code for answer in answers) == {200: MAX_QUEUED, 429: 15}
    assert await api.db["jobs"].count_documents({"project": "proj-rush"}) == MAX_QUEUED


async def test_two_equal_jobs_that_are_meant_are_two_wherever_they_are_asked_for(
    mongo_url: str, kafka_url: str, tmp_path: Path, free_port: Callable[[], int]
) -> None:
    database = "test_api_at_once"
    slow = {"LUTHIER_FAILPOINTS": "jobs.before_create=delay:0.3*1", "LUTHIER_FAILPOINTS_LOG": str(tmp_path / "faults")}
    async with (
        run_api(mongo_url, kafka_url, tmp_path, free_port(), database, slow) as first,
        run_api(mongo_url, kafka_url, tmp_path, free_port(), database, {}, drops=False) as second,
    ):
        file = await first.sdk().files.create(file=("a.jsonl", LINE * 20), purpose="fine-tune")
        body = {"model": TINY, "training_file": file.id}
        async with first.http() as one, second.http() as other:
            answers = await asyncio.gather(one.post(URL, json=body), other.post(URL, json=body))
        assert [answer.status_code for answer in answers] == [200, 200]
        assert len({answer.json()["id"] for answer in answers}) == 2
        assert await first.db["jobs"].count_documents({}) == 2
