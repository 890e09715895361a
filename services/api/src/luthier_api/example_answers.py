"""What operations answer, shown in the description. Typed as the answers are, so that none shows what is not sent."""

from typing import Any

from luthier_api.examples import FILE, MODEL
from luthier_api.wire.chat import ChatCompletion
from luthier_api.wire.checkpoints import CheckpointObject
from luthier_api.wire.events import EventObject
from luthier_api.wire.files import FileObject
from luthier_api.wire.jobs import JobObject
from luthier_api.wire.lists import DeletedObject, list_object
from luthier_api.wire.models import ModelObject
from luthier_api.wire.responses import ResponseObject
from luthier_api.wire.uploads import UploadObject
from luthier_api.wire.validation import ValidationObject

JOB = "ftjob-01a1fe8259612581b2a1320c"
BASE = "SmolLM2-135M-Instruct"
SAID = "Between 45 and 55 percent, all year round."
_HYPERPARAMETERS: dict[str, Any] = {
    "n_epochs": 3,
    "batch_size": 4,
    "learning_rate": 0.0002,
    "learning_rate_multiplier": 1.0,
    "lora": True,
    "lora_r": 16,
    "lora_alpha": 32,
    "context_length": 2048,
}
_CREATED: JobObject = {
    "id": JOB,
    "object": "fine_tuning.job",
    "created_at": 1795271333,
    "finished_at": None,
    "model": BASE,
    "fine_tuned_model": None,
    "organization_id": "org-default",
    "status": "validating_files",
    "hyperparameters": {"n_epochs": 3, "lora_r": 16},
    "method": {"type": "supervised", "supervised": {"hyperparameters": {"n_epochs": 3, "lora_r": 16}}},
    "training_file": FILE,
    "validation_file": None,
    "result_files": [],
    "trained_tokens": None,
    "error": None,
    "seed": 1183249671,
    "estimated_finish": None,
    "integrations": [],
    "metadata": {"team": "support"},
    "suffix": "brightwood",
    "trained_steps": 0,
    "total_steps": None,
    "x_state": "checking",
    "x_attempt": 0,
    "x_queue": None,
}
_SUCCEEDED: JobObject = {
    **_CREATED,
    "finished_at": 1795271541,
    "fine_tuned_model": MODEL,
    "status": "succeeded",
    "hyperparameters": _HYPERPARAMETERS,
    "method": {"type": "supervised", "supervised": {"hyperparameters": _HYPERPARAMETERS}},
    "result_files": ["file-01a1fe8259612581b2a1320c"],
    "trained_tokens": 41_130,
    "trained_steps": 30,
    "total_steps": 30,
    "x_state": "succeeded",
    "x_attempt": 1,
}
_PAUSED: JobObject = {**_CREATED, "status": "paused", "trained_steps": 12, "total_steps": 30, "x_state": "paused"}
_CANCELLED: JobObject = {**_CREATED, "status": "cancelled", "finished_at": 1795271390, "x_state": "cancelled"}
_QUEUED: JobObject = {
    **_CREATED,
    "status": "queued",
    "x_state": "waiting",
    "x_queue": {"position": 1, "reason": "no_free_slots", "message": "All slots are taken."},
}
_FILE: FileObject = {
    "id": FILE,
    "object": "file",
    "bytes": 58_214,
    "created_at": 1795271317,
    "filename": "train.jsonl",
    "purpose": "fine-tune",
    "status": "uploaded",
    "status_details": None,
    "expires_at": None,
    "sha256": "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08",
}
_UPLOAD: UploadObject = {
    "id": "upload_01a1fe8258e8adf6c38844ef",
    "object": "upload",
    "bytes": 58_214,
    "created_at": 1795271310,
    "expires_at": 1795274910,
    "filename": "train.jsonl",
    "purpose": "fine-tune",
    "status": "pending",
    "file": None,
}
_COMPLETED: UploadObject = {**_UPLOAD, "status": "completed", "file": _FILE}
_STEP: EventObject = {
    "id": "ftevent-01a1fe8259612581b2a1320c-000014.1",
    "object": "fine_tuning.job.event",
    "created_at": 1795271534,
    "level": "info",
    "message": "Step 30/30: training loss=0.4417",
    "type": "metrics",
    "data": {"step": 30, "total_steps": 30, "train_loss": 0.4417},
}
_CHECKPOINT: CheckpointObject = {
    "id": "ftckpt_01a1fe8259612581b2a1320c000015",
    "object": "fine_tuning.job.checkpoint",
    "created_at": 1795271535,
    "fine_tuned_model_checkpoint": f"{MODEL}:ckpt-step-30",
    "fine_tuning_job_id": JOB,
    "step_number": 30,
    "metrics": {"step": 30, "train_loss": 0.4417, "full_valid_loss": 0.3052},
    "result_files": [],
    "x_callable": True,
}
_MODEL: ModelObject = {
    "id": MODEL,
    "object": "model",
    "created": 1795271541,
    "owned_by": "org-default",
    "x_base": BASE,
    "x_job": JOB,
}
_DELETED_FILE: DeletedObject = {"id": FILE, "object": "file", "deleted": True}
_DELETED_MODEL: DeletedObject = {"id": MODEL, "object": "model", "deleted": True}
_CHAT: ChatCompletion = {
    "id": "chatcmpl-01a1fe825b2f",
    "object": "chat.completion",
    "created": 1795271600,
    "model": MODEL,
    "choices": [
        {
            "index": 0,
            "message": {"role": "assistant", "content": SAID, "refusal": None},
            "logprobs": None,
            "finish_reason": "stop",
        }
    ],
    "usage": {"prompt_tokens": 21, "completion_tokens": 12, "total_tokens": 33},
}
_RESPONSE: ResponseObject = {
    "id": "resp_01a1fe825c0a7f3342d10b77",
    "object": "response",
    "created_at": 1795271610,
    "completed_at": 1795271611,
    "status": "completed",
    "error": None,
    "incomplete_details": None,
    "background": False,
    "instructions": None,
    "max_output_tokens": None,
    "max_tool_calls": None,
    "metadata": {},
    "model": MODEL,
    "output": [
        {
            "id": "msg_01a1fe825c0a7f3342d10b78",
            "type": "message",
            "role": "assistant",
            "status": "completed",
            "content": [{"type": "output_text", "text": SAID, "annotations": [], "logprobs": []}],
        }
    ],
    "output_text": SAID,
    "parallel_tool_calls": True,
    "previous_response_id": None,
    "store": True,
    "temperature": 1.0,
    "top_p": 1.0,
    "frequency_penalty": 0.0,
    "presence_penalty": 0.0,
    "top_logprobs": 0,
    "text": {"format": {"type": "text"}},
    "tool_choice": "auto",
    "tools": [],
    "truncation": "disabled",
    "usage": {
        "input_tokens": 21,
        "input_tokens_details": {"cached_tokens": 0, "cache_write_tokens": 0},
        "output_tokens": 12,
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": 33,
    },
    "user": None,
    "safety_identifier": None,
    "prompt_cache_key": None,
    "service_tier": "default",
    "x_dropped_messages": 0,
}
_VALIDATION: ValidationObject = {
    "object": "fine_tuning.validation",
    "status": "done",
    "valid": True,
    "errors": [],
    "hyperparameters": _HYPERPARAMETERS,
    "num_examples": 40,
    "num_tokens": 13_710,
    "estimated_steps": 30,
}
ANSWERS: dict[str, Any] = {
    "create_file": _FILE,
    "retrieve_file": _FILE,
    "list_files": list_object([_FILE], has_more=False),
    "delete_file": _DELETED_FILE,
    "create_upload": _UPLOAD,
    "complete_upload": _COMPLETED,
    "create_fine_tuning_job": _CREATED,
    "retrieve_fine_tuning_job": _SUCCEEDED,
    "list_fine_tuning_jobs": list_object([_SUCCEEDED], has_more=False),
    "cancel_fine_tuning_job": _CANCELLED,
    "pause_fine_tuning_job": _PAUSED,
    "resume_fine_tuning_job": _QUEUED,
    "validate_fine_tuning_job": _VALIDATION,
    "list_fine_tuning_events": list_object([_STEP], has_more=True),
    "list_fine_tuning_job_checkpoints": list_object([_CHECKPOINT], has_more=False),
    "retrieve_model": _MODEL,
    "list_models": list_object([_MODEL], has_more=False),
    "delete_model": _DELETED_MODEL,
    "create_chat_completion": _CHAT,
    "create_response": _RESPONSE,
    "retrieve_response": _RESPONSE,
}
