"""The market at work, on real parts: `make demo`."""
