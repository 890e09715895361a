"""What the scheduler reads from the environment."""

from pydantic import Field

from luthier_common.kit.settings import RoomSettings


class SchedulerSettings(RoomSettings):
    tick_s: float = Field(
        0.5, description="how often the cycle runs without being woken; no fact says that slots are free"
    )
    leader_ttl_s: float = Field(
        3.0, description="a standby takes over this long after the active instance stopped renewing"
    )
    leader_renew_s: float = Field(1.0, description="interval at which the active instance renews, and a standby tries")
    max_strikes: int = Field(
        3, ge=1, description="runs in a row that end without a new checkpoint before the job fails"
    )
    retry_rest_s: float = Field(
        15.0,
        ge=0,
        description="unit of the rest after a failed run: 2 x this after the first strike, 4 x after the second",
    )
    position_interval_s: float = Field(1.0, description="queue positions are written at most this often")
