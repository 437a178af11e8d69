"""Set-up: from a bare Python 3.11 to a machine that can run the stack; a second run finds everything in place.

Runs before anything is installed, so it uses the standard library only. Three steps, each keyed by the content it installs:
the Python packages of `requirements.lock` into `.venv`, and the JVM parts of `infra/jvm/pom.xml` into `.modelmarket/jvm/<key>`.
A step that was killed half way is started afresh: its result appears under its final name, or its stamp, only when complete.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
import tarfile
import time
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
VENV = ROOT / ".venv"
LOCK = ROOT / "requirements.lock"
POM = ROOT / "infra" / "jvm" / "pom.xml"
CHECKSUMS = ROOT / "infra" / "jvm" / "checksums.sha256"
JVM = ROOT / ".modelmarket" / "jvm"
FETCH_S_MAX = 1800
"""A fetch may be slow, but must not hang for ever."""
UNATTENDED = ("env", "DEBIAN_FRONTEND=noninteractive")
"""A package that asks its questions on a terminal would wait for an answer until that bound."""


class SetupFailed(Exception):
    """Set-up cannot go on; the text says what to do."""


def main() -> int:
    started = time.monotonic()
    try:
        (ROOT / ".modelmarket").mkdir(exist_ok=True)
        with one_at_a_time(ROOT / ".modelmarket" / "setup.lock"):
            steps = [install_python_packages(), install_jvm_parts()]
    except SetupFailed as failure:
        sys.stderr.write(f"set-up failed: {failure}\n")
        return 1
    if any(steps):
        say(f"set-up done in {time.monotonic() - started:.0f} s")
    return 0


@contextmanager
def one_at_a_time(path: Path) -> Generator[None]:
    """Two `make` in one checkout must not install into the same folder; the lock goes with the process that holds it."""
    with path.open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


# --- Python


def install_python_packages() -> bool:
    """`.venv` holds exactly what the lock names. Says whether anything had to be done."""
    stamp, begun = VENV / "modelmarket.stamp", VENV / "modelmarket.begun"
    key = content_key(LOCK.read_bytes(), str(ROOT).encode(), Path(__file__).read_bytes())
    if stamp.is_file() and stamp.read_text() == key:
        return False
    check_python()
    if begun.exists():
        shutil.rmtree(VENV)
    uv = shutil.which("uv")
    if not (VENV / "bin" / "python").exists():
        with progress("creating .venv"):
            make_venv = [uv, "venv", "--quiet", "--python", sys.executable] if uv else [sys.executable, "-m", "venv", "--clear"]
            run([*make_venv, str(VENV)], "the virtual environment could not be created")
    stamp.unlink(missing_ok=True)
    begun.touch()
    with progress(f"installing {LOCK.read_text().count('==')} hash-locked Python packages with {'uv' if uv else 'pip'}"):
        run(python_install(uv), "the Python packages could not be installed")
    link_project()
    stamp.write_text(key)
    begun.unlink()
    return True


def check_python() -> None:
    if sys.version_info[:2] != (3, 11):
        found = ".".join(map(str, sys.version_info[:3]))
        raise SetupFailed(f"Python 3.11 is needed, this is {found}. Install it, or name it: make PYTHON=/path/to/python3.11")


def python_install(uv: str | None) -> list[str]:
    python = str(VENV / "bin" / "python")
    if uv:
        return [uv, "pip", "sync", "--quiet", "--require-hashes", "--python", python, str(LOCK)]
    return [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--require-hashes", "--no-deps", "-r", str(LOCK)]


def link_project() -> None:
    """Put the checkout on the path of `.venv` and `modelmarket` beside its python: an editable install that needs no build backend."""
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
    target = jvm_folder()
    if target.is_dir():
        return False
    maven = find_maven()
    partial = JVM / f"{target.name}.partial"
    shutil.rmtree(partial, ignore_errors=True)
    (partial / "kafka").mkdir(parents=True)
    with progress("fetching Kafka and Apicurio Registry with Maven"):
        goal = ["dependency:copy-dependencies", f"-DoutputDirectory={partial / 'kafka'}"]
        run([maven, "-q", "-B", "-C", "-f", str(POM), *goal], "Maven could not fetch the JVM parts")
    with progress("verifying their checksums"):
        verify(partial / "kafka")
    with progress("unpacking the registry"):
        unpack_registry(partial)
    partial.rename(target)
    for older in JVM.iterdir():
        if older != target:
            shutil.rmtree(older, ignore_errors=True)
    return True


def find_maven() -> str:
    found = shutil.which("mvn")
    if found:
        return found
    apt = shutil.which("apt-get")
    if apt is None or os.geteuid() != 0:
        how = "`sudo apt-get install maven`" if apt else "with this system's package manager"
        raise SetupFailed(f"Maven (mvn) is needed to fetch Kafka and Apicurio: install the package 'maven' ({how}) and run this again")
    with progress("installing Maven from the system's packages"):
        run([*UNATTENDED, apt, "update", "-qq"], "the system's package list could not be read")
        run(
            [*UNATTENDED, apt, "install", "-y", "-qq", "-o=Dpkg::Use-Pty=0", "--no-install-recommends", "maven"],
            "Maven could not be installed",
        )
    found = shutil.which("mvn")
    if found is None:
        raise SetupFailed(
            "the package 'maven' is installed, but there is no mvn on the PATH: add the folder of `dpkg -L maven | grep bin/mvn`"
        )
    return found


def verify(folder: Path) -> None:
    """Every file is listed with its SHA-256, and every listed file is there."""
    listed = [line.split() for line in CHECKSUMS.read_text().splitlines() if line.strip()]
    expected = {name: digest for digest, name in listed}
    found = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir()}
    wrong = sorted(name for name in expected.keys() | found.keys() if expected.get(name) != found.get(name))
    if wrong:
        raise SetupFailed(f"checksums differ from {CHECKSUMS.relative_to(ROOT)}: {', '.join(wrong)}. Nothing of it was kept.")


def unpack_registry(partial: Path) -> None:
    (archive,) = (partial / "kafka").glob("apicurio-registry-app-*-all.tar.gz")
    with tarfile.open(archive) as tar:
        tar.extractall(partial / "registry", filter="data")
    archive.unlink()
    if not (partial / "registry" / "quarkus-run.jar").is_file():
        raise SetupFailed(f"{archive.name} holds no quarkus-run.jar")


# --- common to all steps


def content_key(*parts: bytes) -> str:
    return hashlib.sha256(b"\0".join(hashlib.sha256(part).digest() for part in parts)).hexdigest()[:16]


@contextmanager
def progress(what: str) -> Generator[None]:
    say(f"· {what} …")
    started = time.monotonic()
    yield
    say(f"  done in {time.monotonic() - started:.1f} s")


def say(line: str) -> None:
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
    sys.exit(main())
