"""How clients prove themselves to Kafka (TLS, SASL), from settings; and in words why a broker does not take us in."""

import asyncio
import ssl
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from aiokafka.conn import create_conn
from aiokafka.errors import (
    IllegalSaslStateError,
    KafkaError,
    SaslAuthenticationFailed,
    UnsupportedSaslMechanismError,
)
from aiokafka.protocol.metadata import MetadataRequest
from faststream.security import BaseSecurity, SASLPlaintext, SASLScram256, SASLScram512
from pydantic import SecretStr

from luthier_common.kit.errors import SettingError
from luthier_common.kit.settings import RoomSettings

ASK_LIMIT_S = 0.8
_SASL = {"PLAIN": SASLPlaintext, "SCRAM-SHA-256": SASLScram256, "SCRAM-SHA-512": SASLScram512}


@dataclass(frozen=True)
class KafkaAccess:
    """What a client needs beside the address. `context` is there when the protocol speaks TLS."""

    protocol: str = "PLAINTEXT"
    context: ssl.SSLContext | None = None
    mechanism: str = "SCRAM-SHA-512"
    user: str = ""
    password: SecretStr = field(default_factory=lambda: SecretStr(""))

    @property
    def has_sasl(self) -> bool:
        return self.protocol.startswith("SASL")

    def options(self) -> dict[str, Any]:
        """The keyword arguments of every client of aiokafka."""
        options: dict[str, Any] = {"security_protocol": self.protocol, "ssl_context": self.context}
        if self.has_sasl:
            options |= {
                "sasl_mechanism": self.mechanism,
                "sasl_plain_username": self.user,
                "sasl_plain_password": self.password.get_secret_value(),
            }
        return options

    def security(self) -> BaseSecurity:
        """The same for FastStream."""
        use_ssl = self.context is not None
        if not self.has_sasl:
            return BaseSecurity(ssl_context=self.context, use_ssl=use_ssl)
        password = self.password.get_secret_value()
        return _SASL[self.mechanism](self.user, password, ssl_context=self.context, use_ssl=use_ssl)


OPEN = KafkaAccess()
"""Neither TLS nor a password: a broker on the same machine or in a closed network."""


def kafka_access(settings: RoomSettings) -> KafkaAccess:
    """What the settings ask for. SettingError when they cannot be meant: nothing is left out silently."""
    protocol = settings.kafka_security_protocol
    if protocol.startswith("SASL") and not (settings.kafka_user and settings.kafka_password):
        raise SettingError(f"{protocol} needs LUTHIER_KAFKA_USER and LUTHIER_KAFKA_PASSWORD")
    if not protocol.startswith("SASL") and (settings.kafka_user or settings.kafka_password):
        named = "LUTHIER_KAFKA_USER or LUTHIER_KAFKA_PASSWORD is set, and LUTHIER_KAFKA_SECURITY_PROTOCOL"
        raise SettingError(f"{named} is {protocol}, which knows neither")
    files = (settings.kafka_ca_file, settings.kafka_cert_file, settings.kafka_key_file)
    if not protocol.endswith("SSL") and any(files):
        raise SettingError(f"files for TLS are set, and LUTHIER_KAFKA_SECURITY_PROTOCOL is {protocol}")
    return KafkaAccess(
        protocol=protocol,
        context=_context(settings) if protocol.endswith("SSL") else None,
        mechanism=settings.kafka_sasl_mechanism,
        user=settings.kafka_user or "",
        password=settings.kafka_password or SecretStr(""),
    )


def _context(settings: RoomSettings) -> ssl.SSLContext:
    context = trusting(settings.kafka_ca_file, "LUTHIER_KAFKA_CA_FILE")
    if settings.kafka_cert_file or settings.kafka_key_file:
        if not (settings.kafka_cert_file and settings.kafka_key_file):
            raise SettingError("LUTHIER_KAFKA_CERT_FILE and LUTHIER_KAFKA_KEY_FILE belong together")
        try:
            context.load_cert_chain(settings.kafka_cert_file, settings.kafka_key_file)
        except (OSError, ssl.SSLError) as error:
            raise SettingError(
                f"LUTHIER_KAFKA_CERT_FILE and LUTHIER_KAFKA_KEY_FILE cannot be used: {type(error).__name__}"
            ) from error
    return context


def trusting(ca_file: Path | None, setting: str) -> ssl.SSLContext:
    """A client's context that trusts the authorities of the file, or those of the system. Names are checked."""
    try:
        return ssl.create_default_context(cafile=str(ca_file) if ca_file else None)
    except (OSError, ssl.SSLError) as error:
        raise SettingError(f"{setting} is no readable file of PEM certificates: {type(error).__name__}") from error


async def why_refused(url: str, access: KafkaAccess = OPEN, *, limit_s: float = ASK_LIMIT_S) -> str | None:
    """None when a broker takes us in; else what is wrong with the last one, naming the setting to look at."""
    answers = await asyncio.gather(*(_ask(address.strip(), access, limit_s) for address in url.split(",")))
    return None if None in answers else answers[-1]


async def _ask(address: str, access: KafkaAccess, limit_s: float) -> str | None:
    host, _, port = address.rpartition(":")
    try:
        async with asyncio.timeout(limit_s):
            options = access.options()
            conn = await create_conn(host, int(port), request_timeout_ms=int(limit_s * 1000), **options)
            try:
                await conn.send(MetadataRequest([]))
            finally:
                with suppress(OSError):
                    await conn.close()
    except (OSError, TimeoutError, KafkaError, ValueError) as error:
        return _in_words(error, access)
    return None


def _in_words(error: Exception, access: KafkaAccess) -> str:
    match error:
        case ssl.SSLCertVerificationError(verify_code=62 | 64):
            return "the broker's certificate is for another name than that in LUTHIER_KAFKA_URL"
        case ssl.SSLCertVerificationError():
            return "LUTHIER_KAFKA_CA_FILE does not vouch for the broker's certificate"
        case TimeoutError():
            # A busy broker looks like one that speaks no TLS: to name a setting would mislead.
            return "no broker answers in time at LUTHIER_KAFKA_URL"
        case ssl.SSLError() | ConnectionResetError() if access.context:
            return "no TLS with the broker: see LUTHIER_KAFKA_SECURITY_PROTOCOL and LUTHIER_KAFKA_CERT_FILE"
        case SaslAuthenticationFailed() | ValueError():
            return "the broker refuses LUTHIER_KAFKA_USER with LUTHIER_KAFKA_PASSWORD"
        case UnsupportedSaslMechanismError():
            return f"the broker does not offer {access.mechanism}: see LUTHIER_KAFKA_SASL_MECHANISM"
        case IllegalSaslStateError():
            return "the broker wants no SASL there: see LUTHIER_KAFKA_SECURITY_PROTOCOL"
        case KafkaError():
            return f"the broker ends the connection: see LUTHIER_KAFKA_SECURITY_PROTOCOL ({access.protocol})" + (
                " and LUTHIER_KAFKA_CERT_FILE" if access.context else ""
            )
        case _:
            return "no broker answers at LUTHIER_KAFKA_URL"
