"""The Kubernetes manifests follow the schemas of Kubernetes and tell each room only what it understands."""

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

VERSION = "1.37"
PODS = pods()
OVERLAYS = ("overlays/production", "overlays/cpu")


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


@pytest.mark.parametrize("room", ROOMS)
def test_a_pod_may_do_nothing_but_its_work(room: str) -> None:
    pod = PODS[room]
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
    assert writable - {"/dev/shm"} == {"/var/lib/luthier", "/tmp"}


@pytest.mark.parametrize("room", ROOMS)
def test_a_room_starts_with_what_it_is_told(room: str) -> None:
    [container] = PODS[room]["containers"]
    assert container["args"] == [MODULES[room]]
    engine = room in ("trainer", "inference")
    assert container["image"] == ("luthier-engine" if engine else "luthier-service")
    own = {given["name"] for given in container.get("env", [])}
    assert unknown_settings(room, own) == set()
    [secrets] = [volume["secret"] for volume in PODS[room]["volumes"] if "secret" in volume]
    fields = settings_class(room).model_fields
    files = {item["key"] for item in secrets["items"]} - {"aws_credentials"}
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
    assert PODS["trainer"]["terminationGracePeriodSeconds"] == 130
    assert all(pod["terminationGracePeriodSeconds"] >= 20 for pod in PODS.values())


def test_trainers_and_engines_are_where_the_gpus_are() -> None:
    for room in ("trainer", "inference"):
        assert room in named("DaemonSet")
        assert PODS[room]["nodeSelector"] == {"nvidia.com/gpu.present": "true"}
        assert PODS[room]["containers"][0]["resources"]["limits"]["nvidia.com/gpu"] == 1


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
def test_an_overlay_changes_what_is_there(folder: str, tmp_path: Path) -> None:
    """Rendered and validated where kubectl is at hand; its files and targets are looked at everywhere."""
    overlay = _kustomization(folder)
    assert overlay["resources"] == ["../../base"]
    images = {container["image"] for pod in PODS.values() for container in pod["containers"]}
    assert {image["name"] for image in overlay["images"]} == images
    for patch in overlay["patches"]:
        assert "patch" in patch or (MANIFESTS / folder / patch["path"]).is_file()
        assert "name" not in patch["target"] or patch["target"]["name"] in PODS
    if (kubectl := shutil.which("kubectl")) is None:
        return
    command = [kubectl, "kustomize", str(MANIFESTS / folder)]
    rendered = subprocess.run(command, capture_output=True, text=True, env={"HOME": str(tmp_path), "PATH": "/usr/bin"})
    assert rendered.returncode == 0, rendered.stderr
    for resource in yaml.load_all(rendered.stdout, yaml.CSafeLoader):
        validate(resource)
        if resource["kind"] == "DaemonSet":
            [container] = resource["spec"]["template"]["spec"]["containers"]
            assert ("nvidia.com/gpu" in container["resources"]["limits"]) == (folder != "overlays/cpu")
            device = {given["name"]: given.get("value") for given in container["env"]}.get("LUTHIER_TRAINER_DEVICE")
            trains_on = "cpu" if folder == "overlays/cpu" else "cuda"
            assert device == (trains_on if resource["metadata"]["name"] == "trainer" else None)
