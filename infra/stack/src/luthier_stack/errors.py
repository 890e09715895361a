"""Everything that can stop the runner from starting, each with a sentence that says what to do."""


class StackError(Exception):
    """The stack cannot start or a part of it cannot be had; the text is meant for the person at the terminal."""


class HomeInUseError(StackError):
    """Another runner works in the same home directory."""


class ServerUnavailableError(StackError):
    """An embedded server has no binary for this machine."""


class UnknownPartError(StackError):
    """A service was named that this installation does not have."""


class PartFailedError(StackError):
    """A part did not come up in time, or died again and again while starting."""
