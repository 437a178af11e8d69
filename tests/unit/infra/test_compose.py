"""The production shape in `infra/docker-compose.yml` fits the code: settings, modules, ports, pinned images, no secrets."""

from __future__ import annotations

import itertools
import re
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
import yaml

from events.facts.topic_access import ACCESS, SUPER_USERS
from events.process.settings import Settings
from infra.clickhouse_local.grants import OWN_ROLES, ROLES, server_role_user, server_statements
from infra.install import LOCK, UV_LOCK, python_install
from infra.launcher.jvm import Broker, server_properties
from infra.launcher.part_secrets import KAFKA, NEEDED, REGISTRY, SECRETS

ROOT = Path(__file__).resolve().parents[3]
COMPOSE = ROOT / "infra" / "docker-compose.yml"
SERVICES: dict[str, dict[str, Any]] = yaml.safe_load(COMPOSE.read_text())["services"]
CONFIGS: dict[str, dict[str, Any]] = yaml.safe_load(COMPOSE.read_text())["configs"]
ONCE = {"prepare", "bucket"}
VARIABLE = re.compile(r"\$\{(\w+)(?::([?-])([^}]*))?\}")


def interpolated(text: str) -> str:
    """Variables replaced as compose does it, with a value for each one that the caller must give."""
    return VARIABLE.sub(lambda found: found.group(3) if found.group(2) == "-" else f"given-{found.group(1)}", text)


def settings_of(service: dict[str, Any]) -> dict[str, str]:
    return {name: value for name, value in service.get("environment", {}).items() if name.startswith("MODELMARKET_")}


def modules_of(service: dict[str, Any]) -> list[str]:
    words = [*service.get("command", []), *service.get("healthcheck", {}).get("test", [])]
    return [after for word, after in itertools.pairwise(words) if word == "-m"]


def test_every_part_of_the_market_is_a_service() -> None:
    ours = {"prepare", "commands", "relay", "worker-0", "worker-1", "queries", "biller", "controller", "signer", "gateway"}
    engines = {
        "kafka-1",
        "kafka-2",
        "kafka-3",
        "registry",
        "clickhouse",
        "postgres",
        "minio",
        "bucket",
        "redis",
        "ray-head",
        "ray-gpu-worker",
    }
    assert set(SERVICES) == ours | engines


@pytest.mark.parametrize("name", SERVICES)
def test_an_image_is_pinned_to_a_version(name: str) -> None:
    image, _, tag = SERVICES[name]["image"].rpartition(":")
    assert image
    assert re.search(r"\d+\.\d+|\d{4}-\d{2}-\d{2}", tag), tag


@pytest.mark.parametrize("name", SERVICES)
def test_a_service_runs_once_or_tells_its_health(name: str) -> None:
    service = SERVICES[name]
    assert ("healthcheck" in service) != (name in ONCE)
    assert service["restart"] == ("on-failure" if name in ONCE else "unless-stopped")


@pytest.mark.parametrize("name", SERVICES)
def test_each_dependency_of_a_service_exists_and_has_the_condition_that_fits_it(name: str) -> None:
    for needed, how in SERVICES[name].get("depends_on", {}).items():
        assert needed in SERVICES
        assert how["condition"] == ("service_completed_successfully" if needed in ONCE else "service_healthy")


