"""One base for errors: a stable code, and whether the same call may succeed later."""


class LuthierError(Exception):
    """`code` is stable and documented; `retryable` says whether trying again without a change can help."""

    code = "internal_error"
    retryable = False


class TransientError(LuthierError):
    """A server we need did not answer; nothing was decided."""

    code = "unavailable"
    retryable = True


class SettingError(LuthierError):
    """A setting cannot be meant as it is; the text names it."""

    code = "bad_setting"


class PermanentError(LuthierError):
    """The message or request can never be handled as it is."""

    code = "unreadable"
