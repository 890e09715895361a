"""What failed rests longer each time, and alone."""

from datetime import UTC, datetime

from luthier_common.kit.rests import FORGOTTEN_AFTER_S, Rests


class HandClock:
    now_s = 0.0

    def now(self) -> datetime:
        return datetime.now(UTC)

    def monotonic_s(self) -> float:
        return self.now_s


def test_each_failure_doubles_the_rest_up_to_the_longest() -> None:
    rests = Rests[str](HandClock(), first_s=2.0, most_s=10.0)
    assert [rests.begin("a") for _ in range(5)] == [2.0, 4.0, 8.0, 10.0, 10.0]
    assert rests.begin("b") == 2.0


def test_a_rest_ends_by_itself_and_a_success_ends_the_row_of_failures() -> None:
    clock = HandClock()
    rests = Rests[str](clock, first_s=2.0, most_s=10.0)
    rests.begin("a")
    assert rests.is_resting("a")
    assert not rests.is_resting("b")
    clock.now_s = 2.0
    assert not rests.is_resting("a")
    assert rests.begin("a") == 4.0
    rests.end("a")
    assert not rests.is_resting("a")
    assert rests.begin("a") == 2.0


def test_what_never_comes_back_is_forgotten() -> None:
    clock = HandClock()
    rests = Rests[str](clock, first_s=2.0, most_s=10.0)
    rests.begin("a")
    clock.now_s = 2.0 + FORGOTTEN_AFTER_S
    rests.begin("b")
    assert rests.begin("a") == 2.0
