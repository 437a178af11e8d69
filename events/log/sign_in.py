"""A Kafka client's address and sign-in, and what it means when Kafka refuses: a sentence, and no endless retry."""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable
from typing import Any

import confluent_kafka as ck

from events.process.passwords import kafka_password_file, kafka_sign_in
from events.process.settings import Settings

logger = logging.getLogger(__name__)
WHO = {
    ck.KafkaError._AUTHENTICATION,  # pyright: ignore[reportPrivateUsage]
    ck.KafkaError.SASL_AUTHENTICATION_FAILED,
}
WHAT = {ck.KafkaError.TOPIC_AUTHORIZATION_FAILED, ck.KafkaError.GROUP_AUTHORIZATION_FAILED, ck.KafkaError.CLUSTER_AUTHORIZATION_FAILED}


class LogDenied(Exception):
    """Kafka does not let this process in, or not do this. Waiting does not help: a person must look."""


def denial(settings: Settings, error: ck.KafkaError, at: str = "") -> LogDenied | None:
    """The error as one that a person must look at; None when it is another one. A connection that ends, or takes too long, while a client signs
    in is none: it has the client's own error, which begins with "Local:". `at`: the topic, where the error does not name it."""
    if error.code() in WHO and "Local:" not in error.str():
        doing = "in"
    elif error.code() in WHAT or (error.fatal() and "authorization failed" in error.str()):  # a gapless producer gives its own code
        doing = "do this"
    else:
        return None
    role = kafka_sign_in(settings).username or "nobody"
    text = error.str()
    if doing == "do this":
        # A broker's own text may show the inside of its request.
        text = text if error.fatal() else f"{at}: {ck.KafkaError(error.code()).str()}".removeprefix(": ")
        remedy = "who may do what is in events/facts/topic_access.py; `modelmarket topics apply` makes the brokers' lists so"
    elif settings.kafka_bootstrap:
        remedy = "MODELMARKET_KAFKA_SASL_USERNAME and _PASSWORD name the role and its password"
    else:
        file = kafka_password_file(settings.folder, role)
        remedy = f"its password is in {file}; `modelmarket restart kafka` makes the broker read that file again"
    return LogDenied(f"Kafka at {settings.kafka} does not let {role} {doing}: {text}. {remedy}")


class Denials:
    """Keeps the error of a refused sign-in. A client of librdkafka tries again for ever; whoever waits for it must not."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._found = ""  # not the exception: its traceback would hold the client that raised it, and the client holds this

    def on_error(self, error: ck.KafkaError) -> None:
        """An `error_cb`."""
        self._found = self._found or str(denial(self._settings, error) or "")

    def check(self, error: ck.KafkaError | None = None, at: str = "") -> None:
        """Raises LogDenied."""
        if error is not None:
            self._found = self._found or str(denial(self._settings, error, at) or "")
        if self._found:
            raise LogDenied(self._found)


def client_config(settings: Settings) -> dict[str, Any]:
    """For any client of librdkafka. Raises LogDenied when there is no password for it."""
    sign_in = kafka_sign_in(settings)
    config: dict[str, Any] = {"bootstrap.servers": settings.kafka, "security.protocol": sign_in.protocol}
    if sign_in.mechanism:
        if not sign_in.username or not sign_in.password:
            where = kafka_password_file(settings.folder, sign_in.username or "ROLE")
            remedy = f"set MODELMARKET_KAFKA_SASL_USERNAME and _PASSWORD; a stack of its own mints {where} at `modelmarket up kafka`"
            raise LogDenied(f"there is no password of {sign_in.username or 'nobody'} for Kafka at {settings.kafka}: {remedy}")
        config |= {"sasl.mechanism": sign_in.mechanism, "sasl.username": sign_in.username, "sasl.password": sign_in.password}
    if settings.kafka_ca_file:
        config["ssl.ca.location"] = settings.kafka_ca_file
    # A local broker is up again within seconds: do not wait a minute before the next attempt.
    return config | {"reconnect.backoff.ms": 50, "reconnect.backoff.max.ms": 1000, "socket.keepalive.enable": True}


def ends_when_denied(main: Callable[[], int | None]) -> Callable[[], int]:
    """A program that Kafka does not let in ends with 2 and a sentence in its log, which says what to do."""

    @functools.wraps(main)
    def explained() -> int:
        try:
            return main() or 0
        except LogDenied as e:
            logger.error("this process ends: %s", e)
            return 2

    return explained
