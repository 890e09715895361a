"""What the file-validator reads from the environment."""

from pydantic import Field

from luthier_common.kit.settings import RoomSettings

MIB = 1024 * 1024
FULL_TIME_BYTES = 512 * MIB
"""A busy machine reads so much, at 0.8 MB/s, in a fifth of `check_cpu_s`."""


class FileValidatorSettings(RoomSettings):
    min_examples: int = Field(10, ge=1, description="fewest examples of a training file")
    max_examples: int | None = Field(None, ge=1, description="most examples of a training file; none: no limit")
    max_findings: int = Field(10_000, ge=1, description="findings that a report lists, errors first; it counts all")
    max_parallel: int = Field(
        3, ge=1, description="checks of each loop at a time; of large files one less, of one project's two less"
    )
    check_memory_bytes: int = Field(1024 * MIB, description="address space of a check")
    check_cpu_s: int = Field(3600, description="processor time of a check; above 512 MiB in proportion to the file")
    check_wall_s: float = Field(7200.0, description="wall time of a check; above 512 MiB in proportion to the file")
    claim_ttl_s: float = Field(15.0, description="another validator may take over work that was not renewed so long")

    def time_factor(self, num_bytes: int) -> float:
        """How many times as long the check of a file of this size may take as that of a small one."""
        return max(1.0, num_bytes / FULL_TIME_BYTES)
