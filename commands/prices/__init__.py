"""Price books."""
