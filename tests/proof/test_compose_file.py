"""docker-compose.yml is valid, safe as far as a file can say, and tells the services only what they understand."""

import importlib.util
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from builders.production import COMPOSE, EXAMPLE, MODULES, ROOMS, ROOT, compose, settings_class, unknown_settings
from luthier_stack.services import STOP_BUDGET_S, TRAINER_STOP_BUDGET_S

GPUS = ROOT / "infra" / "compose" / "gpu.yml"
ONE_GPU = ROOT / "infra" / "compose" / "one-gpu.yml"
FILE = compose(EXAMPLE)
SERVERS: dict[str, dict[str, Any]] = FILE["services"]
DEVICE = {"driver": "nvidia", "capabilities": ["gpu"]}
SECRET = re.compile(r"PASSWORD|SECRET|TOKEN|PEPPER|MONGO_URL|ACCESS_KEY")


@pytest.fixture(scope="module")
def secrets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The files that the script makes."""
    folder = tmp_path_factory.mktemp("secrets") / "made"
    subprocess.run([ROOT / "infra" / "compose" / "make-secrets", folder], check=True, stdout=subprocess.DEVNULL)
    return folder


def test_it_follows_the_compose_specification() -> None:
    files = map(str, (COMPOSE, GPUS, ONE_GPU))
    command = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", "vendor.compose-spec", *files]
    checked = subprocess.run(command, capture_output=True, text=True)
    assert checked.returncode == 0, checked.stdout + checked.stderr


def test_every_room_is_there_and_runs_a_module_that_exists() -> None:
    for room in ROOMS:
        assert SERVERS[room]["command"] == [MODULES[room]]
        module = MODULES[room] if room == "migrate" else f"{MODULES[room]}.__main__"
        assert importlib.util.find_spec(module) is not None


@pytest.mark.parametrize("room", ROOMS)
def test_a_room_starts_with_what_it_is_told(room: str, secrets: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every variable is a setting of that room, or of all of them; every secret is given as a file."""
    told = {name: str(value) for name, value in SERVERS[room]["environment"].items()}
    assert unknown_settings(room, set(told)) == set()
    for name in list(os.environ):
        if name.startswith("LUTHIER_"):
            monkeypatch.delenv(name)
    for name, value in told.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("LUTHIER_SECRETS_DIR", str(_given(secrets, SERVERS[room]["secrets"], room)))
    settings = settings_class(room)()
    assert settings.mongo_url.startswith("mongodb://luthier:")
    has_token = bool(settings.internal_token.get_secret_value())
    assert has_token == (room in ("api", "inference"))


def _given(secrets: Path, names: list[str], room: str) -> Path:
    folder = secrets.parent / room
    folder.mkdir()
    for name in names:
        (folder / name).write_text((secrets / name).read_text())
    return folder


def test_each_of_our_images_is_built_once_and_never_asked_for_elsewhere() -> None:
    """Two builds of one image at once may fail; who builds none waits for `migrate`, or is an engine."""
    built = {name: server["image"] for name, server in SERVERS.items() if "build" in server}
    assert set(built) == {"migrate", "trainer"}
    assert set(built.values()) == {SERVERS[room]["image"] for room in ROOMS}
    for room in set(ROOMS) - set(built):
        assert SERVERS[room]["pull_policy"] == "never"
    for overlay in (GPUS, ONE_GPU):
        assert not any("build" in server for server in yaml.safe_load(overlay.read_text())["services"].values())


def test_no_service_asks_a_proxy() -> None:
    """Docker gives those of its own configuration to every container, in both spellings."""
    for room in (*ROOMS, "mongo-init"):
        told = SERVERS[room]["environment"]
        assert (told["NO_PROXY"], told["no_proxy"]) == ("*", "*")
    check = SERVERS["s3"]["healthcheck"]["test"]
    assert check[check.index("-Y") + 1] == "off"


def test_only_api_and_grafana_are_published_and_on_loopback() -> None:
    published = {name: server["ports"] for name, server in SERVERS.items() if "ports" in server}
    assert published == {"api": ["127.0.0.1:8000:8000"], "telemetry": ["127.0.0.1:3000:3000"]}
    assert FILE["networks"]["inside"] == {"internal": True}
    outside = {name for name, server in SERVERS.items() if "outside" in server["networks"]}
    assert outside == set(published)


