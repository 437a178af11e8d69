"""From a request to a stored decision: one processor for every aggregate."""
