"""Lists: what they can be narrowed by, cursors that stay where they are, and that each of them reads by an index."""

import time
from datetime import UTC, datetime
from typing import Any

import openai
import pytest
from openai import AsyncOpenAI

from builders.jobs import JobStory, make_spec, make_step
from integration.api.conftest import Api
from integration.api.recorded import recorded
from luthier_common.kit.mongo import Doc

ORG, PROJECT = "org-default", "proj-lists"
OURS = {"org": ORG, "project": PROJECT, "owner": "key-test"}
LISTED = ("jobs", "files", "models", "events")


async def _job(api: Api, *, suffix: str | None = None, model: str = "tiny-base", **fields: Any) -> str:
    pairs = fields.pop("metadata", None)
    metadata = None if pairs is None else [{"k": key, "v": value} for key, value in pairs.items()]
    spec = make_spec(suffix=suffix, model=model)
    return (await JobStory.created(api.db, spec=spec, metadata=metadata, **{**OURS, **fields})).id


@pytest.fixture(scope="module")
async def key(api: Api) -> str:
    return await api.new_key("admin", project=PROJECT)


@pytest.fixture(scope="module")
def sdk(api: Api, key: str) -> AsyncOpenAI:
    return api.sdk(key)


async def _listed(sdk: AsyncOpenAI, limit: int = 2, more: Doc | None = None, **query: Any) -> list[str]:
    """The ids that all pages together hold."""
    return [job.id async for job in sdk.fine_tuning.jobs.list(limit=limit, extra_query=query | (more or {}))]


async def test_jobs_are_narrowed_and_paged_newest_first(api: Api, sdk: AsyncOpenAI) -> None:
    began_at = int(time.time())
    plain = await _job(api)
    support = await _job(api, suffix="Support.bot", metadata={"team": "a", "tier": ""})
    other = await _job(api, suffix="SupportXbot", model="org/Other-Base", metadata={"team": "b"})
    await JobStory(api.db, other).accepted()
    last = await _job(api, metadata={"team": "a"})
    await sdk.fine_tuning.jobs.cancel(last)
    everything = [last, other, support, plain]
    for limit in (1, 2, 3, 4, 100):
        assert await _listed(sdk, limit) == everything
    assert await _listed(sdk, status="cancelled") == [last]
    assert await _listed(sdk, status="queued") == [other]
    assert await _listed(sdk, status="validating_files") == [support, plain]
    assert await _listed(sdk, model="org/Other-Base") == [other]
    assert await _listed(sdk, model="some/Tiny-Base") == [last, support, plain]
    assert await _listed(sdk, search="support") == [other, support]
    assert await _listed(sdk, search="support.") == [support]
    assert await _listed(sdk, search="other-b") == [other]
    assert await _listed(sdk, search=".*") == []
    assert await _listed(sdk, more={"metadata[team]": "a"}) == [last, support]
    assert await _listed(sdk, more={"metadata[team]": "a", "metadata[tier]": ""}) == [support]
    assert await _listed(sdk, metadata="null") == [plain]
    assert await _listed(sdk, created_after=began_at) == everything
    assert await _listed(sdk, created_before=began_at) == []
    assert await _listed(sdk, created_after=int(time.time()) + 60) == []
    assert await _listed(sdk, created_before=int(time.time()) + 60, status="cancelled") == [last]


async def test_created_after_is_inclusive_and_created_before_is_not(api: Api, sdk: AsyncOpenAI) -> None:
    job_id = await _job(api, metadata={"test": "edges"})
    at = (await sdk.fine_tuning.jobs.retrieve(job_id)).created_at
    mine = {"metadata[test]": "edges"}
    assert await _listed(sdk, created_after=at, more=mine) == [job_id]
    assert await _listed(sdk, created_after=at + 1, more=mine) == []
    assert await _listed(sdk, created_before=at, more=mine) == []
    assert await _listed(sdk, created_before=at + 1, more=mine) == [job_id]


@pytest.mark.parametrize(
    "query",
    [
        {"status": "asleep"},
        {"created_after": "yesterday"},
        {"created_before": 10**15},
        {"created_after": -1},
        {"search": ""},
        {"search": "a\x00b"},
        {"order": "asc"},
    ],
)
async def test_what_a_list_cannot_be_narrowed_by_is_refused(sdk: AsyncOpenAI, query: Doc) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        await sdk.fine_tuning.jobs.list(extra_query=query)
    assert caught.value.param == next(iter(query))


async def test_a_cursor_stays_where_it_is_while_jobs_arrive(api: Api, sdk: AsyncOpenAI) -> None:
    mine = {"metadata[test]": "arrivals"}
    older = [await _job(api, metadata={"test": "arrivals"}) for _ in range(4)]
    first = await sdk.fine_tuning.jobs.list(limit=2, extra_query=mine)
    await _job(api, metadata={"test": "arrivals"})
    rest = await sdk.fine_tuning.jobs.list(limit=2, after=first.data[-1].id, extra_query=mine)
    assert [job.id for job in [*first.data, *rest.data]] == older[::-1]
    assert not rest.has_more


async def test_models_are_one_page_unless_a_limit_is_given(api: Api, sdk: AsyncOpenAI, key: str) -> None:
    for number in range(3):
        await api.db["models"].insert_one(
            {"_id": f"ftmodel-lists{number}", **OURS, "end_user": None, "name": f"ft:tiny-base:x::{number}"}
            | {"base": "tiny-base", "job": "ftjob-lists", "phase": "published", "created_at": datetime.now(UTC)}
        )
    names = [model.id async for model in sdk.models.list()]
    assert names[:3] == ["ft:tiny-base:x::2", "ft:tiny-base:x::1", "ft:tiny-base:x::0"]
    assert "tiny-base" in names[3:]
    for limit in (1, 2, 100):
        assert await _pages_of_models(api, key, limit) == names
    await api.db["models"].update_one({"_id": "ftmodel-lists1"}, {"$set": {"phase": "deleted"}})
    async with api.http(key) as client:
        page = (await client.get("/v1/models", params={"after": "ft:tiny-base:x::1", "limit": 1})).json()
        unknown = await client.get("/v1/models", params={"after": "ft:nobody"})
    assert [model["id"] for model in page["data"]] == ["ft:tiny-base:x::0"]
    assert (unknown.status_code, unknown.json()["error"]["code"]) == (400, "invalid_cursor")


