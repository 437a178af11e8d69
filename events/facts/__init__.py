"""The facts, one module per topic."""
