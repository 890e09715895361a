"""Health: alive while loops beat, ready while everything needed answers."""

import asyncio
import json
import urllib.error
import urllib.request
from typing import Any

import pytest

from luthier_common.kit.health import Health, health_asgi, serve_health


async def _get(port: int, path: str, method: str = "GET") -> tuple[int, Any]:
    def ask() -> tuple[int, Any]:
        request = urllib.request.Request(f"http://127.0.0.1:{port}{path}", method=method)
        try:
            with urllib.request.urlopen(request, timeout=5) as answer:
                return answer.status, json.loads(answer.read() or b"null")
        except urllib.error.HTTPError as error:
            with error:
                return error.code, json.loads(error.read() or b"null")

    return await asyncio.to_thread(ask)


async def test_a_process_without_loops_and_needs_is_alive_and_ready() -> None:
    async with serve_health(Health(), 0) as port:
        assert await _get(port, "/healthz") == (200, {"status": "ok"})
        assert await _get(port, "/readyz") == (200, {"status": "ready"})
        assert (await _get(port, "/other"))[0] == 404
        assert (await _get(port, "/healthz", "POST"))[0] == 405
        assert await _get(port, "/readyz", "HEAD") == (200, None)


async def test_a_loop_that_stops_beating_is_named() -> None:
    health = Health()
    health.expect("relay", stale_after_s=60)
    health.expect("sweeper", stale_after_s=600)
    async with serve_health(health, 0) as port:
        assert (await _get(port, "/healthz"))[0] == 200
        for name in ("relay", "sweeper"):
            health._beats[name] -= 100  # so long ago was its last beat
        assert await _get(port, "/healthz") == (503, {"status": "stale", "stale": ["relay"]})
        health.forget("relay")
        assert (await _get(port, "/healthz"))[0] == 200


async def test_what_is_missing_is_named_and_a_hanging_check_has_a_limit() -> None:
    health = Health()

    async def fine() -> None:
        return None

    async def says() -> str:
        return "no live node"

    async def fails() -> None:
        raise ConnectionError("password in the text")

    async def hangs() -> None:
        await asyncio.Event().wait()

    for name, check in (("mongo", fine), ("trainer", says), ("broker", fails), ("objects", hangs)):
        health.require(name, check)
    async with serve_health(health, 0) as port:
        status, body = await _get(port, "/readyz")
        assert status == 503
        missing = {"trainer": "no live node", "broker": "ConnectionError", "objects": "no answer within 1 s"}
        assert body == {"status": "not_ready", "missing": missing}
        assert (await _get(port, "/healthz"))[0] == 200


async def test_a_stopping_process_is_not_ready() -> None:
    health = Health()
    health.stopping = True
    assert await health.missing() == {"room": "stopping"}


async def test_a_taken_port_is_an_error_at_once() -> None:
    async with serve_health(Health(), 0) as port:
        with pytest.raises(OSError, match="in use"):
            async with serve_health(Health(), port):
                pass


async def test_mounted_below_another_app_it_still_knows_its_addresses() -> None:
    sent: list[Any] = []

    async def send(message: Any) -> None:
        sent.append(message)

    async def receive() -> Any:
        return {"type": "http.request"}

    scope = {"type": "http", "method": "GET", "root_path": "", "path": "/", "raw_path": b"/healthz"}
    await health_asgi(Health())(scope, receive, send)
    assert sent[0]["status"] == 200


async def test_those_who_ask_at_once_share_one_look_and_a_later_one_looks_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("luthier_common.kit.health.FRESH_S", 60)
    health, looks = Health(), 0

    async def broker() -> str:
        nonlocal looks
        looks += 1
        await asyncio.sleep(0.05)
        return f"look {looks}"

    health.require("broker", broker)
    async with serve_health(health, 0) as port:
        answers = await asyncio.gather(*(_get(port, "/readyz") for _ in range(20)))
        assert {body["missing"]["broker"] for _, body in answers} == {"look 1"}
        health._fresh_until_s = 0.0
        assert (await _get(port, "/readyz"))[1]["missing"] == {"broker": "look 2"}


async def test_whoever_gives_up_asking_spoils_nobody_elses_answer() -> None:
    health = Health()

    async def slow() -> None:
        await asyncio.sleep(0.1)

    health.require("mongo", slow)
    impatient, patient = (asyncio.create_task(health.missing()) for _ in range(2))
    await asyncio.sleep(0)
    impatient.cancel()
    assert await patient == {}
