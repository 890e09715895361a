"""Which turns are left out when a conversation is too long."""

from typing import Any

import pytest

from luthier_api.services.responses import without_oldest


def _messages(roles: str) -> list[dict[str, Any]]:
    names = {"s": "system", "d": "developer", "u": "user", "a": "assistant"}
    return [{"role": names[role], "content": str(index)} for index, role in enumerate(roles)]


@pytest.mark.parametrize(
    ("roles", "count", "kept"),
    [
        ("suaua", 0, "01234"),
        ("suauau", 1, "0345"),
        ("suauau", 2, "0345"),
        ("suauau", 4, "05"),
        ("uauadu", 1, "2345"),
        ("uauadu", 3, "45"),
        ("ua", 1, "1"),
        ("u", 0, "0"),
    ],
)
def test_the_oldest_go_first_and_no_answer_stays_without_its_question(roles: str, count: int, kept: str) -> None:
    assert "".join(message["content"] for message in without_oldest(_messages(roles), count)) == kept
