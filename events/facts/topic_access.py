"""Which role may read and write which topic: one table. Set-up makes the brokers' access-control lists from it, here and in production.

A role is a part of the stack, or a person: each signs in with a password of its own. Set-up (`prepare`) may do everything; `broker` is the
brokers among themselves. What is not in the table is refused.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

from events.facts.topics import DECIDED_TOPICS, TOPICS
from events.process.passwords import OPERATOR, SET_UP

BROKER = "broker"
SUPER_USERS = (BROKER, SET_UP)
READER_GROUPS = "modelmarket-"
"""How the groups of our readers begin. They join none and keep no position in it; their client asks who coordinates it."""
EVERY = "*"


@dataclass(frozen=True, slots=True)
class Access:
    """Topics by name."""

    reads: tuple[str, ...]
    writes: tuple[str, ...] = ()


ALL = tuple(TOPICS)

ACCESS: Mapping[str, Access] = {
    # It continues where each partition ends, and encodes nothing: it needs no schemas (K3).
    "relay": Access(reads=(*DECIDED_TOPICS, "heartbeats"), writes=(*DECIDED_TOPICS, "heartbeats")),
    # What it decides goes through its store. It looks at any record that somebody wants to write off.
    "commands": Access(reads=ALL),
    "worker": Access(reads=ALL, writes=("dead-letters", "alerts")),
    "queries": Access(reads=("accounts", "heartbeats", "schemas")),
    "biller": Access(reads=("accounts", "bills", "prices", "producers", "usage", "alerts", "heartbeats", "schemas"), writes=("alerts",)),
    # `deployments` carries decided and observed facts: which replica is ready is observed here.
    "controller": Access(reads=("models", "deployments", "alerts", "heartbeats", "schemas"), writes=("deployments", "alerts")),
    # A gateway observes its own epochs, and which routes it has applied.
    "gateway": Access(
        reads=("models", "deployments", "accounts", "prices", "heartbeats", "schemas"), writes=("usage", "producers", "deployments")
    ),
    OPERATOR: Access(reads=ALL),
}
ROLES = (BROKER, SET_UP, *ACCESS)
"""Everybody who can sign in."""

Resource = Literal["topic", "group"]
Operation = Literal["read", "write", "describe", "describe_configs"]


@dataclass(frozen=True, slots=True, order=True)
class Grant:
    """One line of the brokers' access-control lists."""

    role: str
    operation: Operation
    resource: Resource
    name: str
    prefix: bool = False
    """`name` is how the names begin."""


def grants(stack: str) -> Iterator[Grant]:
    """All of them. `stack` is in the names of the workers' and the billers' groups."""
    for role, access in ACCESS.items():
        # Everybody checks at its start that this is the right log: how many partitions each topic has (K1).
        yield Grant(role, "describe", "topic", EVERY)
        yield Grant(role, "describe", "group", READER_GROUPS, prefix=True)
        yield from (Grant(role, "read", "topic", topic) for topic in access.reads)
        yield from (Grant(role, "write", "topic", topic) for topic in access.writes)
    yield Grant("worker", "read", "group", worker_group(stack))
    yield Grant("biller", "read", "group", biller_group(stack))
    yield Grant("controller", "read", "group", leader_group(stack, "controller"))
    # People look with Kafka's own tools, too: at topics' settings, at the lag of groups, and at records.
    yield Grant(OPERATOR, "describe_configs", "topic", EVERY)
    yield Grant(OPERATOR, "describe", "group", EVERY)
    yield Grant(OPERATOR, "read", "group", "console-consumer-", prefix=True)


def worker_group(stack: str) -> str:
    """The consumer group that the Faust workers of a stack share."""
    return f"{stack}-projections"


def biller_group(stack: str) -> str:
    """In which the billers of a stack divide the partitions of usage among themselves."""
    return f"{stack}-billers"


def leader_group(stack: str, name: str) -> str:
    """The consumer group whose one partition the leader among the processes of this name has."""
    return f"{stack}-{name}"
