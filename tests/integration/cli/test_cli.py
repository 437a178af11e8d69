"""The command line as an operator drives it, each command a process of its own on real parts: what it prints, and the code it ends with."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from confluent_kafka.admin import (
    AdminClient,
    AlterConfigOpType,  # pyright: ignore[reportPrivateImportUsage]
    ConfigEntry,  # pyright: ignore[reportPrivateImportUsage]
    ConfigResource,  # pyright: ignore[reportPrivateImportUsage]
    NewTopic,  # pyright: ignore[reportPrivateImportUsage]
    ResourceType,  # pyright: ignore[reportPrivateImportUsage]
)

from events.log.sign_in import client_config
from events.process.settings import Settings
from tests.support.polling import eventually
from tests.support.stacks import LOG, running_stack
from tests.support.usage_oracle import Schemas, decoded, read_topic
from tests.support.usage_stack import UsageStack, running_usage_stack

COMMAND_S_MAX = 120
PARTITIONS = {
    **dict.fromkeys(("models", "deployments", "accounts", "bills", "usage"), 4),
    **dict.fromkeys(("prices", "producers", "alerts", "schemas", "heartbeats", "dead-letters"), 1),
}
"""Said again here: what a log has for ever cannot be changed by changing one file."""
SETTLED = "usage-InvocationSettled"


def run(settings: Settings, *words: str, code: int = 0) -> str:
    """What `modelmarket WORDS` prints in a wide terminal, after it ended with this code."""
    stack = {"STACK": settings.stack, "DATA": str(settings.folder), "BASE_PORT": str(settings.base_port)}
    environment = {**os.environ, "COLUMNS": "250", **{f"MODELMARKET_{name}": value for name, value in stack.items()}}
    done = subprocess.run(
        [sys.executable, "-m", "cli.app", *words], env=environment, capture_output=True, text=True, timeout=COMMAND_S_MAX, check=False
    )
    assert done.returncode == code, f"{done.returncode}: {done.stdout}{done.stderr}"
    return done.stdout


# --- topics and schemas, on an empty log


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Settings]:
    """A broker and a registry, empty for the first test."""
    with running_stack(tmp_path_factory.mktemp("log"), LOG) as stack:
        yield stack.settings


def test_topics_are_created_once_and_differences_are_reported_and_not_changed(log: Settings) -> None:
    admin = AdminClient(client_config(log))

    def there() -> dict[str, int]:
        return {name: len(t.partitions) for name, t in admin.list_topics(timeout=10).topics.items() if not name.startswith("__")}

    def retention(topic: str) -> str | None:
        (described,) = admin.describe_configs([ConfigResource(ResourceType.TOPIC, topic)]).values()
        return described.result(10)["retention.ms"].value

    (made,) = admin.create_topics([NewTopic("alerts", 3)]).values()
    made.result(10)
    eventually(lambda: there() == {"alerts": 3}, "the topic is there")
    first = run(log, "topics", "apply", code=1)
    assert set(re.findall(r"^created (\S+)$", first, re.MULTILINE)) == PARTITIONS.keys() - {"alerts"}
    assert there() == {**PARTITIONS, "alerts": 3}
    assert {topic: retention(topic) for topic in ("usage", "bills", "heartbeats")} == {
        "usage": "-1",
        "bills": "-1",
        "heartbeats": "86400000",
    }
    assert "alerts: 3 partitions, the topic table says 1" in first

    for future in admin.delete_topics(["alerts"]).values():
        future.result(10)
    eventually(lambda: "alerts" not in there(), "the topic is gone")
    assert re.findall(r"^created (\S+)$", run(log, "topics", "apply"), re.MULTILINE) == ["alerts"]
    assert there() == PARTITIONS
    assert run(log, "topics", "apply") == "11 topics as the topic table says\n"

    def keep_models(retention_ms: str) -> None:
        entry = ConfigEntry("retention.ms", retention_ms, incremental_operation=AlterConfigOpType.SET)
        (changed,) = admin.incremental_alter_configs([ConfigResource(ResourceType.TOPIC, "models", incremental_configs=[entry])]).values()
        changed.result(10)
        eventually(lambda: retention("models") == retention_ms, "the broker has learned of it")

    keep_models("60000")
    assert run(log, "topics", "apply", code=1) == "drift models: retention.ms=60000, the topic table says -1\n"
    assert retention("models") == "60000", "what is there belongs to whoever changed it"
    keep_models("-1")


def test_schemas_agree_until_the_registry_has_more_or_less_than_the_log(log: Settings) -> None:
    run(log, "topics", "apply")
    with httpx.Client(base_url=log.registry, timeout=20) as registry:
        published = re.findall(r"^published (\S+)$", run(log, "schemas", "publish"), re.MULTILINE)
        assert sorted(published) == sorted(registry.get("/subjects").json())
        assert SETTLED in published
        assert f"{len(published)} schemas agree" in run(log, "schemas", "check")

        # Somebody's program registered a version of its own and did not record it on the log.
        versions = f"/subjects/{SETTLED}/versions"
        schema = json.loads(registry.get(f"{versions}/latest").json()["schema"])
        schema["fields"].append({"name": "colour", "type": "string", "default": ""})
        foreign_id = registry.post(versions, json={"schema": json.dumps(schema)}).raise_for_status().json()["id"]
        more = run(log, "schemas", "check", code=1)
        assert more.count("drift ") == 1
        assert f"drift {SETTLED}: the registry has id {foreign_id}" in more
        _delete(registry, f"{versions}/2")
        run(log, "schemas", "check")

        # A subject of several that share a text, and so an id.
        _delete(registry, "/subjects/prices-StoreOpened")
        _delete(registry, "/subjects/models-ModelRetired")
        fewer = run(log, "schemas", "check", code=1)
    missing = re.findall(r"^drift (\S+): the log has id \d+, the registry does not", fewer, re.MULTILINE)
    assert sorted(missing) == ["models-ModelRetired", "prices-StoreOpened"]


def _delete(registry: httpx.Client, path: str) -> None:
    """For good: the Confluent API takes two steps."""
    registry.delete(path).raise_for_status()
    registry.delete(path, params={"permanent": "true"})


# --- the log and its table, while a worker folds


@pytest.fixture(scope="module")
def market(tmp_path_factory: pytest.TempPathFactory) -> Iterator[UsageStack]:
    with running_usage_stack(tmp_path_factory.mktemp("cli")) as stack:
        stack.write(*stack.mixed(400))
        with stack.working():
            yield stack


def test_log_tail_prints_the_newest_facts(market: UsageStack) -> None:
    market.write(*(market.settled(n, f"tail-{n}") for n in range(3)), b"garbage", partition=2)
    schemas, expected = Schemas(market.settings), dict[str, Any]()
    for record in sorted(read_topic(market.settings, "usage"), key=lambda r: (r.partition, r.offset)):
        expected[f"usage/{record.partition}/{record.offset}"] = decoded(record.value, schemas)
    newest = {at for p in range(4) for at in [at for at in expected if at.startswith(f"usage/{p}/")][-3:]}

    printed = {line["at"]: line for line in map(json.loads, run(market.settings, "log", "tail", "usage", "-n", "3", "--json").splitlines())}
    assert printed.keys() == newest
    for at, line in printed.items():
        if expected[at] is None:
            assert (line["fact"], line["body"]["code"]) == ("unreadable", "not_framed")
        else:
            fact, body = expected[at]
            assert (line["fact"], line["body"]["event_id"], line["body"]["tenant"]) == (fact, body["event_id"], body["tenant"])
    in_words = [line for line in run(market.settings, "log", "tail", "usage", "-n", "3").splitlines() if " usage/2/" in line]
    assert [re.findall(r"unreadable|InvocationSettled|tail-\d", line)[:2] for line in in_words] == [
        ["InvocationSettled", "tail-1"],
        ["InvocationSettled", "tail-2"],
        ["unreadable"],
    ]


def test_a_replay_reports_each_changed_row_and_a_switch_repairs_them(market: UsageStack) -> None:
    market.write(b"garbage", *market.mixed(20), partition=0)
    records, schemas = read_topic(market.settings, "usage"), Schemas(market.settings)
    read = [decoded(r.value, schemas) for r in records]
    market.caught_up()
    output = run(market.settings, "replay", "usage")
    assert "difference: 0 rows" in output
    assert f"compared {len(records)} rows" in output and f"; {read.count(None)} of them unreadable" in output

    settled = sorted(
        r.offset for r, fact in zip(records, read, strict=True) if fact and fact[0] == "InvocationSettled" and r.partition == 1
    )
    for change, offset in (("UPDATE bytes_in = bytes_in + 1", settled[3]), ("DELETE", settled[5])):
        where = f"WHERE kafka_partition = 1 AND kafka_offset = {offset}"
        market.clickhouse.command(f"ALTER TABLE usage {change} {where}", settings={"mutations_sync": 2})
    wrong = run(market.settings, "replay", "usage", "--switch", code=1)
    assert "difference: 0 rows" not in wrong and "2 rows differ" in wrong
    rows = [[cell.strip() for cell in re.split("[│|]", line)[1:5]] for line in wrong.splitlines() if re.match(r"[│|] 1 ", line)]
    assert rows == [["1", str(settled[3]), "differs", "bytes_in"], ["1", str(settled[5]), "only_rebuilt", ""]]
    assert "difference: 0 rows" in run(market.settings, "replay", "usage")
