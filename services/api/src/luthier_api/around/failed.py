"""Keys that are none: an address may try only so many, so that keys cannot be guessed at speed."""

from litestar.types import Scope

from luthier_api.errors import ApiError, ErrorCode
from luthier_api.rates import Windows, wait_headers

_NO_ADDRESS = "unknown"


class FailedKeys:
    """How often an address came with a key that is none. Above the limit its unknown keys are not looked up."""

    def __init__(self, windows: Windows, per_minute: int) -> None:
        self._windows = windows
        self._per_minute = per_minute

    def check(self, scope: Scope) -> None:
        """Raise ApiError for an address that has failed too often."""
        if self._windows.is_full(address_of(scope), self._per_minute):
            message = "Too many requests with keys that are not valid came from this address."
            raise ApiError(ErrorCode.TOO_MANY_FAILED_KEYS, message, headers=wait_headers(self._windows.reset_s))

    def count(self, scope: Scope) -> None:
        self._windows.take(address_of(scope), self._per_minute)


def address_of(scope: Scope) -> str:
    """The client's address as the connection has it: what a header claims is not believed."""
    client = scope.get("client")
    return str(client[0]) if client else _NO_ADDRESS
