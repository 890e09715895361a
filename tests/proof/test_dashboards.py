"""Telemetry that is seen: one whole stack, watched by an OTLP receiver and by a real Prometheus while it tunes.

Each of two jobs loses its training process once, so that every trace and every number of a second attempt is there.
"""

import asyncio
import json
import os
import re
import signal
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import httpx2
import pytest
from openai import APIStatusError

from builders.bases import make_tiny_base, write_chat_file
from builders.collector import Collector, Span, collecting
from builders.prometheus import Prometheus, prometheus_of
from builders.waiting import until
from builders.workshop import TINY, Workshop, stack_settings, wait_ready, workshop_of
from luthier_common.kit.mongo import Doc
from luthier_stack.scraping import TARGETS_FILE
from luthier_stack.stack import Stack
from luthier_trainer.workplace import PID_FILE

pytestmark = pytest.mark.timeout(200)
REPOSITORY = Path(__file__).resolve().parents[2]
DASHBOARDS = REPOSITORY / "infra" / "grafana" / "dashboards"
ALERTS = REPOSITORY / "infra" / "prometheus" / "alerts.yml"
RATE_INTERVAL = "20s"
QUESTION = "Is the parcel of Ms Canary-Prompt here?"
STEPS_PER_S = 8.0


@dataclass
class Watched:
    """A stack that has tuned two jobs, and what was seen of it."""

    stack: Stack
    workshop: Workshop
    collector: Collector
    prometheus: Prometheus
    jobs: list[Doc]


@pytest.fixture(scope="module")
async def watched(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Watched]:
    folder = tmp_path_factory.mktemp("watched")
    home = folder / "home"
    base = make_tiny_base(folder / TINY, name=TINY)
    with collecting() as collector:
        settings = stack_settings(
            home,
            base,
            stub_child=True,
            steps_per_s=STEPS_PER_S,
            LUTHIER_OBSERVE_S="1",
            OTEL_TRACES_EXPORTER="otlp",
            OTEL_EXPORTER_OTLP_ENDPOINT=collector.endpoint,
            OTEL_BSP_SCHEDULE_DELAY="300",
            OTEL_METRICS_EXPORTER="prometheus",
            OTEL_LOGS_EXPORTER="none",
        )
        async with (
            Stack(settings) as stack,
            prometheus_of(folder / "prometheus", home / TARGETS_FILE, ALERTS) as prometheus,
            workshop_of(stack) as workshop,
        ):
            await wait_ready(stack)
            await _be_refused(stack, workshop)
            # One after the other, and the first still at work: rates are of events that do not fall together.
            begun = [await _begin(workshop, home, folder, seed=seed) for seed in (1, 2)]
            jobs = [await _end(workshop, job_id) for job_id in begun]
            await _be_refused(stack, workshop)
            await workshop.ask(jobs[0]["fine_tuned_model"], QUESTION)
            await asyncio.sleep(2.5)  # two more scrapes
            yield Watched(stack, workshop, collector, prometheus, jobs)


async def _begin(workshop: Workshop, home: Path, folder: Path, *, seed: int) -> str:
    """A job whose training process has been killed after its first checkpoint."""
    rows = write_chat_file(folder / f"train-{seed}.jsonl", 40)
    held_out = await workshop.upload(write_chat_file(folder / f"valid-{seed}.jsonl", 8, start=100))
    job = await workshop.create(rows, num_epochs=4, validation_file=held_out, seed=seed)
    await workshop.steps(job.id, 15)
    (note,) = home.glob(f"trainer/*/*{job.id}*/{PID_FILE}")
    os.kill(int(note.read_text()), signal.SIGKILL)
    return job.id


async def _end(workshop: Workshop, job_id: str) -> Doc:
    """The job's document, after its second attempt has ended well."""
    assert (await workshop.ended(job_id)).status == "succeeded"
    doc = await workshop.doc(job_id)
    assert doc["attempt"] == 2
    return doc


