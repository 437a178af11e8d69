"""The schema registry over its Confluent API. The only file that imports the registry client.

Subject = `<topic>-<record name>` (TopicRecordNameStrategy), compatibility BACKWARD_TRANSITIVE.
"""

from __future__ import annotations

from functools import partial
from typing import Any

from events.process.settings import Settings

COMPATIBILITY = "BACKWARD_TRANSITIVE"


class RegistryUnavailable(Exception):
    """The registry did not answer. Transient: never a reason to drop a record."""


class IncompatibleSchema(Exception):
    """The registry refused a schema: records written before could not be read with it."""


class SchemaRegistry:
    """The Confluent API of a schema registry, in the calls we need."""

    def __init__(self, settings: Settings) -> None:
        # Here and not above: the client loads 0.4 s of libraries, and most processes only name this module's exceptions.
        from confluent_kafka.schema_registry import SchemaRegistryClient

        config: dict[str, Any] = {"url": settings.registry, "timeout": 10}
        if settings.registry_user:
            config["basic.auth.user.info"] = f"{settings.registry_user}:{settings.registry_password.get_secret_value()}"
        self._client = SchemaRegistryClient(config)

    def require_compatibility(self) -> None:
        self._call(lambda: self._client.set_compatibility(level=COMPATIBILITY))

    def register(self, subject: str, definition: str) -> int:
        """The schema's id; the same text always gets the same id. Raises IncompatibleSchema."""
        from confluent_kafka.schema_registry import Schema

        return int(self._call(lambda: self._client.register_schema(subject, Schema(definition, "AVRO"))))

    def schema(self, subject: str, schema_id: int) -> str | None:
        """The text under an id, None when the registry does not know it."""
        try:
            # A fresh client each time would lose its cache; the cache is what makes this cheap for ids shared by subjects.
            return self._call(lambda: self._client.get_schema(schema_id, subject_name=subject)).schema_str
        except KeyError:
            return None

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
