"""Names, what a model may consist of, what becomes of a staged model, and the metrics as users get them."""

import json
from typing import Any

import pytest

from luthier_common.contract.ids import model_id_of, model_name, result_file_id_of
from luthier_registry.domain import (
    ArtifactCorruptError,
    Fate,
    aliases_of,
    fate_of,
    read_artifact_manifest,
)
from luthier_registry.results import StepTable

JOB = "ftjob-0199aabbccdd112233445566"
NAMES = ("adapter_config.json", "adapter_model.safetensors", "tokenizer.json", "chat_template.jinja", "text.json")


def manifest(*names: str) -> bytes:
    files = [{"name": name, "bytes": 1, "sha256": "0" * 64} for name in names]
    return json.dumps({"step": 6, "attempt": 1, "files": files}).encode()


def test_ids_follow_from_the_job_and_its_generation() -> None:
    assert model_id_of(JOB, 1) == "ftmodel-0199aabbccdd112233445566"
    assert result_file_id_of(JOB, 1) == "file-0199aabbccdd112233445566"
    assert len({model_id_of(JOB, generation) for generation in (1, 2, 3)}) == 3


def test_a_name_holds_base_org_suffix_and_an_id() -> None:
    first, second = model_id_of(JOB, 1), model_id_of(JOB, 2)
    assert model_name("SmolLM2", "default", "mine", first) == "ft:SmolLM2:default:mine:112233445566"
    assert model_name("meta/Llama", "default", None, first) == "ft:meta/Llama:default::112233445566"
    assert model_name("b", "A: Firm / Co", None, second) == "ft:b:A-Firm-Co::112233445566g2"


def test_a_base_is_also_known_by_its_hub_id_and_in_lower_case() -> None:
    assert aliases_of("SmolLM2-135M-Instruct") == [
        "HuggingFaceTB/SmolLM2-135M-Instruct",
        "huggingfacetb/smollm2-135m-instruct",
        "smollm2-135m-instruct",
    ]
    assert aliases_of("tiny") == []


def test_an_adapter_or_a_whole_model_may_be_published() -> None:
    assert len(read_artifact_manifest(manifest(*NAMES, "golden.json", "training.json")).files) == 7
    assert read_artifact_manifest(manifest("config.json", "model.safetensors", *NAMES[2:]))


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b"{", "cannot be read"),
        (b'{"files": [{"name": "text.json", "bytes": -1, "sha256": "0"}]}', "cannot be read"),
        (manifest(*NAMES, "optimizer.pt"), r"optimizer\.pt"),
        (manifest(*NAMES, "../../keys/text.json"), "may not hold"),
        (manifest(*NAMES, "text.json"), "twice"),
        (manifest(*NAMES[1:]), "no weights"),
        (manifest(*NAMES[:-1]), r"text\.json"),
    ],
)
def test_anything_else_is_refused(content: bytes, why: str) -> None:
    with pytest.raises(ArtifactCorruptError, match=why):
        read_artifact_manifest(content)


@pytest.mark.parametrize(
    ("job", "fate"),
    [
        (None, Fate.DELETE),
        ({"phase": "trained"}, Fate.WAIT),
        ({"phase": "staged"}, Fate.WAIT),
        ({"phase": "verified"}, Fate.WAIT),
        ({"phase": "succeeded", "staged": {"model_id": "m"}}, Fate.PUBLISH),
        ({"phase": "succeeded", "staged": {"model_id": "other"}}, Fate.DELETE),
        ({"phase": "cancelled"}, Fate.DELETE),
        ({"phase": "failed"}, Fate.DELETE),
        ({"phase": "trained", "generation": 2}, Fate.DELETE),
    ],
)
def test_a_model_is_seen_when_its_job_has_succeeded_with_it(job: dict[str, Any] | None, fate: Fate) -> None:
    model = {"_id": "m", "lineage": {"generation": 1}}
    assert fate_of(model, {"generation": 1, **job} if job else None) is fate


def test_the_csv_has_openais_columns_then_azures() -> None:
    table = StepTable()
    table.add(
        [
            b'{"step": 2, "train_loss": 1.5, "train_mean_token_accuracy": 0.25}',
            b'{"step": 1, "train_loss": 2.0, "train_mean_token_accuracy": 0.125}',
            b'{"step": 2, "full_valid_loss": 1.75, "full_valid_mean_token_accuracy": 0.5, "valid_loss": 1.8}',
            b'{"step": 1, "train_loss": NaN}',
            b"not json",
            b"[1]",
            b"",
        ]
    )
    header, *rows = table.csv().decode().splitlines()
    assert header == (
        "step,train_loss,train_accuracy,valid_loss,valid_mean_token_accuracy,"
        "train_mean_token_accuracy,validation_mean_token_accuracy,full_valid_loss,full_valid_mean_token_accuracy"
    )
    assert rows == [
        "1,,0.125,,,0.125,,,",
        "2,1.5,0.25,1.8,,0.25,,1.75,0.5",
    ]
    assert table.num_unreadable == 2
