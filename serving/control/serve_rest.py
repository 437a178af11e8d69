"""Ray Serve's declarative REST API: the applied configuration, the status of its applications, and applying a new one."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast

import httpx

from events.process.settings import Settings
from serving.control.serve_plan import AppliedConfig, Config, ConfigVersion
from serving.serve_names import APPLIED_APP

DEPLOY_FAILED = "DEPLOY_FAILED"
"""Serve's status of an application that it does not start again by itself."""
CALL_S_MAX = 15.0
"""Ray's dashboard starts Serve in the first PUT, which takes about five seconds."""


class ServeUnavailable(Exception):
    """Ray does not answer, or not now. Transient: it is being restarted."""


class ConfigRefused(Exception):
    """Ray refused the configuration: a defect of the controller."""


@dataclass(frozen=True, slots=True)
class AppStatus:
    """Serve's status of one application, its message, and how many replicas run."""

    status: str
    message: str
    replicas: int


@dataclass(frozen=True, slots=True)
class ServeStatus:
    applied: AppliedConfig
    apps: Mapping[str, AppStatus]


class ServeRest:
    def __init__(self, settings: Settings) -> None:
        token = settings.ray_auth_token.get_secret_value()
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        self._client = httpx.Client(base_url=settings.ray_dashboard, headers=headers, timeout=CALL_S_MAX)

    def status(self) -> ServeStatus:
        """Raises ServeUnavailable."""
        details = self._get("/api/serve/applications/")
        apps = cast(dict[str, Any], details.get("applications") or {})
        configs: dict[str, Config] = {}
        statuses: dict[str, AppStatus] = {}
        version: ConfigVersion | None = None
        for name, app in apps.items():
            config = app.get("deployed_app_config")
            if config is not None and app.get("status") != "DELETING":
                configs[name] = config
            deployments = cast(dict[str, Any], app.get("deployments") or {})
            running = [r for d in deployments.values() for r in d.get("replicas", []) if r.get("state") == "RUNNING"]
            trouble = [d["message"] for d in deployments.values() if d.get("message") and d.get("status") != "HEALTHY"]
            statuses[name] = AppStatus(app.get("status", ""), (trouble or [app.get("message", "")])[0], len(running))
            if name == APPLIED_APP:
                version = _version_of(config)
        return ServeStatus(AppliedConfig(version, configs), statuses)

    def apply(self, config: Config, *, until: float = math.inf) -> None:
        """`until` (`time.monotonic`): later, another controller may have applied one. Raises ServeUnavailable, ConfigRefused."""
        body = json.dumps(config).encode()
        if time.monotonic() > until:
            raise ServeUnavailable("this process was paused; it asks again who leads")
        try:
            response = self._client.put("/api/serve/applications/", content=body, headers={"Content-Type": "application/json"})
        except httpx.HTTPError as e:
            raise ServeUnavailable(f"{type(e).__name__}: {e}") from e
        if response.status_code >= 500:
            raise ServeUnavailable(response.text[:500])
        if response.status_code != 200:
            raise ConfigRefused(response.text[:1000])

    def close(self) -> None:
        self._client.close()

    def _get(self, path: str) -> dict[str, Any]:
        try:
            response = self._client.get(path)
            response.raise_for_status()
            return response.json()
        except (httpx.HTTPError, ValueError) as e:
            raise ServeUnavailable(f"{type(e).__name__}: {e}") from e


def _version_of(config: Config | None) -> ConfigVersion | None:
    for deployment in (config or {}).get("deployments", []):
        found = deployment.get("user_config") or {}
        if {"log_id", "store", "position"} <= found.keys():
            return ConfigVersion(found["log_id"], found["store"], int(found["position"]))
    return None
