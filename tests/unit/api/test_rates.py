"""The minute's arithmetic of rate limits, with a clock that stands where the test puts it."""

import pytest

from luthier_api.rates import Windows, duration, rate_headers, wait_headers


class Clock:
    """Seconds that only the test moves."""

    def __init__(self, now_s: float = 600.0) -> None:
        self.now_s = now_s

    def __call__(self) -> float:
        return self.now_s


def test_a_minute_admits_its_limit_and_the_next_one_begins_anew() -> None:
    clock = Clock()
    windows = Windows(clock)
    verdicts = [windows.take("k", 3) for _ in range(5)]
    assert [verdict.is_admitted for verdict in verdicts] == [True, True, True, False, False]
    assert [verdict.remaining for verdict in verdicts] == [2, 1, 0, 0, 0]
    assert windows.take("other", 3).is_admitted
    clock.now_s += 59.999
    assert not windows.take("k", 3).is_admitted
    clock.now_s += 0.002
    assert windows.take("k", 3).remaining == 2


def test_what_other_processes_admitted_counts_once_it_is_heard() -> None:
    mine, theirs = Windows(Clock()), Windows(Clock())
    for _ in range(4):
        mine.take("k", 10)
        theirs.take("k", 10)
    number, told = mine.untold()
    assert told == {"k": 4}
    mine.take("k", 10)
    mine.heard(number, told, {"k": 8})
    assert mine.untold() == (number, {"k": 1})
    assert mine.take("k", 10).remaining == 0
    assert not mine.take("k", 10).is_admitted


def test_what_is_told_too_late_changes_nothing() -> None:
    clock = Clock()
    windows = Windows(clock)
    windows.take("k", 10)
    number, told = windows.untold()
    clock.now_s += 60
    windows.take("k", 10)
    windows.heard(number, told, {"k": 9})
    assert windows.take("k", 10).remaining == 8
    assert windows.untold() == (number + 1, {"k": 2})


def test_a_lower_total_than_its_own_is_not_believed() -> None:
    windows = Windows(Clock())
    windows.take("k", 10)
    number, told = windows.untold()
    windows.heard(number, told, {})
    assert windows.take("k", 10).remaining == 8


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [(0.012, "12ms"), (0.0, "0ms"), (1.0, "1s"), (1.2, "1.2s"), (59.999, "59.999s"), (60, "1m0s"), (366.5, "6m6.5s")],
)
def test_durations_are_spelled_as_clients_know_them(seconds: float, shown: str) -> None:
    assert duration(seconds) == shown


def test_headers_say_what_is_left_and_when_to_come_again() -> None:
    verdict = Windows(Clock(658.8)).take("k", 2)
    assert rate_headers(verdict) == {
        "x-ratelimit-limit-requests": "2",
        "x-ratelimit-remaining-requests": "1",
        "x-ratelimit-reset-requests": "1.2s",
    }
    assert wait_headers(1.2000001) == {"retry-after": "2", "retry-after-ms": "1201"}
    assert int(wait_headers(60.0)["retry-after"]) == 60
