"""Bounds on what callers send: texts, numbers, and the parameters in a path."""

from __future__ import annotations

from typing import Annotated

from fastapi import Path
from pydantic import BaseModel, ConfigDict, Field

from events.facts.fact import INT64_MAX

Reason = Annotated[str, Field(min_length=1, max_length=1000)]
HEX_256 = r"^[0-9a-f]{64}$"
REASON_CHARS_MAX = 1000

# A path parameter becomes part of an aggregate's id: no other text reaches the store.
ModelPath = Annotated[str, Path(pattern=r"^[a-z0-9-]{1,200}$")]
SlugPath = Annotated[str, Path(pattern=r"^[a-z0-9-]{1,63}$")]
PERIOD = r"^[1-9][0-9]{3}-(0[1-9]|1[0-2])(-(0[1-9]|[12][0-9]|3[01]))?$"
PeriodPath = Annotated[str, Path(max_length=200, json_schema_extra={"pattern": PERIOD}, description="YYYY-MM or YYYY-MM-DD.")]
TextPath = Annotated[str, Path(max_length=200)]
WordPath = Annotated[str, Path(pattern=r"^[A-Za-z0-9._-]{1,100}$")]
NonNegativePath = Annotated[int, Path(ge=0, le=INT64_MAX)]


class RequestBody(BaseModel):
    """A JSON object with these members and no others."""

    model_config = ConfigDict(frozen=True, extra="forbid")
