"""Two people: the one who requested a write-off does not approve it."""

from __future__ import annotations

from commands.processor.context import CommandContext
from commands.processor.rejection import Rejected, forbidden
from events.facts.fact import UserId


def same_person(requested_by: UserId, context: CommandContext) -> Rejected | None:
    """A rejection when the caller asked for it. People are distinguished by the user of their key, of any tenant."""
    if context.by != requested_by:
        return None
    return forbidden(
        "same_person", f"{requested_by} asked for this and cannot approve it", "by", "ask another admin, with a key of their own"
    )
