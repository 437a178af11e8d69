"""Giving up unreadable records and dead producer epochs, by two people."""
