"""What the trainer reads from the environment (`LUTHIER_*`)."""

import os
import socket
from typing import Literal

from pydantic import Field

from luthier_common.kit.settings import RoomSettings


class TrainerSettings(RoomSettings):
    tick_s: float = Field(1.0, description="how often the node's claims are looked at without being woken")
    trainer_node: str = Field(
        default_factory=lambda: f"trainer-{socket.gethostname()}",
        description="name of this node, unique in the cluster",
    )
    trainer_device: Literal["auto", "cpu", "cuda"] = Field(
        "auto", description="auto: the GPUs that NVML sees, else CPU; cuda: without a GPU the service does not start"
    )
    trainer_cpu_slots: int = Field(1, ge=1, description="runs at a time on a node without GPUs")
    trainer_num_threads: int | None = Field(
        None, ge=1, description="threads of a run on CPU slots; none: the node's cores shared by its slots"
    )
    steps_every_s: float = Field(1.0, gt=0, description="step facts are stated at most this often")
    pause_budget_s: float = Field(90.0, gt=0, description="time a child has to save and end before it is killed")
    unreachable_cap_s: float = Field(
        900.0, gt=0, description="a run ends when database or object store stayed away from it this long"
    )
    checkpoint_every_steps: int | None = Field(
        None, ge=1, description="steps between two checkpoints; none: only at the end of each epoch, and by the clock"
    )
    checkpoint_every_s: float = Field(
        600.0,
        gt=0,
        description="a checkpoint is also saved when the last one is this old; of these an attempt keeps the last two",
    )
    max_tokens_per_forward: int | None = Field(
        None, ge=1, description="bounds the memory of a run; none: 16384 on a GPU, 1024 on a CPU, less where that fails"
    )
    stall_after_s: float = Field(120.0, gt=0, description="a step may take this long, or ten times the median")

    def threads_of(self, num_slots: int) -> int:
        """Threads of a run that holds so many CPU slots."""
        if self.trainer_num_threads is not None:
            return self.trainer_num_threads
        return max(1, (os.cpu_count() or 1) * num_slots // self.trainer_cpu_slots)
