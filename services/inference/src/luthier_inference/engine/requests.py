"""The requests of one engine from when it takes them until it has told their end. Any thread may be here."""

import threading
from collections import Counter
from collections.abc import Iterable, Sequence

from luthier_common.kit.errors import LuthierError
from luthier_inference.domain import Delta, EngineBusyError, EngineFailedError
from luthier_inference.engine.line import Ticket, WaitingLine


class Requests:
    """At most `max_open`, those at work and those that wait."""

    def __init__(self, max_open: int) -> None:
        self._max_open = max_open
        self._open: dict[Ticket, None] = {}
        self._line = WaitingLine()
        self.is_closed = False
        self.changed = threading.Condition()
        """Held by whoever looks at several things here at once; notified of work."""

    def __len__(self) -> int:
        return len(self._open)

    @property
    def adapters(self) -> set[str | None]:
        """Those that are asked for."""
        return {ticket.asked.adapter for ticket in self._open}

    def check_open(self) -> None:
        if self.is_closed:
            raise EngineFailedError("The engine is stopping.")

    def add(self, ticket: Ticket) -> None:
        """Raises `EngineBusyError` when there are too many; the project with the most feels it first."""
        with self.changed:
            self.check_open()
            if len(self._open) >= self._max_open:
                busy = EngineBusyError("The engine has too many requests; try again later.")
                given = self._line.give_way(ticket.asked.project, _by_project(self._open))
                if given is None:
                    raise busy
                self.close(given, busy)
            self._open[ticket] = None
            self._line.add(ticket)
            self.changed.notify()

    def take(self, at_work: Sequence[Ticket]) -> Ticket | None:
        """Whoever is next."""
        with self.changed:
            return self._line.take(_by_project(at_work))

    def put_back(self, tickets: Sequence[Ticket]) -> None:
        """Before all others, in this order."""
        with self.changed:
            for ticket in reversed(tickets):
                self._line.put_back(ticket)

    def close_cancelled(self) -> None:
        """Those that wait though their callers have left."""
        with self.changed:
            for ticket in self._line.take_cancelled():
                self.close(ticket)

    def close(self, ticket: Ticket, last: Delta | LuthierError | None = None) -> None:
        if ticket.is_closed:
            return
        ticket.is_closed = True
        with self.changed:
            del self._open[ticket]
        if last is not None:
            ticket.tell(last)

    def fail(self, tickets: Iterable[Ticket], error: LuthierError) -> None:
        for ticket in tickets:
            self.close(ticket, error)

    def stop(self) -> None:
        """No more are taken."""
        with self.changed:
            self.is_closed = True
            self.changed.notify()

    def fail_all(self) -> None:
        with self.changed:
            self.is_closed = True
            self.fail(list(self._open), EngineFailedError("The engine is stopping."))


def _by_project(tickets: Iterable[Ticket]) -> Counter[str | None]:
    return Counter(ticket.asked.project for ticket in tickets)
