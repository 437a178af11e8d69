"""Set-up, the launcher of the local stack, and the production shape of the same code."""
