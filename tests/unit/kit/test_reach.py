"""Who stood still for a while is not cut off; who misses again and again is."""

from luthier_common.kit.presence import Reach
from unit.kit.test_rests import HandClock


def test_one_miss_after_a_standstill_says_nothing_and_misses_all_along_do() -> None:
    clock = HandClock()
    reach = Reach(clock, within_s=3.0)
    reach.found()
    clock.now_s = 100.0
    assert not reach.missed(), "it was not tried meanwhile"
    clock.now_s = 102.0
    assert not reach.missed()
    clock.now_s = 103.5
    assert reach.missed()
    reach.found()
    assert not reach.missed()
