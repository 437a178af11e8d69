"""`modelmarket keys`: new signing keys, and passwords at Kafka, ClickHouse and the signer, for a production whose processes share no data folder."""

from __future__ import annotations

import secrets

import typer

from events.facts.topic_access import ROLES
from events.process.passwords import PASSWORD_BYTES
from events.process.signing_keys import SEED_BYTES, SIGNERS, SigningKey
from infra.clickhouse_local.grants import OWN_ROLES


def keys() -> None:
    """Print new keys of set-up, of the relay and of the market, the gateways' password at the signer, and a password of each role at Kafka and
    ClickHouse, as variables of infra/docker-compose.yml. Nothing is kept; a local stack mints its own."""
    for signer in SIGNERS:
        seed = secrets.token_bytes(SEED_BYTES)
        typer.echo(f"{signer.upper()}_KEY={seed.hex()}")
        typer.echo(f"{signer.upper()}_PUBLIC_KEYS={SigningKey(seed).public.hex()}")
    typer.echo(f"SIGNER_PASSWORD={secrets.token_hex(PASSWORD_BYTES)}")
    for role in ROLES:
        typer.echo(f"KAFKA_{role.upper()}_PASSWORD={secrets.token_hex(PASSWORD_BYTES)}")
    for role in ("admin", *OWN_ROLES):
        typer.echo(f"CLICKHOUSE_{role.upper()}_PASSWORD={secrets.token_hex(PASSWORD_BYTES)}")
