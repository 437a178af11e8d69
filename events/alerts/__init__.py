"""What a process says when a person should look, as facts on topic `alerts`."""
