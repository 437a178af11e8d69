"""An empty registry is given the log's schemas under the log's ids, for when the registry's own data was lost (K2).

Through the Confluent API Apicurio 3.3.3 takes no id: mode IMPORT is accepted and the id in a request is passed over. Its own
import does, from the archive that its export writes; so that is what is made here. Of other registries restore the backup.
"""

from __future__ import annotations

import hashlib
import io
import json
import zipfile
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import httpx

from events.log.client import LogMismatch, Reader
from events.log.schemas import compare, schemas_on_log
from events.process.settings import Settings
from events.schema.codec import Schema
from events.schema.registry import RegistryUnavailable, SchemaRegistry

CONFLUENT_PATH = "/apis/ccompat"
NATIVE_PATH = "/apis/registry/v3"
IMPORT_S_MAX = 60.0
OURS = {"owner": "", "createdOn": 0, "modifiedBy": "", "modifiedOn": 0}


def restore(settings: Settings, reader: Reader) -> list[Schema]:
    """Fills an empty registry; the schemas that went into it. Raises LogMismatch when it is not empty or takes no ids, and when
    afterwards it does not hold what the log says; RegistryUnavailable."""
    schemas = schemas_on_log(reader)
    if not schemas:
        raise LogMismatch("topic schemas is empty: there is nothing to restore; run `modelmarket schemas publish`")
    registry = SchemaRegistry(settings)
    there = registry.subjects()
    if there:
        raise LogMismatch(
            f"the registry is not empty, it has {len(there)} subjects ({', '.join(sorted(there)[:3])} …): nothing was changed"
        )
    _import(settings, archive(schemas))
    for schema in schemas:
        compare(registry, schema)
    return schemas


def archive(schemas: Sequence[Schema]) -> bytes:
    """What `GET /admin/export` of Apicurio 3 would have written, had the registry held these schemas: content by id, versions by subject."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as file:

        def put(name: str, kind: str, entity: Mapping[str, Any]) -> None:
            file.writestr(f"{name}.{kind}.json", json.dumps(entity))

        put("manifest", "Manifest", {"systemVersion": "3.3.3", "systemName": "modelmarket", "exportVersion": "3.0", "dbVersion": "109"})
        for schema in {s.schema_id: s for s in schemas}.values():
            content = schema.definition.encode()
            digest = hashlib.sha256(content).hexdigest()
            entity = {"contentId": schema.schema_id, "contentHash": digest, "canonicalHash": digest, "contentType": "application/json"}
            put(f"content/{digest}", "Content", entity)
            file.writestr(f"content/{digest}.Content.data", content)
        by_subject: defaultdict[str, list[Schema]] = defaultdict(list)
        for schema in schemas:
            by_subject[schema.subject].append(schema)
        folders = {subject: f"groups/default/artifacts/{subject}" for subject in by_subject}
        for subject, folder in folders.items():
            put(f"{folder}/MetaData", "Artifact", {**OURS, "artifactId": subject, "artifactType": "AVRO"})
        global_id = 0
        for subject, folder in folders.items():
            for order, schema in enumerate(by_subject[subject], 1):
                global_id += 1
                names = {"artifactId": subject, "version": str(order), "versionOrder": order, "state": "ENABLED"}
                put(
                    f"{folder}/versions/{order}", "ArtifactVersion", {**OURS, **names, "globalId": global_id, "contentId": schema.schema_id}
                )
        for subject, folder in folders.items():
            versions = [str(order) for order in range(1, len(by_subject[subject]) + 1)]
            branch = {"artifactId": subject, "branchId": "latest", "systemDefined": True, "versions": versions}
            put(f"{folder}/branches/latest", "Branch", {**OURS, **branch})
    return buffer.getvalue()


def _import(settings: Settings, content: bytes) -> None:
    root, confluent, _ = settings.registry.partition(CONFLUENT_PATH)
    if not confluent:
        raise LogMismatch(f"{settings.registry} is no Apicurio registry: only that takes ids. Restore the registry's own backup")
    user = (settings.registry_user, settings.registry_password.get_secret_value()) if settings.registry_user else None
    headers = {
        "Content-Type": "application/zip",
        "X-Registry-Preserve-GlobalId": "true",
        "X-Registry-Preserve-ContentId": "true",
    }
    try:
        answer = httpx.post(f"{root}{NATIVE_PATH}/admin/import", content=content, headers=headers, auth=user, timeout=IMPORT_S_MAX)
    except httpx.HTTPError as e:
        raise RegistryUnavailable(f"{type(e).__name__}: {e}") from e
    if not answer.is_success:
        raise RegistryUnavailable(f"the registry refused the import, {answer.status_code}: {answer.text[:500]}")
