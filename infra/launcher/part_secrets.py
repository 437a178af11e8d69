"""Which secrets each part is given. Models of tenants run in Ray's processes: what those can read, a model can read."""

from __future__ import annotations

from collections.abc import Mapping

KAFKA, REGISTRY, STORE, CLICKHOUSE = "KAFKA_SASL_PASSWORD", "REGISTRY_PASSWORD", "STORE_PASSWORD", "CLICKHOUSE_PASSWORD"
ARTIFACTS, RAY, ADMIN = "S3_SECRET_KEY", "RAY_AUTH_TOKEN", "ADMIN_KEY"
SETUP, RELAY, MARKET, SIGNER = "SETUP_KEY", "RELAY_KEY", "MARKET_KEY", "SIGNER_PASSWORD"
SECRETS = (KAFKA, REGISTRY, STORE, CLICKHOUSE, ARTIFACTS, RAY, ADMIN, SETUP, RELAY, MARKET, SIGNER)
"""Every setting that is a secret, by its name in the environment without `MODELMARKET_`."""

NEEDED: Mapping[str, frozenset[str]] = {
    "kafka": frozenset(),
    "registry": frozenset(),
    "clickhouse": frozenset({CLICKHOUSE}),
    "prepare": frozenset({KAFKA, REGISTRY, CLICKHOUSE, SETUP}),
    "commands": frozenset({KAFKA, REGISTRY, STORE, ARTIFACTS, ADMIN}),
    "relay": frozenset({KAFKA, STORE, RELAY}),
    "worker": frozenset({KAFKA, CLICKHOUSE}),
    # ADMIN: it knows the first admin by the digest of that key.
    "queries": frozenset({KAFKA, CLICKHOUSE, ADMIN}),
    # ADMIN: it posts the bills that it has computed to the command API.
    "biller": frozenset({KAFKA, CLICKHOUSE, ADMIN}),
    "controller": frozenset({KAFKA, RAY}),
    "signer": frozenset({MARKET, SIGNER}),
    # Replicas read artifacts, and models run in them. Ray's own token comes in Ray's own variables, here and for the gateways.
    "ray": frozenset({ARTIFACTS}),
    # Gateways write usage, and have the keys of their epochs certified.
    "gateway": frozenset({KAFKA, SIGNER}),
}


def kafka_role(part: str) -> dict[str, str]:
    """The environment variable that says as whom a part signs in at Kafka: it finds its password in the data folder."""
    return {"MODELMARKET_KAFKA_SASL_USERNAME": kind_of(part)} if KAFKA in NEEDED[kind_of(part)] else {}


def kind_of(part: str) -> str:
    """`worker-0` is a `worker`."""
    return part.partition("-")[0]


def withheld(part: str) -> dict[str, str]:
    """Environment variables that empty each secret which the part does not need."""
    needed = NEEDED[kind_of(part)]
    return {f"MODELMARKET_{name}": "" for name in SECRETS if name not in needed}
