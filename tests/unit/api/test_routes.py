"""What every route must declare, and the table of errors."""

import re

from litestar.handlers import HTTPRouteHandler

from luthier_api.domain import Principal, Scope
from luthier_api.errors import ApiError, ErrorCode
from luthier_api.middleware import PUBLIC, SCOPE
from luthier_api.reference import make_hollow_app

OPEN_TO_ALL = {"/healthz", "/readyz", "/docs", "/docs/openapi.json", "/docs/{path:str}"}


def test_every_route_declares_a_scope_or_is_known_to_be_open() -> None:
    handlers = [
        (route.path, handler)
        for route in make_hollow_app().routes
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
        assert ("retry-after" in ApiError(error, "").headers) == (error.status in (429, 503))
    pairs = [(error.code, error.status) for error in ErrorCode]
    assert len(set(pairs)) == len(pairs)
