"""`python -m luthier_api.reference [--check]`: the documents that are made from the API itself.

Writes `docs/openapi.json` and `docs/errors.md`; `--check` changes nothing and names what is out of date.
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any, cast

from luthier_api.app import build_app
from luthier_api.deps import Process
from luthier_api.errors import ErrorCode
from luthier_api.keys import KeyRing
from luthier_api.settings import ApiSettings
from luthier_common.contract.tables import reasons_table
from luthier_common.kit.health import Health
from luthier_datachecks import CODES

CHECKOUT = Path(__file__).resolve().parents[4]
ERRORS_HEAD = """# Errors

Every error has one shape, in every dialect:

```json
{"error": {"message": "for people", "type": "...", "param": "what it is about, or null", "code": "stable",
           "request_id": "req_..."}}
```

`code` is stable and is what programs should look at; `message` may change. `request_id` is also the header
`x-request-id`; the logs hold it.
Answers with status 429 and 503 carry `retry-after`; what must not be tried again carries `x-should-retry: false`.

Within a stream that has begun the status is 200, and the request's id is in the header alone. A chat that breaks off
ends with `data: {"error": ...}` of this shape without `request_id`; at `/chat/completions/stream` with `event: error`
and a sentence; a response with `response.failed`, whose `error` has the code `server_error`. The event that ends a
whole answer does not come then.

## Of a request

"""
REASONS_HEAD = """
## Of a job

A job that failed says why in `error`: `code` as below, or one of the [table after it](#of-a-row) when a data file was
refused; `owner` (whose move it is), `retryable` (whether the same job may succeed if it is tried again), `message`,
`param` and, for rows, `line`.

"""
ROWS_HEAD = """
## Of a row

What a data file is refused for, and what it is only warned of.

"""


def make_hollow_app() -> Any:
    """The application with nothing open behind it: it can be described, not called."""
    settings = ApiSettings(mongo_url="mongodb://x", kafka_url="x:1", objects_url="file:///nowhere")
    nothing = cast("Any", None)
    keys = KeyRing(nothing, b"", cache_s=5)
    return build_app(Process(settings, nothing, nothing, nothing, keys, nothing, Health()))


def documents(root: Path) -> dict[Path, str]:
    """Every generated file with what it should hold."""
    described = make_hollow_app().openapi_schema.to_schema()
    return {
        root / "docs/openapi.json": json.dumps(described, indent=1, ensure_ascii=False) + "\n",
        root / "docs/errors.md": "\n".join(
            (ERRORS_HEAD + errors_table(), REASONS_HEAD + reasons_table(), ROWS_HEAD + rows_table(), "")
        ),
    }


def errors_table() -> str:
    rows = sorted({(error.status, error.code, error.type, error.sentence) for error in ErrorCode})
    lines = [f"| {status} | `{code}` | `{kind}` | {sentence} |" for status, code, kind, sentence in rows]
    return "\n".join(["| status | code | type | what it means |", "| --- | --- | --- | --- |", *lines])


def rows_table() -> str:
    rows = [f"| `{name}` | {code.severity} | {code.sentence} |" for name, code in CODES.items()]
    return "\n".join(["| code | severity | what it means |", "| --- | --- | --- |", *rows])


def main(arguments: list[str] | None = None) -> int:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m luthier_api.reference", description=__doc__)
    parser.add_argument("--check", action="store_true", help="change nothing; fail when something is out of date")
    options = parser.parse_args(arguments)
    wanted = documents(CHECKOUT)
    changed = [path for path, text in wanted.items() if not path.is_file() or path.read_text(encoding="utf-8") != text]
    for path in changed:
        sys.stdout.write(f"{'out of date' if options.check else 'written'}: {path.relative_to(CHECKOUT)}\n")
        if not options.check:
            path.write_text(wanted[path], encoding="utf-8")
    return 1 if options.check and changed else 0


if __name__ == "__main__":
    sys.exit(main())
