"""Requests of one engine, and the line in which they wait: projects take turns. Needs no model."""

from collections import Counter, deque
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from luthier_common.kit.errors import LuthierError
from luthier_inference.domain import Delta, Generation

if TYPE_CHECKING:
    from luthier_inference.engine.batch import Row


class Ticket:
    """A request on its way: `tell` is called on any thread; `cancel` may be called from anywhere.

    `row` is there once it was let in, and stays when it has to wait again.
    """

    def __init__(self, asked: Generation, tell: Callable[[Delta | LuthierError], None]) -> None:
        self.asked = asked
        self.tell = tell
        self.row: Row | None = None
        self.is_cancelled, self.is_closed = False, False

    def cancel(self) -> None:
        self.is_cancelled = True

    @property
    def num_ids(self) -> int:
        """How many ids it holds in memory while it is answered."""
        return len(self.row.ids if self.row else self.asked.prompt_ids)


class WaitingLine:
    """Who waits. Within a project the first come is the first served; none of the methods waits."""

    def __init__(self) -> None:
        self._put_back: deque[Ticket] = deque()
        self._tickets: list[Ticket] = []
        self._num_taken = 0
        self._taken_at: dict[str | None, int] = {}

    def add(self, ticket: Ticket) -> None:
        """At the end."""
        self._tickets.append(ticket)

    def put_back(self, ticket: Ticket) -> None:
        """Before all others: it was its turn already, and nobody is to overtake it for ever."""
        self._put_back.appendleft(ticket)

    def take(self, num_at_work: Mapping[str | None, int]) -> Ticket | None:
        """The next one: of the project with the fewest rows at work, or else whose last turn was longest ago."""
        if self._put_back:
            return self._put_back.popleft()
        if not self._tickets:
            return None
        waiting = dict.fromkeys(ticket.asked.project for ticket in self._tickets)
        self._taken_at = {project: self._taken_at.get(project, 0) for project in waiting}
        chosen = min(waiting, key=lambda project: (num_at_work.get(project, 0), self._taken_at[project]))
        ticket = next(each for each in self._tickets if each.asked.project == chosen)
        self._tickets.remove(ticket)
        self._num_taken += 1
        self._taken_at[chosen] = self._num_taken
        return ticket

    def give_way(self, project: str | None, num_open: Counter[str | None]) -> Ticket | None:
        """Takes out the newest ticket of whichever waiting project has most requests open.

        None unless that is more than `project` would have with one more.
        """
        if not self._tickets:
            return None
        crowded = max((ticket.asked.project for ticket in self._tickets), key=lambda each: num_open[each])
        if num_open[project] + 1 >= num_open[crowded]:
            return None
        ticket = next(each for each in reversed(self._tickets) if each.asked.project == crowded)
        self._tickets.remove(ticket)
        return ticket

    def take_cancelled(self) -> list[Ticket]:
        """Takes out those whose callers have left."""
        gone = [ticket for ticket in (*self._put_back, *self._tickets) if ticket.is_cancelled]
        self._put_back = deque(ticket for ticket in self._put_back if not ticket.is_cancelled)
        self._tickets = [ticket for ticket in self._tickets if not ticket.is_cancelled]
        return gone