async def _be_refused(stack: Stack, workshop: Workshop) -> None:
    """Once for what is not there, once for want of a key."""
    with pytest.raises(APIStatusError):
        await workshop.client.fine_tuning.jobs.retrieve("ftjob-0000000000000000000000")
    async with httpx2.AsyncClient(trust_env=False) as nobody:
        assert (await nobody.get(f"{stack.api_url}/v1/models")).status_code == 401


def _queries() -> list[Any]:
    found = []
    for path in sorted(DASHBOARDS.glob("*.json")):
        for panel in json.loads(path.read_text())["panels"]:
            for target in panel.get("targets", ()):
                name = f"{path.stem}: {panel['title']} {target['refId']}"
                found.append(pytest.param(target["expr"], id=name))
    return found


@pytest.mark.parametrize("query", _queries())
async def test_every_panel_has_something_to_draw(watched: Watched, query: str) -> None:
    asked = query.replace("$__rate_interval", RATE_INTERVAL).replace("$job_id", ".+")

    async def drawn() -> list[float]:
        return await watched.prometheus.points(asked)

    assert await until(drawn, within_s=10, every_s=0.5, what=asked)


async def test_what_is_drawn_is_what_happened(watched: Watched) -> None:
    async def is_counted() -> bool:
        created = await watched.prometheus.ask("query", query="sum(luthier_jobs_created_total)")
        ended = await watched.prometheus.ask("query", query='sum(luthier_jobs_finished_total{status="succeeded"})')
        return [one["result"][0]["value"][1] for one in (created, ended)] == ["2", "2"]

    await until(is_counted, within_s=10, every_s=0.5, what="two jobs, both succeeded")
    seen = watched.prometheus
    assert max(await seen.points("max(luthier_train_attempt)")) == 2
    assert max(await seen.points('max(luthier_slots{state="used"})')) >= 1
    assert max(await seen.points("sum(luthier_scheduler_active)")) == 1
    assert max(await seen.points("sum(luthier_jobs_placed_total)")) == 4
    assert max(await seen.points("sum(luthier_dead_letters_total)")) == 0
    assert max(await seen.points("sum(luthier_train_tokens_total)")) > 0
    assert sum((await seen.points('sum(luthier_run_duration_seconds_count{outcome="failed"})'))[-1:]) == 2
    unknown = await seen.points('http_server_request_duration_seconds_count{http_response_status_code="404"}')
    assert unknown[-1] >= 2
    assert await seen.points('http_server_request_duration_seconds_count{http_response_status_code="401"}')


async def test_a_job_that_has_ended_leaves_no_gauge_behind(watched: Watched) -> None:
    async def is_gone() -> bool:
        return not (await watched.prometheus.ask("query", query='{__name__=~"luthier_train_.*", job_id!=""}'))["result"]

    await until(is_gone, within_s=10, every_s=0.5, what="no series of a job")


async def test_every_metric_of_an_alert_is_measured_and_every_rule_can_be_evaluated(watched: Watched) -> None:
    names = set(await watched.prometheus.ask("label/__name__/values"))
    wanted = set(re.findall(r"\b(?:luthier_\w+|http_server_\w+)", _expressions(ALERTS.read_text())))
    assert wanted
    assert wanted <= names
    groups = (await watched.prometheus.ask("rules"))["groups"]
    assert {rule["health"] for group in groups for rule in group["rules"]} == {"ok"}
    assert not [alert for alert in (await watched.prometheus.ask("alerts"))["alerts"] if alert["state"] == "firing"]


def _expressions(rules: str) -> str:
    return "\n".join(re.findall(r"expr: (.+?)(?:for|labels):", rules, re.DOTALL))


async def test_every_service_is_scraped_under_its_name(watched: Watched) -> None:
    wanted = {f"luthier-{name}": "1" for name in watched.stack.settings.services}

    async def are_all_up() -> bool:
        up = await watched.prometheus.ask("query", query="up")
        return {line["metric"]["service_name"]: line["value"][1] for line in up["result"]} == wanted

    await until(are_all_up, within_s=10, every_s=0.5, what=f"a good scrape of just {sorted(wanted)}")


