"""Documents of everything decided, with their history."""
