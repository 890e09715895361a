"""The Kubernetes manifests follow the schemas of Kubernetes and tell each room only what it understands."""

import importlib
import re
import shutil
import subprocess
from copy import deepcopy
from importlib import metadata
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from builders.production import (
    EXAMPLE,
    MANIFESTS,
    MODULES,
    NEEDS_KUBECTL,
    OUTSIDE_SETTINGS,
    ROOMS,
    ROOT,
    compose,
    image_env,
    manifests,
    pods,
    settings_class,
    shared_settings,
    unknown_settings,
)
from luthier_stack.services import STOP_BUDGET_S, TRAINER_STOP_BUDGET_S

VERSION = "1.37"
PODS = pods()
BACKUP = next(each for each in manifests() if each["kind"] == "CronJob")
RUN_BY_US = PODS | {"backup": BACKUP["spec"]["jobTemplate"]["spec"]["template"]["spec"]}
OVERLAYS = ("overlays/production", "overlays/cpu")
DEVICES = {"trainer": "LUTHIER_TRAINER_DEVICE", "inference": "LUTHIER_ENGINE_DEVICE"}


def validate(resource: dict[str, Any]) -> None:
    kubernetes_validate.validate(resource, VERSION, strict=True)


def named(kind: str) -> dict[str, dict[str, Any]]:
    return {each["metadata"]["name"]: each["spec"] for each in manifests() if each["kind"] == kind}


@pytest.mark.parametrize("resource", manifests(), ids=lambda each: f"{each['kind']}-{each['metadata']['name']}")
def test_it_follows_the_schema(resource: dict[str, Any]) -> None:
    validate(resource)


def test_the_schema_would_find_a_mistake() -> None:
    broken = deepcopy(next(each for each in manifests() if each["kind"] == "Deployment"))
    broken["spec"]["template"]["spec"]["containers"][0]["readOnlyRootFilesystem"] = True
    with pytest.raises(kubernetes_validate.ValidationError):
        validate(broken)


def test_every_file_is_listed_and_every_room_is_there() -> None:
    listed = yaml.safe_load((MANIFESTS / "base" / "kustomization.yaml").read_text())["resources"]
    assert sorted(listed) == sorted(
        path.name for path in (MANIFESTS / "base").glob("*.yaml") if path.name != "kustomization.yaml"
    )
    assert set(PODS) == set(ROOMS)


@pytest.mark.parametrize("room", RUN_BY_US)
def test_a_pod_may_do_nothing_but_its_work(room: str) -> None:
    pod = RUN_BY_US[room]
    assert pod["automountServiceAccountToken"] is False
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    [container] = pod["containers"]
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    assert "memory" in container["resources"]["limits"]
    writable = {mount["mountPath"] for mount in container["volumeMounts"] if not mount.get("readOnly")}
    assert writable - {"/dev/shm", "/backups"} == {"/var/lib/luthier", "/tmp"}
    assert ("/backups" in writable) == (room == "backup")


@pytest.mark.parametrize("room", RUN_BY_US)
def test_a_pod_is_not_put_out_for_what_lies_in_its_home(room: str) -> None:
    """With a size limit the kubelet kills it after a second, and the alert on its disk looks at another size."""
    [home] = [volume for volume in RUN_BY_US[room]["volumes"] if volume["name"] == "home"]
    assert home["emptyDir"] == {}


def secrets_of(pod: dict[str, Any], *, optional: bool) -> set[str]:
    [given] = [volume["projected"] for volume in pod["volumes"] if volume["name"] == "secrets"]
    assert given["defaultMode"] == 0o440
    sources = [source["secret"] for source in given["sources"]]
    assert {source["name"] for source in sources} == {"luthier-secrets"}
    return {item["path"] for source in sources for item in source["items"] if source.get("optional", False) == optional}


