"""What an instance leaves to others when it holds more than its share."""

from luthier_common.kit.presence import beyond

HELD = {"job/0": "job", "job/1": "job", "file/0": "file", "job/2": "job", "file/1": "file"}


def test_what_was_taken_last_is_kept() -> None:
    """Another one left it because it could not work on it, and would leave it again."""
    assert beyond({"job": 2, "file": 1}, HELD) == ["job/0", "file/0"]


def test_a_sort_without_a_share_is_given_up_and_one_below_its_share_is_kept() -> None:
    assert beyond({"job": 4}, HELD) == ["file/0", "file/1"]
