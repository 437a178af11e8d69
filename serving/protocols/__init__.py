"""The protocols callers speak, one folder each."""
