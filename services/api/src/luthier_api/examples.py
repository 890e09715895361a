"""A body that works for each operation that takes one, and what a few operations answer; shown in the description."""

from typing import Any

_JOB = "ftjob-01a1fe8259612581b2a1320c"
_FILE = "file-01a1fe8258e8adf6c38844ef"
_MODEL = "ft:SmolLM2-135M-Instruct:default:brightwood:2581b2a1320c"
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
    "training_file": _FILE,
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
        "model": _MODEL,
        "messages": [{"role": "user", "content": "What humidity should I keep my violin at?"}],
        "max_completion_tokens": 60,
    },
    "create_response": {"model": _MODEL, "input": "What humidity should I keep my violin at?"},
    "create_project": {"name": "support"},
    "create_project_api_key": {"name": "nightly", "scopes": ["files:write", "fine-tuning:write", "fine-tuning:read"]},
    "create_admin_api_key": {"name": "operations"},
}
ANSWERS: dict[str, Any] = {
    "create_file": {
        "id": _FILE,
        "object": "file",
        "bytes": 58214,
        "created_at": 1795271317,
        "filename": "train.jsonl",
        "purpose": "fine-tune",
        "status": "uploaded",
        "status_details": None,
        "expires_at": None,
        "sha256": "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08",
    },
    "list_fine_tuning_events": {
        "object": "list",
        "data": [
            {
                "id": "ftevent-01a1fe8259612581b2a1320c-000014.1",
                "object": "fine_tuning.job.event",
                "created_at": 1795271534,
                "level": "info",
                "message": "Step 30/30: training loss=0.4417",
                "type": "metrics",
                "data": {"step": 30, "total_steps": 30, "train_loss": 0.4417},
            }
        ],
        "first_id": "ftevent-01a1fe8259612581b2a1320c-000014.1",
        "last_id": "ftevent-01a1fe8259612581b2a1320c-000014.1",
        "has_more": True,
    },
    "list_fine_tuning_job_checkpoints": {
        "object": "list",
        "data": [
            {
                "id": "ftckpt_01a1fe8259612581b2a1320c000015",
                "object": "fine_tuning.job.checkpoint",
                "created_at": 1795271535,
                "fine_tuned_model_checkpoint": f"{_MODEL}:ckpt-step-30",
                "fine_tuning_job_id": _JOB,
                "step_number": 30,
                "metrics": {"step": 30, "train_loss": 0.4417, "full_valid_loss": 0.3052},
                "result_files": [],
                "x_callable": True,
            }
        ],
        "first_id": "ftckpt_01a1fe8259612581b2a1320c000015",
        "last_id": "ftckpt_01a1fe8259612581b2a1320c000015",
        "has_more": False,
    },
}
