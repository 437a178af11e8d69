"""Two people: whoever asked for it does not approve it."""

from __future__ import annotations

from commands.processor.context import CommandContext
from commands.processor.rejection import Rejected, forbidden
from events.facts.fact import UserId


def same_person(requested_by: UserId, origin: CommandContext) -> Rejected | None:
    """A refusal when the caller asked for it. People are told apart by the user of their key, whatever tenant it is of."""
    if origin.by != requested_by:
        return None
    return forbidden(
        "same_person", f"{requested_by} asked for this and cannot approve it", "by", "ask another admin, with a key of their own"
    )