@pytest.mark.parametrize("name", SERVICES)
def test_every_setting_is_a_field_of_settings_and_is_read(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    given = settings_of(SERVICES[name])
    fields = {f"MODELMARKET_{field.upper()}" for field in Settings.model_fields}
    assert set(given) <= fields
    for variable, value in given.items():
        monkeypatch.setenv(variable, interpolated(value))
    settings = Settings()
    if given:
        assert settings.kafka.startswith("kafka-1:9092")
        assert settings.model_fields_set == {variable.removeprefix("MODELMARKET_").lower() for variable in given}


@pytest.mark.parametrize("name", SERVICES)
def test_every_module_a_service_runs_is_in_the_tree_and_in_the_image(name: str) -> None:
    copied = set(re.findall(r"^COPY (\w+) \w+$", (ROOT / "infra" / "Dockerfile").read_text(), re.MULTILINE))
    for module in modules_of(SERVICES[name]):
        assert (ROOT / module.replace(".", "/")).with_suffix(".py").is_file(), module
        assert module.partition(".")[0] in copied


def test_the_image_installs_its_packages_as_set_up_does() -> None:
    """pip fetches the pinned uv, uv the pinned rest; whatever comes has one of the listed hashes."""
    image = (ROOT / "infra" / "Dockerfile").read_text().replace("\\\n", " ")
    assert f"COPY {UV_LOCK.relative_to(ROOT)} {LOCK.relative_to(ROOT)} ./" in image
    installs = [line.split() for line in re.split(r"&&|\n", image) if re.search(r"\bpip (install|sync)\b", line)]
    by_pip, by_uv = installs
    assert {"-r", UV_LOCK.name, "--require-hashes", "--no-deps", "--only-binary=:all:"} <= set(by_pip)
    assert [option for option in python_install("uv")[1:-2] if option not in by_uv] == []
    assert by_uv[0].endswith("/uv") and by_uv[-1] == LOCK.name


@pytest.mark.parametrize("name", [name for name, service in SERVICES.items() if service["image"].startswith("modelmarket:")])
def test_a_service_is_given_the_secrets_it_needs_and_no_other(name: str) -> None:
    given = {variable.removeprefix("MODELMARKET_") for variable in settings_of(SERVICES[name])} & set(SECRETS)
    assert given == NEEDED[name.partition("-")[0]] - {REGISTRY}, "the registry asks for none here: it is in a private network"
    role = settings_of(SERVICES[name]).get("MODELMARKET_KAFKA_SASL_USERNAME", "")
    assert role == ("" if KAFKA not in given else name.partition("-")[0])
    assert not role or settings_of(SERVICES[name])["MODELMARKET_KAFKA_SASL_PASSWORD"] == f"${{KAFKA_{role.upper()}_PASSWORD:?}}"


def test_clickhouse_has_the_users_and_rights_of_the_local_one_and_each_service_is_its_own_role() -> None:
    for name, service in SERVICES.items():
        user = settings_of(service).get("MODELMARKET_CLICKHOUSE_USER", "")
        local = {"prepare": "operator", "worker-0": "ingest", "worker-1": "ingest", "queries": "bills", "biller": "bills"}
        assert user == local.get(name, ""), name
        if user:
            assert settings_of(service)["MODELMARKET_CLICKHOUSE_PASSWORD"] == f"${{CLICKHOUSE_{user.upper()}_PASSWORD:?}}"
    assert SERVICES["clickhouse"]["environment"]["CLICKHOUSE_USER"] not in {*ROLES, "default", "analyst"}
    mounted = {config["source"]: config["target"] for config in SERVICES["clickhouse"]["configs"]}
    scripts = {source: target for source, target in mounted.items() if target.startswith("/docker-entrypoint-initdb.d/")}
    assert sorted(scripts, key=scripts.__getitem__) == ["clickhouse-roles", "clickhouse-users"], "a role is granted its rights first"
    database = interpolated(SERVICES["prepare"]["environment"]["MODELMARKET_CLICKHOUSE_DATABASE"])
    rendered = "".join(f"{statement};\n" for statement in server_statements(database))
    assert (COMPOSE.parent / CONFIGS["clickhouse-roles"]["file"]).read_text() == rendered, "render it again, see infra/README.md"
    users = [f"{server_role_user(role, f'${{CLICKHOUSE_{role.upper()}_PASSWORD:?}}')};" for role in OWN_ROLES]
    assert CONFIGS["clickhouse-users"]["content"].splitlines() == users
    server = ElementTree.fromstring(CONFIGS["clickhouse-server"]["content"])
    assert server.findtext("custom_settings_prefixes") == "SQL_"
    assert server.findtext("access_control_improvements/select_from_system_db_requires_grant") == "true"


def test_its_brokers_have_the_settings_with_which_three_are_killed_in_the_tests() -> None:
    """`KAFKA_X_Y` is the property `x.y`."""
    names = ["kafka-1", "kafka-2", "kafka-3"]
    cluster = [Broker(n, name, 9092, 9093, Path()) for n, name in enumerate(names, start=1)]
    for broker, name in zip(cluster, names, strict=True):
        lines = server_properties(broker, cluster, Path()).splitlines()
        tested = dict(line.split("=", 1) for line in lines if line and not line.startswith("#"))
        given = {
            k.removeprefix("KAFKA_").lower().replace("_", "."): v
            for k, v in SERVICES[name]["environment"].items()
            if k.startswith("KAFKA_")
        }
        there = {"listeners", "advertised.listeners", "log.dirs", "opts"}
        assert {k: v for k, v in given.items() if k not in there and tested.get(k) != v} == {}
        for needed in (
            "broker.session.timeout.ms",
            "default.replication.factor",
            "min.insync.replicas",
            "offsets.topic.replication.factor",
        ):
            assert needed in given
    assert SERVICES["prepare"]["environment"]["MODELMARKET_KAFKA_REPLICATION"] == "3"
    assert SERVICES["prepare"]["environment"]["MODELMARKET_KAFKA_MIN_INSYNC"] == "2"


def test_nodes_where_models_run_may_only_read_artifacts_and_nobody_is_given_the_root_of_the_store() -> None:
    for name, service in SERVICES.items():
        values = " ".join(map(str, service.get("environment", {}).values()))
        assert ("S3_ROOT" in values) == (name in ("minio", "bucket")), name
        assert not name.startswith("ray-") or ("S3_READER_SECRET_KEY" in values and "S3_SECRET_KEY" not in values), name


BROKERS = frozenset(f"KAFKA_{role.upper()}_PASSWORD" for role in (*ACCESS, *SUPER_USERS))
IMAGES_SECRETS = {
    **dict.fromkeys(("kafka-1", "kafka-2", "kafka-3"), BROKERS),
    # It makes the registry's user, and is told the password at its first start.
    "postgres": {"POSTGRES_PASSWORD", "REGISTRY_DATABASE_PASSWORD"},
    "registry": {"REGISTRY_DATABASE_PASSWORD"},
    "clickhouse": {"CLICKHOUSE_ADMIN_PASSWORD", *(f"CLICKHOUSE_{role.upper()}_PASSWORD" for role in OWN_ROLES)},
    "minio": {"S3_ROOT_USER", "S3_ROOT_PASSWORD"},
    "bucket": {
        *("S3_ROOT_USER", "S3_ROOT_PASSWORD", "S3_ACCESS_KEY", "S3_SECRET_KEY", "S3_READER_ACCESS_KEY", "S3_READER_SECRET_KEY"),
    },
    "redis": {"REDIS_PASSWORD"},
}


def secrets_in(name: str) -> set[str]:
    """Variables that a service is given, in its environment, its command or a file."""
    files = [CONFIGS[config["source"]].get("content", "") for config in SERVICES[name].get("configs", [])]
    return {found[1] for text in (str(SERVICES[name]), *files) for found in VARIABLE.finditer(text) if found[2] == "?"}


def test_an_image_of_others_is_given_its_own_secrets_only_and_the_event_stores_password_is_with_those_who_use_it() -> None:
    others = {name for name, service in SERVICES.items() if not service["image"].startswith("modelmarket:")}
    assert {name: secrets_in(name) for name in others} == IMAGES_SECRETS
    assert {name for name in SERVICES if "POSTGRES_PASSWORD" in secrets_in(name)} == {"postgres", "commands", "relay"}


def test_no_secret_stands_in_the_file() -> None:
    for name, service in SERVICES.items():
        for variable, value in service.get("environment", {}).items():
            if re.search("PASSWORD|SECRET|TOKEN|KEY|ROOT_USER", variable):
                assert re.fullmatch(r"\$\{\w+:\?\}", value), f"{name}: {variable}"


def test_ports_are_published_on_loopback_unless_the_caller_says_otherwise() -> None:
    published = {name: port for name, service in SERVICES.items() for port in service.get("ports", [])}
    assert set(published) == {"commands", "queries", "gateway"}
    for port in published.values():
        assert interpolated(port).startswith("127.0.0.1:")


def test_the_health_check_asks_the_port_on_which_the_process_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in settings_of(SERVICES["commands"]):
        monkeypatch.delenv(variable, raising=False)
    settings = Settings()
    expected = {
        "commands": settings.command_port,
        "relay": settings.relay_health_port,
        "worker-0": settings.worker_health_port(0),
        "worker-1": settings.worker_health_port(1),
        "queries": settings.query_port,
        "biller": settings.biller_health_port,
        "controller": settings.controller_health_port,
        "signer": settings.signer_port,
        "gateway": settings.gateway_port,
    }
    asked = {name: int(SERVICES[name]["healthcheck"]["test"][-1]) for name in expected}
    assert asked == expected


def test_only_the_gpu_worker_reserves_a_gpu() -> None:
    reserving = [name for name, service in SERVICES.items() if "deploy" in service]
    assert reserving == ["ray-gpu-worker"]
    (device,) = SERVICES["ray-gpu-worker"]["deploy"]["resources"]["reservations"]["devices"]
    assert device["capabilities"] == ["gpu"]


def test_a_private_key_is_in_the_environment_of_its_signer_alone_and_the_signers_password_in_those_of_gateways_too() -> None:
    holders = {"MODELMARKET_SETUP_KEY": {"prepare"}, "MODELMARKET_RELAY_KEY": {"relay"}, "MODELMARKET_MARKET_KEY": {"signer"}}
    holders["MODELMARKET_SIGNER_PASSWORD"] = {"signer", "gateway"}
    for variable, wanted in holders.items():
        assert {name for name, service in SERVICES.items() if variable in settings_of(service)} == wanted
