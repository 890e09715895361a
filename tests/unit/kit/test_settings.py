"""What every room reads from the environment."""

import pytest
from pydantic import ValidationError

from luthier_common.kit.settings import RoomSettings


def test_a_missing_setting_is_told_without_the_values_of_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LUTHIER_MONGO_URL", "mongodb://luthier:very-secret@127.0.0.1/")
    monkeypatch.delenv("LUTHIER_KAFKA_URL", raising=False)
    with pytest.raises(ValidationError) as refused:
        RoomSettings()
    assert "kafka_url" in str(refused.value)
    assert "very-secret" not in str(refused.value)