@pytest.mark.parametrize("room", RUN_BY_US)
def test_no_pod_starts_without_the_secrets_that_it_would_else_do_without(room: str) -> None:
    """Each process of the API would invent a pepper of its own, and know no key of the others."""
    needed = {"luthier_mongo_url"}
    needed |= {"luthier_internal_token"} if room in ("api", "inference") else set()
    needed |= {"luthier_pepper"} if room == "api" else set()
    assert secrets_of(RUN_BY_US[room], optional=False) == needed
    assert secrets_of(RUN_BY_US[room], optional=True) <= {"luthier_kafka_password", "aws_credentials"}


@pytest.mark.parametrize("room", ROOMS)
def test_a_room_starts_with_what_it_is_told(room: str) -> None:
    [container] = PODS[room]["containers"]
    assert container["args"] == [MODULES[room]]
    engine = room in ("trainer", "inference")
    assert container["image"] == ("luthier-engine" if engine else "luthier-service")
    own = {given["name"] for given in container.get("env", [])}
    assert unknown_settings(room, own) == set()
    fields = settings_class(room).model_fields
    files = (secrets_of(PODS[room], optional=False) | secrets_of(PODS[room], optional=True)) - {"aws_credentials"}
    assert {file.removeprefix("luthier_") for file in files} <= set(fields)
    told = {f"luthier_{name}" for name in fields if f"LUTHIER_{name.upper()}" in shared_settings()} | files
    assert {f"luthier_{name}" for name, field in fields.items() if field.is_required()} <= told


def test_shared_settings_are_settings_of_somebody() -> None:
    known = {f"LUTHIER_{name.upper()}" for room in ROOMS for name in settings_class(room).model_fields}
    for folder in ("base", *OVERLAYS):
        for generator in _kustomization(folder).get("configMapGenerator", []):
            names = {literal.split("=", 1)[0] for literal in generator.get("literals", [])}
            assert {name for name in names if name.startswith("LUTHIER_")} <= known | OUTSIDE_SETTINGS


def test_files_and_pages_name_the_same_images() -> None:
    version = metadata.version("luthier-common")
    for torch, folder in (("cpu", "overlays/cpu"), ("cuda", "overlays/production")):
        images = {f"luthier-service:{version}", f"luthier-engine:{version}-{torch}"}
        services = compose(EXAMPLE | {"LUTHIER_TORCH": torch})["services"]
        assert {services[room]["image"] for room in ROOMS} == images
        assert {f"{image['name']}:{image['newTag']}" for image in _kustomization(folder)["images"]} == images
    assert f"\nLUTHIER_VERSION={version}\n" in (ROOT / ".env.example").read_text()
    built = re.findall(r"^docker build .* -t (\S+) ", (ROOT / "docs" / "production.md").read_text(), re.MULTILINE)
    pulled = _kustomization("overlays/production")["images"]
    assert sorted(built) == sorted(f"{image['newName']}:{image['newTag']}" for image in pulled)


def _kustomization(folder: str) -> dict[str, Any]:
    read: dict[str, Any] = yaml.safe_load((MANIFESTS / folder / "kustomization.yaml").read_text())
    return read


@pytest.mark.parametrize("room", [room for room in ROOMS if room != "migrate"])
def test_probes_ask_where_the_room_answers(room: str) -> None:
    [container] = PODS[room]["containers"]
    ports = {port["name"]: port["containerPort"] for port in container["ports"]}
    assert str(ports["health"]) == image_env()["LUTHIER_HEALTH_PORT"]
    assert shared_settings()["LUTHIER_HEALTH_HOST"] == "0.0.0.0"
    for probe in ("startupProbe", "livenessProbe", "readinessProbe"):
        asked = container[probe]["httpGet"]
        assert asked["port"] in ports
        assert asked["path"] == ("/readyz" if probe == "readinessProbe" and room != "api" else "/healthz")
    for variable, port in (("LUTHIER_PORT", "http"), ("LUTHIER_INFERENCE_PORT", "http")):
        told = [given["value"] for given in container.get("env", []) if given["name"] == variable]
        assert told in ([], [str(ports.get(port))])


