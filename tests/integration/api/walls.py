"""What tests of walls need: strangers, and every operation of the document asked for things that are there."""

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import httpx2

from builders.engines import Engine, joined
from integration.api.conftest import TINY, Api
from integration.api.tenants import SECRET, Tenant, Things, neighbour

DIALECTS = ("/v1/", "/api/v1/llm/")
PUBLIC = {"/healthz", "/readyz"}
JSON, FORM = "application/json", "multipart/form-data"
GRADER = {"type": "string_check", "name": "g", "input": "{{sample.output_text}}", "reference": "a", "operation": "eq"}
ASKED = {"model": "{model}", "messages": [{"role": "user", "content": "hi"}]}
BODIES: dict[str, Any] = {
    "create_fine_tuning_job": {"model": TINY, "training_file": "{file_id}"},
    "validate_fine_tuning_job": {"model": TINY, "training_file": "{file_id}"},
    "run_grader": {"grader": GRADER, "model_sample": "a"},
    "validate_grader": {"grader": GRADER},
    "create_chat_completion": ASKED,
    "stream_chat_completion": ASKED,
    "create_response": {"model": "{model}", "input": "hi", "previous_response_id": "{response_id}"},
    "create_upload": {"bytes": 4, "filename": "u.jsonl", "mime_type": "text/plain", "purpose": "fine-tune"},
    "complete_upload": {"part_ids": ["{part_id}"]},
    "create_checkpoint_permissions": {"project_ids": ["{project_id}"]},
    "create_project": {"name": "further"},
    "modify_project": {"name": "renamed"},
    "create_user": {"email": "further@walls.example"},
    "modify_user": {"role": "reader"},
    "add_project_user": {"role": "member", "user_id": "{user_id}"},
    "modify_project_user": {"role": "owner"},
    "create_project_api_key": {"name": "further", "scopes": ["files:read"], "user_id": "{user_id}"},
    "rotate_project_api_key": {"keep_old_for_seconds": 0},
    "create_admin_api_key": {"name": "further"},
    "create_service_account": {"name": "further"},
    "modify_service_account": {"name": "renamed"},
    "create_service_account_api_key": {"name": "further"},
}
FORMS: dict[str, Any] = {
    "create_file": {"files": {"file": ("further.jsonl", SECRET)}, "data": {"purpose": "fine-tune"}},
    "add_upload_part": {"files": {"data": ("part", b"efgh")}},
}
QUERIES = {"list_models": {"after": "{model}"}, "list_checkpoint_permissions": {"project_id": "{project_id}"}}
PLACES = {
    "list_checkpoint_permissions": {"{path_tail}": "{checkpoint}/permissions"},
    "create_checkpoint_permissions": {"{path_tail}": "{checkpoint}/permissions"},
    "delete_checkpoint_permission": {"{path_tail}": "{checkpoint}/permissions/{permission_id}"},
    "retrieve_admin_api_key": {"{key_id}": "{admin_key_id}"},
    "delete_admin_api_key": {"{key_id}": "{admin_key_id}"},
    "cancel_upload": {"{upload_id}": "{other_upload_id}"},
}
"""Where a path's parameter is filled with something else than the thing of that name."""
NAMELESS = {
    *("create_file", "list_files", "create_upload", "list_fine_tuning_jobs", "retrieve_fine_tuning_capacity"),
    *("run_grader", "validate_grader", "list_audit_logs", "list_projects", "create_project", "list_users"),
    *("create_user", "list_admin_api_keys", "create_admin_api_key"),
}
"""Operations that are asked for nothing in particular."""
OTHER_STATES = {
    *("cancel_fine_tuning_job", "pause_fine_tuning_job", "resume_fine_tuning_job", "cancel_response"),
    "archive_project",
}
"""What the owner is answered 409: the job has succeeded, the response is there, the project is the key's own."""
WITH_OTHER_NAMES = {"retrieve_file", "download_file", "retrieve_model", "create_chat_completion"}
"""What the owner may ask of a checkpoint and its weights as well."""
TABLES = (BODIES, FORMS, QUERIES, PLACES, NAMELESS, OTHER_STATES, WITH_OTHER_NAMES)
VARYING = ("date", "x-request-id", "x-ratelimit-")
METHODS = ("GET", "POST", "DELETE")


@dataclass(frozen=True)
class Operation:
    """An operation of the document; `name` is the same in all dialects."""

    name: str
    method: str
    path: str
    body: str | None

    @property
    def place(self) -> str:
        """The path, with the names of things in it."""
        path = self.path
        for parameter, thing in PLACES.get(self.name, {}).items():
            path = path.replace(parameter, thing)
        return path

    @property
    def things(self) -> set[str]:
        """The names of the things that it is asked for."""
        texts = (self.place, json.dumps(BODIES.get(self.name)), json.dumps(QUERIES.get(self.name)))
        return {name for text in texts for name in re.findall(r"\{(\w+)\}", text)}

    @property
    def is_list(self) -> bool:
        """Of all that somebody has; asked for without a cursor it names nothing."""
        return self.method == "GET" and "{" not in self.path

    @property
    def is_of_organisation(self) -> bool:
        return "/organization/" in self.path

    @property
    def is_administration(self) -> bool:
        return self.is_of_organisation or "/checkpoints/{path_tail}" in self.path


