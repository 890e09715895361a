"""An API that shows jobs, events and models as a test wants them shown: for the checker of what users see."""

from typing import Any, Self

import httpx
from openai import AsyncOpenAI

from luthier_api.domain import View
from luthier_api.wire.events import render
from luthier_common.journal.rows import EVENTS
from luthier_common.kit.mongo import Database


class ApiThatMayLie:
    """Answers as our API would from what the database holds, but for what a test changes."""

    def __init__(self, jobs: dict[str, dict[str, Any]], events: dict[str, list[str]]) -> None:
        self.jobs = jobs
        self.events = events
        self.num_tokens = 3

    @classmethod
    async def of(cls, db: Database) -> Self:
        jobs, events = {}, {}
        async for job in db["jobs"].find({"deleted": {"$ne": True}}):
            shown = {"id": job["_id"], "object": "fine_tuning.job", "status": job["status"]}
            jobs[job["_id"]] = shown | {"fine_tuned_model": job.get("fine_tuned_model")}
            rows = await db[EVENTS].find({"thing": job["_id"]}).sort("seq", -1).to_list(None)
            events[job["_id"]] = [line["id"] for row in rows for line in reversed(render(row, View()))]
        return cls(jobs, events)

    def client(self) -> AsyncOpenAI:
        http = httpx.AsyncClient(transport=httpx.MockTransport(self._answer))
        return AsyncOpenAI(base_url="http://api", api_key="k", http_client=http, max_retries=0)

    def _answer(self, request: httpx.Request) -> httpx.Response:
        if request.url.path == "/chat/completions":
            usage = {"completion_tokens": self.num_tokens, "prompt_tokens": 1, "total_tokens": 1}
            return httpx.Response(200, json={"id": "c", "object": "chat.completion", "choices": [], "usage": usage})
        job_id = request.url.path.split("/")[3]
        if job_id not in self.jobs:
            return httpx.Response(404, json={"error": {"message": "no such job"}})
        if not request.url.path.endswith("/events"):
            return httpx.Response(200, json=self.jobs[job_id])
        lines = [{"id": line, "object": "fine_tuning.job.event"} for line in self.events[job_id]]
        return httpx.Response(200, json={"object": "list", "data": lines, "has_more": False})
