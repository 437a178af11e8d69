"""The parts of a stack: what each runs, what it needs first, how it shows that it works."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

from events.process.settings import Settings
from infra.launcher import jvm, raynode
from infra.launcher.part_secrets import kafka_role, withheld
from infra.launcher.paths import PART_VARIABLE, ROOT, StackPaths
from infra.launcher.probes import ExitProbe, HttpProbe, KafkaProbe, Probe


@dataclass(frozen=True)
class Part:
    name: str
    command: tuple[str, ...]
    probe: Probe
    after: tuple[str, ...] = ()
    ports: tuple[int, ...] = ()
    environment: Mapping[str, str] = field(default_factory=dict[str, str])
    before: Callable[[], None] | None = None
    """Done by the launcher each time before it starts the part."""
    healthy_s_max: float = 120.0
    """How long a start may take on a slow, busy machine; a healthy one needs a tenth."""
    stop_s_max: int = 10
    stops_its_own: bool = False
    """On SIGTERM it ends its children itself, in order. Of other parts the whole process group gets the signal."""
    crashed_within_s: int = 5
    """A part that ends sooner than this after its start is restarted with growing pauses, later ones at once."""

    @property
    def runs_once(self) -> bool:
        return isinstance(self.probe, ExitProbe)


def parts_of(settings: Settings, paths: StackPaths) -> dict[str, Part]:
    """All parts of this stack by name, in an order in which each comes after what it needs."""
    own = [clickhouse(settings), prepare(), *processes(settings), gateway(settings, paths)]
    parts = [kafka(settings, paths), registry(settings, paths), ray(settings, paths), signer(settings), *own]
    return {part.name: replace(part, environment=common(part.name, settings) | dict(part.environment)) for part in parts}


def common(part: str, settings: Settings) -> dict[str, str]:
    """What the environment of every part says: its name, by which its processes are found, as whom it signs in at the stack's own broker, and
    no secret that it does not need."""
    role = {} if settings.kafka_bootstrap else kafka_role(part)
    return {PART_VARIABLE: part, **role, **withheld(part)}


def module(name: str, *arguments: str) -> tuple[str, ...]:
    return (sys.executable, "-m", name, *arguments)


def healthz(settings: Settings, port: int) -> HttpProbe:
    return HttpProbe(f"http://{settings.host}:{port}/healthz")


def kafka(settings: Settings, paths: StackPaths) -> Part:
    return Part(
        name="kafka",
        command=jvm.kafka_command(paths),
        probe=KafkaProbe(settings.host, settings.kafka_port),
        ports=(settings.kafka_port, settings.kafka_controller_port),
        before=lambda: jvm.prepare_kafka(settings, paths),
        stop_s_max=20,
    )


def registry(settings: Settings, paths: StackPaths) -> Part:
    return Part(
        name="registry",
        command=jvm.registry_command(),
        probe=HttpProbe(f"http://{settings.host}:{settings.registry_port}/apis/ccompat/v7/subjects"),
        ports=(settings.registry_port, settings.registry_management_port),
        environment=jvm.registry_environment(settings, paths),
        before=lambda: jvm.prepare_registry(paths),
        stop_s_max=20,
    )


def ray(settings: Settings, paths: StackPaths) -> Part:
    return Part(
        name="ray",
        command=module("infra.launcher.rayhead"),
        probe=HttpProbe(raynode.health_url(settings)),
        ports=raynode.fixed_ports(settings),
        environment=raynode.environment(settings, paths),
        healthy_s_max=180.0,
        stop_s_max=15,
        stops_its_own=True,
    )


def signer(settings: Settings) -> Part:
    """It needs its key and its password only, and makes both at its first start."""
    port, environment = settings.signer_port, {"PYTHONPATH": str(ROOT)}
    return Part("signer", module("commands.signer.signer"), healthz(settings, port), ports=(port,), environment=environment)


def clickhouse(settings: Settings) -> Part:
    port = settings.clickhouse_port
    return Part(
        "clickhouse",
        module("infra.clickhouse_local.engine"),
        HttpProbe(f"http://{settings.host}:{port}/ping"),
        ports=(port,),
        stop_s_max=20,
    )


def prepare() -> Part:
    """It makes topics while the registry is still starting, and waits for that itself."""
    return Part("prepare", module("cli.prepare"), ExitProbe(), after=("kafka", "clickhouse"), healthy_s_max=200.0)


def processes(settings: Settings) -> list[Part]:
    """This project's own processes: they need the topics, the schemas and the tables that `prepare` has made."""

    def own(name: str, command: tuple[str, ...], port: int, role: str = "", after: tuple[str, ...] = ("prepare",)) -> Part:
        """`role` is the user of the local ClickHouse that it signs in as; its password is in a file that only such a process reads."""
        environment = {"PYTHONPATH": str(ROOT)}
        if role and not settings.clickhouse_url:
            environment["MODELMARKET_CLICKHOUSE_USER"] = role
        return Part(name, command, healthz(settings, port), after=after, ports=(port,), environment=environment)

    workers = (
        own(f"worker-{index}", module("projections.worker", "--index", str(index)), settings.worker_health_port(index), "ingest")
        for index in range(settings.workers)
    )
    return [
        own("commands", module("commands.api"), settings.command_port),
        own("relay", module("commands.relay.relay"), settings.relay_health_port),
        *workers,
        own("queries", module("projections.query_api.app"), settings.query_port, "bills"),
        own("biller", module("projections.bills.biller"), settings.biller_health_port, "bills"),
        own("controller", module("serving.control.controller"), settings.controller_health_port, after=("prepare", "ray")),
    ]


def gateway(settings: Settings, paths: StackPaths) -> Part:
    """Its listener, which starts the gateways. Each is a driver of the Ray cluster, so they have its environment."""
    environment = {**raynode.environment(settings, paths), "MODELMARKET_RAY_ADDRESS": raynode.address(settings)}
    return Part(
        "gateway",
        module("serving.hosting.listener"),
        healthz(settings, settings.gateway_port),
        after=("prepare", "ray", "signer"),
        ports=(settings.gateway_port,),
        environment=environment,
        healthy_s_max=180.0,
        stop_s_max=40,
        stops_its_own=True,
    )