@pytest.mark.parametrize("name", sorted(SERVERS))
def test_nobody_has_more_rights_than_needed(name: str) -> None:
    server = SERVERS[name]
    assert server["cap_drop"] == ["ALL"]
    assert server["security_opt"] == ["no-new-privileges:true"]
    assert "privileged" not in server
    assert server["restart"] == ("on-failure" if name in ("migrate", "mongo-init") else "unless-stopped")
    assert "latest" not in server["image"]
    assert ":" in server["image"]
    if name in ROOMS:
        assert server["read_only"] is True
        assert any(mount.startswith("/tmp:") for mount in server["tmpfs"])
        writable = [mount.split(":")[0] for mount in server["tmpfs"]] + [
            volume.split(":")[1] for volume in server.get("volumes", []) if not volume.endswith(":ro")
        ]
        assert sorted(writable) == ["/tmp", "/var/lib/luthier"]


@pytest.mark.parametrize(("room", "setting"), [("trainer", "TRAINER_DEVICE"), ("inference", "ENGINE_DEVICE")])
def test_who_is_given_a_gpu_never_works_on_the_cpu(room: str, setting: str) -> None:
    given = yaml.safe_load(GPUS.read_text())["services"][room]
    assert given["deploy"]["resources"]["reservations"]["devices"]
    assert given["environment"] == {f"LUTHIER_{setting}": "cuda"}
    assert unknown_settings(room, set(given["environment"])) == set()


def test_the_only_gpu_belongs_to_the_trainer() -> None:
    given = yaml.safe_load(ONE_GPU.read_text())["services"]
    assert set(given) == {"trainer", "inference"}
    assert given["trainer"] == yaml.safe_load(GPUS.read_text())["services"]["trainer"] | {
        "deploy": {"resources": {"reservations": {"devices": [DEVICE | {"device_ids": ["0"]}]}}}
    }
    assert given["inference"] == {"environment": {"LUTHIER_ENGINE_DEVICE": "cpu"}}


