"""What a key may give to another key."""

import pytest

from luthier_api.domain import Principal, Scope
from luthier_api.errors import ApiError
from luthier_api.services.api_keys import granted_scopes


def holding(*scopes: str) -> Principal:
    return Principal("k", "o", "o", "p", "k", frozenset(scopes))


def test_an_admin_gives_every_scope() -> None:
    every = [str(scope) for scope in Scope]
    assert granted_scopes(holding("admin"), every) == set(every)


@pytest.mark.parametrize("scope", [str(scope) for scope in Scope if scope is not Scope.FILES_READ])
def test_nobody_gives_what_they_lack(scope: str) -> None:
    with pytest.raises(ApiError) as refused:
        granted_scopes(holding("files:read"), ["files:read", scope])
    assert (refused.value.status, refused.value.error.code) == (403, "missing_scope")
    assert scope in refused.value.message


@pytest.mark.parametrize("scopes", [[], ["files"], ["files:read", "FILES:READ"], [""]])
def test_scopes_go_by_name(scopes: list[str]) -> None:
    with pytest.raises(ApiError) as refused:
        granted_scopes(holding("admin"), scopes)
    assert (refused.value.status, refused.value.param) == (400, "scopes")
