"""What the file-validator reads from the environment."""

from pydantic import Field

from luthier_common.kit.settings import RoomSettings

MIB = 1024 * 1024


class FileValidatorSettings(RoomSettings):
    min_examples: int = Field(10, ge=1, description="fewest examples of a training file")
    max_examples: int | None = Field(None, ge=1, description="most examples of a training file; none: no limit")
    max_findings: int = Field(10_000, ge=1, description="findings that a report lists, errors first; it counts all")
    max_parallel: int = Field(2, ge=1, description="checks of each loop at a time; one project has all but one")
    check_memory_bytes: int = Field(1024 * MIB, description="address space of a check")
    check_cpu_s: int = Field(3600, description="processor time of a check")
    check_wall_s: float = Field(7200.0, description="wall time of a check")
    claim_ttl_s: float = Field(15.0, description="another validator may take over work that was not renewed so long")
