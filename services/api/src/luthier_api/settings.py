"""Settings of the api room."""

from ipaddress import ip_network

from pydantic import Field, SecretStr, field_validator

from luthier_common.kit.settings import RoomSettings

GIB = 1024**3
MIB = 1024**2


class ApiSettings(RoomSettings):
    """Where the API listens and what it lets one project use."""

    host: str = Field("127.0.0.1", description="address that the API listens on")
    port: int = Field(8000, description="port that the API listens on")
    share_port: bool = Field(
        default=False,
        description="whether other processes of the API on this machine listen on the same port: the kernel spreads "
        "connections over them (`SO_REUSEPORT`)",
    )
    pepper: SecretStr | None = Field(None, description="secret that API keys are hashed with; none: kept below home")
    max_file_bytes: int = Field(5 * GIB, description="largest file of an upload")
    max_part_bytes: int = Field(64 * MIB, description="largest part of an upload in parts")
    max_upload_bytes: int = Field(8 * GIB, description="largest file of an upload in parts")
    max_uploads: int = Field(
        8,
        ge=1,
        description="uploads that are read at a time of one key, and of each end user that it acts for, for each "
        "process of the API; more wait up to 30 s. An organisation has 12 at most, of 36 for all",
    )
    max_downloads: int = Field(
        8,
        ge=1,
        description="files that one key may read at a time, for each process of the API. An organisation has 12 at "
        "most, of 36 for all",
    )
    upload_timeout_s: float = Field(7200.0, description="longest time that the body of an upload may take")
    json_timeout_s: float = Field(60.0, description="longest time that any other body may take")
    upload_expiry_s: float = Field(3600.0, description="how long an upload in parts may be completed")
    max_json_bytes: int = Field(MIB, description="largest JSON body; of chats and responses 8 MiB, of graders 1 MiB")
    min_examples: int = Field(10, ge=1, description="fewest examples of a training file; as the file-validator's")
    max_examples: int | None = Field(
        None, ge=1, description="most examples of a training file; as the file-validator's"
    )
    max_project_bytes: int | None = Field(
        None, ge=1, description="room for the files, checkpoints and models of one project; none: no limit"
    )
    max_queued_jobs: int = Field(100, description="jobs of one project that may wait at a time")
    requests_per_minute: int = Field(1000, ge=1, description="requests a minute of a key that has no limit of its own")
    failed_keys_per_minute: int = Field(100, ge=1, description="keys that are not valid, of one address in a minute")
    max_streams: int = Field(20, description="jobs that one key may follow at a time, for each process of the API")
    max_generations: int = Field(
        40, ge=1, description="answers that one key may have made at a time, for each process of the API"
    )
    heartbeat_s: float = Field(15.0, description="longest silence of a stream of events")
    key_cache_s: float = Field(5.0, description="a revoked key is refused after this long at the latest")
    keep_alive_s: int = Field(
        75,
        ge=5,
        description="how long a connection may rest between requests; set it above what your proxy keeps its own: "
        "nginx and the balancers of clouds 60 s, Traefik 90 s, Caddy 120 s",
    )
    trusted_proxies: str = Field(
        "",
        description="addresses or networks of proxies in front, separated by commas: their X-Forwarded-For is "
        "believed; empty: nobody's. Behind them MKA1's package should send its creates with an Idempotency-Key: that "
        "its answer was lost is not seen",
    )
    stop_grace_s: int = Field(
        8,
        ge=0,
        description="how long what is being answered may go on when the process is asked to stop; it ends at most "
        "6 s later",
    )
    audit_s: float = Field(60.0, description="how often the auditor looks")
    observe_s: float = Field(5.0, gt=0, description="how often what is measured for everybody is looked up")
    sweep_s: float = Field(60.0, description="how often expired files are removed")
    node_ttl_s: float = Field(30.0, description="an engine that has not renewed its document this long is not asked")
    engine_read_timeout_s: float = Field(300.0, description="longest silence of an engine within one answer")
    response_keep_s: float = Field(2_592_000.0, gt=0, description="how long responses and their texts are kept")
    retry_hash_s: float = Field(
        600.0,
        description="a create without an Idempotency-Key that the client sends again within this time gets its first "
        "job; longer for a client that itself waits longer for an answer",
    )
    idempotency_s: float = Field(86400.0, description="how long an Idempotency-Key is remembered")

    @field_validator("trusted_proxies")
    @classmethod
    def _names_networks(cls, value: str) -> str:
        """A name that is no network would be ignored without a word, and `*` would believe everybody."""
        for network in value.split(",") if value else ():
            ip_network(network.strip())
        return value
