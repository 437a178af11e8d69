"""A Kafka broker beside a stack's own, of the same version and settings, which asks nobody who he is: the baseline of `bench.checks`."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Generator
from contextlib import contextmanager

import psutil

from events.process.settings import Settings
from infra.launcher import Stack
from infra.launcher.jvm import kafka_classpath, kafka_command, kafka_folder
from infra.launcher.ports import free_block

HOST = "127.0.0.1"
SECURITY = ("sasl.", "authorizer.", "allow.everyone", "super.users")
"""How the lines of the broker's settings begin that this one does not have."""


@contextmanager
def broker_without_security(stack: Stack) -> Generator[tuple[Settings, list[psutil.Process]]]:
    """A second broker of the same version and settings, which asks nobody who he is."""
    with free_block() as base:
        own = kafka_folder(stack.paths)
        folder = own.parent / "kafka-without-security"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        text = (own / "server.properties").read_text()
        for before, after in ((stack.settings.kafka_port, base), (stack.settings.kafka_controller_port, base + 1)):
            text = text.replace(f":{before}", f":{after}")
        text = text.replace("SASL_PLAINTEXT", "PLAINTEXT").replace(str(own / "log"), str(folder / "log"))
        text = text.replace("auto.create.topics.enable=false", "auto.create.topics.enable=true").replace(
            "num.partitions=1", "num.partitions=4", 1
        )
        lines = [line for line in text.splitlines() if not line.startswith(SECURITY)]
        properties = folder / "server.properties"
        properties.write_text("\n".join(lines) + "\n")
        command = [part.replace(str(own), str(folder)) for part in kafka_command(stack.paths) if "security.auth.login" not in part]
        shutil.copy(own / "log4j2.properties", folder)
        tool = ["kafka.tools.StorageTool", "format", "--standalone", "--cluster-id=AAAAAAAAAAAAAAAAAAAAAA", "-c", str(properties)]
        subprocess.run([command[0], "-cp", kafka_classpath(), *tool], check=True, capture_output=True, timeout=120)
        with (folder / "out.log").open("wb") as log:
            broker = subprocess.Popen(command, stdout=log, stderr=log, env=stack.environment())
        try:
            yield Settings(kafka_bootstrap=f"{HOST}:{base}", data=stack.settings.folder), [psutil.Process(broker.pid)]
        finally:
            broker.terminate()
            broker.wait(60)