def test_everybody_may_finish() -> None:
    for room, pod in PODS.items():
        budget_s = TRAINER_STOP_BUDGET_S if room == "trainer" else STOP_BUDGET_S
        before_s = 5 if room == "api" else 0
        assert pod["terminationGracePeriodSeconds"] >= before_s + budget_s + 5
    assert PODS["api"]["containers"][0]["lifecycle"] == {"preStop": {"exec": {"command": ["sleep", "5"]}}}


def test_metrics_come_as_often_as_the_alert_rules_look() -> None:
    rules = (ROOT / "infra" / "prometheus" / "alerts.yml").read_text()
    assert set(re.findall(r"_over_time\([^()]*\[(\w+)\]\)", rules)) == {"1m"}
    compose_env = compose(EXAMPLE)["services"]["api"]["environment"]
    for told in (shared_settings(), compose_env):
        assert int(told["OTEL_METRIC_EXPORT_INTERVAL"]) <= 30_000


def test_a_backup_is_made_when_asked_for_and_by_a_command_that_exists() -> None:
    spec = BACKUP["spec"]
    assert spec["suspend"] is True
    assert spec["jobTemplate"]["metadata"]["labels"]["app.kubernetes.io/part-of"] == "luthier"
    assert spec["jobTemplate"]["spec"]["template"]["metadata"]["labels"] == BACKUP["metadata"]["labels"]
    [container] = RUN_BY_US["backup"]["containers"]
    module, *arguments = container["args"]
    asked = importlib.import_module(module)._parser().parse_args(arguments)
    assert (asked.group, asked.verb, str(asked.folder)) == ("backup", "create", "/backups/$(POD_NAME)")
    assert [given["name"] for given in container["env"]] == ["POD_NAME"]
    claim = {"name": "backups", "persistentVolumeClaim": {"claimName": "luthier-backups"}}
    assert claim in RUN_BY_US["backup"]["volumes"]


def test_trainers_and_engines_are_where_the_gpus_are() -> None:
    for room in ("trainer", "inference"):
        assert room in named("DaemonSet")
        assert PODS[room]["nodeSelector"] == {"nvidia.com/gpu.present": "true"}
        assert PODS[room]["containers"][0]["resources"]["limits"]["nvidia.com/gpu"] == 1


@pytest.mark.parametrize(("room", "label"), [("trainer", "luthier.dev/trains"), ("inference", "luthier.dev/serves")])
def test_a_label_takes_a_machine_out(room: str, label: str) -> None:
    wanted = PODS[room]["affinity"]["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"]
    out = {"key": label, "operator": "NotIn", "values": ["false"]}
    assert wanted == {"nodeSelectorTerms": [{"matchExpressions": [out]}]}
    for page in ("docs/operations.md", "infra/k8s/README.md"):
        assert f"{label}=false" in (ROOT / page).read_text()


def test_budgets_and_scalers_mean_what_is_there() -> None:
    deployments = named("Deployment")
    assert deployments["scheduler"]["replicas"] == 2
    for name, scaler in named("HorizontalPodAutoscaler").items():
        assert scaler["scaleTargetRef"]["name"] == name
        assert "replicas" not in deployments[name]
        assert scaler["minReplicas"] >= 2
    for name, budget in named("PodDisruptionBudget").items():
        assert budget["selector"] == deployments[name]["selector"]
        assert deployments[name].get("replicas", 2) > budget["minAvailable"]


def test_what_is_selected_exists() -> None:
    labels = named("Deployment") | named("DaemonSet")
    for name, spec in labels.items():
        wanted = spec["selector"]["matchLabels"]
        assert wanted.items() <= spec["template"]["metadata"]["labels"].items(), name
    for name, service in named("Service").items():
        assert service["selector"] == labels[name]["selector"]["matchLabels"]
    policies = named("NetworkPolicy")
    assert policies["default-deny"] == {"podSelector": {}, "policyTypes": ["Ingress", "Egress"]}


