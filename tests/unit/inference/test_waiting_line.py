"""Who is next, and who gives way when too many wait."""

from collections import Counter

from luthier_inference.domain import Generation
from luthier_inference.engine.line import Ticket, WaitingLine


def make_line(*projects: str | None) -> tuple[WaitingLine, list[Ticket]]:
    line = WaitingLine()
    tickets = [Ticket(Generation((1,), project=project), lambda _: None) for project in projects]
    for ticket in tickets:
        line.add(ticket)
    return line, tickets


def test_the_project_with_the_fewest_rows_at_work_is_next() -> None:
    line, (first, second, third) = make_line("a", "a", "b")
    assert line.take({"a": 3}) is third
    assert line.take({"a": 3, "b": 1}) is first
    assert line.take({}) is second
    assert line.take({}) is None


def test_projects_take_turns_where_one_row_is_all_there_is() -> None:
    line, tickets = make_line("a", "a", "a", "b", None)
    assert [line.take({}) for _ in range(5)] == [tickets[at] for at in (0, 3, 4, 1, 2)]


def test_who_was_put_back_is_overtaken_by_nobody() -> None:
    line, (first, second) = make_line("a", "b")
    assert line.take({}) is first
    line.put_back(first)
    assert line.take({"a": 9}) is first
    assert line.take({}) is second


def test_the_newest_of_the_project_with_the_most_gives_way() -> None:
    line, tickets = make_line("a", "a", "b")
    held = Counter({"a": 10, "b": 5})
    assert line.give_way("b", held) is tickets[1]
    assert line.give_way("a", held) is None
    assert line.give_way("c", Counter({"a": 1})) is None, "it would only change who waits"


def test_who_left_is_taken_out() -> None:
    line, (first, second) = make_line("a", "a")
    line.put_back(line.take({}) or first)
    first.cancel()
    assert line.take_cancelled() == [first]
    assert line.take({}) is second
