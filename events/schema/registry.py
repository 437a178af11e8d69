"""The schema registry over its Confluent API. The only file that imports the registry client.

What each process does at its start, and once for each schema, goes past that client: to load it and to ask it took 0.3 s of processor time.

Subject = `<topic>-<record name>` (TopicRecordNameStrategy), compatibility BACKWARD_TRANSITIVE.
"""

from __future__ import annotations

import json
from functools import cached_property, partial
from typing import Any
from urllib.parse import quote

import urllib3

from events.process.settings import Settings

COMPATIBILITY = "BACKWARD_TRANSITIVE"
ANSWER_S_MAX = 10.0
ANSWER_BYTES_MAX = 16 << 20


class RegistryUnavailable(Exception):
    """The registry did not answer. Transient: never a reason to drop a record."""


class IncompatibleSchema(Exception):
    """The registry refused a schema: records written before could not be read with it."""


class SchemaRegistry:
    """The Confluent API of a schema registry, in the calls we need."""

    def __init__(self, settings: Settings) -> None:
        self._url, self._user = settings.registry, settings.registry_user
        self._password = settings.registry_password.get_secret_value()

    @cached_property
    def _client(self) -> Any:
        from confluent_kafka.schema_registry import SchemaRegistryClient

        config: dict[str, Any] = {"url": self._url, "timeout": ANSWER_S_MAX}
        if self._user:
            config["basic.auth.user.info"] = f"{self._user}:{self._password}"
        return SchemaRegistryClient(config)

    @cached_property
    def _connections(self) -> urllib3.PoolManager:
        sign_in = urllib3.make_headers(basic_auth=f"{self._user}:{self._password}") if self._user else {}
        return urllib3.PoolManager(headers=sign_in, timeout=ANSWER_S_MAX, retries=False)

    def require_compatibility(self) -> None:
        self._call(lambda: self._client.set_compatibility(level=COMPATIBILITY))

    def register(self, subject: str, definition: str) -> int:
        """The schema's id; the same text always gets the same id. Raises IncompatibleSchema."""
        from confluent_kafka.schema_registry import Schema

        return int(self._call(lambda: self._client.register_schema(subject, Schema(definition, "AVRO"))))

    def schema(self, subject: str, schema_id: int) -> str | None:
        """The text under an id, None when the registry does not know it."""
        url = f"{self._url}/schemas/ids/{schema_id}?subject={quote(subject, safe='')}"
        try:
            answer = self._connections.request("GET", url, preload_content=False)
            body = answer.read(ANSWER_BYTES_MAX)
            (answer.release_conn if len(body) < ANSWER_BYTES_MAX else answer.close)()
            if answer.status == 404:
                return None
            if answer.status == 200:
                return str(json.loads(body)["schema"])
        except (urllib3.exceptions.HTTPError, LookupError, TypeError, ValueError) as e:
            raise RegistryUnavailable(f"schema id {schema_id}: {type(e).__name__}: {e}") from e
        raise RegistryUnavailable(f"schema id {schema_id}: the registry answered {answer.status}: {body[:500]!r}")

    def ids(self, subject: str) -> set[int]:
        """Of every version of a subject; none where it does not know the subject."""
        try:
            versions = self._call(lambda: self._client.get_versions(subject))
            return {int(self._call(partial(self._client.get_version, subject, v)).schema_id) for v in versions}
        except KeyError:
            return set()

    def subjects(self) -> list[str]:
        return list(self._call(self._client.get_subjects))

    def _call(self, call: Any) -> Any:
        from confluent_kafka.schema_registry.error import SchemaRegistryError

        try:
            return call()
        except SchemaRegistryError as e:
            if e.http_status_code == 404:
                raise KeyError(e.error_message) from e
            if e.http_status_code in (409, 422):
                raise IncompatibleSchema(e.error_message) from e
            raise RegistryUnavailable(str(e)) from e
        except Exception as e:  # the client lets its HTTP library's errors through
            raise RegistryUnavailable(f"{type(e).__name__}: {e}") from e
