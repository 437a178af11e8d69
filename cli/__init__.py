"""The command `modelmarket`, one module per subject."""
