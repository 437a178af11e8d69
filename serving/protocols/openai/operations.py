"""The list of models in the shape of OpenAI's `GET /v1/models`, with the caller's prices in force now as `pricing`."""

from __future__ import annotations

from collections.abc import Sequence

import orjson

from serving.protocols.operations import ListedModel, ListModels, Operation


def operation(segments: list[str]) -> Operation | None:
    """The operation at a path below /v1; None when nothing is there."""
    return ListModels(model_list) if segments == ["models"] else None


def model_list(models: Sequence[ListedModel]) -> bytes:
    data = [{"id": m.model, "object": "model", "created": m.registered_at_s, "owned_by": m.provider, "pricing": m.pricing} for m in models]
    return orjson.dumps({"object": "list", "data": data})
