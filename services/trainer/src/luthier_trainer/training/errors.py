"""Why a run cannot go on, with a stable reason."""

from luthier_common.contract.reasons import FailureReason


class TrainingError(Exception):
    """The message reaches the user and holds no text of any row."""

    def __init__(self, reason: FailureReason, message: str) -> None:
        super().__init__(message)
        self.reason = reason
        self.message = message

    @property
    def is_retryable(self) -> bool:
        """Whether another attempt may end differently."""
        return self.reason.owner != "user"
