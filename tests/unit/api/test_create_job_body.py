"""What the body of a create may say, in every client's manner."""

from typing import Any

import pytest
from pydantic import ValidationError

from luthier_api.dialects.openai.create import CreateJob, wanted_job
from luthier_api.dialects.openai.methods import HyperparametersIn
from luthier_api.errors import ApiError
from luthier_api.services.jobs import WantedJob
from luthier_common.contract.spec import Hyperparameters

GRADER = {"type": "string_check", "name": "same", "input": "a", "reference": "b", "operation": "eq"}
HUB = {"output_repo_name": "me/bot", "api_token": "hf_secret"}


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
        "on_overlength": "truncate",
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
        (
            {
                "hyperparameters": {"learning_rate_multiplier": 2},
                "method": {"type": "supervised", "supervised": {"learning_rate": 1e-4}},
            },
            "method.supervised.learning_rate",
        ),
        ({"suffix": "a", "nickname": "b"}, "nickname"),
        ({"method": {"type": "supervised", "dpo": {}}}, "method.dpo"),
        ({"method": {"type": "dpo", "supervised": {}}}, "method.supervised"),
        ({"method": {"type": "dpo"}, "hyperparameters": {"lora_r": 8}}, "hyperparameters.lora_r"),
        (
            {
                "method": {"type": "dpo", "dpo": {"hyperparameters": {"n_epochs": 3}}},
                "hyperparameters": {"n_epochs": 2},
            },
            "method.dpo.hyperparameters.n_epochs",
        ),
        ({"method": {"type": "reinforcement"}}, "method.reinforcement"),
        ({"method": {"type": "reinforcement", "reinforcement": {"grader": GRADER}}}, "validation_file"),
        (
            {"validation_file": "v", "method": {"type": "reinforcement", "reinforcement": {"grader": {}}}},
            "method.reinforcement.grader.type",
        ),
        ({"integrations": [{"type": "wandb"}]}, "integrations[0].wandb"),
        ({"integrations": [{"type": "hf", "wandb": {"project": "p"}, "hf": HUB}]}, "integrations[0].wandb"),
        ({"integrations": [{"type": "wandb", "wandb": {"project": "p", "tags": ["a"]}}]}, "integrations"),
        ({"training_file": "file-a", "validation_file": "file_a"}, "validation_file"),
        ({"model_selection": "best"}, "model_selection"),
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
        ("lora_dropout", 1),
        ("lora_alpha", 1e19),
        ("warmup_steps", 10**30),
        ("lora", "yes"),
        ("on_overlength", "cut"),
        ("eval_interval", 5),
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


@pytest.mark.parametrize(
    "method",
    [
        {"type": "dpo"},
        {"type": "dpo", "dpo": {"hyperparameters": {"beta": "auto", "n_epochs": None}}},
        {"type": "dpo", "dpo": {"hyperparameters": {"beta": 2, "batch_size": 8, "learning_rate_multiplier": 0.1}}},
        {"type": "reinforcement", "reinforcement": {"grader": GRADER}},
        {
            "type": "reinforcement",
            "reinforcement": {
                "grader": GRADER,
                "hyperparameters": {
                    "compute_multiplier": 10,
                    "eval_interval": 1,
                    "eval_samples": "auto",
                    "reasoning_effort": "low",
                },
            },
        },
    ],
)
def test_a_right_body_of_a_method_without_a_trainer_is_refused_by_the_method_name(method: dict[str, Any]) -> None:
    with pytest.raises(ApiError) as caught:
        parse(method=method, validation_file="v")
    assert (caught.value.status, caught.value.error.code, caught.value.param) == (400, "unsupported_method", "method")
    assert method["type"] in caught.value.message


@pytest.mark.parametrize(
    ("method", "values"),
    [
        ("dpo", {"beta": 0}),
        ("dpo", {"beta": 2.1}),
        ("dpo", {"n_epochs": 51}),
        ("dpo", {"eval_interval": 1}),
        ("reinforcement", {"compute_multiplier": 0.00001}),
        ("reinforcement", {"compute_multiplier": 10.1}),
        ("reinforcement", {"eval_interval": 0}),
        ("reinforcement", {"eval_samples": 1.5}),
        ("reinforcement", {"reasoning_effort": "huge"}),
        ("reinforcement", {"beta": 1}),
    ],
)
def test_ranges_hold_for_every_method(method: str, values: dict[str, Any]) -> None:
    payload = {"hyperparameters": values} | ({"grader": GRADER} if method == "reinforcement" else {})
    with pytest.raises(ValidationError) as caught:
        parse(method={"type": method, method: payload}, validation_file="v")
    assert [error["loc"] for error in caught.value.errors()] == [("method", method, "hyperparameters", *values)]


@pytest.mark.parametrize(
    "integrations",
    [
        [{"type": "mlflow"}],
        [{"type": "wandb", "wandb": {}}],
        [{"type": "wandb", "wandb": {"project": "p", "key": "secret"}}],
        [{"type": "hf", "hf": {"output_repo_name": "me/bot"}}],
        [{"type": "hf", "hf": {"output_repo_name": "", "api_token": "hf_secret"}}],
        [{"type": "hf", "hf": HUB}] * 6,
    ],
)
def test_integrations_have_one_shape_each(integrations: list[dict[str, Any]]) -> None:
    with pytest.raises(ValidationError) as caught:
        parse(integrations=integrations)
    assert "secret" not in str(caught.value)


def test_a_right_integration_is_refused_by_name_and_its_token_never_repeated() -> None:
    with pytest.raises(ApiError) as caught:
        parse(integrations=[{"type": "hf", "hf": HUB}])
    assert "hf " in caught.value.message
    assert "hf_secret" not in str(caught.value.body())


def test_null_means_not_given_everywhere() -> None:
    fields = dict.fromkeys(HyperparametersIn.model_fields)
    method = {"type": "supervised", "supervised": {"hyperparameters": fields, **fields}, "dpo": None}
    nothing = dict.fromkeys(("suffix", "nickname", "seed", "metadata", "integrations", "model_selection"))
    assert parse(method=method, hyperparameters=fields, **nothing) == parse()


def test_every_field_that_is_ours_is_documented() -> None:
    for shape in (CreateJob, HyperparametersIn):
        assert all(field.description or name == "method" for name, field in shape.model_fields.items())
