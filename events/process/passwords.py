"""How this process signs in at Kafka, ClickHouse and the signer. At the stack's own parts: with a password that was minted into the data folder."""

from __future__ import annotations

import secrets
from dataclasses import dataclass
from pathlib import Path

from events.process.admin_key import keep_first
from events.process.settings import Settings

OPERATOR, SET_UP = "operator", "prepare"
"""Roles at Kafka: who looks, and who may do everything."""
PASSWORD_BYTES = 32


@dataclass(frozen=True, slots=True)
class KafkaSignIn:
    protocol: str
    mechanism: str
    """Empty: none."""
    username: str
    password: str


def kafka_sign_in(settings: Settings) -> KafkaSignIn:
    """At the stack's own broker as `operator` unless the settings name another role; at another one as the settings say."""
    own = not settings.kafka_bootstrap
    protocol = (settings.kafka_security_protocol or ("SASL_PLAINTEXT" if own else "PLAINTEXT")).upper()
    if not protocol.startswith("SASL"):
        return KafkaSignIn(protocol, "", "", "")
    username = settings.kafka_sasl_username or (OPERATOR if own else "")
    given = settings.kafka_sasl_password.get_secret_value()
    password = given or (_text_of(kafka_password_file(settings.folder, username)) if own else "")
    return KafkaSignIn(protocol, settings.kafka_sasl_mechanism or "PLAIN", username, password)


def as_set_up(settings: Settings) -> Settings:
    """At the stack's own broker: signed in as set-up, unless the settings name a role."""
    own = not settings.kafka_bootstrap and not settings.kafka_sasl_username
    return settings.model_copy(update={"kafka_sasl_username": SET_UP}) if own else settings


def kafka_password_file(folder: Path, role: str) -> Path:
    """In a stack's data folder; readable by its owner only."""
    return folder / "kafka" / f"{role}.password"


def clickhouse_password(settings: Settings) -> str:
    """Empty when it is neither set nor in its file: the server will say that it wants one."""
    file = clickhouse_password_file(settings.folder, settings.clickhouse_user)
    if not settings.clickhouse_url and file.is_file():
        return _text_of(file)
    return settings.clickhouse_password.get_secret_value()


def clickhouse_password_file(folder: Path, user: str) -> Path:
    """In a stack's data folder; readable by its owner only."""
    return folder / "clickhouse" / f"{user}.password"


def signer_password(settings: Settings) -> str:
    """Empty when it is neither set nor in its file yet."""
    return settings.signer_password.get_secret_value() or _text_of(signer_password_file(settings.folder))


def signer_password_or_fresh(settings: Settings) -> str:
    """Where there is none yet, a fresh one, which is kept in the file from now on."""
    if not settings.signer_password.get_secret_value():
        keep_first(signer_password_file(settings.folder), secrets.token_hex(PASSWORD_BYTES))
    return signer_password(settings)


def signer_password_file(folder: Path) -> Path:
    """In a stack's data folder; readable by its owner only."""
    return folder / "keys" / "signer.password"


def _text_of(file: Path) -> str:
    return file.read_text().strip() if file.is_file() else ""
