"""What it costs: usage and price books in, statement lines out. Pure integer arithmetic, no I/O, used by every room above."""
