"""Running and issued bills, computed from the tables and again from the log."""
