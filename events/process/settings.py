"""Every setting of every process, in one place: read from `MODELMARKET_*` in the environment, with defaults for one laptop.

A stack is a name, a data folder and a block of ports, so two stacks run side by side. What is left empty is derived from
those three; production sets it (see `infra/docker-compose.yml`). Nothing else in the code reads the environment.
"""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import Annotated

from pydantic import Field, SecretStr, StringConstraints
from pydantic_settings import BaseSettings, SettingsConfigDict

PORTS_PER_STACK = 200
"""Ports a stack may use, counted from `base_port`: the named ones below, then Ray's workers from +100 on."""

StackName = Annotated[str, StringConstraints(pattern=r"^[a-z][a-z0-9-]{0,30}$")]
DatabaseName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z_][A-Za-z0-9_]{0,62}$")]
ClusterName = Annotated[str, StringConstraints(pattern=r"^(?:[A-Za-z_][A-Za-z0-9_-]{0,62})?$")]
Port = Annotated[int, Field(ge=1024, le=65535)]


class Settings(BaseSettings):
    model_config = SettingsConfigDict(env_prefix="MODELMARKET_", extra="ignore", frozen=True)

    # --- which stack this is
    stack: StackName = Field(default="local", description="Its name: of Kafka's consumer group, and on every process the launcher starts.")
    data: Path = Field(default=Path(".modelmarket/local"), description="Folder of everything this stack writes.")
    base_port: Port = Field(default=18000, le=65535 - PORTS_PER_STACK, description="First of its ports; the gateway's.")
    host: str = Field(default="127.0.0.1", description="Address every part binds to and is looked for at.")

    # --- where the parts are; empty = this stack's own part on loopback
    kafka_bootstrap: str = Field(default="", description="host:port of brokers, with commas between.")
    kafka_security_protocol: str = Field(
        default="",
        description="PLAINTEXT, SSL, SASL_PLAINTEXT or SASL_SSL; empty = SASL_PLAINTEXT at this stack's own broker, else PLAINTEXT.",
    )
    kafka_sasl_mechanism: str = Field(default="", description="PLAIN, SCRAM-SHA-256 or SCRAM-SHA-512; empty = PLAIN.")
    kafka_sasl_username: str = Field(
        default="", description="Which role we are to Kafka (events/facts/topic_access.py); empty = operator at this stack's own broker."
    )
    kafka_sasl_password: SecretStr = Field(
        default=SecretStr(""), description="Its password; empty = the one that was minted into the data folder."
    )
    kafka_ca_file: str = Field(default="", description="PEM file of the authority that signed the brokers; empty = the system's.")
    kafka_replication: int = Field(default=1, ge=1, le=7, description="Replication factor of new topics.")
    kafka_min_insync: int = Field(
        default=1, ge=1, le=7, description="Replicas that must have a record before it is acknowledged, of new topics."
    )
    registry_url: str = Field(default="", description="Confluent-compatible schema registry, path included.")
    registry_user: str = Field(default="", description="Who we are to the registry; empty = it asks nobody.")
    registry_password: SecretStr = Field(default=SecretStr(""), description="Its password.")
    store_url: str = Field(default="", description="Event store: sqlite:///FILE or postgresql://user@host:port/db")
    store_password: SecretStr = Field(default=SecretStr(""), description="Password of the user in `store_url`.")
    clickhouse_url: str = Field(default="", description="ClickHouse HTTP endpoint.")
    clickhouse_database: DatabaseName = Field(default="market", description="Database of all tables; a new one is filled from the log.")
    clickhouse_user: str = Field(
        default="operator", description="Who we are to ClickHouse; the local engine knows ingest, bills and operator."
    )
    clickhouse_password: SecretStr = Field(
        default=SecretStr(""), description="Its password; empty = the one that the local engine minted into the data folder."
    )
    clickhouse_cluster: ClusterName = Field(
        default="",
        description="Name of a cluster of clickhouse-servers, one shard: tables are Replicated, made ON CLUSTER, and a majority has each insert.",
    )
    artifacts_url: str = Field(default="", description="Artifact store: file:///FOLDER or s3://bucket/prefix")
    s3_endpoint: str = Field(default="", description="Of an S3 that is not Amazon's, such as MinIO.")
    s3_region: str = Field(default="us-east-1", description="Of the bucket.")
    s3_access_key: str = Field(default="", description="Access key id for the bucket.")
    s3_secret_key: SecretStr = Field(default=SecretStr(""), description="Its secret.")
    command_url: str = Field(default="", description="Where the biller posts finished bills.")
    gateway_url: str = Field(default="", description="Where callers find the gateway.")
    signer_url: str = Field(default="", description="Where gateways have the keys of their epochs certified.")
    ray_dashboard_url: str = Field(default="", description="Ray's REST address; the controller applies Serve's configuration there.")
    ray_address: str = Field(default="", description="Ray's GCS, which gateways join; empty = that of the node it runs on.")
    ray_auth_token: SecretStr = Field(
        default=SecretStr(""), description="Token of Ray's REST address and cluster; empty = minted into the data folder."
    )

    # --- who may do what at the start
    admin_key: SecretStr = Field(default=SecretStr(""), description="The first admin's API key; empty = minted into the data folder.")

    setup_key: SecretStr = Field(
        default=SecretStr(""),
        description="Private Ed25519 key of set-up, hexadecimal; for `prepare` only. Empty = minted into the data folder.",
    )
    relay_key: SecretStr = Field(
        default=SecretStr(""),
        description="Private Ed25519 key of the relay, hexadecimal; for the relay only. Empty = minted into the data folder.",
    )
    market_key: SecretStr = Field(
        default=SecretStr(""),
        description="Private Ed25519 key of the market, hexadecimal; for the signer only. Empty = minted into the data folder.",
    )
    signer_password: SecretStr = Field(
        default=SecretStr(""),
        description="With which gateways ask the signer to certify an epoch's key; for both only. Empty = minted into the data folder.",
    )
    setup_public_keys: str = Field(
        default="", description="Public keys of set-up that count, hexadecimal, with commas between; empty = from the data folder."
    )
    relay_public_keys: str = Field(
        default="", description="Public keys of the relay that count, hexadecimal, with commas between; empty = from the data folder."
    )
    market_public_keys: str = Field(
        default="", description="Public keys of the market that count, hexadecimal, with commas between; empty = from the data folder."
    )

    # --- sizes and bounds
    workers: int = Field(default=1, ge=1, le=64, description="Faust workers the launcher starts.")
    gateways_per_node: int = Field(default=1, ge=1, le=16, description="Gateway processes behind one listener.")
    ray_node_cpus: int = Field(default=16, ge=1, description="Logical CPUs of a Ray node; a replica reserves a tenth by default.")
    artifact_bytes_max: int = Field(default=512 << 20, ge=1, description="Largest upload the command API takes.")
    address_connections_max: int = Field(
        default=256,
        ge=1,
        description="Connections that one address may hold at an API; behind a proxy all callers have its address: raise it.",
    )
    infer_bytes_max: int = Field(default=4 << 20, ge=1024, description="Largest inference request the gateway takes.")
    answer_bytes_max: int = Field(
        default=16 << 20,
        ge=1024,
        description="Largest answer of one inference: the outputs asked for, a number in JSON counted as the longest of its type.",
    )
    worker_session_s: float = Field(
        default=6.0, ge=1, description="How long the group waits for a silent Faust worker before others take over."
    )
    chunk_rows_max: int = Field(default=100_000, ge=1, description="Most records a worker gathers before it inserts them.")
    chunk_wait_s: float = Field(default=0.15, ge=0, description="Longest a record waits for others while the insert before it lasts.")
    staleness_s_max: float = Field(default=60.0, gt=0, description="Age of the newest heartbeat past which the gateway answers 503.")
    acknowledge_s_max: float = Field(default=5.0, gt=0, description="How long an answer waits for its usage fact to be durable.")
    runtime_threads: int = Field(
        default=1, ge=1, le=256, description="Threads of one replica's inference. With more than 1 it runs one batch at a time."
    )
    removals_approved_position: int = Field(
        default=0,
        ge=0,
        description="A person agreed to removals of more than a fifth of the models at once: to those decided up to here, to no later ones.",
    )
    region: str = Field(default="local", description="Region written on every usage fact of this edge.")

    # --- places derived from the above
    def port(self, offset: int) -> int:
        return self.base_port + offset

    @property
    def gateway_port(self) -> int:
        return self.port(0)

    @property
    def command_port(self) -> int:
        return self.port(1)

    @property
    def query_port(self) -> int:
        return self.port(2)

    @property
    def clickhouse_port(self) -> int:
        return self.port(3)

    @property
    def registry_port(self) -> int:
        return self.port(4)

    @property
    def registry_management_port(self) -> int:
        return self.port(5)

    @property
    def kafka_port(self) -> int:
        return self.port(6)

    @property
    def kafka_controller_port(self) -> int:
        return self.port(7)

    @property
    def relay_health_port(self) -> int:
        return self.port(8)

    @property
    def controller_health_port(self) -> int:
        return self.port(9)

    @property
    def biller_health_port(self) -> int:
        return self.port(10)

    @property
    def signer_port(self) -> int:
        return self.port(12)

    @property
    def ray_dashboard_port(self) -> int:
        return self.port(21)

    def worker_health_port(self, index: int) -> int:
        """Health of Faust worker `index`, 0 …: +40 on."""
        return self.port(40 + index)

    @cached_property
    def folder(self) -> Path:
        return self.data.expanduser().resolve()

    @property
    def gateway_state_file(self) -> Path:
        """Which gateway processes start, accept, leave: written by their listener."""
        return self.folder / "run" / "gateways.json"

    @property
    def kafka(self) -> str:
        return self.kafka_bootstrap or f"{self.host}:{self.kafka_port}"

    @property
    def registry(self) -> str:
        return self.registry_url or f"http://{self.host}:{self.registry_port}/apis/ccompat/v7"

    @property
    def store(self) -> str:
        return self.store_url or f"sqlite:///{self.folder / 'store' / 'events.sqlite'}"

    @property
    def clickhouse(self) -> str:
        return self.clickhouse_url or f"http://{self.host}:{self.clickhouse_port}"

    @property
    def artifacts(self) -> str:
        return self.artifacts_url or f"file://{self.folder / 'artifacts'}"

    @property
    def commands(self) -> str:
        return self.command_url or f"http://{self.host}:{self.command_port}"

    @property
    def queries(self) -> str:
        return f"http://{self.host}:{self.query_port}"

    @property
    def gateway(self) -> str:
        return self.gateway_url or f"http://{self.host}:{self.gateway_port}"

    @property
    def signer(self) -> str:
        return self.signer_url or f"http://{self.host}:{self.signer_port}"

    @property
    def ray_dashboard(self) -> str:
        return self.ray_dashboard_url or f"http://{self.host}:{self.ray_dashboard_port}"
