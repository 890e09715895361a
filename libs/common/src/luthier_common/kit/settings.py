"""Settings that every room reads once from the environment (`LUTHIER_*`). What a job asks for is not a setting."""

from pathlib import Path

from pydantic import Field, SecretStr
from pydantic_settings import BaseSettings, SettingsConfigDict


class RoomSettings(BaseSettings):
    """Where the servers are, and the intervals that all rooms share. Frozen."""

    model_config = SettingsConfigDict(
        env_prefix="LUTHIER_",
        frozen=True,
        extra="ignore",
        hide_input_in_errors=True,  # the input holds the database's password
    )

    home: Path = Field(Path(".luthier"), description="directory for caches, run directories and the embedded parts")
    mongo_url: str = Field(description="MongoDB replica set, with credentials", repr=False)
    mongo_database: str = "luthier"
    kafka_url: str = Field(description="bootstrap servers, host:port[,host:port]")
    objects_url: str = Field(description="file:///directory or s3://bucket/prefix")
    health_port: int | None = Field(None, description="port of /healthz and /readyz on loopback; none: not served")
    cluster: str = Field("local", description="names this installation in the source of every fact")
    default_base: str = Field("SmolLM2-135M-Instruct", description="base model that must answer before /readyz says so")
    internal_token: SecretStr = Field(
        SecretStr(""),
        description="shared by the rooms that call each other for generation; empty: such calls are refused",
    )
    tick_s: float = Field(2.0, description="how often a room looks at its own work without being woken")
    lease_ttl_s: float = Field(30.0, description="a run or node whose lease was watched unchanged this long is lost")
    renew_s: float = Field(5.0, description="interval of lease renewals")
