"""Why a thing failed: stable codes, each with the sentence that documents it. On the wire they are open strings."""

from enum import StrEnum
from typing import Self


class FailureReason(StrEnum):
    """A stable code; `.sentence` documents it, `.owner` says whose move it is (`user` or `operator`)."""

    sentence: str
    owner: str

    def __new__(cls, code: str, owner: str, sentence: str) -> Self:
        member = str.__new__(cls, code)
        member._value_ = code
        member.owner = owner
        member.sentence = sentence
        return member

    INVALID_FILE = (
        "invalid_file",
        "user",
        "A data file has lines that cannot be trained on; the error names the first of them.",
    )
    INVALID_N_EXAMPLES = (
        "invalid_n_examples",
        "user",
        "The training file has fewer examples than the minimum, or more than the maximum.",
    )
    CHECK_LIMITS_EXCEEDED = "check_limits_exceeded", "user", "Reading a data file took more memory or time than it may."
    FILE_MISSING = "file_missing", "user", "A data file was deleted before the job could read it."
    ROW_TOO_LONG = (
        "row_too_long",
        "user",
        "A row is longer than the context length; the error names up to ten lines.",
    )
    NOTHING_TO_LEARN = "nothing_to_learn", "user", "No row holds an assistant message that could be learned."
    TEMPLATE_REFUSED = (
        "template_refused",
        "user",
        (
            "The base model's chat template refuses a row (its roles, for example), leaves a part of it out "
            "(a message, tools), or prints a reply otherwise than it is served; the message says which."
        ),
    )
    BASE_MISSING = "base_missing", "operator", "The base model's bundle cannot be read from the catalogue."
    OUT_OF_MEMORY = "out_of_memory", "user", "The run needed more memory than its slots have."
    LOSS_DIVERGED = "loss_diverged", "user", "The loss became infinite or not a number."
    RUN_CRASHED = "run_crashed", "operator", "The training process ended without saying why; its log is kept."
    RUN_STALLED = "run_stalled", "operator", "The training process made no step for far longer than its steps take."
    LEASE_EXPIRED = "lease_expired", "operator", "The node that ran the job stopped answering."
    NODE_RESTARTED = "node_restarted", "operator", "The trainer of the node restarted while the job ran."
    STORAGE = "storage", "operator", "A checkpoint or artifact could not be written or read."
    CHECKPOINT_CORRUPT = "checkpoint_corrupt", "operator", "A checkpoint does not match its manifest."
    ATTEMPTS_EXHAUSTED = "attempts_exhausted", "operator", "Three attempts in a row ended without a new checkpoint."
    ARTIFACT_CORRUPT = "artifact_corrupt", "operator", "The finished model's files do not match their manifest."
    TEMPLATE_MISMATCH = "template_mismatch", "operator", "Serving would turn rows into other tokens than training did."
    SERVING_FAILED = "serving_failed", "operator", "The finished model could not be loaded or gave no answer."
    INTERNAL = "internal_error", "operator", "A fault of the platform; the logs hold the cause under the job's id."
