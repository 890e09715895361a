"""Log lines: one JSON object a line on stderr, the same keys in every service; plain text for a person at a terminal.

Keys: `at, level, service, logger, message`, then what is bound (`job_id`, ...), `trace_id` and `span_id` inside a
trace, what the call gave as `extra`, and `error` with a redacted traceback.
"""

import json
import logging
import os
import sys
import time
import traceback
from contextvars import ContextVar, Token
from datetime import UTC, datetime
from types import TracebackType

from opentelemetry import trace
from pydantic_core import ValidationError

_NOISY = ("aiokafka", "pymongo", "botocore", "aiobotocore", "urllib3", "opentelemetry", "faststream")
_PLAIN = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}
_bound: ContextVar[dict[str, object]] = ContextVar("luthier_log_fields", default={})  # noqa: B039 (never changed in place)


class bind:  # noqa: N801 (reads as a verb: `with bind(job_id=job_id):`)
    """Adds fields to every line of this task and of tasks that it starts; as a context manager, until its end."""

    def __init__(self, **fields: object) -> None:
        self._token: Token[dict[str, object]] = _bound.set(_bound.get() | fields)

    def __enter__(self) -> None:
        return None

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace_back: TracebackType | None
    ) -> None:
        _bound.reset(self._token)


def start_logs(service: str) -> None:
    """Sends all logging of this process to stderr. `LUTHIER_LOG_LEVEL` (INFO), `LUTHIER_LOG_FORMAT` (json, text)."""
    level = os.environ.get("LUTHIER_LOG_LEVEL", "INFO").upper()
    form = os.environ.get("LUTHIER_LOG_FORMAT") or ("text" if sys.stderr.isatty() else "json")
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(TextFormatter(service) if form == "text" else JsonFormatter(service))
    handler.addFilter(BoundFields())
    handler.addFilter(RateLimit(_NOISY))
    root = logging.getLogger()
    for old in root.handlers[:]:
        root.removeHandler(old)
    root.addHandler(handler)
    root.setLevel(level if level in logging.getLevelNamesMapping() else "INFO")
    for name in _NOISY:
        logging.getLogger(name).setLevel(logging.WARNING)
    logging.captureWarnings(True)
    # A reader of stderr that went away must not make every log call print a traceback to the same place.
    logging.raiseExceptions = False


class BoundFields(logging.Filter):
    """Copies the bound fields and the trace onto each record, so that every handler sees them."""

    def filter(self, record: logging.LogRecord) -> bool:
        for name, value in _bound.get().items():
            record.__dict__.setdefault(name, value)
        span = trace.get_current_span().get_span_context()
        if span.is_valid:
            record.__dict__.setdefault("trace_id", trace.format_trace_id(span.trace_id))
            record.__dict__.setdefault("span_id", trace.format_span_id(span.span_id))
        return True


class RateLimit(logging.Filter):
    """Lets `burst` records of one place through per `window_s` for loggers that repeat themselves by the hundred.

    The first record of a later window says how many were left out.
    """

    def __init__(self, prefixes: tuple[str, ...], *, burst: int = 3, window_s: float = 30.0) -> None:
        super().__init__()
        self._prefixes = prefixes
        self._burst = burst
        self._window_s = window_s
        self._seen: dict[tuple[str, int], tuple[float, int]] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        if record.name.split(".", 1)[0] not in self._prefixes:
            return True
        now, place = time.monotonic(), (record.pathname, record.lineno)
        since, count = self._seen.get(place, (now, 0))
        if now - since >= self._window_s:
            if count > self._burst:
                record.__dict__["left_out"] = count - self._burst
            since, count = now, 0
        self._seen[place] = (since, count + 1)
        return count < self._burst


class JsonFormatter(logging.Formatter):
    """One JSON object a line."""

    def __init__(self, service: str) -> None:
        super().__init__()
        self._service = service

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, object] = {
            "at": _at(record),
            "level": record.levelname.lower(),
            "service": self._service,
            "logger": record.name,
            "message": record.getMessage(),
        }
        line |= _extra(record)
        if record.exc_info and record.exc_info[1] is not None:
            line["error"] = safe_traceback(record.exc_info[1])
        return json.dumps(line, ensure_ascii=False, default=str)


class TextFormatter(logging.Formatter):
    """The same for a person."""

    def __init__(self, service: str) -> None:
        super().__init__()
        self._service = service

    def format(self, record: logging.LogRecord) -> str:
        fields = "".join(f" {name}={value}" for name, value in _extra(record).items() if name != "span_id")
        text = f"{_at(record)[11:23]} {record.levelname[:4]} {self._service}: {record.getMessage()}{fields}"
        if record.exc_info and record.exc_info[1] is not None:
            text += "\n" + safe_traceback(record.exc_info[1])
        return text


def safe_traceback(error: BaseException) -> str:
    """The traceback of an error and its causes, oldest first, without the input that a validation error quotes."""
    chain = [error]
    while (cause := _cause(chain[-1])) is not None and cause not in chain:
        chain.append(cause)
    return "\nwhich led to\n".join(_told(link) for link in reversed(chain))


def _cause(error: BaseException) -> BaseException | None:
    return error.__cause__ or (None if error.__suppress_context__ else error.__context__)


def _told(error: BaseException) -> str:
    text = "".join(traceback.format_tb(error.__traceback__)) + f"{type(error).__name__}: {_safe_text(error)}"
    if isinstance(error, BaseExceptionGroup):
        text += "".join(f"\n- {safe_traceback(inner)}" for inner in error.exceptions)
    return text


def _safe_text(error: BaseException) -> str:
    if not isinstance(error, ValidationError):
        return str(error)
    problems = error.errors(include_input=False, include_url=False, include_context=False)
    return "; ".join(f"{'.'.join(map(str, problem['loc']))}: {problem['type']}" for problem in problems)


def _extra(record: logging.LogRecord) -> dict[str, object]:
    return {name: value for name, value in vars(record).items() if name not in _PLAIN}


def _at(record: logging.LogRecord) -> str:
    return datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
