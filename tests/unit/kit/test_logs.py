"""Log lines: one format, with what is bound, without what is secret."""

import asyncio
import json
import logging
from collections.abc import Iterator
from typing import Any

import pytest
from opentelemetry import trace
from pydantic import BaseModel, ValidationError

from luthier_common.kit.logs import JsonFormatter, RateLimit, TextFormatter, bind, safe_traceback, start_logs
from luthier_common.kit.telemetry import use_traceparent


class Lines:
    """What was written to stderr since the last look."""

    def __init__(self, capsys: pytest.CaptureFixture[str]) -> None:
        self._capsys = capsys

    def text(self) -> str:
        return self._capsys.readouterr().err

    def lines(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.text().splitlines()]


@pytest.fixture
def stderr(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Iterator[Lines]:
    root = logging.getLogger()
    level, raises = root.level, logging.raiseExceptions
    monkeypatch.setenv("LUTHIER_LOG_FORMAT", "json")
    yield Lines(capsys)
    for handler in root.handlers[:]:
        if isinstance(handler.formatter, JsonFormatter | TextFormatter):
            root.removeHandler(handler)
    root.setLevel(level)
    logging.raiseExceptions = raises
    logging.captureWarnings(False)


def test_a_line_is_one_object_with_the_common_keys(stderr: Lines) -> None:
    start_logs("api")
    logging.getLogger("luthier_api.files").info("stored %d bytes", 3, extra={"file_id": "file-1"})
    (line,) = stderr.lines()
    assert line.pop("at").endswith("Z")
    assert line == {
        "level": "info",
        "service": "api",
        "logger": "luthier_api.files",
        "message": "stored 3 bytes",
        "file_id": "file-1",
    }


async def test_bound_fields_follow_their_task_only(stderr: Lines) -> None:
    start_logs("api")
    log = logging.getLogger("luthier_api")

    async def work(job_id: str) -> None:
        with bind(job_id=job_id):
            await asyncio.sleep(0)
            log.info("working")
        log.info("done")

    await asyncio.gather(work("ftjob-1"), work("ftjob-2"))
    told = [(line["message"], line.get("job_id")) for line in stderr.lines()]
    assert sorted(told, key=str) == [("done", None), ("done", None), ("working", "ftjob-1"), ("working", "ftjob-2")]


def test_a_line_inside_a_trace_names_it(stderr: Lines) -> None:
    start_logs("api")
    with use_traceparent("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"):
        assert trace.get_current_span().get_span_context().is_valid
        logging.getLogger("x").info("inside")
    assert stderr.lines()[0]["trace_id"] == "0af7651916cd43dd8448eb211c80319c"


def test_an_error_is_told_without_the_input_that_broke_it(stderr: Lines) -> None:
    class Key(BaseModel):
        token: int

    start_logs("api")
    try:
        try:
            Key.model_validate({"token": "sk-" + "canary"})
        except ValidationError as error:
            raise RuntimeError("cannot read the key") from error
    except RuntimeError:
        logging.getLogger("x").exception("failed")
    text = stderr.text()
    line = json.loads(text)
    assert "sk-canary" not in text
    assert "RuntimeError: cannot read the key" in line["error"]
    assert "ValidationError: token: int_parsing" in line["error"]
    assert "test_logs.py" in line["error"]


def test_all_errors_of_a_group_are_told() -> None:
    group = ExceptionGroup("two", [ValueError("first"), KeyError("second")])
    assert "ValueError: first" in safe_traceback(group)
    assert "KeyError: 'second'" in safe_traceback(group)


def test_a_person_gets_plain_text(stderr: Lines, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LUTHIER_LOG_FORMAT", "text")
    start_logs("api")
    with bind(job_id="ftjob-1"):
        logging.getLogger("x").warning("slow")
    assert stderr.text().endswith("WARN api: slow job_id=ftjob-1\n")


def test_a_noisy_library_is_cut_short_and_counted() -> None:
    limit = RateLimit(("aiokafka",), burst=2, window_s=0.0)
    limit_long = RateLimit(("aiokafka",), burst=2, window_s=60.0)

    def record(name: str) -> logging.LogRecord:
        return logging.LogRecord(name, logging.ERROR, "conn.py", 7, "Unable connect to node", None, None)

    assert [limit_long.filter(record("aiokafka.conn")) for _ in range(5)] == [True, True, False, False, False]
    assert all(limit_long.filter(record("luthier_api")) for _ in range(5))
    limit._seen[("conn.py", 7)] = (0.0, 9)
    late = record("aiokafka.conn")
    assert limit.filter(late)
    assert late.__dict__["left_out"] == 7
