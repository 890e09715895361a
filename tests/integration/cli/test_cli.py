"""The `luthier` command against a real api, started as people start it."""

import asyncio
import json
from asyncio.subprocess import Process
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import urlsplit

from builders.lossy_proxy import lossy_proxy
from luthier_common.kit.mongo import Database


class Ran(Protocol):
    status: int
    out: str
    err: str


class Server(Protocol):
    url: str
    home: Path
    db: Database


Luthier = Callable[..., Awaitable[Ran]]


async def said(luthier: Luthier, *words: str) -> Any:
    """The JSON that a verb that works shows."""
    ran = await luthier(*words, "--json")
    assert ran.status == 0, ran.err
    return json.loads(ran.out)


def rows(count: int = 10) -> str:
    row = {"messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "hello"}]}
    return "\n".join(json.dumps(row) for _ in range(count))


async def test_it_is_a_program(luthier_process: Luthier) -> None:
    ran = await luthier_process("models", "list", "--json")
    assert (ran.status, ran.err) == (0, "")
    assert "tiny-base" in [model["id"] for model in json.loads(ran.out)]


async def test_keys_are_made_listed_rotated_and_revoked(luthier: Luthier, server: Server) -> None:
    ran = await luthier(
        *("keys", "create", "ci", "--scope", "files:read", "--scope", "models:read"),
        *("--expires-in", "3600", "--rate-limit", "600"),
    )
    assert ran.status == 0, ran.err
    fields = dict(line.split(maxsplit=1) for line in ran.out.splitlines())
    assert fields["scopes"] == "files:read,models:read"
    assert fields["rate_limit"] == "600"
    assert "only time" in ran.err
    env = {"LUTHIER_BASE_URL": server.url, "LUTHIER_API_KEY": fields["value"]}
    assert (await luthier("files", "list", env=env)).status == 0

    listed = await luthier("keys", "list")
    assert fields["id"] in listed.out
    assert fields["value"] not in listed.out
    assert fields["value"] not in (server.home / "log").read_text()

    rotated = await said(luthier, "keys", "rotate", fields["id"], "--keep-old-for", "60")
    assert (rotated["id"], rotated["rate_limit"]) == (fields["id"], 600)
    for value in (fields["value"], rotated["value"]):
        assert (await luthier("files", "list", env=env | {"LUTHIER_API_KEY": value})).status == 0

    assert (await said(luthier, "keys", "revoke", fields["id"]))["deleted"]
    refused = await luthier("files", "list", env=env)
    assert (refused.status, refused.out) == (1, "")
    assert "code invalid_api_key" in refused.err


async def test_projects_and_the_keys_in_them(luthier: Luthier, server: Server) -> None:
    made = await said(luthier, "projects", "create", "Second")
    try:
        assert made["id"] in (await luthier("projects", "list")).out
        unclear = await luthier("keys", "list")
        assert unclear.status == 1
        assert "--project" in unclear.err
        key = await said(luthier, "keys", "create", "k", "--scope", "files:read", "--project", made["id"])
        assert key["id"] in (await luthier("keys", "list", "--project", made["id"])).out
        assert (await said(luthier, "keys", "revoke", key["id"]))["id"] == key["id"]
    finally:
        archived = await said(luthier, "projects", "archive", made["id"])
    assert archived["status"] == "archived"
    assert made["id"] not in (await luthier("projects", "list")).out
    assert made["id"] in (await luthier("projects", "list", "--archived")).out


async def test_files_go_up_and_away(luthier: Luthier, tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text(rows())
    [file] = await said(luthier, "files", "upload", "rows.jsonl")
    assert file["filename"] == "rows.jsonl"
    assert file["id"] in (await luthier("files", "list")).out
    [gone] = await said(luthier, "files", "delete", file["id"])
    assert gone["deleted"]
    assert file["id"] not in (await luthier("files", "list")).out


async def test_what_was_uploaded_is_shown_though_a_later_file_is_refused(luthier: Luthier, tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text(rows())
    (tmp_path / "empty.jsonl").write_text("")
    ran = await luthier("files", "upload", "rows.jsonl", "empty.jsonl", "--json")
    assert ran.status == 1
    assert "empty" in ran.err
    [file] = json.loads(ran.out)
    deleted = await luthier("files", "delete", file["id"], "file-none", "--json")
    assert (deleted.status, json.loads(deleted.out)[0]["id"]) == (1, file["id"])


async def test_a_job_is_followed_to_its_very_last_event(
    luthier: Luthier, luthier_process: Luthier, tmp_path: Path
) -> None:
    (tmp_path / "rows.jsonl").write_text(rows())
    job_id = (await said(luthier, "jobs", "create", "tiny-base", "rows.jsonl"))["id"]
    following = asyncio.create_task(luthier_process("jobs", "events", job_id, "--follow", "--json"))
    await said(luthier, "jobs", "cancel", job_id)
    followed = await following
    assert followed.status == 0, followed.err
    listed = await luthier("jobs", "events", job_id, "--json")
    assert followed.out == listed.out
    assert "cancelled" in followed.out.splitlines()[-1]


async def test_a_follower_whose_connection_breaks_misses_nothing(
    luthier: Luthier, luthier_started: Callable[..., Awaitable[Process]], server: Server, tmp_path: Path
) -> None:
    (tmp_path / "rows.jsonl").write_text(rows())
    job_id = (await said(luthier, "jobs", "create", "tiny-base", "rows.jsonl"))["id"]
    port, key = urlsplit(server.url).port, (server.home / "admin-key").read_text().strip()
    assert port is not None
    async with lossy_proxy(port) as proxy:
        env = {"LUTHIER_BASE_URL": f"http://127.0.0.1:{proxy.port}/v1", "LUTHIER_API_KEY": key}
        follower = await luthier_started("jobs", "events", job_id, "--follow", "--json", env=env)
        assert follower.stdout is not None
        first = await asyncio.wait_for(follower.stdout.readline(), 60)
        proxy.lose(1)
        await said(luthier, "jobs", "cancel", job_id)
        rest, _ = await asyncio.wait_for(follower.communicate(), 60)
    assert proxy.num_lost == 1
    assert follower.returncode == 0
    assert (first + rest).decode() == (await luthier("jobs", "events", job_id, "--json")).out


async def test_the_life_of_a_job(luthier: Luthier, tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text(rows())
    ran = await luthier(
        *("jobs", "create", "tiny-base", "rows.jsonl", "--suffix", "cli", "--seed", "7", "--metadata", "team=a"),
        *("-p", "n_epochs=2", "-p", "batch_size=auto", "--json"),
    )
    assert ran.status == 0, ran.err
    assert "uploaded rows.jsonl as file-" in ran.err
    job = json.loads(ran.out)
    assert (job["seed"], job["metadata"], job["hyperparameters"]["n_epochs"]) == (7, {"team": "a"}, 2)
    assert job["id"] in (await luthier("jobs", "list")).out
    assert (await luthier("jobs", "get", job["id"])).out.startswith("id ")

    wrong = await luthier("jobs", "resume", job["id"])
    assert wrong.status == 1
    assert "code invalid_state" in wrong.err
    cancelled = await said(luthier, "jobs", "cancel", job["id"])
    assert cancelled["status"] == "cancelled"
    followed = await luthier("jobs", "events", job["id"], "--follow")
    assert followed.status == 0, followed.err
    lines = followed.out.splitlines()
    assert lines == sorted(lines, key=lambda line: line[:19]), "oldest first"
    assert len(lines) == len(set(lines))


async def test_a_job_that_has_ended_is_deleted(luthier: Luthier, tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text(rows())
    job_id = (await said(luthier, "jobs", "create", "tiny-base", "rows.jsonl"))["id"]
    early = await luthier("jobs", "delete", job_id)
    assert early.status == 1
    assert "code invalid_state" in early.err
    await said(luthier, "jobs", "cancel", job_id)
    gone = await said(luthier, "jobs", "delete", job_id, "--with-model")
    assert (gone["id"], gone["deleted"]) == (job_id, True)
    assert job_id not in (await luthier("jobs", "list")).out
    again = await luthier("jobs", "delete", job_id)
    assert "code not_found" in again.err


async def test_models(luthier: Luthier) -> None:
    assert "tiny-base" in (await luthier("models", "list")).out
    refused = await luthier("models", "delete", "tiny-base")
    assert refused.status == 1
    assert "code base_model_not_deletable" in refused.err


async def test_chat_says_when_nothing_can_answer(luthier: Luthier) -> None:
    ran = await luthier("chat", "no-such-model", "hello")
    assert ran.status == 1
    assert "code model_not_found" in ran.err


async def test_an_error_is_one_line_with_code_and_request(luthier_process: Luthier) -> None:
    ran = await luthier_process("jobs", "get", "ftjob-none")
    assert (ran.status, ran.out) == (1, "")
    assert ran.err.startswith("luthier: ")
    assert ran.err.count("\n") == 1
    assert "code not_found, request req_" in ran.err


async def test_the_admin_key_below_home_is_enough(luthier: Luthier, server: Server) -> None:
    ran = await luthier("--home", str(server.home), "--base-url", server.url, "models", "list", env={})
    assert ran.status == 0, ran.err
    nowhere = await luthier("--home", str(server.home / "none"), "models", "list", env={})
    assert nowhere.status == 1
    assert "api-url" in nowhere.err


async def test_openai_variables_are_the_fallback(luthier: Luthier, server: Server) -> None:
    key = (server.home / "admin-key").read_text().strip()
    ran = await luthier("models", "list", env={"OPENAI_BASE_URL": server.url, "OPENAI_API_KEY": key})
    assert ran.status == 0, ran.err
    none = await luthier("models", "list", env={"OPENAI_API_KEY": "sk-proj-of-another-company"})
    assert none.status == 1
    assert "no API key" in none.err


async def test_a_server_that_is_away_is_one_line(luthier: Luthier) -> None:
    env = {"LUTHIER_BASE_URL": "http://127.0.0.1:9/v1", "LUTHIER_API_KEY": "sk-lut-x"}
    ran = await luthier("models", "list", env=env)
    assert ran.status == 1
    assert ran.err == "luthier: 127.0.0.1:9 does not answer (code connection_error)\n"


async def test_a_wrong_command_line_has_its_own_status(luthier_process: Luthier) -> None:
    ran = await luthier_process("keys", "create", "no-scope")
    assert ran.status == 2
    assert "--scope" in ran.err