async def _pages_of_models(api: Api, key: str, limit: int) -> list[str]:
    names: list[str] = []
    async with api.http(key) as client:
        query: dict[str, Any] = {"limit": limit}
        while True:
            page = (await client.get("/v1/models", params=query)).json()
            names += [model["id"] for model in page["data"]]
            if not page["has_more"]:
                return names
            query["after"] = names[-1]


async def test_no_list_scans_a_collection_or_sorts_in_memory(api: Api, key: str) -> None:
    pairs: list[Doc] = [{"metadata": {"team": "a"}}, {}]
    jobs = [await _job(api, end_user=user, **pair) for user in (None, "ada", "bob") for pair in pairs for _ in range(7)]
    story = JobStory(api.db, jobs[0])
    await story.in_training()
    await story.tell(*(make_step(step) for step in range(1, 6)), attempt=1)
    job, cursor = f"/v1/fine_tuning/jobs/{jobs[0]}", {"after": jobs[4]}
    now = int(time.time())
    asked: list[tuple[str, Doc]] = [
        ("/v1/fine_tuning/jobs", {}),
        ("/v1/fine_tuning/jobs", cursor),
        ("/v1/fine_tuning/jobs", {"status": "queued"}),
        ("/v1/fine_tuning/jobs", {"model": "tiny-base", **cursor}),
        ("/v1/fine_tuning/jobs", {"search": "tiny"}),
        ("/v1/fine_tuning/jobs", {"created_after": now - 60, "created_before": now + 60}),
        ("/v1/fine_tuning/jobs", {"metadata[team]": "a", **cursor}),
        ("/v1/fine_tuning/jobs", {"metadata": "null"}),
        (job, {}),
        (f"{job}/events", {}),
        (f"{job}/events", {"order": "asc"}),
        (f"{job}/checkpoints", {}),
        ("/v1/files", {"purpose": "fine-tune"}),
        ("/v1/files", {"order": "asc", "after": "file-0"}),
        ("/v1/models", {}),
        ("/v1/models/tiny-base", {}),
    ]
    reads: Doc = {"op": "query", "ns": {"$in": [f"{api.db.name}.{name}" for name in LISTED]}}
    mine: Doc = {"command.filter.project": PROJECT}
    async with recorded(api, reads | mine) as found, api.http(key) as client:
        for headers in ({}, {"x-on-behalf-of": "ada"}):
            for path, query in asked:
                answer = await client.get(path, params=query, headers=headers)
                assert answer.status_code == 200, (path, answer.text)
    assert {entry["ns"].partition(".")[2] for entry in found} == set(LISTED)
    plans = {(entry["ns"], entry["planSummary"], entry.get("hasSortStage", False)) for entry in found}
    assert not [plan for plan in plans if "COLLSCAN" in plan[1] or plan[2]]


@pytest.mark.parametrize(
    ("query", "param"),
    [
        ("metadata=foo", "metadata"),
        ("metadata[k=v", "metadata[k"),
        ("metadata[]=v", "metadata[]"),
    ],
)
async def test_a_filter_that_cannot_be_read_is_refused(api: Api, query: str, param: str) -> None:
    async with api.http() as http:
        refused = await http.get(f"/v1/fine_tuning/jobs?{query}")
    error = refused.json()["error"]
    assert (refused.status_code, error["code"], error["param"]) == (400, "invalid_value", param)


@pytest.mark.parametrize("name", ["colour", "services", "request", "job_id"])
async def test_a_parameter_that_the_route_does_not_read_is_refused(api: Api, name: str) -> None:
    async with api.http() as http:
        for path in ("/v1/fine_tuning/jobs", "/v1/fine_tuning/jobs/ftjob-any"):
            refused = await http.get(path, params={name: "x"})
            error = refused.json()["error"]
            assert (refused.status_code, error["code"], error["param"]) == (400, "unknown_parameter", name)


@pytest.mark.parametrize("query", ["status=queued&status=running", "limit=1&limit=2", "metadata[k]=a&metadata[k]=b"])
async def test_a_filter_that_is_given_twice_with_different_values_is_refused(api: Api, query: str) -> None:
    async with api.http() as http:
        refused = await http.get(f"/v1/fine_tuning/jobs?{query}")
        same = await http.get("/v1/fine_tuning/jobs?limit=2&limit=2")
    error = refused.json()["error"]
    assert (refused.status_code, error["code"], error["param"]) == (
        *(400, "conflicting_parameters"),
        query.partition("=")[0],
    )
    assert same.status_code == 200


async def test_a_switch_that_is_neither_true_nor_false_is_refused(api: Api) -> None:
    async with api.http() as http:
        refused = await http.get("/v1/fine_tuning/jobs", headers={"x-luthier-strict": "1"})
        before_any_deed = await http.post("/v1/fine_tuning/jobs", json={}, headers={"x-luthier-strict": "yes"})
    assert before_any_deed.json()["error"]["param"] == "x-luthier-strict"
    error = refused.json()["error"]
    assert (refused.status_code, error["code"], error["param"]) == (400, "invalid_value", "x-luthier-strict")
