"""Which server and key the command takes, and how it reads and shows values."""

from pathlib import Path

import pytest

from luthier_cli.connection import DEFAULT_URL, Connection, UsageError, find_connection
from luthier_cli.jobs import number, pairs
from luthier_cli.output import harmless, shown

OURS = "sk-lut-0123456789ab-secret"
THEIRS = "sk-proj-secret"


@pytest.mark.parametrize(
    ("env", "expected"),
    [
        ({"LUTHIER_API_KEY": OURS}, Connection(DEFAULT_URL, OURS)),
        ({"LUTHIER_API_KEY": OURS, "LUTHIER_BASE_URL": "http://a/v1"}, Connection("http://a/v1", OURS)),
        ({"LUTHIER_API_KEY": OURS, "OPENAI_API_KEY": THEIRS}, Connection(DEFAULT_URL, OURS)),
        ({"OPENAI_API_KEY": OURS, "LUTHIER_BASE_URL": "http://a/v1"}, Connection("http://a/v1", OURS)),
        ({"OPENAI_API_KEY": THEIRS, "OPENAI_BASE_URL": "http://b/v1"}, Connection("http://b/v1", THEIRS)),
    ],
)
def test_luthiers_variables_come_first(env: dict[str, str], expected: Connection) -> None:
    assert find_connection(env) == expected


@pytest.mark.parametrize(
    "env",
    [
        {},
        {"OPENAI_API_KEY": THEIRS},
        {"OPENAI_API_KEY": THEIRS, "OPENAI_BASE_URL": "http://b/v1", "LUTHIER_BASE_URL": "http://a/v1"},
    ],
)
def test_another_companys_key_is_not_sent_to_luthier(env: dict[str, str]) -> None:
    with pytest.raises(UsageError):
        find_connection(env)


def test_home_comes_before_every_variable(tmp_path: Path) -> None:
    (tmp_path / "admin-key").write_text(OURS + "\n")
    (tmp_path / "api-url").write_text("http://127.0.0.1:8123\n")
    env = {"LUTHIER_API_KEY": "other", "LUTHIER_BASE_URL": "http://a/v1", "OPENAI_BASE_URL": "http://b/v1"}
    assert find_connection(env, home=tmp_path) == Connection("http://127.0.0.1:8123/v1", OURS)
    assert find_connection(env, home=tmp_path, base_url="http://c/v1") == Connection("http://c/v1", OURS)


def test_the_admin_key_of_a_home_is_not_sent_to_whatever_listens_on_the_usual_port(tmp_path: Path) -> None:
    (tmp_path / "admin-key").write_text(OURS + "\n")
    with pytest.raises(UsageError, match="api-url; is Luthier running there"):
        find_connection({"LUTHIER_BASE_URL": "http://a/v1"}, home=tmp_path)
    (tmp_path / "admin-key").unlink()
    with pytest.raises(UsageError, match="admin-key"):
        find_connection({}, home=tmp_path, base_url="http://c/v1")


def test_a_connection_does_not_show_its_key() -> None:
    assert OURS not in repr(Connection("http://a/v1", OURS))


def test_hyperparameters_are_numbers_where_they_look_like_it() -> None:
    given = pairs(["n_epochs=3", "learning_rate=1e-4", "batch_size=auto", "packing=true", "empty="])
    assert {name: number(value) for name, value in given.items()} == {
        "n_epochs": 3,
        "learning_rate": 1e-4,
        "batch_size": "auto",
        "packing": True,
        "empty": "",
    }
    with pytest.raises(UsageError):
        pairs(["n_epochs"])


def test_values_as_people_read_them() -> None:
    assert shown("created_at", 0) == "1970-01-01 00:00:00"
    assert shown("finished_at", None) == "-"
    assert shown("scopes", ["files:read", "inference"]) == "files:read,inference"
    assert shown("error", {"code": "c", "message": "m", "param": None}) == "c: m"


def test_texts_of_others_do_not_steer_the_terminal() -> None:
    assert harmless("two\nlines\tand \u00fc") == "two\nlines\tand \u00fc"
    assert shown("metadata", {"note": "\x1b]0;gone\x07\x9b2J"}) == "note=?]0;gone??2J"
