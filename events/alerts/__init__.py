"""How a process reports what needs a person, as facts on topic `alerts`."""