async def _spans_of(watched: Watched, job: Doc, *wanted: str) -> list[Span]:
    """All spans, once the named ones of this job have come."""

    async def arrived() -> list[Span]:
        spans = watched.collector.all_spans()
        names = {span.name for span in spans if span.job_id == job["_id"]}
        return spans if names >= set(wanted) else []

    return await until(arrived, within_s=15, every_s=0.2, what=f"{wanted} of {job['_id']}")


async def test_from_the_request_to_the_placement_it_is_one_trace(watched: Watched) -> None:
    job = watched.jobs[0]
    spans = await _spans_of(watched, job, "hear JobPlaced", "scheduler.place", "validator.check_job")
    trace = job["trace"].split("-")[1]
    in_trace = {(span.service, span.name) for span in spans if span.trace == trace}
    assert ("luthier-api", "POST /v1/fine_tuning/jobs") in in_trace
    assert ("luthier-file-validator", "hear JobCreated") in in_trace
    assert ("luthier-file-validator", "validator.check_job") in in_trace
    assert ("luthier-scheduler", "hear DataAccepted") in in_trace
    assert ("luthier-scheduler", "scheduler.place") in in_trace
    assert ("luthier-trainer", "hear JobPlaced") in in_trace
    assert not [name for _, name in in_trace if name.startswith(("trainer.", "inference.", "registry."))]


async def test_every_attempt_is_a_trace_of_its_own_that_is_linked_to_the_request(watched: Watched) -> None:
    job = watched.jobs[0]
    spans = await _spans_of(watched, job, "trainer.run", "inference.verify", "registry.register")
    request = job["trace"].split("-")[1]
    runs = {int(span.attributes["luthier.attempt"]): span for span in spans if _is(span, "trainer.run", job)}
    assert sorted(runs) == [1, 2]
    assert [run.links for run in runs.values()] == [(request,), (request,)]
    assert len({request, runs[1].trace, runs[2].trace}) == 3
    first, second = ({(s.service, s.name) for s in spans if s.trace == runs[n].trace} for n in (1, 2))
    for attempt in (first, second):
        assert ("luthier-trainer", "trainer.prepare") in attempt
        assert ("luthier-trainer", "trainer.save_checkpoint") in attempt
        assert ("luthier-scheduler", "hear RunStarted") in attempt
    assert ("luthier-scheduler", "hear RunFailed") in first
    assert {name for _, name in first}.isdisjoint({"registry.stage", "registry.register", "inference.verify"})
    for told in (
        ("luthier-registry", "hear RunFinished"),
        ("luthier-registry", "registry.stage"),
        ("luthier-inference", "hear ArtifactStaged"),
        ("luthier-inference", "inference.verify"),
        ("luthier-registry", "registry.register"),
    ):
        assert told in second, told
    registered = await watched.workshop.db["events"].find_one({"thing": job["_id"], "type": "ModelRegistered"})
    assert registered is not None
    assert registered["trace"].split("-")[1] == runs[2].trace


def _is(span: Span, name: str, job: Doc) -> bool:
    return span.name == name and span.job_id == job["_id"]


async def test_steps_are_metrics_and_never_spans(watched: Watched) -> None:
    assert not [span.name for span in watched.collector.all_spans() if "StepCompleted" in span.name]


async def test_no_prompt_and_no_secret_is_told(watched: Watched) -> None:
    told = json.dumps(watched.collector.got)
    parts = urlsplit(watched.stack.env["LUTHIER_MONGO_URL"])
    secrets = [watched.stack.admin_key, watched.stack.env["LUTHIER_INTERNAL_TOKEN"], unquote(parts.password or "")]
    for secret in (*secrets, QUESTION, "Where is parcel", "arrives on day"):
        assert secret
        assert secret not in told
