"""When something counts as silent."""

from luthier_scheduler.watch import Watch


def test_a_value_unchanged_for_a_ttl_is_silent() -> None:
    watch = Watch[object](3.0)
    assert [watch.look({"run": 1}, now) for now in (0.0, 1.0, 2.0)] == [[], [], []]
    assert watch.look({"run": 1}, 3.0) == ["run"]


def test_a_renewal_starts_the_ttl_again() -> None:
    watch = Watch[object](3.0)
    for now in range(10):
        assert watch.look({"run": now // 2}, float(now)) == []


def test_no_lease_at_all_is_silence_too() -> None:
    watch = Watch[object](2.0)
    assert watch.look({"run": None}, 0.0) == []
    assert watch.look({"run": None}, 1.0) == []
    assert watch.look({"run": None}, 2.0) == ["run"]


def test_time_in_which_nobody_looked_does_not_count() -> None:
    watch = Watch[object](3.0)
    watch.look({"run": 1}, 0.0)
    assert watch.look({"run": 1}, 60.0) == []
    assert watch.look({"run": 1}, 61.0) == []
    assert watch.look({"run": 1}, 62.0) == []
    assert watch.look({"run": 1}, 63.0) == ["run"]


def test_after_forgetting_everything_gets_a_whole_ttl() -> None:
    watch = Watch[object](2.0)
    watch.look({"run": 1}, 0.0)
    watch.look({"run": 1}, 1.0)
    watch.forget()
    assert watch.look({"run": 1}, 2.0) == []
    assert watch.look({"run": 1}, 3.0) == []
    assert watch.look({"run": 1}, 4.0) == ["run"]


def test_another_attempt_is_another_watch() -> None:
    watch = Watch[object](2.0)
    watch.look({("job", 1): None}, 0.0)
    watch.look({("job", 1): None}, 1.0)
    assert watch.look({("job", 2): None}, 2.0) == []