@pytest.mark.parametrize("room", ROOMS)
def test_every_setting_of_a_room_may_stand_in_the_env_file(room: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What stands there for Compose alone disturbs no room."""
    assert SERVERS[room]["env_file"] == [{"path": ".env", "required": False}]
    lines = [line for line in (ROOT / ".env.example").read_text().splitlines() if line and not line.startswith("#")]
    for name, value in {**dict(line.split("=", 1) for line in lines), **SERVERS[room]["environment"]}.items():
        monkeypatch.setenv(name, str(value))
    monkeypatch.delenv("LUTHIER_SECRETS_DIR")
    monkeypatch.setenv("LUTHIER_MONGO_URL", "mongodb://unused")
    monkeypatch.setenv("LUTHIER_LEASE_TTL_S", "45")
    assert settings_class(room)().lease_ttl_s == 45


def test_what_holds_the_data_outlives_a_run_that_wants_too_much_memory() -> None:
    for name in ("mongo", "kafka", "s3"):
        assert SERVERS[name]["oom_score_adj"] == -500
    assert SERVERS["mongo"]["command"][-2:] == ["--wiredTigerCacheSizeGB", "1"]
    assert SERVERS["trainer"]["mem_limit"] == "0"
    told = compose(EXAMPLE | {"MONGO_CACHE_GB": "4", "TRAINER_MEMORY": "48g", "LOGS_KEPT": "7d"})["services"]
    assert told["mongo"]["command"][-1] == "4"
    assert told["trainer"]["mem_limit"] == "48g"
    assert told["telemetry"]["environment"]["LOKI_EXTRA_ARGS"].startswith("-store.retention=7d -compactor.")


def test_what_the_example_says_is_what_is_meant_without_it() -> None:
    example = (ROOT / ".env.example").read_text()
    for name, default in re.findall(r"\$\{(\w+):-([^}]*)\}", COMPOSE.read_text()):
        assert name.endswith("_VERSION") or f"\n{name}={default}\n" in example, name


def test_secrets_are_files_and_stand_in_no_variable(secrets: Path) -> None:
    for name, server in SERVERS.items():
        for variable, value in server.get("environment", {}).items():
            named = str(value).startswith(("/run/secrets/", "$__file{/run/secrets/"))
            assert named or not SECRET.search(variable) or variable == "LUTHIER_SECRETS_DIR", (name, variable)
    assert {secret["file"] for secret in FILE["secrets"].values()} == {f"./secrets/{file}" for file in _names(secrets)}
    used = {secret for server in SERVERS.values() for secret in server.get("secrets", [])}
    assert used == set(FILE["secrets"])


def test_made_secrets_are_long_different_and_made_once(secrets: Path) -> None:
    values = {name: (secrets / name).read_text() for name in _names(secrets)}
    assert len(set(values.values())) == len(values)
    assert all(len(value) > 18 for value in values.values())
    assert values["mongo_luthier_password"].strip() in values["luthier_mongo_url"]
    assert secrets.stat().st_mode & 0o077 == 0
    subprocess.run([ROOT / "infra" / "compose" / "make-secrets", secrets], check=True, stdout=subprocess.DEVNULL)
    assert {name: (secrets / name).read_text() for name in _names(secrets)} == values


def _names(folder: Path) -> set[str]:
    return {file.name for file in folder.iterdir()}


def test_what_is_mounted_can_be_read_also_from_a_checkout_that_is_its_owners_alone(tmp_path: Path) -> None:
    """Made under `umask 077`."""
    for path in _mounted():
        source, copy = ROOT / path, tmp_path / path
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copytree(source, copy) if source.is_dir() else shutil.copy(source, copy)
    shutil.copy(ROOT / "infra" / "compose" / "make-secrets", tmp_path / "infra" / "compose")
    subprocess.run(["chmod", "-R", "go=", tmp_path / "infra"], check=True)
    made = subprocess.run([tmp_path / "infra" / "compose" / "make-secrets"], capture_output=True, text=True)
    assert (made.returncode, made.stderr) == (0, "")
    for path in _mounted():
        for each in (tmp_path / path, *(tmp_path / path).rglob("*")):
            wanted = 0o555 if each.is_dir() else 0o444
            assert each.stat().st_mode & wanted == wanted, each
    assert (tmp_path / "secrets").stat().st_mode & 0o077 == 0


def _mounted() -> list[str]:
    mounted = [volume.split(":")[0] for server in SERVERS.values() for volume in server.get("volumes", [])]
    return [path for path in mounted if path.startswith("./") and path != "./models"]


def test_nothing_starts_before_what_it_needs() -> None:
    for room in ROOMS:
        if room != "migrate":
            assert SERVERS[room]["depends_on"] == {"migrate": {"condition": "service_completed_successfully"}}
    before = SERVERS["migrate"]["depends_on"]
    assert before == {
        "kafka": {"condition": "service_healthy"},
        "mongo-init": {"condition": "service_completed_successfully"},
        "s3": {"condition": "service_healthy"},
    }
    for name in ("kafka", "mongo", "s3"):
        assert "test" in SERVERS[name]["healthcheck"]


def test_everybody_may_finish() -> None:
    for room in ROOMS:
        budget_s = TRAINER_STOP_BUDGET_S if room == "trainer" else STOP_BUDGET_S
        assert float(SERVERS[room]["stop_grace_period"].removesuffix("s")) > budget_s


def test_what_must_be_said_is_in_the_example() -> None:
    example = (ROOT / ".env.example").read_text()
    wanted = set(re.findall(r"\$\{(\w+):\?", COMPOSE.read_text()))
    assert wanted == set(EXAMPLE)
    for name in wanted:
        assert re.search(rf"^{name}=$", example, re.MULTILINE), name
        with pytest.raises(KeyError, match=name):
            compose({key: value for key, value in EXAMPLE.items() if key != name})


def test_what_is_mounted_from_here_exists() -> None:
    assert _mounted()
    for path in _mounted():
        assert (ROOT / path).exists(), path


def test_the_handbook_lists_what_the_env_file_cannot_change() -> None:
    page = (ROOT / "docs" / "production.md").read_text()
    listed = page[page.index("Every setting of a service") :].partition("\n\n")[0]
    for file in (COMPOSE, GPUS, ONE_GPU):
        services = yaml.safe_load(file.read_text())["services"]
        told = {name: value for room in ROOMS for name, value in services.get(room, {}).get("environment", {}).items()}
        for name, value in told.items():
            if name.startswith(("LUTHIER_", "OTEL_")) and f"${{{name}" not in str(value):
                assert f"`{name}`" in listed or name.startswith("LUTHIER_INFERENCE_"), name
