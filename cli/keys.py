"""`modelmarket keys`: new signing keys, and passwords at Kafka and ClickHouse, for a production whose processes do not share a data folder."""

from __future__ import annotations

import secrets
from typing import get_args

import typer

from events.facts.topic_access import ROLES
from events.process.signing_keys import SEED_BYTES, Signer, SigningKey
from infra.clickhouse_local.grants import OWN_ROLES


def keys() -> None:
    """Print new keys of set-up and of the relay, and a password of each role at Kafka and ClickHouse, as variables of
    infra/docker-compose.yml. Nothing is kept; a local stack mints its own."""
    for signer in get_args(Signer):
        seed = secrets.token_bytes(SEED_BYTES)
        typer.echo(f"{signer.upper()}_KEY={seed.hex()}")
        typer.echo(f"{signer.upper()}_PUBLIC_KEYS={SigningKey(seed).public.hex()}")
    for role in ROLES:
        typer.echo(f"KAFKA_{role.upper()}_PASSWORD={secrets.token_hex(SEED_BYTES)}")
    for role in ("admin", *OWN_ROLES):
        typer.echo(f"CLICKHOUSE_{role.upper()}_PASSWORD={secrets.token_hex(SEED_BYTES)}")
