"""Cuts and bills."""
