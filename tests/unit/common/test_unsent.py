"""Where the relay is to look: what is named, until it is so much that all of a partition is meant."""

from luthier_common.contract.topics import Kind
from luthier_common.journal.unsent import EVERYWHERE, MAX_THINGS, also_asked

HERE, THERE = (Kind.JOB, 0), (Kind.JOB, 1)


def test_what_is_named_comes_together_and_all_of_a_partition_stays_all() -> None:
    both = also_asked({HERE: {"a"}, THERE: None}, {HERE: {"b"}, THERE: {"c"}})
    assert both == {HERE: {"a", "b"}, THERE: None}
    assert also_asked(both, EVERYWHERE)[HERE] is None


def test_too_many_things_are_all_of_their_partition_and_nothing_that_was_given_is_changed() -> None:
    many = {str(number) for number in range(MAX_THINGS)}
    before = {HERE: frozenset(many)}
    assert also_asked(before, {HERE: {"0"}}) == {HERE: many}
    assert also_asked(before, {HERE: {"one more"}}) == {HERE: None}
    assert before == {HERE: many}
