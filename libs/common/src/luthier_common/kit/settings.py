"""Settings that every room reads once from the environment (`LUTHIER_*`). What a job asks for is not a setting."""

import os
from pathlib import Path
from typing import Literal

from pydantic import Field, SecretStr
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SecretsSettingsSource, SettingsConfigDict


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
    mongo_ca_file: Path | None = Field(
        None, description="PEM file of those who may vouch for MongoDB, and TLS; none: as the URL says"
    )
    kafka_url: str = Field(description="bootstrap servers, host:port[,host:port]")
    kafka_security_protocol: Literal["PLAINTEXT", "SSL", "SASL_PLAINTEXT", "SASL_SSL"] = "PLAINTEXT"
    kafka_ca_file: Path | None = Field(
        None, description="PEM file of those who may vouch for brokers; none: the system's"
    )
    kafka_cert_file: Path | None = Field(None, description="our own certificate, PEM, for brokers that want one")
    kafka_key_file: Path | None = Field(None, description="the key of our certificate, PEM, without a password")
    kafka_sasl_mechanism: Literal["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"] = "SCRAM-SHA-512"
    kafka_user: str | None = None
    kafka_password: SecretStr | None = None
    topic_replication: int = Field(-1, description="copies of each topic that is made; -1: as the broker has it")
    topic_min_insync: int | None = Field(
        None, ge=1, description="copies that a message must have before it counts as stored; none: as the broker has it"
    )
    objects_url: str = Field(description="file:///directory or s3://bucket/prefix")
    objects_ca_file: Path | None = Field(
        None, description="PEM file of those who may vouch for the S3 server; none: the system's"
    )
    health_port: int | None = Field(None, description="port of /healthz and /readyz; none: not served")
    health_host: str = Field("127.0.0.1", description="address that these two are served on")
    cluster: str = Field("local", description="names this installation in the source of every fact")
    default_base: str = Field("SmolLM2-135M-Instruct", description="base model that must answer before /readyz says so")
    internal_token: SecretStr = Field(
        SecretStr(""),
        description="shared by the rooms that call each other for generation; empty: such calls are refused",
    )
    tick_s: float = Field(2.0, description="how often a room looks at its own work without being woken")
    lease_ttl_s: float = Field(30.0, description="a run or node whose lease was watched unchanged this long is lost")
    renew_s: float = Field(5.0, description="interval of lease renewals")

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """The environment first, then the files of LUTHIER_SECRETS_DIR: `luthier_mongo_url` holds LUTHIER_MONGO_URL."""
        folder = os.environ.get("LUTHIER_SECRETS_DIR") or None
        return init_settings, env_settings, SecretsSettingsSource(settings_cls, secrets_dir=folder)
