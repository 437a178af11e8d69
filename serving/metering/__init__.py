"""Usage facts, written and acknowledged."""
