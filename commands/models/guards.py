"""Guards of every command on a model: it must be there, not retired, and the caller's to change."""

from __future__ import annotations

from typing import assert_never

from commands.processor.rejection import Rejected, gone, missing
from lifecycle.model import ActiveModel, Model, NoModel, RetiredModel


def active_model(model: Model) -> ActiveModel | Rejected:
    match model:
        case NoModel():
            return no_model()
        case RetiredModel():
            successor = f"; its successor is {model.successor}" if model.successor else ""
            return gone("model_retired", f"{model.model} is retired{successor}", "model", "use the successor, or register a new name")
        case ActiveModel():
            return model
        case _:
            assert_never(model)


def no_model() -> Rejected:
    return missing("model_unknown", "there is no such model, or it is not yours", "model", "register it first, or check the id")


def no_version(version: str) -> Rejected:
    return missing("version_unknown", f"the model has no version {version}", "version", "list the model's versions, or add this one")