@pytest.mark.parametrize("folder", OVERLAYS)
def test_an_overlay_changes_what_is_there(folder: str) -> None:
    overlay = _kustomization(folder)
    assert overlay["resources"] == ["../../base"]
    images = {container["image"] for pod in RUN_BY_US.values() for container in pod["containers"]}
    assert {image["name"] for image in overlay["images"]} == images
    for patch in overlay["patches"]:
        assert "patch" in patch or (MANIFESTS / folder / patch["path"]).is_file()
        assert patch.get("target", {}).get("name", "api") in RUN_BY_US


@pytest.mark.parametrize("folder", OVERLAYS)
def test_a_rendered_overlay_follows_the_schema_and_keeps_what_belongs_together(folder: str, tmp_path: Path) -> None:
    if (kubectl := shutil.which("kubectl")) is None:
        pytest.skip(f"{NEEDS_KUBECTL} of the last few years: it renders the overlay")
    command = [kubectl, "kustomize", str(MANIFESTS / folder)]
    rendered = subprocess.run(command, capture_output=True, text=True, env={"HOME": str(tmp_path), "PATH": "/usr/bin"})
    assert rendered.returncode == 0, rendered.stderr
    for resource in yaml.load_all(rendered.stdout, yaml.CSafeLoader):
        validate(resource)
        if resource["kind"] == "DaemonSet":
            name = resource["metadata"]["name"]
            [container] = resource["spec"]["template"]["spec"]["containers"]
            assert ("nvidia.com/gpu" in container["resources"]["limits"]) == (folder != "overlays/cpu")
            told = {given["name"]: given.get("value") for given in container["env"]}
            device = "cpu" if folder == "overlays/cpu" else "cuda"
            assert told[DEVICES[name]] == device
            if folder == "overlays/production":
                assert _memory_a_slot(container) == _memory_a_slot(PODS[name]["containers"][0])
        if resource["kind"] == "CronJob":
            pod = resource["spec"]["jobTemplate"]["spec"]["template"]["spec"]
            assert pod["containers"][0]["envFrom"][0]["configMapRef"]["name"].startswith("luthier-settings-")
            has_authorities = any(volume["name"] == "authorities" for volume in pod["volumes"])
            assert has_authorities == (folder == "overlays/production")


def _memory_a_slot(container: dict[str, Any]) -> tuple[float, float]:
    """What is asked for and what is allowed, in GiB."""
    num_slots = int(container["resources"]["limits"]["nvidia.com/gpu"])
    asked, allowed = (container["resources"][kind]["memory"] for kind in ("requests", "limits"))
    return float(asked.removesuffix("Gi")) / num_slots, float(allowed.removesuffix("Gi")) / num_slots


@pytest.mark.parametrize(("page", "kinds"), [("production", {"PersistentVolumeClaim", "Pod"}), ("operations", {"Pod"})])
def test_what_the_handbook_has_applied_follows_the_schema_and_the_rights(page: str, kinds: set[str]) -> None:
    blocks = re.findall(r"^```yaml\n(.*?)^```", (ROOT / "docs" / f"{page}.md").read_text(), re.MULTILINE | re.DOTALL)
    objects = [each for block in blocks for each in yaml.safe_load_all(block) if isinstance(each, dict)]
    assert {each["kind"] for each in objects} == kinds
    [image] = [each for each in _kustomization("overlays/production")["images"] if each["name"] == "luthier-service"]
    for each in objects:
        validate(each)
        if each["kind"] == "Pod":
            [container] = each["spec"]["containers"]
            assert container["image"] == f"{image['newName']}:{image['newTag']}"
            assert each["spec"]["securityContext"].items() >= RUN_BY_US["migrate"]["securityContext"].items()
            assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}
