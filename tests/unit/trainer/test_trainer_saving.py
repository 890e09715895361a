"""When a checkpoint is due by time."""

from luthier_trainer.training.saving import SaveClock


def test_a_save_is_due_so_long_after_the_last_one() -> None:
    clock = SaveClock(every_s=600)
    assert not clock.is_due(10**9), "training has not begun"
    clock.saved(100, 100)
    assert not clock.is_due(699)
    assert clock.is_due(700)
    clock.saved(700, 702)
    assert not clock.is_due(1301)
    assert clock.is_due(1302)


def test_saves_that_take_long_are_made_less_often() -> None:
    clock = SaveClock(every_s=600)
    clock.saved(1000, 1300)
    assert not clock.is_due(1300 + 2999)
    assert clock.is_due(1300 + 3000)


def test_without_an_interval_none_is_due() -> None:
    clock = SaveClock(every_s=None)
    clock.saved(0, 0)
    assert not clock.is_due(10**9)
