"""What every route must declare, and the table of errors."""

import re
from typing import Any, cast

from litestar.handlers import HTTPRouteHandler

from luthier_api.app import build_app
from luthier_api.deps import Process
from luthier_api.domain import Principal, Scope
from luthier_api.errors import ErrorCode
from luthier_api.keys import KeyRing
from luthier_api.middleware import PUBLIC, SCOPE
from luthier_api.settings import ApiSettings
from luthier_common.kit.health import Health

OPEN_TO_ALL = {"/healthz", "/readyz", "/docs", "/docs/openapi.json", "/docs/{path:str}"}


def make_app() -> Any:
    settings = ApiSettings(mongo_url="mongodb://x", kafka_url="x:1", objects_url="file:///nowhere")
    nothing = cast("Any", None)
    keys = KeyRing(nothing, b"pepper", cache_s=5)
    return build_app(Process(settings, nothing, nothing, nothing, keys, nothing, Health()))


def test_every_route_declares_a_scope_or_is_known_to_be_open() -> None:
    handlers = [
        (route.path, handler)
        for route in make_app().routes
        for handler in route.route_handlers
        if isinstance(handler, HTTPRouteHandler) and handler.http_methods != {"OPTIONS"}
    ]
    assert len(handlers) > 15
    for path, handler in handlers:
        if path in OPEN_TO_ALL:
            assert handler.opt.get(PUBLIC), path
        else:
            assert not handler.opt.get(PUBLIC), path
            assert Scope(handler.opt[SCOPE]), path


def test_admin_may_all_and_others_what_they_hold() -> None:
    def holding(*scopes: str) -> Principal:
        return Principal("k", "o", "o", "p", "k", frozenset(scopes))

    assert all(holding("admin").may(scope) for scope in Scope)
    assert holding("files:read").may("files:read")
    assert not holding("files:read").may("files:write")
    assert not holding().may("")


def test_every_error_has_a_code_a_status_and_a_sentence() -> None:
    for error in ErrorCode:
        assert re.fullmatch(r"[a-z_]+", error.code)
        assert 400 <= error.status < 600
        assert error.sentence.endswith(".")
    pairs = [(error.code, error.status) for error in ErrorCode]
    assert len(set(pairs)) == len(pairs)
