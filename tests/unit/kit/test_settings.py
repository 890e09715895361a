"""What every room reads from the environment."""

from pathlib import Path

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


def test_secrets_may_come_from_files(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "luthier_mongo_url").write_text("mongodb://from-file\n")
    (tmp_path / "luthier_internal_token").write_text("token-in-a-file\n")
    (tmp_path / "luthier_kafka_url").write_text("from-file:1")
    monkeypatch.setenv("LUTHIER_SECRETS_DIR", str(tmp_path))
    monkeypatch.setenv("LUTHIER_KAFKA_URL", "from-environment:1")
    monkeypatch.setenv("LUTHIER_OBJECTS_URL", "file:///objects")
    monkeypatch.delenv("LUTHIER_MONGO_URL", raising=False)
    settings = RoomSettings()
    assert (settings.mongo_url, settings.kafka_url) == ("mongodb://from-file", "from-environment:1")
    assert settings.internal_token.get_secret_value() == "token-in-a-file"
    assert "token-in-a-file" not in repr(settings)
