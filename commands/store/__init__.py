"""The event store: what was decided, as finished log records."""
