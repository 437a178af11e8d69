"""What may happen: the rules, the store that keeps what was decided, and the relay that publishes it."""

PRODUCER = "commands"
"""The `producer` of every fact that is decided here."""
