"""What Ray is made to do differently in its own processes."""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from queue import SimpleQueue

import orjson
import pytest

from events.process.settings import Settings
from infra.launcher import raynode
from infra.launcher.paths import ROOT, paths_of
from infra.launcher.ports import free_block
from infra.rayhook import patient
from serving.control.serve_plan import AppliedConfig, ApplyConfig, ConfigVersion, plan


def test_a_node_that_reports_late_is_waited_for() -> None:
    answers = iter([RuntimeError("not yet"), RuntimeError("not yet"), "node"])

    def ask(name: str) -> str:
        answer = next(answers)
        if isinstance(answer, RuntimeError):
            raise answer
        return f"{name} {answer}"

    assert patient(ask, 10, 0.001)("this") == "this node"


def test_a_node_that_never_reports_is_an_error() -> None:
    def ask() -> str:
        raise RuntimeError("nobody")

    with pytest.raises(RuntimeError, match="nobody"):
        patient(ask, 0.01, 0.001)()


UNUSED = """
import sys
import jsonschema, requests
import requests
assert not {"urllib3", "referencing"} & sys.modules.keys(), "loaded before anybody used it"
from requests.adapters import HTTPAdapter
assert type(requests.Session().get_adapter("http://x")) is requests.adapters.HTTPAdapter is HTTPAdapter
assert requests.adapters.__spec__.origin and requests.__spec__.submodule_search_locations
assert not hasattr(requests, "no such thing")
jsonschema.validate(1, {"type": "integer"})
"""


def test_what_ray_imports_and_does_not_use_is_loaded_when_somebody_uses_it() -> None:
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "infra" / "lean")}
    done = subprocess.run([sys.executable, "-c", UNUSED], env=environment, capture_output=True, text=True, check=False, timeout=30)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.fixture
def settings(tmp_path: Path) -> Iterator[Settings]:
    with free_block() as port:
        elsewhere = "http://127.0.0.1:1"  # a cluster that the launcher did not start
        yield Settings(stack="ray", data=tmp_path, base_port=port, ray_dashboard_url=elsewhere)


@pytest.fixture
def asked(settings: Settings) -> Iterator[SimpleQueue[tuple[str, str, bytes]]]:
    """What Ray's REST interface was asked: method, path and authorization, body."""
    questions = SimpleQueue[tuple[str, str, bytes]]()

    class Rest(BaseHTTPRequestHandler):
        def do_PUT(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            questions.put((self.path, self.headers["Authorization"], body))

        def log_message(self, format: str, *args: object) -> None:
            pass

    with HTTPServer((settings.host, settings.ray_dashboard_port), Rest) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield questions
        server.shutdown()
        thread.join()


def test_serve_is_begun_empty_and_with_the_options_of_the_controller(
    settings: Settings, asked: SimpleQueue[tuple[str, str, bytes]]
) -> None:
    paths = paths_of(settings)
    paths.ray_token.parent.mkdir(parents=True, exist_ok=True)
    paths.ray_token.write_text("secret")
    raynode.begin_serve(settings, paths).close()
    path, authorization, body = asked.get(timeout=5)
    applied = plan((), ConfigVersion("log", "store", 0), AppliedConfig(None))
    assert isinstance(applied, ApplyConfig)
    assert (path, authorization) == ("/api/serve/applications/", "Bearer secret")
    assert orjson.loads(body) == applied.config | {"applications": []}


def test_a_ray_that_does_not_answer_does_not_stop_a_start(settings: Settings) -> None:
    paths = paths_of(settings)
    raynode.begin_serve(settings, paths).close()
    paths.ray_token.parent.mkdir(parents=True, exist_ok=True)
    paths.ray_token.write_text("secret")
    raynode.begin_serve(settings, paths).close()


def test_serve_calls_what_its_environment_names(settings: Settings) -> None:
    environment = raynode.environment(settings, paths_of(settings))
    for name in ("RAY_START_HOOK", "__RAY_WORKER_PROCESS_SETUP_HOOK_ENV_VAR"):
        module, _, function = environment[name].rpartition(".")
        assert callable(getattr(importlib.import_module(module), function))
