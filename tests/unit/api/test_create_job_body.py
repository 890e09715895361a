"""What the body of a create may say, in every client's manner."""

from typing import Any

import pytest
from pydantic import ValidationError

from luthier_api.dialects.openai.create import CreateJob, wanted_job
from luthier_api.errors import ApiError
from luthier_api.services.jobs import WantedJob
from luthier_common.contract.spec import Hyperparameters


def parse(**body: Any) -> WantedJob:
    return wanted_job(CreateJob.model_validate({"model": "m", "training_file": "f"} | body))


def test_nothing_given_means_auto() -> None:
    assert parse().hyperparameters == Hyperparameters()
    assert parse(hyperparameters={"n_epochs": None}, metadata=None, seed=None, suffix=None).seed is None


@pytest.mark.parametrize(
    "body",
    [
        {"hyperparameters": {"n_epochs": 3, "batch_size": "auto"}},
        {"method": {"type": "supervised", "supervised": {"hyperparameters": {"n_epochs": 3, "batch_size": "auto"}}}},
        {"method": {"type": "supervised", "supervised": {"n_epochs": 3, "batch_size": "auto"}}},
        {
            "hyperparameters": {"n_epochs": 3},
            "method": {
                "type": "supervised",
                "supervised": {"hyperparameters": {"n_epochs": 3.0, "batch_size": "auto"}},
            },
        },
    ],
)
def test_hyperparameters_are_taken_from_every_place(body: dict[str, Any]) -> None:
    assert parse(**body).hyperparameters == Hyperparameters(n_epochs=3, batch_size="auto")


def test_what_nebius_sends_is_kept() -> None:
    given = {
        "batch_size": 8,
        "context_length": 8192,
        "learning_rate": 1e-5,
        "n_epochs": 3,
        "warmup_ratio": 0.1,
        "weight_decay": 0,
        "lora": True,
        "lora_r": 8,
        "lora_alpha": 8,
        "lora_dropout": 0,
        "packing": True,
        "max_grad_norm": 1,
    }
    assert parse(hyperparameters=given).hyperparameters == Hyperparameters(**given)


@pytest.mark.parametrize(
    ("body", "param"),
    [
        (
            {
                "hyperparameters": {"n_epochs": 3},
                "method": {"type": "supervised", "supervised": {"hyperparameters": {"n_epochs": 4}}},
            },
            "method.supervised.hyperparameters.n_epochs",
        ),
        ({"hyperparameters": {"learning_rate": 1e-4, "learning_rate_multiplier": 2}}, "hyperparameters.learning_rate"),
        ({"hyperparameters": {"warmup_ratio": 0.1, "warmup_steps": 2}}, "hyperparameters.warmup_ratio"),
        ({"suffix": "a", "nickname": "b"}, "nickname"),
        ({"method": {"type": "supervised", "dpo": {}}}, "method.dpo"),
        ({"method": {"type": "reinforcement", "reinforcement": {"grader": {}}}}, "method"),
        ({"integrations": [{"type": "wandb"}]}, "integrations"),
        ({"suffix": ""}, "suffix"),
        ({"suffix": "a/b"}, "suffix"),
        ({"suffix": "x" * 65}, "suffix"),
    ],
)
def test_contradictions_and_what_is_not_supported_name_their_parameter(body: dict[str, Any], param: str) -> None:
    with pytest.raises(ApiError) as caught:
        parse(**body)
    assert (caught.value.status, caught.value.param) == (400, param)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("n_epochs", 0),
        ("n_epochs", 51),
        ("n_epochs", 1.5),
        ("n_epochs", "3"),
        ("n_epochs", True),
        ("batch_size", 257),
        ("learning_rate_multiplier", 0),
        ("learning_rate_multiplier", float("inf")),
        ("learning_rate_multiplier", float("nan")),
        ("learning_rate", 0),
        ("warmup_ratio", 1.1),
        ("lora_r", 0),
        ("lora_alpha", 1e19),
        ("warmup_steps", 10**30),
        ("lora", "yes"),
        ("unknown", 1),
    ],
)
def test_values_out_of_range_are_refused_where_they_stand(name: str, value: Any) -> None:
    with pytest.raises(ValidationError) as caught:
        parse(hyperparameters={name: value})
    assert [error["loc"] for error in caught.value.errors()] == [("hyperparameters", name)]


def test_a_nickname_is_a_suffix_and_a_huge_number_no_crash() -> None:
    assert parse(nickname="bot").suffix == "bot"
    assert parse(seed=-(2**53)).seed == -(2**53)
    with pytest.raises(ValidationError):
        parse(seed=10**400)