@dataclass(frozen=True)
class Way:
    """A way to ask: by the ids of things that are there, and by the same with ids that name nothing.

    `through` are the names that stand for something else than usual; of those, `own` for what is the asker's own.
    """

    foreign: Things
    absent: Things
    through: frozenset[str] = frozenset()
    own: frozenset[str] = frozenset()

    def concerns(self, operation: Operation) -> bool:
        through = not self.through or bool(operation.things & self.through)
        return through and bool(operation.things - self.own)


def ways(things: Things, own_project: str) -> Iterator[Way]:
    nothing = unknown(things)
    yield Way(things, nothing)
    for others in ({"file_id": "weights_id", "model": "checkpoint"}, {"file_id": "filename"}):
        foreign, absent = ({name: known[other] for name, other in others.items()} for known in (things, nothing))
        yield Way(things | foreign, nothing | absent, frozenset(others))
    for own in ({"model": TINY}, {"project_id": own_project}):
        yield Way(things | own, nothing | own, frozenset(own), frozenset(own))


def unknown(things: Things) -> Things:
    """Names of the same form and length that name nothing."""
    return {name: re.sub(r"(?<![0-9a-f])[0-9a-f]{12}", "ffeeffeeffee", text) for name, text in things.items()}


async def operations(api: Api, below: str = "/") -> list[Operation]:
    """All of the document, or those of one dialect."""
    async with api.http() as http:
        paths = (await http.get("/docs/openapi.json")).json()["paths"]
    return [
        Operation(
            operation["operationId"].removeprefix("mka1_"),
            method.upper(),
            path,
            next(iter(operation.get("requestBody", {}).get("content", {})), None),
        )
        for path, methods in paths.items()
        for method, operation in methods.items()
        if path not in PUBLIC and path.startswith(below)
    ]


def cores(things: Things) -> Things:
    """What is the same of a name in every dialect's spelling."""
    return {name: re.split(r"[-_]", thing)[-1] if "_id" in name else thing for name, thing in things.items()}


def filled(text: str, things: Things) -> str:
    """KeyError for a name that no thing has: nothing is asked for that is not there."""
    return re.sub(r"\{(\w+)\}", lambda match: things[match[1]], text)


async def ask(http: httpx2.AsyncClient, operation: Operation, things: Things) -> httpx2.Response:
    sent = dict(FORMS.get(operation.name, {}))
    for kind, table in (("json", BODIES), ("params", QUERIES)):
        if operation.name in table:
            sent[kind] = json.loads(filled(json.dumps(table[operation.name]), things))
    return await http.request(operation.method, filled(operation.place, things), **sent)


def seen(answer: httpx2.Response, things: Things) -> tuple[int, str, set[tuple[str, str]]]:
    """The answer without what must differ: the ids that were asked for, the request's own id, clocks and counters."""
    text = re.sub(r"req_[0-9a-f]{32}", "", answer.text)
    for thing in sorted(things.values(), key=len, reverse=True):
        text = text.replace(thing, "")
    headers = {(name, value) for name, value in answer.headers.items() if not name.startswith(VARYING)}
    return answer.status_code, text, headers


async def walk(stranger: Tenant, mine: Tenant, asked: Sequence[Operation]) -> int:
    """Ask for what is not the stranger's and for what is not there; how often the answers were the same."""
    num_asked = 0
    async with stranger.http() as http:
        for way in ways(mine.things, stranger.project):
            for operation in asked:
                if not way.concerns(operation) or (operation.is_of_organisation and stranger.org == mine.org):
                    continue
                foreign, none = await ask(http, operation, way.foreign), await ask(http, operation, way.absent)
                where = (operation, way.through, foreign.text[:300], none.text[:300])
                assert seen(foreign, way.foreign) == seen(none, way.absent), where
                assert foreign.status_code in (400, 404) or operation.name == "validate_fine_tuning_job", where
                num_asked += 1
    return num_asked


async def get_own(owner: Tenant, asked: Sequence[Operation]) -> None:
    """The positive control: whose things they are gets them, under all their names. What is inside goes first."""
    by_id, by_other_name, by_filename = [way.foreign for way in ways(owner.things, owner.project)][:3]
    steps = [(operation, by_id) for operation in asked]
    steps += [(step, by_other_name) for step in asked if step.name in WITH_OTHER_NAMES]
    steps += [(step, by_filename) for step in asked if step.name == "validate_fine_tuning_job"]
    async with owner.http() as http, joined(owner.api.db, Engine(f"engine-{owner.project}-again"), TINY):
        for operation, things in sorted(steps, key=_turn):
            answer = await ask(http, operation, things)
            wanted = 409 if operation.name in OTHER_STATES else 200
            assert answer.status_code == wanted, (operation, answer.text[:300])
            assert operation.name in NAMELESS or "not_found" not in answer.text, (operation, answer.text[:300])


def _turn(step: tuple[Operation, Things]) -> tuple[int, int]:
    operation = step[0]
    return METHODS.index(operation.method), -len(operation.path) if operation.method == "DELETE" else 0


async def strangers(mine: Tenant) -> list[Tenant]:
    """They may do everything, but not here: of another project of the organisation, and of another organisation."""
    return [await neighbour(mine.api, mine.org), await neighbour(mine.api)]
