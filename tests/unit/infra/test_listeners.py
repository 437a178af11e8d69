"""Every listener has a lock: the tables of `docs/security.md` are those of the launcher and of the compose file, and nothing listens beside them."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from events.facts.topic_access import ACCESS, ROLES, SUPER_USERS, grants
from events.facts.topics import DECIDED_TOPICS, TOPICS
from events.process.settings import Settings
from infra.launcher import raynode
from infra.launcher.jvm import Broker, server_properties, tools_file, users_file
from infra.launcher.part_secrets import KAFKA, NEEDED
from infra.launcher.parts import parts_of
from infra.launcher.paths import paths_of
from tests.support.stacks import local_locks, rows_of

ROOT = Path(__file__).resolve().parents[3]
COMPOSE: dict[str, Any] = yaml.safe_load((ROOT / "infra" / "docker-compose.yml").read_text())
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
ASKS_NOTHING = ("loopback", "private network")
ASKS = ("API key", "password", "SASL", "token")
ONCE = {"prepare", "bucket"}
OF_OTHERS = {"registry": {8080, 9000}, "postgres": {5432}, "clickhouse": {8123, 9000}, "minio": {9000}, "redis": {6379}}
"""What images listen on without being told."""


def words(cell: str) -> list[str]:
    return [word.strip() for word in cell.split(",")]


def compose_locks() -> dict[tuple[str, int], str]:
    """(service, port) → its lock."""
    found: dict[tuple[str, int], str] = {}
    for services, ports, lock in rows_of("service | port | lock"):
        found |= {(service, int(port)): lock for service in words(services) for port in words(ports)}
    return found


def listeners(name: str) -> set[int]:
    """Ports on which a service listens, by what the compose file says of it."""
    service = SERVICES[name]
    environment: dict[str, str] = service.get("environment", {})
    if "KAFKA_LISTENERS" in environment:
        return {int(port) for port in re.findall(r":(\d+)", environment["KAFKA_LISTENERS"])}
    published = {int(port.rpartition(":")[2]) for port in service.get("ports", [])}
    command = " ".join(map(str, service.get("command", [])))
    given = {int(port) for port in re.findall(r"--(?:dashboard-)?port=(\d+)", command)}
    asked = (
        {int(w) for w in service.get("healthcheck", {}).get("test", []) if w.isdigit()} if "infra.healthcheck" in str(service) else set()
    )
    return published | given | asked | OF_OTHERS.get(name, set())


def test_every_lock_is_one_of_those_there_are() -> None:
    locks = [*local_locks(Settings()).values(), *compose_locks().values()]
    assert [lock for lock in locks if not lock.startswith((*ASKS, *ASKS_NOTHING))] == []


def test_each_port_of_a_local_stack_has_a_lock(tmp_path: Path) -> None:
    settings = Settings(data=tmp_path, workers=64)
    locks = local_locks(settings)
    parts = parts_of(settings, paths_of(settings))
    used = {port for part in parts.values() for port in part.ports} | {settings.port(offset) for offset in raynode.WORKERS}
    assert used - locks.keys() == set()


@pytest.mark.parametrize("name", sorted(SERVICES.keys() - ONCE))
def test_each_listener_of_a_service_has_a_lock(name: str) -> None:
    mine = {port: lock for (service, port), lock in compose_locks().items() if service == name}
    assert mine, "it is not in the table"
    assert listeners(name) - mine.keys() == set()
    environment = SERVICES[name].get("environment", {})
    for port, lock in mine.items():
        if lock.startswith("loopback"):
            assert environment["MODELMARKET_HOST"] == "127.0.0.1", port
        elif lock.startswith("private network"):
            assert "ports" not in SERVICES[name], "a port that is published is in no private network"
        elif lock.startswith("password"):
            assert any(re.search("PASSWORD", variable) and ":?" in value for variable, value in environment.items())
        elif lock.startswith("token"):
            assert (environment["RAY_AUTH_MODE"], environment["RAY_AUTH_TOKEN"]) == ("token", "${RAY_AUTH_TOKEN:?}")
        elif lock.startswith("SASL"):
            protocols = environment["KAFKA_LISTENER_SECURITY_PROTOCOL_MAP"].split(",")
            assert protocols and all(":SASL_" in protocol for protocol in protocols)


def test_what_is_published_asks_for_an_api_key() -> None:
    published = {(name, int(port.rpartition(":")[2])) for name, service in SERVICES.items() for port in service.get("ports", [])}
    assert {at for at in published if not compose_locks()[at].startswith("API key")} == set()


def test_a_network_has_only_who_the_page_says_and_no_way_out_but_two() -> None:
    documented = {network: set(words(members)) for network, members in rows_of("network | who is in it")}
    there: dict[str, set[str]] = {network: set() for network in COMPOSE["networks"]}
    for name, service in SERVICES.items():
        assert service.get("networks"), f"{name} would be in the network that all share"
        for network in service["networks"]:
            there[network].add(name)
    assert documented == there
    assert {network for network, options in COMPOSE["networks"].items() if not (options or {}).get("internal")} == {"ray", "entry"}


@pytest.mark.parametrize("name", ["kafka-1", "kafka-2", "kafka-3"])
def test_the_brokers_of_a_production_ask_and_refuse_as_the_local_one_does(name: str) -> None:
    """Their users and rights are written once: what the tests of roles see on the local broker holds there."""
    lone = Broker(node_id=1, host="h", port=1, controller_port=2, folder=Path("d"))
    text = server_properties(lone, [lone], Path("d"))
    local = dict(line.split("=", 1) for line in text.splitlines() if line and not line.startswith("#"))
    environment = SERVICES[name]["environment"]
    names = [
        key for key in local if re.match(r"listener\.security|inter\.broker|controller\.listener|sasl\.|authorizer|allow\.|super\.", key)
    ]
    assert len(names) == 9
    assert {key: environment["KAFKA_" + key.upper().replace(".", "_")] for key in names} == {key: local[key] for key in names}
    given = {role: f"${{KAFKA_{role.upper()}_PASSWORD:?}}" for role in ROLES}
    contents = {source: COMPOSE["configs"][source]["content"] for source in ("kafka-users", "kafka-broker")}
    assert contents == {"kafka-users": users_file(given), "kafka-broker": tools_file("broker", given["broker"])}
    mounted = {config["source"]: config["target"] for config in SERVICES[name]["configs"]}
    assert environment["KAFKA_OPTS"] == f"-Djava.security.auth.login.config={mounted['kafka-users']}"
    assert SERVICES[name]["healthcheck"]["test"][-2:] == ["--command-config", mounted["kafka-broker"]]


# --- who may do what at Kafka


def test_each_part_that_signs_in_at_kafka_is_a_role_and_no_other_is() -> None:
    parts = {part for part, secrets in NEEDED.items() if KAFKA in secrets}
    assert {*ACCESS, *SUPER_USERS} == set(ROLES) == parts | {"broker", "operator"}


def test_the_page_says_what_each_role_may() -> None:
    documented: dict[str, tuple[str, str]] = {
        role.partition(" ")[0]: (reads, writes) for role, reads, writes in rows_of("role | reads | writes")
    }
    assert documented.keys() == set(ROLES)
    for role, access in ACCESS.items():
        for cell, topics in zip(documented[role], (access.reads, access.writes), strict=True):
            assert topics_of(cell) == set(topics), f"{role}: {cell}"


def topics_of(cell: str) -> set[str]:
    known = {"decided topics": set(DECIDED_TOPICS), "every topic": set(TOPICS), "nothing": set[str]()}
    return set(re.findall(r"`([a-z-]+)`", cell)).union(*(topics for text, topics in known.items() if text in cell))


def test_who_writes_what() -> None:
    """Each topic has the writers it must have, documented again by hand: a right that somebody adds is a line here, too."""
    writers = {topic: {role for role, access in ACCESS.items() if topic in access.writes} for topic in TOPICS}
    assert writers == {
        "models": {"relay"},
        "deployments": {"relay", "controller", "gateway"},
        "accounts": {"relay"},
        "prices": {"relay"},
        "bills": {"relay"},
        "producers": {"relay", "gateway"},
        "usage": {"gateway"},
        "alerts": {"worker", "biller", "controller"},
        "schemas": set(),
        "heartbeats": {"relay"},
        "dead-letters": {"worker"},
    }


def test_only_workers_billers_and_controllers_share_a_consumer_group_and_only_set_up_changes_topics() -> None:
    joined = {(grant.role, grant.name) for grant in grants("s") if (grant.resource, grant.operation) == ("group", "read")}
    assert joined == {
        ("worker", "s-projections"),
        ("biller", "s-billers"),
        ("controller", "s-controller"),
        ("operator", "console-consumer-"),
    }
    assert {grant.operation for grant in grants("s")} == {"read", "write", "describe", "describe_configs"}
