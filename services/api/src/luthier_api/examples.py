"""A body that works for each operation that takes one, shown in the description."""

from typing import Any

FILE = "file-01a1fe8258e8adf6c38844ef"
MODEL = "ft:SmolLM2-135M-Instruct:default:brightwood:2581b2a1320c"
_GRADER = {
    "type": "multi",
    "graders": {
        "exact": {
            "type": "string_check",
            "name": "exact",
            "input": "{{sample.output_text}}",
            "reference": "{{item.answer}}",
            "operation": "eq",
        },
        "close": {
            "type": "text_similarity",
            "name": "close",
            "input": "{{sample.output_text}}",
            "reference": "{{item.answer}}",
            "evaluation_metric": "rouge_l",
        },
    },
    "calculate_output": "max(exact, 0.5 * close)",
    "name": "answer",
}
_CREATE = {
    "model": "SmolLM2-135M-Instruct",
    "training_file": FILE,
    "suffix": "brightwood",
    "method": {"type": "supervised", "supervised": {"hyperparameters": {"n_epochs": 3, "lora_r": 16}}},
    "metadata": {"team": "support"},
}
REQUESTS: dict[str, Any] = {
    "create_upload": {"bytes": 1048576, "filename": "train.jsonl", "mime_type": "text/jsonl", "purpose": "fine-tune"},
    "complete_upload": {"part_ids": ["part_01a1fe8258e8adf6c38844ef"]},
    "create_fine_tuning_job": _CREATE,
    "validate_fine_tuning_job": _CREATE,
    "run_grader": {"grader": _GRADER, "model_sample": "45 to 55 percent", "item": {"answer": "45 to 55 percent"}},
    "validate_grader": {"grader": _GRADER},
    "create_checkpoint_permissions": {"project_ids": ["proj-01a1fe8258e8adf6c38844ef"]},
    "create_chat_completion": {
        "model": MODEL,
        "messages": [{"role": "user", "content": "What humidity should I keep my violin at?"}],
        "max_completion_tokens": 60,
    },
    "create_response": {"model": MODEL, "input": "What humidity should I keep my violin at?"},
    "create_project": {"name": "support"},
    "create_project_api_key": {"name": "nightly", "scopes": ["files:write", "fine-tuning:write", "fine-tuning:read"]},
    "create_admin_api_key": {"name": "operations"},
}
