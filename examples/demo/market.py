"""The market's HTTP interfaces as the demo uses them: every call checked."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import httpx

from events.process.settings import Settings

CALL_S_MAX = 30.0
WAIT_S_MAX = 180.0
"""For what follows from facts within seconds: it ends a demo that has failed, also on a slow machine."""


class DemoFailed(Exception):
    """Something is not as it must be; the demo ends non-zero and says what."""


@dataclass
class Market:
    """Command API and query API with one key; `promised` counts the facts that commands have answered with."""

    settings: Settings
    key: str
    promised: Counter[str] = field(default_factory=Counter[str])

    def __post_init__(self) -> None:
        self._http = httpx.Client(timeout=CALL_S_MAX)

    def with_key(self, key: str) -> Market:
        """The same market, seen with another key."""
        return Market(self.settings, key, self.promised)

    def command(self, method: str, path: str, body: dict[str, Any] | bytes | None = None, *, expect: int = 0) -> dict[str, Any]:
        """Sends a command; with `expect` a refusal is what should happen. Counts the facts it answers with."""
        url, headers = self.settings.commands + path, {"Authorization": f"Bearer {self.key}"}
        content = {"content": body} if isinstance(body, bytes) else {"json": body}
        answer = self._http.request(method, url, headers=headers, **content)  # type: ignore[arg-type]
        answered: dict[str, Any] = answer.json() if answer.content else {}
        if expect:
            if answer.status_code != expect:
                raise DemoFailed(
                    f"{method} {path} should have been refused with {expect}, but answered {answer.status_code}: {answer.text[:500]}"
                )
            return answered
        if answer.status_code >= 300:
            raise DemoFailed(f"{method} {path} answered {answer.status_code}: {answer.text[:800]}")
        self.promised.update(f["name"] for f in answered.get("facts", []))
        return answered

    def query(self, path: str, **params: Any) -> dict[str, Any]:
        answer = self._http.get(self.settings.queries + path, params=params, headers={"Authorization": f"Bearer {self.key}"})
        if answer.status_code >= 300:
            raise DemoFailed(f"GET {path} answered {answer.status_code}: {answer.text[:800]}")
        found: dict[str, Any] = answer.json()
        return found

    def price(self, model: str) -> dict[str, Any]:
        """What the gateway says a model costs this key's tenant, by meter; empty when it does not know."""
        answer = self._http.get(f"{self.settings.gateway}/v1/models", headers={"Authorization": f"Bearer {self.key}"})
        found = [m for m in answer.json()["data"] if m["id"] == model] if answer.status_code == 200 else []
        return dict(found[0]["pricing"]["meters"]) if found and found[0]["pricing"] else {}

    def ready(self, model: str, version: str) -> bool:
        """Whether the gateway would send calls to this version now."""
        try:
            url = f"{self.settings.gateway}/v2/models/{model}/versions/{version}/ready"
            return self._http.get(url, headers={"Authorization": f"Bearer {self.key}"}).status_code == 200
        except httpx.HTTPError:
            return False


def until(what: str, condition: Callable[[], bool]) -> float:
    """Waits for something that follows from facts; the seconds it took."""
    began = time.monotonic()
    while not condition():
        if time.monotonic() - began > WAIT_S_MAX:
            raise DemoFailed(f"{what}: not within {WAIT_S_MAX:.0f} s")
        time.sleep(0.05)
    return time.monotonic() - began
